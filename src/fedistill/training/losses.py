"""Losses on labels, and distillation losses."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from fedistill.config.plugins import named
from fedistill.config.training import NotTrue, Train
from fedistill.training.cost import declare_by_shapes
from fedistill.training.loop import Loss


def soft_cross_entropy(logits: Tensor, probs: Tensor) -> Tensor:
    """Return the mean of ``-sum_c q_c log p_c`` over a batch; logits and target probabilities are (b, C)."""
    return -(probs * log_softmax(logits, dim=1)).sum(dim=1).mean()


def kl(logits: Tensor, probs: Tensor) -> Tensor:
    """Return the mean KL divergence from targets (b, C) to the softmax of logits (b, C), in nats."""
    return kl_div(log_softmax(logits, dim=1), probs, reduction="batchmean")


def logit_mae(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean absolute error between logits, both (b, C), as in FedMD's published code."""
    return torch.nn.functional.l1_loss(logits, targets)


def label_loss(train: Train, labels: Tensor, classes: int) -> Loss:
    """Return the loss on labels (n,): cross-entropy, with label smoothing and balanced softmax as set, or the
    mean of what the user's own function returns.

    Balanced softmax adds ``log n_c`` to the logits in training (Ren et al., arXiv 2007.10740; Menon et al.,
    arXiv 2007.07314, with tau = 1), so that the model itself predicts as under balanced classes. For a class
    without samples, a case that the papers do not have, n_c is 1, which keeps the loss finite.
    """
    if train.own_loss:
        own = named("loss", train.loss, "function")
        return lambda logits, at: own(logits, labels[at]).mean()
    shift = class_shift(labels, classes) if train.loss == "balanced-softmax" else None

    def loss(logits: Tensor, at: Tensor) -> Tensor:
        # Half precision is enough for a network, and not for a logarithm.
        whole = logits.to(torch.promote_types(logits.dtype, torch.float32))
        shifted = whole if shift is None else whole + shift
        return cross_entropy(shifted, labels[at], label_smoothing=train.label_smoothing)

    declare_by_shapes(loss, ("labels", labels.dtype, train.label_smoothing > 0))
    return loss


def class_shift(labels: Tensor, classes: int) -> Tensor:
    """Return what balanced softmax adds to the logits of each class (C,), for training labels (n,)."""
    return torch.bincount(labels, minlength=classes).clamp(min=1).log()


def distillation_loss(probs: Tensor) -> Loss:
    """Return the loss on the targets (n, C) of all samples, by `kl`."""

    def loss(logits: Tensor, at: Tensor) -> Tensor:
        return kl(logits, probs[at])

    declare_by_shapes(loss, ("distillation", probs.dtype))
    return loss


def not_true(logits: Tensor, start: Tensor, labels: Tensor, settings: NotTrue) -> Tensor:
    """Return FedNTD's ``beta T^2 KL`` from the initial to the current softmax over all but the true class.

    ``start`` are the initial logits (b, C); logits are (b, C), labels (b,). Source: Lee et al.,
    arXiv 2106.03097, equations 4 and 5.
    """
    others = torch.ones_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], False)
    rows = (len(labels), -1)
    student = logits[others].view(rows) / settings.temperature
    teacher = start[others].view(rows) / settings.temperature
    return settings.beta * settings.temperature**2 * kl(student, teacher.softmax(dim=1))
