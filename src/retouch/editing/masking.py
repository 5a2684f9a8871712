"""Confine an edit to a mask: check it, choose the part of the image to edit, put the rest back."""

from dataclasses import dataclass

from PIL import Image

from retouch.editing.ports import Source
from retouch.errors import MaskEmpty, MaskSizeMismatch
from retouch.images.feather import feather, paste_back
from retouch.images.mask import grow_box, resize_mask

_MAX_STRETCH = 0.01
Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Masking:
    """A mask (L) of the size of the first image (`source`, RGB), and the box of both that is edited.

    With `crops` only the box is shown to the model, and the result has the source's size.
    """

    source: Image.Image
    mask: Image.Image
    box: Box
    feather_px: int
    crops: bool

    def crop(self) -> tuple[Image.Image, Image.Image]:
        """Return the image and the mask to edit."""
        return self.source.crop(self.box), self.mask.crop(self.box)

    def finish(self, edited: Image.Image) -> Image.Image:
        """Return the result: the source's own pixels outside the feathered mask, `edited` within."""
        source, mask, box = self.source, self.mask, self.box
        if not self.crops:
            box = (0, 0, *edited.size)
            mask = resize_mask(mask, edited.size)
            if source.size != edited.size:
                source = source.resize(edited.size, Image.Resampling.LANCZOS)
        return paste_back(edited, source, feather(mask, self.feather_px), box)


def plan_masking(
    source: Source, mask: Source, *, feather_px: int, padding_px: int | None
) -> Masking | None:
    """Return how to confine an edit of `source` to `mask`, or None where the mask is full and nothing is cropped.

    With `padding_px` the box is the mask's with that much around it; else it is the whole image.

    Raises:
        MaskSizeMismatch: the shapes of both differ by over a hundredth.
        MaskEmpty: nothing is to be edited.
    """
    require_same_shape((source.width_px, source.height_px), (mask.width_px, mask.height_px))
    size_px = source.image.size
    area = resize_mask(mask.image, size_px)
    painted = area.getbbox()
    if painted is None:
        raise MaskEmpty
    box = (0, 0, *size_px)
    if padding_px is None:
        if area.getextrema() == (255, 255):
            return None
    else:
        box = grow_box(painted, by_px=max(padding_px, feather_px), within_px=size_px)
    return Masking(source.image, area, box, feather_px, crops=padding_px is not None)


def require_same_shape(size_px: tuple[int, int], mask_px: tuple[int, int]) -> None:
    """Check that a mask may be stretched to an image.

    Raises:
        MaskSizeMismatch: their aspect ratios differ by over a hundredth.
    """
    (width_px, height_px), (mask_width_px, mask_height_px) = size_px, mask_px
    wide, tall = width_px * mask_height_px, height_px * mask_width_px
    if abs(wide - tall) > _MAX_STRETCH * max(wide, tall):
        raise MaskSizeMismatch(
            f"the mask is {mask_width_px} x {mask_height_px} pixels, the image {width_px} x "
            f"{height_px}: send a mask of the image's size"
        )
