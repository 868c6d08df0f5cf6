"""``results.json``: the outcome of a run, in the shape that other programs rely on.

Bytes are integers summed over clients. ``bytes_total`` is all rounds and set-up, without public data;
``bytes_public`` is one copy of the public set for each client that needs one. ``multiply_adds`` are those of
the clients' work, summed over clients; ``memory`` is the bytes that training takes, at the client where it
takes most (`fedistill.training.cost`).

A run of an experiment without ``seeds`` has schema 1, in which an arm has its rounds; one with ``seeds`` has
schema 2, in which an arm has a list of seeds, each with its rounds. A new key does not raise the schema: a
program should ignore keys that it does not know, and do without those that older files do not have.
"""

import contextlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NotRequired, TypedDict, final

from fedistill.communication.codecs import registry as codecs
from fedistill.config.link import PROFILES, Link, LinkUse, round_seconds
from fedistill.data.task import Task
from fedistill.federation.arm import ReadyArm
from fedistill.federation.executor import TORCH_THREADS, cores
from fedistill.federation.history import ArmRun, RoundRecord

SCHEMA = 1
SCHEMA_OF_SEEDS = 2
_PACKAGES = ("torch", "numpy", "datasets", "flwr-datasets", "constriction")
"""Dependencies whose version may change what a run's bits are."""

Status = Literal["done", "stopped", "failed"]


class RoundJson(TypedDict):
    """A round; ``kinds`` has bytes by direction and kind of message, ``missing`` reasons by client.

    ``multiply_adds`` and ``memory`` are absent from a round that version 0.2 or earlier has played.
    """

    round: int
    bytes_up: int
    bytes_down: int
    seconds: float
    kinds: dict[str, dict[str, int]]
    clients: list[int]
    dropped: list[int]
    missing: dict[str, str]
    transport: dict[str, int]
    views: dict[str, float]
    multiply_adds: NotRequired[int]
    memory: NotRequired[int]


class SeedJson(TypedDict):
    """What an arm did with one seed; a view that its method does not have is absent from its rounds.

    ``multiply_adds`` and ``memory`` are absent if they are from any of the rounds.
    """

    seed: int
    status: Status
    error: str | None
    parameters: dict[str, int]
    rounds: list[RoundJson]
    bytes_setup: int
    bytes_public: int
    bytes_total: int
    bytes_transport: int
    multiply_adds: NotRequired[int]
    memory: NotRequired[int]


class _ArmName(TypedDict):
    """What an arm is, whatever the seed."""

    name: str
    method: str
    codec: str
    server_model: str | None
    client_models: list[str]


@final
class ArmJson(_ArmName, SeedJson):
    """An arm of a run with one seed."""


@final
class ArmOfSeedsJson(_ArmName):
    """An arm of a run with several seeds: those that have begun, in order; ``parameters`` with the first.

    How many parameters a model has may depend on the seed: the vocabulary of texts comes from public texts,
    which are drawn.
    """

    parameters: dict[str, int]
    seeds: list[SeedJson]


AnyArmJson = ArmJson | ArmOfSeedsJson


class PublicJson(TypedDict):
    """The public set; ``bytes`` of one copy."""

    samples: int
    bytes: int
    source: str


class VocabularyJson(TypedDict):
    """The vocabulary of texts; ``bytes`` of the frame that carries it."""

    size: int
    bytes: int


class TaskJson(TypedDict):
    """The task; ``samples`` of each client, ``class_counts`` of each client by class.

    ``client_names`` are the sites' names; absent where the partition has no sites.
    """

    name: str
    kind: str
    classes: list[str]
    clients: int
    partition: str
    client_names: NotRequired[list[str]]
    samples: list[int]
    class_counts: list[list[int]]
    test: int
    public: PublicJson | None
    vocabulary: VocabularyJson | None


class TaskOfSeedJson(TaskJson):
    """The task with one of several seeds, which public and private samples and the vocabulary depend on."""

    seed: int


class HardwareJson(TypedDict):
    """The machine that ended the run; of a run on a network, the server's."""

    machine: str
    processor: str
    cores: int
    torch_threads: int
    platform: str


class _Origin(TypedDict):
    """Which program made the file, where, and how it was called."""

    schema: int
    version: str
    versions: dict[str, str]
    hardware: HardwareJson
    command: str


@final
class ResultsJson(_Origin):
    """The complete file of a run with one seed (schema 1)."""

    task: TaskJson
    arms: list[ArmJson]


@final
class ResultsOfSeedsJson(_Origin):
    """The complete file of a run with several seeds (schema 2).

    ``seeds`` are those that the experiment asks for; ``tasks`` and each arm have those that have begun.
    ``task`` is that of the first.
    """

    task: TaskJson
    tasks: list[TaskOfSeedJson]
    seeds: list[int]
    arms: list[ArmOfSeedsJson]


AnyResultsJson = ResultsJson | ResultsOfSeedsJson


def of_seeds(arm: AnyArmJson) -> Sequence[SeedJson]:
    """Return what an arm did with each seed, whichever schema it is of."""
    if "seeds" in arm:
        return arm["seeds"]
    return [arm]


def counted(arm: AnyArmJson) -> Sequence[SeedJson]:
    """Return the seeds that figures of the arm are about: those that are done.

    Where none is, they are those that have played a round, so that it is seen how far the arm came.
    """
    every = of_seeds(arm)
    done = [one for one in every if one["status"] == "done"]
    return done or [one for one in every if one["rounds"]] or every


def has_failed(results: AnyResultsJson) -> bool:
    """Whether an arm has failed, with any of its seeds."""
    return any(one["status"] == "failed" for arm in results["arms"] for one in of_seeds(arm))


def results_of_seeds(
    command: str, seeds: Sequence[int], found: Mapping[int, ResultsJson]
) -> ResultsOfSeedsJson:
    """Return the results of several seeds from those of each that has any; at least one."""
    first, *_ = found.values()
    arms: list[ArmOfSeedsJson] = []
    for place, arm in enumerate(first["arms"]):
        arms.append(
            {
                "name": arm["name"],
                "method": arm["method"],
                "codec": arm["codec"],
                "server_model": arm["server_model"],
                "client_models": arm["client_models"],
                "parameters": arm["parameters"],
                "seeds": [_of_seed(seed, one["arms"][place]) for seed, one in found.items()],
            }
        )
    tasks: list[TaskOfSeedJson] = [{"seed": seed, **one["task"]} for seed, one in found.items()]
    return {
        "schema": SCHEMA_OF_SEEDS,
        "version": first["version"],
        "versions": first["versions"],
        "hardware": first["hardware"],
        "command": command,
        "task": first["task"],
        "tasks": tasks,
        "seeds": list(seeds),
        "arms": arms,
    }


def _of_seed(seed: int, arm: ArmJson) -> SeedJson:
    found: SeedJson = {
        "seed": seed,
        "status": arm["status"],
        "error": arm["error"],
        "parameters": arm["parameters"],
        "rounds": arm["rounds"],
        "bytes_setup": arm["bytes_setup"],
        "bytes_public": arm["bytes_public"],
        "bytes_total": arm["bytes_total"],
        "bytes_transport": arm["bytes_transport"],
    }
    if "multiply_adds" in arm and "memory" in arm:
        found["multiply_adds"], found["memory"] = arm["multiply_adds"], arm["memory"]
    return found


def results_json(command: str, task: Task, arms: list[ArmJson]) -> ResultsJson:
    """Return the content of ``results.json``."""
    return {
        "schema": SCHEMA,
        "version": version("fedistill"),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
        },
        "hardware": hardware_json(),
        "command": command,
        "task": task_json(task),
        "arms": arms,
    }


def hardware_json() -> HardwareJson:
    """Return what may explain a difference in time or bits; nothing in it says whose machine it is."""
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": cores(),
        "torch_threads": TORCH_THREADS,
        "platform": platform.platform(),
    }


def _processor() -> str:
    """The processor's model where the system says it, or else its family."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def task_json(task: Task) -> TaskJson:
    """Return samples by client and class, the public set and the vocabulary."""
    public = task.public
    words = task.signature.vocabulary
    found: TaskJson = {
        "name": task.name,
        "kind": task.signature.kind,
        "classes": list(task.classes),
        "clients": len(task.clients),
        "partition": task.partition,
        "samples": [len(data) for data in task.clients],
        "class_counts": task.class_counts().tolist(),
        "test": len(task.test),
        "public": None
        if public is None
        else {"samples": len(public), "bytes": public.bytes, "source": public.source},
        "vocabulary": {"size": words, "bytes": len(task.vocabulary_frame)} if words else None,
    }
    if task.client_names:
        found["client_names"] = list(task.client_names)
    return found


def arm_json(arm: ReadyArm, run: ArmRun, status: Status, error: str | None) -> ArmJson:
    """Return one arm: what it was, each round, and its bytes."""
    server = arm.server_model()
    rounds = [round_json(run, record) for record in run.records]
    found: ArmJson = {
        "name": arm.name,
        "method": arm.config.method,
        "codec": codecs.title(arm.config.codec or arm.method.codec),
        "seed": arm.seed,
        "status": status,
        "error": error,
        "server_model": None if server is None else server[0],
        "client_models": list(arm.config.models.clients) if arm.method.clients_use_models else [],
        "parameters": arm.parameters(),
        "rounds": rounds,
        "bytes_setup": run.ledger.setup,
        "bytes_public": run.ledger.public,
        "bytes_total": run.ledger.total,
        "bytes_transport": sum(one.carried.get(way, 0) for one in run.records for way in ("up", "down")),
    }
    if all("multiply_adds" in one for one in rounds):
        found["multiply_adds"] = sum(one["multiply_adds"] for one in rounds)
        found["memory"] = max((one["memory"] for one in rounds), default=0)
    return found


def round_json(run: ArmRun, record: RoundRecord) -> RoundJson:
    """Return one round, its bytes and multiply-adds summed over clients."""
    kinds = {
        "up": run.ledger.kinds(record.round, "up"),
        "down": run.ledger.kinds(record.round, "down"),
    }
    found: RoundJson = {
        "round": record.round,
        "bytes_up": sum(kinds["up"].values()),
        "bytes_down": sum(kinds["down"].values()),
        "seconds": round(record.seconds, 4),
        "kinds": kinds,
        "clients": record.clients,
        "dropped": record.dropped,
        "missing": record.missing,
        "transport": record.carried,
        "views": record.views,
    }
    if record.multiply_adds is not None and record.memory is not None:
        found["multiply_adds"], found["memory"] = sum(record.multiply_adds), max(record.memory, default=0)
    return found


def link_times(link: Link, records: list[RoundRecord]) -> list[float]:
    """Return simulated seconds from the start to the end of each round, every client behind its own link."""
    total, times = 0.0, []
    for record in records:
        sent = {client: [0, 0] for client in record.clients}
        for entry in record.traffic:
            sent[entry.client][entry.direction == "up"] += entry.bytes
        exchanges = [
            LinkUse(down, work, up) for (down, up), work in zip(sent.values(), record.work, strict=True)
        ]
        total += round_seconds(link, exchanges, record.server_seconds)
        times.append(total)
    return times


def report_links(link: str | Link) -> tuple[str, dict[str, Link]]:
    """Return the report's first choice of link by name, and all links that it offers."""
    if isinstance(link, str):
        return link, dict(PROFILES)
    return link.title, {link.title: link, **PROFILES}
