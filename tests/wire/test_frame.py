"""The frame: its bytes, and that nothing but `FrameError` comes of bad ones."""

import contextlib
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedistill.errors import FrameError
from fedistill.wire.frame import VERSION, Frame, Kind, decode, encode, read_varint, varint

# Soft labels of client 2 in round 300: the probabilities 0.5 and 1.0, and the round 300 again.
GOLDEN = bytes.fromhex(
    "66 64"  # "fd"
    "01"  # version
    "04"  # kind: soft labels
    "ac 02"  # round 300 = 2 * 128 + 44
    "03"  # peer: client 2, plus one
    "02"  # sections
    "05 70 72 6f 62 73"  # "probs"
    "08 00 00 00 3f 00 00 80 3f"  # 8 bytes: 0.5 and 1.0
    "05 64 72 61 77 6e"  # "drawn"
    "02 ac 02"  # 2 bytes: 300
    "ce 4c b1 f8"  # CRC-32 of all this, low byte first
)
MEANING = Frame(Kind.SOFT_LABELS, 300, 3, {"probs": bytes.fromhex("0000003f 0000803f"), "drawn": b"\xac\x02"})

names = st.text(alphabet=st.characters(max_codepoint=127), min_size=1, max_size=8)
integers = st.integers(min_value=0, max_value=2**63 - 1)
sections = st.dictionaries(names, st.binary(max_size=200), max_size=5)
frames = st.builds(Frame, st.sampled_from(Kind), integers, integers, sections)


def crc32(data: bytes) -> bytes:
    """CRC-32 bit by bit (IEEE 802.3, reflected), low byte first."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0xEDB88320 if value & 1 else 0)
    return (value ^ 0xFFFFFFFF).to_bytes(4, "little")


def leb(value: int) -> bytes:
    """LEB128 by the definition: base 128, low digit first, the top bit set on all but the last."""
    digits = [value % 128]
    while value := value // 128:
        digits.append(value % 128)
    return bytes([128 + digit for digit in digits[:-1]] + [digits[-1]])


def sealed(body: bytes) -> bytes:
    """A body with the checksum that belongs to it."""
    return body + crc32(body)


def refusal(data: bytes) -> str:
    with pytest.raises(FrameError) as caught:
        decode(data)
    return str(caught.value)


def test_golden_frame() -> None:
    assert encode(MEANING) == GOLDEN
    assert decode(GOLDEN) == MEANING
    assert GOLDEN[-4:] == crc32(GOLDEN[:-4])


@given(frames)
def test_round_trip(frame: Frame) -> None:
    data = encode(frame)
    again = decode(data)
    assert again == frame
    assert list(again.sections) == list(frame.sections)
    assert data[-4:] == crc32(data[:-4])


@given(frames)
def test_length_is_the_sum_of_its_fields(frame: Frame) -> None:
    head = 2 + 1 + 1 + len(leb(frame.round)) + len(leb(frame.peer)) + 1
    body = sum(1 + len(name) + len(leb(len(data))) + len(data) for name, data in frame.sections.items())
    assert len(encode(frame)) == head + body + 4


@given(integers)
def test_varint(value: int) -> None:
    assert varint(value) == leb(value)
    assert read_varint(leb(value) + b"\x7f", 0) == (value, len(leb(value)))


def test_varint_bounds() -> None:
    assert len(varint(2**63 - 1)) == 9
    with pytest.raises(FrameError, match="63 bits"):
        read_varint(varint(2**63), 0)
    with pytest.raises(FrameError, match="middle of a field"):
        read_varint(b"\x80\x80", 0)
    with pytest.raises(ValueError, match="-1 is negative"):
        varint(-1)


def test_every_truncation_is_refused() -> None:
    for size in range(len(GOLDEN)):
        refusal(GOLDEN[:size])


def test_every_truncation_is_refused_with_a_right_checksum_too() -> None:
    for size in range(len(GOLDEN) - 4):
        refusal(sealed(GOLDEN[:size]))


def test_every_flipped_bit_is_refused() -> None:
    for place in range(len(GOLDEN) * 8):
        damaged = bytearray(GOLDEN)
        damaged[place // 8] ^= 1 << place % 8
        refusal(bytes(damaged))


@settings(max_examples=3000)
@given(st.binary(max_size=80))
def test_random_bytes_are_refused(data: bytes) -> None:
    refusal(data)


@settings(max_examples=3000)
@given(st.binary(max_size=80))
def test_random_bytes_behind_a_right_header_are_refused_or_read_whole(tail: bytes) -> None:
    data = sealed(b"fd" + bytes((VERSION, Kind.LOGITS)) + tail)
    try:
        frame = decode(data)
    except FrameError:
        return
    # By chance they may be a frame; then nothing in it came from elsewhere and nothing was passed over.
    assert decode(encode(frame)) == frame
    size = sum(len(name) + len(payload) for name, payload in frame.sections.items())
    assert size + 7 + 4 <= len(data)


@settings(max_examples=500)
@given(frames, st.data())
def test_a_byte_changed_under_a_right_checksum_never_raises_anything_else(frame: Frame, data: Any) -> None:
    body = bytearray(encode(frame)[:-4])
    place = data.draw(st.integers(0, len(body) - 1))
    body[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FrameError):
        decode(sealed(bytes(body)))


HEAD = b"fd" + bytes((VERSION, Kind.LOGITS, 1, 0))


@pytest.mark.parametrize("size", [2, 10**6, 2**31, 2**62, 2**63 - 1])
def test_a_section_that_says_too_much_is_refused_and_nothing_allocated(size: int) -> None:
    data = sealed(HEAD + b"\x01" + b"\x01x" + leb(size) + b"!")
    tracemalloc.start()
    try:
        said = refusal(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert said == f"frame says {size} bytes follow, but only 1 do"
    assert peak < 100_000


def test_more_sections_than_there_are() -> None:
    assert refusal(sealed(HEAD + b"\xff" + b"\x01x\x00")) == "frame ends in the middle of a field"


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_named(version: int) -> None:
    said = refusal(sealed(b"fd" + bytes((version,)) + GOLDEN[3:-4]))
    assert said == f"frame version {version} is not 1; both sides need one release"


@pytest.mark.parametrize("kind", [0, 6, 255])
def test_an_unknown_kind_is_named(kind: int) -> None:
    assert refusal(sealed(GOLDEN[:3] + bytes((kind,)) + GOLDEN[4:-4])) == f"frame kind {kind} is unknown"


def test_bytes_after_the_last_section() -> None:
    assert refusal(sealed(GOLDEN[:-4] + b"abc")) == "frame has 3 bytes after its last section"
    # The same from inside: a section that says too little leaves a rest.
    assert "after its last section" in refusal(sealed(HEAD + b"\x01" + b"\x01x" + b"\x01" + b"!!!"))


def test_bytes_after_the_frame() -> None:
    assert refusal(GOLDEN + b"\x00") == "frame is damaged: its checksum differs"


def test_repeated_sections() -> None:
    twice = sealed(HEAD + b"\x02" + b"\x01x\x01a" + b"\x01x\x01b")
    assert "repeated section name 'x'" in refusal(twice)


@pytest.mark.parametrize("tag", [b"", b"ninechars", b"\xffx"])
def test_odd_section_names(tag: bytes) -> None:
    assert "section name" in refusal(sealed(HEAD + b"\x01" + bytes((len(tag),)) + tag + b"\x00"))
    with pytest.raises(ValueError, match=r"letters|ascii"):
        encode(Frame(Kind.LOGITS, 1, 0, {tag.decode("latin-1"): b""}))


def test_kinds_keep_their_numbers() -> None:
    assert {kind.label: int(kind) for kind in Kind} == {
        "weights": 1,
        "class-outputs": 2,
        "logits": 3,
        "soft-labels": 4,
        "vocabulary": 5,
    }
