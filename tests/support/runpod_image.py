"""Composes `.runpod/Dockerfile` from BentoML's Dockerfile of the bento and the one at the top.

PYTHONPATH=tests python -m support.runpod_image "$(bentoml get retouch:latest -o path)" > .runpod/Dockerfile
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_HEAD = """\
# The image in one command from a clone, without BentoML on the host: docker build -f .runpod/Dockerfile .
# Composed by tests/support/runpod_image.py: the bento is built here, then BentoML's own Dockerfile for it
# follows, then the Dockerfile of this repository. tests/e2e/test_bento.py holds it to both.
FROM {base} AS bento
RUN pip install --no-cache-dir uv && uv venv /build
ENV PATH=/build/bin:$PATH VIRTUAL_ENV=/build BENTOML_HOME=/bentoml BENTOML_DO_NOT_TRACK=True
COPY src/requirements.lock /clone/src/
RUN uv pip install --no-cache -r /clone/src/requirements.lock
COPY . /clone
RUN cd /clone && bentoml build && mv "$(bentoml get retouch:latest -o path)" /bento

"""


def compose(bento: str, top: str) -> str:
    """Return the file, given BentoML's generated Dockerfile and the one at the top."""
    lines = [line.rstrip() for line in bento.splitlines() if line and not line.startswith("#")]
    text = "\n".join(lines) + "\n"
    base = text.split()[1]
    text = text.replace("AS base-container", "AS bento-image")
    copy = "COPY --chown=bentoml:bentoml "
    from_bento = "COPY --from=bento --chown=bentoml:bentoml /bento"
    text = text.replace(f"{copy}./env", f"{from_bento}/env").replace(
        f"{copy}. ./", f"{from_bento} ./"
    )
    _, argument, top = top.partition("ARG BENTO_IMAGE=retouch:bento\n")
    assert argument
    return _HEAD.format(base=base) + text + top.replace("${BENTO_IMAGE}", "bento-image")


def main() -> None:
    """Print the file for the bento in the folder that the command line names."""
    bento = Path(sys.argv[1], "env/docker/Dockerfile").read_text()
    sys.stdout.write(compose(bento, (ROOT / "Dockerfile").read_text()))


if __name__ == "__main__":
    main()
