"""`python -m retouch`, in this process, with the engine that a machine without a GPU gets."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from retouch.__main__ import main

pytestmark = pytest.mark.e2e

SAMPLE = Path(__file__).parents[2] / "src" / "retouch" / "web" / "sample.jpg"


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)  # no .env, and no output in the tree
    level, handlers = logging.root.level, [*logging.root.handlers]
    yield
    logging.root.setLevel(level)  # the command set up logging for the whole process
    logging.root.handlers[:] = handlers
    logging.captureWarnings(capture=False)


def test_a_photo_is_edited_into_the_file_that_was_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["edit", str(SAMPLE), "make it warmer", "-o", "warm.webp", "--steps", "2"]
    assert main([*arguments, "--width", "128", "--height", "64"]) == 0
    with Image.open(tmp_path / "warm.webp") as edited:
        assert (edited.format, edited.size) == ("WEBP", (128, 64))
    told = capsys.readouterr()
    assert "warm.webp  128 x 64" in told.out
    assert "2/2" in told.err


def test_only_the_result_is_written(tmp_path: Path) -> None:
    assert main(["edit", str(SAMPLE), "make it warmer", "--steps", "1"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["edited.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["edit", "no-such.jpg", "make it warmer"], "no-such.jpg"),
        (["edit", str(SAMPLE), "make it warmer", "-o", "out.gif"], "output_format"),
        (["edit", str(SAMPLE), " ", "--steps", "0"], "num_inference_steps"),
        (["edit", "http://127.0.0.1/a.jpg", "make it warmer"], "may not be reached"),
        (["edit", __file__, "make it warmer"], "not an image"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("retouch: ")
    assert said in lines[0]
    assert not list(tmp_path.iterdir())


def test_help_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["edit", "--help"])
    assert ended.value.code == 0
    assert "PHOTO_OR_URL" in capsys.readouterr().out
