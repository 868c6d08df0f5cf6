"""What a method is: two typed messages, state as plain data, a client step and a server step.

A method never knows where it runs. The round loop calls, in each round: `send` for every client that
takes part, `client_step` at that client, and `server_step` once with the replies that came. States are
dictionaries of plain data (`fedistill.state`). The entry ``"model"`` of a state holds flat weights
(`fedistill.training.loop`): it is what the view of that side is measured on; a state without it has no view.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from fedistill.communication.codecs.registry import Wanted
from fedistill.communication.messages.base import Message, MessageContext
from fedistill.config.schema import Section, Train
from fedistill.data.task import Labelled
from fedistill.errors import Refusal
from fedistill.models import registry as models
from fedistill.models.features import width
from fedistill.models.signature import Signature
from fedistill.rng import SERVER, stream
from fedistill.state import State
from fedistill.training.model_state import flatten, unflatten

Up = TypeVar("Up", bound=Message)
Down = TypeVar("Down", bound=Message)


class NoSettings(Section):
    """A method without settings of its own."""


@dataclass(frozen=True)
class ClientInfo:
    """What the server knows of a client before the run.

    Attributes:
        parts: shapes of the tensors that its model's weights are made of; ``parameters``: P, all of them.
        samples: private samples, as it registered.
    """

    id: int
    model: str
    parameters: int
    parts: tuple[tuple[int, ...], ...] = ()
    samples: int = 0


@dataclass(frozen=True)
class FederationInfo:
    """What a method is asked to do; both sides know it before round 1.

    Attributes:
        server_parts: shapes of the tensors of the server's model, where it travels; else empty.
    """

    seed: int
    signature: Signature
    server_model: str
    clients: tuple[ClientInfo, ...]
    public: int
    labelled_public: bool
    server_parts: tuple[tuple[int, ...], ...] = ()

    @cached_property
    def samples(self) -> tuple[int, ...]:
        """Private samples of each client."""
        return tuple(info.samples for info in self.clients)


@dataclass(frozen=True)
class Participant:
    """What the server and every client have in common.

    Attributes:
        seed: of the arm; names all random streams.
        round: counts from 1.
        model: name of this side's model.
        public: inputs of the public set, or None where this side has no copy.
        train: the arm's training settings.
    """

    seed: int
    round: int
    signature: Signature
    model: str
    public: Tensor | None
    train: Train

    @property
    def stream_client(self) -> int:
        return SERVER

    def initial_weights(self, model: str | None = None) -> Tensor:
        """Initial weights (P,) of this side's model, or of another by name, from this side's stream."""
        built = models.build_model(model or self.model, self.signature, self.seed, self.stream_client)
        return flatten(built)

    def common_weights(self) -> Tensor:
        """Initial weights (P,) that all clients with this side's model have in common."""
        return flatten(models.build_model(self.model, self.signature, self.seed, SERVER))

    def load(self, weights: Tensor, model: str | None = None) -> nn.Module:
        """Return a module with these weights.

        One module for each name is kept in a process and loaded anew: use one set of weights at a time.
        """
        return unflatten(models.reusable(model or self.model, self.signature), weights)

    def stream(self, purpose: str) -> torch.Generator:
        """The random stream of this purpose, side and round."""
        return stream(self.seed, purpose, self.stream_client, self.round)

    def drawn(self, samples: int | None, round: int) -> Tensor:
        """Inputs of the public samples of a round (`draw`)."""
        assert self.public is not None
        size = len(self.public)
        if samples is None or samples >= size:
            return self.public
        return self.public[sample_public(self.seed, size, samples, round)]


def sample_public(seed: int, population: int, samples: int, round: int) -> Tensor:
    """Places (n,) of a round's public samples, in order; server and clients draw the same, for no bytes."""
    if samples >= population:
        return torch.arange(population)
    order = torch.randperm(population, generator=stream(seed, "public", round=round))
    return order[:samples].sort().values


@dataclass(frozen=True)
class Client(Participant):
    """One client in one round, with its private data.

    Attributes:
        server_model: name of the server's model.
    """

    id: int
    data: Labelled
    server_model: str

    @property
    def stream_client(self) -> int:
        return self.id


@dataclass(frozen=True)
class Server(Participant):
    """The server in one round; ``public_labels`` only for a method that declares it needs them."""

    clients: tuple[ClientInfo, ...]
    public_labels: Tensor | None


@dataclass(frozen=True)
class Reply(Generic[Up]):
    """A client's message, as the server decoded it."""

    client: int
    message: Up


class Method(ABC, Generic[Up, Down]):
    """Base of all methods; subclasses are final, one file each."""

    name: ClassVar[str]
    paper: ClassVar[str]
    exchanges: ClassVar[str]
    byte_formula: ClassVar[str]

    uplink: ClassVar[type[Message] | None] = None
    downlink: ClassVar[type[Message] | None] = None
    clients_work: ClassVar[bool] = True
    clients_need_public: ClassVar[bool] = False
    server_needs_public: ClassVar[bool] = False
    needs_public_labels: ClassVar[bool] = False
    has_server_model: ClassVar[bool] = True
    has_client_models: ClassVar[bool] = False
    one_model: ClassVar[bool] = False
    """All clients and the server must have the same architecture."""
    one_width: ClassVar[bool] = False
    """Features of all clients' models must have one length."""
    server_model_travels: ClassVar[bool] = False
    """Weights that cross are of the server's architecture, and not of the client's own."""

    under_skew: ClassVar[tuple[Literal["loss", "aggregation"], ...]] = ()
    """What holds up under strong label skew (`experiment.preflight`): balanced softmax, and prior correction
    where a client labels many samples in each exchange that it has not chosen, so that its prior shows."""

    server_eval_needs_clients: ClassVar[bool] = False
    """There is no ``server@global`` where clients' models stay at sites."""

    codec: ClassVar[Wanted] = "fp32"
    """Where the experiment names none."""

    Settings: ClassVar[type[Section]] = NoSettings

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def check(self, federation: FederationInfo) -> None:
        """Refuse, before round 1, what this method cannot do.

        Raises:
            Refusal: says what and how to mend it.
        """
        if (self.clients_need_public or self.server_needs_public) and not federation.public:
            raise Refusal(
                f"method {self.name} needs a public set: set task.public to a number of samples, or to"
                " another data set"
            )
        if self.needs_public_labels and not federation.labelled_public:
            raise Refusal(
                f"method {self.name} needs a public set with labels of the task: hold one out of the"
                " training data by task.public = NUMBER"
            )
        used = {info.model for info in federation.clients} | {federation.server_model}
        if self.one_model and len(used) > 1:
            first = federation.clients[0].model
            raise Refusal(
                f"method {self.name} averages weights, so all clients and the server need one architecture,"
                f" but they have {', '.join(sorted(used))}: give this arm"
                f' models = {{ clients = ["{first}"], server = "{first}" }}'
            )

        if self.one_width:
            widths = {info.model: width(info.model, federation.signature) for info in federation.clients}
            if len(set(widths.values())) > 1:
                found = ", ".join(f"{name} {length}" for name, length in widths.items())
                least = min(widths.values())
                alike = [name if ":" in name else f"{name.partition('@')[0]}@{least}" for name in widths]
                written = ", ".join(f'"{name}"' for name in alike)
                own = "; end one's own in a linear layer to that width before the last"
                raise Refusal(
                    f"method {self.name} needs features of one length at all clients, but those of their"
                    f" models are {found}: give this arm models ="
                    f' {{ clients = [{written}], server = "{alike[0]}" }}'
                    + (own if any(":" in name for name in alike) else "")
                )

    def samples(self, public: int) -> int:
        """Public samples that one message of this method speaks of."""
        return 0

    def message_context(self, federation: FederationInfo, client: int) -> MessageContext:
        """What both sides expect of the messages between the server and this client."""
        parts = federation.server_parts if self.server_model_travels else federation.clients[client].parts
        samples = self.samples(federation.public)
        return MessageContext(
            classes=federation.signature.classes,
            parameters=sum(map(math.prod, parts)),
            samples=samples,
            parts=parts,
            population=federation.public,
            drawn=lambda round: sample_public(federation.seed, federation.public, samples, round).numpy(),
            client=client,
            weights=federation.samples,
        )

    def broadcast_group(self, info: ClientInfo) -> Hashable:
        """Clients with equal audiences get one and the same frame; `send` is asked once for them."""
        return "everyone"

    @abstractmethod
    def start_server(self, server: Server) -> State:
        """State of the server before round 1."""

    @abstractmethod
    def start_client(self, client: Client) -> State:
        """State of a client before the first round in which it takes part."""

    @abstractmethod
    def send(self, state: State, server: Server, client: int) -> Down | None:
        """Message to a client, and to all of its audience, at the start of a round, or None."""

    @abstractmethod
    def client_step(self, state: State, client: Client, received: Down | None) -> tuple[State, Up | None]:
        """What a client does in a round; return its new state and its message."""

    @abstractmethod
    def server_step(self, state: State, server: Server, replies: Iterable[Reply[Up]]) -> State:
        """What the server does with the replies, in client order; there may be none."""

    def server_net(self, federation: FederationInfo) -> tuple[str, nn.Module] | None:
        """Name and module of a model that the server has in place of `models.server`; most have none.

        Its weights are the entry ``"model"`` of the server's state.
        """
        return None

    def server_eval_models(
        self, state: State, server: Server, clients: Callable[[int], State]
    ) -> Iterator[nn.Module]:
        """The models that answer for the server: their mean accuracy is ``server@global``.

        Use each before the next is made. ``clients`` gives a client's state; before its first round, that
        of `start_client`.
        """
        if self.has_server_model:
            yield server.load(state["model"])
