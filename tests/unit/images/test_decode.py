import struct
import zlib
from io import BytesIO
from typing import Any

import pytest
from PIL import Image
from support.images import samples
from support.images.samples import BLUE, GREEN, RED, WHITE, colour_of, mean_difference, near, saved

from retouch import errors
from retouch.images import decode, encode

LIMITS = decode.Limits()


def kind(name: str) -> str:
    return name.partition(" ")[0]


# --- formats ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", samples.samples())
def test_every_accepted_kind_decodes_to_rgb_of_its_own_size(name: str) -> None:
    decoded = decode.decode(samples.samples()[name], LIMITS)
    assert decoded.format == kind(name)
    assert decoded.image.mode == "RGB"
    assert decoded.image.size == (decoded.width_px, decoded.height_px)
    assert type(decoded.image) is Image.Image
    assert decoded.image.info == {}
    assert not decoded.image.getexif()
    said = "only the first frame of the source was used" in decoded.notes
    assert said == ("animated" in name)


@pytest.mark.parametrize("name", ["png animated", "gif animated", "webp animated", "avif animated"])
def test_an_animation_gives_its_first_frame(name: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    body = saved(frames[0], kind(name).upper(), save_all=True, append_images=frames[1:])
    assert near(colour_of(body), RED, by=3)


def test_damage_behind_the_first_frame_does_not_matter() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN)]
    body = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    cut = body[: body.rindex(b"\x2c") + 4]  # inside the second frame's descriptor
    assert decode.decode(cut, LIMITS).notes == ()


def test_a_tiff_gives_its_first_page_with_a_note() -> None:
    pages = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    decoded = decode.decode(saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]), LIMITS)
    assert decoded.image.getpixel((0, 0)) == RED
    assert decoded.notes == ("only the first frame of the source was used",)


def test_an_avif_may_name_its_brand_second() -> None:
    body = saved(samples.photo(), "AVIF").replace(b"ftypavif", b"ftypmif1", 1)
    assert decode.decode(body, LIMITS).format == "avif"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "an empty file"),
        (b"<svg/>", "SVG"),
        (b"<?xml version='1.0'?><!-- a --><svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<?xml version='1.0'?><Error/>", "XML"),
        (b"\r\n<!DOCTYPE html><title>a</title>", "a web page"),
        (b"\xef\xbb\xbf<html>", "a web page"),
        (b"<title>Not found</title>", "a web page"),
        (b"<?xml version='1.0'?>\n<html xmlns='http://www.w3.org/1999/xhtml'/>", "a web page"),
        (b'{"error": "gone"}', "JSON"),
        (b'\xef\xbb\xbf{"error": "gone"}', "JSON"),
        (b"Not Found", "text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64, "text"),
        (b"PK\3\4", "an archive"),
        (b"\x1f\x8b\x08", "a compressed file"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "a camera's raw file"),
        (b"%PDF-1.7", "PDF"),
        (b"\n%PDF-1.7", "PDF"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (saved(samples.photo(), "JPEG2000"), "JPEG 2000"),
        (b"8BPS\0\1", "a Photoshop file"),
        (saved(samples.photo(), "ICO"), "an icon"),
        (b"\0\0\0\x18ftypisom", "a video"),
    ],
)
def test_a_known_format_that_is_not_accepted_is_refused_by_name(body: bytes, kind: str) -> None:
    listed = "one of jpeg, png, webp, gif, bmp, tiff, avif, heif: it is "
    with pytest.raises(errors.UnsupportedImage, match=f"{listed}{kind}"):
        decode.decode(body, LIMITS)


def test_an_unknown_format_is_refused_with_the_list_of_those_accepted() -> None:
    with pytest.raises(
        errors.UnsupportedImage, match=r"in one of jpeg, png, webp, gif, bmp, tiff, avif, heif$"
    ):
        decode.decode(saved(samples.photo(), "PPM"), LIMITS)


@pytest.mark.filterwarnings("ignore:Truncated File Read", "ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", [name for name in samples.samples() if "mpo" not in name])
def test_a_truncated_picture_is_refused(name: str) -> None:
    body = samples.samples()[name]
    kept = len(body) // (4 if "animated" in name else 2)  # inside the first frame
    if name == "gif animated":
        kept = 900
    with pytest.raises(errors.BrokenImage, match=f"cannot be read as {kind(name)}$"):
        decode.decode(body[:kept], LIMITS)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_that_lacks_only_its_end_marker_is_decoded_with_a_note(
    mode: str, progressive: bool
) -> None:
    body = saved(samples.photo().convert(mode), "JPEG", progressive=progressive)
    for missing in (1, 2):
        decoded = decode.decode(body[:-missing], LIMITS)
        assert decoded.notes == ("the very end of the source file is missing",)
        assert decoded.image.tobytes() == decode.decode(body, LIMITS).image.tobytes()


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_more_than_its_end_marker_is_refused(progressive: bool) -> None:
    body = saved(samples.photo(), "JPEG", progressive=progressive)
    scans = [at for at in range(len(body)) if body[at : at + 2] == b"\xff\xda"]
    for kept in (len(body) - 3, len(body) - 9, len(body) - 40, *scans):
        with pytest.raises(errors.BrokenImage):
            decode.decode(body[:kept], LIMITS)


def test_a_jpeg_that_lacks_a_hundredth_of_its_rows_is_decoded_with_a_note() -> None:
    whole = samples.photo(96, 1700)
    decoded = decode.decode(saved(whole, "JPEG", quality=90)[:-60], LIMITS)
    assert decoded.notes == ("the very end of the source file is missing",)
    assert mean_difference(decoded.image, whole) < 5


def test_a_png_whose_frames_are_out_of_order_gives_its_image() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN)]
    body = saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    at = body.index(b"fcTL") - 4
    decoded = decode.decode(body[:at] + body[at + 38 :], LIMITS)
    assert decoded.image.getpixel((0, 0)) == RED
    assert decoded.notes == ("only the first frame of the source was used",)


def test_a_png_with_an_image_before_its_animation_gives_the_first_frame() -> None:
    first, *frames = (Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE))
    body = saved(first, "PNG", save_all=True, append_images=frames, default_image=True)
    decoded = decode.decode(body, LIMITS)
    assert decoded.image.getpixel((0, 0)) == GREEN
    assert decoded.notes == ("only the first frame of the source was used",)


def test_a_png_whose_animation_is_not_announced_is_a_single_image() -> None:
    first, *frames = (Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE))
    body = saved(first, "PNG", save_all=True, append_images=frames, default_image=True)
    at = body.index(b"acTL") - 4
    decoded = decode.decode(body[:at] + body[at + 20 :], LIMITS)
    assert (decoded.image.getpixel((0, 0)), decoded.notes) == (RED, ())


def test_a_png_that_announces_impossibly_many_frames_is_a_single_image() -> None:
    first, *frames = (Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE))
    body = bytearray(saved(first, "PNG", save_all=True, append_images=frames, default_image=True))
    at = body.index(b"acTL")
    body[at + 4] = 0x80
    struct.pack_into(">I", body, at + 12, zlib.crc32(body[at : at + 12]))
    decoded = decode.decode(bytes(body), LIMITS)
    assert (decoded.image.getpixel((0, 0)), decoded.notes) == (RED, ())


def test_a_png_is_not_made_transparent_by_a_chunk_behind_its_pixels() -> None:
    body = saved(Image.new("L", (16, 16), 0), "PNG")
    data = b"tRNS\0\0"
    chunk = struct.pack(">I", 2) + data + struct.pack(">I", zlib.crc32(data))
    assert near(colour_of(body[:-12] + chunk + body[-12:]), (0, 0, 0), by=0)


def test_a_png_that_lacks_only_its_end_marker_is_decoded_with_a_note() -> None:
    body = samples.samples()["png"]
    for kept in (12, 16):  # the end marker, and before it a checksum
        decoded = decode.decode(body[:-kept], LIMITS)
        assert decoded.notes == ("the very end of the source file is missing",)
        assert decoded.image.tobytes() == decode.decode(body, LIMITS).image.tobytes()


def test_a_png_that_lacks_rows_is_refused() -> None:
    with pytest.raises(errors.BrokenImage):
        decode.decode(samples.samples()["png"][:-40], LIMITS)


PHYS, TEXT = struct.pack(">IIB", 2835, 2835, 1), b"Comment\0" + bytes(9)


@pytest.mark.parametrize(
    ("name", "data", "checksum"),
    [
        (b"pHYs", PHYS, b"bad!"),
        (b"tEXt", TEXT, b"bad!"),
        (b"gAMA", bytes(4), b"bad!"),
        (b"zTXt", b"Comment\0\x07" + zlib.compress(b"text"), None),
        (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1_200_000)), None),
        (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(1_200_000)), None),
        (b"iCCP", b"profile\0\0" + zlib.compress(bytes(1_200_000)), None),
        (b"iCCP", b"profile\0\7" + zlib.compress(samples.srgb_profile()), None),
        (b"iCCP", b"profile", None),
        (b"cHRM", bytes(7), None),
        (b"sRGB", b"", None),
        (b"tRNS", b"", None),
        (b"tRNS", bytes(2), None),
    ],
)
def test_a_png_with_a_bad_or_huge_ancillary_chunk_is_decoded_without_it(
    name: bytes, data: bytes, checksum: bytes | None
) -> None:
    body = samples.samples()["png"]
    chunk = samples.chunk(name, data)
    if checksum:
        chunk = chunk[:-4] + checksum
    for at in (33, len(body) - 12):
        decoded = decode.decode(body[:at] + chunk + body[at:], LIMITS)
        assert decoded.image.tobytes() == decode.decode(body, LIMITS).image.tobytes()
        assert decoded.notes == ()


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE"])
def test_a_png_with_a_damaged_critical_chunk_is_refused(name: bytes) -> None:
    body = bytearray(samples.samples()["png palette"])
    at = body.index(name)
    body[at + 4 + int.from_bytes(body[at - 4 : at], "big")] ^= 1
    with pytest.raises(errors.BrokenImage):
        decode.decode(bytes(body), LIMITS)


def test_a_gif_whose_first_frame_is_small_is_clear_around_it() -> None:
    inside = saved(Image.new("P", (4, 4), 1), "GIF")
    screen = inside[:6] + struct.pack("<HH", 8, 8) + inside[10:]
    frame = screen.index(b"\x2c\0\0\0\0")
    body = screen[: frame + 1] + struct.pack("<HH", 2, 2) + screen[frame + 5 :]
    decoded = decode.decode(body, LIMITS)
    assert decoded.image.size == (8, 8)
    assert decoded.image.getpixel((0, 0)) == WHITE
    assert decoded.image.getpixel((7, 7)) == WHITE
    assert decoded.image.getpixel((3, 3)) != WHITE
    assert decoded.notes == ("transparent parts of the source were put on white",)


# --- HEIF ------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_photo_in_heic_is_decoded_upright(orientation: int) -> None:
    body = samples.heic(samples.photo(64, 48), exif=samples.oriented(orientation))
    decoded = decode.decode(body, LIMITS)
    turned = orientation in (6, 8)
    assert (decoded.width_px, decoded.height_px) == ((48, 64) if turned else (64, 48))
    assert decoded.image.size == (decoded.width_px, decoded.height_px)
    assert (decoded.format, decoded.notes) == ("heif", ())


def test_a_heic_with_a_profile_is_converted_by_it() -> None:
    red = Image.new("RGB", (64, 64), RED)
    red.info["icc_profile"] = samples.swapped_profile()
    assert near(colour_of(samples.heic(red, quality=100)), GREEN, by=8)


def test_heif_in_another_coding_is_refused_by_its_name() -> None:
    body = samples.heic(samples.photo()).replace(b"hvc1", b"vvc1")
    with pytest.raises(errors.UnsupportedImage, match="HEIF with VVC images"):
        decode.decode(body, LIMITS)


def test_the_head_of_a_heic_names_its_format() -> None:
    head = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(8)
    with pytest.raises(errors.BrokenImage, match="heif"):
        decode.decode(head, LIMITS)


def test_a_message_shows_nothing_of_pillow() -> None:
    with pytest.raises(errors.BrokenImage) as refusal:
        decode.decode(b"BM" + bytes(100), LIMITS)
    assert refusal.value.message == (
        "the image is damaged, truncated or of an unusual kind: it cannot be read as bmp"
    )


# --- limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_the_pixel_limit_is_exact_and_names_its_setting(image_format: str) -> None:
    body = saved(Image.new("RGB", (50, 40)), image_format)
    assert decode.decode(body, decode.Limits(max_pixels=2000)).width_px == 50
    with pytest.raises(errors.ImageTooLarge, match="MAX_IMAGE_PIXELS allows 1999"):
        decode.decode(body, decode.Limits(max_pixels=1999))


def test_a_jpeg_may_have_four_times_the_pixels() -> None:
    body = saved(Image.new("RGB", (80, 100)), "JPEG")
    assert decode.decode(body, decode.Limits(max_pixels=2000)).height_px == 100
    with pytest.raises(errors.ImageTooLarge, match="MAX_IMAGE_PIXELS allows 7996 in a JPEG"):
        decode.decode(body, decode.Limits(max_pixels=1999))


def test_a_large_jpeg_is_scaled_while_it_is_decoded_and_keeps_its_own_size() -> None:
    whole = samples.photo(640, 480)
    limits = decode.Limits(working_pixels=20_000)
    decoded = decode.decode(saved(whole, "JPEG", quality=95, exif=samples.oriented(6)), limits)
    assert (decoded.width_px, decoded.height_px) == (480, 640)
    assert decoded.image.size == (122, 163)
    assert decoded.notes == ("the source was reduced to 122 x 163 before the edit",)
    wanted = whole.transpose(Image.Transpose.ROTATE_270).resize((122, 163), Image.Resampling.BOX)
    assert mean_difference(decoded.image, wanted) < 2


def test_a_canvas_that_pillow_itself_refuses_is_too_large() -> None:
    with pytest.raises(errors.ImageTooLarge, match="MAX_IMAGE_PIXELS allows 52000000"):
        decode.decode(samples.wide_webp(16383, 16383), LIMITS)


def test_a_side_is_limited() -> None:
    body = saved(Image.new("L", (101, 50)), "PNG")
    assert decode.decode(body, decode.Limits(max_side_px=101)).width_px == 101
    with pytest.raises(errors.ImageTooLarge, match="a side may have at most 100"):
        decode.decode(body, decode.Limits(max_side_px=100))


@pytest.mark.parametrize("size", [(200, 10), (10, 200)])
def test_a_strip_is_refused(size: tuple[int, int]) -> None:
    body = saved(Image.new("L", size), "PNG")
    assert decode.decode(body, decode.Limits(max_aspect=20)).image.size == size
    with pytest.raises(errors.AspectRatioTooExtreme, match=r"at most 19\.5 times the shorter"):
        decode.decode(body, decode.Limits(max_aspect=19.5))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_an_image_over_the_working_size_is_reduced_with_a_note(mode: str) -> None:
    body = saved(Image.new(mode, (200, 100)), "PNG")
    decoded = decode.decode(body, decode.Limits(working_pixels=5000))
    assert decoded.image.size == (100, 50)
    assert (decoded.width_px, decoded.height_px) == (200, 100)
    assert "the source was reduced to 100 x 50 before the edit" in decoded.notes


def test_reducing_never_leaves_a_side_empty_or_goes_over() -> None:
    body = saved(Image.new("L", (200, 10)), "PNG")
    assert decode.decode(body, decode.Limits(working_pixels=7)).image.size == (11, 1)


def test_hidden_colour_does_not_bleed_when_reduced() -> None:
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 32, 64))
    reduced = decode.decode(saved(image, "PNG"), decode.Limits(working_pixels=256)).image
    assert all(near(reduced.getpixel((x, 8)), BLUE if x < 8 else WHITE, by=80) for x in range(16))
    assert all(reduced.getpixel((x, 8))[0] <= reduced.getpixel((x, 8))[1] + 1 for x in range(16))  # type: ignore[index]


def test_more_memory_than_there_is_makes_the_image_too_costly(monkeypatch: Any) -> None:
    def hungry(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decode, "to_plain_mode", hungry)
    with pytest.raises(errors.DecodeLimitExceeded, match="too much memory"):
        decode.decode(samples.samples()["png"], LIMITS)


# --- scans -----------------------------------------------------------------------------------


def test_a_jpeg_of_a_hundred_scans_decodes_and_one_more_is_refused() -> None:
    assert decode.decode(samples.scan_bomb(64, 100), LIMITS).width_px == 64
    with pytest.raises(errors.DecodeLimitExceeded, match="more than 100 scans"):
        decode.decode(samples.scan_bomb(64, 101), LIMITS)


def test_scans_do_not_hide_behind_a_marker_without_a_length() -> None:
    jpeg = samples.scan_bomb(64, 50)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    with pytest.raises(errors.DecodeLimitExceeded, match="more than 100 scans"):
        decode.decode(jpeg[:-2] + (b"\xff\x01" + scan) * 60 + jpeg[-2:], LIMITS)


def test_start_of_scan_bytes_outside_the_picture_do_not_count() -> None:
    film = b"\xff\xda" * 500
    jpeg = samples.samples()["jpeg"]
    comment = b"\xff\xfe" + struct.pack(">H", len(film) + 2) + film
    assert decode.decode(jpeg + film, LIMITS).width_px == 64
    assert decode.decode(jpeg[:2] + comment + jpeg[2:], LIMITS).width_px == 64


def test_counting_ends_where_the_bytes_end() -> None:
    body = b"\xff\xd8\xff\xfe\xff\xff" + b"\xff\xda" * 101
    with pytest.raises(errors.BrokenImage):
        decode.decode(body, LIMITS)


# --- encode ----------------------------------------------------------------------------------


@pytest.mark.parametrize("output_format", encode.CONTENT_TYPES)
def test_an_encoded_image_has_its_format_and_decodes(output_format: str) -> None:
    image = samples.photo(128, 96).resize((128, 96))
    decoded = decode.decode(encode.encode(image, output_format, quality=95), LIMITS)
    assert (decoded.format, decoded.image.size) == (output_format, (128, 96))
    assert near(decoded.image.getpixel((64, 48)), image.getpixel((64, 48)), by=40)
    assert output_format in encode.EXTENSIONS


def test_png_is_lossless_and_ignores_quality() -> None:
    image = samples.photo()
    low, high = (encode.encode(image, "png", quality=quality) for quality in (1, 100))
    assert low == high
    assert decode.decode(low, LIMITS).image.tobytes() == image.tobytes()


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    ("marker", "data"),
    [
        *((marker, b"") for marker in range(0xE0, 0xF0)),
        (0xE0, b"JFIF"),
        (0xE0, b"JFIF\0\1"),
        (0xE1, b"Exif\0\0" + b"\x99" * 50),
        (0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"ICC_PROFILE\0\1"),
        (0xE2, b"ICC_PROFILE\0\1\1" + b"\x55" * 200),
        (0xE2, b"MPF\0II*\0\x08\0\0\0\3\0"),
        (0xED, b"Photoshop 3.0\x008BIM\3\xed"),
        (0xEE, b"Adobe"),
        (0xEE, b"Adobe\0"),
    ],
)
def test_a_jpeg_segment_that_is_empty_or_damaged_changes_nothing(marker: int, data: bytes) -> None:
    jpeg = samples.samples()["jpeg"]
    first = 4 + int.from_bytes(jpeg[4:6], "big")  # JFIF's own

    for before, after in ((jpeg[:2], jpeg[2:]), (jpeg[:first], jpeg[first:])):
        decoded = decode.decode(before + segment(marker, data) + after, LIMITS)

        assert decoded == decode.decode(jpeg, LIMITS)


def test_a_damaged_segment_leaves_the_profile_and_the_orientation_beside_it() -> None:
    jpeg = saved(
        samples.photo(), "JPEG", exif=samples.oriented(6), icc_profile=samples.swapped_profile()
    )
    damaged = jpeg[:2] + segment(0xEE, b"Adobe") + jpeg[2:]

    assert decode.decode(damaged, LIMITS) == decode.decode(jpeg, LIMITS)


def test_a_jpeg_with_a_damaged_segment_and_no_end_is_decoded_with_a_note() -> None:
    jpeg = samples.samples()["jpeg"][:-2]
    decoded = decode.decode(jpeg[:2] + segment(0xE0, b"JFIF") + jpeg[2:], LIMITS)

    assert decoded.notes == ("the very end of the source file is missing",)


@pytest.mark.parametrize("output_format", ["jpeg", "webp", "avif"])
def test_a_lower_quality_makes_fewer_bytes(output_format: str) -> None:
    sizes = [len(encode.encode(samples.photo(), output_format, quality=q)) for q in (1, 50, 100)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(("quality", "chroma"), [(100, 0), (90, 0), (89, 2), (1, 2)])
def test_a_good_jpeg_keeps_every_colour_sample(quality: int, chroma: int) -> None:
    from PIL import JpegImagePlugin

    with Image.open(BytesIO(encode.encode(samples.photo(), "jpeg", quality=quality))) as image:
        assert JpegImagePlugin.get_sampling(image) == chroma


@pytest.mark.parametrize("output_format", encode.CONTENT_TYPES)
def test_the_same_pixels_give_the_same_bytes_without_metadata(output_format: str) -> None:
    image = samples.photo()
    bare = encode.encode(image, output_format, quality=80)
    image.info = {
        "icc_profile": samples.swapped_profile(),
        "exif": samples.oriented(6),
        "comment": b"secret",
        "xmp": b"secret",
        "dpi": (300, 300),
        "transparency": (0, 0, 0),
    }
    assert encode.encode(image, output_format, quality=80) == bare
    assert image.info["comment"] == b"secret", "the caller's image was changed"
