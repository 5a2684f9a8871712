"""Which weights a quantization packs, and to what."""

from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType

from retouch.engine.memory.flat_params import MODULATION, Encode
from retouch.engine.memory.quantization import PLAIN, Quantization
from retouch.engine.packing.encoding import Encoding, Packer
from retouch.engine.packing.nf4 import NF4
from retouch.engine.packing.rows import FP8, FP8_OPERAND, INT8

PACKERS: dict[str, Packer] = {"int8": INT8, "fp8": FP8, "nf4": NF4}
_MATRIX = 2
_TILE = 16
"""`torch._scaled_mm` wants multiples of it."""
_NONE: Mapping[str, Encoding] = MappingProxyType({})


def encode_as(
    quantization: Quantization,
    filed: Mapping[str, Encoding] = _NONE,
    *,
    fp8_products: bool = False,
) -> Encode:
    """Pack the matrices of blocks and layers; biases and norms, which are small, stay as they are.

    So do a matrix whose shape the encoding does not take, and the modulation, which is sensitive. A
    part that is to stay as its file has it takes its encodings from `filed`, by path. With
    `fp8_products` the transformer's products take its fp8 weights as they are.
    """
    names = asdict(quantization)

    def encode(path: str, shape: tuple[int, ...]) -> Encoding | None:
        if len(shape) != _MATRIX:
            return None
        name = names.get(path.partition(".")[0], PLAIN)
        if name not in {PLAIN, *PACKERS}:
            return filed.get(path)
        packer = PACKERS.get(name)
        if packer is None or any(f".{head}." in path for head in MODULATION):
            return None
        try:
            packer.size_bytes(shape)
        except ValueError:
            return None
        is_multiplied = path.startswith("transformer.") and not any(n % _TILE for n in shape)
        return FP8_OPERAND if packer is FP8 and fp8_products and is_multiplied else packer

    return encode
