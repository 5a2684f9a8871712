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
from diffusers.models import attention_dispatch
from support.models.reference_edits import WORK, edit
from support.models.streamed import stream_everything
from support.models.tiny import build_engine, build_tiny, build_tiny_pipeline

from retouch.engine import attention, block, compilation
from retouch.errors import ModelError

pytestmark = pytest.mark.e2e

CPU = torch.device("cpu")


def choose(name: str) -> attention.Attention:
    shape = attention.AttentionShape()
    chosen, times_ms = attention.choose_attention(
        name, device=CPU, dtype=torch.float32, shape=shape
    )
    assert times_ms == {}
    return chosen


@pytest.mark.parametrize("name", ["native", "_native_math"])
def test_a_backend_that_runs_is_taken(name: str) -> None:
    assert choose(name).name == name


def test_without_a_gpu_nothing_is_measured() -> None:
    assert choose("auto").name == "native"


@pytest.mark.parametrize("name", ["native", "_native_math"])
def test_a_backend_equals_float32_attention(name: str) -> None:
    tensors = tuple(torch.randn(1, 300, 2, 16) for _ in range(3))
    assert attention.measure_error(choose(name).attend, tensors) < 1e-6  # type: ignore[arg-type]


def test_a_backend_that_fails_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="ATTENTION_BACKEND: _native_cudnn does not run here: "):
        choose("_native_cudnn")


def test_fa3_without_a_hopper_gpu_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="ATTENTION_BACKEND: fa3 does not run here: "):
        choose("fa3")


def test_the_library_that_xformers_needs_is_opened_before_it_is_imported() -> None:
    """In a process of its own: here diffusers has imported xformers long ago."""
    script = """
import sys
from retouch.demo import CHECKPOINT_DIR
from retouch.engine import attention
from retouch.engine.checkpoint import find, load
from retouch.errors import ModelError
opened = []
attention.open_cuda_12 = lambda: opened.append("xformers" in sys.modules)
settings = find.CheckpointSettings(
    model_id=str(CHECKPOINT_DIR), attention_backend="xformers"
)
try:
    load.load(settings)
except ModelError as error:
    print(opened, error.message)
"""
    reported = subprocess.run(  # noqa: S603 - our own interpreter and text
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert reported.startswith("[False] ")
    assert "ATTENTION_BACKEND: xformers does not run here: " in reported


def test_an_unknown_backend_is_refused_with_the_list() -> None:
    with pytest.raises(
        ModelError, match=r"unknown backend fastest; known: .*auto.*fa3.*flash.*native.*xformers"
    ):
        choose("fastest")


def test_a_backend_that_is_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention_dispatch.dispatch_attention_fn

    def wrong(query: Any, key: Any, value: Any, *, backend: Any) -> torch.Tensor:
        out: torch.Tensor = right(query, key, value, backend=backend)
        return out + 0.1

    monkeypatch.setattr(attention_dispatch, "dispatch_attention_fn", wrong)
    with pytest.raises(ModelError, match="_native_flash is wrong here by"):
        choose("_native_flash")


@pytest.mark.filterwarnings("ignore")
def test_one_compiled_function_runs_every_block_prompt_and_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []

    def count(graph: Any, _inputs: Any) -> Any:
        made.append(graph)
        return graph.forward

    torch._dynamo.reset()  # noqa: SLF001 - documented for tests
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", count)
    run_block = compilation.compile_block(block.run_block)
    stayed, resident = build_tiny(), build_tiny(run_block=run_block)
    pipe = build_tiny_pipeline()
    streaming = build_engine(pipe, stream_everything(pipe), run_block=run_block)
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


def test_compiled_code_is_kept_beside_the_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "models"))
    assert compilation.find_code_cache() == tmp_path / "models" / "compiled"


def test_where_nothing_can_be_written_compiled_code_goes_where_torch_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    monkeypatch.setattr("os.access", lambda *_: False)
    assert compilation.find_code_cache() is None
