"""Random GGUF blocks of every type, with scales that real weights would have."""

import gguf
import numpy as np

_SCALES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "Q8_0": (0,),
    "Q4_0": (0,),
    "Q5_0": (0,),
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
}
"""Where the float16 scales of a block are: random bytes would make them NaN or infinite."""


def make_blocks(
    kind: gguf.GGMLQuantizationType, shape: tuple[int, int], *, seed: int = 0
) -> np.ndarray:
    """Return the bytes (row, byte) of a weight of `shape` in blocks of `kind`."""
    random = np.random.default_rng(seed)
    if kind.name not in _SCALES:  # F32, F16 and BF16
        return gguf.quants.quantize(random.standard_normal(shape, dtype=np.float32), kind).view(
            np.uint8
        )
    values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (shape[0], shape[1] // values, block_bytes), dtype=np.uint8)
    for at in _SCALES[kind.name]:
        scale = random.random((*blocks.shape[:2], 1)) * 1e-3
        blocks[..., at : at + 2] = scale.astype(np.float16).view(np.uint8)
    return blocks.reshape(shape[0], -1)
