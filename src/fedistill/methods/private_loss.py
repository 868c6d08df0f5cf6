"""Shared by methods that train on private labels: the loss that ``[train]`` asks for."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedistill.config import NotTrue, Train
from fedistill.distill import kl
from fedistill.methods.base import Client
from fedistill.train import Loss, predict


def private_loss(client: Client, model: nn.Module) -> Loss:
    """The loss on a client's private samples; call it where private training starts.

    The model as it is now is what ``not_true`` holds on to: received weights, or the client's own model
    after it has learned from the others.
    """
    loss = label_loss(client.train, client.data.labels, client.signature.classes)
    settings = client.train.not_true
    if settings is None or settings.beta == 0:
        return loss
    labels, start = client.data.labels, predict(model, client.data.inputs)

    def preserving(logits: Tensor, at: Tensor) -> Tensor:
        return loss(logits, at) + not_true(logits, start[at], labels[at], settings)

    return preserving


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
