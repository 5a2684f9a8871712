import pytest
import torch
from support.demo import measures
from support.demo.album import photo
from support.demo.measures import MEASURES, from_tensor

from retouch.demo import edits
from retouch.demo.edits import EDITS, PLAIN, SLIGHT, STRONG, Change

WITHOUT_AMOUNT = {"black_and_white", "sepia", "invert", "unchanged"}
DIRECTIONS = {
    name: way for name, way in measures.DIRECTIONS.items() if name not in WITHOUT_AMOUNT
} | {"grain": ("detail", 1)}


def measure(name: str, image: torch.Tensor) -> float:
    return MEASURES[name](from_tensor(image))


def edit(name: str, amount: float = PLAIN) -> torch.Tensor:
    torch.manual_seed(0)
    return edits.apply(photo(), [Change(name, amount)])


def test_every_edit_is_tested() -> None:
    assert {*DIRECTIONS, *WITHOUT_AMOUNT} == set(EDITS)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_an_edit_moves_its_measure_by_its_amount(name: str) -> None:
    measured, sign = DIRECTIONS[name]
    amounts = (SLIGHT, PLAIN, STRONG)
    moved = [
        sign * measure(measured, image) for image in (photo(), *(edit(name, a) for a in amounts))
    ]
    assert moved == sorted(moved)
    assert moved[0] + 0.001 < moved[1] < moved[2] < moved[3]


def test_black_and_white_has_no_colour_and_the_same_brightness() -> None:
    grey = edit("black_and_white")
    assert measure("saturation", grey) < 1e-6
    assert torch.allclose(edits.luma(grey), edits.luma(photo()), atol=1e-5)


def test_sepia_is_one_brown_hue() -> None:
    brown = edit("sepia")
    red, green, blue = brown[0]
    assert bool((red >= green).all())
    assert bool((green >= blue).all())
    unclipped = red < 1
    assert torch.allclose(green[unclipped] / 0.9, blue[unclipped] / 0.66, atol=1e-5)


def test_inverting_twice_or_changing_nothing_returns_the_photo() -> None:
    assert torch.equal(edit("unchanged"), photo())
    assert torch.allclose(edits.apply(edit("invert"), [Change("invert")]), photo(), atol=1e-6)
    assert measure("brightness", edit("invert")) == pytest.approx(
        1 - measure("brightness", photo()), abs=1e-5
    )


def test_grain_is_grey_and_has_its_standard_deviation() -> None:
    grey = torch.full((1, 3, 128, 128), 0.5)
    for amount, sigma in ((SLIGHT, 0.03), (PLAIN, 0.07), (STRONG, 0.12)):
        added = edits.grain(grey, amount) - grey
        assert torch.equal(added[:, 0], added[:, 2])
        assert float(added.std()) == pytest.approx(sigma, rel=0.01)


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_keeps_shape_and_range(name: str) -> None:
    image = edit(name, STRONG)
    assert image.shape == photo().shape
    assert 0 <= float(image.min()) <= float(image.max()) <= 1


def test_each_row_gets_its_own_changes_in_order() -> None:
    images = torch.cat((photo(), 1 - photo(), photo(), photo()))
    warm_negative = [Change("warmer"), Change("invert")]
    negative_warm = [Change("invert"), Change("warmer")]
    changes = [warm_negative, [Change("unchanged")], [], negative_warm]
    together = edits.apply_rows(images, changes)
    alone = [edits.apply(images[n : n + 1], row) for n, row in enumerate(changes)]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together[0], together[3])


def test_a_blur_wider_than_the_picture_keeps_its_shape() -> None:
    assert edits.gaussian(torch.rand(1, 3, 4, 6), 3.0).shape == (1, 3, 4, 6)
