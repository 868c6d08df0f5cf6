"""Saves a model so that it can be used without the run that it is from, and without fedistill."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from fedistill.data.task import Task
from fedistill.deployment.architecture import Architecture
from fedistill.deployment.description import (
    CARD,
    FILE,
    TOKENIZER,
    WEIGHTS,
    AnyPreprocessing,
    Columns,
    Description,
    ImagePreprocessing,
    Inputs,
    Origin,
    TablePreprocessing,
    TextPreprocessing,
)
from fedistill.deployment.model_card import model_card, without_folders
from fedistill.models import registry as models
from fedistill.models.token_ids import id_shift
from fedistill.state import write_file
from fedistill.training.model_state import ModelState, save_model


@dataclass(frozen=True)
class Trained:
    """A model as training leaves it.

    Attributes:
        name: of its architecture.
        reads: name of the model whose inputs it takes; None if it takes no samples.
        network: a module of this architecture, whose weights will be those of ``state``.
    """

    name: str
    reads: str | None
    network: nn.Module
    state: ModelState


def save(folder: Path, model: Trained, task: Task, columns: Columns, resize: bool, origin: Origin) -> None:
    """Write weights, description, tokenizer and card of a model to a folder of its own.

    Args:
        columns: names of the columns of the training data, where the experiment names them.
        resize: whether the task scales its images.
    """
    save_model(folder / WEIGHTS, model.network, model.state)
    tokenizer, preprocessing = None, _preprocessing(task, model.reads, resize)
    if isinstance(preprocessing, TextPreprocessing) and preprocessing.buckets is None:
        assert model.reads is not None
        tokenizer = task.tokenizer(models.preprocessing(model.reads)).to_str(pretty=False)
        write_file(folder / TOKENIZER, tokenizer.encode())
    description = Description(
        architecture=Architecture.of(without_folders(model.name), model.network),
        signature=None
        if model.reads is None
        else Inputs.of(task.signature_for(models.preprocessing(model.reads))),
        classes=task.classes,
        preprocessing=preprocessing,
        columns=columns,
        origin=origin,
    )
    write_file(folder / CARD, model_card(description).encode())
    write_file(folder / FILE, description.to_bytes())  # the last, so that a folder with it is complete


def _preprocessing(task: Task, reads: str | None, resize: bool) -> AnyPreprocessing | None:
    if reads is None:
        return None
    if (encoding := task.record_encoding()) is not None:
        return TablePreprocessing(encoding=encoding)
    if task.signature.kind == "image":
        rendering = task.rendering
        return ImagePreprocessing(
            resize=resize, background=rendering.background, white_level=rendering.white_level
        )
    from fedistill.data import text  # imports libraries that images do not need

    wanted = models.preprocessing(reads)
    (length,) = task.signature_for(wanted).shape
    if wanted.buckets is not None:
        return TextPreprocessing(words="hashed", length=length, buckets=wanted.buckets)
    tokenizer = task.tokenizer(wanted)
    words: Literal["unicode", "tokenizer"] = "unicode" if text.takes_words(tokenizer) else "tokenizer"
    return TextPreprocessing(words=words, length=length, shift=id_shift(tokenizer))
