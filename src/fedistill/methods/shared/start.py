"""Shared by methods that may begin with one-shot statistics: the setting ``start``."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from torch import Tensor

from fedistill.communication.messages.base import Message, MessageContext
from fedistill.communication.messages.statistics import StatisticsRequest
from fedistill.config.section import Raw, Section
from fedistill.config.spelling import read_spelling
from fedistill.errors import ExperimentError, FrameError
from fedistill.methods.base import ClientStateT, Down, Method, NoState, Reply, ServerStateT, Up
from fedistill.methods.participants import Client, FederationInfo, Server
from fedistill.methods.shared.moments import MomentsSettings
from fedistill.methods.shared.statistics import StatisticsServer, SumsOfStatistics
from fedistill.methods.sufficient_statistics.gaussian import Gaussian
from fedistill.methods.sufficient_statistics.naive_bayes import NaiveBayes, NaiveBayesSettings
from fedistill.methods.sufficient_statistics.ridge import Ridge
from fedistill.state import State, from_plain, to_plain
from fedistill.training.model_state import ModelState

AnyStatistics = SumsOfStatistics[Any, Any]
_EPOCHS = Field(default=20, ge=1, description="epochs in which the server's model learns the first labels")


class GaussianStart(MomentsSettings):
    name: Literal["gaussian"]
    distill_epochs: int | None = _EPOCHS


class RidgeStart(MomentsSettings):
    name: Literal["ridge"]
    distill_epochs: int | None = _EPOCHS


class NaiveBayesStart(NaiveBayesSettings):
    name: Literal["naive-bayes"]
    distill_epochs: int | None = _EPOCHS


Start = Annotated[GaussianStart | RidgeStart | NaiveBayesStart, Field(discriminator="name")]
_METHODS: dict[str, type[AnyStatistics]] = {
    "gaussian": Gaussian,
    "ridge": Ridge,
    "naive-bayes": NaiveBayes,
}


def _table(wanted: Raw) -> Raw:
    """Return the table that a name stands for."""
    if not isinstance(wanted, str):
        return wanted
    try:
        return read_spelling("start", wanted)
    except ExperimentError as error:
        raise ValueError(str(error).removeprefix("start ")) from None


class StartSettings(Section):
    start: Annotated[Start | None, BeforeValidator(_table)] = Field(
        default=None,
        description="statistics that clients send first, once, and that give the first global labels:"
        " gaussian, ridge or naive-bayes, or a table { name, SETTINGS }; default: none",
    )
    enough: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="with `start`, share of all private samples whose clients must have sent statistics",
    )


class FirstStatistics:
    """Statistics that come before a method's own messages; its state is plain data in the method's state.

    Attributes:
        method: whose statistics they are.
    """

    def __init__(self, start: GaussianStart | RidgeStart | NaiveBayesStart, enough: float) -> None:
        self.method = _METHODS[start.name](start)
        self._enough = enough

    @property
    def uplink(self) -> type[Message]:
        found = self.method.uplink
        assert found is not None
        return found

    def context(self, context: MessageContext, federation: FederationInfo, client: int) -> MessageContext:
        """Return what both sides know about the method's own messages, with what they know about these."""
        own = self.method.message_context(federation, client)
        return replace(context, width=own.width, length=own.length, settings=own.settings)

    def start(self, server: Server) -> State:
        """Return the state before round 1."""
        return _plain(self.method.start_server(server))

    def asks(self, state: State, client: int) -> bool:
        """Return whether a client is asked for its statistics."""
        return client not in self._read(state).clients

    def request(self, state: State, client: int) -> StatisticsRequest | None:
        """Return what is sent to a client while statistics are collected."""
        return StatisticsRequest() if self.asks(state, client) else None

    def reply(self, client: Client) -> Message:
        """Return a client's statistics."""
        message = self.method.client_step(NoState(), client, StatisticsRequest())[1]
        assert isinstance(message, Message)
        return message

    def check_reply(self, state: State, server: Server, reply: Reply[Message]) -> None:
        """Check a client's message while statistics are collected.

        Raises:
            FrameError: the message is refused.
        """
        if not isinstance(reply.message, self.uplink):
            raise FrameError("it was asked for its statistics, and sends labels")
        self.method.check_reply(self._read(state), server, reply)

    def collect(
        self, state: State, server: Server, replies: Iterable[Reply[Message]]
    ) -> tuple[State, ModelState, Tensor | None]:
        """Return the new state, the server's model and, if enough have answered, public logits (N, C)."""
        found = self.method.server_step(self._read(state), server, replies)
        samples = server.federation.samples
        enough = sum(samples[client] for client in found.clients) >= self._enough * sum(samples)
        return _plain(found), found.model, self.method.public_logits(found, server) if enough else None

    def _read(self, state: State) -> StatisticsServer:
        found: StatisticsServer = from_plain(self.method.ServerState, state)
        return found


def _plain(state: StatisticsServer) -> State:
    found: State = to_plain(state)
    return found


class StartsWithStatistics(Method[Up, Down, ServerStateT, ClientStateT]):
    """Base of methods with the setting ``start``, to be named before the method's other bases."""

    settings: StartSettings

    def __init__(self, settings: StartSettings) -> None:
        super().__init__(settings)
        self.first = None if settings.start is None else FirstStatistics(settings.start, settings.enough)
        if self.first is not None:
            self.also_up, self.also_down = (self.first.uplink,), (StatisticsRequest,)
            self.frozen_models = self.first.method.frozen_models

    def check(self, federation: FederationInfo) -> None:
        super().check(federation)
        if self.first is not None:
            self.first.method.check(federation)

    def message_context(self, federation: FederationInfo, client: int) -> MessageContext:
        context = super().message_context(federation, client)
        return context if self.first is None else self.first.context(context, federation, client)
