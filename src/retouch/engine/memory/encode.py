"""Which weights a quantization packs, and to what."""

from retouch.engine.memory.flat_params import Encode
from retouch.engine.memory.quantization import Quantization
from retouch.engine.packing.encoding import Encoding, Packer
from retouch.engine.packing.nf4 import NF4
from retouch.engine.packing.rows import FP8, INT8

PACKERS: dict[str, Packer] = {"int8": INT8, "fp8": FP8, "nf4": NF4}
_MATRIX = 2


def encode_as(quantization: Quantization) -> Encode:
    """Pack the matrices of blocks and layers; biases and norms, which are small, stay as they are.

    A matrix whose shape the encoding does not take stays as it is too.
    """
    packers = {
        "transformer": PACKERS.get(quantization.transformer),
        "text_encoder": PACKERS.get(quantization.text_encoder),
    }

    def encode(path: str, shape: tuple[int, ...]) -> Encoding | None:
        packer = packers.get(path.partition(".")[0])
        if packer is None or len(shape) != _MATRIX:
            return None
        try:
            packer.size_bytes(shape)
        except ValueError:
            return None
        return packer

    return encode
