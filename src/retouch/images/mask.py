"""Masks in mode L: 255 where the model may paint, 0 where the source stays. Pillow only, as in `decode`."""

from PIL import Image

_EDITED = 255
_HALF = 128
_LEAST_PX, _MAX_ASPECT = 64, 4


def to_mask(image: Image.Image) -> Image.Image:
    """Return the mask that an image of 8 bits stands for: its transparent parts, else its white ones.

    Alpha decides where some pixel is not opaque, as in OpenAI's images API; else luminance, as in
    diffusers and ComfyUI. The threshold is half.
    """
    if image.mode in ("LA", "RGBA"):
        alpha = image.getchannel("A")
        if alpha.getextrema() != (255, 255):
            return alpha.point(lambda value: _EDITED if value < _HALF else 0)
    plain = image.convert("L")
    return plain.point(lambda value: _EDITED if value >= _HALF else 0)


def resize_mask(mask: Image.Image, size_px: tuple[int, int]) -> Image.Image:
    """Resize a mask; a pixel is edited where any part of it was, so that one pixel never gets lost.

    >>> mask = Image.new("L", (1000, 1000)); mask.putpixel((500, 500), 255)
    >>> resize_mask(mask, (10, 10)).getbbox()
    (5, 5, 6, 6)
    """
    if mask.size == size_px:
        return mask
    # In floats: in 8 bits the mean of a few pixels in a thousand is 0.
    mean = mask.convert("F").resize(size_px, Image.Resampling.BOX)
    return mean.point(lambda value: value * 1e6 + 0).convert("L")


def grow_box(
    box: tuple[int, int, int, int], *, by_px: int, within_px: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return `box` (left, top, right, bottom) grown on all sides, within an image of that size.

    A side then has at least 64 pixels and a quarter of the other's, as far as the image allows.

    >>> grow_box((100, 100, 101, 101), by_px=8, within_px=(400, 130))
    (68, 66, 132, 130)
    """
    spans = [
        (max(start - by_px, 0), min(end + by_px, size))
        for start, end, size in zip(box[:2], box[2:], within_px, strict=True)
    ]
    longest = max(end - start for start, end in spans)
    least = max(_LEAST_PX, round(longest / _MAX_ASPECT))
    (left, right), (top, bottom) = (
        _widen(start, end, least, size) for (start, end), size in zip(spans, within_px, strict=True)
    )
    return left, top, right, bottom


def _widen(start: int, end: int, least: int, size: int) -> tuple[int, int]:
    """Widen a span to `least` about its middle, moved to lie within 0 to `size`."""
    if end - start >= least:
        return start, end
    least = min(least, size)
    start = min(max((start + end - least) // 2, 0), size - least)
    return start, start + least
