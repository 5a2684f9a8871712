"""Coverage-guided fuzzing of the decoder: any bytes give an image or `BadInput`, from a file or a child.

PYTHONPATH=src:tests:tests/fuzz python tests/bench/fuzz_images.py decode -max_total_time=600
PYTHONPATH=src:tests:tests/fuzz python tests/bench/fuzz_images.py answer -max_total_time=600

Other options are libFuzzer's (`-help=1` lists them). An input that breaks the rule is written to `crash-*`
in the working folder and ends the run with a non-zero status.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import atheris

from retouch.images import sandbox_child

with atheris.instrument_imports(include=["retouch", "PIL"]):
    from test_images import LIMITS, SAMPLES, decode_or_refuse, receive_or_refuse

    from retouch.images import sandbox_child

TARGETS = {"decode": decode_or_refuse, "answer": receive_or_refuse}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        raise SystemExit(f"{__doc__}\nThe first argument is one of: {', '.join(TARGETS)}")
    target = sys.argv.pop(1)
    warnings.simplefilter("ignore")  # as in the child
    with tempfile.TemporaryDirectory() as corpus:
        for name, body in SAMPLES:
            if target == "answer":
                body = b"".join(sandbox_child.answer(body, LIMITS))  # noqa: PLW2901
            (Path(corpus) / name.replace("/", "-")).write_bytes(body)
        atheris.Setup([*sys.argv, corpus], TARGETS[target])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
