"""Shared by methods whose loss on private samples has a part on public ones."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fedistill.methods.participants import Client
from fedistill.methods.shared.private_loss import private_loss
from fedistill.training.loop import Loss, outputs, predict
from fedistill.training.losses import kl


def with_public_part(
    private: Loss,
    model: nn.Module,
    inputs: Tensor,
    probs: Tensor,
    *,
    weight: float,
    batch_size: int,
    draws: torch.Generator,
) -> Loss:
    """Return the private loss plus, at each step, a divergence on the next batch of public samples.

    Args:
        inputs: (n, ...) of the public samples.
        probs: (n, C) what the model should say of them.
        weight: on the KL divergence from these to the model's own.
        draws: what the order of the public samples is drawn from, in each pass.
    """
    turns = _batches(len(inputs), batch_size, draws)

    def loss(logits: Tensor, at: Tensor) -> Tensor:
        now = next(turns)
        return private(logits, at) + weight * kl(outputs(model, inputs, now), probs[now])

    return loss


def retaining_loss(client: Client, model: nn.Module, weight: float) -> Loss:
    """Return a client's private loss with a part that keeps what the model says of public samples.

    After learning without forgetting (Li and Hoiem, arXiv 1606.09282), which keeps it on the new samples: the
    targets are the model's own probabilities at this moment. Balanced softmax keeps a client from unlearning
    classes that it does not have, and so does this: in its place there is cross-entropy, which tells a
    client's classes apart from all others. With a weight of 0 it is the loss set in ``[train]``.
    """
    if not weight:
        return private_loss(client, model)
    train = client.train
    if train.loss == "balanced-softmax":
        train = train.model_copy(update={"loss": "cross-entropy"})
    public = client.public_inputs()
    return with_public_part(
        private_loss(client, model, train),
        model,
        public,
        predict(model, public).softmax(dim=1),
        weight=weight,
        batch_size=train.batch_size,
        draws=client.stream("retained"),
    )


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of sample positions endlessly, each pass in a new order."""
    while True:
        yield from torch.split(torch.randperm(count, generator=generator), size)
