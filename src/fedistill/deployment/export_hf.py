"""A saved model as a folder that ``AutoModelFor….from_pretrained`` of transformers loads."""

import copy
import json
from pathlib import Path

import torch
from torch import Tensor

from fedistill.config.section import Raw, RawTable
from fedistill.config.training import PREDICTION_BATCH
from fedistill.data.table import Inputs
from fedistill.deployment.classifier import Classifier
from fedistill.deployment.description import CARD, TOKENIZER, WEIGHTS
from fedistill.deployment.export import TOLERANCE
from fedistill.errors import ExperimentError
from fedistill.models.huggingface.folder import CONFIG, PIXELS, TOKENIZER_CONFIG
from fedistill.models.huggingface.library import merge_adapters, quietly
from fedistill.models.huggingface.network import Pretrained
from fedistill.state import write_file
from fedistill.training.loop import batch

FILES = (CONFIG, WEIGHTS, CARD, TOKENIZER, TOKENIZER_CONFIG, PIXELS)
"""What may be in the folder."""


def export_hf(model: Classifier, folder: Path, samples: Inputs, out: Path) -> float:
    """Write a model to a folder of its own; return the largest difference of a probability.

    Adapters are merged into the weights that they adapt. The model is read back by transformers and compared,
    texts from their first letter on; images from the pixels that the network takes.

    Args:
        folder: of the saved model.
        samples: on which the two are compared; at least one.

    Raises:
        ExperimentError: the model is not one of transformers, ``out`` has files already, or the two differ by
            more than `TOLERANCE`.
    """
    network = model.network
    if not isinstance(network, Pretrained) or network.head is not None:
        what = (
            "a sentence encoder with a linear layer, which transformers has no class for"
            if isinstance(network, Pretrained)
            else f"the model {model.description.architecture.name!r}, not one of transformers"
        )
        raise ExperimentError(f"--hf: this is {what}: use --onnx or --torch-export")
    if out.exists() and any(out.iterdir()):
        raise ExperimentError(f"--hf {out}: there are files in this folder: name a new one")
    expected = model.predict_prepared(samples)
    plain: Raw = copy.deepcopy(network).network
    merge_adapters(plain)
    plain.config.id2label = dict(enumerate(model.classes))
    plain.config.label2id = {name: place for place, name in enumerate(model.classes)}
    with quietly():
        plain.save_pretrained(out)
    _write_preprocessing(network, model, folder, out)
    found = _answers(model, network, samples, out).double().softmax(dim=1)
    difference = float((found - expected).abs().max())
    if not difference <= TOLERANCE:
        for name in FILES:
            (out / name).unlink(missing_ok=True)
        raise ExperimentError(
            f"--hf: probabilities of the exported model differ from the model's by up to {difference:.2g},"
            f" more than {TOLERANCE:g}, so nothing was written: transformers reads its texts in another way"
        )
    return difference


def _write_preprocessing(network: Pretrained, model: Classifier, folder: Path, out: Path) -> None:
    write_file(out / CARD, (folder / CARD).read_bytes())
    recipe = network.recipe
    if recipe.processor is not None:
        write_file(out / PIXELS, _json(recipe.processor))
        return
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    write_file(out / TOKENIZER, tokenizer.to_str(pretty=False).encode())
    (length,) = model.signature.shape
    told = {key: value for key, value in (recipe.tokenizer or {}).items() if key not in _NOT_KEPT}
    write_file(out / TOKENIZER_CONFIG, _json({**told, "model_max_length": length}))


_NOT_KEPT = ("auto_map", "name_or_path", "tokenizer_file", "special_tokens_map_file", "local_files_only")
"""Keys of a tokenizer's configuration that name code or folders of somebody else."""


def _json(content: RawTable) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


@torch.no_grad()
def _answers(model: Classifier, network: Pretrained, samples: Inputs, out: Path) -> Tensor:
    """Return the logits (n, C) of what transformers loads from the folder."""
    import transformers

    safe = {"trust_remote_code": False, "local_files_only": True}
    if network.pixels is not None:
        with quietly():
            loaded = transformers.AutoModelForImageClassification.from_pretrained(out, **safe).eval()
        inputs = model.prepare(samples)
        parts = torch.arange(len(inputs)).split(PREDICTION_BATCH)  # type: ignore[no-untyped-call]  # of torch
        return torch.cat([loaded(pixel_values=network.pixels(batch(inputs, part))).logits for part in parts])
    with quietly():
        loaded = transformers.AutoModelForSequenceClassification.from_pretrained(out, **safe).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(out, **safe)
    assert isinstance(samples, list)
    starts = range(0, len(samples), PREDICTION_BATCH)
    cut = [samples[start : start + PREDICTION_BATCH] for start in starts]
    return torch.cat(
        [loaded(**tokenizer(part, padding=True, truncation=True, return_tensors="pt")).logits for part in cut]
    )
