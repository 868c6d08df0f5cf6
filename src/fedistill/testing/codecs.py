"""The contract of codecs: what each must do with any tensor that it codes, and in any run."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random

import numpy as np

from fedistill.communication.codecs.base import Codec
from fedistill.communication.codecs.registry import Wanted, create_codec, registry
from fedistill.communication.tensor_specs import Content, SharedKnowledge, TensorSpec
from fedistill.config.schema import Experiment
from fedistill.config.section import Raw
from fedistill.errors import FrameError
from fedistill.experiment.run_folder import RunFolder
from fedistill.federation.arm import ReadyArm
from fedistill.federation.local_executor import ProcessExecutor, SerialExecutor
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run
from fedistill.state import encode_state
from fedistill.testing.checks import NamedCheck, require, run_checks, written
from fedistill.testing.runs import (
    SAME,
    TomlTable,
    bits,
    finish,
    ready,
    require_one_memory,
    require_same,
    small_experiment,
)
from fedistill.testing.samples import damaged, elsewhere, fault_of, known_of, sender_of, spec_of, values_of

_LINKS, _MESSAGES = 40, 3
"""Links that are tried, each with so many messages."""
_DAMAGED = 10
"""Damaged payloads of each link."""
_ROUNDING = 0.01
"""By how much the sum of a decoded row of probabilities may miss 1: numbers may be rounded, not scaled."""
_METHODS = {Content.WEIGHTS: "fedavg", Content.PROBS: "dsfl"}
_SCORES = "fedmd"
"""Methods that codecs are tried in; the last, which takes longer, for those of scores alone."""


def check_codec(codec: type[Codec] | str, *, settings: TomlTable | None = None) -> list[str]:
    """Run all checks of a codec; return their names.

    Args:
        codec: the class, or a name that an experiment may have for it.
        settings: of the codec.

    Raises:
        ContractError: lists the rules that it breaks, and how.
    """
    checks = codec_checks(codec, settings=settings)
    return run_checks(f"codec {codec if isinstance(codec, str) else codec.__name__}", checks)


def codec_checks(codec: type[Codec] | str, *, settings: TomlTable | None = None) -> list[NamedCheck]:
    """Return the checks of a codec by name; the arguments are those of `check_codec`.

    Raises:
        ContractError, ExperimentError: an experiment cannot name the class, or something is wrong with it.
    """
    wanted = {"name": written(codec, registry), **(settings or {})}
    codes = create_codec(wanted).codes
    checks: list[NamedCheck] = [(check.__name__, partial(check, wanted)) for check in TENSOR_CHECKS]
    played = [method for content, method in _METHODS.items() if content in codes] or [_SCORES]
    for method in played:
        case = CodecCase(wanted, method)
        checks += [(f"{check.__name__} ({method})", partial(check, case)) for check in RUN_CHECKS]
    return checks


def _links(wanted: TomlTable) -> Iterator[tuple[Random, Codec, TensorSpec]]:
    """Tensors of all contents that a codec codes, each with a source of chance of its own."""
    codec = create_codec(wanted)
    contents = sorted(codec.codes, key=lambda content: content.value)
    for number in range(_LINKS):
        chance = Random(f"link {number}")
        yield chance, codec, spec_of(chance, contents[number % len(contents)])


def numbers_come_back(wanted: TomlTable) -> None:
    """Finite numbers of the expected shape; where nothing is lost, the very same."""
    for chance, codec, spec in _links(wanted):
        values = values_of(chance, spec)
        known = known_of(chance, codec, spec, messages=chance.randrange(_MESSAGES))
        payload = codec.encode(values, spec, known, sender_of(chance)).payload
        found = codec.decode(payload, spec, known)
        fault = fault_of(found, spec)
        require(not fault, f"{_what(spec)}: {fault}")
        if codec.lossiness == "nothing":
            equal = np.array_equal(found.values, values)
            require(equal, f"{_what(spec)}: its `lossiness` is nothing, but other numbers come back")
        if spec.content is Content.PROBS and len(found.values):
            off = float(np.abs(found.values.sum(axis=1) - 1).max())
            require(
                off < _ROUNDING and float(found.values.min()) >= 0,
                f"{_what(spec)}: rows of class probabilities come back with sums that are off by {off:.3g}",
            )


def both_sides_remember_the_same(wanted: TomlTable) -> None:
    """After each message; what is remembered is plain data, and is never changed in place."""
    for chance, codec, spec in _links(wanted):
        known = known_of(chance, codec, spec, messages=0)
        sender = sender_of(chance)
        for message in range(_MESSAGES):
            where = f"{_what(spec)}, message {message + 1}"
            spec = elsewhere(chance, spec)
            values = values_of(chance, spec)
            before, copy = encode_state(known.memory), values.copy()
            sent = codec.encode(values, spec, known, sender)
            found, again = (codec.decode(sent.payload, spec, known) for _ in range(2))
            remembered = encode_state(sent.memory)
            require(
                encode_state(found.memory) == remembered, f"{where}: the two sides remember different things"
            )
            require(
                np.array_equal(found.values, again.values) and encode_state(again.memory) == remembered,
                f"{where}: the same bytes are read in two ways",
            )
            require(encode_state(known.memory) == before, f"{where}: the memory is changed in place")
            require(np.array_equal(values, copy), f"{where}: the numbers that are sent are changed in place")
            require(codec.remembers or not sent.memory, f"{where}: it has a memory, but `remembers` is False")
            encode_state(sent.own)
            require(codec.keeps or not sent.own, f"{where}: it keeps something, but `keeps` is False")
            known = replace(known, memory=sent.memory)
            sender = replace(sender, own=sent.own)


def damaged_bytes_are_refused(wanted: TomlTable) -> None:
    """They end in numbers or in `FrameError`; and what they leave in memory serves the next message."""
    for chance, codec, spec in _links(wanted):
        known = known_of(chance, codec, spec, messages=chance.randrange(_MESSAGES))
        valid, other = (
            codec.encode(values_of(chance, spec), spec, known, sender_of(chance)).payload for _ in range(2)
        )
        for _ in range(_DAMAGED):
            data = damaged(chance, valid, [other])
            where = f"{_what(spec)}, from {len(data)} damaged bytes {data[:40].hex()}"
            try:
                found = codec.decode(data, spec, known)
            except FrameError:
                continue
            except Exception as error:  # what the check is after: anything but FrameError
                raise AssertionError(
                    f"{where}: {type(error).__name__} and not FrameError: {error}"
                ) from error
            fault = fault_of(found, spec)
            require(not fault, f"{where}: {fault}")
            _go_on(chance, codec, elsewhere(chance, spec), replace(known, memory=found.memory), where)


def _go_on(chance: Random, codec: Codec, spec: TensorSpec, known: SharedKnowledge, where: str) -> None:
    try:
        payload = codec.encode(values_of(chance, spec), spec, known, sender_of(chance)).payload
        fault = fault_of(codec.decode(payload, spec, known), spec)
    except Exception as error:  # as above
        raise AssertionError(
            f"{where}: the message after it fails: {type(error).__name__}: {error}"
        ) from error
    require(not fault, f"{where}: the message after it: {fault}")


def equal_shapes_take_equal_bytes(wanted: TomlTable) -> None:
    """Where the codec is `fixed`, so that it can be foretold exactly what crosses."""
    for chance, codec, spec in _links(wanted):
        if not codec.fixed:
            return
        known = known_of(chance, codec, spec, messages=0)
        lengths = {
            len(codec.encode(values_of(chance, spec), spec, known, sender_of(chance)).payload)
            for _ in range(_MESSAGES)
        }
        require(
            len(lengths) == 1, f"{_what(spec)}: `fixed` is True, but messages have {sorted(lengths)} bytes"
        )


def only_what_sends_weights_is_relative(wanted: TomlTable) -> None:
    """Else a reference would be kept for tensors that have none; and a residual is of a difference."""
    codec = create_codec(wanted)
    weights_alone = codec.codes == {Content.WEIGHTS}
    require(weights_alone or not codec.relative, "`relative` is True, but it codes more than weights")
    require(codec.relative or not codec.keeps, "`keeps` is True, but `relative` is not")


def _what(spec: TensorSpec) -> str:
    return f"{spec.content.value} of shape {spec.shape}"


@dataclass(frozen=True)
class CodecCase:
    """A codec in a method whose messages it codes."""

    codec: Wanted
    method: str
    models: TomlTable = field(default_factory=lambda: SAME)

    def ready(self, **changes: Raw) -> tuple[Experiment, ReadyArm]:
        wanted = small_experiment(
            {
                "rounds": 4,
                "task": {"public": 100},
                "models": self.models,
                "evaluate": {"every": 4},
                "sampling": {"fraction": 0.75, "dropout": 0.25},
                "arms": [{"method": self.method, "codec": self.codec}],
            },
            changes,
        )
        return wanted, ready(wanted)


def same_bits_serial_in_processes_and_resumed(case: CodecCase) -> None:
    wanted, arm = case.ready()
    with SerialExecutor(wanted, arm.task) as executor:
        once = bits(finish(arm, executor))
        with tempfile.TemporaryDirectory(prefix="fedistill-") as place:
            folder = RunFolder.create(Path(place) / "run", wanted, "test")
            run = start_run(arm)
            for _ in range(arm.rounds - 1):
                play_round(run, arm, executor)
                folder.add_round(arm, run)
                folder.save(arm, run)
            loaded = finish(arm, executor, RunFolder.open(folder.path).restore(arm))
            require_same(loaded, once, "a resumed run must end as one that never stopped")
    with ProcessExecutor(2, wanted, arm.task) as executor:
        there = finish(arm, executor)
    require_same(there, once, "a run in worker processes must be bit-identical to one in a single process")


def both_ends_remember_the_same_whoever_was_away(case: CodecCase) -> None:
    """And no client has to be sent again what it has lost."""
    wanted, arm = case.ready(rounds=8, sampling={"fraction": 0.5, "dropout": 0.4})
    with SerialExecutor(wanted, arm.task) as executor:
        run = finish(arm, executor)
    require(any(record.dropped for record in run.records), "no reply was lost")
    require_one_memory(run, arm)
    kinds = {entry.kind for entry in run.ledger.entries}
    require("refresh" not in kinds, "a client and the server have lost each other's memory")


TENSOR_CHECKS: tuple[Callable[[TomlTable], None], ...] = (
    numbers_come_back,
    both_sides_remember_the_same,
    damaged_bytes_are_refused,
    equal_shapes_take_equal_bytes,
    only_what_sends_weights_is_relative,
)
RUN_CHECKS: tuple[Callable[[CodecCase], None], ...] = (
    same_bits_serial_in_processes_and_resumed,
    both_ends_remember_the_same_whoever_was_away,
)
