"""Shared by methods that train on private labels: the loss that ``[train]`` asks for."""

from torch import Tensor, nn

from fedistill.methods.participants import Client
from fedistill.training.loop import Loss, predict
from fedistill.training.losses import label_loss, not_true


def private_loss(client: Client, model: nn.Module) -> Loss:
    """The loss on a client's private samples; call it where private training starts.

    The model as it is now is what ``not_true`` holds on to: received weights, or the client's own model
    after it has learned from the others.
    """
    loss = label_loss(client.train, client.data.labels, client.classes)
    settings = client.train.not_true
    if settings is None or settings.beta == 0:
        return loss
    labels, start = client.data.labels, predict(model, client.inputs())

    def preserving(logits: Tensor, at: Tensor) -> Tensor:
        return loss(logits, at) + not_true(logits, start[at], labels[at], settings)

    return preserving
