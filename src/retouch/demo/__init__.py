"""The small checkpoint that ships with the package, and its trainer."""

from pathlib import Path

CHECKPOINT_DIR = Path(__file__).parent / "checkpoint"
ADAPTERS_DIR = Path(__file__).parent / "adapters"
"""LoRA adapters to it: duotone.safetensors."""
