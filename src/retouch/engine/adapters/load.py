"""Load the adapters of the settings into host memory."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from retouch.engine.adapters.keys import AdapterRefused
from retouch.engine.adapters.loaded import NamedAdapter
from retouch.engine.adapters.read import Adapter, Shape, read_adapter
from retouch.errors import ModelError
from retouch.settings.loras import LoraSetting

Find = Callable[[str], AbstractContextManager[Path]]
"""Makes the file of a source readable at a path."""


def load_adapters(
    sources: Sequence[LoraSetting], shapes: Mapping[str, Shape], find: Find
) -> list[NamedAdapter]:
    """Load every source for a transformer whose linear layers have these `shapes`.

    Raises:
        ModelError: a file is missing, has another hash, or cannot be applied in full.
    """
    loaded = []
    for one in sources:
        try:
            with find(one.source) as path:
                adapter = require_sha256(read_adapter(path, shapes), one.sha256)
        except (AdapterRefused, ModelError) as error:
            reason = str(error).removeprefix("LORAS: ")
            raise ModelError(f"LORAS: {one.name}: {reason}") from error
        loaded.append(NamedAdapter(one.name, adapter, one.scale, one.always))
    return loaded


def require_sha256(adapter: Adapter, sha256: str) -> Adapter:
    """Return the adapter.

    Raises:
        AdapterRefused: its file has another hash than `sha256`, unless that is empty.
    """
    if sha256 and adapter.sha256 != sha256:
        raise AdapterRefused(f"the file's SHA-256 is {adapter.sha256}, not the one given")
    return adapter
