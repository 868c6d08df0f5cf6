"""``model.json``: what a saved model takes and returns, how samples are prepared, and where it is from.

A new key does not raise the schema: a program should ignore keys that it does not know.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedistill.config.inputs import SAMPLES, InputKind
from fedistill.config.messages import explain_errors
from fedistill.data.record_encoding import RecordEncoding
from fedistill.deployment.architecture import Architecture
from fedistill.errors import ExperimentError
from fedistill.models.signature import Signature

SCHEMA = 1
FILE, WEIGHTS, TOKENIZER, CARD = "model.json", "model.safetensors", "tokenizer.json", "README.md"
"""The files in the folder of a saved model; only texts have a tokenizer."""
WHITE = 255
_MOST_NUMBERS = 3 * 4096 * 4096
"""In one sample, and of token ids: what is larger would only take memory."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Inputs(_Part):
    """The fields of `Signature`."""

    kind: InputKind
    shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1, max_length=3)]
    classes: int = Field(ge=1)
    vocabulary: int = Field(ge=0, le=_MOST_NUMBERS)

    @classmethod
    def of(cls, signature: Signature) -> "Inputs":
        return cls(
            kind=signature.kind,
            shape=signature.shape,
            classes=signature.classes,
            vocabulary=signature.vocabulary,
        )

    def signature(self) -> Signature:
        return Signature(self.kind, self.shape, self.classes, self.vocabulary)

    @model_validator(mode="after")
    def _shape_is_that_of_the_kind(self) -> Self:
        if len(self.shape) != (3 if self.kind == "image" else 1):
            raise ValueError(f"`shape` = {list(self.shape)} is not that of a model of {SAMPLES[self.kind]}")
        numbers = 1
        for side in self.shape:
            numbers *= side
        if numbers > _MOST_NUMBERS:
            raise ValueError(f"`shape` = {list(self.shape)} is too large for a sample")
        if (self.vocabulary == 0) != (self.kind != "text"):
            raise ValueError(
                f"`vocabulary` = {self.vocabulary} is not that of a model of {SAMPLES[self.kind]}"
            )
        return self


class ImagePreprocessing(_Part):
    """How pixels become a model's inputs: ``(pixel - mean) / std``, where white is 255.

    Attributes:
        mean, std: those of this version are constants, which do not depend on anybody's data.
        resize: whether images of another size are scaled, bilinearly; else they are refused.
        background, white_level: as in `[task]`; None if no training image needed them.
    """

    kind: Literal["image"] = "image"
    mean: float = WHITE / 2
    std: float = WHITE / 2
    resize: bool = False
    background: str | None = None
    white_level: float | None = Field(default=None, gt=0, le=65535)

    @model_validator(mode="after")
    def _scaling_is_known(self) -> Self:
        if self.mean != WHITE / 2 or self.std != WHITE / 2:
            raise ValueError(f"`mean` and `std` must be {WHITE / 2}, the scaling of this version")
        return self


class TextPreprocessing(_Part):
    """How texts become token ids, of which the first ``length`` are kept; 0 is padding.

    Attributes:
        words: ``unicode``: words that `fedistill.data.text.words_of` finds, each of which the tokenizer looks
            up; ``tokenizer``: the tokenizer alone; ``hashed``: the same words, hashed to 1 … ``buckets``.
        shift: added to the tokenizer's ids, so that 0 is free for padding.
    """

    kind: Literal["text"] = "text"
    words: Literal["unicode", "tokenizer", "hashed"]
    length: int = Field(ge=1, le=100_000)
    shift: Literal[0, 1] = 0
    buckets: int | None = Field(default=None, ge=1, le=_MOST_NUMBERS)

    @model_validator(mode="after")
    def _hashed_words_have_buckets(self) -> Self:
        if (self.words == "hashed") != (self.buckets is not None):
            raise ValueError("`buckets` must be there with hashed `words`, and only then")
        return self


class TablePreprocessing(_Part):
    """How rows of a table become a model's inputs; `fedistill.data.record_encoding` says it in words."""

    kind: Literal["table"] = "table"
    encoding: RecordEncoding


AnyPreprocessing = Annotated[
    ImagePreprocessing | TextPreprocessing | TablePreprocessing, Field(discriminator="kind")
]


class Columns(_Part):
    """Names of the columns of the training data, where the experiment named them.

    Attributes:
        names: of all columns of CSV files without a header; ``missing``, ``relabel``: as in `[task]`.
    """

    input: str | None = None
    label: str | None = None
    names: tuple[str, ...] | None = None
    missing: tuple[str, ...] = ()
    relabel: dict[str, str] = {}


class Origin(_Part):
    """The run that a model is from.

    Attributes:
        role: whose model it is; ``travelling``: the server's copy of a model that clients share.
        client: the number of the client, and ``site`` its name, of a client's model.
        seed: of the arm.
        round: the last complete round, after which the model was saved, of ``rounds``.
        accuracy: of this model on the task's test set after that round, 0 to 1; None if it was not evaluated.
        views: of the arm after that round.
        bytes_up, bytes_down, bytes_setup: of all frames up to that round, summed over clients;
            ``bytes_public``: of the public set. None where they are not known: at a site of a network.
        command: what was typed to make it, without folders.
    """

    task: str
    arm: str
    method: str
    codec: str
    role: Literal["server", "client", "travelling"]
    client: int | None = None
    site: str | None = None
    seed: int
    round: int
    rounds: int
    parameters: int
    accuracy: float | None = None
    views: dict[str, float] = {}
    bytes_up: int | None = None
    bytes_down: int | None = None
    bytes_setup: int | None = None
    bytes_public: int | None = None
    command: str = ""


class Description(_Part):
    """The content of ``model.json``.

    Attributes:
        signature, preprocessing: None if the network takes no samples, but features of other models.
        classes: the name of each class, in the order of the model's outputs.
    """

    version: str = Field(default_factory=lambda: version("fedistill"))
    architecture: Architecture
    signature: Inputs | None
    classes: tuple[str, ...]
    preprocessing: AnyPreprocessing | None
    columns: Columns = Columns()
    origin: Origin

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.signature is None:
            return self
        if self.preprocessing is None or self.preprocessing.kind != self.signature.kind:
            raise ValueError(f"`preprocessing` is not that of a model of {SAMPLES[self.signature.kind]}")
        if isinstance(self.preprocessing, TablePreprocessing) and self.signature.shape != (
            self.preprocessing.encoding.width,
        ):
            raise ValueError(
                f"`encoding` makes {self.preprocessing.encoding.width} numbers of a row, but the model reads"
                f" {self.signature.shape[0]}"
            )
        if len(self.classes) != self.signature.classes:
            raise ValueError(
                f"`classes` has {len(self.classes)} names, but the model tells {self.signature.classes} apart"
            )
        return self

    def to_bytes(self) -> bytes:
        content = {"schema": SCHEMA, **self.model_dump(mode="json")}
        return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def read(cls, folder: Path) -> "Description":
        """Read the description in the folder of a saved model.

        Raises:
            ExperimentError: there is none, it is damaged, or another version of fedistill has written it.
        """
        path = folder / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise ExperimentError(f"{folder}: {_no_model(folder)}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ExperimentError(f"{path}: cannot be read ({error}); {_RUN_AGAIN}") from None
        schema = content.pop("schema", None) if isinstance(content, dict) else None
        if schema != SCHEMA:
            raise ExperimentError(
                f"{path}: has schema {schema!r}, but this version knows {SCHEMA}: it is of another version of"
                " fedistill, or no saved model of it"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise ExperimentError(f"{explain_errors(error, str(path), cls)}; {_RUN_AGAIN}") from None


_RUN_AGAIN = "take another copy of the folder, or resume the run, which saves its models again"


def _no_model(folder: Path) -> str:
    """Return why a folder is no saved model, and which one may be meant."""
    if not folder.is_dir():
        return "there is no such folder"
    places = ("*", "*/*", "models/*/*", "seed-*/models/*/*")
    inside = sorted(path.parent for place in places for path in folder.glob(f"{place}/{FILE}"))
    if inside:
        shown = ", ".join(map(str, inside[:5])) + (", …" if len(inside) > 5 else "")
        return f"is no model, but has models in it: name one of them, for example {shown}"
    return (
        f"holds no saved model: there is no {FILE} in it; runs save theirs in models/ARM/server and"
        " models/ARM/client-N"
    )
