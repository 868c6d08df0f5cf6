"""A saved model with its preprocessing: raw samples in, probabilities out."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from fedistill.config.plugins import Reference, before_import, naming
from fedistill.config.training import PREDICTION_BATCH
from fedistill.data.records import Features, Records
from fedistill.data.table import Inputs
from fedistill.deployment.description import (
    TOKENIZER,
    WEIGHTS,
    Description,
    TablePreprocessing,
    TextPreprocessing,
)
from fedistill.deployment.inputs import Given, pixels_of, rows_of, texts_of
from fedistill.errors import ExperimentError
from fedistill.models.signature import Signature
from fedistill.rng import scoped
from fedistill.training.loop import batch

Form = TypeVar("Form")
Encode = Callable[[Sequence[str]], Tensor]
"""Returns token ids, int32 (n, length)."""


class Classifier(nn.Module):
    """A trained network with the preprocessing that it was trained with.

    It is an ordinary module: ``forward`` takes prepared inputs and returns logits (n, C). `predict` does the
    rest.

    Attributes:
        network: the trained module.
        classes: the name of each class, in the order of the outputs.
        signature: what ``forward`` takes and returns.
        description: what model.json states, such as where the model is from.
    """

    def __init__(self, network: nn.Module, description: Description, encode: Encode | None) -> None:
        super().__init__()
        assert description.signature is not None
        self.network, self.description = network, description
        self.classes: tuple[str, ...] = description.classes
        self.signature: Signature = description.signature.signature()
        self._encode = encode
        how = description.preprocessing
        self._encoding = how.encoding if isinstance(how, TablePreprocessing) else None

    @property
    def features(self) -> Features | None:
        """The columns that a model of tables reads; None for others."""
        return None if self._encoding is None else self._encoding.features

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(inputs)
        return logits

    def predict(self, samples: Given, batch_size: int = PREDICTION_BATCH) -> Tensor:
        """Return the probability of each class for each sample, float64 (n, C); rows add up to 1.

        Args:
            samples: for a model of texts, strings. For a model of images, Pillow images, paths, encoded
                bytes, or an array or tensor of uint8: (n, channels, height, width) or (n, height, width,
                channels), or (n, height, width) if they are grey. A data frame stands for its column with a
                usual name, such as ``text`` or ``image``, or with the name of that of the training data.
                For a model of tables, a data frame with the columns of the training data, or a list of
                dictionaries with their values; what is missing is None or NaN.
            batch_size: samples per forward pass.

        Raises:
            ExperimentError: they are not of the kind, the size or the channels that the model was trained on;
                or the outputs are not finite.
        """
        if self._encoding is not None:
            return self.predict_prepared(rows_of(samples, self._encoding.features), batch_size)
        if self.signature.kind == "text":
            return self.predict_prepared(texts_of(samples, self._column), batch_size)
        return self.predict_prepared(pixels_of(samples, self.description, self._column), batch_size)

    def predict_prepared(self, samples: Inputs, batch_size: int = PREDICTION_BATCH) -> Tensor:
        """Return the same for texts, records, or uint8 images of the model's shape."""
        logits = self._logits(self.prepare(samples), batch_size)
        broken = int((~torch.isfinite(logits)).any(dim=1).sum())
        if broken:
            raise ExperimentError(
                f"the model's outputs are NaN or infinite for {broken:,} of {len(logits):,} samples: its"
                " weights are damaged, or training has diverged"
            )
        # In float32, two classes with different logits may have equal probabilities.
        return logits.double().softmax(dim=1)

    @torch.no_grad()
    def _logits(self, inputs: Tensor, batch_size: int) -> Tensor:
        """Return logits (n, C), on the CPU, in evaluation mode."""
        parts = [torch.zeros(0, len(self.classes))]
        device = next((value.device for value in self.network.parameters()), torch.device("cpu"))
        before = self.training
        self.eval()
        try:
            # A custom model may draw numbers in evaluation too, as it did when the run was evaluated.
            with scoped(self.description.origin.seed, "evaluation"), naming("the model fails:"):
                for index in torch.split(torch.arange(len(inputs)), batch_size) if len(inputs) else ():
                    parts.append(self(batch(inputs, index).to(device)).cpu())
                return torch.cat(parts)
        finally:
            self.train(before)

    def prepare(self, samples: Inputs) -> Tensor:
        """Return uint8 images as they are, texts as int32 (n, length), records as float32 (n, d)."""
        if isinstance(samples, Records):
            assert self._encoding is not None
            return torch.from_numpy(self._encoding.encode(samples))
        if isinstance(samples, np.ndarray):
            return torch.from_numpy(np.require(samples, requirements=("C", "W")))
        assert self._encode is not None
        return self._encode(samples) if samples else torch.zeros(0, *self.signature.shape)

    def _column(self, names: list[str]) -> str:
        from fedistill.data.unseen import input_column  # its libraries take as long to import as torch

        usual = self.description.columns
        kept = [name for name in names if name != (usual.label or "label")]
        return input_column(kept, usual.input, "the model's input column", "predict")


def load_model(folder: str | Path, *, modules: str | Sequence[str] = ()) -> Classifier:
    """Load a model that a run has saved, in evaluation mode, with its preprocessing.

    Only tensors and plain data are read from the folder, and both are checked, so that a folder from somebody
    else cannot run code. The code of a custom model (``module:function``) is not in it: Python looks it up,
    if its module is allowed.

    Args:
        folder: of one model, such as ``runs/NAME/models/ARM/server``.
        modules: names of modules and packages that the model may be imported from.

    Raises:
        ExperimentError: there is no saved model in the folder, it is damaged, or its code is missing or not
            allowed.
    """
    names = tuple(name.strip() for name in ([modules] if isinstance(modules, str) else modules))

    def check(reference: Reference) -> None:
        module = reference.module
        if not any(module == name or module.startswith(f"{name}.") for name in names):
            raise ExperimentError(
                f"{folder}: {reference} is code that is not in the folder; if you trust the module {module},"
                f" allow it by --modules {module}, in Python by load_model(..., modules={module!r})"
            )

    with before_import(check):
        return open_model(Path(folder))


def open_model(folder: Path) -> Classifier:
    """Load a model as `load_model` does, and import whatever code it names."""
    description = Description.read(folder)
    if description.signature is None:
        raise ExperimentError(
            f"{folder}: this network takes features of other models, not samples: it is a part of method"
            f" {description.origin.method}, whose clients' models can be loaded"
        )
    signature = description.signature.signature()
    shapes = description.architecture.shapes(signature)
    weights = _weights(folder / WEIGHTS)
    if shapes is not None:  # before memory is taken for what a damaged description asks for
        _check({name: tuple(value.shape) for name, value in weights.items()}, shapes, folder)
    network = description.architecture.build(signature)
    own = network.state_dict()
    _check(_kinds(weights), _kinds(own), folder)
    network.load_state_dict(weights)
    return Classifier(network, description, _encoder(folder, description)).eval()


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_tensors(path.read_bytes())
    except (OSError, SafetensorError, ValueError) as error:
        raise ExperimentError(
            f"{path}: cannot be read ({error}); take another copy of the folder, or resume the run, which"
            " saves its models again"
        ) from None


def _kinds(tensors: dict[str, Tensor]) -> dict[str, tuple[tuple[int, ...], str]]:
    return {
        name: (tuple(value.shape), str(value.dtype).removeprefix("torch.")) for name, value in tensors.items()
    }


def _check(found: Mapping[str, Form], wanted: Mapping[str, Form], folder: Path) -> None:
    """See that tensors have the names and forms of those of the architecture."""
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise ExperimentError(
                f"{folder}: {WEIGHTS} is not of the architecture in model.json: {name!r} is"
                f" {found.get(name, 'missing')} in place of {wanted.get(name, 'nothing')}"
            )


def _encoder(folder: Path, description: Description) -> Encode | None:
    """Return what makes token ids of texts, or None for images."""
    preprocessing = description.preprocessing
    if not isinstance(preprocessing, TextPreprocessing):
        return None
    from fedistill.data import text  # imports libraries that images do not need

    length, buckets = preprocessing.length, preprocessing.buckets
    assert description.signature is not None
    if buckets is not None:
        return lambda texts: torch.from_numpy(text.hash_texts(texts, length, buckets))
    path = folder / TOKENIZER
    tokenizer = text.open_tokenizer(str(path), length, "tokenizer")
    signature = description.signature.signature()
    if text.signature_of(tokenizer, signature.classes) != signature:
        raise ExperimentError(
            f"{path}: has {text.vocabulary_size(tokenizer):,} token ids and {length} per text, but the model"
            f" was trained with {signature.vocabulary:,} and {signature.shape[0]}: take the tokenizer that"
            " was saved with it"
        )
    return lambda texts: torch.from_numpy(text.encode_texts(tokenizer, texts))
