"""FedeKD-like: a personal model listens less to the travelling proxy where the two disagree."""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from fedistill.methods.shared.mutual import MutualLearning
from fedistill.methods.shared.weight_averaging import AveragingSettings
from fedistill.training.losses import kl


class FedeKdLikeSettings(AveragingSettings):
    alpha: float = Field(
        default=0.5, gt=0, le=1, description="share of the label loss in the loss of the personal model"
    )
    beta: float = Field(
        default=0.5, gt=0, le=1, description="share of the label loss in the loss of the proxy"
    )
    sharpness: float = Field(
        default=1.0,
        ge=0,
        allow_inf_nan=False,
        description="how fast trust falls with disagreement; with 0 it never does, as in fml",
    )


class FedeKdLike(MutualLearning):
    """As `fml`, where each private sample has a gate: the more the two models disagree, the less is learned.

    Let p and q be the softmax outputs of the personal model and the proxy on the same batch. The energy of a
    sample is ``E = KL(q || p)``, and its trust ``w = exp(-sharpness E / mean E)``, the mean over the batch.
    Personal model: ``alpha CE(p, y) + (1 - alpha) mean w KL(q || p)``; proxy: ``beta CE(q, y) + (1 - beta)
    KL(p || q)``. Trust and the other model's output are fixed targets. Proxies are averaged by number of
    samples. The personal model may have any architecture (``models.clients``) and never leaves the client;
    the proxy has the server's (``models.server``). Views: the clients' use their personal models, the
    server's the averaged proxy. Exchanged: weights of the proxy each way. Bytes: ``b |θ_server| / 8`` each
    way, b bits per weight, and one to three for the number of samples up.

    The paper was available to us only as an abstract. It says that private models stay and proxies are
    averaged, that the global proxy guides private models, and that energies turn the disagreement of the two
    into a weight of each sample in this "backward" distillation. Our choices are the energy, its
    normalisation and the exponential; that both models learn at once on the same batches, so that the proxy
    guides as it is at that moment and not as it was received; the loss of the proxy; and both shares.
    """

    name = "fedekd-like"
    paper = "Nguyen et al., 2026, arXiv 2605.05553 (abstract)"
    Settings = FedeKdLikeSettings
    settings: FedeKdLikeSettings

    def loss(self, own: Tensor, travelling: Tensor, own_task: Tensor, travelling_task: Tensor) -> Tensor:
        alpha, beta = self.settings.alpha, self.settings.beta
        guide = travelling.detach().softmax(dim=1)
        energy = kl_div(log_softmax(own, dim=1), guide, reduction="none").sum(dim=1)
        personal = alpha * own_task + (1 - alpha) * (self.trust(energy.detach()) * energy).mean()
        proxy = beta * travelling_task + (1 - beta) * kl(travelling, own.detach().softmax(dim=1))
        return personal + proxy

    def trust(self, energy: Tensor) -> Tensor:
        """Return the trust (b,) in the proxy on samples with these energies (b,), from 0 to 1."""
        smallest = torch.finfo(energy.dtype).tiny
        relative = energy.clamp(min=0) / energy.mean().clamp(min=smallest)
        return torch.exp(-self.settings.sharpness * relative)
