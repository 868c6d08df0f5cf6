"""The settings of an experiment, validated; `fedistill.config.toml` reads and writes them.

Each setting is defined once, here or in the ``Settings`` of the method that owns it. Values are checked
where they are defined; whether a method can work with them is checked by the method before round 1.
"""

import codecs
from typing import Annotated, Literal, Self

import PIL.ImageColor
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from fedistill.config.link import PROFILES, Link
from fedistill.config.partitions import Listed, Partition
from fedistill.config.section import Positive as Positive
from fedistill.config.section import Raw, RawTable, Share
from fedistill.config.section import Section as Section
from fedistill.config.training import PREDICTION_BATCH, Train, own_optimizer
from fedistill.errors import nearest

DEFAULT_CLIENTS, MOST_CLIENTS = 10, 100_000
Side = Annotated[int, Field(ge=1, le=4096)]


def _path_or_paths(value: Raw) -> str | list[str] | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return value
    raise ValueError(f'{value!r} must be a path, or a list of paths such as ["a.csv", "b.csv"]')


Paths = Annotated[str | list[str] | None, BeforeValidator(_path_or_paths)]


class Source(Section):
    """Where samples come from: a named data set, or files of one format."""

    name: str | None = Field(
        default=None, description="digits, bbc-news, mnist, fashion-mnist or hf:OWNER/NAME"
    )
    format: Literal["parquet", "csv", "json", "imagefolder", "save_to_disk"] | None = Field(
        default=None, description="format of your own files; save_to_disk: folders that `datasets` has saved"
    )
    train: Paths = Field(
        default=None,
        description="file or folder, or several: a list, or a pattern such as sites/*.csv; for hf: a split",
    )
    test: Paths = Field(
        default=None, description="as train; if absent, part of the training data is held out"
    )
    input: str | None = Field(default=None, description="column of images or texts")
    label: str | None = Field(default=None, description="column of labels")
    subset: str | None = Field(default=None, description="configuration of an hf: data set")
    separator: str | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        description="of CSV fields; default: comma, semicolon, tab or bar, found by the first rows",
    )
    encoding: str = Field(default="utf-8", description="of CSV and JSON files, such as latin-1 or cp1252")
    drop_missing: bool = Field(
        default=False, description="leave out rows without input or label; default: they are an error"
    )
    background: str | None = Field(
        default=None,
        description="colour behind transparent pixels; default: white, or black for bright pictures",
    )
    white_level: float | None = Field(
        default=None,
        gt=0,
        le=65535,
        description="value of white in images of more than 8 bits; default: the largest value, rounded up to"
        " 1 or to all of 8, 10, 12, 14 or 16 bits",
    )

    @model_validator(mode="after")
    def _one_kind_of_source(self) -> Self:
        self._check_source()
        return self

    def _check_source(self) -> None:
        if self.name is None and self.format is None:
            raise ValueError('set `name`, for example "digits", or, for your own files, `format` and `train`')
        if self.name is not None and self.format is not None:
            raise ValueError("`name` and `format` exclude each other: `format` is for your own files")
        if self.format is not None and self.train is None:
            raise ValueError("`format` needs `train`, the path of the training data")
        if self.format is None and (isinstance(self.train, list) or isinstance(self.test, list)):
            raise ValueError("lists of files need `format`; a data set by `name` has one split for each use")

    @model_validator(mode="after")
    def _encoding_and_background_are_known(self) -> Self:
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ValueError(
                f"`encoding` = {self.encoding!r} is not known; write utf-8, latin-1 or cp1252"
            ) from None
        if self.background is not None:
            try:
                PIL.ImageColor.getrgb(self.background)
            except ValueError:
                raise ValueError(
                    f'`background` = {self.background!r} is not a colour; write "white" or "#808080"'
                ) from None
        return self


class PublicSource(Source):
    """A public set of another data set, whose labels are never read, or held out of the training data.

    Its images may be stored lossily (``quality``), and samples may be made of a few of them (``images``).
    """

    samples: int = Field(ge=1, description="number of public samples, drawn or made with the seed")
    images: int | None = Field(
        default=None,
        ge=0,
        description="make the samples of so many images, which alone are sent; 0: draw them, of shapes",
    )
    quality: int | None = Field(
        default=None, ge=0, le=100, description="store images as WebP of this quality; default: as they are"
    )

    @property
    def is_held_out(self) -> bool:
        """Whether its samples are taken from the training data, if any are taken."""
        return self.name is None and self.format is None

    @model_validator(mode="after")
    def _one_kind_of_source(self) -> Self:
        if not self.is_held_out:
            self._check_source()
            if self.images == 0:
                raise ValueError("`images` = 0 takes no image of a data set: leave the data set out")
            return self
        fields = Source.model_fields
        if given := [key for key, field in fields.items() if getattr(self, key) != field.default]:
            raise ValueError(
                f"`{given[0]}` is for another data set, which needs a `name`, or `format` and `train`;"
                " without them, samples are held out of the training data"
            )
        if self.images == 0 and self.quality is not None:
            raise ValueError("`quality` has no meaning with `images` = 0: no image is stored")
        return self


class Text(Section):
    length: int = Field(default=128, ge=4, le=4096, description="tokens kept per text")
    vocabulary: int = Field(
        default=8000, ge=16, description="maximum number of words kept, from the public set"
    )
    tokenizer: str | None = Field(
        default=None, description="path of a tokenizer.json to use in place of a vocabulary"
    )


class TaskConfig(Source):
    limit: int | None = Field(default=None, ge=1, description="maximum number of training samples")
    clients: int | None = Field(
        default=None,
        ge=1,
        le=MOST_CLIENTS,
        description="default: all sites of a natural or listed one, else 10",
    )
    partition: Partition | None = Field(
        default=None, description="default: natural if `train` is several files, else iid"
    )
    public: Annotated[
        Annotated[int, Field(ge=0, strict=True), Tag("int")] | Annotated[PublicSource, Tag("PublicSource")],
        Discriminator(lambda value: "PublicSource" if isinstance(value, dict | PublicSource) else "int"),
    ] = Field(default=0, description="size of the held-out public set, or a table of its own")
    test_share: float = Field(
        default=0.2, gt=0, lt=1, description="share held out for testing if there is no test set"
    )
    exclude_classes: list[str] = Field(default=[], description="classes whose samples are left out")
    image_size: tuple[Side, Side] | None = Field(
        default=None, description="height and width that images are scaled to"
    )
    text: Text = Text()

    @model_validator(mode="after")
    def _positions_are_those_of_the_file(self) -> Self:
        by_position = isinstance(self.partition, Listed) or getattr(self.partition, "file", None)
        if by_position and self.drop_missing:
            raise ValueError(
                "`drop_missing` would change the positions that `partition` counts: remove the rows with"
                " missing values from the data and from the partition, and leave `drop_missing` out"
            )
        return self

    @property
    def public_size(self) -> int:
        return self.public if isinstance(self.public, int) else self.public.samples


class ModelsConfig(Section):
    clients: list[str] = Field(min_length=1, description="assigned to the clients in turn")
    server: str


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


class Evaluate(Section):
    every: int = Field(
        default=1, ge=1, description="rounds between evaluations; the last round is always evaluated"
    )
    batch_size: int = Field(default=PREDICTION_BATCH, ge=1, description="samples per forward pass")


class RuntimeConfig(Section):
    kind: Literal["auto", "serial", "processes"] = "auto"
    workers: int | None = Field(default=None, ge=1, description="default: one per core")


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
    seed: int | None = Field(default=None, ge=0, description="default: the experiment's seed")
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
    flower: FlowerConfig = FlowerConfig()
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
                inherited = {key: raw[key] for key in ("models", "train") if key in raw}
                arm = _merge(own_optimizer({"train": {}, **inherited}, arm), arm)
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
        names = [arm.name for arm in self.arms]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two arms are called {name!r}; give one of them another `name`")
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


def _merge(base: RawTable, over: RawTable) -> RawTable:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merge(old, value) if both else value  # type: ignore[arg-type]  # `both`
    return merged
