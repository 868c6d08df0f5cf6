"""``results.json``: the outcome of a run, in the shape that other programs rely on.

Bytes are integers summed over clients. ``bytes_total`` is all rounds and set-up, without public data;
``bytes_public`` is one copy of the public set for each client that needs one. ``multiply_adds`` are those of
the clients' work, summed over clients; ``memory`` is the bytes that training takes, at the client where it
takes most (`fedistill.training.cost`).

A run of an experiment without ``seeds`` has schema 1, in which an arm has its rounds; one with ``seeds`` has
schema 2, in which an arm has a list of seeds, each with its rounds. A new key does not raise the schema: a
program should ignore keys that it does not know, and do without those that older files do not have.
"""

from collections.abc import Sequence
from typing import Literal, NotRequired, final

from pydantic import TypeAdapter
from typing_extensions import TypedDict  # pydantic cannot check the one of `typing` before Python 3.12

from fedistill.config.section import Raw
from fedistill.federation.evaluation import Measured
from fedistill.federation.metrics import Better

SCHEMA = 1
SCHEMA_OF_SEEDS = 2

Status = Literal["done", "stopped", "failed"]


class RoundJson(Measured):
    """A round; ``kinds`` has bytes by direction and kind of message, ``missing`` reasons by client.

    ``reliability`` is how far the server followed each client, from 0 to 1, by number; absent where it
    followed all alike.

    ``views`` are accuracies; what else was measured is in the keys of
    `fedistill.federation.evaluation.Measured`, absent where it was not.

    ``multiply_adds`` and ``memory`` are absent from a round that version 0.2 or earlier has played.

    ``stacked`` is how many clients were trained together with others (`runtime.fast`), absent if none.
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
    reliability: NotRequired[dict[str, float]]
    multiply_adds: NotRequired[int]
    memory: NotRequired[int]
    stacked: NotRequired[int]


class PrivacyJson(TypedDict):
    """What noise has kept private: (ε, δ)-differential privacy for each client, over the rounds so far.

    ``mechanism`` is the kind in `[privacy]`; ``unit`` is how neighbouring data sets differ; ``against`` is
    who may know all else. ``epsilon`` is what each client has spent, by number, and 0 for one that has not
    worked; absent with `evaluate.hide_sites`. ``most`` is the largest.
    """

    mechanism: str
    unit: str
    against: str
    delta: float
    epsilon: NotRequired[dict[str, float]]
    most: float


class SeedJson(TypedDict):
    """What an arm did with one seed; a view that its method does not have is absent from its rounds.

    ``multiply_adds`` and ``memory`` are absent if they are from any of the rounds. ``bytes_evaluation`` is
    what measuring ``server@own`` has made cross, both ways: it is in no other number, and absent if it is 0.
    ``liars`` are the clients that lie by `[attack]`; absent without one. ``privacy`` is what `[privacy]` has
    kept; absent without it.

    ``reliability`` is how far the server followed each client, from 0 to 1, the mean over rounds, by number;
    ``distrusted`` are those below half of the median. Both are absent where a method follows all alike, and
    with `evaluate.hide_sites`.
    """

    seed: int
    status: Status
    error: str | None
    liars: NotRequired[list[int]]
    privacy: NotRequired[PrivacyJson]
    reliability: NotRequired[dict[str, float]]
    distrusted: NotRequired[list[int]]
    parameters: dict[str, int]
    rounds: list[RoundJson]
    bytes_setup: int
    bytes_public: int
    bytes_total: int
    bytes_transport: int
    bytes_evaluation: NotRequired[int]
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

    ``title`` stands where runs on different tasks are side by side; there, the two are empty.
    ``client_names`` are the sites' names; absent where the partition has no sites. ``own_tests`` are samples
    that each client has held out; absent where none has. With `evaluate.hide_sites`, what is known of each
    client is empty or absent.
    """

    name: str
    kind: str
    classes: list[str]
    clients: int
    partition: str
    client_names: NotRequired[list[str]]
    samples: list[int]
    own_tests: NotRequired[list[int]]
    class_counts: list[list[int]]
    test: int
    public: PublicJson | None
    vocabulary: VocabularyJson | None
    title: NotRequired[str]


class TaskOfSeedJson(TaskJson):
    """The task with one of several seeds, which public and private samples and the vocabulary depend on."""

    seed: int


class DeviceJson(TypedDict):
    """The device on which models computed, where it was not the processor: ``cuda``, say, and its model."""

    type: str
    name: str


class HardwareJson(TypedDict):
    """The machine that ended the run; of a run on a network, the server's."""

    machine: str
    processor: str
    cores: int
    torch_threads: int
    platform: str
    device: NotRequired[DeviceJson]


class _Origin(TypedDict):
    """Which program made the file, where (absent from files of version 0.1), and how it was called."""

    schema: int
    version: str
    versions: dict[str, str]
    hardware: NotRequired[HardwareJson]
    command: str


class MetricJson(TypedDict):
    """A metric besides accuracy; ``most``: no value is above it, or None if there is no such number."""

    name: str
    better: Better
    most: float | None


@final
class ResultsJson(_Origin):
    """The complete file of a run with one seed (schema 1); ``metrics`` is absent if there is but accuracy."""

    metrics: NotRequired[list[MetricJson]]
    task: TaskJson
    arms: list[ArmJson]


@final
class ResultsOfSeedsJson(_Origin):
    """The complete file of a run with several seeds (schema 2).

    ``seeds`` are those that the experiment asks for; ``tasks`` and each arm have those that have begun.
    ``task`` is that of the first.
    """

    metrics: NotRequired[list[MetricJson]]
    task: TaskJson
    tasks: list[TaskOfSeedJson]
    seeds: list[int]
    arms: list[ArmOfSeedsJson]


AnyResultsJson = ResultsJson | ResultsOfSeedsJson


def check_results(content: Raw, schema: int) -> AnyResultsJson:
    """Return the content of a results.json, which may have keys that this version does not know.

    Raises:
        ValidationError: it does not have the shape of the schema.
    """
    shape = ResultsOfSeedsJson if schema == SCHEMA_OF_SEEDS else ResultsJson
    TypeAdapter(shape).validate_python(content)
    checked: AnyResultsJson = content
    return checked


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


def last_views(one: SeedJson) -> dict[str, float]:
    """Return accuracy (0 to 1) by view when it was last evaluated."""
    last: dict[str, float] = {}
    for entry in one["rounds"]:
        last |= entry["views"]
    return last


def has_failed(results: AnyResultsJson) -> bool:
    """Whether an arm has failed, with any of its seeds."""
    return any(one["status"] == "failed" for arm in results["arms"] for one in of_seeds(arm))
