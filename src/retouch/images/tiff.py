"""What Pillow gets wrong in TIFFs without a word: samples of more than 8 bits in some layouts.

Seen with Pillow 13.0.0, `TiffImagePlugin.py`. Imported in the decoder's child process.
"""

from collections.abc import Mapping
from typing import Any

from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    PLANAR_CONFIGURATION,
    SAMPLEFORMAT,
    TiffImageFile,
)

from retouch.errors import BrokenImage

_SEPARATE = 2
_BYTE_BITS = 8
_UNSIGNED = 1


def mend_layout(source: ImageFile) -> None:
    """Correct how an opened TIFF will be read, before its pixels are; any other picture is left as it is.

    Raises:
        BrokenImage: its layout cannot be read right.
    """
    if not isinstance(source, TiffImageFile):
        return
    bits = source.tag_v2.get(BITSPERSAMPLE, (8,))
    tile: Any = source.tile[0] if source.tile else None
    if tile and tile.codec_name == "libtiff":
        raw, *rest = tile.args
        # libtiff gives the machine's own byte order, and Pillow then swaps a big-endian file's again.
        if source.mode.startswith(("I", "F")) and "B" in raw:
            source.tile = [tile._replace(args=(raw.replace("B", "N"), *rest))]
    elif (
        source.tag_v2.get(PLANAR_CONFIGURATION) == _SEPARATE
        and len(bits) > 1
        and max(bits) > _BYTE_BITS
    ):
        # Each plane would be taken for one of 8 bits.
        raise BrokenImage("a TIFF with separate planes of more than 8 bits cannot be read")


def read_tags(source: ImageFile) -> Mapping[int, Any]:
    """Return the tags of a TIFF that was read, and none of any other picture.

    Raises:
        BrokenImage: unsigned samples of 32 bits were read as negative ones.
    """
    if not isinstance(source, TiffImageFile):
        return {}
    if source.mode == "I" and source.tag_v2.get(SAMPLEFORMAT, (_UNSIGNED,))[0] == _UNSIGNED:
        darkest: Any = source.getextrema()[0]
        if darkest < 0:
            raise BrokenImage("a TIFF with samples of over 31 bits cannot be read")
    tags: Mapping[int, Any] = source.tag_v2
    return tags
