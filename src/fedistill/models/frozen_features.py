"""Features of a model that nobody trains: its weights are those of its function, or drawn from the seed."""

import functools

import torch
from torch import Tensor, nn

from fedistill.config.plugins import naming
from fedistill.errors import ExperimentError
from fedistill.models import registry as models
from fedistill.models.features import Split
from fedistill.models.signature import Signature
from fedistill.rng import SERVER, derive
from fedistill.training.devices import placed


class FrozenFeatures(nn.Module):
    """What a frozen model says of a sample, (n, d), or random projections of that.

    Of a model on the ladder these are its features, the input of its last layer; its weights are drawn from
    the seed. A ``module:function`` builds a module that returns them, one vector per sample. Weights that it
    loads from a file must be the same at all participants. Nothing of it is the state of this module.

    Attributes:
        width: d.
        name: of the model.
        seed: of its weights, if they are drawn, and of the projections.
    """

    def __init__(self, name: str, signature: Signature, seed: int, width: int | None = None) -> None:
        """Build the model, or find it where this process has built it before.

        Args:
            width: the number of projections; None for the model's own features.

        Raises:
            ExperimentError: the model cannot be built, does not return one vector per sample, or has fewer
                features than ``width``.
        """
        super().__init__()
        frozen, own = _frozen(name, signature, seed)
        if width is not None and width > own:
            raise ExperimentError(f"model {name!r} has {own} features, fewer than width = {width}")
        self.width = width or own
        self.name, self.seed = name, seed
        self._frozen = (frozen,)  # in a tuple, a module's weights are not found
        generator = torch.Generator().manual_seed(derive(seed, "projections"))
        self._projections = (
            None if self.width == own else torch.randn(own, self.width, generator=generator) / own**0.5
        )

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        with placed(self._frozen[0], device=inputs.device):
            found = _features(self._frozen[0], inputs)
        return found if self._projections is None else found @ self._projections.to(inputs.device)


@functools.lru_cache(maxsize=8)
def _frozen(name: str, signature: Signature, seed: int) -> tuple[nn.Module, int]:
    """Return the model and the width of its features."""
    model = models.build_model(name, signature, seed, SERVER).eval()
    module = model if models.is_own(name) else Split(model, name, signature).eval()
    with (
        naming(f"model {name!r} fails on an input of shape {(2, *signature.shape)}:"),
        torch.no_grad(),
    ):
        found = _features(module, models.blank_inputs(signature, 2))
    if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != 2 or not found.is_floating_point():
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ExperimentError(
            f"model {name!r} returns {what} for 2 samples, but a model whose features are taken must return"
            " one vector of floats for each: pool or flatten its output"
        )
    return module, found.shape[1]


def _features(module: nn.Module, inputs: Tensor) -> Tensor:
    found: Tensor = module(inputs)
    return module.features if isinstance(module, Split) else found
