"""Shared by methods that learn from labels on public samples."""

from abc import abstractmethod
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Generic, TypeVar, cast

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import one_hot

from fedistill.aggregation.labels import Aggregated, ExchangeInfo, OfMean
from fedistill.aggregation.registry import AnyAggregation
from fedistill.aggregation.votes import Majority
from fedistill.communication.messages.base import Message
from fedistill.communication.messages.labels import ChosenLabels, SoftLabels, Votes
from fedistill.communication.messages.statistics import StatisticsRequest
from fedistill.communication.secure_aggregation.fixed_point import Addend
from fedistill.communication.secure_aggregation.total import SecureTotal
from fedistill.config.schema import Section
from fedistill.config.secure_sums import SecureSums
from fedistill.errors import FrameError
from fedistill.methods.base import ClientStateT, Down, Method, Needs, Reply, ServerStateT, Up
from fedistill.methods.participants import (
    Client,
    ClientInfo,
    FederationInfo,
    Participant,
    Server,
    sample_public,
)
from fedistill.methods.secure_sums import AddsUp
from fedistill.methods.shared.own_model import Learner, train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.methods.shared.start import FirstStatistics, StartSettings, StartsWithStatistics
from fedistill.state import State
from fedistill.training.loop import fit, predict
from fedistill.training.losses import distillation_loss
from fedistill.training.optimizers import Optimizer

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
        distillation_loss(probs),
        epochs=settings.distill_epochs,
        batch_size=settings.distill_batch_size,
        generator=site.stream("distil"),
    )


def distil_server(
    state: ServerT, server: Server, inputs: Tensor, probs: Tensor, settings: DistillSettings
) -> ServerT:
    """Distil into the server's model and return its new state."""
    model, optimizer = state.restore(server)
    with server.computing():
        distil(server, model, optimizer, inputs, probs, settings)
    return state.after(model, optimizer)


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


class DrawnSettings(DistillSettings, SampledSettings, StartSettings):
    aggregation: AnyAggregation


@dataclass(frozen=True)
class LabelServer(Learner):
    """The server's model, the last global labels (n, C), their samples' round, and aggregation state.

    ``start`` is the state of the method that comes first (`shared.start`), as plain data.
    """

    labels: Tensor | None = None
    sampled_round: int = 0
    aggregation: State = field(default_factory=dict)
    start: State = field(default_factory=dict)


class DrawnLabels(
    StartsWithStatistics[Message, DownLabels | StatisticsRequest, LabelServer, Learner],
    SampledPublic[Message, DownLabels | StatisticsRequest, LabelServer, Learner],
    AddsUp,
    Generic[UpLabels, DownLabels],
):
    """Labels of public samples up, aggregated labels down; clients and server distil the latter.

    A round: a client distils the last global labels, trains on private data and labels the next public
    samples. A client that was absent learns only from the newest global labels, not from those it missed.
    Messages up and down may be of different types.

    With ``start``, clients first send statistics, and nothing else until enough have. The classes that these
    give to the public samples are the first global labels; the server's model learns them as a student.
    """

    uplink: ClassVar[type[SoftLabels] | type[Votes]]
    downlink: ClassVar[type[SoftLabels] | type[Votes]]
    ServerState = LabelServer
    ClientState = Learner
    needs = Needs(public=("clients", "server"))
    under_skew = ("loss", "aggregation")
    bounded_by_samples = False
    ties_to_last: ClassVar[bool] = False
    """Whether a tie between classes goes to the previous global label."""
    settings: DrawnSettings

    def _looks_at_replies(self) -> Iterator[str]:
        name = self.settings.aggregation.name
        if not isinstance(self.settings.aggregation, OfMean):
            yield (
                f"aggregation {name}, which looks at each client's labels (mean, era, enhanced-era and"
                " majority do not)"
            )
        if self.first is not None:
            yield "`start`, whose statistics the server reads client by client (leave it out)"

    @abstractmethod
    def labels(self, logits: Tensor) -> Tensor:
        """Return the labels (n, C) that a client sends, from its logits (n, C)."""

    def global_labels(self, aggregated: Tensor) -> Tensor:
        """Return the labels (n, C) that the server sends and distils, from the aggregated ones (n, C)."""
        return aggregated

    def broadcast_group(self, state: LabelServer, info: ClientInfo) -> Hashable:
        first = self._collecting(state)
        return first is not None and first.asks(state.start, info.id)

    def start_server(self, server: Server) -> LabelServer:
        start = {} if self.first is None else self.first.start(server)
        return LabelServer(server.initial_model(), start=start)

    def start_client(self, client: Client) -> Learner:
        return Learner(client.initial_model())

    def send(self, state: LabelServer, server: Server, client: int) -> DownLabels | StatisticsRequest | None:
        first = self._collecting(state)
        if first is not None:
            return first.request(state.start, client)
        if state.labels is None:
            return None
        return cast(DownLabels, self.downlink(state.labels, state.sampled_round))

    def client_step(
        self, state: Learner, client: Client, received: DownLabels | StatisticsRequest | None
    ) -> tuple[Learner, Message | None]:
        if self.first is not None and received is None:
            return state, None  # its statistics have arrived, but not yet enough of the others'
        if isinstance(received, StatisticsRequest):
            assert self.first is not None
            return state, self.first.reply(client)
        model, optimizer = state.restore(client)
        if received is not None:
            inputs = client.sampled_public(self.settings.samples, received.sampled_round)
            distil(client, model, optimizer, inputs, received.probs, self.settings)
        train_private(model, optimizer, client, private_loss(client, model))
        logits = predict(model, client.sampled_public(self.settings.samples, client.round))
        return state.after(model, optimizer), self.uplink(self.labels(logits), client.round)

    def check_reply(self, state: LabelServer, server: Server, reply: Reply[Message]) -> None:
        first = self._collecting(state)
        if first is not None:
            first.check_reply(state.start, server, reply)
        elif not isinstance(reply.message, self.uplink):
            raise FrameError("it was asked for labels, and sends statistics")
        super().check_reply(state, server, reply)

    def server_step(
        self, state: LabelServer, server: Server, replies: Iterable[Reply[Message]]
    ) -> LabelServer:
        first = self._collecting(state)
        if first is not None:
            return self._begin(first, state, server, replies)
        before = self._last_labels(state)
        rows = ((reply.client, cast(UpLabels, reply.message).probs) for reply in replies)
        found = self.pool(server, rows, before, state.aggregation)
        if found is None:
            return state
        server.note_reliability(found.reliability)
        return replace(self._learned(state, server, found.labels), aggregation=found.state)

    def pool(
        self, server: Server, rows: Iterable[tuple[int, Tensor]], before: Tensor | None, state: State
    ) -> Aggregated | None:
        """Aggregate the labels (n, C) that clients sent; None if none did. See `Aggregation.aggregate`."""
        return self.settings.aggregation.aggregate(rows, server.stream("ties"), before, state)

    def without_sums(self, federation: FederationInfo) -> Iterator[str]:
        yield from self._looks_at_replies()

    def addends(self, federation: FederationInfo, settings: SecureSums) -> dict[str, Addend]:
        shape = self.samples(federation.public), federation.classes
        votes = self.uplink is Votes or isinstance(self.settings.aggregation, Majority)
        return {"probs": Addend.integers(shape, 1) if votes else Addend.shares(shape, settings.bits)}

    def to_add(self, client: Client, message: Message, settings: SecureSums) -> dict[str, Tensor]:
        return {"probs": self._of_mean.of_client(cast(UpLabels, message).probs)}

    def server_step_of_sum(self, state: LabelServer, server: Server, total: SecureTotal) -> LabelServer:
        exchange = ExchangeInfo(total.clients, server.stream("ties"), self._last_labels(state), {})
        return self._learned(state, server, self.pool_sum(server, total.sums["probs"], exchange))

    def pool_sum(self, server: Server, labels: Tensor, exchange: ExchangeInfo) -> Tensor:
        """Aggregate the sum (n, C) of the labels of these clients."""
        return self._of_mean.of_mean((labels / len(exchange.clients)).float(), exchange)

    @property
    def _of_mean(self) -> OfMean:
        assert isinstance(self.settings.aggregation, OfMean)
        return self.settings.aggregation

    def _last_labels(self, state: LabelServer) -> Tensor | None:
        """Return the last labels, for ties, if they are for the same samples: those of all rounds are."""
        return state.labels if self.ties_to_last and self.settings.samples is None else None

    def _learned(self, state: LabelServer, server: Server, aggregated: Tensor) -> LabelServer:
        """Return the state in which the server's model has learned aggregated labels (n, C)."""
        labels = self.global_labels(aggregated)
        inputs = server.sampled_public(self.settings.samples, server.round)
        learned = distil_server(state, server, inputs, labels, self.settings)
        return replace(learned, labels=labels, sampled_round=server.round)

    def _collecting(self, state: LabelServer) -> FirstStatistics | None:
        """Return the statistics that clients are asked for in this round, if they are."""
        return self.first if state.labels is None else None

    def _begin(
        self, first: FirstStatistics, state: LabelServer, server: Server, replies: Iterable[Reply[Message]]
    ) -> LabelServer:
        """Collect statistics; once there are enough, what they say of the round's samples are its labels."""
        start, model, logits = first.collect(state.start, server, replies)
        if logits is None:
            return replace(state, model=model, start=start)
        classes = logits.argmax(dim=1)
        drawn = sample_public(server.seed, len(classes), self.samples(len(classes)), server.round)
        labels = one_hot(classes[drawn], server.classes).float()
        return replace(state, model=model, start=start, labels=labels, sampled_round=server.round)
