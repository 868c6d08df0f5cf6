"""FML: each client has a personal model; a meme model travels, and both learn from each other."""

from pydantic import Field
from torch import Tensor

from fedistill.methods.shared.mutual import MutualLearning
from fedistill.methods.shared.weight_averaging import AveragingSettings
from fedistill.training.losses import kl


class FmlSettings(AveragingSettings):
    alpha: float = Field(
        default=0.5, gt=0, le=1, description="share of the label loss in the loss of the personal model"
    )
    beta: float = Field(
        default=0.5, gt=0, le=1, description="share of the label loss in the loss of the meme model"
    )


class Fml(MutualLearning):
    """Deep mutual learning of a personal model and a meme on private data; memes are averaged.

    Personal model: ``alpha CE(p, y) + (1 - alpha) KL(q || p)``; meme: ``beta CE(q, y) + (1 - beta)
    KL(p || q)``, where p and q are their softmax outputs on the same batch, and each treats the other's
    output as a fixed target. The personal model may have any architecture (``models.clients``) and never
    leaves the client; the meme has the server's architecture (``models.server``). Views: the clients' use
    their personal models, the server's the averaged meme. Exchanged: weights of the meme each way. Bytes:
    ``b |θ_server| / 8`` each way, b bits per weight, and one to three for the number of samples up.

    Departs from the paper: memes are averaged by number of samples; both models are trained at the arm's
    learning rate; the default of 0.5 for ``alpha`` and ``beta`` is our choice.
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
