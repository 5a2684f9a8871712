"""Parameters packed in one flat buffer per block, so that one copy moves them all."""

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import nn

from retouch.engine.memory.plan import Sizes
from retouch.engine.precision import recast

ALIGNMENT = 256
"""Bytes: that of CUDA's own allocations, and enough for every kernel's vector loads."""
MODULATION = ("img_mod", "txt_mod")
Layout = tuple[tuple[int, tuple[int, ...], torch.dtype], ...]


@dataclass(frozen=True, slots=True)
class ParamView:
    """One parameter: where its module keeps it (`owner[name]`), and its place in the flat buffer."""

    path: str
    owner: dict[str, nn.Parameter | None]
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int


class FlatParams:
    """Parameters that move together. Once allocated, all of them lie in the buffer `storage`."""

    def __init__(self, name: str, views: list[ParamView], parameters: list[nn.Parameter]) -> None:
        self.name = name
        self.views = views
        self.storage: torch.Tensor | None = None
        self._parameters = parameters

    @property
    def size_bytes(self) -> int:
        """Bytes of the buffer, alignment included."""
        last = self.views[-1]
        return _round_up(last.offset + count_bytes(last.shape, last.dtype))

    @property
    def layout(self) -> Layout:
        """Offset, shape and type of each parameter: equal for the blocks of a stack."""
        return tuple((view.offset, view.shape, view.dtype) for view in self.views)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights in storage, by path."""
        pairs = zip(self.views, self._parameters, strict=True)
        return {view.path: parameter.data for view, parameter in pairs}

    def allocate(self, storage: torch.Tensor) -> None:
        """Make the bytes `storage` (size_bytes,) the weights' storage; copy what weights there are."""
        new = self.view_in(storage)
        for old, there in zip(self._parameters, new, strict=True):
            if old.device.type != "meta":
                there.data.copy_(old.data)
        self.storage, self._parameters = storage, new
        self.offload()

    def view_in(self, buffer: torch.Tensor) -> list[nn.Parameter]:
        """Return the parameters as they lie in `buffer` (size_bytes,).

        Never as inference tensors, for which the compiler would compile a second time.
        """
        with torch.inference_mode(mode=False):
            return [
                nn.Parameter(
                    # bytes -> elements -> the parameter's shape
                    buffer[offset : offset + count_bytes(shape, dtype)].view(dtype).view(shape),
                    requires_grad=False,
                )
                for offset, shape, dtype in self.layout
            ]

    def bind(self, parameters: list[nn.Parameter]) -> None:
        """Let the modules use `parameters`. No data moves."""
        for view, parameter in zip(self.views, parameters, strict=True):
            view.owner[view.name] = parameter

    def offload(self) -> None:
        """Let the modules use the weights in storage, which for streamed ones is on the host."""
        self.bind(self._parameters)

    def cast(self, dtype: torch.dtype) -> None:
        """Convert the weights to `dtype`, within the same bytes once they are allocated.

        An interrupted call can be repeated.
        """
        if self.storage is not None and any(
            view.dtype.itemsize != dtype.itemsize for view in self.views
        ):
            raise ValueError(f"{self.name} has no room for {dtype}")
        for at, parameter in enumerate(self._parameters):
            self._parameters[at] = nn.Parameter(recast(parameter.data, dtype), requires_grad=False)
            self.views[at] = replace(self.views[at], dtype=dtype)
        self.offload()


def flatten(path: str, module: nn.Module, *, wants: Callable[[str], bool]) -> list[FlatParams]:
    """Pack the parameters of `module` whose path it `wants`: one `FlatParams`, or none."""
    views, parameters, offset = [], [], 0
    for prefix, part in module.named_modules(prefix=path):
        # Assigning to this dict binds a parameter at no cost; `setattr` checks it again each time.
        owner = part._parameters  # noqa: SLF001 - the public way does not reach unset parameters
        for name, parameter in owner.items():
            full = f"{prefix}.{name}"
            if parameter is None or not wants(full):
                continue
            shape = tuple(parameter.shape)
            views.append(ParamView(full, owner, name, shape, parameter.dtype, offset))
            parameters.append(parameter)
            offset = _round_up(offset + count_bytes(shape, parameter.dtype))
    return [FlatParams(path, views, parameters)] if views else []


@dataclass(frozen=True)
class ModelParams:
    """A pipeline's weights in `FlatParams`; `Sizes` says what may be done with each kind."""

    blocks: list[FlatParams]
    modulation: list[FlatParams]
    layers: list[FlatParams]
    fixed: list[FlatParams]
    host: list[FlatParams]

    def __iter__(self) -> Iterator[FlatParams]:
        for kind in (self.blocks, self.modulation, self.layers, self.fixed, self.host):
            yield from kind

    @property
    def sizes(self) -> Sizes:
        """Bytes of each."""
        return Sizes(
            blocks=tuple(params.size_bytes for params in self.blocks),
            layers=tuple(params.size_bytes for params in self.layers),
            modulation=tuple(params.size_bytes for params in self.modulation),
            fixed=sum(params.size_bytes for params in self.fixed),
            host=sum(params.size_bytes for params in self.host),
        )


def flatten_pipeline(*, transformer: Any, vae: Any, text_encoder: Any) -> ModelParams:
    """Pack a pipeline's modules, named by component and path."""
    taken: set[str] = set()

    def take(path: str, module: nn.Module, *, under: tuple[str, ...] = ("",)) -> list[FlatParams]:
        found = flatten(
            path, module, wants=lambda name: name not in taken and name.startswith(under)
        )
        taken.update(view.path for params in found for view in params.views)
        return found

    blocks, modulation = [], []
    for number, block in enumerate(transformer.transformer_blocks):
        path = f"transformer.transformer_blocks.{number}"
        modulation += take(path, block, under=tuple(f"{path}.{name}." for name in MODULATION))
        blocks += take(path, block)
    model = text_encoder.model
    stacks = {
        "visual.blocks": model.visual.blocks,
        "language_model.layers": model.language_model.layers,
    }
    layers = [
        params
        for name, stack in stacks.items()
        for number, layer in enumerate(stack)
        for params in take(f"text_encoder.model.{name}.{number}", layer)
    ]
    embedding = "text_encoder.model.language_model.embed_tokens"
    host = take(embedding, model.language_model.embed_tokens)
    fixed = take("transformer", transformer) + take("vae", vae) + take("text_encoder", text_encoder)
    return ModelParams(blocks=blocks, modulation=modulation, layers=layers, fixed=fixed, host=host)


def map_host(size_bytes: int) -> torch.Tensor:
    """Map private host memory of exactly this size, in huge pages where the kernel gives them.

    torch rounds its own pinned allocations up to a power of two and faults their pages in from one
    thread; here the reader's threads do that before `pin`.
    """
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory.madvise(mmap.MADV_DONTFORK)  # a fork would copy pinned pages at once
    return torch.frombuffer(memory, dtype=torch.uint8)


def pin(params: FlatParams) -> bool:  # pragma: no cover - needs a GPU
    """Let the GPU read the storage on the host directly. False if the system does not allow it."""
    runtime: Any = torch.cuda
    storage: Any = params.storage
    return int(runtime.cudart().cudaHostRegister(storage.data_ptr(), storage.numel(), 0)) == 0


def unpin(params: FlatParams) -> None:  # pragma: no cover - needs a GPU
    """Undo `pin`, before the memory is freed."""
    runtime: Any = torch.cuda
    runtime.synchronize()  # a prefetch may still be running
    storage: Any = params.storage
    runtime.cudart().cudaHostUnregister(storage.data_ptr())


def count_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Count the bytes of a tensor.

    >>> count_bytes((3, 5), torch.float16)
    30
    """
    return dtype.itemsize * prod(shape)


def _round_up(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
