import numpy as np
import pytest
import torch
from PIL import Image
from support.demo import measures

from retouch.demo import edits
from retouch.demo.edits import Change


def make_photo(seed: int = 0) -> measures.Pixels:
    """A smooth colour picture away from black and white, so that no edit clips."""
    coarse = np.random.default_rng(seed).integers(60, 180, (6, 6, 3), dtype=np.uint8)
    return measures.to_pixels(Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC))


PHOTO = make_photo()


def change(name: str, amount: float = 1.0, photo: measures.Pixels = PHOTO) -> measures.Pixels:
    torch.manual_seed(0)
    return measures.from_tensor(edits.apply(measures.to_tensor(photo), [Change(name, amount)]))


def test_converting_to_a_tensor_and_back_keeps_the_picture() -> None:
    tensor = measures.to_tensor(PHOTO)
    assert tensor.shape == (1, 3, 96, 96)
    assert (measures.from_tensor(tensor) == PHOTO).all()


def test_a_tenth_of_the_range_is_20_db_and_no_difference_is_100() -> None:
    assert measures.psnr_db(PHOTO, PHOTO + np.float32(0.1)) == pytest.approx(20, abs=1e-3)
    assert measures.psnr_db(PHOTO, PHOTO) == pytest.approx(100)


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (64, 64), (30, 20)])
def test_a_crop_has_the_given_size_and_keeps_the_centre(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size)
    image.paste("white", (size[0] // 2 - 4, size[1] // 2 - 4, size[0] // 2 + 4, size[1] // 2 + 4))
    crop = measures.crop_to(image, 64, 48)
    assert crop.size == (64, 48)
    assert measures.to_pixels(crop)[24, 32].min() > 0.9
    assert measures.to_pixels(crop)[0].max() < 0.1


@pytest.mark.parametrize("name", measures.DIRECTIONS)
def test_the_exact_edit_moves_its_measure_the_right_way(name: str) -> None:
    photo = change("grain", 0.5) if name in ("sharpen", "blur") else PHOTO
    assert measures.changed_by(name, photo, change(name, photo=photo)) > 0.003
    assert measures.changed_by(name, change(name, photo=photo), photo) < -0.003


def test_inverting_negates_the_correlation() -> None:
    assert measures.correlation(PHOTO, PHOTO) == pytest.approx(1)
    assert measures.correlation(PHOTO, change("invert")) == pytest.approx(-1, abs=1e-3)


def test_added_texture_finds_grain_apart_from_the_photos_own_detail() -> None:
    torch.manual_seed(1)
    noise = measures.from_tensor(edits.gaussian(torch.randn(1, 1, 96, 96), 1.4))
    noise = 0.1 * noise / noise.std()
    added = measures.added_texture(PHOTO, PHOTO + noise)
    assert 0.005 < measures.energy(added) < 0.01  # its coarse part does not count
    assert abs(measures.correlate(added, measures.fine(PHOTO))) < 0.2
    assert measures.energy(measures.added_texture(PHOTO, PHOTO + np.float32(0.1))) < 1e-6


WORDING = {"wording": "", "changes": {"brightness": 0.07}, "closer_db": 3.0}


@pytest.mark.parametrize(
    ("wanted", "changes", "closer_db", "faults"),
    [
        ({}, {"brightness": 0.08}, 3.5, 0),
        ({}, {"brightness": 0.06}, 3.5, 1),
        ({}, {"brightness": -0.08}, -3.5, 2),
        ({"changes": {"contrast": -0.06}}, {"contrast": -0.07}, 3.0, 0),
        ({"changes": {"contrast": -0.06}}, {"contrast": -0.05}, 3.0, 1),
        ({"changes": {}}, {}, 2.9, 1),
        ({"closer_db": 0}, {"brightness": 0.08}, -0.1, 1),
        ({"changes": {"grain": 0.5}, "closer_db": 0}, {"grain": 1.0}, -3.0, 0),
        ({"changes": {"grain": 0.5}, "closer_db": 0}, {"grain": 0.4}, -3.0, 1),
        ({"changes": {"grain": 0.5}, "closer_db": 0}, {"grain": 1.6}, -3.0, 1),
        ({"changes": {"psnr": 29.0}, "closer_db": 0}, {"psnr": 30.0}, -70.0, 0),
        ({"changes": {"psnr": 29.0}, "closer_db": 0}, {"psnr": 28.0}, -72.0, 1),
    ],
)
def test_a_wording_lists_the_bars_it_missed(
    wanted: dict[str, object], changes: dict[str, float], closer_db: float, faults: int
) -> None:
    assert len(measures.find_faults(WORDING | wanted, changes, closer_db)) == faults


def judge(
    result: float, before: float, limit: float, *, edit: str = "warmer", moved: float = 0.1
) -> list[bool]:
    row = np.array([[result, before, limit]] * 3)
    return [met for met, _ in measures.judge_edits({edit: row}, {edit: moved})]


@pytest.mark.parametrize(
    ("result", "before", "limit", "moved", "met"),
    [
        (31.0, 20.0, 32.0, 0.1, [True, True, True]),
        (30.4, 20.0, 32.0, 0.1, [False, True, True]),
        (27.9, 20.0, 29.0, 0.1, [True, False, True]),
        (31.0, 28.1, 35.0, 0.1, [False, True, False]),  # 6.9 dB of room: the gain counts
        (31.0, 28.1, 32.0, 0.1, [True, True, True]),  # 3.9 dB of room: the direction counts
        (31.0, 28.1, 32.0, -0.1, [True, True, False]),
    ],
)
def test_an_edit_is_judged_by_its_bars(
    result: float, before: float, limit: float, moved: float, met: list[bool]
) -> None:
    assert judge(result, before, limit, moved=moved) == met


def test_grain_and_blur_are_not_in_the_mean_but_blur_must_gain() -> None:
    good, bad = np.array([[31.0, 20.0, 32.0]]), np.array([[20.0, 21.0, 50.0]])
    verdicts = measures.judge_edits({"warmer": good, "grain": bad, "blur": bad}, {})
    assert [met for met, _ in verdicts] == [True, True, True, False]
    assert verdicts[-1][1] == "blur: closer by -1.0 dB, at least 3"


def test_the_unchanged_photo_has_a_bar_of_its_own() -> None:
    row = np.array([[28.9, np.nan, 30.0]])
    assert [met for met, _ in measures.judge_edits({"unchanged": row}, {})] == [True, True, False]
