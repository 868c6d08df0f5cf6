"""The base class of methods: two typed messages, two typed states, a client step and a server step.

A method does not depend on where it runs. In each round, the round loop calls `send` for every client that
takes part, `client_step` at that client, and `server_step` once with the replies received. A state is a
dataclass of plain data (`fedistill.state`), saved after each round. If it has a field ``model``, a
`ModelState`, the view of the server or client is measured on that model.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Generic, Literal, TypeVar

from torch import Tensor, nn

from fedistill.communication.codecs.registry import Wanted
from fedistill.communication.messages.base import Message, MessageContext
from fedistill.communication.messages.weights import Weights
from fedistill.config.inputs import SAMPLES, InputKind
from fedistill.config.schema import Section
from fedistill.errors import FrameError, Refusal
from fedistill.methods.participants import Client, ClientInfo, FederationInfo, Server, sample_public
from fedistill.training.model_state import ModelState

Up = TypeVar("Up", bound=Message)
Down = TypeVar("Down", bound=Message)
AnyState = Any
"""The state of any method: a dataclass that the method declares."""
ServerStateT = TypeVar("ServerStateT")
ClientStateT = TypeVar("ClientStateT")


class NoSettings(Section):
    """Settings of a method that has none."""


@dataclass(frozen=True)
class NoState:
    """State of a server or client that keeps nothing between rounds."""


@dataclass(frozen=True)
class Needs:
    """What a method requires of an experiment; checked before round 1 (`Method.check`).

    Attributes:
        public: who needs a copy of the public set.
        public_labels: whether the server needs the labels of the public set, which are otherwise withheld.
        inputs: the kind of inputs without which the method has no meaning, if there is one.
        models: what the models of all clients, and of the server if it averages them, must have in common:
            nothing, the feature width, or the architecture.
        evaluation_at_clients: whether the server's accuracy is measured with models that stay at the clients.
    """

    public: tuple[Literal["clients", "server"], ...] = ()
    public_labels: bool = False
    inputs: Literal["any", "image", "text", "image or table"] = "any"
    models: Literal["any", "one width", "one architecture"] = "any"
    evaluation_at_clients: bool = False

    def takes(self, kind: InputKind) -> bool:
        """Whether the method has a meaning for inputs of this kind."""
        return self.inputs == "any" or kind in self.inputs.split(" or ")

    def kinds(self) -> str:
        """Return the kinds of inputs, unless the method takes any, such as ``images or tables``."""
        return " or ".join(f"{kind}s" for kind in self.inputs.split(" or "))

    def in_words(self) -> list[str]:
        """Return the requirements on models and public set, a few words each."""
        found = {
            "one architecture": ["the same architecture"],
            "one width": ["features of the same width"],
            "any": [],
        }[self.models]
        if self.inputs != "any":
            found.append(self.kinds())
        if self.public:
            what = "labelled public set" if self.public_labels else "public set"
            found.append(what if "clients" in self.public or self.public_labels else f"{what} at the server")
        return found


@dataclass(frozen=True)
class Reply(Generic[Up]):
    """A client's message, as decoded by the server."""

    client: int
    message: Up


class Method(ABC, Generic[Up, Down, ServerStateT, ClientStateT]):
    """Base of all methods; subclasses are final, one file each.

    Its type arguments are the types of the uplink and downlink messages and of the server's and the clients'
    state, the same as in the class attributes.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    exchanges: ClassVar[str]
    byte_formula: ClassVar[str]

    uplink: ClassVar[type[Message] | None] = None
    downlink: ClassVar[type[Message] | None] = None
    also_up: tuple[type[Message], ...] = ()
    also_down: tuple[type[Message], ...] = ()
    """Types of messages that may cross in place of `uplink` and `downlink`; the kind of a frame tells which.
    They may depend on the settings."""

    frozen_models: tuple[str, ...] = ()
    """Names of models besides those of the arm, which nobody trains; they may depend on the settings."""

    ServerState: ClassVar[type] = NoState
    ClientState: ClassVar[type] = NoState
    """Dataclasses; see `fedistill.state` for the types allowed in their fields."""

    needs: Needs = Needs()
    travels: ClassVar[Literal["client", "server"]] = "client"
    """Whose model's weights are exchanged, if any are."""

    under_skew: ClassVar[tuple[Literal["loss", "aggregation"], ...]] = ()
    """Remedies that work under strong label skew (`experiment.preflight`): balanced softmax as the loss, and
    prior correction as the aggregation, for methods whose clients label many samples per exchange that they
    did not choose, so that the client's class prior can be estimated."""

    one_shot: ClassVar[bool] = False
    """Each client sends one message in a run; once the server has it, nothing more crosses."""

    beyond_model: ClassVar[str | None] = (
        "numbers of which its class does not say that they depend on private data through a trained model"
        " alone (`beyond_model = None`)"
    )
    """What clients send that depends on their private data otherwise than through a model that
    `shared.own_model.train_private` has trained, once in a step, by a loss that is a mean over its samples;
    it follows "clients send" in the message that refuses DP-SGD. None if there is nothing but the number of
    samples."""

    trains_received: ClassVar[bool] = False
    """Whether `client_step` is `shared.weight_averaging.train_received` without a penalty, and nothing else,
    so that clients may be trained together (`federation.client_stacks`). It is not inherited, since a
    subclass may change the step."""

    clients_build_common: bool = False
    """Whether clients call `Participant.common_model`, so that they must hold the saved model that an arm may
    start from; it may depend on the settings."""

    codec: ClassVar[Wanted] = "fp32"
    """Default codec, for experiments that name none."""

    Settings: ClassVar[type[Section]] = NoSettings

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @property
    def clients_work(self) -> bool:
        """Whether clients do anything, that is, keep a state or send messages."""
        return self.uplink is not None or self.ClientState is not NoState

    @property
    def uplinks(self) -> tuple[type[Message], ...]:
        """All types of messages from a client to the server."""
        return (() if self.uplink is None else (self.uplink,)) + self.also_up

    @property
    def downlinks(self) -> tuple[type[Message], ...]:
        """All types of messages from the server to a client."""
        return (() if self.downlink is None else (self.downlink,)) + self.also_down

    @property
    def has_server_model(self) -> bool:
        """Whether the server trains `models.server`, that is, its state has a ``model``."""
        return "model" in _fields(self.ServerState)

    @property
    def has_client_models(self) -> bool:
        """Whether clients keep models of their own, that is, their state has a ``model``."""
        return "model" in _fields(self.ClientState)

    @property
    def clients_use_models(self) -> bool:
        """Whether clients have any use for `models.clients`."""
        return self.clients_work

    def inputs_of(self, model: str) -> str:
        """Return the name of the model whose inputs the method takes where a participant has this one."""
        return model

    def check(self, federation: FederationInfo) -> None:
        """Check, before round 1, that the experiment meets this method's needs.

        Raises:
            Refusal: it does not; the text states what to change.
        """
        kind = federation.signatures[federation.server_model].kind
        if not self.needs.takes(kind):
            raise Refusal(
                f"method {self.name} needs {self.needs.kinds()}, but the samples of this task are"
                f" {SAMPLES[kind]}: remove this arm"
            )
        if self.needs.public and not federation.public:
            raise Refusal(
                f"method {self.name} needs a public set: set task.public to a number of samples, or to"
                " another data set"
            )
        if self.needs.public_labels and not federation.labelled_public:
            raise Refusal(
                f"method {self.name} needs a public set with labels of the task: set task.public to a number"
                " of samples, which are held out of the training data"
            )
        used = {info.model for info in federation.clients} | {federation.server_model}
        if self.needs.models == "one architecture" and len(used) > 1:
            first = federation.clients[0].model
            raise Refusal(
                f"method {self.name} averages weights, so all clients and the server need the same"
                f" architecture, but they have {', '.join(sorted(used))}: for this arm, set"
                f' models = {{ clients = ["{first}"], server = "{first}" }}'
            )
        if self.needs.models == "one width":
            _check_width(self.name, federation)

    def samples(self, public: int) -> int:
        """Return how many public samples each message of this method covers."""
        return 0

    def message_context(self, federation: FederationInfo, client: int) -> MessageContext:
        """Return what the server and this client know in advance about the messages between them."""
        own = federation.clients[client].model
        layout = federation.layouts[federation.server_model if self.travels == "server" else own]
        samples = self.samples(federation.public)
        context = MessageContext(
            classes=federation.classes,
            samples=samples,
            population=federation.public,
            sampled=lambda round: sample_public(federation.seed, federation.public, samples, round).numpy(),
            private=federation.clients[client].samples,
            client=client,
            weights=federation.samples,
        )
        return layout.into(context)

    def known_weights(self, server: Server, model: str) -> Tensor | None:
        """Return the weights (P,) that both sides know before round 1, by the name of their model.

        Relative codecs code the first weights down as a difference to these. By default they are the initial
        ones if `downlink` is `Weights`, and None otherwise.
        """
        return server.initial_weights(model) if self.downlink is Weights else None

    def broadcast_group(self, state: ServerStateT, info: ClientInfo) -> Hashable:
        """Return the broadcast group of a client: `send` is called once per group, for all its clients."""
        return "everyone"

    @abstractmethod
    def start_server(self, server: Server) -> ServerStateT:
        """Return the state of the server before round 1."""

    @abstractmethod
    def start_client(self, client: Client) -> ClientStateT:
        """Return the state of a client before the first round in which it takes part."""

    @abstractmethod
    def send(self, state: ServerStateT, server: Server, client: int) -> Down | None:
        """Return the message, or None, to a client's broadcast group at the start of a round."""

    def compared(self, state: ServerStateT, server: Server, client: int) -> Message | None:
        """Return the message by whose change an adaptive ``accumulate`` measures an exchange.

        By default what `send` returns. Methods whose messages alternate between kinds return one kind here.
        """
        return self.send(state, server, client)

    @abstractmethod
    def client_step(
        self, state: ClientStateT, client: Client, received: Down | None
    ) -> tuple[ClientStateT, Up | None]:
        """Run a client's part of a round; return its new state and its message."""

    @abstractmethod
    def server_step(self, state: ServerStateT, server: Server, replies: Iterable[Reply[Up]]) -> ServerStateT:
        """Process the replies, which come in client order and may be none; return the new state.

        Replies are decoded one by one as they are read. Clients whose weights point against those that were
        sent come last, if most do; else they are refused. An error in this step ends the arm.
        """

    def check_reply(self, state: ServerStateT, server: Server, reply: Reply[Up]) -> None:
        """Check a client's message against the server's state before the round.

        By default, labels of public samples must be of those of this round, and weights trained on no more
        samples than the client has. Whatever a correct client cannot send is refused here, and not in
        `server_step`, where an error ends the arm.

        Raises:
            FrameError: the message is refused; the client is left out of the round.
        """
        numbers, own = reply.message.numbers(), server.clients[reply.client].samples
        if numbers.get("samples", 0) > own:
            raise FrameError(f"its weights claim {numbers['samples']} samples, but the client has {own}")
        sampled = numbers.get("sampled_round", server.round)
        if sampled != server.round:
            raise FrameError(f"labels of the public samples of round {sampled} came in round {server.round}")

    def server_net(self, federation: FederationInfo) -> tuple[str, nn.Module] | None:
        """Return name and module of the model that replaces `models.server`, or None for most methods.

        Its state is the field ``model`` of the server's state.
        """
        return None

    def travelling_models(self, state: ServerStateT) -> Mapping[str, ModelState]:
        """Return the models that the server keeps for clients beside its own, by the name of their model."""
        return {}

    def server_eval_models(
        self, state: ServerStateT, server: Server, clients: Callable[[int], ClientStateT]
    ) -> Iterator[tuple[str, nn.Module]]:
        """Yield the models whose mean accuracy is ``server@global``.

        Each comes with the name of the model whose inputs it takes. Use each before requesting the next.
        ``clients`` returns a client's state, which before its first round is that of `start_client`.
        """
        if self.has_server_model:
            yield server.model, server.load(state.model)  # type: ignore[attr-defined]  # checked above


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
    own = "; in your own model, add a linear layer to that width before the last layer"
    raise Refusal(
        f"method {name} needs the same feature width in all clients' models, but they have {found}:"
        f' for this arm, set models = {{ clients = [{written}], server = "{alike[0]}" }}'
        + (own if any(":" in model for model in alike) else "")
    )
