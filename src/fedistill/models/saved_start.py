"""A saved model that a run starts from: `models.start`, in place of drawn weights.

It is the start of every model of the arm whose state has the same names and shapes: of the server's, and of
those that travel or that all clients build alike. Models that clients keep for themselves are drawn as ever.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from fedistill.errors import ExperimentError
from fedistill.training.model_state import ModelState

_WEIGHTS = "model.safetensors"
_KEY = "models.start"


def start_digest(start: str) -> str:
    """Return the digest of the file that `models.start` names.

    Raises:
        ExperimentError: there is none, or it cannot be read.
    """
    return _digest(_content(start))


def load_starts(start: str, digest: str | None, models: Mapping[str, nn.Module]) -> dict[str, ModelState]:
    """Return the saved state by the names of the models that it fits.

    Args:
        digest: of the file as it was before; None if that is not known.
        models: freshly built, by name; those that the state fits are changed.

    Raises:
        ExperimentError: there is no such file, it has changed or is no saved model, or it fits no model.
    """
    content = _content(start)
    if digest is not None and digest != _digest(content):
        raise ExperimentError(
            f"{_KEY} = {start}: this is not the file that the run began with, or that the server has: bring"
            " that one back"
        )
    try:
        saved = load(content)
    except SafetensorError as error:
        raise ExperimentError(f"{_KEY} = {start}: not a model saved as safetensors ({error})") from None
    misfits = {name: _misfit(saved, model) for name, model in models.items()}
    fitting = [name for name, misfit in misfits.items() if not misfit]
    if not fitting:
        why = "; ".join(f"{name}: {misfit}" for name, misfit in misfits.items())
        raise ExperimentError(
            f"{_KEY} = {start}: fits no model of this arm ({why}): name the architecture that was saved in"
            " `models`, on a task with the same classes and inputs"
        )
    for name in fitting:
        models[name].load_state_dict(saved)
    return {name: ModelState.of(models[name]) for name in fitting}


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def start_file(start: str) -> Path:
    """Return the file of weights that `models.start` names, or the one in the folder that it names.

    Raises:
        ExperimentError: there is none in the folder, or several.
    """
    path = Path(start)
    return _in_folder(path) if path.is_dir() else path


def _content(start: str) -> bytes:
    try:
        return start_file(start).read_bytes()
    except FileNotFoundError:
        raise ExperimentError(f"{_KEY} = {start}: there is no such file or folder") from None
    except OSError as error:
        raise ExperimentError(f"{_KEY} = {start}: cannot be read ({error})") from None


def _in_folder(folder: Path) -> Path:
    """Return the weights in the folder of a model, or of the server's model of an arm or of a run."""
    for place in (_WEIGHTS, f"server/{_WEIGHTS}", f"models/*/server/{_WEIGHTS}"):
        found = sorted(folder.glob(place))
        if len(found) == 1:
            return found[0]
        if found:
            several = ", ".join(str(path.parent) for path in found)
            raise ExperimentError(f"{_KEY} = {folder}: this run has several models: name one of {several}")
    raise ExperimentError(
        f"{_KEY} = {folder}: no model is saved in it: name the folder of a model or of a run, or a file"
    )


def _misfit(saved: Mapping[str, Tensor], model: nn.Module) -> str:
    """Return why a saved state is not one of this model, or an empty text."""
    own = model.state_dict()
    for name in sorted(own.keys() | saved.keys()):
        if name not in saved:
            return f"{name} is missing"
        if name not in own:
            return f"it has no {name}"
        if saved[name].shape != own[name].shape:
            return f"{name} is {tuple(saved[name].shape)} and not {tuple(own[name].shape)}"
        if not torch.isfinite(saved[name]).all():
            return f"{name} has values that are NaN or infinite"
    frozen = [name for name, value in model.named_parameters() if not value.requires_grad]
    changed = [name for name in frozen if not torch.equal(saved[name], own[name])]
    return f"{changed[0]} is frozen and has other values, as of another seed" if changed else ""
