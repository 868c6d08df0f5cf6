"""Shared by methods that learn from labels on public samples."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import TypeVar

from pydantic import Field
from torch import Tensor, nn

from fedistill.aggregation.registry import AnyAggregation
from fedistill.communication.messages.labels import ChosenLabels, SoftLabels, Votes
from fedistill.config.schema import Section
from fedistill.methods.base import Client, Method, Participant, Reply, Server
from fedistill.methods.shared.own_model import initial_state, restore, state_of, train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.state import State
from fedistill.training.loop import fit, predict
from fedistill.training.losses import kl
from fedistill.training.model_state import flatten
from fedistill.training.optimizers import Optimizer, make_optimizer

Labels = TypeVar("Labels", SoftLabels, Votes)


class DistillSettings(Section):
    distill_epochs: int = Field(default=1, ge=1, description="epochs on the global labels")
    distill_batch_size: int = Field(default=32, ge=1, description="samples in each step of it")


def distil(
    site: Participant,
    model: nn.Module,
    optimizer: Optimizer,
    inputs: Tensor,
    probs: Tensor,
    settings: DistillSettings,
) -> None:
    """Train a model on public inputs (n, ...) to give probabilities (n, C), by KL divergence."""
    fit(
        model,
        optimizer,
        inputs,
        lambda logits, at: kl(logits, probs[at]),
        epochs=settings.distill_epochs,
        batch_size=settings.distill_batch_size,
        generator=site.stream("distil"),
    )


def distil_server(
    state: State, server: Server, inputs: Tensor, probs: Tensor, settings: DistillSettings
) -> State:
    """Go on with the server's model and optimiser; return their new state."""
    model = server.load(state["model"])
    optimizer = make_optimizer(server.train.optimizer, model)
    optimizer.restore(state["optimizer"])
    distil(server, model, optimizer, inputs, probs, settings)
    return {"model": flatten(model), "optimizer": optimizer.state()}


def select_labels(probs: Tensor, mask: Tensor, drawn: int) -> ChosenLabels:
    """The message of those rows of labels (n, C) that a mask (n,) chooses."""
    return ChosenLabels(probs[mask], mask.nonzero().flatten(), drawn, int(mask.sum()))


def spread_labels(message: ChosenLabels, samples: int) -> Tensor:
    """Labels (n, C) of all samples of the message's round: zeros where its sender chose none."""
    rows = message.probs.new_zeros(samples, message.probs.shape[1])
    rows[message.places] = message.probs
    return rows


class DrawnSettings(DistillSettings):
    samples: int | None = Field(
        default=None, ge=1, description="public samples a round, drawn anew; default: all"
    )
    aggregation: AnyAggregation


class DrawnLabels(Method[Labels, Labels]):
    """Labels of public samples up, what they are pooled to down; all distil that, the server too.

    A round: a client distils the last global labels, trains on private data and labels the next public
    samples. A client that was absent learns from the newest global labels and not from those it missed.
    """

    clients_need_public = True
    server_needs_public = True
    has_client_models = True
    under_skew = ("loss", "aggregation")
    settings: DrawnSettings

    @abstractmethod
    def message(self, probs: Tensor, drawn: int) -> Labels:
        """The message of these labels (n, C) on the samples of a round."""

    @abstractmethod
    def labels(self, logits: Tensor) -> Tensor:
        """What a client says (n, C) of samples with these logits."""

    @abstractmethod
    def pooled(self, probs: Iterable[Tensor], state: State, server: Server) -> Tensor | None:
        """The global labels (n, C), or None where no client replied."""

    def samples(self, public: int) -> int:
        return min(public, self.settings.samples or public)

    def start_server(self, server: Server) -> State:
        return {"model": server.initial_weights(), "optimizer": {}}

    def start_client(self, client: Client) -> State:
        return initial_state(client)

    def send(self, state: State, server: Server, client: int) -> Labels | None:
        return self.message(state["labels"], state["drawn"]) if "labels" in state else None

    def client_step(self, state: State, client: Client, received: Labels | None) -> tuple[State, Labels]:
        model, optimizer = restore(state, client)
        if received is not None:
            inputs = client.drawn(self.settings.samples, received.drawn)
            distil(client, model, optimizer, inputs, received.probs, self.settings)
        train_private(model, optimizer, client, private_loss(client, model))
        logits = predict(model, client.drawn(self.settings.samples, client.round))
        return state_of(model, optimizer), self.message(self.labels(logits), client.round)

    def server_step(self, state: State, server: Server, replies: Iterable[Reply[Labels]]) -> State:
        labels = self.pooled((reply.message.probs for reply in replies), state, server)
        if labels is None:
            return state
        inputs = server.drawn(self.settings.samples, server.round)
        learned = distil_server(state, server, inputs, labels, self.settings)
        return {**learned, "labels": labels, "drawn": server.round}
