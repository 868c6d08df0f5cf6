"""The settings of a task: where its samples come from, and how they are shared out."""

import codecs
from typing import Annotated, Literal, Self

import PIL.ImageColor
from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from fedistill.config.partitions import Listed, Natural, Partition
from fedistill.config.section import Raw, Section

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
        default=None,
        description="digits, breast-cancer, bbc-news, mnist, fashion-mnist, or hf:OWNER/NAME, with"
        " @REVISION or without",
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
    column_names: list[str] | None = Field(
        default=None, min_length=1, description="of CSV files without a header: what their columns are called"
    )
    missing: list[str] = Field(
        default=[],
        description="what stands for a missing value in CSV files, such as ?, beside an empty field",
    )
    relabel: dict[str, str] = Field(
        default={}, description="other names for labels; several with one name become one class"
    )
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
        for key in ("column_names", "missing"):
            if getattr(self, key) and self.format != "csv":
                raise ValueError(f'`{key}` is for CSV files: set `format` = "csv", or leave it out')

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


class TableConfig(Section):
    """How rows of a table become inputs: which columns, and from what they are scaled."""

    numeric: list[str] | None = Field(
        default=None, description="columns of numbers that are inputs; default: found, as docs/tables.md says"
    )
    categorical: list[str] | None = Field(
        default=None,
        description="columns of categories that are inputs; if either list is given, only those named are",
    )
    scaling: Literal["public", "sums"] = Field(
        default="public",
        description="from what means, deviations and categories are: the public set, or sums that all clients"
        " share before round 1",
    )

    @property
    def names_columns(self) -> bool:
        """Whether the inputs are named."""
        return self.numeric is not None or self.categorical is not None

    @model_validator(mode="after")
    def _columns_have_one_kind(self) -> Self:
        numeric, categorical = self.numeric or [], self.categorical or []
        both = [*numeric, *categorical]
        if self.names_columns and not both:
            raise ValueError("`numeric` and `categorical` name no column: leave both out to have them found")
        if twice := sorted({name for name in both if both.count(name) > 1}):
            raise ValueError(f"{twice[0]!r} is named twice in `numeric` and `categorical`")
        return self


class TaskConfig(Source):
    title: str | None = Field(
        default=None, min_length=1, description="what results call the task; default: the name of its data"
    )
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
    own_test_share: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="share of its own samples that each client holds out for testing; default: test_share for"
        " a natural partition, else 0",
    )
    exclude_classes: list[str] = Field(default=[], description="classes whose samples are left out")
    image_size: tuple[Side, Side] | None = Field(
        default=None, description="height and width that images are scaled to"
    )
    text: Text = Text()
    table: TableConfig | None = Field(
        default=None, description="each row of the data is a sample, and its columns are the inputs"
    )

    @model_validator(mode="after")
    def _tables_have_no_input_column(self) -> Self:
        if self.table is not None and self.input is not None:
            raise ValueError(
                "`input` names one column of images or texts; the columns of a table are named in"
                " `table.numeric` and `table.categorical`"
            )
        return self

    @model_validator(mode="after")
    def _positions_are_those_of_the_file(self) -> Self:
        by_position = isinstance(self.partition, Listed) or getattr(self.partition, "file", None)
        if by_position and self.drop_missing:
            raise ValueError(
                "`drop_missing` would change the positions that `partition` counts: remove the rows with"
                " missing values from the data and from the partition, and leave `drop_missing` out"
            )
        return self

    def own_share(self, partition: Partition) -> float:
        """Return the share of its samples that each client of this partition holds out for testing."""
        if self.own_test_share is not None:
            return self.own_test_share
        return self.test_share if isinstance(partition, Natural) else 0.0

    @property
    def public_size(self) -> int:
        return self.public if isinstance(self.public, int) else self.public.samples
