"""Decode the bitmaps of run lengths (RLE4 and RLE8) as browsers do.

Pillow shifts all that follows a row of too many pixels, as some programs write for an odd width.
"""

from collections.abc import Iterator
from typing import Final

from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import PyDecoder

_CODEC: Final = "bmp_runs"
_END_OF_ROW, _END_OF_IMAGE, _MOVE = 0, 1, 2  # after a zero; from 3 on a number of pixels


class RunLengthBmp(BmpImageFile):
    """A bitmap that decodes to RGB if it is of run lengths, and as Pillow does it if not."""

    def _open(self) -> None:
        super()._open()
        tile = self.tile[0]
        if tile.codec_name != "bmp_rle":
            return
        _, is_rle4, direction = tuple(tile.args or ())
        arguments = is_rle4, direction, self._list_channels()
        self._mode, self.palette = "RGB", None
        self.tile = [tile._replace(codec_name=_CODEC, args=arguments)]

    def _list_channels(self) -> list[bytes]:
        """Return red, green and blue by index; a color that the file does not define is black."""
        if self.palette is None:
            return [bytes((0, 255) if self.mode == "1" else range(256)).ljust(256, b"\0")] * 3
        order, data = self.palette.getdata()  # BGR or BGRX
        return [data[at :: len(order)][:256].ljust(256, b"\0") for at in (2, 1, 0)]


class _RunLengths(PyDecoder):
    """Pixels outside a row are dropped; those that the file leaves out are black, as in Chromium."""

    _pulls_fd = True

    def decode(self, buffer: object) -> tuple[int, int]:
        del buffer  # empty, as `_pulls_fd` is set
        if self.fd is None:
            raise OSError("no file to read from")
        is_rle4, direction, channels = self.args
        size = width, height = self.state.xsize, self.state.ysize
        pixels = bytearray(3 * width * height)
        for x, y, indices in _read_runs(self.fd.read(), size, is_rle4):
            row = indices[: max(width - x, 0)]
            start, length = 3 * (y * width + x), 3 * len(row)
            for place, channel in enumerate(channels, start):
                pixels[place : place + length : 3] = row.translate(channel)
        self.set_as_raw(pixels, "RGB", (0, direction))
        return -1, 0


def _read_runs(
    data: bytes, size: tuple[int, int], is_rle4: bool
) -> Iterator[tuple[int, int, bytes]]:
    """Yield column, row in the file's order, and color indices of each run.

    Raises:
        OSError: the data end before the image.
    """
    width, height = size
    x = y = position = 0
    while y < height:
        if position + 2 > len(data):
            if (y, x) >= (height - 1, width):
                return
            raise OSError("the image is cut short")
        count, value = data[position : position + 2]
        position += 2
        if not count and value == _END_OF_IMAGE:
            return
        if not count and value == _END_OF_ROW:
            x, y = 0, y + 1
        elif not count and value == _MOVE:
            right, up = data[position : position + 2].ljust(2, b"\0")
            x, y, position = x + right, y + up, position + 2
        else:
            packed = bytes((value,)) * count
            if not count:
                count = value
                packed = data[position : position + ((count + 1) // 2 if is_rle4 else count)]
                position += len(packed) + len(packed) % 2
            indices = _halve(packed) if is_rle4 else packed
            yield x, y, indices[:count]
            x += count


def _halve(packed: bytes) -> bytes:
    return bytes(half for byte in packed for half in (byte >> 4, byte & 15))


Image.register_decoder(_CODEC, _RunLengths)
