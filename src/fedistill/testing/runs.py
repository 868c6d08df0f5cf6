"""Small experiments on digits, and what two runs of one must have in common."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from fedistill.communication.protocol.shared_state import SharedState, dump_states
from fedistill.config.schema import Experiment
from fedistill.config.section import Raw, RawTable
from fedistill.config.task import TaskConfig
from fedistill.config.toml import parse
from fedistill.data.build import build_task
from fedistill.data.task import Task
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client import ClientResult
from fedistill.federation.evaluation import Measured
from fedistill.federation.executor import Executor, Job
from fedistill.federation.failures import ClientFailure
from fedistill.federation.history import ArmRun
from fedistill.federation.ledger import Ledger
from fedistill.federation.round import play_round
from fedistill.federation.scores import Scores
from fedistill.federation.setup import start_run
from fedistill.state import decode_state, encode_state, to_plain
from fedistill.testing.checks import require

TomlTable = Mapping[str, Raw]
"""A table of an experiment, as TOML has it."""
Bits = dict[
    str,
    bytes
    | dict[int, bytes]
    | Ledger
    | list[dict[str, float]]
    | list[Measured]
    | list[tuple[list[int], list[int]]],
]
"""What two equal runs have in common; the keys say what each part is."""

SAME = {"clients": ["cnn-s"], "server": "cnn-s"}
MIXED = {"clients": ["cnn-s", "mlp-s"], "server": "cnn-m"}
SAME_WIDTH = {"clients": ["cnn-s", "cnn-m"], "server": "cnn-s"}
"""Models of the same architecture; of two that share nothing; of two whose features have the same length."""
MIXED_FOR_TEXTS = {"clients": ["bag", "textcnn"], "server": "bag"}
TEXTS: TomlTable = {"task": {"name": "bbc-news", "text": {"length": 16, "vocabulary": 400}}}
"""For methods that need texts: models that share nothing, and the task in place of digits."""
SOME_AWAY = {"fraction": 0.75, "dropout": 0.2}
"""Three of four clients per round, and one reply in five is lost."""


def small_experiment(*layers: TomlTable) -> Experiment:
    """An experiment with four clients and three rounds, changed by tables; those of ``task`` are merged."""
    raw: RawTable = {
        "rounds": 3,
        "train": {"batch_size": 16, "optimizer": {"lr": 0.05, "momentum": 0.9}},
    }
    task: RawTable = {
        "name": "digits",
        "clients": 4,
        "limit": 240,
        "public": 150,
        "partition": {"kind": "dirichlet", "alpha": 0.5},
    }
    for layer in layers:
        raw |= layer
        task |= layer.get("task", {})
    return parse({**raw, "task": task}, "the experiment of the contract")


def ready(experiment: Experiment) -> ReadyArm:
    """The only arm of an experiment, with its task built."""
    task = _task(experiment.task.model_dump_json(), experiment.seed)
    return ReadyArm.of(experiment.arms[0], experiment, task)


@lru_cache(maxsize=8)
def _task(config: str, seed: int) -> Task:
    return build_task(TaskConfig.model_validate_json(config), seed)


def finish(arm: ReadyArm, executor: Executor, run: ArmRun | None = None) -> ArmRun:
    """Play all rounds of an arm, or those that a run still lacks."""
    run = start_run(arm) if run is None else run
    while run.round < arm.rounds:
        play_round(run, arm, executor)
    return run


def bits(run: ArmRun) -> Bits:
    """All of a run that must not depend on where, when or how often it was run, by what it is."""
    return {
        "the server's state": encode_state(to_plain(run.server)),
        "the clients' states": dict(run.clients),
        "what both ends of the links remember": encode_state(dump_states(run.shared_states)),
        "the ledger": run.ledger,
        "accuracies": [record.views for record in run.records],
        "other measures": [record.measured for record in run.records],
        "clients of each round": [(record.clients, record.dropped) for record in run.records],
    }


def require_same(found: ArmRun, expected: Bits, what: str) -> None:
    """Raise `AssertionError` that says in what a run differs from another's `bits`."""
    differs = [name for name, value in bits(found).items() if value != expected[name]]
    require(not differs, f"{what}, but they differ in {', '.join(differs)}")


def require_one_memory(run: ArmRun, arm: ReadyArm) -> None:
    """Raise `AssertionError` unless each client holds what the server holds of it.

    A client also keeps what it held before its last exchange, whose reply may have been lost.
    """
    for client, memory in run.shared_states.items():
        state = run.clients.get(client)
        link = decode_state(state).get("link") if state else None
        require(
            (link is not None) == arm.coder.remembers,
            f"client {client} {'keeps' if link else 'does not keep'} what its link remembers, but the codecs"
            f" {'do' if arm.coder.remembers else 'do not'} remember anything",
        )
        if link:
            held = {SharedState.of(link[when]["memory"]).state_id for when in ("before", "after")}
            require(memory.state_id in held, f"client {client} remembers other messages than the server does")


class Spy(Executor):
    """Hands jobs on and keeps the length of every frame that passes, either way."""

    def __init__(self, inner: Executor) -> None:
        self.inner = inner
        self.quorum = inner.quorum
        self.lengths: dict[str, list[int]] = {"up": [], "down": []}

    def run_clients(
        self, arm: str, round: int, jobs: Sequence[Job]
    ) -> Iterator[ClientResult | ClientFailure]:
        self.lengths["down"] += [len(frame) for _, _, frame in jobs]
        for outcome in self.inner.run_clients(arm, round, jobs):
            if isinstance(outcome, ClientResult):
                self.lengths["up"].append(len(outcome.frame))
            yield outcome

    def evaluate(self, arm: str, jobs: Sequence[Job]) -> Iterator[Scores | None]:
        return self.inner.evaluate(arm, jobs)

    def close(self) -> None:
        self.inner.close()
