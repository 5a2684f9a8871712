"""The benchmark runs at toy size, and its figures are consistent."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import full_model

from retouch.engine.checkpoint import build
from retouch.engine.memory.encode import encode_as
from retouch.engine.memory.flat_params import flatten_pipeline
from retouch.engine.memory.plan import FULL
from retouch.engine.memory.quantization import BY_QUALITY, Quantization, full_sizes

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
ROWS = (
    *("stock", "resident:eager", "few:0", "queue", "16:eager", "8:eager", "load", "load:16"),
    *(
        "sizes:16",
        "large:16",
        "stripes",
        "leak:16",
        "cancel:16",
        "widen",
        "no such row",
        "48:eager",
    ),
    *("int8", "int8:16", "nf4:8", "images:2", "images_n:4"),
)


@pytest.fixture(scope="module")
def report() -> dict[str, dict[str, Any]]:
    done = subprocess.run(  # noqa: S603 - fixed words
        [sys.executable, "tests/bench/full_size.py", "--tiny", "--eager-checks", *ROWS],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "src:tests"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line["row"] for line in lines] == [*ROWS], done.stderr
    return {line["row"]: line for line in lines}


def test_a_row_that_fails_does_not_end_the_others(report: dict[str, dict[str, Any]]) -> None:
    assert [row for row, line in report.items() if "error" in line] == ["no such row"]


def test_streamed_weights_give_the_pixels_of_resident_ones(
    report: dict[str, dict[str, Any]],
) -> None:
    rows = [report[name] for name in ("resident:eager", "16:eager", "8:eager", "48:eager")]
    assert len({row["pixels"] for row in rows}) == 1
    assert all(row["spread"] > 1 for row in rows), "an even image proves nothing"
    assert [row["plan"][:6] for row in rows] == ["toy, 0", "toy, 1", "toy, 2", "toy, 0"]


def test_packed_weights_that_stream_give_the_pixels_of_packed_ones_that_stay(
    report: dict[str, dict[str, Any]],
) -> None:
    assert report["int8"]["pixels"] == report["int8:16"]["pixels"]
    assert report["int8"]["pixels"] != report["nf4:8"]["pixels"]
    assert report["int8:16"]["resident_blocks"] == 1
    assert 0 < report["int8"]["host_gib"] < 64


def test_the_checks_pass_at_toy_size(report: dict[str, dict[str, Any]]) -> None:
    assert report["leak:16"]["ok"]
    assert report["leak:16"]["failed"] == report["leak:16"]["cancelled"] == 1
    assert report["cancel:16"]["steps_reported"] == [0, 1]
    widen = report["widen"]
    assert [line["dtype"] for line in widen.values() if isinstance(line, dict)] == [
        "float16",
        *3 * ["bfloat16"],
    ]
    assert widen["same"]
    assert widen["difference"] < 1


def test_the_rows_of_the_turn_are_consistent(report: dict[str, dict[str, Any]]) -> None:
    few, queue = report["few:0"], report["queue"]
    assert few["turn_s"] >= max(few["once_s"], few["denoise_ms"] / 1000)
    assert len(few["new_sizes_add_ms"]) == 5
    assert queue["edits"] == 20
    assert 0 < queue["gpu_share"] < 1


def test_several_pictures_and_several_results_are_measured(
    report: dict[str, dict[str, Any]],
) -> None:
    images, results = report["images:2"], report["images_n:4"]
    assert images["resident"]["pixels"] == images["16"]["pixels"]
    assert images["resident"]["plan"] != images["16"]["plan"]
    for cap in ("resident", "16"):
        ratio = images[cap]["edit30_s"] / images["stock"]["edit30_s"]
        assert images[cap]["of_stock"] == pytest.approx(ratio, abs=0.001)
    assert 0 < results["4 steps"]["turns_s"] < 60


def test_what_is_over_the_stated_maximum_is_refused_before_its_source_is_fetched(
    report: dict[str, dict[str, Any]],
) -> None:
    assert report["sizes:16"]["large"] == "refused before its source was fetched"
    assert report["sizes:16"]["max_area_px"] > report["large:16"]["max_area_px"]


def test_stripes_of_the_autoencoder_give_the_whole(report: dict[str, dict[str, Any]]) -> None:
    assert min(report["stripes"][f"{name}_snr_db"] for name in ("encoded", "decoded")) > 90


def test_the_plan_has_the_full_models_sizes() -> None:
    dtypes = dict.fromkeys(("transformer", "vae", "text_encoder"), torch.bfloat16)
    modules = build.build_modules(full_model.make_configs(), dtypes)
    assert flatten_pipeline(**modules).sizes == FULL
    for choice in (*BY_QUALITY, Quantization("fp8", "fp8")):
        packed = flatten_pipeline(**modules, encode=encode_as(choice))
        assert packed.sizes == full_sizes(choice), choice.name
