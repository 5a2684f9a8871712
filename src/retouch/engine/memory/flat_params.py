"""Parameters in one flat buffer per block, plain or packed, so that one copy moves them all."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from retouch.engine.memory.param_view import Layout, ParamView, count_bytes, round_up, view_operand
from retouch.engine.memory.plan import Sizes
from retouch.engine.packing.encoding import Encoding
from retouch.engine.packing.rows import Fp8Operand
from retouch.engine.precision import recast

MODULATION = ("img_mod", "txt_mod")
Encode = Callable[[str, tuple[int, ...]], Encoding | None]
"""Choose the encoding of the weight at a path, of a shape; None leaves it as it is."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """Where a packed weight of `shape` lives: `storage` (size_bytes,; uint8)."""

    encoding: Encoding
    storage: torch.Tensor
    shape: tuple[int, ...]

    @property
    def device(self) -> torch.device:
        """Where it lives."""
        return self.storage.device

    def write(self, weight: torch.Tensor, factor: float = 1.0) -> None:
        """Pack `weight` (`shape`) times `factor`, on its own device, into the storage.

        Only a `Packer` can. Another factor than 1 overwrites `weight`.
        """
        packer: Any = self.encoding
        self.storage.copy_(packer.pack(weight if factor == 1.0 else weight.mul_(factor)))


class FlatParams:
    """Parameters that move together. Once allocated, all of them lie in the buffer `storage`.

    Mapped ones have no storage: each lies in its file.
    """

    def __init__(self, name: str, views: list[ParamView], parameters: list[nn.Parameter]) -> None:
        self.name = name
        self.views = views
        self.storage: torch.Tensor | None = None
        self._mapped: list[torch.Tensor] = []
        self._parameters = parameters

    @property
    def size_bytes(self) -> int:
        """Bytes of the buffer, alignment included."""
        last = self.views[-1]
        return round_up(last.offset + last.size_bytes)

    @property
    def expanded_bytes(self) -> int:
        """Bytes of the buffer that its packed parameters are expanded in: 0 if there are none."""
        return sum(view.expanded_bytes for view in self.views)

    @property
    def layout(self) -> Layout:
        """Offset, shape, type and encoding of each parameter: equal for the blocks of a stack."""
        return tuple((view.offset, view.shape, view.dtype, view.encoding) for view in self.views)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The plain weights in storage, by path; none that are mapped."""
        if self._mapped:
            return {}
        pairs = zip(self.views, self._parameters, strict=True)
        return {view.path: parameter.data for view, parameter in pairs if not view.encoding}

    @property
    def packed(self) -> dict[str, PackedWeight]:
        """The packed weights in storage, by path."""
        return {
            view.path: PackedWeight(view.encoding, view.bytes_in(self.storage), view.shape)
            for view in self.views
            if view.encoding and self.storage is not None
        }

    def allocate(self, storage: torch.Tensor) -> None:
        """Make the bytes `storage` (size_bytes,) the weights' storage; copy what weights there are."""
        old, self.storage = self._parameters, storage
        self._parameters = self.view_in(storage)
        into: dict[str, torch.Tensor | PackedWeight] = {**self.tensors, **self.packed}
        for view, parameter in zip(self.views, old, strict=True):
            if parameter.device.type == "meta":
                continue
            there = into[view.path]
            if isinstance(there, PackedWeight):
                there.write(parameter.data)
            else:
                there.copy_(parameter.data)
        self.offload()

    def move(self, storage: torch.Tensor) -> None:
        """Copy the bytes in storage to `storage` (size_bytes,), and use them there."""
        self.storage = storage.copy_(self.pieces[0][1])
        self._parameters = self.view_in(storage)
        self.offload()

    def map(self, files: Mapping[str, torch.Tensor]) -> None:
        """Use the weights as they lie in `files`, the bytes of each by path. All are plain."""
        self._mapped = [files[view.path] for view in self.views]
        self._parameters = [
            nn.Parameter(bytes_.view(view.dtype).view(view.shape), requires_grad=False)
            for view, bytes_ in zip(self.views, self._mapped, strict=True)
        ]
        self.offload()

    @property
    def pieces(self) -> list[tuple[slice, torch.Tensor]]:
        """The bytes to copy, each with its place in a flat buffer.

        Raises:
            LookupError: there are none yet.
        """
        if self._mapped:
            pairs = zip(self.views, self._mapped, strict=True)
            return [(slice(v.offset, v.offset + v.size_bytes), bytes_) for v, bytes_ in pairs]
        if self.storage is None:
            raise LookupError(f"{self.name} is not allocated")
        return [(slice(0, self.size_bytes), self.storage)]

    def view_in(
        self, buffer: torch.Tensor, expansion: torch.Tensor | None = None
    ) -> list[nn.Parameter]:
        """Return the parameters as they lie in `buffer` (size_bytes,).

        Those that are expanded lie in `expansion` (expanded_bytes,) one after the other; without it they
        have no memory. An fp8 operand has the attribute `scales` (out,). None is an inference tensor:
        the compiler would compile a second time for those.
        """
        found, offset = [], 0
        with torch.inference_mode(mode=False):
            for view in self.views:
                values = view.bytes_in(buffer)
                if isinstance(view.encoding, Fp8Operand):
                    found.append(view_operand(view.encoding, values, view.shape))
                    continue
                if view.encoding:
                    if expansion is None:
                        values = values.new_empty(view.expanded_bytes, device="meta")
                    else:
                        values = expansion[offset : offset + view.expanded_bytes]
                    values = values[: count_bytes(view.shape, view.dtype)]
                    offset += view.expanded_bytes
                # bytes -> elements -> the parameter's shape
                shaped = values.view(view.dtype).view(view.shape)
                found.append(nn.Parameter(shaped, requires_grad=False))
        return found

    def bind(self, parameters: list[nn.Parameter]) -> None:
        """Let the modules use `parameters`. No data moves."""
        for view, parameter in zip(self.views, parameters, strict=True):
            view.owner[view.name] = parameter
            if isinstance(view.encoding, Fp8Operand):
                view.owner["scales"] = getattr(parameter, "scales", None)

    def offload(self) -> None:
        """Let the modules use the weights in storage, which for streamed ones is on the host."""
        self.bind(self._parameters)

    def cast(self, dtype: torch.dtype) -> None:
        """Convert the weights to `dtype`, within the same bytes once they are allocated.

        Packed ones keep their bytes: they are expanded to `dtype` from now on. An interrupted call
        can be repeated.
        """
        if self.storage is not None and any(
            view.dtype.itemsize != dtype.itemsize for view in self.views
        ):
            raise ValueError(f"{self.name} has no room for {dtype}")
        for at, parameter in enumerate(self._parameters):
            if not isinstance(self.views[at].encoding, Fp8Operand):
                self._parameters[at] = nn.Parameter(
                    recast(parameter.data, dtype), requires_grad=False
                )
            self.views[at] = replace(self.views[at], dtype=dtype)
        self.offload()


def keep_plain(_path: str, _shape: tuple[int, ...]) -> None:
    """Pack nothing: an `Encode`."""


def flatten(
    path: str, module: nn.Module, *, wants: Callable[[str], bool], encode: Encode = keep_plain
) -> list[FlatParams]:
    """Gather the parameters of `module` whose path it `wants`: one `FlatParams`, or none."""
    views, parameters, offset = [], [], 0
    for prefix, part in module.named_modules(prefix=path):
        # Assigning to this dict binds a parameter at no cost; `setattr` checks it again each time.
        owner = part._parameters  # noqa: SLF001 - the public way does not reach unset parameters
        for name, parameter in owner.items():
            full = f"{prefix}.{name}"
            if parameter is None or not wants(full):
                continue
            shape = tuple(parameter.shape)
            encoding = encode(full, shape)
            view = ParamView(full, owner, name, shape, parameter.dtype, offset, encoding)
            views.append(view)
            parameters.append(parameter)
            offset = round_up(offset + view.size_bytes)
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
            expansion=self.expanded_bytes,
        )

    @property
    def expanded_bytes(self) -> int:
        """Bytes of the buffer that packed weights are expanded in, one block or layer at a time."""
        return max(params.expanded_bytes for params in self)


def flatten_pipeline(
    *, transformer: Any, vae: Any, text_encoder: Any, encode: Encode = keep_plain
) -> ModelParams:
    """Gather the parameters of a pipeline's modules, named by component and path.

    Only those of the transformer's blocks and of the text encoder's layers may be packed.
    """
    taken: set[str] = set()

    def take(
        path: str,
        module: nn.Module,
        *,
        under: tuple[str, ...] = ("",),
        encode: Encode = keep_plain,
    ) -> list[FlatParams]:
        found = flatten(
            path,
            module,
            wants=lambda name: name not in taken and name.startswith(under),
            encode=encode,
        )
        taken.update(view.path for params in found for view in params.views)
        return found

    blocks, modulation = [], []
    for number, block in enumerate(transformer.transformer_blocks):
        path = f"transformer.transformer_blocks.{number}"
        heads = tuple(f"{path}.{name}." for name in MODULATION)
        modulation += take(path, block, under=heads, encode=encode)
        blocks += take(path, block, encode=encode)
    layers = [
        params
        for path, layer in _list_layers(text_encoder.model)
        for params in take(path, layer, encode=encode)
    ]
    embedding = "text_encoder.model.language_model.embed_tokens"
    host = take(embedding, text_encoder.model.language_model.embed_tokens)
    fixed = take("transformer", transformer) + take("vae", vae) + take("text_encoder", text_encoder)
    return ModelParams(blocks=blocks, modulation=modulation, layers=layers, fixed=fixed, host=host)


def _list_layers(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yield the text encoder's layers with their paths, in the order in which they run."""
    stacks = {
        "visual.blocks": model.visual.blocks,
        "language_model.layers": model.language_model.layers,
    }
    for name, stack in stacks.items():
        for number, layer in enumerate(stack):
            yield f"text_encoder.model.{name}.{number}", layer
