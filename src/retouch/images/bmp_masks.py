"""Decode a BMP whose channels lie where its masks say, in layouts that Pillow does not know."""

from typing import Any, Final

from PIL import Image, ImageMath
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import PyDecoder

Masks = tuple[int, int, int, int]
"""The bits of red, green, blue and alpha in a pixel; 0 where there is no such channel."""

# Those that Pillow decodes, and faster; no masks at all mean its default.
KNOWN_MASKS: Final[frozenset[Masks]] = frozenset(
    {
        (0xFF0000, 0xFF00, 0xFF, 0),
        (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
        (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
        (0xF800, 0x7E0, 0x1F, 0),
        (0x7C00, 0x3E0, 0x1F, 0),
        (0, 0, 0, 0),
    }
)
STAND_INS: Final = {16: (0x7C00, 0x3E0, 0x1F, 0), 32: (0xFF0000, 0xFF00, 0xFF, 0)}
_CODEC: Final = "bmp_masks"
_BITS: Final = 8


class MaskedBmp(BmpImageFile):
    """A bitmap of 16 or 32 bits a pixel, opened with one of `STAND_INS` for its masks."""

    def decode_by(self, masks: Masks, bits: int) -> None:
        """Decode to RGB, or to RGBA if there is a mask of alpha."""
        tile = self.tile[0]
        _, stride, direction = tuple(tile.args or ())
        self._mode = "RGBA" if masks[3] else "RGB"
        self.tile = [tile._replace(codec_name=_CODEC, args=(f"I;{bits}", stride, direction, masks))]


class _Masks(PyDecoder):
    _pulls_fd = True

    def decode(self, buffer: object) -> tuple[int, int]:
        del buffer  # empty, as `_pulls_fd` is set
        if self.fd is None:
            raise OSError("no file to read from")
        raw_mode, stride, direction, masks = self.args
        size = self.state.xsize, self.state.ysize
        data = self.fd.read(stride * size[1])
        pixels = Image.frombytes("I", size, data, "raw", raw_mode, stride, direction)
        channels = [_extract(pixels, mask) for mask in masks[: len(self.mode)]]
        self.set_as_raw(Image.merge(self.mode, channels).tobytes())
        return -1, 0


def _extract(pixels: Image.Image, mask: int) -> Image.Image:
    """Return a channel (mode L), its values scaled to 0 to 255."""
    if not mask:
        return Image.new("L", pixels.size)
    low = (mask & -mask).bit_length() - 1
    bits = (mask >> low).bit_length()
    low, top = low + max(bits - _BITS, 0), (1 << min(bits, _BITS)) - 1

    def scale(names: dict[str, Any]) -> Any:
        return names["convert"]((names["pixels"] >> low & top) * 255 / top, "L")

    channel: Image.Image = ImageMath.lambda_eval(scale, pixels=pixels)
    return channel


Image.register_decoder(_CODEC, _Masks)
