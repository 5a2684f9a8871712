import io
import time

import pytest
from PIL import Image

from retouch.sources.trailing_bytes import trim


def encode(file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    noise = Image.effect_noise((64, 48), 90).convert("RGB")
    noise.save(buffer, file_format, **options)
    return buffer.getvalue()


FILES = {
    "jpeg": encode("JPEG", quality=95),
    "progressive": encode("JPEG", progressive=True),
    "restarts": encode("JPEG", restart_marker_blocks=1),
    "thumbnail": encode("JPEG", exif=b"Exif\0\0" + encode("JPEG")),
    "png": encode("PNG"),
    "webp": encode("WEBP"),
    "lossless webp": encode("WEBP", lossless=True),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("behind", [b"", b"\0", b"\xff\xd9" * 9, bytes(1 << 20), FILES["png"]])
def test_what_is_behind_the_end_is_cut_off(name: str, behind: bytes) -> None:
    assert trim(FILES[name] + behind) == FILES[name]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("cut", [1, 2, 20, 200])
def test_a_file_without_its_end_stays_as_it_is(name: str, cut: int) -> None:
    assert trim(FILES[name][:-cut]) == FILES[name][:-cut]


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xd8", b"GIF89a;tail", b"\xff\xd8\xff", b"RIFF", b"<html>"]
)
def test_any_other_file_stays_as_it_is(body: bytes) -> None:
    assert trim(body) == body


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xd8" + b"\xff\xfe\0\2" * 2_000_000,
        b"\xff\xd8" + b"\xff\x01" * 4_000_000,
        b"\xff\xd8" + b"\xff\0" * 4_000_000,
        b"\xff\xd8" + b"\xff" * 8_000_000,
        b"\x89PNG\r\n\x1a\n" + (b"\0\0\0\0tEXt" + bytes(4)) * 600_000,
    ],
)
def test_a_file_of_countless_parts_costs_little(body: bytes) -> None:
    began_s = time.process_time()
    assert trim(body) == body
    assert time.process_time() - began_s < 1
