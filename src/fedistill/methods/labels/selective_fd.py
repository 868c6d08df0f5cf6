"""Selective-FD: clients answer what is like their own data, the server passes on what is clear."""

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
        default=None, gt=0, description="of the Gaussian kernel; default: median distance of private samples"
    )
    ambiguity: float = Field(
        default=1.0,
        ge=0,
        le=2,
        description="tau, how far (L1) a pooled label may be from its likeliest class; 2: any",
    )


class SelectiveFd(Abstaining):
    """Clients label only public samples that are like their own; what they disagree on is dropped.

    A round: distil the last global labels (KL), train on private data, predict those of the round's n public
    samples that are familiar. Familiar is what the density ratio of private to uniform samples (KuLSIF) puts
    above the lowest ``quantile`` of the client's own held-out samples. The server averages, sample by
    sample, those who answered (or pools them by another ``aggregation``), drops what is further than
    ``ambiguity`` from one class, distils the rest and sends it. Exchanged: (s, C) probabilities and which
    samples they are of; s <= n differs by client and round. Bytes: ``b s C / 8`` each way, b bits a number,
    and at most about ``n / 8`` to say which.

    Samples that nobody is familiar with teach nobody, and with few private samples or many dimensions the
    ratio tells little: the published code says so too, and takes features of a pretrained model there.

    Departs from the published code, which multiplies by the matrix of the linear system where it should
    solve it, draws its uniform points from a fixed range and has a kernel of width 5: here they are from the
    box that private samples span, and the width is their median distance. It sends hard labels too: take the
    codec `onehot`. There clients alone learn; here the server's model does too.
    """

    name = "selective-fd"
    paper = "Shao et al., 2024, arXiv 2304.01731 (abstract) and its published code"
    exchanges = "soft labels on public samples that are like one's own"
    byte_formula = "up = down = bsC/8, s ≤ n"
    Settings = SelectiveFdSettings
    settings: SelectiveFdSettings

    def score(self, references: Tensor, generator: torch.Generator) -> Score:
        return Kulsif(references, generator, self.settings.auxiliaries, self.settings.width)

    def clear(self, labels: Tensor) -> Tensor:
        # From probabilities p to the one-hot row of their maximum: (1 - max p) + sum of the others.
        return 2 * (1 - labels.max(dim=1).values) <= self.settings.ambiguity
