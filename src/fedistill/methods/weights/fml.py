"""FML: each client has a model of its own; a meme model travels, and both learn from each other."""

from pydantic import Field
from torch import Tensor

from fedistill.config.schema import Section
from fedistill.methods.shared.mutual import MutualLearning
from fedistill.training.losses import kl


class FmlSettings(Section):
    alpha: float = Field(
        default=0.5, gt=0, le=1, description="of the client's own model: share of the labels in its loss"
    )
    beta: float = Field(
        default=0.5, gt=0, le=1, description="of the meme model: share of the labels in its loss"
    )


class Fml(MutualLearning):
    """Deep mutual learning of a personal model and a meme on private data; memes are averaged.

    Personal model: ``alpha CE(p, y) + (1 - alpha) KL(q || p)``; meme: ``beta CE(q, y) + (1 - beta)
    KL(p || q)``, p and q being their softmax outputs on the same batch and the other's output a fixed
    target. The personal model may have any architecture (``models.clients``) and never leaves the client;
    the meme has the server's (``models.server``). Views: the clients' from their personal models, the
    server's from the averaged meme. Exchanged: weights of the meme each way. Bytes: ``b |θ_server| / 8``
    each way, b bits a weight, and one to three for the samples up.

    Departs from the paper: memes are averaged by samples; both models are trained at the arm's rate; the
    default of one half for ``alpha`` and ``beta`` is ours.
    """

    name = "fml"
    paper = "Shen et al., 2020, arXiv 2006.16765"
    Settings = FmlSettings
    settings: FmlSettings

    def loss(self, own: Tensor, travelling: Tensor, own_task: Tensor, travelling_task: Tensor) -> Tensor:
        alpha, beta = self.settings.alpha, self.settings.beta
        personal = alpha * own_task + (1 - alpha) * _follow(own, travelling)
        meme = beta * travelling_task + (1 - beta) * _follow(travelling, own)
        return personal + meme


def _follow(logits: Tensor, other: Tensor) -> Tensor:
    return kl(logits, other.detach().softmax(dim=1))
