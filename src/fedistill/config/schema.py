"""The settings of an experiment, validated; `fedistill.config.toml` reads and writes them.

Each setting is defined once, here or in the ``Settings`` of the method that owns it. Values are checked
where they are defined; whether a method can work with them is checked by the method before round 1.
"""

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    Tag,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from fedistill.config.hf import spelled
from fedistill.config.link import PROFILES, Link
from fedistill.config.messages import explain_errors
from fedistill.config.section import Positive as Positive
from fedistill.config.section import Raw, RawTable, Share
from fedistill.config.section import Section as Section
from fedistill.config.secure_sums import AnySecureSums
from fedistill.config.task import TaskConfig
from fedistill.config.training import PREDICTION_BATCH, Train, own_optimizer
from fedistill.errors import ExperimentError, nearest

ModelName = Annotated[str, BeforeValidator(spelled)]
"""A name of the ladder, ``module:function``, or ``hf:NAME`` with its settings, as a table or in brackets."""


class ModelsConfig(Section):
    clients: list[ModelName] = Field(min_length=1, description="assigned to the clients in turn")
    server: ModelName
    start: str | None = Field(
        default=None,
        description="saved model that the server's model and those that travel start from if they are of its"
        " architecture: a safetensors file, or the folder of a run; default: drawn weights",
    )
    start_digest: str | None = Field(
        default=None, description="of the file of `start`; a run writes it, to be resumed from the same file"
    )
    hf_digests: dict[str, str] | None = Field(
        default=None, description="of the files of each `hf:` model; a run writes it, as `start_digest`"
    )


class Sampling(Section):
    fraction: float = Field(default=1.0, gt=0, le=1, description="share of clients that take part in a round")
    dropout: Share = Field(default=0.0, description="probability that a client's reply is lost in a round")


class WhenWorth(Section):
    """Keep accumulating while an exchange would change too little for its bytes."""

    worth: Positive = Field(
        default=1.0, description="change per byte to expect of an exchange, as a multiple of the first one's"
    )
    most: int = Field(default=8, ge=2, le=1000, description="maximum number of rounds before an exchange")


AnyAccumulate = Annotated[
    Annotated[int, Field(ge=1, le=1000, strict=True), Tag("int")] | Annotated[WhenWorth, Tag("WhenWorth")],
    Discriminator(lambda value: "WhenWorth" if isinstance(value, dict | WhenWorth) else "int"),
]


def _different(metrics: list[str]) -> list[str]:
    if twice := [name for name in metrics if metrics.count(name) > 1]:
        raise ValueError(f"{twice[0]!r} is listed twice")
    return metrics


class Evaluate(Section):
    every: int = Field(
        default=1, ge=1, description="rounds between evaluations; the last round is always evaluated"
    )
    clients: int | None = Field(
        default=None,
        ge=1,
        description="rounds between evaluations of clients' models, which take longest; default: as every",
    )
    batch_size: int = Field(default=PREDICTION_BATCH, ge=1, description="samples per forward pass")
    metrics: Annotated[list[str], AfterValidator(_different)] = Field(
        default=["accuracy"],
        min_length=1,
        description="accuracy, which is always there, and any of balanced-accuracy, macro-f1, auroc, ece,"
        " log-loss, confusion and module:function",
    )
    hide_sites: bool = Field(
        default=False,
        description="keep names, sizes and figures of single clients out of results and report",
    )


class RuntimeConfig(Section):
    kind: Literal["auto", "serial", "processes"] = "auto"
    workers: int | None = Field(
        default=None, ge=1, description="default: one per core, and at most 4 that share a device"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="cpu", description="where models compute; auto: cuda if there is one, else mps, else cpu"
    )
    deterministic: bool = Field(
        default=True, description="on a device, refuse operations that have no deterministic algorithm"
    )
    fast: bool = Field(
        default=False,
        description="on the processor, train clients with small models together where that can be done;"
        " results differ by rounding",
    )
    server_threads: int = Field(
        default=1,
        ge=1,
        description="on the processor, threads that train and evaluate the server's model; another number"
        " rounds otherwise",
    )


class CheckpointConfig(Section):
    every: int = Field(
        default=1,
        ge=1,
        description="rounds between saved states; what kills the run costs the rounds since",
    )


class FlowerConfig(Section):
    """How long the server waits for clients on a network; and, there or not, how many must reply."""

    wait: Positive = Field(
        default=120.0, description="seconds to wait for all clients to connect at the start"
    )
    deadline: Positive = Field(default=600.0, description="seconds to wait for the replies of a round")
    quorum: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="share of a round's clients that must send a valid reply, with or without a network",
    )
    clients_per_node: int = Field(default=1, ge=1, description="how many clients one SuperNode may be")


def _name_or_table(codec: Raw) -> str | RawTable | None:
    if codec is None or isinstance(codec, str | dict):
        return codec
    raise ValueError(f"{codec!r} must be the name of a codec, or a table {{ up = CODEC, down = CODEC }}")


class Arm(BaseModel):
    """One method with its codec and settings; keys beyond these belong to the method."""

    model_config = ConfigDict(extra="allow", frozen=True)

    method: str
    name: str = ""
    codec: Annotated[str | RawTable | None, BeforeValidator(_name_or_table)] = Field(
        default=None, description="a name, { name, SETTINGS } or { up, down }; default: the method's"
    )
    accumulate: AnyAccumulate = Field(
        default=1, description="rounds of local training before an exchange, or { worth, most }"
    )
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="share of the past in a running mean of the server's model, which is measured and saved",
    )
    secure_sums: AnySecureSums = None
    seed: int | None = Field(default=None, ge=0, description="default: the experiment's seed")
    privacy: RawTable | None = Field(
        default=None, description="noise that bounds what a client tells of its data; see `[privacy]`"
    )
    models: ModelsConfig
    train: Train

    @property
    def settings(self) -> RawTable:
        return dict(self.model_extra or {})


MOST_SEEDS = 1000


def _number_or_list(value: Raw) -> int | list[int] | None:
    if value is None or (type(value) is int and 1 <= value <= MOST_SEEDS):
        return value
    seeds = value if isinstance(value, list) and all(type(item) is int for item in value) else []
    if 1 <= len(seeds) <= MOST_SEEDS and min(seeds) >= 0 and len(set(seeds)) == len(seeds):
        return seeds
    raise ValueError(
        f"{value!r} must be a number of seeds from 1 to {MOST_SEEDS}, or a list of different seeds such as"
        " [0, 1, 2]"
    )


class Experiment(Section):
    """An experiment, from `fedistill.load`, `fedistill.parse`, or the tables of a file as keyword arguments.

    Raises:
        ExperimentError: a key or value is wrong; the message names each such place and the nearest known key.
    """

    seed: int = Field(default=0, ge=0)
    seeds: Annotated[int | list[int] | None, BeforeValidator(_number_or_list)] = Field(
        default=None,
        description="run everything with so many seeds, from `seed` on, or with each of a list in its place",
    )
    rounds: int = Field(ge=1)
    task: TaskConfig
    models: ModelsConfig
    train: Train = Train()
    sampling: Sampling = Sampling()
    evaluate: Evaluate = Evaluate()
    runtime: RuntimeConfig = RuntimeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    flower: FlowerConfig = FlowerConfig()
    attack: RawTable | None = Field(
        default=None, description="clients that lie, for simulations: { kind, share or clients, SETTINGS }"
    )
    privacy: RawTable | None = Field(
        default=None,
        description="noise that bounds what clients tell of their data: { kind, SETTINGS }; an arm's own"
        ' takes its place, { kind = "none" } for none',
    )
    link: Annotated[
        Annotated[str, Tag("str")] | Annotated[Link, Tag("Link")],
        Discriminator(lambda value: "Link" if isinstance(value, dict | Link) else "str"),
    ] = Field(default="office-dsl", description="link that the report shows first")
    arms: list[Arm] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _arms_inherit(cls, raw: Raw) -> Raw:
        """Fill in what an arm leaves out from the tables of the experiment."""
        if not isinstance(raw, dict) or not isinstance(raw.get("arms"), list):
            return raw
        arms = []
        for arm in raw["arms"]:
            if isinstance(arm, dict):
                inherited = {key: _table(raw[key]) for key in ("models", "train") if key in raw}
                arm = _merge(own_optimizer({"train": {}, **inherited}, arm), arm)
                if raw.get("privacy") is not None:
                    arm.setdefault("privacy", raw["privacy"])
                if isinstance(arm.get("method"), str):
                    arm.setdefault("name", arm["method"])
            arms.append(arm)
        return {**raw, "arms": arms}

    @model_validator(mode="before")
    @classmethod
    def _seed_is_the_first_of_a_list(cls, raw: Raw) -> Raw:
        seeds = raw.get("seeds") if isinstance(raw, dict) else None
        if isinstance(seeds, list) and seeds and type(seeds[0]) is int and seeds[0] >= 0:
            return {"seed": seeds[0], **raw}
        return raw

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        called: dict[str, str] = {}
        for name in (arm.name for arm in self.arms):
            # A name is that of a folder, and not every file system tells capitals from small letters.
            other = called.get(name.casefold())
            if other == name:
                raise ValueError(f"two arms are called {name!r}; give one of them another `name`")
            if other is not None:
                raise ValueError(
                    f"the arms {other!r} and {name!r} would share a folder where file systems ignore case:"
                    " give one of them another `name`"
                )
            called[name.casefold()] = name
        return self

    @model_validator(mode="after")
    def _seeds_take_the_place_of_others(self) -> Self:
        if self.seeds is None:
            return self
        if self.seed != self.all_seeds[0]:
            raise ValueError(
                f"`seed` = {self.seed} is not the first of `seeds`, which takes its place: take `seed` out"
            )
        for arm in self.arms:
            if arm.seed is not None:
                raise ValueError(
                    f"arm {arm.name!r} has a `seed` of its own, but `seeds` gives all arms the same: take one"
                    " of the two out"
                )
        return self

    @property
    def all_seeds(self) -> list[int]:
        """The seeds that everything is run with; one if `seeds` is absent."""
        if isinstance(self.seeds, list):
            return self.seeds
        return list(range(self.seed, self.seed + (self.seeds or 1)))

    def with_seed(self, seed: int) -> Self:
        """Return the experiment with one seed in place of all."""
        return self.model_copy(update={"seed": seed, "seeds": None})

    @model_validator(mode="after")
    def _link_is_known(self) -> Self:
        if isinstance(self.link, str) and self.link not in PROFILES:
            known = ", ".join(PROFILES)
            guess = nearest(self.link, PROFILES)
            raise ValueError(f"`link` = {self.link!r}: must be a table or one of {known}.{guess}")
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _errors_are_explained(
        cls, raw: Raw, check: ModelWrapValidatorHandler[Self], info: ValidationInfo
    ) -> Self:
        """Stand below all other validators, so that it is around them."""
        try:
            return check(raw)
        except ValidationError as error:
            where = (info.context or {}).get("where", "experiment")
            raise ExperimentError(explain_errors(error, where, cls)) from None


def _table(value: Raw) -> Raw:
    """Return a section that is built already as the table that it was built from."""
    return value.model_dump(exclude_unset=True) if isinstance(value, Section) else value


def _merge(base: RawTable, over: RawTable) -> RawTable:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merge(old, value) if both else value  # type: ignore[arg-type]  # `both`
    return merged
