"""A residual network on features, which come from a model or from a table."""

import torch
from pydantic import Field
from torch import Tensor, nn

from fedistill.config.schema import Section
from fedistill.config.training import OptimizerConfig
from fedistill.models.features import Split
from fedistill.training import optimizers
from fedistill.training.loop import Loss, fit, predict


class ResidualSettings(Section):
    width: int = Field(default=256, ge=1, description="units of each layer of the server's net")
    depth: int = Field(default=4, ge=1, description="residual blocks of that net, with two layers each")
    server_epochs: int = Field(default=5, ge=1, description="epochs of that net on received features")
    server_batch_size: int = Field(default=64, ge=1, description="samples per step of that net")
    optimizer: OptimizerConfig = OptimizerConfig(name="adam", lr=1e-3, weight_decay=1e-4)


class ResidualMlp(nn.Module):
    """A residual MLP from features (n, d) to logits (n, C)."""

    def __init__(self, features: int, classes: int, settings: ResidualSettings) -> None:
        super().__init__()
        width = settings.width
        self.enter = nn.Linear(features, width)
        self.blocks = nn.ModuleList(_block(width) for _ in range(settings.depth))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, features: Tensor) -> Tensor:
        hidden: Tensor = self.enter(features)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        logits: Tensor = self.head(hidden)
        return logits


class OnModel(nn.Module):
    """A network on top of the features of a model; it takes the model's inputs."""

    def __init__(self, split: Split, network: nn.Module) -> None:
        super().__init__()
        self.split, self.network = split, network

    def forward(self, inputs: Tensor) -> Tensor:
        self.split(inputs)
        logits: Tensor = self.network(self.split.features)
        return logits


class WithFeatures(nn.Module):
    """A model's features and logits side by side, (n, d + C)."""

    def __init__(self, split: Split) -> None:
        super().__init__()
        self.split = split

    def forward(self, inputs: Tensor) -> Tensor:
        logits = self.split(inputs)
        return torch.cat([self.split.features, logits], dim=1)


def _block(width: int) -> nn.Sequential:
    last = nn.Linear(width, width)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)  # a block starts as the identity, so that depth does not slow the start
    return nn.Sequential(
        nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(), last
    )


def learn(
    net: nn.Module,
    optimizer: optimizers.Optimizer,
    features: Tensor,
    loss: Loss,
    settings: ResidualSettings,
    random: torch.Generator,
) -> Tensor:
    """Train a net on features (n, d); return the logits (n, C) of the trained net."""
    table, places = _OnTable(features, net), torch.arange(len(features))
    epochs, size = settings.server_epochs, settings.server_batch_size
    fit(table, optimizer, places, loss, epochs=epochs, batch_size=size, generator=random)
    return predict(table, places)


class _OnTable(nn.Module):
    """A network on the rows of a table of features; its inputs are row numbers."""

    def __init__(self, table: Tensor, network: nn.Module) -> None:
        super().__init__()
        self._table, self.network = table, network

    def forward(self, places: Tensor) -> Tensor:
        logits: Tensor = self.network(self._table[places.cpu()].to(places.device))
        return logits
