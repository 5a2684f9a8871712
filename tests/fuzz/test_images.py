"""Any bytes decode or raise `BadInput`; any answer of a child does the same."""

import struct
from collections.abc import Callable
from io import BytesIO

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from support.images import samples

from retouch import errors
from retouch.images import decode, sandbox_child

pytestmark = [
    pytest.mark.fuzz,
    # Pillow warns of what is odd in a file; the child runs with warnings off.
    pytest.mark.filterwarnings("ignore"),
]

LIMITS = decode.Limits(max_pixels=1_000_000, working_pixels=10_000)
SAMPLES = sorted(samples.samples().items())


def require_honest(decoded: decode.Decoded) -> None:
    image = decoded.image
    assert image.mode == "RGB"
    assert 0 < image.width * image.height <= LIMITS.working_pixels
    assert 0 < decoded.width_px * decoded.height_px <= LIMITS.max_pixels_of(decoded.format)
    assert len(image.tobytes()) == image.width * image.height * 3


def require_readable(refusal: errors.BadInput) -> None:
    assert refusal.message.isprintable()
    assert len(refusal.message) < 5000


def decode_or_refuse(body: bytes) -> None:
    try:
        require_honest(decode.decode(body, LIMITS))
    except errors.BadInput as refusal:
        require_readable(refusal)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid picture with some bytes changed, cut out, doubled or put in."""
    _, body = draw(st.sampled_from(SAMPLES))
    changed = bytearray(body)
    for _ in range(draw(st.integers(1, 6))):
        # Headers are where the decisions are: half of the changes fall into the first 64 bytes.
        end = draw(st.sampled_from([min(64, len(changed)), len(changed)]))
        at = draw(st.integers(0, end))
        length = draw(st.integers(0, 8))
        changed[at : at + length] = draw(st.binary(max_size=8))
    return bytes(changed)


@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(mutated())
def test_a_damaged_image_decodes_or_is_refused(body: bytes) -> None:
    decode_or_refuse(body)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SAMPLES), st.data())
def test_a_truncated_image_decodes_or_is_refused(
    sample: tuple[str, bytes], data: st.DataObject
) -> None:
    decode_or_refuse(sample[1][: data.draw(st.integers(0, len(sample[1])))])


MAGIC = st.sampled_from([body[:32] for _, body in SAMPLES] + [b""])


@settings(max_examples=300, deadline=None)
@given(MAGIC, st.binary(max_size=2000))
def test_any_bytes_behind_any_magic_decode_or_are_refused(magic: bytes, rest: bytes) -> None:
    decode_or_refuse(magic + rest)


# --- the wire --------------------------------------------------------------------------------


def reader(answer: bytes) -> sandbox_child.Read:
    stream = BytesIO(answer)

    def read(count: int) -> bytes:
        assert count <= LIMITS.working_pixels * 3, "room was made before the size was judged"
        data = stream.read(count)
        if len(data) < count:
            raise EOFError
        return data

    return read


def receive_or_refuse(answer: bytes) -> None:
    try:
        require_honest(sandbox_child.receive(reader(answer), LIMITS))
    except errors.BadInput as refusal:
        require_readable(refusal)
    except EOFError:
        pass  # the caller counts a child that ends early as too costly


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_answer_is_an_image_or_a_refusal(answer: bytes) -> None:
    receive_or_refuse(answer)


NUMBER = st.one_of(st.integers(0, 120), st.integers(0, 2**32 - 1))
WORD = st.one_of(st.text(max_size=20), st.sampled_from(["jpeg", "broken_image", "internal_error"]))


@settings(max_examples=500, deadline=None)
@given(st.lists(NUMBER, min_size=4, max_size=4), st.lists(WORD, max_size=4), st.integers(-3, 3))
def test_a_false_answer_is_an_image_or_a_refusal(
    sizes: list[int], lines: list[str], off: int
) -> None:
    text = "\n".join(lines).encode()
    header = struct.pack(">5I", max(0, len(text) + off), *sizes)
    receive_or_refuse(header + text + bytes(40_000))


@settings(max_examples=100, deadline=None)
@given(mutated())
def test_a_childs_answer_arrives_unchanged(body: bytes) -> None:
    answer = b"".join(sandbox_child.answer(body, LIMITS))
    assert outcome(lambda: sandbox_child.receive(reader(answer), LIMITS)) == outcome(
        lambda: decode.decode(body, LIMITS)
    )


def outcome(action: Callable[[], decode.Decoded]) -> tuple[object, ...]:
    try:
        found = action()
    except errors.BadInput as refusal:
        return type(refusal), refusal.message
    return found.image.tobytes(), found.width_px, found.height_px, found.format, found.notes
