"""Attention kernels are tried before they are used, and compiled blocks make the same edit."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models.reference_edits import WORK, edit
from support.models.streamed import stream_everything
from support.models.tiny import PRESET, build_tiny, build_tiny_pipeline

from retouch.engine import attention, compilation
from retouch.engine.engine import QwenEngine
from retouch.errors import ModelError

pytestmark = pytest.mark.e2e

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["native", "_native_math"])
def test_a_backend_that_runs_is_taken(name: str) -> None:
    attention.require_backend(name, CPU)


def test_a_backend_that_fails_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="ATTENTION_BACKEND: _native_cudnn does not run here: "):
        attention.require_backend("_native_cudnn", CPU)


def test_what_xformers_links_to_is_opened_before_anything_imports_it() -> None:
    """In a process of its own: here diffusers has imported xformers long ago."""
    script = """
import sys
from retouch.engine import cuda_libraries
from retouch.demo import CHECKPOINT_DIR
from retouch.engine.checkpoint import find, load
from retouch.errors import ModelError
opened = []
cuda_libraries.open_cuda_12 = lambda: opened.append("xformers" in sys.modules)
settings = find.CheckpointSettings(
    model_id=str(CHECKPOINT_DIR), device="cpu", attention_backend="xformers"
)
try:
    load.load(settings)
except ModelError as error:
    print(opened, error.message)
"""
    told = subprocess.run(  # noqa: S603 - our own interpreter and text
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert told.startswith("[False] ")
    assert "ATTENTION_BACKEND: xformers does not run here: " in told


def test_an_unknown_backend_is_refused_with_the_list() -> None:
    with pytest.raises(ModelError, match=r"there is no fastest, but .*flash.*native.*xformers"):
        attention.require_backend("fastest", CPU)


def test_a_backend_that_is_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = compilation.dispatch_attention_fn

    def wrong(query: Any, key: Any, value: Any, *, backend: Any) -> torch.Tensor:
        out: torch.Tensor = right(
            query, key, value, backend=compilation.AttentionBackendName.NATIVE
        )
        return out if backend == "native" else out + 0.1

    monkeypatch.setattr(attention, "dispatch_attention_fn", wrong)
    with pytest.raises(ModelError, match="_native_math is wrong here by"):
        attention.require_backend("_native_math", CPU)


@pytest.mark.filterwarnings("ignore")
def test_one_compiled_function_runs_every_block_prompt_and_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []

    def count(graph: Any, _inputs: Any) -> Any:
        made.append(graph)
        return graph.forward

    torch._dynamo.reset()  # noqa: SLF001 - documented for tests
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_(function, backend=count))
    run_block = compilation.compile_block()
    pipe, stayed = build_tiny_pipeline(), build_tiny()
    streaming = QwenEngine(
        stream_everything(pipe),
        processor=pipe.processor,
        scheduler=pipe.scheduler.config,
        pipeline=type(pipe).__name__,
        preset=PRESET,
        model="tiny",
        revision="",
        run_block=run_block,
    )
    resident = build_tiny()
    resident._run_block = run_block  # noqa: SLF001 - as its constructor would
    for width_px, height_px, prompt in (
        (96, 96, "make it warm"),
        (96, 96, "make it warm and quiet as an evening in September"),
        (128, 96, "make it warm"),
        (64, 160, "colder"),
    ):
        work = replace(WORK, width_px=width_px, height_px=height_px, prompt=prompt)
        wanted = np.frombuffer(edit(stayed, work), dtype=np.uint8).astype(int)
        for engine in (resident, streaming):
            found = np.frombuffer(edit(engine, work), dtype=np.uint8).astype(int)
            assert np.abs(found - wanted).max() <= 1
    assert len(made) == 4, "one for the first size, one for all, and both for the last block"


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_code_is_kept_beside_the_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "models"))
    assert compilation.find_code_cache() == tmp_path / "models" / "compiled"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr("os.environ", dict(os.environ))
    compilation.compile_block(compilation.find_code_cache())
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "models" / "compiled")


def test_where_nothing_can_be_written_compiled_code_goes_where_torch_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    monkeypatch.setattr("os.access", lambda *_: False)
    assert compilation.find_code_cache() is None
