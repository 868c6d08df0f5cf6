"""Losses: on labels, and of a student who follows what others know."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from fedistill.config.schema import NotTrue, Train
from fedistill.training.loop import Loss


def soft_cross_entropy(logits: Tensor, probs: Tensor) -> Tensor:
    """Mean of ``-sum_c q_c log p_c`` over a batch; logits and target probabilities are (b, C)."""
    return -(probs * log_softmax(logits, dim=1)).sum(dim=1).mean()


def kl(logits: Tensor, probs: Tensor) -> Tensor:
    """Mean KL divergence from targets (b, C) to the softmax of logits (b, C), in nats."""
    return kl_div(log_softmax(logits, dim=1), probs, reduction="batchmean")


def logit_mae(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute error between logits, both (b, C) (FedMD's published code)."""
    return torch.nn.functional.l1_loss(logits, targets)


def label_loss(train: Train, labels: Tensor, classes: int) -> Loss:
    """Cross entropy to labels (n,), smoothed, and adjusted by their own counts, as the settings say.

    Balanced softmax adds ``log n_c`` to the logits in training (Ren et al., arXiv 2007.10740; Menon et al.,
    arXiv 2007.07314, with tau = 1), so that the model's own softmax, which predicts, is that of even
    classes. A class without samples counts as one: the papers have none, and the loss stays finite.
    """
    shift = torch.zeros(classes)
    if train.loss == "balanced-softmax":
        shift = torch.bincount(labels, minlength=classes).clamp(min=1).log()

    def loss(logits: Tensor, at: Tensor) -> Tensor:
        return cross_entropy(logits + shift, labels[at], label_smoothing=train.label_smoothing)

    return loss


def not_true(logits: Tensor, start: Tensor, labels: Tensor, settings: NotTrue) -> Tensor:
    """FedNTD: ``beta T^2 KL`` from the start's to the model's softmax over all classes but the true one.

    Logits and start are (b, C), labels (b,) (Lee et al., arXiv 2106.03097, equations 4 and 5).
    """
    others = torch.ones_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], False)
    rows = (len(labels), -1)
    student = logits[others].view(rows) / settings.temperature
    teacher = start[others].view(rows) / settings.temperature
    return settings.beta * settings.temperature**2 * kl(student, teacher.softmax(dim=1))
