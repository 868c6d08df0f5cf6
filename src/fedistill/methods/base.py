"""What a method is: two typed messages, two typed states, a client step and a server step.

A method never knows where it runs. The round loop calls, in each round: `send` for every client that takes
part, `client_step` at that client, and `server_step` once with the replies that came. A state is a dataclass
of plain data (`fedistill.state`), saved after each round. Where it has a field ``model``, a `ModelState`, the
view of that side is measured on it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
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
from fedistill.training.model_state import ModelState

Up = TypeVar("Up", bound=Message)
Down = TypeVar("Down", bound=Message)
AnyState = Any
"""A state of whatever method: a dataclass that the method names."""
ServerStateT = TypeVar("ServerStateT")
ClientStateT = TypeVar("ClientStateT")


class NoSettings(Section):
    """A method without settings of its own."""


@dataclass(frozen=True)
class NoState:
    """What a side keeps that keeps nothing."""


@dataclass(frozen=True)
class Needs:
    """What a method asks of an experiment; checked before round 1 (`Method.check`).

    Attributes:
        public: who needs a copy of the public set.
        public_labels: the server needs the labels that were held back from the public set.
        models: what the models of all clients, and of the server where it averages them, must share:
            nothing, the length of their features, or the whole architecture.
        sums_alone: the server needs nothing of the replies but their weighted sum.
        evaluation_at_clients: the server's own accuracy is measured with models that stay at the clients.
    """

    public: tuple[Literal["clients", "server"], ...] = ()
    public_labels: bool = False
    models: Literal["any", "one width", "one architecture"] = "any"
    sums_alone: bool = False
    evaluation_at_clients: bool = False

    def in_words(self) -> list[str]:
        """What must be there, a few words each."""
        found = {
            "one architecture": ["one architecture"],
            "one width": ["features of one width"],
            "any": [],
        }[self.models]
        if self.public:
            what = "labelled public set" if self.public_labels else "public set"
            found.append(what if "clients" in self.public or self.public_labels else f"{what} at the server")
        return found


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
        signatures: what each model of the arm takes and returns, by its name.
        server_parts: shapes of the tensors of the server's model, where it travels; else empty.
    """

    seed: int
    signatures: Mapping[str, Signature]
    server_model: str
    clients: tuple[ClientInfo, ...]
    public: int
    labelled_public: bool
    server_parts: tuple[tuple[int, ...], ...] = ()

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.signatures[self.server_model].classes

    def feature_width(self, model: str) -> int:
        """Length d of a model's features.

        Raises:
            Refusal: the model has no head.
        """
        return width(model, self.signatures[model])

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
        federation: what both sides know of the arm.
        model: name of this side's model.
        train: the arm's training settings.
        public: inputs of the public set as the model of a name takes them, or None where this side has no
            copy; methods ask by `public_inputs` and `sampled_public`.
    """

    seed: int
    round: int
    federation: FederationInfo
    model: str
    train: Train
    public: Callable[[str], Tensor] | None

    @property
    def stream_client(self) -> int:
        return SERVER

    @property
    def signature(self) -> Signature:
        """What this side's model takes and returns."""
        return self.signature_of(self.model)

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.signature.classes

    def signature_of(self, model: str) -> Signature:
        return self.federation.signatures[model]

    def initial_weights(self, model: str | None = None) -> Tensor:
        """Initial weights (P,) of this side's model, or of another by name, from this side's stream."""
        return self.initial_model(model).weights

    def initial_model(self, model: str | None = None) -> ModelState:
        """This side's model, or another by name, before it has learned, from this side's stream."""
        name = model or self.model
        return ModelState.of(models.build_model(name, self.signature_of(name), self.seed, self.stream_client))

    def common_model(self) -> ModelState:
        """The initial model that all clients with this side's architecture have in common."""
        return ModelState.of(models.build_model(self.model, self.signature, self.seed, SERVER))

    def load(self, state: ModelState | Tensor, model: str | None = None) -> nn.Module:
        """Return a module with this state, or with these weights (P,) and all else of a fresh build.

        One module for each name is kept in a process and loaded anew: use one state at a time.
        """
        name = model or self.model
        held = state if isinstance(state, ModelState) else ModelState(state)
        return held.load_into(models.reusable(name, self.signature_of(name)))

    def stream(self, purpose: str) -> torch.Generator:
        """The random stream of this purpose, side and round."""
        return stream(self.seed, purpose, self.stream_client, self.round)

    @property
    def public_size(self) -> int:
        """N, the samples of the public set."""
        return self.federation.public

    def public_inputs(self, model: str | None = None) -> Tensor:
        """All public samples (N, ...) as this side's model takes them, or another by name."""
        assert self.public is not None, "the method does not declare that this side needs the public set"
        return self.public(model or self.model)

    def sampled_public(self, samples: int | None, round: int, model: str | None = None) -> Tensor:
        """Inputs of the public samples of a round (`sample_public`); all where ``samples`` is None."""
        inputs = self.public_inputs(model)
        if samples is None or samples >= len(inputs):
            return inputs
        return inputs[sample_public(self.seed, len(inputs), samples, round)]


def sample_public(seed: int, population: int, samples: int, round: int) -> Tensor:
    """Indices (n,) of a round's public samples, in order; server and clients draw the same, for no bytes."""
    if samples >= population:
        return torch.arange(population)
    order = torch.randperm(population, generator=stream(seed, "public", round=round))
    return order[:samples].sort().values


@dataclass(frozen=True)
class Client(Participant):
    """One client in one round, with its private data.

    Attributes:
        data: its private samples as they are, and their labels (n,).
        private: the same samples as the model of a name takes them; methods ask by `inputs`.
        server_model: name of the server's model.
    """

    id: int
    data: Labelled
    private: Callable[[str], Tensor]
    server_model: str

    @property
    def stream_client(self) -> int:
        return self.id

    def inputs(self, model: str | None = None) -> Tensor:
        """Private samples (n, ...) as this client's model takes them, or another by name."""
        return self.private(model or self.model)


@dataclass(frozen=True)
class Server(Participant):
    """The server in one round; ``public_labels`` (N,) only for a method that declares it needs them."""

    public_labels: Tensor | None

    @property
    def clients(self) -> tuple[ClientInfo, ...]:
        """What it knows of each client."""
        return self.federation.clients


@dataclass(frozen=True)
class Reply(Generic[Up]):
    """A client's message, as the server decoded it."""

    client: int
    message: Up


class Method(ABC, Generic[Up, Down, ServerStateT, ClientStateT]):
    """Base of all methods; subclasses are final, one file each.

    Its type arguments are the messages up and down and the states of the server and of a client, as the
    class attributes name them.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    exchanges: ClassVar[str]
    byte_formula: ClassVar[str]

    uplink: ClassVar[type[Message] | None] = None
    downlink: ClassVar[type[Message] | None] = None
    ServerState: ClassVar[type] = NoState
    ClientState: ClassVar[type] = NoState
    """Dataclasses; `fedistill.state` says what their fields may be."""

    needs: Needs = Needs()
    travels: ClassVar[Literal["client", "server"]] = "client"
    """Whose architecture the weights have that cross, where any do."""

    under_skew: ClassVar[tuple[Literal["loss", "aggregation"], ...]] = ()
    """What holds up under strong label skew (`experiment.preflight`): balanced softmax, and prior correction
    where a client labels many samples in each exchange that it has not chosen, so that its prior shows."""

    codec: ClassVar[Wanted] = "fp32"
    """Where the experiment names none."""

    Settings: ClassVar[type[Section]] = NoSettings

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @property
    def clients_work(self) -> bool:
        """Whether clients do anything at all: they keep something, or send something."""
        return self.uplink is not None or self.ClientState is not NoState

    @property
    def has_server_model(self) -> bool:
        """Whether the server trains `models.server`: whether its state has a ``model``."""
        return "model" in _fields(self.ServerState)

    @property
    def has_client_models(self) -> bool:
        """Whether clients keep models of their own: whether their state has a ``model``."""
        return "model" in _fields(self.ClientState)

    def check(self, federation: FederationInfo) -> None:
        """Refuse, before round 1, what this method cannot do.

        Raises:
            Refusal: says what and how to mend it.
        """
        if self.needs.public and not federation.public:
            raise Refusal(
                f"method {self.name} needs a public set: set task.public to a number of samples, or to"
                " another data set"
            )
        if self.needs.public_labels and not federation.labelled_public:
            raise Refusal(
                f"method {self.name} needs a public set with labels of the task: hold one out of the"
                " training data by task.public = NUMBER"
            )
        used = {info.model for info in federation.clients} | {federation.server_model}
        if self.needs.models == "one architecture" and len(used) > 1:
            first = federation.clients[0].model
            raise Refusal(
                f"method {self.name} averages weights, so all clients and the server need one architecture,"
                f" but they have {', '.join(sorted(used))}: give this arm"
                f' models = {{ clients = ["{first}"], server = "{first}" }}'
            )
        if self.needs.models != "any":
            _check_width(self.name, federation)

    def samples(self, public: int) -> int:
        """Public samples that one message of this method speaks of."""
        return 0

    def message_context(self, federation: FederationInfo, client: int) -> MessageContext:
        """What both sides expect of the messages between the server and this client."""
        parts = federation.server_parts if self.travels == "server" else federation.clients[client].parts
        samples = self.samples(federation.public)
        return MessageContext(
            classes=federation.classes,
            parameters=sum(map(math.prod, parts)),
            samples=samples,
            parts=parts,
            population=federation.public,
            sampled=lambda round: sample_public(federation.seed, federation.public, samples, round).numpy(),
            client=client,
            weights=federation.samples,
        )

    def broadcast_group(self, state: ServerStateT, info: ClientInfo) -> Hashable:
        """Clients in equal groups get one and the same frame; `send` is asked once for them."""
        return "everyone"

    @abstractmethod
    def start_server(self, server: Server) -> ServerStateT:
        """State of the server before round 1."""

    @abstractmethod
    def start_client(self, client: Client) -> ClientStateT:
        """State of a client before the first round in which it takes part."""

    @abstractmethod
    def send(self, state: ServerStateT, server: Server, client: int) -> Down | None:
        """Message to a client, and to all of its broadcast group, at the start of a round, or None."""

    @abstractmethod
    def client_step(
        self, state: ClientStateT, client: Client, received: Down | None
    ) -> tuple[ClientStateT, Up | None]:
        """What a client does in a round; return its new state and its message."""

    @abstractmethod
    def server_step(self, state: ServerStateT, server: Server, replies: Iterable[Reply[Up]]) -> ServerStateT:
        """What the server does with the replies, in client order; there may be none."""

    def server_net(self, federation: FederationInfo) -> tuple[str, nn.Module] | None:
        """Name and module of a model that the server has in place of `models.server`; most have none.

        Its state is the field ``model`` of the server's state.
        """
        return None

    def server_eval_models(
        self, state: ServerStateT, server: Server, clients: Callable[[int], ClientStateT]
    ) -> Iterator[tuple[str, nn.Module]]:
        """The models that answer for the server: their mean accuracy is ``server@global``.

        Each comes with the name of the model whose inputs it takes. Use one before the next is made.
        ``clients`` returns a client's state; before its first round, that of `start_client`.
        """
        if self.has_server_model:
            yield server.model, server.load(state.model)  # type: ignore[attr-defined]  # as the field says


def _fields(state: type) -> list[str]:
    return [field.name for field in fields(state)]


def _check_width(name: str, federation: FederationInfo) -> None:
    widths = {info.model: federation.feature_width(info.model) for info in federation.clients}
    if len(set(widths.values())) == 1:
        return
    found = ", ".join(f"{model} {length}" for model, length in widths.items())
    least = min(widths.values())
    alike = [model if ":" in model else f"{model.partition('@')[0]}@{least}" for model in widths]
    written = ", ".join(f'"{model}"' for model in alike)
    own = "; end one's own in a linear layer to that width before the last"
    raise Refusal(
        f"method {name} needs features of one length at all clients, but those of their models are {found}:"
        f' give this arm models = {{ clients = [{written}], server = "{alike[0]}" }}'
        + (own if any(":" in model for model in alike) else "")
    )
