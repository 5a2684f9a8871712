import struct
import zlib

import pytest
from PIL import Image, ImageCms
from support.images import samples
from support.images.samples import BLUE, GREEN, RED, WHITE, colour_of, near, png, saved

from retouch.images import decode

LIMITS = decode.Limits()
BLACK = (0, 0, 0)


def samples_of_16_bits(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


@pytest.mark.parametrize("value", [0, 255, 256, 25700, 40000, 65535])
def test_16_bit_gray_is_scaled_not_clipped(value: int) -> None:
    wanted = (round(value / 257),) * 3
    pixels = samples_of_16_bits(value)
    assert near(colour_of(png((1, 1), pixels, bit_depth=16, colour_type=0)), wanted, by=0)
    assert near(colour_of(saved(Image.new("I;16", (1, 1), value), "TIFF")), wanted, by=0)
    assert near(colour_of(saved(Image.new("I;16B", (1, 1), value), "TIFF")), wanted, by=0)


def test_16_bit_colour_and_alpha_are_scaled() -> None:
    rgb = png((1, 1), samples_of_16_bits(65535, 32896, 0), bit_depth=16, colour_type=2)
    assert colour_of(rgb) == (255, 128, 0)
    rgba = png((1, 1), samples_of_16_bits(0, 0, 0, 0x8080), bit_depth=16, colour_type=6)
    assert near(colour_of(rgba), (127, 127, 127), by=1)
    la = png((1, 1), samples_of_16_bits(0, 0x8080), bit_depth=16, colour_type=4)
    assert near(colour_of(la), (127, 127, 127), by=1)


def test_of_16_bit_colours_only_the_very_one_is_transparent() -> None:
    pixels = samples_of_16_bits(0, 0, 0, 0, 0, 1, 255, 255, 255, 256, 0, 0)
    key = (b"tRNS", samples_of_16_bits(0, 0, 0))
    body = png((4, 1), pixels, bit_depth=16, colour_type=2, chunks=(key,))
    decoded = decode.decode(body, LIMITS).image
    assert [decoded.getpixel((x, 0)) for x in range(4)] == [WHITE, BLACK, BLACK, (1, 0, 0)]


def test_one_bit_is_black_and_white() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    decoded = decode.decode(saved(image, "PNG"), LIMITS).image
    assert [decoded.getpixel((x, 0)) for x in range(2)] == [BLACK, WHITE]


@pytest.mark.parametrize(
    ("mode", "image_format", "pixel"),
    [
        ("RGBA", "PNG", (255, 0, 0, 0)),
        ("RGBA", "WEBP", (255, 0, 0, 0)),
        ("RGBA", "TIFF", (255, 0, 0, 0)),
        ("LA", "PNG", (0, 0)),
        ("LA", "TIFF", (0, 0)),
        ("PA", "TIFF", (7, 0)),
    ],
)
def test_transparent_pixels_become_white(
    mode: str, image_format: str, pixel: tuple[int, ...]
) -> None:
    decoded = decode.decode(saved(Image.new(mode, (4, 4), pixel), image_format), LIMITS)
    assert decoded.image.getpixel((0, 0)) == WHITE
    assert decoded.notes == ("transparent parts of the source were put on white",)


def test_an_opaque_alpha_channel_changes_nothing_without_a_note() -> None:
    decoded = decode.decode(saved(Image.new("RGBA", (4, 4), (9, 8, 7, 255)), "PNG"), LIMITS)
    assert (decoded.image.getpixel((0, 0)), decoded.notes) == ((9, 8, 7), ())


def test_premultiplied_gray_is_divided_by_its_alpha() -> None:
    body = saved(Image.new("LA", (1, 1), (100, 128)), "TIFF")
    unassociated, associated = struct.pack("<HHI", 338, 3, 1), 1
    at = body.index(unassociated) + len(unassociated)
    body = body[:at] + struct.pack("<H", associated) + body[at + 2 :]
    assert near(colour_of(body), (100 + 127,) * 3)  # its own light, and half of white


@pytest.mark.parametrize("alphas", [b"\xff\x00\xff", b"\xff\x00\x80"])
def test_palette_entries_can_be_transparent(alphas: bytes) -> None:
    palette = b"".join(bytes(colour) for colour in (RED, GREEN, BLUE))
    chunks = ((b"PLTE", palette), (b"tRNS", alphas))
    body = png((3, 1), b"\x00\x01\x02", bit_depth=8, colour_type=3, chunks=chunks)
    assert colour_of(body, (0, 0)) == RED
    assert colour_of(body, (1, 0)) == WHITE
    assert near(colour_of(body, (2, 0)), BLUE if alphas[2] == 255 else (127, 127, 255))


@pytest.mark.parametrize(
    ("bit_depth", "colour_type", "pixels", "key", "kept"),
    [
        (1, 0, b"\x40", (0,), WHITE),
        (2, 0, b"\x10", (0,), (85, 85, 85)),
        (2, 0, b"\xb0", (2,), WHITE),
        (4, 0, b"\x95", (9,), (85, 85, 85)),
        (8, 0, b"\x07\x08", (7,), (8, 8, 8)),
        (16, 0, samples_of_16_bits(300, 25700), (300,), (100, 100, 100)),
        (8, 2, bytes((1, 2, 3, 1, 2, 4)), (1, 2, 3), (1, 2, 4)),
        (16, 2, samples_of_16_bits(256, 512, 768, 256, 512, 1024), (256, 512, 768), (1, 2, 4)),
    ],
)
def test_a_transparent_colour_is_found_at_every_depth(
    bit_depth: int, colour_type: int, pixels: bytes, key: tuple[int, ...], kept: tuple[int, ...]
) -> None:
    chunks = ((b"tRNS", samples_of_16_bits(*key)),)
    body = png((2, 1), pixels, bit_depth=bit_depth, colour_type=colour_type, chunks=chunks)
    decoded = decode.decode(body, LIMITS)
    assert decoded.notes == ("transparent parts of the source were put on white",)
    assert decoded.image.getpixel((0, 0)) == WHITE
    assert decoded.image.getpixel((1, 0)) == kept


@pytest.mark.parametrize("colour", [RED, GREEN, BLUE, WHITE, BLACK])
def test_cmyk_without_a_profile_is_converted_closely(colour: tuple[int, int, int]) -> None:
    ink = Image.new("RGB", (16, 16), colour).convert("CMYK")
    assert near(colour_of(saved(ink, "JPEG", quality=100)), colour, by=4)
    assert near(colour_of(saved(ink, "TIFF")), colour, by=1)


@pytest.mark.parametrize("colour", [(200, 60, 60), (60, 180, 80), (90, 90, 200), WHITE, BLACK])
def test_lab_is_converted_to_its_colour(colour: tuple[int, int, int]) -> None:
    rgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    transform = ImageCms.buildTransform(rgb, lab, "RGB", "LAB")
    body = saved(transform.apply(Image.new("RGB", (4, 4), colour)), "TIFF")
    assert near(colour_of(body), colour, by=5)


@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_cmyk_is_converted_by_its_profile(image_format: str) -> None:
    profile = samples.cmyk_profile(always=(60, 40, -40))
    ink = Image.new("CMYK", (16, 16), (50, 60, 70, 80))
    body = saved(ink, image_format, icc_profile=profile)
    assert near(colour_of(body), (186, 118, 216))  # CIELAB (60, 40, -40) at D50


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_an_embedded_profile_is_applied(image_format: str) -> None:
    profile = samples.swapped_profile()
    body = saved(Image.new("RGB", (16, 16), RED), image_format, icc_profile=profile, quality=100)
    assert near(colour_of(body), GREEN, by=6)


def test_a_profile_holds_under_transparency() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0, 0))
    body = saved(image, "PNG", icc_profile=samples.swapped_profile())
    assert near(colour_of(body), GREEN, by=3)
    assert colour_of(body, (1, 0)) == WHITE


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("profile", [b"not a profile", samples.srgb_profile()])
def test_a_profile_that_is_bad_or_does_not_fit_is_ignored(mode: str, profile: bytes) -> None:
    body = saved(
        Image.new("RGB", (16, 16), (90, 90, 90)).convert(mode), "JPEG", icc_profile=profile
    )
    assert near(colour_of(body), (90, 90, 90), by=3)


@pytest.mark.parametrize(
    ("chunks", "wanted"),
    [
        ((b"gAMA", 45455), 100),
        ((b"gAMA", 100000), round(255 * (100 / 255) ** 0.45455)),
        ((b"gAMA", 0), 100),
    ],
)
def test_the_gamma_of_a_png_is_applied(chunks: tuple[bytes, int], wanted: int) -> None:
    gamma = (chunks[0], struct.pack(">I", chunks[1]))
    body = png((1, 1), b"\x64", bit_depth=8, colour_type=0, chunks=(gamma,))
    assert near(colour_of(body), (wanted,) * 3, by=1)


def test_a_png_that_says_srgb_needs_no_gamma() -> None:
    chunks = ((b"gAMA", struct.pack(">I", 100000)), (b"sRGB", b"\0"))
    assert colour_of(png((1, 1), b"\x64", bit_depth=8, colour_type=0, chunks=chunks)) == (100,) * 3


# --- colors by number (the values that Chromium 151 shows) ----------------------------------------


@pytest.mark.parametrize(
    ("codes", "pixel", "wanted"),
    [
        ((1, 13), (200, 60, 60), (200, 60, 60)),
        ((2, 2), (200, 60, 60), (200, 60, 60)),
        ((12, 13), (200, 60, 60), (217, 42, 52)),
        ((12, 13), (60, 200, 60), (0, 203, 11)),
        ((9, 13), (180, 150, 120), (198, 146, 115)),
        ((6, 13), (200, 60, 60), (195, 66, 59)),
        ((4, 13), (60, 60, 200), (4, 81, 206)),
        ((1, 8), (128, 128, 128), (188, 188, 188)),
        ((1, 1), (128, 128, 128), (121, 121, 121)),
        ((1, 4), (64, 64, 64), (62, 62, 62)),
        ((9, 99), (180, 150, 120), (180, 150, 120)),
    ],
)
def test_a_png_is_converted_by_its_color_codes(
    codes: tuple[int, int], pixel: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    profile = (b"iCCP", b"swapped\0\0" + zlib.compress(samples.swapped_profile()))
    chunks = ((b"cICP", bytes((*codes, 0, 1))), profile)  # the codes outrank the profile
    body = png((1, 1), bytes(pixel), bit_depth=8, colour_type=2, chunks=chunks)
    decoded = decode.decode(body, LIMITS)
    assert near(decoded.image.getpixel((0, 0)), wanted)
    assert decoded.notes == ()


CODES = samples.chunk(b"cICP", bytes((9, 16, 0, 1)))
LIGHT = struct.pack(">I", 100_000)


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        (CODES[:-1] + bytes([CODES[-1] ^ 1]), b""),
        (b"", CODES),
        (samples.chunk(b"cICP", b""), b""),
        (samples.chunk(b"cICP", b"\x09"), b""),
        (samples.chunk(b"cICP", bytes((9, 16, 0, 1, 0))), b""),
        (samples.chunk(b"cICP", bytes((9, 16, 0, 0))), b""),
        (samples.chunk(b"cICP", bytes((1, 13, 0, 1))) + CODES, b""),
        (samples.chunk(b"gAMA", LIGHT + b"\0"), b""),
        (samples.chunk(b"gAMA", LIGHT) + samples.chunk(b"sRGB", b"\0"), b""),
        (samples.chunk(b"gAMA", struct.pack(">I", 45455)) + samples.chunk(b"gAMA", LIGHT), b""),
    ],
)
def test_a_png_is_converted_only_by_sound_chunks_and_the_first(
    before: bytes, behind: bytes
) -> None:
    body = png((1, 1), bytes((200, 100, 50)), bit_depth=8, colour_type=2)
    body = body[:33] + before + body[33:-12] + behind + body[-12:]
    assert colour_of(body) == (200, 100, 50)


@pytest.mark.parametrize(
    ("transfer", "seen"),
    [
        (16, {0: 0, 64: 30, 96: 70, 128: 132, 144: 175, 160: 213, 192: 255, 255: 255}),
        (18, {0: 0, 64: 43, 128: 99, 160: 135, 192: 189, 224: 228, 255: 255}),
    ],
)
def test_hdr_tones_are_mapped_as_chromium_does_with_a_note(
    transfer: int, seen: dict[int, int]
) -> None:
    for value, wanted in seen.items():
        chunks = ((b"cICP", bytes((9, transfer, 0, 1))),)
        body = png((1, 1), bytes([value] * 3), bit_depth=8, colour_type=2, chunks=chunks)
        decoded = decode.decode(body, LIMITS)
        assert near(decoded.image.getpixel((0, 0)), (wanted,) * 3, by=8)
        assert decoded.notes == ("the HDR tones of the source were mapped to standard range",)


@pytest.mark.parametrize(
    ("nclx", "shown_as"), [((9, 16), (9, 16)), ((12, 13), (12, 13)), ((9, 14), (9, 13))]
)
def test_an_avif_is_converted_by_its_color_codes(
    nclx: tuple[int, int], shown_as: tuple[int, int]
) -> None:
    body = saved(Image.new("RGB", (16, 16), (180, 150, 120)), "AVIF", quality=100)
    at = body.index(b"colrnclx") + 8
    body = body[:at] + struct.pack(">HH", *nclx) + body[at + 4 :]
    chunks = ((b"cICP", bytes((*shown_as, 0, 1))),)
    same = png((1, 1), bytes((180, 150, 120)), bit_depth=8, colour_type=2, chunks=chunks)
    assert near(colour_of(body), colour_of(same), by=4)


def chromaticities(*values: float) -> tuple[bytes, bytes]:
    return b"cHRM", struct.pack(">8I", *(round(100_000 * value) for value in values))


P3 = chromaticities(0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)


@pytest.mark.parametrize(
    ("chunks", "wanted"),
    [
        (((b"gAMA", struct.pack(">I", 45455)), P3), (219, 37, 49)),
        (((b"gAMA", struct.pack(">I", 100_000)), P3), (244, 127, 130)),
        ((P3,), (200, 60, 60)),
        (((b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 45455)), P3), (200, 60, 60)),
        (((b"gAMA", struct.pack(">I", 45455)), chromaticities(*[0] * 8)), (200, 60, 60)),
        (((b"gAMA", struct.pack(">I", 45455)), chromaticities(*[0.3] * 8)), (200, 60, 60)),
    ],
)
def test_the_chromaticities_of_a_png_are_applied_with_its_gamma(
    chunks: tuple[tuple[bytes, bytes], ...], wanted: tuple[int, ...]
) -> None:
    body = png((1, 1), bytes((200, 60, 60)), bit_depth=8, colour_type=2, chunks=chunks)
    assert near(colour_of(body), wanted)


# --- orientation -----------------------------------------------------------------------------

UNTURNED = {  # what a camera stored so that the tag turns it upright
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", UNTURNED)
def test_every_orientation_comes_out_upright(image_format: str, orientation: int) -> None:
    upright = samples.quarters().resize((64, 32), Image.Resampling.NEAREST)
    turn = UNTURNED[orientation]
    stored = upright.transpose(turn) if turn is not None else upright
    decoded = decode.decode(saved(stored, image_format, exif=samples.oriented(orientation)), LIMITS)
    assert (decoded.width_px, decoded.height_px) == decoded.image.size == (64, 32)
    corners = [decoded.image.getpixel(at) for at in ((8, 8), (56, 8), (8, 24), (56, 24))]
    assert all(near(*pair, by=40) for pair in zip(corners, (RED, GREEN, BLUE, WHITE), strict=True))


def test_the_own_size_is_upright_before_the_reduction() -> None:
    body = saved(Image.new("RGB", (200, 100)), "JPEG", exif=samples.oriented(6))
    decoded = decode.decode(body, decode.Limits(working_pixels=5000))
    assert (decoded.width_px, decoded.height_px, decoded.image.size) == (100, 200, (50, 100))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0", samples.oriented(9), b"\xff" * 40]
)
def test_bad_exif_turns_nothing(exif: bytes) -> None:
    body = saved(samples.quarters(), "WEBP", lossless=True, exif=exif)
    assert colour_of(body) == RED
