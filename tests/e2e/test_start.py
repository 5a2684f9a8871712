"""What a start imports, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

PROGRAM = """
import sys
read = set()
sys.addaudithook(lambda name, args: read.add(str(args[0])) if name == "open" else None)
from PIL import Image
from retouch import demo
from retouch.editing.ports import EditParams, run_edit
from retouch.engine.checkpoint.find import CheckpointSettings
from retouch.engine.checkpoint.load import load

engine = load(CheckpointSettings(model_id=str(demo.CHECKPOINT_DIR)))
params = EditParams("warmer", " ", 0, 1, 1.0, "Euler", 64, 64)
run_edit(engine, [Image.new("RGB", (64, 64))], params)
heavy = {"torch._dynamo", "torch._inductor", "torch.distributed.tensor", "sympy", "boto3", "xformers"}
print(sorted(heavy & sys.modules.keys()), list(engine.info.load_phases_s))
print(0 < len([path for path in read if "/transformers/models/" in path]) < 100)

import torch._dynamo
from diffusers import AutoencoderKL, QwenImageTransformer2DModel
from retouch.engine.checkpoint import build
print(torch._dynamo.__doc__ is None, QwenImageTransformer2DModel is build.QwenImageTransformer2DModel)
"""
PHASES = ["find_s", "torch_s", "attention_s", "libraries_s", "processor_s", "weights_s"]


def test_an_edit_imports_no_compiler_reads_few_models_and_later_imports_work_as_usual() -> None:
    source = Path(__file__).parents[2] / "src"
    run = subprocess.run(  # noqa: S603
        [sys.executable, "-c", PROGRAM],
        env={"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.splitlines() == [f"[] {PHASES}", "True", "False True"], run.stderr


WHOLE_INDEX = """
import sys
from retouch.engine.lean_imports import lean_imports
with lean_imports(attention="auto"):
    from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
    import transformers
    few = len(transformers.__all__)
    from transformers import BloomConfig
    import torch._dynamo.utils  # as a package that uses the compiler does
import torch
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)) == 2
assert few < len(transformers.__all__) / 4
assert transformers.models.albert and not hasattr(transformers, "Missing")
assert len(transformers.__all__) > 5000
"""


def test_after_a_lean_import_all_models_and_the_compiler_work_and_broken_packages_were_not_imported(
    tmp_path: Path,
) -> None:
    for name in ("peft", "torchao", "torchvision", "bitsandbytes"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('it wants another transformers')")
        (tmp_path / f"{name}-9.9.9.dist-info").mkdir()
        (tmp_path / f"{name}-9.9.9.dist-info/METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9.9\n"
        )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    run = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", WHOLE_INDEX],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
