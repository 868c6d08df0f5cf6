"""Shared by methods that learn from labels on public samples."""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeVar, cast

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedistill.aggregation.registry import AnyAggregation
from fedistill.communication.messages.labels import ChosenLabels, SoftLabels, Votes
from fedistill.config.schema import Section
from fedistill.methods.base import ClientStateT, Down, Method, Needs, Reply, ServerStateT, Up
from fedistill.methods.participants import Client, Participant, Server
from fedistill.methods.shared.own_model import Learner, train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.rng import SERVER, scoped, stream
from fedistill.state import State
from fedistill.training.loop import fit, predict
from fedistill.training.losses import kl
from fedistill.training.model_state import ModelState
from fedistill.training.optimizers import Optimizer, make_optimizer

UpLabels = TypeVar("UpLabels", SoftLabels, Votes)
DownLabels = TypeVar("DownLabels", SoftLabels, Votes)
ServerT = TypeVar("ServerT", bound=Learner)


class DistillSettings(Section):
    distill_epochs: int = Field(default=1, ge=1, description="epochs on the global labels")
    distill_batch_size: int = Field(default=32, ge=1, description="samples per step of distillation")


def distil(
    site: Participant,
    model: nn.Module,
    optimizer: Optimizer,
    inputs: Tensor,
    probs: Tensor,
    settings: DistillSettings,
) -> None:
    """Distil probabilities (n, C) on public inputs (n, ...) into a model, by KL divergence."""
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
    state: ServerT, server: Server, inputs: Tensor, probs: Tensor, settings: DistillSettings
) -> ServerT:
    """Distil into the server's model and return its new state."""
    model, optimizer = state.restore(server)
    distil(server, model, optimizer, inputs, probs, settings)
    return state.after(model, optimizer)


def learn_labels(
    site: Participant, name: str, labels: Tensor, *, epochs: int, batch_size: int, smoothing: float
) -> ModelState:
    """Return a model of this architecture trained on classes (n,) of the public samples, smoothed.

    Classes of C or more stand for none. All that is random comes from streams that do not depend on the
    participant or the round, so all participants get the same model.
    """
    labelled = (labels < site.classes).nonzero().flatten()
    targets = labels[labelled]
    with scoped(site.seed, "start"):
        module = site.load(site.common_model(name), name)
        fit(
            module,
            make_optimizer(site.train.optimizer, module),
            site.public_inputs(name)[labelled],
            lambda logits, at: cross_entropy(logits, targets[at], label_smoothing=smoothing),
            epochs=epochs,
            batch_size=batch_size,
            generator=stream(site.seed, "start", SERVER),
        )
    return ModelState.of(module)


def select_labels(probs: Tensor, mask: Tensor, drawn: int) -> ChosenLabels:
    """Return a message with the rows of labels (n, C) that a mask (n,) selects."""
    return ChosenLabels(probs[mask], mask.nonzero().flatten(), drawn, int(mask.sum()))


def spread_labels(message: ChosenLabels, samples: int) -> Tensor:
    """Return labels (n, C) of all samples of the message's round, with zeros for those it does not label."""
    rows = message.probs.new_zeros(samples, message.probs.shape[1])
    rows[message.places] = message.probs
    return rows


class SampledSettings(Section):
    samples: int | None = Field(
        default=None, ge=1, description="public samples per round, drawn at random; default: all"
    )


class SampledPublic(Method[Up, Down, ServerStateT, ClientStateT]):
    """Base of methods whose messages cover the number of public samples in the setting ``samples``."""

    settings: SampledSettings

    def samples(self, public: int) -> int:
        return min(public, self.settings.samples or public)


class DrawnSettings(DistillSettings, SampledSettings):
    aggregation: AnyAggregation


@dataclass(frozen=True)
class LabelServer(Learner):
    """The server's model, the last global labels (n, C), their samples' round, and aggregation state."""

    labels: Tensor | None = None
    sampled_round: int = 0
    aggregation: State = field(default_factory=dict)


class DrawnLabels(SampledPublic[UpLabels, DownLabels, LabelServer, Learner]):
    """Labels of public samples up, aggregated labels down; clients and server distil the latter.

    A round: a client distils the last global labels, trains on private data and labels the next public
    samples. A client that was absent learns only from the newest global labels, not from those it missed.
    Messages up and down may be of different types.
    """

    uplink: ClassVar[type[SoftLabels] | type[Votes]]
    downlink: ClassVar[type[SoftLabels] | type[Votes]]
    ServerState = LabelServer
    ClientState = Learner
    needs = Needs(public=("clients", "server"))
    under_skew = ("loss", "aggregation")
    ties_to_last: ClassVar[bool] = False
    """Whether a tie between classes goes to the previous global label."""
    settings: DrawnSettings

    @abstractmethod
    def labels(self, logits: Tensor) -> Tensor:
        """Return the labels (n, C) that a client sends, from its logits (n, C)."""

    def global_labels(self, aggregated: Tensor) -> Tensor:
        """Return the labels (n, C) that the server sends and distils, from the aggregated ones (n, C)."""
        return aggregated

    def start_server(self, server: Server) -> LabelServer:
        return LabelServer(server.initial_model())

    def start_client(self, client: Client) -> Learner:
        return Learner(client.initial_model())

    def send(self, state: LabelServer, server: Server, client: int) -> DownLabels | None:
        if state.labels is None:
            return None
        return cast(DownLabels, self.downlink(state.labels, state.sampled_round))

    def client_step(
        self, state: Learner, client: Client, received: DownLabels | None
    ) -> tuple[Learner, UpLabels]:
        model, optimizer = state.restore(client)
        if received is not None:
            inputs = client.sampled_public(self.settings.samples, received.sampled_round)
            distil(client, model, optimizer, inputs, received.probs, self.settings)
        train_private(model, optimizer, client, private_loss(client, model))
        logits = predict(model, client.sampled_public(self.settings.samples, client.round))
        message = cast(UpLabels, self.uplink(self.labels(logits), client.round))
        return state.after(model, optimizer), message

    def server_step(
        self, state: LabelServer, server: Server, replies: Iterable[Reply[UpLabels]]
    ) -> LabelServer:
        # The last labels are for the same samples only if every round uses all of them.
        before = state.labels if self.ties_to_last and self.settings.samples is None else None
        rows = ((reply.client, reply.message.probs) for reply in replies)
        found = self.settings.aggregation.aggregate(rows, server.stream("ties"), before, state.aggregation)
        if found is None:
            return state
        labels = self.global_labels(found.labels)
        inputs = server.sampled_public(self.settings.samples, server.round)
        learned = distil_server(state, server, inputs, labels, self.settings)
        return replace(learned, labels=labels, sampled_round=server.round, aggregation=found.state)
