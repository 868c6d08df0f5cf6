"""Shared by methods that train on private labels: the loss set in ``[train]``."""

from torch import Tensor, nn

from fedistill.config.training import ResolvedTrain
from fedistill.methods.participants import Client
from fedistill.training.cost import declare_by_shapes, kind_by_shapes
from fedistill.training.loop import Loss, predict
from fedistill.training.losses import label_loss, not_true


def private_loss(client: Client, model: nn.Module, train: ResolvedTrain | None = None) -> Loss:
    """Return the loss on a client's private samples; call this right before private training.

    ``not_true`` preserves the predictions of the model at this moment: the received weights, or the client's
    own model after distillation.

    Args:
        train: settings of the loss, in place of the arm's.
    """
    train = train or client.train
    loss = label_loss(train, client.data.labels, client.classes)
    settings = train.not_true
    if settings is None or settings.beta == 0:
        return loss
    labels, start = client.data.labels, predict(model, client.inputs())

    def preserving(logits: Tensor, at: Tensor) -> Tensor:
        return loss(logits, at) + not_true(logits, start[at], labels[at], settings)

    if (kind := kind_by_shapes(loss)) is not None:
        declare_by_shapes(preserving, ("not true", kind))
    return preserving
