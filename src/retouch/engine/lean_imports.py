"""Import the model libraries without what an edit never uses.

diffusers and transformers import the compiler, tensor parallelism, every other model of theirs and
any optional package they find: two thirds of the modules, and over half of the time of a start.
transformers also reads the source of its models, 2,500 files, twice.
"""

import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

_OPTIONAL = (
    "auto_round",
    "bitsandbytes",
    "boto3",
    "gguf",
    "modelopt",
    "optimum",
    "peft",
    "sdnq",
    "sklearn",
    "torchao",
    "torchaudio",
    "torchvision",
    "xformers",
)
"""Packages that the libraries use where they find them. xformers alone can be asked for."""
_COMPILER = "torch._dynamo"
_PACKAGES = (
    "diffusers.models.autoencoders",
    "diffusers.models.transformers",
    "diffusers.models.unets",
)
"""Packages whose `__init__` imports every model of diffusers."""
_INDEX = "transformers.utils.import_utils"
_MODELS = ("auto", "encoder_decoder", "qwen2", "qwen2_vl", "qwen2_5_vl")
"""The packages of `transformers.models` that an edit uses."""


@contextmanager
def lean_imports(*, attention: str) -> Iterator[None]:
    """Import less within the block.

    Afterwards every import works as usual. What is imported already stays as it is. `attention` is
    the name of an attention kernel: for `xformers` that package is found. Other threads must not
    import these libraries meanwhile.
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
        with _sparing_imports():
            yield
    finally:
        for name, module in placed.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        # What was imported of the compiler meanwhile knows the stand-in as its package.
        if _COMPILER not in sys.modules:
            for name in [name for name in sys.modules if name.startswith(f"{_COMPILER}.")]:
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
def _sparing_imports() -> Iterator[None]:
    """Have the libraries find no distributed package, no distributions and few models.

    With torch's distributed package they import tensor parallelism. For a map of import names to
    distributions they look at every installed file; they need it for packages whose two names differ,
    and an edit uses none of those.
    """
    import torch.distributed

    with (
        _replaced(torch.distributed, "is_available", lambda: False),
        _replaced(importlib.metadata, "packages_distributions", dict),
        _with_few_models(),
    ):
        yield


@contextmanager
def _replaced(module: ModuleType, name: str, stand_in: Callable[[], Any]) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, stand_in)
    try:
        yield
    finally:
        setattr(module, name, original)


@contextmanager
def _with_few_models() -> Iterator[None]:
    """Have transformers read the sources of `_MODELS` alone for its index of models."""
    finder = _IndexFinder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _IndexFinder(MetaPathFinder):
    """Finds the module that builds the index, and limits it once it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _INDEX:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec and spec.loader:
            spec.loader = _IndexLoader(spec.loader)
        return spec


class _IndexLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        read = module.create_import_structure_from_path

        def read_few(path: str | Path) -> Any:
            folder = Path(path).parent if Path(path).suffix else Path(path)
            if folder.name != "models":
                return read(path)
            return {name: read(str(folder / name)) for name in _MODELS}

        def read_all(package: Any) -> None:
            module.create_import_structure_from_path = read  # type: ignore[attr-defined]
            module.define_import_structure.cache_clear()
            within = "models" if package.__name__ == "transformers" else None
            folder = Path(module.__file__ or "").parents[1] / "models"
            whole = lazy(
                package.__name__, package.__file__, module.define_import_structure(folder, within)
            )
            for name in ("_class_to_module", "_object_missing_backend", "_modules"):
                setattr(package, name, getattr(whole, name) | getattr(package, name))
            package.__all__ = sorted({*whole.__all__, *package.__all__})

        lazy = module._LazyModule  # noqa: SLF001 - no name of it is public
        module.create_import_structure_from_path = read_few  # type: ignore[attr-defined]
        module._LazyModule = _make_whole_on_demand(lazy, read_all)  # type: ignore[attr-defined] # noqa: SLF001


def _make_whole_on_demand(lazy: Any, read_all: Callable[[Any], None]) -> Any:
    """Return `lazy`, transformers' class of packages, that reads all models once a name is missing."""

    class Package(lazy):  # type: ignore[misc]
        is_whole = False

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                few = self.__name__ in ("transformers", "transformers.models")
                if self.is_whole or not few or name.startswith("_"):
                    raise
            module = f"{self.__name__}.{name}"
            if find_spec(module):  # a module needs no index
                return import_module(module)
            self.is_whole = True
            read_all(self)
            return super().__getattr__(name)

    return Package
