"""Weights in units that move as one: all parameters of a block in one flat buffer, one copy to bring it."""

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from retouch.engine.memory.plan import Sizes
from retouch.engine.precision import recast

ALIGNMENT = 256
"""Bytes: what CUDA's own allocations have, and enough for every kernel's vector loads."""
MODULATION = ("img_mod", "txt_mod")
Layout = tuple[tuple[int, tuple[int, ...], torch.dtype], ...]


@dataclass(frozen=True, slots=True)
class ParamView:
    """One parameter: where its module keeps it, and where it lies in its unit's buffer."""

    path: str
    owner: dict[str, nn.Parameter | None]
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int


class FlatParams:
    """Parameters that come and go together, with one buffer as their home once they are settled."""

    def __init__(self, name: str, places: list[ParamView]) -> None:
        self.name = name
        self.places = places
        self.home: torch.Tensor | None = None
        self._own = [_parameter(place) for place in places]

    @property
    def size_bytes(self) -> int:
        """Bytes of the buffer, gaps included."""
        last = self.places[-1]
        return _round_up(last.offset + count_bytes(last.shape, last.dtype))

    @property
    def layout(self) -> Layout:
        """Offset, shape and type of each parameter: equal for the blocks of a stack."""
        return tuple((place.offset, place.shape, place.dtype) for place in self.places)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights at home, by path."""
        return {place.path: own.data for place, own in zip(self.places, self._own, strict=True)}

    def settle(self, home: torch.Tensor) -> None:
        """Make the bytes `home` the weights' home, and move what weights there are into it."""
        new = self.views(home)
        for old, there in zip(self._own, new, strict=True):
            if old.device.type != "meta":
                there.data.copy_(old.data)
        self.home, self._own = home, new
        self.go_home()

    def views(self, buffer: torch.Tensor) -> list[nn.Parameter]:
        """Make the parameters as they lie in `buffer`.

        Never as inference tensors: compiled code would be made a second time for those.
        """
        with torch.inference_mode(mode=False):
            return [
                nn.Parameter(
                    buffer[offset : offset + count_bytes(shape, dtype)].view(dtype).view(shape),
                    requires_grad=False,
                )
                for offset, shape, dtype in self.layout
            ]

    def install(self, parameters: list[nn.Parameter]) -> None:
        """Let the modules use `parameters`. No data moves."""
        for place, parameter in zip(self.places, parameters, strict=True):
            place.owner[place.name] = parameter

    def go_home(self) -> None:
        """Let the modules use the weights at home: for a streamed unit, away from the device."""
        self.install(self._own)

    def cast(self, dtype: torch.dtype) -> None:
        """Make the weights `dtype`, in the bytes they have if they are settled.

        Broken off, it can be called again.
        """
        if self.home is not None and any(
            place.dtype.itemsize != dtype.itemsize for place in self.places
        ):
            raise ValueError(f"{self.name} has no room for {dtype}")
        for at, own in enumerate(self._own):
            self._own[at] = nn.Parameter(recast(own.data, dtype), requires_grad=False)
            self.places[at] = replace(self.places[at], dtype=dtype)
        self.go_home()


def flatten(path: str, module: nn.Module, *, wants: Callable[[str], bool]) -> FlatParams | None:
    """Make a unit of the parameters of `module` whose path it `wants`; None if there are none."""
    places, offset = [], 0
    for prefix, part in module.named_modules(prefix=path):
        # Assigned there, a parameter changes hands in no time; `setattr` checks it again each time.
        owner = part._parameters  # noqa: SLF001 - the one way to a parameter that is not there
        for name, parameter in owner.items():
            full = f"{prefix}.{name}"
            if parameter is None or not wants(full):
                continue
            shape = tuple(parameter.shape)
            places.append(ParamView(full, owner, name, shape, parameter.dtype, offset))
            offset = _round_up(offset + count_bytes(shape, parameter.dtype))
    return FlatParams(path, places) if places else None


@dataclass(frozen=True)
class ModelParams:
    """A pipeline's weights, cut into units; see `Sizes` for what each may do."""

    blocks: list[FlatParams]
    modulation: list[FlatParams]
    layers: list[FlatParams]
    fixed: list[FlatParams]
    host: list[FlatParams]

    def __iter__(self) -> Iterator[FlatParams]:
        for units in (self.blocks, self.modulation, self.layers, self.fixed, self.host):
            yield from units

    @property
    def sizes(self) -> Sizes:
        """Bytes of each."""
        return Sizes(
            blocks=tuple(unit.size_bytes for unit in self.blocks),
            layers=tuple(unit.size_bytes for unit in self.layers),
            modulation=tuple(unit.size_bytes for unit in self.modulation),
            fixed=sum(unit.size_bytes for unit in self.fixed),
            host=sum(unit.size_bytes for unit in self.host),
        )


def flatten_pipeline(*, transformer: Any, vae: Any, text_encoder: Any) -> ModelParams:
    """Cut a pipeline's modules into units, named by component and path."""
    blocks, modulation, taken = [], [], set[str]()

    def take(path: str, module: nn.Module, *, under: tuple[str, ...] = ("",)) -> list[FlatParams]:
        unit = flatten(
            path, module, wants=lambda name: name not in taken and name.startswith(under)
        )
        if unit is None:
            return []
        taken.update(place.path for place in unit.places)
        return [unit]

    for number, block in enumerate(transformer.transformer_blocks):
        path = f"transformer.transformer_blocks.{number}"
        heads = tuple(f"{path}.{name}." for name in MODULATION)
        modulation += take(path, block, under=heads)
        blocks += take(path, block)
    model = text_encoder.model
    stacks = {
        "visual.blocks": model.visual.blocks,
        "language_model.layers": model.language_model.layers,
    }
    layers = [
        unit
        for name, stack in stacks.items()
        for number, layer in enumerate(stack)
        for unit in take(f"text_encoder.model.{name}.{number}", layer)
    ]
    words = "text_encoder.model.language_model.embed_tokens"
    host = take(words, model.language_model.embed_tokens)
    fixed = take("transformer", transformer) + take("vae", vae) + take("text_encoder", text_encoder)
    return ModelParams(blocks=blocks, modulation=modulation, layers=layers, fixed=fixed, host=host)


def map_host(size_bytes: int) -> torch.Tensor:
    """Map private memory of exactly this size, in huge pages where the kernel gives them.

    torch's own pinned allocations are rounded up to a power of two, and their pages come one by one
    from one thread; here whoever reads the weights brings them, on many threads, before `pin`.
    """
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory.madvise(mmap.MADV_DONTFORK)  # what is pinned, a fork would copy at once
    return torch.frombuffer(memory, dtype=torch.uint8)


def pin(unit: FlatParams) -> bool:  # pragma: no cover - needs a GPU
    """Let the GPU read a unit's home on the host directly. False if the system does not allow it."""
    runtime: Any = torch.cuda
    home: Any = unit.home
    return int(runtime.cudart().cudaHostRegister(home.data_ptr(), home.numel(), 0)) == 0


def unpin(unit: FlatParams) -> None:  # pragma: no cover - needs a GPU
    """Undo `pin`, before the memory is given back."""
    runtime: Any = torch.cuda
    runtime.synchronize()  # a copy ahead may still be on its way
    home: Any = unit.home
    runtime.cudart().cudaHostUnregister(home.data_ptr())


def _parameter(place: ParamView) -> nn.Parameter:
    parameter = place.owner[place.name]
    if parameter is None:
        raise LookupError(place.path)
    return parameter


def count_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Count the bytes of a tensor."""
    count = dtype.itemsize
    for side in shape:
        count *= side
    return count


def _round_up(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
