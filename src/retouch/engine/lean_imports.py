"""Import the model libraries without what an edit never uses.

diffusers and transformers import the compiler, tensor parallelism, every other model of theirs and
any optional package they find: two thirds of the modules, and over half of the time of a start.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

_OPTIONAL = ("boto3", "gguf", "xformers")
"""Packages that the libraries use where they find them. xformers alone can be asked for."""
_COMPILER = "torch._dynamo"
_PACKAGES = (
    "diffusers.models.autoencoders",
    "diffusers.models.transformers",
    "diffusers.models.unets",
)
"""Packages whose `__init__` imports every model of diffusers."""


@contextmanager
def lean_imports(*, attention: str) -> Iterator[None]:
    """Import less within the block; afterwards every import works as usual.

    What is imported already stays as it is. `attention` is the name of an attention kernel: for
    `xformers` that package is found. Other threads must not import these libraries meanwhile.
    """
    # A diffusers that is imported already has found its packages, and imports them when needed.
    optional = () if "diffusers" in sys.modules else _OPTIONAL
    stand_ins: dict[str, ModuleType | None] = {name: None for name in optional if name != attention}
    stand_ins |= {name: _empty_package(name) for name in _PACKAGES}
    stand_ins[_COMPILER] = _empty_package(
        _COMPILER,
        allow_in_graph=_undecorated,
        assume_constant_result=_undecorated,
        disable=_undecorated,
    )
    placed = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(placed)  # type: ignore[arg-type] # None is Python's own way to hide a module
    try:
        with _without_distributed():
            yield
    finally:
        for name, module in placed.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _empty_package(name: str, **attributes: Any) -> ModuleType:
    """Return a package without content but `attributes`, whose modules can be imported."""
    root, *rest = name.split(".")
    spec = find_spec(root)  # of a package within, it would import the package
    package = ModuleType(name)
    if spec and spec.submodule_search_locations:
        package.__path__ = [str(Path(spec.submodule_search_locations[0], *rest))]
    package.__dict__.update(attributes)
    return package


def _undecorated(function: Any = None, *_settings: Any, **_options: Any) -> Any:
    """Stand for a decorator of the compiler, with or without arguments."""
    return _undecorated if function is None else function


@contextmanager
def _without_distributed() -> Iterator[None]:
    """Tell the libraries that torch has no distributed package: they import tensor parallelism else."""
    import torch.distributed

    is_available: Callable[[], bool] = torch.distributed.is_available
    torch.distributed.is_available = lambda: False
    try:
        yield
    finally:
        torch.distributed.is_available = is_available
