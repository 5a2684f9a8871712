import base64
import tracemalloc

import pytest

from retouch.errors import EditError, InvalidRequest, SourceTooLarge
from retouch.sources.data_url import decode_data_url, is_data_url

NO_BASE64 = "holds no valid base64 after its comma"
BODY = bytes(range(256))
BASE64 = base64.b64encode(BODY).decode()
MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("data:,x", True), ("DATA:,x", True), ("https://a/", False), ("dat", False), ("data", False)],
)
def test_a_data_url_is_recognised_by_its_scheme(text: str, *, is_one: bool) -> None:
    assert is_data_url(text) is is_one


@pytest.mark.parametrize(
    "text",
    [
        f"data:image/png;base64,{BASE64}",
        f"DATA:;BASE64,{BASE64}",
        f"data:image/png; base64 ,{BASE64}",
        f"data:image/png;base64,{BASE64.rstrip('=')}",
        f"data:image/png;name=a;base64,{BASE64.replace('+', '%2B').replace('=', '%3d')}",
        "data:;base64," + "".join(f"%{ord(letter):02X}" for letter in BASE64),
        "data:;base64," + "\n".join(BASE64),
        "data:;base64," + base64.encodebytes(BODY).decode().replace("=", "=\r\n\t "),
        "data:image/png," + "".join(f"%{byte:02x}" for byte in BODY),
    ],
)
def test_a_data_url_is_decoded_to_its_bytes(text: str) -> None:
    assert decode_data_url(text, max_bytes=256) == BODY


@pytest.mark.parametrize("lead", range(4))
@pytest.mark.parametrize("spell", [str, lambda text: "".join(f"%{ord(one):02x}" for one in text)])
def test_a_slice_may_end_anywhere(lead: int, spell: type[str]) -> None:
    body = BODY * 3 * 2000  # over a slice
    text = "data:;base64," + " " * lead + spell(base64.b64encode(BODY * 3).decode()) * 2000
    assert decode_data_url(text, max_bytes=len(body)) == body


@pytest.mark.parametrize(
    ("data", "expected"),
    [("", b""), ("a%20b", b"a b"), (r"\x41%5c\n", rb"\x41\\n"), ("é", b"\xc3\xa9")],
)
def test_data_without_base64_is_percent_decoded_only(data: str, expected: bytes) -> None:
    assert decode_data_url(f"data:,{data}", max_bytes=99) == expected


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("data:image/png;base64", "must be data:[<type>][;base64],<data>"),
        ("data:;base64,A", NO_BASE64),
        ("data:;base64,AA=", NO_BASE64),
        ("data:;base64,A===", NO_BASE64),
        ("data:;base64,AA==AA==", NO_BASE64),
        ("data:;base64,A*==", NO_BASE64),
        ("data:;base64,AA%4", NO_BASE64),
        ("data:;base64,A-_A", NO_BASE64),
        ("data:;base64,ÄÄ==", NO_BASE64),
        ("data:,\ud800", "must be data:[<type>][;base64],<data>"),
        ("data:,%zz", "must be data:[<type>][;base64],<data>"),
    ],
)
def test_a_malformed_data_url_is_an_error_of_the_field_that_does_not_repeat_it(
    text: str, fault: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_data_url(text, max_bytes=256)
    assert caught.value.details == {"fields": {"image_url": fault}}
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("kind", ["data:;base64,", "data:,"])
def test_a_data_url_over_the_limit_is_refused_with_limit_and_setting(kind: str) -> None:
    text = kind + (base64.b64encode(b"a" * 11).decode() if "base64" in kind else "a" * 11)
    with pytest.raises(SourceTooLarge, match=r"10 bytes \(MAX_IMAGE_BYTES\)"):
        decode_data_url(text, max_bytes=10)
    assert decode_data_url(text, max_bytes=11) == b"a" * 11


@pytest.mark.parametrize(
    "text",
    [
        "data:," + "%41" * (3 * MIB),
        "data:;base64," + "%41" * (3 * MIB),
        "data:;base64," + "A\n" * (4 * MIB),
        "data:;base64," + "AA\r\n" * (2 * MIB),
        "data:," + "%41é" * (2 * MIB),
        "data:," + "\\" * (8 * MIB),
        "data:;base64," + "A" * (8 * MIB),
        "data:;base64," + "=" * (8 * MIB),
    ],
    ids=["percent", "percent base64", "lines", "CRLF", "UTF-8", "backslashes", "plain", "padding"],
)
def test_no_spelling_costs_more_than_one_copy_and_some_slices(text: str) -> None:
    tracemalloc.start()
    try:
        decode_data_url(text, max_bytes=25 * MIB)
    except EditError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < len(text) + 8 * MIB
