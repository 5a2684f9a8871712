"""`python -m retouch`, in this process, with the engine that a machine without a GPU gets."""

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.models.lora_files import build_tensors, write

from retouch import __version__, demo
from retouch.__main__ import main

pytestmark = pytest.mark.e2e

SAMPLE = Path(__file__).parents[2] / "src" / "retouch" / "web" / "static" / "sample.jpg"


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
    printed = capsys.readouterr()
    assert "warm.webp  128 x 64" in printed.out
    assert "2/2" in printed.err


@pytest.mark.parametrize("prefix", ["qwen-image-edit/", "results/"])
def test_only_the_result_is_written(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3_OBJECT_PREFIX", prefix)
    arguments = ["edit", str(SAMPLE), "make it warmer", "--steps", "1", "--profile", "full"]
    assert main([*arguments, "--seed", "7"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["edited.png"]
    with Image.open(tmp_path / "edited.png") as edited:
        assert edited.format == "PNG"


def test_several_results_are_written_beside_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["edit", str(SAMPLE), "make it warmer", "--steps", "1", "-n", "2", "--seed", "7"]
    assert main([*arguments, "--width", "64", "--height", "64"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edited-1.png", "edited.png"]
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("edited.png  64 x 64")
    assert second.startswith("edited-1.png  64 x 64")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["edit", "no-such.jpg", "make it warmer"], "no-such.jpg: No such file"),
        (
            ["edit", str(SAMPLE), "make it warmer", "-o", "out.gif"],
            "output: must end in one of .png, ",
        ),
        (
            ["edit", str(SAMPLE), "make it warmer", "-o", "no/such/out.png"],
            "its directory does not exist",
        ),
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


def test_an_adapter_at_a_url_is_fetched_through_the_guard(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_ID", str(demo.CHECKPOINT_DIR))
    monkeypatch.setenv("LORAS", "a=https://127.0.0.1/a.safetensors")
    assert main(["edit", str(SAMPLE), "make it warmer"]) == 1
    assert "LORAS: a: it cannot be downloaded (source_unreachable)" in capsys.readouterr().err


def test_a_server_that_is_away_is_not_waited_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("ENGINE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert main(["edit", str(SAMPLE), "make it warmer"]) == 1
    said = "retouch: ENGINE_URL: the engine cannot be reached\n"
    assert capsys.readouterr().err == said


def test_the_plan_for_another_machine_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--gpu-gib=16", "--host-gib=64", "--disk=network"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("plan: ")
    assert first.endswith("of 60 blocks streamed")
    assert any(line.startswith("host: 4") for line in rest)


def test_what_a_machine_lacks_for_the_full_model_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["plan"]) == 1
    assert "no GPU here: plan for another by --card" in capsys.readouterr().err
    assert main(["plan", "--gpu-gib=1", "--host-gib=8", "--disk=network"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "short of GPU memory by" in line
    assert "short of host memory by" in line


@pytest.mark.parametrize("amount", ["nan", "inf", "-5", "much", "1e308"])
def test_an_invalid_amount_of_memory_is_refused(
    amount: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["plan", f"--gpu-gib={amount}"])
    assert f"--gpu-gib: {amount!r} is not a number of GiB" in capsys.readouterr().err


def test_an_interrupt_prints_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("retouch.wiring.build_engine", interrupt)
    assert main(["edit", str(SAMPLE), "make it warmer"]) == 130
    assert capsys.readouterr().err == "retouch: interrupted\n"


def test_a_picture_may_come_as_a_data_url(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("retouch.wiring.build_engine", stop)
    assert main(["edit", "data:;base64,AAAA", "warmer", "-o", str(tmp_path / "a.png")]) == 130
    assert main(["edit", "data:nothing", "warmer", "-o", str(tmp_path / "a.png")]) == 1
    assert "must be data:" in capsys.readouterr().err


def test_a_file_that_is_not_writable_is_reported_before_the_edit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, _mode: path != tmp_path)
    assert main(["edit", str(SAMPLE), "warmer", "-o", str(tmp_path / "a.png")]) == 1
    assert capsys.readouterr().err == "retouch: output: is not writable\n"


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"retouch {__version__}\n"


def test_help_lists_the_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["edit", "--help"])
    assert ended.value.code == 0
    assert "PHOTO_OR_URL" in capsys.readouterr().out


def test_a_lora_file_is_described_and_a_foreign_one_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_ID", str(demo.CHECKPOINT_DIR))
    layer = {"proj_out": (torch.ones(2, 256), torch.ones(64, 2))}
    path = write(tmp_path / "a.safetensors", build_tensors(layer, "peft"))
    assert main(["adapter", str(path)]) == 0
    said = capsys.readouterr().out
    assert f"fits: {demo.CHECKPOINT_DIR}" in said
    assert "merged it would lose" in said
    write(path, {"unet.lora_A.weight": torch.ones(1, 1)})
    assert main(["adapter", str(path)]) == 1
    assert capsys.readouterr().err == (
        "retouch: a.safetensors: the model has no layer for the key unet.lora_A.weight\n"
    )
