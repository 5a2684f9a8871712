"""Loads of the tiny model whose plans stream, on a CPU.

`python -m support.models.streaming_loads FOLDER` loads it into the memory that the process inherited,
prints how many weights it read there and the digest of an edit, and waits for its input to end.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from retouch.editing.ports import run_edit
from retouch.engine.checkpoint import build
from retouch.engine.memory.encode import encode_as
from retouch.engine.memory.plan import EditShape, FreeMemory, Plan
from retouch.engine.memory.quantization import Quantization
from retouch.engine.memory.shared_memory import HostShare
from retouch.engine.memory.weights import Weights
from retouch.errors import ModelError
from support.models.reference_edits import IMAGE, WORK
from support.models.streamed import CPU, plan_streaming
from support.models.tiny import build_engine, build_tiny_pipeline
from support.models.tiny_folder import tiny_folder


class StreamingLoads:
    """Notes what each plan was made for and what it read; the read of number `fails_at` fails halfway."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.planned: list[HostShare | None] = []
        self.read: list[set[str]] = []
        self._read_weights = build.read_weights
        self.fails_at = 0
        self.streamed: dict[str, frozenset[int]] = {}
        """What plans say, where not everything streams."""
        monkeypatch.setattr(build, "plan_memory", self._plan)
        monkeypatch.setattr(build, "read_weights", self._read)

    def _plan(
        self, modules: dict[str, Any], quantization: str, *_: Any, memory: FreeMemory, **__: Any
    ) -> tuple[Quantization, Plan]:
        self.planned.append(memory.share)
        choice = Quantization(quantization, quantization)
        return choice, replace(plan_streaming(modules, encode_as(choice)), **self.streamed)  # type: ignore[arg-type]

    def _read(self, stored: Any, wanted: Mapping[str, Any], **options: Any) -> None:
        self.read.append(set(wanted))
        if len(self.read) == self.fails_at:
            wanted = dict(list(wanted.items())[::2])
        self._read_weights(stored, wanted, **options)
        if len(self.read) == self.fails_at:
            raise ModelError("damaged")

    def load(
        self,
        share: HostShare | None,
        *,
        folder: Path | None = None,
        dtype: torch.dtype = torch.float32,
        packed: str = "none",
    ) -> Weights:
        folder = folder or tiny_folder()
        return build.load_weights(
            folder,
            build.read_configs(folder),
            dtype=dtype,
            device=CPU,
            shape=EditShape(),
            memory=FreeMemory(gpu_bytes=0, host_bytes=1 << 40, share=share),
            quantization=packed,
        )


def pixels(weights: Weights) -> bytes:
    return run_edit(build_engine(build_tiny_pipeline(), weights), [IMAGE], WORK)[0].tobytes()


def main() -> None:
    with pytest.MonkeyPatch.context() as patches:
        loads = StreamingLoads(patches)
        weights = loads.load(HostShare.find(), folder=Path(sys.argv[1]))
    digest = hashlib.sha256(pixels(weights)).hexdigest()
    sys.stdout.write(f"{json.dumps([len(loads.read[1]), digest])}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
