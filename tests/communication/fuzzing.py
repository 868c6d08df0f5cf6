"""Bytes that nobody meant, fed to all that reads bytes: what comes of them is a value or a `FrameError`.

A seed names a *group*: a codec, what both sides know, and some cases, each a byte string for one of the
readers. `check` runs a group; what goes wrong is a `Failure` that names the seed and the bytes::

    python tests/communication/fuzzing.py --cases 1000000 --seed 7

Held of each case: the outcome is a value of the right shape with finite numbers, or `FrameError`; it takes
no more than `PATIENCE`; what was read leaves a memory that the next messages can be read and written
with; and, of every group's first case, that no more than `allowance` bytes are allocated at once.
"""

import argparse
import signal
import tracemalloc
import typing
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
import torch
from communication_helpers import Described, WithBackbone
from pydantic import ValidationError
from rich.progress import track

from fedistill.communication.codecs.base import Codec, Decoded
from fedistill.communication.codecs.registry import CODECS
from fedistill.communication.kinds import CUSTOM, Kind
from fedistill.communication.messages.base import Message, MessageContext, contents
from fedistill.communication.messages.bridge import WEIGHTS, BridgeReply, BridgeRequest
from fedistill.communication.messages.classwise import ClassOutputs, Prototypes, WeightsAndOutputs
from fedistill.communication.messages.labels import (
    ChosenLabels,
    DueLabels,
    FreshLabels,
    Logits,
    SoftLabels,
    Votes,
)
from fedistill.communication.messages.masked import MaskedReply, MaskedRequest, step_bits
from fedistill.communication.messages.private_samples import PrivateLogits, PrivateOutputs
from fedistill.communication.messages.scored import ScoredLabels, ScoredWeights
from fedistill.communication.messages.statistics import FeatureMoments, StatisticsRequest, WordCounts
from fedistill.communication.messages.tally import TallyReply, TallyRequest
from fedistill.communication.messages.weights import CountedWeights, GeneratorWeights, TrainedWeights, Weights
from fedistill.communication.protocol import frame as frames
from fedistill.communication.protocol.endpoints import ClientEndpoint, ServerEndpoint
from fedistill.communication.protocol.frame import EVERYONE, StateId
from fedistill.communication.protocol.message_coder import MessageCoder
from fedistill.communication.protocol.shared_state import SharedState
from fedistill.communication.tensor_specs import Content, TensorSpec
from fedistill.errors import FrameError
from fedistill.state import decode_state, encode_state
from fedistill.testing.samples import damaged, elsewhere, fault_of, known_of, sender_of, spec_of, values_of

PATIENCE = 20
"""Seconds of the processor, since a busy machine lets a process wait; no case takes a hundredth of it."""
_AT_LEAST = 4_000_000
_EACH = 128
CODEC_CASES, END_CASES = 12, 4

Reader = Callable[[bytes], Any]


class Failure(AssertionError):
    """A case with another outcome than a value or `FrameError`."""


class _Hang(BaseException):
    """Raised by the alarm; no reader can mistake it for an error of its own."""


def allowance(expected: int, data: int) -> int:
    """Bytes that may be allocated at once for so many expected numbers, and bytes of input."""
    return _AT_LEAST + _EACH * (expected + data)


@dataclass(frozen=True)
class Case:
    """A byte string for a reader that expects so many numbers; ``codec`` and ``target`` are for counting."""

    codec: str
    target: str
    data: bytes
    read: Reader
    expected: int


def check(seed: int, names: tuple[str, ...] = (), counts: Counter[tuple[str, str, str]] | None = None) -> int:
    """Run the cases of a group; return how many there were.

    Raises:
        Failure: one went wrong.
    """
    done = 0
    with warnings.catch_warnings(), _must_not_fail(f"seed {seed}, after case {done}"):
        warnings.simplefilter("error")
        for case in group(seed, names):
            outcome = _outcome(case, measured=seed % 4 == 0 and done % 12 == 0, seed=seed, number=done)
            if counts is not None:
                counts[case.codec, case.target, outcome] += 1
            done += 1
    return done


@contextmanager
def _must_not_fail(where: str) -> Iterator[None]:
    """Around what both sides do of their own: even a `FrameError` is a failure here."""
    try:
        yield
    except (Failure, _Hang):
        raise
    except Exception as error:
        raise Failure(f"{where}: {type(error).__name__}: {error}") from error


def group(seed: int, names: tuple[str, ...] = ()) -> Iterator[Case]:
    """The cases of a group, the same whenever they are asked for; ``names``: of the codecs, else all."""
    random = Random(f"fuzz {seed}")
    yield from _codec_cases(random, random.choice(names or tuple(CODECS)))
    yield from _end_cases(random, names or tuple(CODECS))


def _outcome(case: Case, measured: bool, seed: int, number: int) -> str:
    where = (
        f"seed {seed}, case {number}: {case.target} of {case.codec}, {len(case.data)} bytes"
        f" {case.data[:200].hex()}"
    )
    try:
        with _alarm():
            if measured:
                _measure(case)
            case.read(case.data)
    except FrameError:
        return "refused"
    except _Hang:
        raise Failure(f"{where}: no answer in {PATIENCE} seconds of the processor") from None
    except Failure as failure:
        raise Failure(f"{where}: {failure}") from failure.__cause__
    except Exception as error:
        raise Failure(f"{where}: {type(error).__name__}: {error}") from error
    return "read"


def _measure(case: Case) -> None:
    """Read twice: tables that are made once and kept are not the case's."""
    peak = 0
    for _ in range(2):
        tracemalloc.start()
        try:
            case.read(case.data)
        except FrameError:
            pass
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    most = allowance(case.expected, len(case.data))
    if peak > most:
        raise Failure(f"{peak} bytes allocated for {case.expected} numbers, above {most}")


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise _Hang

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# What both sides know


def settings_of(random: Random, kind: type[Codec]) -> Codec:
    """A codec with settings of its own, where these can be guessed from their types."""
    wanted: dict[str, Any] = {}
    for name, field in kind.Settings.model_fields.items():
        if random.random() < 0.5:
            continue
        if typing.get_origin(field.annotation) is typing.Literal:
            wanted[name] = random.choice(typing.get_args(field.annotation))
        elif field.annotation is bool:
            wanted[name] = random.random() < 0.5
        elif field.annotation in (int, int | None):
            wanted[name] = random.choice((1, 2, 3, 7, 100))
        elif field.annotation in (float, float | None):
            wanted[name] = random.choice((0.01, 0.1, 0.5, 1.0))
    try:
        return kind(kind.Settings.model_validate(wanted))
    except ValidationError:
        return kind(kind.Settings())


# Codecs alone


def _codec_cases(random: Random, name: str) -> Iterator[Case]:
    codec = settings_of(random, CODECS[name])
    spec = spec_of(random, random.choice(sorted(codec.codes, key=lambda content: content.value)))
    known = known_of(random, codec, spec, messages=random.randrange(3))

    def coded(by: Codec, of: TensorSpec) -> bytes:
        held = known if of is spec else known_of(random, by, of, 0)
        return by.encode(values_of(random, of), of, held, sender_of(random)).payload

    valid = coded(codec, spec)
    foreign = [kind for kind in CODECS.values() if spec.content in kind.codes]
    other = settings_of(random, random.choice(foreign))
    beside = known_of(random, other, spec, 0)
    others = [
        coded(codec, spec),
        coded(codec, spec_of(random, spec.content)),
        other.encode(values_of(random, spec), spec, beside, sender_of(random)).payload,
    ]

    def read(data: bytes) -> None:
        came = codec.decode(data, spec, known)
        _require_whole(came, spec)
        # Memory that a stranger has written must serve for the messages that follow.
        after = elsewhere(random, spec)
        held = replace(known, memory=came.memory)
        with _must_not_fail("the message after it"):
            written = codec.encode(values_of(random, after), after, held, sender_of(random))
            again = codec.decode(written.payload, after, held)
        _require_whole(again, after)
        if encode_state(again.memory) != encode_state(written.memory):
            raise Failure("the two sides remember different things")

    expected = spec.count + spec.population * 8
    for _ in range(CODEC_CASES):
        yield Case(name, "codec", damaged(random, valid, others), read, expected)


def _require_whole(came: Decoded, spec: TensorSpec) -> None:
    fault = fault_of(came, spec)
    if fault:
        raise Failure(fault)


# Frames, exchanges and the two ends

PAIRS: tuple[tuple[type[Message], type[Message]], ...] = (
    (TrainedWeights, Weights),
    (ClassOutputs, ClassOutputs),
    (Logits, Logits),
    (SoftLabels, SoftLabels),
    (Votes, Votes),
    (SoftLabels, Weights),
    (DueLabels, FreshLabels),
    (Prototypes, Prototypes),
    (WeightsAndOutputs, WeightsAndOutputs),
    (CountedWeights, GeneratorWeights),
    (ChosenLabels, ChosenLabels),
    (PrivateOutputs, PrivateLogits),
    (WordCounts, StatisticsRequest),
    (FeatureMoments, StatisticsRequest),
    (ScoredLabels, SoftLabels),
    (ScoredWeights, Weights),
    (MaskedReply, MaskedRequest),
    (BridgeReply, BridgeRequest),
    (TallyReply, TallyRequest),
    (Described, Described),
    (WithBackbone, WithBackbone),
)
_ROUND, _CLIENT, _POPULATION = 5, 3, 40


def sizes_of(random: Random) -> MessageContext:
    classes, samples = random.choice((2, 3, 10, 10, 70)), random.choice((0, 1, 20, 40))
    shuffles = [np.random.default_rng(round).permutation(_POPULATION) for round in range(_ROUND + 1)]
    turns = np.random.default_rng(samples).integers(1, _ROUND + 1, _POPULATION)

    def since(held: int, turn: int) -> Any:
        return np.flatnonzero((turns > held) & (turns <= turn))

    return MessageContext(
        classes=classes,
        parameters=54,
        samples=samples,
        parts=((6, 8), (6,)),
        population=_POPULATION,
        sampled=lambda round: np.sort(shuffles[round][:samples]),
        since=since,
        width=5,
        generator=((3, 4), (4,)),
        private=samples // 2,
        length=6,
        trained=lambda merge: torch.arange(54) % 3 == merge % 3,
    )


def _numbers_of(random: Random, kind: type[Message], sizes: MessageContext, round: int) -> dict[str, int]:
    """The integers of a message that somebody might send in this round."""
    numbers = {name: round if name in ("sampled_round", "turn") else 100 for name in kind.number_names()}
    ranges = {
        "present": sizes.classes + 1,
        "chosen": sizes.samples + 1,
        "voted": sizes.samples + 1,
        "known": round,
        "asks": 2 * WEIGHTS,
        "has": 2 * WEIGHTS,
        **dict.fromkeys(("labelled", "given", "merges"), 2),
    }
    numbers |= {name: random.randrange(below) for name, below in ranges.items() if name in numbers}
    if not numbers.get("has", WEIGHTS) & WEIGHTS:
        numbers["turn"] = 0
    if "step" in numbers:
        numbers["step"] = step_bits(random.choice((0.0, 0.01)))
    return numbers


def message_of(random: Random, kind: type[Message], sizes: MessageContext, round: int) -> Message:
    """What a sender might send in this round."""
    numbers = _numbers_of(random, kind, sizes, round)
    integer_arrays = {name: whole.example() for name, whole in kind.integer_arrays(sizes, numbers).items()}
    fields: dict[str, Any] = {
        **numbers,
        **{name: torch.from_numpy(array) for name, array in integer_arrays.items()},
    }
    for name, spec in kind.specs(sizes, {**numbers, **integer_arrays, "held": 0}).items():
        whole = replace(spec, shape=(sizes.population, spec.shape[1])) if kind.caches else spec
        # What is sent once is one of two values, so that it is as held in some frames and not in others.
        seeded = Random(random.randrange(2)) if name in kind.once else random
        values = torch.from_numpy(values_of(seeded, whole))
        # A root mean square above 10 is refused, which few large numbers may have once they are rounded.
        fields[name] = values.clamp(-1, 1) if spec.content is Content.WEIGHTS else values
    if kind is CountedWeights:  # more samples than anybody can have are refused
        fields["counts"] = fields["counts"].clamp(-1e6, 1e6)
    return kind(**fields)


def fits(codec: type[Codec], kind: type[Message]) -> bool:
    return contents(kind) <= codec.codes


def _end_cases(random: Random, names: tuple[str, ...]) -> Iterator[Case]:
    first = CODECS[random.choice(names)]
    up, down = random.choice([pair for pair in PAIRS if any(fits(first, kind) for kind in pair)])
    ways = []
    for kind in (up, down):
        fitting = [CODECS[name] for name in names if fits(CODECS[name], kind)] or [CODECS["fp32"]]
        chosen = first if fits(first, kind) and random.random() < 0.7 else random.choice(fitting)
        ways.append(settings_of(random, chosen))
    coder = MessageCoder(ways[0], ways[1], seed=0, messages=(up, down))
    sizes = sizes_of(random)
    start = coder.start(torch.zeros(sizes.parameters) if down is Weights else None)
    memory, kept = start, {}
    for round in range(1, random.randrange(1, 4)):
        server = ServerEndpoint(coder, {_CLIENT: memory}, lambda client: start, round)
        client = ClientEndpoint(coder, kept, start, round, _CLIENT)
        client.receive(down, server.send(_CLIENT, 0, message_of(random, down, sizes, round), sizes), sizes)
        server.receive(_CLIENT, up, client.reply(message_of(random, up, sizes, round), sizes), sizes)
        memory, kept = server.shared_states[_CLIENT], client.kept()
    yield from _last_exchange(random, coder, up, down, sizes, memory, start, kept)


def _last_exchange(
    random: Random,
    coder: MessageCoder,
    up: type[Message],
    down: type[Message],
    sizes: MessageContext,
    memory: SharedState,
    start: SharedState,
    kept: Any,
) -> Iterator[Case]:
    """Both ends as they stand in the middle of a round, and bytes for each of the two."""

    def ends() -> tuple[ServerEndpoint, ClientEndpoint]:
        server = ServerEndpoint(coder, {_CLIENT: memory}, lambda client: start, _ROUND)
        return server, ClientEndpoint(coder, kept, start, _ROUND, _CLIENT)

    server, client = ends()
    to_client = server.send(_CLIENT, 0, message_of(random, down, sizes, _ROUND), sizes)
    client.receive(down, to_client, sizes)
    to_server = client.reply(message_of(random, up, sizes, _ROUND), sizes)

    came = coder.read("down", down, frames.decode(to_client).sections, sizes, memory, sent=None, round=_ROUND)

    def at_server(data: bytes) -> None:
        server.shared_states[_CLIENT] = memory
        reply = server.receive(_CLIENT, up, data, sizes)
        if reply is not None:
            _read_whole(reply, sizes)
        with _must_not_fail("the message after it"):
            held = {
                _CLIENT: SharedState.of(decode_state(encode_state(server.shared_states[_CLIENT].plain())))
            }
            after = ServerEndpoint(coder, held, lambda client: start, _ROUND)
            after.send(_CLIENT, 0, message_of(random, down, sizes, _ROUND), sizes)

    def at_client(data: bytes) -> None:
        other = ends()[1]
        _read_whole(other.receive(down, data, sizes), sizes)
        with _must_not_fail("the answer to it"):
            other.reply(message_of(random, up, sizes, _ROUND), sizes)
            encode_state(other.kept())

    def in_exchange(data: bytes) -> None:
        sections = frames.decode(data).sections
        read = coder.read("up", up, sections, sizes, came.shared, sent=came.weights, round=_ROUND)
        _read_whole(read.message, sizes)

    expected = sizes.parameters + 10 * _POPULATION * sizes.classes
    readers: tuple[tuple[str, bytes, bytes, str, Reader], ...] = (
        ("server", to_server, to_client, coder.up.name, at_server),
        ("client", to_client, to_server, coder.down.name, at_client),
        ("coder", to_server, to_client, coder.up.name, in_exchange),
        ("frame", to_server, to_client, coder.up.name, lambda data: _reframed(data)),
    )
    for target, valid, other, codec, read in readers:
        for _ in range(END_CASES):
            yield Case(codec, target, _damaged_frame(random, valid, other), read, expected)


def _reframed(data: bytes) -> None:
    frame = frames.decode(data)
    if frames.decode(frames.encode(frame)) != frame:
        raise Failure("a frame that was read is not written again")


def _read_whole(message: Message, sizes: MessageContext) -> None:
    numbers: dict[str, Any] = {"held": 0, **message.numbers()}
    for name, whole in type(message).integer_arrays(sizes, numbers).items():
        numbers[name] = message.tensors()[name].numpy()
        if whole.read(whole.write(numbers[name])).tolist() != numbers[name].tolist():
            raise Failure(f"{name} is not what would be written")
    for name, spec in type(message).specs(sizes, numbers).items():
        values = message.tensors()[name]
        shape = (sizes.population, sizes.classes) if message.caches else spec.shape
        if tuple(values.shape) != shape or not values.isfinite().all():
            raise Failure(f"{name} of shape {tuple(values.shape)} is not {shape}, or not finite")


def _damaged_frame(random: Random, valid: bytes, other: bytes) -> bytes:
    """A frame that is damaged; or whole, with something in it that does not belong there."""
    if random.random() < 0.25:
        return damaged(random, valid, [other])
    if random.random() < 0.25:
        body = bytearray(damaged(random, valid[:-4], [other[:-4]]))
        if random.random() < 0.8:  # past the first checks
            body[:3] = b"fd" + bytes((random.choice((frames.VERSION, frames.VERSION, 1, 3)),))
        return _sealed(bytes(body))
    frame, stranger = frames.decode(valid), frames.decode(other)
    sections = list(frame.sections)
    for place in range(len(sections)):
        if random.random() < 0.7:
            sections[place] = damaged(random, sections[place], list(stranger.sections) or [other])
    if random.random() < 0.1:
        sections = random.choice((sections[:-1], [*sections, b"\0"], sections[::-1]))
    strange = {
        "kind": lambda: random.choice((*Kind, *CUSTOM)),
        "round": lambda: random.choice((0, 1, _ROUND + 1, 2**62)),
        "peer": lambda: random.choice((EVERYONE, 1, 2**62)),
        "state_id": lambda: random.choice((None, StateId(random.randrange(4), random.randbytes(4)))),
    }
    odd = random.sample(sorted(strange), 1 if random.random() < 0.3 else 0)
    return frames.encode(replace(frame, sections=tuple(sections), **{name: strange[name]() for name in odd}))


def _sealed(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first group")
    parser.add_argument("--codec", action="append", default=[], choices=list(CODECS), help="only these")
    wanted = parser.parse_args()
    counts: Counter[tuple[str, str, str]] = Counter()
    size = CODEC_CASES + 4 * END_CASES
    for seed in track(range(wanted.seed, wanted.seed - (-wanted.cases // size)), description="groups"):
        check(seed, tuple(wanted.codec), counts)
    for (codec, target, outcome), number in sorted(counts.items()):
        print(f"{codec:12} {target:10} {outcome:8} {number:10,}")


if __name__ == "__main__":
    main()
