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


def pack_q6_k(values: np.ndarray) -> np.ndarray:
    """Round `values` (row, column) to Q6_K, which the gguf package only reads: bytes (row, byte)."""
    blocks = values.reshape(-1, 16, 16).astype(np.float32)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    wanted = extreme / -32  # of each group of 16: its extreme becomes -32
    d = (np.abs(wanted).max(1, keepdims=True) / 127).astype(np.float16)
    unit = np.where(d > 0, d, 1).astype(np.float32)
    scales = np.round(wanted / unit).clip(-128, 127)
    steps = scales * unit
    codes = np.round(blocks / np.where(steps == 0, 1, steps)).clip(-32, 31) + 32
    codes = codes.astype(np.uint8).reshape(-1, 2, 4, 32)  # (block, half, quarter, value)
    low, high = codes & 15, codes >> 4
    nibbles = low[:, :, :2] | (low[:, :, 2:] << 4)
    pairs = sum(high[:, :, at] << (2 * at) for at in range(4))
    parts = [
        nibbles.reshape(len(codes), -1),
        np.asarray(pairs, dtype=np.uint8).reshape(len(codes), -1),
        scales.astype(np.int8).view(np.uint8).reshape(len(codes), -1),
        d.reshape(-1, 1).view(np.uint8),
    ]
    return np.concatenate(parts, axis=1).reshape(len(values), -1)
