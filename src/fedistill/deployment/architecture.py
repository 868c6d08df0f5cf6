"""How the network of a saved model is built again: from a model's name, or as what statistics solve for."""

import torch
from pydantic import BaseModel, Field
from torch import nn

from fedistill.config.plugins import naming
from fedistill.models import registry as models
from fedistill.models.fixed_features import (
    EdgeFrequencies,
    EncodedColumns,
    FixedFeatures,
    FixedFeaturesNet,
)
from fedistill.models.frozen_features import FrozenFeatures
from fedistill.models.huggingface.recipe import Recipe
from fedistill.models.naive_bayes import NaiveBayes
from fedistill.models.signature import Signature

_FIXED, _COUNTS = "fixed-features", "naive-bayes"


class Architecture(BaseModel, frozen=True):
    """What builds a network for a signature.

    Attributes:
        name: as in ``models`` of an experiment; ``fixed-features``, a linear layer on features that nobody
            trains; or ``naive-bayes``.
        hf: what builds a pretrained network without the folder that ``name`` stands for.
        features: of fixed features, the frozen model that returns them; None for `EdgeFrequencies` of images
            and `EncodedColumns` of tables.
        width: the number of these features.
        seed: of the frozen model.
    """

    name: str
    hf: Recipe | None = None
    features: str | None = None
    width: int | None = Field(default=None, ge=1, le=100_000)
    seed: int | None = None

    @classmethod
    def of(cls, name: str, network: nn.Module) -> "Architecture":
        """Return the architecture of a network that has this name where it was trained."""
        if isinstance(network, NaiveBayes):
            return cls(name=_COUNTS)
        if not isinstance(network, FixedFeaturesNet):
            recipe = getattr(network, "recipe", None)
            return cls(name=name, hf=recipe if isinstance(recipe, Recipe) else None)
        features = network.features
        if isinstance(features, FrozenFeatures):
            return cls(name=_FIXED, features=features.name, width=features.width, seed=features.seed)
        return cls(name=_FIXED, width=features.width)

    def build(self, signature: Signature) -> nn.Module:
        """Return the network with any weights; all that is not saved is as in training.

        Raises:
            ExperimentError: there is no such model, or it cannot be built for this signature.
        """
        if self.name == _COUNTS:
            with naming("model 'naive-bayes':"):
                return NaiveBayes(signature.vocabulary - 1, signature.classes)
        if self.name == _FIXED:
            return FixedFeaturesNet(self._features(signature), signature.classes)
        if self.hf is not None:
            from fedistill.models.huggingface.network import build_recipe  # imports what others do not need

            return build_recipe(self.hf, signature, self.name)
        return models.build_model(self.name, signature, seed=0, client=0)

    def shapes(self, signature: Signature) -> dict[str, tuple[int, ...]] | None:
        """Return the shapes of the network's weights without taking memory for them.

        None if that is not known: a custom function may need the values of its weights.

        Raises:
            ExperimentError: as `build`.
        """
        if self.name == _FIXED or models.is_own(self.name):
            return None
        with torch.device("meta"):
            network = self.build(signature)
        return {name: tuple(value.shape) for name, value in network.state_dict().items()}

    def _features(self, signature: Signature) -> FixedFeatures:
        if self.features is None and signature.kind == "table":
            return EncodedColumns(signature.shape[0])
        if self.features is None:
            with naming("model 'fixed-features':"):
                return EdgeFrequencies(signature.shape, self.width or 0)
        return FrozenFeatures(self.features, signature, self.seed or 0, self.width)
