"""The frame: its bytes, and that nothing but `FrameError` comes of bad ones."""

import contextlib
import tracemalloc
import zlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedistill.communication.kinds import CUSTOM, Kind, kind_label, kind_of
from fedistill.communication.messages.base import Message
from fedistill.communication.messages.bridge import BridgeReply, BridgeRequest
from fedistill.communication.messages.statistics import FeatureMoments
from fedistill.communication.protocol import frame as frame_module
from fedistill.communication.protocol.frame import VERSION, Frame, StateId, encode
from fedistill.communication.varint import read_varint, varint
from fedistill.errors import FrameError
from fedistill.methods.registry import METHODS


def decode(data: bytes) -> Frame:
    """Read what has come from elsewhere: of bytes that it has just written, a process knows what they say."""
    return frame_module.decode(bytes(bytearray(data)))


# Soft labels of client 2 in round 300: the probabilities 0.5 and 1.0, and the round 300 again.
GOLDEN = bytes.fromhex(
    "66 64"  # "fd"
    "02"  # version
    "04"  # kind: soft labels
    "ac 02"  # round 300 = 2 * 128 + 44
    "03"  # peer: client 2, plus one
    "00"  # coded against nothing
    "08 00 00 00 3f 00 00 80 3f"  # 8 bytes: 0.5 and 1.0
    "02 ac 02"  # 2 bytes: 300
    "31 d5 ba c4"  # CRC-32 of all this, low byte first
)
SECTIONS = (bytes.fromhex("0000003f 0000803f"), b"\xac\x02")
MEANING = Frame(Kind.SOFT_LABELS, 300, 3, SECTIONS)

# The same, coded against shared state 200 whose hash begins with 0123abcd.
GOLDEN_WITH_BASE = bytes.fromhex(
    "66 64 02 04 ac 02 03"
    "c9 01 01 23 ab cd"  # 200 + 1 = 1 * 128 + 73, and the hash
    "08 00 00 00 3f 00 00 80 3f"
    "02 ac 02"
    "27 f9 c4 d9"
)
MEANING_WITH_BASE = Frame(Kind.SOFT_LABELS, 300, 3, SECTIONS, StateId(200, bytes.fromhex("0123abcd")))

# The same as the first, asking for five rounds of local training.
GOLDEN_ASKING = bytes.fromhex(
    "66 64 02"
    "84 05"  # soft labels, and the highest bit; 5
    "ac 02 03 00"
    "08 00 00 00 3f 00 00 80 3f"
    "02 ac 02"
    "3c 90 50 04"
)
MEANING_ASKING = Frame(Kind.SOFT_LABELS, 300, 3, SECTIONS, local=5)

# What version 1 wrote of the same message: sections had names, and there was no base.
GOLDEN_1 = bytes.fromhex(
    "66 64 01 04 ac 02 03"
    "02"  # sections
    "05 70 72 6f 62 73"  # "probs"
    "08 00 00 00 3f 00 00 80 3f"
    "05 64 72 61 77 6e"  # "sampled_round"
    "02 ac 02"
    "ce 4c b1 f8"
)
GOLDENS = pytest.mark.parametrize(
    ("golden", "meaning"),
    [(GOLDEN, MEANING), (GOLDEN_WITH_BASE, MEANING_WITH_BASE), (GOLDEN_ASKING, MEANING_ASKING)],
    ids=["bare", "base", "asking"],
)

MESSAGES = [
    kind for kind in Message.__subclasses__() if kind.__module__.startswith("fedistill.communication.")
]
"""All of ours; the registry of methods has imported them. A method's own file may have one as others do."""
assert {method.uplink for method in METHODS.values()} <= {
    None,
    *MESSAGES,
    *(kind for kind in Message.__subclasses__() if kind.kind in CUSTOM),
}


integers = st.integers(min_value=0, max_value=2**63 - 1)
bases = st.builds(StateId, st.integers(0, 2**63 - 2), st.binary(min_size=4, max_size=4))
sections = st.lists(st.binary(max_size=200), max_size=5).map(tuple)
locals_ = st.just(1) | integers
frames = st.builds(
    Frame, st.sampled_from((*Kind, *CUSTOM)), integers, integers, sections, st.none() | bases, locals_
)


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


@GOLDENS
def test_golden_frame(golden: bytes, meaning: Frame) -> None:
    assert golden[-4:] == crc32(golden[:-4])
    assert encode(meaning) == golden
    assert decode(golden) == meaning


def test_the_golden_frame_of_version_1_is_refused_by_name() -> None:
    assert GOLDEN_1[-4:] == crc32(GOLDEN_1[:-4])
    assert refusal(GOLDEN_1) == "frame version 1 is not 2; both sides need the same release"


@given(frames)
def test_round_trip(frame: Frame) -> None:
    data = encode(frame)
    assert decode(data) == frame_module.decode(data) == frame
    assert data[-4:] == crc32(data[:-4])


def test_the_same_bytes_are_read_once_whatever_is_read_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a broadcast and the replies to it are, in one process."""
    down, *up = (encode(replace(MEANING, round=round)) for round in range(1, 5))
    checked: list[int] = []
    crc32 = zlib.crc32

    def counted(body: memoryview) -> int:
        checked.append(len(body))
        return crc32(body)

    monkeypatch.setattr(zlib, "crc32", counted)
    for reply in up:
        for data in (down, reply, reply):
            assert frame_module.decode(data) == replace(MEANING, round=1 + [down, *up].index(data))
    assert len(checked) == 1 + len(up)


def test_what_has_changed_since_is_read_again() -> None:
    data = bytearray(GOLDEN)
    assert decode(data) == MEANING
    data[-1] ^= 1
    with pytest.raises(FrameError, match="damaged"):
        decode(data)


def test_a_damaged_frame_is_refused_each_time() -> None:
    damaged = GOLDEN[:-1] + b"\0"
    for _ in range(2):
        with pytest.raises(FrameError, match="damaged"):
            decode(damaged)


@given(frames)
def test_length_is_the_sum_of_its_fields(frame: Frame) -> None:
    asking = 0 if frame.local == 1 else len(leb(frame.local))
    head = 2 + 1 + 1 + asking + len(leb(frame.round)) + len(leb(frame.peer))
    state_id = 1 if frame.state_id is None else len(leb(frame.state_id.version + 1)) + 4
    body = sum(len(leb(len(data))) + len(data) for data in frame.sections)
    assert len(encode(frame)) == head + state_id + body + 4


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("size", [0, 127, 128, 16_384, 2**21 - 1])
def test_overhead_is_at_most_24_or_28_bytes_and_44_with_many_sections(kind: type[Message], size: int) -> None:
    """In round 16,383, of client 16,382, against memory 16,382: the largest of two bytes each."""
    payloads = tuple(
        varint(16_383) if name in kind.number_names() else bytes(size) for name in kind.needed_names()
    )
    frame = Frame(kind.kind, 16_383, 16_383, payloads, StateId(16_382, b"hash"))
    data = encode(frame)
    assert decode(data) == frame
    tensors = len(kind.needed_names()) - len(kind.number_names())
    many = {FeatureMoments: 36, BridgeRequest: 44, BridgeReply: 36}
    most = many.get(kind, 24 if tensors == 1 else 28)
    assert len(data) - sum(len(payload) for payload in payloads) <= most


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


@GOLDENS
def test_every_truncation_is_refused(golden: bytes, meaning: Frame) -> None:
    for size in range(len(golden)):
        refusal(golden[:size])


@GOLDENS
def test_a_truncation_with_a_right_checksum_ends_between_two_sections_or_is_refused(
    golden: bytes, meaning: Frame
) -> None:
    whole = [len(encode(replace(meaning, sections=SECTIONS[:kept]))) - 4 for kept in (0, 1)]
    for size in range(len(golden) - 4):
        if size in whole:
            assert decode(sealed(golden[:size])).sections == SECTIONS[: whole.index(size)]
        else:
            refusal(sealed(golden[:size]))


@GOLDENS
def test_every_flipped_bit_is_refused(golden: bytes, meaning: Frame) -> None:
    for place in range(len(golden) * 8):
        damaged = bytearray(golden)
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
    size = sum(1 + len(payload) for payload in frame.sections)
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
    data = sealed(HEAD + b"\0" + leb(size) + b"!")
    tracemalloc.start()
    try:
        said = refusal(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert said == f"frame says {size} bytes follow, but only 1 do"
    assert peak < 100_000


def test_many_empty_sections_cost_no_more_than_their_bytes() -> None:
    """A section of one byte is the shortest; many are read in a few times their bytes."""
    data = encode(Frame(Kind.LOGITS, 1, 0, (b"",) * 100_000))
    tracemalloc.start()
    try:
        assert len(decode(data).sections) == 100_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 * len(data)


def test_the_largest_memory_that_a_frame_can_name() -> None:
    """One more, and the field would not be read again."""
    frame = Frame(Kind.LOGITS, 1, 0, (), StateId(2**63 - 2, b"hash"))
    assert decode(encode(frame)) == frame


@pytest.mark.parametrize("rest", [b"", b"a", b"abc"])
def test_a_base_that_ends_early(rest: bytes) -> None:
    said = refusal(sealed(HEAD + b"\x01" + rest))
    assert said == f"frame says 4 bytes follow, but only {len(rest)} do"


@pytest.mark.parametrize("version", [0, 1, 3, 255])
def test_another_version_is_named(version: int) -> None:
    said = refusal(sealed(b"fd" + bytes((version,)) + GOLDEN[3:-4]))
    assert said == f"frame version {version} is not 2; both sides need the same release"


def test_another_format_is_named() -> None:
    assert refusal(sealed(b"PK" + GOLDEN[2:-4])) == "not a fedistill frame: it does not start with 'fd'"


@pytest.mark.parametrize("size", [0, 1, 10])
def test_too_short_to_be_a_frame(size: int) -> None:
    assert refusal(GOLDEN[:size]) == f"frame of {size} bytes is too short to be one"


@pytest.mark.parametrize("kind", [0, 50, 63, 0x80 + 50, 0x80 + 63])
def test_an_unknown_kind_is_named(kind: int) -> None:
    said = refusal(sealed(GOLDEN[:3] + bytes((kind,)) + GOLDEN[4:-4]))
    assert said == f"frame kind {kind & 0x7F} is unknown"


@pytest.mark.parametrize("kind", [64, 100, 127])
def test_kinds_of_other_packages_are_numbers(kind: int) -> None:
    for local in (1, 3):
        frame = Frame(kind, 7, 3, (b"abc",), local=local)
        data = encode(frame)
        assert data[3] == kind + (0x80 if local > 1 else 0)
        assert decode(data) == frame
    assert kind_label(kind) == f"custom-{kind}"


@pytest.mark.parametrize("kind", [50, 60, 63])
def test_numbers_that_are_kept_for_ours_are_refused_until_they_are_used(kind: int) -> None:
    assert refusal(encode(Frame(kind, 7, 3, ()))) == f"frame kind {kind} is unknown"


def test_what_goes_without_saying_is_not_said() -> None:
    """Else one frame could be written in two ways."""
    said = refusal(sealed(GOLDEN[:3] + bytes((GOLDEN[3] | 0x80, 1)) + GOLDEN[4:-4]))
    assert said == "frame asks for one round of local training, which must not be written"


@pytest.mark.parametrize("field", ["round", "peer", "base", "size"])
def test_an_integer_that_never_ends_is_refused(field: str) -> None:
    place = ["round", "peer", "base", "size"].index(field)
    body = b"fd" + bytes((VERSION, Kind.LOGITS)) + b"\0" * place
    assert refusal(sealed(body + b"\xff" * 20)) == "frame has an integer of more than 63 bits"
    assert refusal(sealed(body + b"\xff" * 8)) == "frame ends in the middle of a field"


def test_bytes_after_the_frame() -> None:
    assert refusal(GOLDEN + b"\x00") == "frame is damaged: its checksum differs"


def test_ours_are_below_those_of_other_packages() -> None:
    assert (CUSTOM[0], CUSTOM[-1]) == (64, 127)
    assert max(Kind) < CUSTOM[0]
    assert all(kind_of(int(kind)) is kind and kind_label(int(kind)) == kind.label for kind in Kind)


def test_kinds_keep_their_numbers() -> None:
    assert {kind.label: int(kind) for kind in Kind} == {
        "weights": 1,
        "class-outputs": 2,
        "logits": 3,
        "soft-labels": 4,
        "vocabulary": 5,
        "votes": 6,
        "fresh-labels": 7,
        "due-labels": 8,
        "refresh": 9,
        "prototypes": 10,
        "weights-and-outputs": 11,
        "generator": 12,
        "chosen-labels": 13,
        "private-outputs": 14,
        "private-logits": 15,
        "statistics-request": 16,
        "word-counts": 17,
        "feature-moments": 18,
        "bridge-request": 19,
        "bridge-reply": 20,
        "tally-request": 21,
        "tally-reply": 22,
        "scored-labels": 23,
        "scored-weights": 24,
        "masked-request": 25,
        "masked-reply": 26,
        "evaluated-model": 27,
        "column-sums": 28,
        "record-encoding": 29,
        "secure-keys": 40,
        "secure-shares": 41,
        "secure-addends": 42,
        "secure-unmasking": 43,
    }


def test_every_message_has_a_kind_of_its_own() -> None:
    """Only messages that carry the same and are never mixed up, weights, share one."""
    kinds = [kind.kind for kind in MESSAGES]
    without = {Kind.VOCABULARY, Kind.REFRESH, Kind.EVALUATED_MODEL, Kind.COLUMN_SUMS, Kind.RECORD_ENCODING}
    without |= {kind for kind in Kind if kind.label.startswith("secure-")}
    assert sorted(set(kinds), key=int) == sorted(set(Kind) - without, key=int)
    assert [kind for kind in set(kinds) if kinds.count(kind) > 1] == [Kind.WEIGHTS]
