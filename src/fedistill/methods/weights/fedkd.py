"""FedKD: a mentor stays at each client, a small mentee travels; the lower their loss, the more they teach."""

import torch
from pydantic import Field
from torch import Tensor

from fedistill.methods.shared.mutual import MutualLearning
from fedistill.methods.shared.weight_averaging import AveragingSettings
from fedistill.training.losses import kl

SMALLEST = torch.finfo(torch.float32).eps


class FedKdSettings(AveragingSettings):
    floor: float = Field(
        default=0.0,
        ge=0,
        description="lower bound of the divisor L of distillation; 0 as in the paper, 1 is more stable",
    )


class FedKd(MutualLearning):
    """Adaptive mutual distillation of mentor and mentee; the mentee's low-rank updates are averaged.

    Mentor (``models.clients``): ``CE(t, y) + KL(s || t) / L``; mentee (``models.server``): ``CE(s, y) +
    KL(t || s) / L``, where t and s are their softmax outputs on the same batch and L is the sum of both cross
    entropies: while labels are poorly learned, both teach little. The gradient treats L and the other's
    output as constants. As a client overfits its few samples, L goes to 0 but the gradient does not, and
    mentors may end below `local`: ``floor`` bounds L from below. Views: the clients' use their mentors, the
    server's the averaged mentee. Exchanged: the mentee's update each way, by default in the codec
    ``low-rank``, which replaces matrices of the *update* by a truncated singular value decomposition if that
    is shorter. Bytes: at most ``b |θ_server| / 8`` each way; ``b sum_i k_i (r_i + c_i) / 8`` for matrices
    r_i x c_i kept at rank k_i.

    Departs from the paper: no hidden loss L^h, neither on hidden states nor on attention, since the two
    models may have none in common; the share of energy kept is constant (0.95) and does not grow over the
    run from T_start to T_end, which are given in a supplement that we have not read; what is cut off an
    update is added to later ones; factors are integers and entropy-coded.
    """

    name = "fedkd"
    paper = "Wu et al., 2022, Nature Communications 13:2032"
    exchanges = "updates of the server's model, low-rank"
    byte_formula = "up = down = b Σ k(r+c)/8 over matrices of rank k, r by c; at most b|θ_server|/8"
    codec = "low-rank"
    Settings = FedKdSettings
    settings: FedKdSettings

    def loss(self, own: Tensor, travelling: Tensor, own_task: Tensor, travelling_task: Tensor) -> Tensor:
        tasks = own_task + travelling_task
        mentor = kl(own, travelling.detach().softmax(dim=1))
        mentee = kl(travelling, own.detach().softmax(dim=1))
        return tasks + (mentor + mentee) / tasks.detach().clamp(min=max(self.settings.floor, SMALLEST))
