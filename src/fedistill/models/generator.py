"""A generator of features from a class and noise, and its training (Zhu et al., 2021, arXiv 2105.10056)."""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, one_hot

from fedistill.config.schema import Section
from fedistill.config.training import OptimizerConfig
from fedistill.training import optimizers

Predictor = tuple[Tensor, Tensor | None]
"""Weight (C, d) and bias (C,) of a linear layer."""


class GeneratorSettings(Section):
    noise: int = Field(default=32, ge=1, description="length of the generator's noise vector")
    hidden: int = Field(default=256, ge=1, description="units of the generator's hidden layer")
    steps: int = Field(default=50, ge=1, description="training steps of the generator per round")
    batch_size: int = Field(default=128, ge=2, description="generated samples per step")
    diversity: float = Field(default=1.0, ge=0, description="weight of the diversity loss")
    optimizer: OptimizerConfig = OptimizerConfig(name="adam", lr=3e-4, weight_decay=1e-2)


class Generator(nn.Module):
    """One hidden layer on noise and a one-hot class, with layer norm; the published code has batch norm."""

    def __init__(self, classes: int, width: int, settings: GeneratorSettings) -> None:
        super().__init__()
        self.classes, self.noise, hidden = classes, settings.noise, settings.hidden
        self.layers = nn.Sequential(
            nn.Linear(self.noise + classes, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, width)
        )

    def forward(self, labels: Tensor, noise: Tensor) -> Tensor:
        """Return features (n, d) for labels (n,) and noise (n, m)."""
        features: Tensor = self.layers(torch.cat([noise, one_hot(labels, self.classes)], dim=1))
        return features

    def draw(self, shares: Tensor, samples: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return labels (n,), drawn by the class shares (C,), and uniform noise (n, m)."""
        labels = torch.multinomial(shares, samples, replacement=True, generator=random)
        return labels, torch.rand(samples, self.noise, generator=random)


def diversity_loss(noise: Tensor, features: Tensor) -> Tensor:
    """Return a loss that is large if samples from different noise (n, m) have similar features (n, d)."""
    apart = torch.cdist(features, features, p=1) / features.shape[1]
    asked = torch.cdist(noise, noise).square() / noise.shape[1]
    return (-asked * apart).mean().exp()


def predictor(head: nn.Linear) -> Predictor:
    """Return a copy of a linear layer's weight and bias."""
    bias = head.bias
    return head.weight.detach().clone(), None if bias is None else bias.detach().clone()


def learn(
    generator: Generator,
    optimizer: optimizers.Optimizer,
    predictors: Sequence[Predictor],
    counts: Tensor,
    settings: GeneratorSettings,
    random: torch.Generator,
) -> None:
    """Train a generator to produce features that predictors assign to the requested class.

    In each class, a predictor is weighted by its share of the samples: counts are (predictors, C).
    """
    totals = counts.sum(dim=0)
    shares = counts / totals.clamp(min=1)
    for _ in range(settings.steps):
        labels, noise = generator.draw(totals, settings.batch_size, random)
        features = generator(labels, noise)
        loss = settings.diversity * diversity_loss(noise, features)
        for (weight, bias), own in zip(predictors, shares, strict=True):
            each = cross_entropy(linear(features, weight, bias), labels, reduction="none")
            loss = loss + (own[labels] * each).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
