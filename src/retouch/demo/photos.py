"""The training pictures: from freely licensed packages, downloaded by name, not kept in the repository.

The benchmark's photographs are never among them.
"""

import bz2
import io
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy import typing as npt
from PIL import Image
from torch import Tensor
from torch.nn import functional

DEBIAN = {
    "gnome-backgrounds": "CC BY-SA 2.0 and 3.0, CC BY 2.0",
    "mate-backgrounds": "GPL-2+, CC BY-SA 4.0",
    "lomiri-wallpapers": "CC BY-SA 3.0",
    "lomiri-wallpapers-16.04": "CC BY 4.0, CC BY-SA 4.0, CC0",
    "lomiri-wallpapers-20.04": "CC BY-SA 3.0",
    "plasma-workspace-wallpapers": "GPL-2+",
    "ukui-wallpapers": "CC BY-SA 3.0",
    "gcompris-qt-data": "GPL-3+, CC BY, CC BY-SA, CC0, public domain",
}
"""Debian packages, and the licences of their pictures according to their copyright files."""
PYPI = {
    "scikit-image==0.26.0": {
        "skimage/data/rocket.jpg": "CC0",
        "skimage/data/motorcycle_left.png": "CC0",
        "skimage/data/hubble_deep_field.jpg": "public domain (NASA)",
    },
    "matplotlib==3.11.2": {
        "matplotlib/mpl-data/sample_data/grace_hopper.jpg": "public domain (US Navy)",
    },
    "scipy==1.9.3": {"scipy/misc/face.dat": "public domain"},
}
"""Wheels, and the pictures used from each with their licences."""

_QT_RESOURCES = re.compile(r"(explore_(monuments|\w+_animals|world_music)|erase|clickgame)\.rcc")
_SHORT_SIDE_PX = 720
_MIN_SIDE_PX = 400
_CROP_PX = 160
_FACE_SHAPE = (768, 1024, 3)  # scipy's raccoon is stored as raw bytes: (h, w, c)


def _run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True)  # noqa: S603 - only package names vary


def _open_debian(folder: Path) -> Iterator[tuple[str, Image.Image]]:
    for package in DEBIAN:
        unpacked = folder / package
        if not unpacked.exists():
            _run(folder, "apt-get", "download", "-q", package)
            archive, partial = next(folder.glob(f"{package}_*.deb")), folder / "unpacking"
            _run(folder, "dpkg", "-x", archive.name, partial.name)
            partial.rename(unpacked)
        for path in sorted(unpacked.rglob("*")):
            if path.is_symlink() or "screenshot" in path.name:
                continue
            if path.suffix in {".jpg", ".jpeg", ".png", ".webp"}:
                yield package, Image.open(io.BytesIO(path.read_bytes()))
            elif _QT_RESOURCES.fullmatch(path.name):
                yield from ((package, picture) for picture in _read_resource(path.read_bytes()))


def _read_resource(resource: bytes) -> Iterator[Image.Image]:
    """Yield the WebP pictures in a compiled Qt resource, which stores them uncompressed."""
    for found in re.finditer(rb"RIFF(....)WEBPVP8", resource, re.DOTALL):
        size = int.from_bytes(found[1], "little") + 8
        yield Image.open(io.BytesIO(resource[found.start() : found.start() + size]))


def _open_pypi(folder: Path) -> Iterator[tuple[str, Image.Image]]:
    for package, names in PYPI.items():
        stem = package.split("==")[0].replace("-", "_")
        if not list(folder.glob(f"{stem}-*.whl")):
            pip = (sys.executable, "-m", "pip", "download", "-q", "--no-deps")
            _run(folder, *pip, "--only-binary=:all:", "--python-version=3.11", package)
        with zipfile.ZipFile(next(folder.glob(f"{stem}-*.whl"))) as wheel:
            for name in names:
                content = wheel.read(name)
                if name.endswith("face.dat"):
                    raw = np.frombuffer(bz2.decompress(content), np.uint8)
                    yield package, Image.fromarray(raw.reshape(_FACE_SHAPE))
                else:
                    yield package, Image.open(io.BytesIO(content))


def _shrink(picture: Image.Image) -> Image.Image:
    scale = min(1, _SHORT_SIDE_PX / min(picture.size))
    size = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)


def fetch(folder: Path) -> int:
    """Download JPEGs with a short side of at most 720 px into `folder`; return their number.

    Needs Debian 12's apt and pip. Skips pictures under 400 px, and duplicates (equal at 6x6 px and 16
    levels). They appear in `folder` at the end, so an interrupted download leaves it empty.

    Raises:
        subprocess.CalledProcessError: a package could not be downloaded.
    """
    packages, ready = folder / "packages", folder / "packages" / "ready"
    ready.mkdir(parents=True, exist_ok=True)
    seen: set[bytes] = set()
    for package, opened in chain(_open_debian(packages), _open_pypi(packages)):
        if min(opened.size) < _MIN_SIDE_PX:
            continue
        picture = opened.convert("RGB")
        thumbnail = bytes(value >> 4 for value in picture.resize((6, 6)).tobytes())
        if thumbnail not in seen:
            seen.add(thumbnail)
            name = f"{package.split('==')[0]}-{len(seen):03d}.jpg"
            _shrink(picture).save(ready / name, quality=92, subsampling=0)
    for path in ready.iterdir():
        path.rename(folder / path.name)
    return len(seen)


def _read_scaled(path: Path, scales: tuple[float, ...]) -> list[npt.NDArray[np.uint8]]:
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    sizes = [(round(picture.width * scale), round(picture.height * scale)) for scale in scales]
    return [
        np.asarray(picture.resize(size, Image.Resampling.LANCZOS))
        for size in sizes
        if min(size) >= _CROP_PX
    ]


@dataclass(frozen=True, slots=True)
class Album:
    """All pictures at three scales in one flat tensor on the device, so that a crop is one index."""

    pixels: Tensor  # (n,) uint8: each picture (3, h, w) flattened
    heights: Tensor  # (pictures,)
    widths: Tensor
    starts: Tensor

    @classmethod
    def load(
        cls, paths: list[Path], device: str, scales: tuple[float, ...] = (1.0, 0.7, 0.5)
    ) -> "Album":
        """Read the pictures at every scale that leaves a short side of at least 160 px."""
        with ThreadPoolExecutor() as pool:
            scaled = pool.map(lambda path: _read_scaled(path, scales), paths)
            arrays = [array for pictures in scaled for array in pictures]
        heights = torch.tensor([array.shape[0] for array in arrays], device=device)
        widths = torch.tensor([array.shape[1] for array in arrays], device=device)
        flat = np.concatenate([array.transpose(2, 0, 1).ravel() for array in arrays])
        sizes = heights * widths * 3
        return cls(torch.from_numpy(flat).to(device), heights, widths, sizes.cumsum(0) - sizes)

    def crops(self, count: int, height: int, width: int) -> Tensor:
        """Cut random crops, half of them mirrored: (count, 3, height, width) in 0..1.

        At least one picture must be that large.
        """
        device = self.pixels.device
        fits = ((self.heights >= height) & (self.widths >= width)).nonzero()[:, 0]
        which = fits[torch.randint(len(fits), (count,), device=device)]
        tall, wide = self.heights[which], self.widths[which]
        top = (torch.rand(count, device=device) * (tall - height + 1)).long()
        left = (torch.rand(count, device=device) * (wide - width + 1)).long()
        across = torch.arange(width, device=device).expand(count, -1)
        mirrored = torch.rand(count, 1, device=device) < 0.5  # noqa: PLR2004
        across = torch.where(mirrored, width - 1 - across, across)
        first = (self.starts[which] + top * wide + left)[:, None, None, None]
        plane = torch.arange(3, device=device)[:, None, None] * (tall * wide)[:, None, None, None]
        down = torch.arange(height, device=device)[:, None] * wide[:, None, None, None]
        index = first + plane + down + across[:, None, None]  # (count, 3, height, width)
        return self.pixels[index].float() / 255

    def augmented(self, count: int, height: int, width: int) -> Tensor:
        """Cut crops and augment them: channels permuted, exposure changed, 5 % random colours only.

        Shapes are those of `crops`.
        """
        images = self.crops(count, height, width)
        device = images.device
        order = torch.rand(count, 3, device=device).argsort(1)
        keep = torch.rand(count, 1, device=device) > 0.3  # noqa: PLR2004
        order = torch.where(keep, torch.arange(3, device=device), order)
        images = images.gather(1, order[:, :, None, None].expand_as(images))
        for row in (torch.rand(count) < 0.05).nonzero()[:, 0].tolist():  # noqa: PLR2004
            coarse = torch.rand(1, 3, *torch.randint(2, 12, (2,)).tolist(), device=device)
            mode = ("bilinear", "nearest")[row % 2]
            images[row] = functional.interpolate(coarse, size=(height, width), mode=mode)[0]
        gain = 0.5 + 0.6 * torch.rand(count, 1, 1, 1, device=device)
        shift = 0.2 * (torch.rand(count, 1, 1, 1, device=device) - 0.5)
        shift = shift + 0.1 * (torch.rand(count, 3, 1, 1, device=device) - 0.5)
        changed = torch.rand(count, 1, 1, 1, device=device) < 0.3  # noqa: PLR2004
        return torch.where(changed, images * gain + shift, images).clamp(0, 1)
