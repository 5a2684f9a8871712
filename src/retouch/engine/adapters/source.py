"""Names of LoRA files, and bytes readable as one. Importing this module imports no torch."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""The names that peft gives an adapter and the file beside it with its alpha."""
SHARD = re.compile(r"-\d{5}-of-(?!0000[01])\d{5}\.(safetensors|gguf)\Z")
"""How the name of a file ends that holds only a part of the weights."""
URL_FILES = 4
"""A file of a request may take this part of the memory for them, so that those of one edit fit."""


@contextmanager
def hold_in_memory(body: bytes) -> Iterator[Path]:
    """Make bytes readable at a path, without writing them to a disk."""
    with os.fdopen(os.memfd_create("adapter"), "wb") as file:
        file.write(body)
        file.flush()
        yield Path(f"/proc/self/fd/{file.fileno()}")
