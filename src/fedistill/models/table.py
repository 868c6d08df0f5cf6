"""Models of tables, from small to large; their inputs are rows of scaled numbers and categories, (n, d)."""

from torch import Tensor, nn

from fedistill.models.signature import Build, Signature


class Logistic(nn.Module):
    """Logistic regression: one linear layer, whose weights begin at zero.

    Its features are its inputs.
    """

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        (width,) = signature.shape
        self.features = nn.Identity()
        self.head = nn.Linear(width, signature.classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, rows: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(rows))
        return logits


class MlpTab(nn.Module):
    """A network with two hidden layers, each of 64 units with layer norm."""

    def __init__(self, signature: Signature, units: int = 64) -> None:
        super().__init__()
        (width,) = signature.shape
        self.features = nn.Sequential(
            nn.Linear(width, units),
            nn.LayerNorm(units),
            nn.ReLU(),
            nn.Linear(units, units),
            nn.LayerNorm(units),
            nn.ReLU(),
        )
        self.head = nn.Linear(units, signature.classes)

    def forward(self, rows: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(rows))
        return logits


LADDER: dict[str, Build] = {"logistic": Logistic, "mlp-tab": MlpTab}
