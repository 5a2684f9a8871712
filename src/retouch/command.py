"""The console script `retouch`: the command line, or one line that says which packages it needs."""

import sys


def main() -> int:
    """Run the command line and return its exit status; 1 where its packages are not installed."""
    try:
        from retouch.__main__ import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("retouch"):
            raise
        print(
            f"retouch: {error.name} is not installed. The command needs the service's packages:"
            ' pip install "./src[service]" in a clone. retouch.client works without them.',
            file=sys.stderr,
        )
        return 1
    return run()
