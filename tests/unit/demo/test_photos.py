from pathlib import Path

from support.demo.measures import HELD_OUT

from retouch.demo import photos


def test_no_benchmark_photo_is_a_training_picture() -> None:
    source = Path(photos.__file__).read_text().lower()
    assert [name for name in HELD_OUT if name in source] == []


def test_every_picture_has_a_licence() -> None:
    wheels = [one for wheel in photos.PYPI.values() for one in wheel.values()]
    assert all([*photos.DEBIAN.values(), *wheels])
