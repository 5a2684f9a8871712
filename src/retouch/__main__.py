"""The command line: `PYTHONPATH=src python -m retouch edit PHOTO_OR_URL "make it warmer"`."""

import argparse
import asyncio
import base64
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from tqdm import tqdm

from retouch import __version__, logs, wiring
from retouch.editing.ports import Engine
from retouch.engine.checkpoint.find import FULL_MODEL, find_cache
from retouch.engine.checkpoint.local_disk import is_local
from retouch.engine.memory.estimate import CARDS
from retouch.engine.memory.report import describe_plan
from retouch.errors import EditError, InvalidRequest
from retouch.lifecycle import prepare_process
from retouch.lora_files import describe_adapter
from retouch.schema import MAX_STEPS, SCHEDULERS, EditRequest, EditResult, Progress, invalid_request
from retouch.settings import Settings, load_settings
from retouch.sources.data_url import is_data_url
from retouch.storage.port import StoredObject

_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".avif": "avif"}
_MOST_GIB = 2.0**20
_INTERRUPTED = 130  # as shells report it: 128 plus the signal's number
_BAR = "{desc:<10} {bar} {n_fmt}/{total_fmt}"


class FileStore:
    """A `Store` for a single edit: writes its results to `path` and keeps nothing else.

    The second is in `<name>-1`, and so on.
    """

    name = "file"

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, key: str, *, max_bytes: int, timeout_s: float) -> StoredObject | None:  # noqa: ARG002
        """Return None: there is no cache."""
        return None

    def put(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,  # noqa: ARG002
        metadata: Mapping[str, str],  # noqa: ARG002
        timeout_s: float,  # noqa: ARG002
    ) -> None:
        """Write a result."""
        if Path(key).parts[-3] == "results":
            self._find(key).write_bytes(body)

    def link(self, key: str, *, expires_in_s: int) -> str:  # noqa: ARG002
        """Return the path of the file."""
        return str(self._find(key))

    def _find(self, key: str) -> Path:
        """Return the path for a key, which ends as `storage.keys.result_key` says."""
        _, dash, number = Path(key).stem.partition("-")
        return self._path.with_stem(self._path.stem + dash + number)

    def list_keys(self, prefix: str, *, max_keys: int, timeout_s: float) -> list[str]:  # noqa: ARG002
        """Return none: there are no jobs."""
        return []

    def check(self, *, timeout_s: float) -> None:
        """Do nothing: the file is checked before the edit."""


class _Bar:
    """Shows the steps of an edit as a bar on standard error."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def show(self, progress: Progress) -> None:
        if progress.stage in ("denoise", "vae_decode"):
            if self._bar is None:
                self._bar = tqdm(total=progress.steps, desc="editing", bar_format=_BAR)
            self._bar.update(progress.step - self._bar.n)
        if progress.stage == "store" and self._bar is not None:
            self._bar.close()


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="retouch", description="Edit images by instruction.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    text = "edit one to three images without a server, with the model that MODEL_ID names"
    _add_edit(commands.add_parser("edit", help=text, description=text))
    text = "print where the full model's weights would be kept, on this machine or another"
    plan = commands.add_parser("plan", help=text, description=text)
    plan.add_argument("--gpu-gib", type=_gib, help="GiB of GPU memory (default: what is free)")
    text = "plan for this card, and estimate the seconds of an edit"
    plan.add_argument("--card", choices=list(CARDS), help=text)
    plan.add_argument("--host-gib", type=_gib, help="GiB of host memory (default: what is free)")
    plan.add_argument(
        "--disk",
        choices=["local", "network"],
        help="where the checkpoint is (default: what the hub's cache is on)",
    )
    text = "say what a LoRA file is, and which model it fits"
    adapter = commands.add_parser("adapter", help=text, description=text)
    adapter.add_argument("file", type=Path, metavar="FILE", help="a safetensors file")
    _add_train_demo(commands.add_parser("train-demo", help="train the demo model from scratch"))
    return parser


def _add_edit(edit: argparse.ArgumentParser) -> None:
    edit.add_argument(
        "sources", metavar="PHOTO_OR_URL", nargs="+", help="a file, or an http(s) or data: URL"
    )
    edit.add_argument("prompt", metavar="INSTRUCTION", help='such as "make it warmer"')
    edit.add_argument(
        "-o", "--output", type=Path, help="png, jpg, webp or avif (default: edited.png)"
    )
    edit.add_argument(
        "--mask", metavar="PHOTO_OR_URL", help="white, or else transparent, is the part to edit"
    )
    edit.add_argument(
        "--mask-padding",
        type=int,
        metavar="PIXELS",
        help="edit only the mask's box with this much around it, in full detail",
    )
    edit.add_argument("--strength", type=float, help="0 to 1; lower stays nearer to the photo")
    edit.add_argument(
        "-n", "--num-images", type=int, help="results, 1 to 4: edited.png, edited-1.png, ..."
    )
    edit.add_argument("--negative-prompt", help="what the result must not show")
    edit.add_argument("--seed", type=int, help="the same seed gives the same bytes")
    edit.add_argument("--steps", type=int, dest="num_inference_steps", help=f"1 to {MAX_STEPS}")
    edit.add_argument("--guidance", type=float, dest="guidance_scale", help="1 (off) to 20")
    edit.add_argument("--scheduler", choices=SCHEDULERS)
    edit.add_argument("--profile", help="one of PROFILES (default: the first)")
    edit.add_argument("--quality", type=int, dest="output_quality", help="1 to 100, not for png")
    edit.add_argument("--width", type=int, help="pixels, a multiple of 16, with --height")
    edit.add_argument("--height", type=int, help="pixels, a multiple of 16, with --width")


def _gib(text: str) -> float:
    """Parse an amount of memory in GiB.

    Raises:
        ArgumentTypeError: it is not a number from 0 to 2**20.
    """
    with suppress(ValueError):
        if 0 <= (amount := float(text)) <= _MOST_GIB:
            return amount
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of GiB")


def _add_train_demo(train: argparse.ArgumentParser) -> None:
    train.description = "Train the demo model. With the same --work an interrupted run is resumed."
    folders = {
        "pictures": "JPEGs to train on, fetched by apt and pip if there are none",
        "work": "the state to resume from",
        "out": "the new checkpoint",
    }
    for name, meaning in folders.items():
        default = Path(".demo") / name
        text = f"{meaning} (default: {default})"
        train.add_argument(f"--{name}", type=Path, metavar="FOLDER", default=default, help=text)
    train.add_argument("--init", type=Path, metavar="FOLDER", help="a checkpoint to fine-tune")
    train.add_argument(
        "--adapter",
        action="store_true",
        help="train only the LoRA duotone to --init, for --editor-s, and write it to --out",
    )
    train.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda if there is a GPU")
    train.add_argument("--seed", type=int, default=0, help="of all random numbers (default: 0)")
    stages = {"autoencoder": 330.0, "editor": 505.0}  # as for the shipped weights, on an H100
    for stage, seconds in stages.items():
        text = f"how long to train the {stage} (default: {seconds:.0f})"
        train.add_argument(f"--{stage}-s", type=float, metavar="S", default=seconds, help=text)
    train.add_argument("--quick", action="store_true", help="tiny sizes, to try the program")


def _to_url(source: str) -> str:
    """Return a URL as it is, and a file as a data: URL."""
    if "://" in source or is_data_url(source):
        return source
    return f"data:;base64,{base64.b64encode(Path(source).read_bytes()).decode()}"


def _request(options: argparse.Namespace, output: Path) -> EditRequest:
    """Build the request from the options, and check that the output can be written.

    Raises:
        InvalidRequest: options are wrong; each is named.
        OSError: the source file cannot be read.
    """
    fields = {name: getattr(options, name, None) for name in EditRequest.model_fields}
    if output.suffix.lower() not in _FORMATS:
        raise InvalidRequest.for_fields({"output": f"must end in one of {', '.join(_FORMATS)}"})
    if output.is_dir() or not output.parent.is_dir():
        raise InvalidRequest.for_fields(
            {"output": "its directory does not exist, or it is a directory itself"}
        )
    if not os.access(output if output.exists() else output.parent, os.W_OK):
        raise InvalidRequest.for_fields({"output": "is not writable"})
    fields["output_format"] = _FORMATS[output.suffix.lower()]
    urls = [_to_url(source) for source in options.sources]
    fields |= {"image_url": urls[0]} if len(urls) == 1 else {"image_urls": urls}
    fields["mask_url"] = _to_url(options.mask) if options.mask else None
    try:
        return EditRequest.model_validate({k: v for k, v in fields.items() if v is not None})
    except ValidationError as error:
        raise invalid_request(error) from None


async def _edit(request: EditRequest, engine: Engine, settings: Settings, out: Path) -> EditResult:
    job_id = uuid.uuid4().hex
    async with AsyncExitStack() as exits:
        editor = wiring.build_editor(settings, engine, FileStore(out), exits=exits)
        return await editor.run(request, job_id=job_id, request_id=job_id, progress=_Bar().show)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status: 0, or 1 after one line that says what was wrong."""
    options = _build_parser().parse_args(arguments)
    prepare_process()
    if options.command == "train-demo":
        return _run_train_demo(options)
    settings = load_settings()
    logs.install("ERROR", secrets=settings.secrets)
    try:
        run = {"edit": _run_edit, "plan": _run_plan, "adapter": _run_adapter}[options.command]
        run(options, settings)
    except (EditError, OSError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.filename:
            text = f"{error.filename}: {error.strerror}"
        print(f"retouch: {text}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("retouch: interrupted", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _run_plan(options: argparse.Namespace, settings: Settings) -> None:
    lines = describe_plan(
        gpu_gib=options.gpu_gib,
        host_gib=options.host_gib,
        card=options.card or "",
        quantization=settings.quantization,
        gpu_memory_gib=settings.gpu_memory_gib,
        host_memory_gib=settings.host_memory_gib,
        max_result_px=settings.max_result_pixels,
        modulation_mapped=is_local(find_cache(FULL_MODEL))
        if options.disk is None
        else options.disk == "local",
    )
    print(*lines, sep="\n")


def _run_adapter(options: argparse.Namespace, settings: Settings) -> None:
    print(*describe_adapter(options.file, settings), sep="\n")


def _run_edit(options: argparse.Namespace, settings: Settings) -> None:
    output = options.output or Path("edited.png")
    request, engine = _request(options, output), wiring.build_engine(settings, server_start_s=0)
    answer = asyncio.run(_edit(request, engine, settings, output))
    for result in answer.all:
        meta = result.meta
        facts = f"{meta.width} x {meta.height}  {meta.timings_ms.total / 1000:.1f} s  {meta.model}"
        print(f"{result.presigned_url}  {facts}")
    for note in dict.fromkeys(note for result in answer.all for note in result.meta.notes):
        print(f"note: {note}")


def _run_train_demo(options: argparse.Namespace) -> int:
    import torch

    from retouch.demo.options import TrainOptions
    from retouch.demo.train import train

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    fields = {name: getattr(options, name) for name in TrainOptions.__dataclass_fields__}
    train(TrainOptions(**{**fields, "device": device}))
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
