import json
import logging
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models.tiny import build_tiny_pipeline

from retouch.engine import compilation, fill_code_cache
from retouch.engine.attention import NATIVE, Attention, attend_native
from retouch.engine.compilation import BlockCode, decide, find_place, keep_code
from retouch.engine.linear import is_fp8


@pytest.fixture
def code(tmp_path: Path) -> BlockCode:
    config = json.dumps(dict(build_tiny_pipeline().transformer.config))
    return BlockCode(str(tmp_path / "cache"), "H100", "2", config, "float32", NATIVE, 4096, 4096)


@pytest.fixture
def events(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A program in place of Python, on a GPU with room."""
    program = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(compilation, "measure_free_gpu", lambda: 1 << 40)
    return program


def run(child: Path, script: str, code: BlockCode) -> None:
    child.write_text(f"#!/bin/sh\n{script}\n")
    child.chmod(0o700)
    thread = keep_code(code, compiled=False)
    assert thread is not None
    thread.join(10)


def test_code_is_cached_once_it_is_marked(code: BlockCode) -> None:
    assert not code.is_cached
    code.mark_cached()
    assert code.is_cached


@pytest.mark.parametrize(
    "change",
    [
        {"gpu": "H200"},
        {"torch": "3"},
        {"config": "{}"},
        {"dtype": "bfloat16"},
        {"attention": "fa3"},
        {"area_px": 1},
        {"condition_area_px": 1},
        {"fp8": True},
        {"ranks": (0, 16)},
        {"term_layers": ("attn.to_q",)},
    ],
)
def test_code_of_another_kind_is_not_cached(code: BlockCode, change: dict[str, Any]) -> None:
    code.mark_cached()
    assert not replace(code, **change).is_cached


def test_a_setting_decides_and_auto_asks_the_cache(code: BlockCode) -> None:
    assert [decide(setting, code) for setting in (True, False, "auto")] == [True, False, False]
    code.mark_cached()
    assert [decide(setting, code) for setting in (True, False, "auto")] == [True, False, True]
    assert [decide(setting, None) for setting in (True, False, "auto")] == [True, False, False]


def test_without_a_gpu_there_is_no_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert torch.cuda.is_available() or find_place() is None


def test_after_a_compiled_start_the_code_is_cached(code: BlockCode) -> None:
    assert keep_code(code, compiled=True) is None
    assert code.is_cached


def test_nothing_is_compiled_again(code: BlockCode, child: Path) -> None:
    code.mark_cached()
    assert keep_code(code, compiled=False) is None


def test_nothing_is_compiled_without_room_on_the_gpu(
    code: BlockCode, events: pytest.LogCaptureFixture
) -> None:
    assert keep_code(code, compiled=False) is None
    assert events.messages == ["compile.skipped"]


def test_a_child_gets_the_code_and_makes_it(
    code: BlockCode, child: Path, events: pytest.LogCaptureFixture
) -> None:
    got = child.with_name("got")
    record = code.record
    run(child, f"cat > {got}; mkdir -p {record.parent}; touch {record}", code)
    assert json.loads(got.read_text()) == json.loads(json.dumps(asdict(code)))
    assert events.messages == ["compile.started", "compile.finished"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [("echo first >&2; echo no room >&2; exit 1", "no room"), ("exit 0", "")],
)
def test_a_child_that_fails_is_logged_in_one_line(
    code: BlockCode, child: Path, events: pytest.LogCaptureFixture, script: str, reason: str
) -> None:
    run(child, script, code)
    assert events.messages == ["compile.started", "compile.failed"]
    assert vars(events.records[1])["fields"] == {"reason": reason}


def test_a_child_that_cannot_start_is_logged(
    code: BlockCode, child: Path, events: pytest.LogCaptureFixture
) -> None:
    child.mkdir()
    thread = keep_code(code, compiled=False)
    assert thread is not None
    thread.join(10)
    assert events.messages == ["compile.started", "compile.failed"]


@pytest.mark.parametrize(
    ("dtype", "fp8"), [("float32", False), ("float16", False), ("float32", True)]
)
def test_filling_runs_both_kinds_of_block_in_two_sizes(
    code: BlockCode, monkeypatch: pytest.MonkeyPatch, dtype: str, fp8: bool
) -> None:
    code = replace(code, dtype=dtype, fp8=fp8)
    seen = list[tuple[int, bool]]()

    def compile_block(run_block: Any) -> Any:
        def run(block: Any, image: Any, text: Any, *rest: Any, exchange: None) -> Any:
            seen.append((image.shape[1], rest[3] is None))
            assert str(image.dtype) == f"torch.{dtype}"
            assert is_fp8(block.attn.to_q) == fp8
            assert not is_fp8(block.img_mod[1])
            return run_block(block, image, text, *rest, exchange=exchange)

        return run

    monkeypatch.setattr(fill_code_cache, "compile_block", compile_block)
    attention = Attention(NATIVE, attend_native)
    fill_code_cache.fill(code, attention, torch.device("cpu"))
    assert seen == [(32, True), (32, False), (40, True), (40, False)]
    assert code.is_cached


def test_filling_runs_blocks_with_the_terms_of_each_rank(
    code: BlockCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[tuple[int, dict[str, list[tuple[int, ...]]]]]()

    def compile_block(run_block: Any) -> Any:
        def run(block: Any, image: Any, text: Any, *rest: Any, exchange: None) -> Any:
            terms = rest[4]
            seen.append((image.shape[1], {n: [tuple(t.shape) for t in terms[n]] for n in terms}))
            return run_block(block, image, text, *rest, exchange=exchange)

        return run

    monkeypatch.setattr(fill_code_cache, "compile_block", compile_block)
    code = replace(code, ranks=(0, 16), term_layers=("attn.to_q",))
    fill_code_cache.fill(code, Attention(NATIVE, attend_native), torch.device("cpu"))
    terms = {"attn.to_q": [(16, 32), (32, 16)]}
    assert seen == [(32, {})] * 2 + [(40, {})] * 2 + [(32, terms)] * 2 + [(40, terms)] * 2
