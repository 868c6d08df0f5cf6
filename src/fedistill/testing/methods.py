"""The contract of methods: what each must do on any experiment, whoever has written it."""

import inspect
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from random import Random
from typing import Any

from fedistill.communication.kinds import Direction, kind_label
from fedistill.communication.messages.base import Message, MessageContext, example_message
from fedistill.communication.protocol.message_coder import MessageCoder
from fedistill.config.schema import Experiment, Sampling
from fedistill.config.section import Raw
from fedistill.errors import FrameError
from fedistill.experiment.preflight import examine
from fedistill.experiment.run_folder import RunFolder
from fedistill.federation.arm import ReadyArm
from fedistill.federation.history import ArmRun
from fedistill.federation.local_executor import ProcessExecutor, SerialExecutor
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run
from fedistill.methods.base import Method
from fedistill.methods.registry import registry
from fedistill.rng import SERVER
from fedistill.state import State, encode_state, to_plain
from fedistill.testing.checks import NamedCheck, require, run_checks, written
from fedistill.testing.runs import (
    MIXED,
    MIXED_FOR_TEXTS,
    SAME,
    SAME_WIDTH,
    SOME_AWAY,
    TEXTS,
    Bits,
    Spy,
    TomlTable,
    bits,
    finish,
    ready,
    require_one_memory,
    require_same,
    small_experiment,
)
from fedistill.testing.samples import damaged

MethodOrName = type[Method[Any, Any, Any, Any]] | str
"""A method, whatever its messages and states, or a name that an experiment may have for it."""
_DAMAGED = 50
"""Damaged messages that are read, of each type."""
_NUMBERS = 16
"""Bytes by which whole numbers, which take more bytes the greater they are, may lengthen a message."""


def check_method(
    method: MethodOrName,
    *,
    models: TomlTable | None = None,
    settings: TomlTable | None = None,
    experiment: TomlTable | None = None,
) -> list[str]:
    """Run all checks of a method; return their names.

    Args:
        method: the class, or a name that an experiment may have for it.
        models: ``{"clients": [...], "server": ...}``; default: small ones that it accepts by its `needs`.
        settings: of the arm.
        experiment: tables of the experiment, in place of those of a small one on digits, or on news articles
            if the method needs texts.

    Raises:
        ContractError: lists the rules that it breaks, and how.
    """
    checks = method_checks(method, models=models, settings=settings, experiment=experiment)
    return run_checks(f"method {method if isinstance(method, str) else method.__name__}", checks)


def method_checks(
    method: MethodOrName,
    *,
    models: TomlTable | None = None,
    settings: TomlTable | None = None,
    experiment: TomlTable | None = None,
) -> list[NamedCheck]:
    """Return the checks of a method by name; the arguments are those of `check_method`.

    Raises:
        ContractError, ExperimentError: an experiment cannot name the class, or something is wrong with it.
    """
    name = written(method, registry)
    needs = registry.find(name).needs
    chosen = {"any": MIXED, "one width": SAME_WIDTH, "one architecture": SAME}[needs.models]
    if needs.inputs == "text":
        chosen = MIXED_FOR_TEXTS
    case = MethodCase(name, models or chosen, settings or {}, experiment or {})
    return [(check.__name__, partial(check, case)) for check in METHOD_CHECKS]


@dataclass(frozen=True)
class MethodCase:
    """A method with models that it accepts, on a small experiment."""

    method: str
    models: TomlTable
    settings: TomlTable = field(default_factory=dict)
    experiment: TomlTable = field(default_factory=dict)

    def ready(self, arm: TomlTable | None = None, **changes: Raw) -> tuple[Experiment, ReadyArm]:
        """The experiment with changed tables, and its only arm; ``arm``: settings that every method has."""
        base = {"models": self.models, "arms": [{"method": self.method, **self.settings, **(arm or {})}]}
        wanted = small_experiment(base, TEXTS if self.texts else {}, self.experiment, changes)
        return wanted, ready(wanted)

    def run(self, arm: TomlTable | None = None, **changes: Raw) -> tuple[ReadyArm, ArmRun]:
        """All rounds, in this process."""
        wanted, found = self.ready(arm, **changes)
        with SerialExecutor(wanted, found.task) as executor:
            return found, finish(found, executor)

    @cached_property
    def some_away(self) -> Bits:
        """All that is left of a run in this process in which some clients are away: the measure of others."""
        return bits(self.run(sampling=SOME_AWAY)[1])

    @cached_property
    def watched(self) -> tuple[ReadyArm, ArmRun, dict[str, list[int]]]:
        """Six rounds in which replies are lost and clients away for long, and the lengths of their frames."""
        wanted, arm = self.ready(rounds=6, sampling={"fraction": 0.5, "dropout": 0.4})
        with Spy(SerialExecutor(wanted, arm.task)) as spy:
            return arm, finish(arm, spy), spy.lengths

    @property
    def exchanges(self) -> bool:
        return registry.find(self.method).uplink is not None

    @property
    def one_shot(self) -> bool:
        return registry.find(self.method).one_shot

    @property
    def texts(self) -> bool:
        return registry.find(self.method).needs.inputs == "text"


def it_says_what_it_is(case: MethodCase) -> None:
    """Name, paper, bytes and messages are declared, and the class has a docstring of its own."""
    method = registry.find(case.method)
    text = vars(method).get("__doc__")
    require(bool(text), f"{method.__name__} needs a docstring that says how it works and what is exchanged")
    require(not inspect.isabstract(method), f"{method.__name__} is abstract")


def same_seed_same_bits(case: MethodCase) -> None:
    arm, again = case.run(sampling=SOME_AWAY)
    require_same(again, case.some_away, "two runs of one seed must be the same bit for bit")
    _, other = case.run(sampling=SOME_AWAY, seed=arm.seed + 1)
    require(bits(other) != case.some_away, "another seed must end in another run, but nothing differs")


def worker_processes_end_in_the_same_bits(case: MethodCase) -> None:
    wanted, arm = case.ready(sampling=SOME_AWAY)
    with ProcessExecutor(2, wanted, arm.task) as executor:
        there = finish(arm, executor)
    require_same(
        there, case.some_away, "a run in worker processes must be bit-identical to one in one process"
    )


def resumed_ends_as_never_stopped(case: MethodCase) -> None:
    wanted, arm = case.ready(sampling=SOME_AWAY)
    with (
        tempfile.TemporaryDirectory(prefix="fedistill-") as place,
        SerialExecutor(wanted, arm.task) as executor,
    ):
        folder = RunFolder.create(Path(place) / "run", wanted, "test")
        run = start_run(arm)
        for _ in range(arm.rounds - 1):
            play_round(run, arm, executor)
            folder.add_round(arm, run)
            folder.save(arm, run)
        _, again = case.ready(sampling=SOME_AWAY)
        loaded = RunFolder.open(folder.path).restore(again)
        require(loaded.round == arm.rounds - 1, f"round {loaded.round} was loaded of {arm.rounds - 1}")
        require_same(
            finish(again, executor, loaded),
            case.some_away,
            "a resumed run must end as one that never stopped",
        )


def both_ends_remember_the_same(case: MethodCase) -> None:
    """What a link remembers is equal at both of its ends, regardless of who was absent."""
    arm, run, _ = case.watched
    require_one_memory(run, arm)


def the_ledger_is_the_sum_of_frame_lengths(case: MethodCase) -> None:
    arm, run, crossed = case.watched
    for way, lengths in crossed.items():
        counted = sum(entry.bytes for entry in run.ledger.entries if entry.direction == way)
        require(counted == sum(lengths), f"the ledger has {counted} bytes {way}, but {sum(lengths)} crossed")
    require(
        (run.ledger.total > 0) == case.exchanges,
        f"{run.ledger.total} bytes crossed, but its uplink is {arm.method.uplink}",
    )
    copies = len(arm.task.clients) if "clients" in arm.method.needs.public else 0
    expected = copies * arm.task.public.bytes if arm.task.public is not None else 0
    require(run.ledger.public == expected, f"{run.ledger.public} bytes of public data are not {expected}")


def no_frame_is_longer_than_foretold(case: MethodCase) -> None:
    """In numbers of four bytes, no frame is longer than `doctor` predicts."""
    arm, run = case.run({"codec": "fp32"})
    for entry in run.ledger.entries:
        types = arm.method.uplinks if entry.direction == "up" else arm.method.downlinks
        message = next((one for one in types if kind_label(one.kind) == entry.kind), None)
        if entry.round == 0 or message is None:
            continue
        most = arm.coder.length(entry.direction, message, arm.message_context(entry.client)) + _NUMBERS
        require(
            entry.bytes <= most,
            f"a frame {entry.direction} of round {entry.round} has {entry.bytes} bytes, but at most {most}"
            f" were predicted: `specs` or `longest` of {message.__name__} says too little",
        )


def a_client_that_is_absent_comes_back(case: MethodCase) -> None:
    """With a quarter of the clients per round, each misses rounds between two that it works in."""
    arm, run = case.run(rounds=8, sampling={"fraction": 0.25})
    if arm.method.clients_work:
        working = {client for record in run.records for client in record.clients}
        require(len(working) > 1, "the experiment has too few clients or rounds to tell")
    require(bool(run.records[-1].views), "nothing was evaluated after the last round")


def local_training_accumulates(case: MethodCase) -> None:
    """Exchanges in rounds 2, 4 and 5, the last; what a client stays behind, it makes up for there."""
    if not case.exchanges:
        return
    _, run = case.run({"accumulate": 2}, rounds=5)
    local = [record.local for record in run.records]
    require(local == [0, 2, 0, 2, 1], f"local rounds before each exchange are {local}")
    rounds = {entry.round for entry in run.ledger.entries if entry.round}
    due = [2] if case.one_shot else [2, 4, 5]
    require(sorted(rounds) == due, f"frames crossed in rounds {sorted(rounds)}, and not in {due}")
    viewed = [bool(record.views) for record in run.records]
    require(viewed == [False, True, False, True, True], f"rounds with views are {viewed}")


def adaptive_exchanges_outlast_lost_replies(case: MethodCase) -> None:
    """A round without a reply tells nothing about what exchanges bring, and does not stop them."""
    if not case.exchanges:
        return
    accumulate = {"worth": 1.0, "most": 3}
    _, run = case.run({"accumulate": accumulate}, rounds=8, sampling={"fraction": 0.5, "dropout": 0.5})
    held = [record for record in run.records if record.local]
    changes = [record.change for record in held]
    silent = [record.change for record in held if not set(record.clients) - set(record.dropped)]
    require(len(held) >= 3, f"only {len(held)} of 8 rounds ended in an exchange")
    require(all(change is None for change in silent), f"rounds without a reply report changes {silent}")
    require(
        case.one_shot or any(change is not None for change in changes),
        "no exchange reports how much it has changed",
    )
    total = sum(record.local for record in held)
    require(total == 8, f"clients trained for {total} rounds and not for 8")


def lost_replies_change_nothing_at_the_server(case: MethodCase) -> None:
    wanted, arm = case.ready()
    if not arm.method.clients_work:
        return
    # A dropout of 1 is refused in experiments, since nothing would ever arrive.
    deaf = replace(arm, sampling=Sampling.model_construct(fraction=1.0, dropout=1.0))
    with SerialExecutor(wanted, arm.task) as executor:
        run = start_run(arm)
        if not case.one_shot:
            play_round(run, arm, executor)
        before = encode_state(to_plain(run.server))
        record = play_round(run, deaf, executor)
        require(record.dropped == record.clients, "not all replies were lost")
        same = encode_state(to_plain(run.server)) == before
        require(same, "the server's state has changed, although every reply of the round was lost")
        after = play_round(run, arm, executor)
        require(after.dropped == [], "replies are lost for good")
        require(
            not case.exchanges or encode_state(to_plain(run.server)) != before,
            "the server's state has not changed, although replies have arrived",
        )


def models_that_differ_run_or_are_refused_with_a_fix(case: MethodCase) -> None:
    mixed = MIXED_FOR_TEXTS if case.texts else MIXED
    wanted, arm = case.ready(rounds=1, models=mixed)
    errors = [str(finding) for finding in examine(wanted, arm.task, [arm]) if finding.level == "error"]
    if arm.method.needs.models == "any":
        require(errors == [], f"its `needs` accept any models, but {mixed} is refused: {'; '.join(errors)}")
        with SerialExecutor(wanted, arm.task) as executor:
            require(bool(finish(arm, executor).records[0].views), "nothing was evaluated")
    else:
        require(
            len(errors) == 1,
            f"{mixed} must be refused once, but the findings are: {'; '.join(errors) or 'none'}",
        )
        require("models = {" in errors[0], f"the refusal must say what to write instead: {errors[0]}")


def damaged_messages_are_refused(case: MethodCase) -> None:
    """Bytes that nobody meant end in a message or in `FrameError`, and in nothing else."""
    _, arm = case.ready({"codec": "fp32"})
    ways: list[tuple[Direction, type[Message]]] = [
        *(("up", message) for message in arm.method.uplinks),
        *(("down", message) for message in arm.method.downlinks),
    ]
    for way, message in ways:
        coder, context = MessageCoder(arm.coder.up, arm.coder.down, 0, [message]), arm.message_context(0)
        for sections in _damaged_sections(coder, way, message, context):
            memory = arm.initial_shared_state(0)
            try:
                found = coder.read(way, message, sections, context, memory, sent=None, round=1).message
                found.check()
            except FrameError:
                continue
            except Exception as error:  # what the check is after: anything but FrameError
                raise AssertionError(
                    f"{message.__name__} from damaged sections {[one[:20].hex() for one in sections]} raised"
                    f" {type(error).__name__} and not FrameError: {error}"
                ) from error


def _damaged_sections(
    coder: MessageCoder, way: Direction, message: type[Message], context: MessageContext
) -> list[tuple[bytes, ...]]:
    chance = Random(0)
    example = example_message(message, context)
    client = SERVER if way == "down" else 0
    own: State | None = None if way == "down" else {}
    memory = coder.start(None)
    whole = coder.write(way, example, context, memory, sent=None, own=own, round=1, client=client).sections
    found = [whole[:-1], (*whole, b"\0")]
    for _ in range(_DAMAGED if whole else 0):
        at = chance.randrange(len(whole))
        found.append((*whole[:at], damaged(chance, whole[at], list(whole)), *whole[at + 1 :]))
    return found


METHOD_CHECKS: tuple[Callable[[MethodCase], None], ...] = (
    it_says_what_it_is,
    same_seed_same_bits,
    worker_processes_end_in_the_same_bits,
    resumed_ends_as_never_stopped,
    both_ends_remember_the_same,
    the_ledger_is_the_sum_of_frame_lengths,
    no_frame_is_longer_than_foretold,
    a_client_that_is_absent_comes_back,
    local_training_accumulates,
    adaptive_exchanges_outlast_lost_replies,
    lost_replies_change_nothing_at_the_server,
    models_that_differ_run_or_are_refused_with_a_fix,
    damaged_messages_are_refused,
)
