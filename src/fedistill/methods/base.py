"""What a method is: two typed messages, two typed states, a client step and a server step.

A method never knows where it runs. The round loop calls, in each round: `send` for every client that takes
part, `client_step` at that client, and `server_step` once with the replies that came. A state is a dataclass
of plain data (`fedistill.state`), saved after each round. Where it has a field ``model``, a `ModelState`, the
view of that side is measured on it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Generic, Literal, TypeVar

from torch import nn

from fedistill.communication.codecs.registry import Wanted
from fedistill.communication.messages.base import Message, MessageContext
from fedistill.config.schema import Section
from fedistill.errors import Refusal
from fedistill.methods.participants import Client, ClientInfo, FederationInfo, Server, sample_public

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
