"""Selective-FD: clients label only familiar public samples; the server drops ambiguous labels."""

import torch
from pydantic import Field
from torch import Tensor

from fedistill.methods.shared.abstaining import Abstaining, AbstainingSettings, Score
from fedistill.methods.shared.density import Kulsif


class SelectiveFdSettings(AbstainingSettings):
    auxiliaries: int = Field(
        default=250, ge=1, description="uniform points that private samples are compared with"
    )
    width: float | None = Field(
        default=None, gt=0, description="Gaussian kernel width; default: median distance of private samples"
    )
    ambiguity: float = Field(
        default=1.0,
        ge=0,
        le=2,
        description="tau, largest L1 distance of a pooled label from its one-hot class; 2 keeps all",
    )


class SelectiveFd(Abstaining):
    """Clients label only public samples that resemble their own data; ambiguous labels are dropped.

    A round: distil the last global labels (KL), train on private data, predict those of the round's n public
    samples that are familiar. A sample is familiar if its density ratio of private to uniform samples
    (KuLSIF) exceeds the ``quantile`` of that ratio over the client's own held-out samples. The server
    averages the labels of each sample over the clients that sent one (or pools them by another
    ``aggregation``), drops labels further than ``ambiguity`` from one-hot, distils the rest and sends it.
    Exchanged: (s, C) probabilities and the positions of their samples; s <= n differs by client and round.
    Bytes: ``b s C / 8`` each way, b bits per number, and at most about ``n / 8`` for the positions.

    Samples that are unfamiliar to every client are not used. With few private samples or many dimensions the
    ratio tells little: the published code notes this too, and uses features of a pretrained model instead.

    Departs from the published code, which multiplies by the matrix of the linear system instead of solving
    it, draws its uniform points from a fixed range and uses a kernel of width 5: here the points are drawn
    from the box that private samples span, and the width is their median distance. That code can also send
    hard labels: for these, set the codec `onehot`. There only clients learn; here the server's model does
    too.
    """

    name = "selective-fd"
    paper = "Shao et al., 2024, arXiv 2304.01731 (abstract) and its published code"
    exchanges = "soft labels on public samples like the client's own data"
    byte_formula = "up = down = bsC/8, s ≤ n"
    Settings = SelectiveFdSettings
    settings: SelectiveFdSettings

    def score(self, references: Tensor, generator: torch.Generator) -> Score:
        return Kulsif(references, generator, self.settings.auxiliaries, self.settings.width)

    def clear(self, labels: Tensor) -> Tensor:
        # L1 distance of probabilities p from their one-hot class: (1 - max p) + the sum of the others.
        return 2 * (1 - labels.max(dim=1).values) <= self.settings.ambiguity
