"""Refuse the kinds of TIFF that Pillow 13.0.0 decodes to wrong pixels without an error."""

from PIL.ExifTags import Base
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    COLORMAP,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    SAMPLEFORMAT,
    SUBIFD,
    TiffImageFile,
)

from retouch.errors import UnsupportedImage

_UNSIGNED, _WHITE_IS_ZERO, _SEPARATE, _REDUCED = 1, 0, 2, 1


def require_readable_tiff(source: ImageFile) -> None:
    """Check an opened file before its pixels are read; does nothing unless it is a TIFF.

    Raises:
        UnsupportedImage: Pillow would decode it wrongly.
    """
    if not isinstance(source, TiffImageFile):
        return
    tags, mode = source.tag_v2, source.mode
    bits = tags.get(BITSPERSAMPLE, (1,))
    is_gray_16 = mode.startswith("I;16")
    through_libtiff = bool(source.tile) and source.tile[0].codec_name == "libtiff"
    wrong = {
        # DNG, NEF and ARW: what Pillow reads is a thumbnail.
        "a camera's raw picture": Base.DNGVersion in tags
        or (tags.get(Base.NewSubfileType) == _REDUCED and SUBIFD in tags),
        "signed or floating-point samples": set(tags.get(SAMPLEFORMAT, ())) - {_UNSIGNED},
        f"gray samples of {bits[0]} bits": mode == "I" or (is_gray_16 and bits != (16,)),
        "16-bit gray where zero is white": is_gray_16
        and tags.get(PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO,
        # libtiff returns native byte order, and Pillow swaps it again.
        "compressed big-endian 16-bit gray": mode == "I;16B" and through_libtiff,
        # Planes of more than 8 bits are read as 8 bits; an alpha plane is not read at all.
        "separate planes other than 8-bit RGB": tags.get(PLANAR_CONFIGURATION) == _SEPARATE
        and len(bits) > 1
        and bits != (8, 8, 8),
        # The specification says 0 to 65535; read so, these entries are all black.
        "a color map of 8-bit entries": mode in ("P", "PA")
        and max(tags[COLORMAP]) in range(1, 256),
    }
    kinds = [kind for kind, is_so in wrong.items() if is_so]
    if kinds:
        raise UnsupportedImage(
            f"TIFF with {kinds[0]} is not supported; save it as 8-bit RGB or as PNG"
        )
