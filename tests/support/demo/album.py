"""Pictures for the trainer's tests, cut from the page's sample photo."""

from pathlib import Path

import torch
from PIL import Image

from retouch.demo.photos import Album

SAMPLE = Path(__file__).parents[3] / "src" / "retouch" / "web" / "static" / "sample.jpg"


def write_pictures(folder: Path, count: int = 4, edge_px: int = 200) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(SAMPLE) as opened:
        photo = opened.convert("RGB")
    for number in range(count):
        left = number * (photo.width - edge_px) // max(1, count - 1)
        crop = photo.crop((left, 0, left + edge_px, edge_px))
        crop.save(folder / f"{number}.jpg", quality=95)
    return folder


def make_album(folder: Path) -> Album:
    return Album.load(sorted(write_pictures(folder).glob("*.jpg")), "cpu")


def photo(edge_px: int = 96) -> torch.Tensor:
    """The sample photo as (1, 3, h, w) in 0..1."""
    with Image.open(SAMPLE) as opened:
        small = opened.convert("RGB").resize((edge_px, edge_px), Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
    return pixels.view(1, edge_px, edge_px, 3).permute(0, 3, 1, 2) / 255
