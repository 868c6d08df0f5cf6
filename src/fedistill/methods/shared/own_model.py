"""Shared by methods in which clients or the server keep a model and an optimizer between rounds."""

from dataclasses import dataclass, field, replace
from typing import Self

from torch import Tensor, nn

from fedistill.methods.participants import Client, Participant
from fedistill.privacy.dp_sgd import fit_privately
from fedistill.rng import stream
from fedistill.state import State
from fedistill.training.augmentation import augmentation
from fedistill.training.early_stopping import draw_validation
from fedistill.training.loop import Loss, fit
from fedistill.training.losses import label_loss
from fedistill.training.model_state import ModelState
from fedistill.training.optimizers import Optimizer, make_optimizer


@dataclass(frozen=True)
class ServerModel:
    """The state of a server that keeps only its model."""

    model: ModelState


@dataclass(frozen=True)
class Learner:
    """A model and its optimizer state, kept between rounds."""

    model: ModelState
    optimizer: State = field(default_factory=dict)

    def restore(self, side: Participant) -> tuple[nn.Module, Optimizer]:
        """Return the model and the optimizer with this state."""
        model = side.load(self.model)
        return model, make_optimizer(side.train.optimizer, model).restore(self.optimizer)

    def after(self, model: nn.Module, optimizer: Optimizer) -> Self:
        """Return this state updated with the model and the optimizer after training."""
        return replace(self, model=ModelState.of(model), optimizer=optimizer.state())


def train_private(
    model: nn.Module,
    optimizer: Optimizer,
    client: Client,
    loss: Loss,
    epochs: int | None = None,
    label_losses: Loss | None = None,
) -> None:
    """Train on the client's private samples with the arm's training settings, and with noise if it has some.

    Args:
        epochs: in place of those of the settings.
        label_losses: the part of the loss on labels alone, by which early stopping judges; default: that of
            logits (b, C).
    """
    if client.dp_sgd is not None:
        steps = client.dp_sgd.steps(client.train, epochs)
        fit_privately(
            model,
            optimizer,
            client.inputs(),
            loss,
            client.dp_sgd,
            steps=steps,
            draws=client.stream(f"private batches of {client.noise_name}"),
            noise=client.stream(f"private noise of {client.noise_name}"),
            augment=augmentation(client.train.augment, client.stream("augment")),
        )
        client.noisy_steps.append(steps)
        return
    if client.train.early_stopping is not None and label_losses is None:
        label_losses = label_loss(client.train, client.data.labels, client.classes)
    train_on_labels(model, optimizer, client, client.inputs(), loss, label_losses or loss, "private", epochs)


def train_on_labels(
    model: nn.Module,
    optimizer: Optimizer,
    side: Participant,
    inputs: Tensor,
    loss: Loss,
    plain: Loss,
    purpose: str,
    epochs: int | None = None,
) -> None:
    """Train on labelled samples with the arm's training settings.

    Args:
        plain: the part of the loss on labels alone, by which early stopping judges.
        purpose: of the stream that the order of the samples is drawn from.
        epochs: in place of those of the settings.
    """
    train = side.train
    # In each round the same: a sample that was trained on tells nothing of others.
    held_out = stream(side.seed, "validation", side.stream_client)
    fit(
        model,
        optimizer,
        inputs,
        loss,
        epochs=epochs or train.epochs,
        batch_size=train.batch_size,
        generator=side.stream(purpose),
        steps=None if epochs else train.steps,
        validation=draw_validation(len(inputs), train.early_stopping, plain, held_out),
        augment=augmentation(train.augment, side.stream("augment")),
    )
