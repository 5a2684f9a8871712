"""Where the adapters of the settings come from. Importing this module imports no torch."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""The names that peft gives an adapter and the file beside it with its alpha."""
SHARD = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.(safetensors|gguf)")
"""How the name of a file ends that holds only a part of the weights."""
URL_FILES = 4
"""A file of a request may take this part of the memory for them, so that those of one edit fit."""


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """A LoRA file to load: a path, a hub's `owner/repository/file`, or an https URL.

    `sha256` is empty or the hash that the file must have; `scale` and `always` are as in `AdapterInfo`.
    """

    name: str
    source: str
    sha256: str = ""
    scale: float = 1.0
    always: bool = False


@contextmanager
def hold_in_memory(body: bytes) -> Iterator[Path]:
    """Make bytes readable at a path, without writing them to a disk."""
    with os.fdopen(os.memfd_create("adapter"), "wb") as file:
        file.write(body)
        file.flush()
        yield Path(f"/proc/self/fd/{file.fileno()}")
