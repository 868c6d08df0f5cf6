"""Shared by methods whose server adds up statistics, each client's once."""

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from pydantic import Field
from torch import Tensor, nn

from fedistill.communication.messages.base import Message
from fedistill.communication.messages.statistics import StatisticsRequest
from fedistill.communication.secure_aggregation.total import SecureTotal
from fedistill.config.schema import Section
from fedistill.methods.base import Method, NoState, Reply
from fedistill.methods.participants import Client, ClientInfo, FederationInfo, Server
from fedistill.methods.secure_sums import AddsUp
from fedistill.methods.shared.label_student import learn_labels
from fedistill.training.loop import predict
from fedistill.training.model_state import ModelState


class StatisticsSettings(Section):
    distill_epochs: int | None = Field(
        default=None,
        ge=1,
        description="epochs in which `models.server` learns how the statistics label the public set;"
        " default: no network is trained",
    )
    distill_batch_size: int = Field(default=32, ge=1, description="samples per step of distillation")
    smoothing: float = Field(default=0.1, ge=0, lt=1, description="label smoothing of these labels")


@dataclass(frozen=True)
class StatisticsServer:
    """What answers for the server, and the clients whose statistics are in the sum."""

    model: ModelState
    clients: list[int]


StatisticsT = TypeVar("StatisticsT", bound=Message)
CollectedT = TypeVar("CollectedT", bound=StatisticsServer)


class SumsOfStatistics(Method[StatisticsT, StatisticsRequest, CollectedT, NoState], AddsUp):
    """Base of methods that ask each client for its statistics until they have arrived, and for no more.

    So a client whose reply was lost is asked again, and one that joins late is asked then. What answers for
    the server is the model that is solved for, or, with ``distill_epochs``, `models.server`, trained on the
    classes that this model gives to the public samples. Each new sum trains it from scratch, so that it
    depends on the sum alone.
    """

    beyond_model = "sums over their private samples"
    downlink = StatisticsRequest
    one_shot = True
    settings: StatisticsSettings

    def __init__(self, settings: StatisticsSettings) -> None:
        super().__init__(settings)
        if settings.distill_epochs:
            self.needs = replace(self.needs, public=("server",))

    @abstractmethod
    def blank(self, federation: FederationInfo) -> nn.Module:
        """Return a module of the kind that is solved for, with any weights."""

    @abstractmethod
    def add(self, state: CollectedT, server: Server, replies: Iterable[Reply[StatisticsT]]) -> CollectedT:
        """Return the state with these statistics and clients added, and the model as it was."""

    @abstractmethod
    def add_sum(self, state: CollectedT, server: Server, total: SecureTotal) -> CollectedT:
        """Return the state with the sum of clients' statistics added; its clients may stay as they were."""

    @abstractmethod
    def solve(self, state: CollectedT, federation: FederationInfo) -> nn.Module:
        """Return the model that the sums in the state give."""

    @property
    def has_server_model(self) -> bool:
        return self.settings.distill_epochs is not None  # else it is solved for: see `server_net`

    @property
    def clients_use_models(self) -> bool:
        return False

    def broadcast_group(self, state: CollectedT, info: ClientInfo) -> Hashable:
        return info.id in state.clients

    def start_client(self, client: Client) -> NoState:
        return NoState()

    def send(self, state: CollectedT, server: Server, client: int) -> StatisticsRequest | None:
        return None if client in state.clients else StatisticsRequest()

    def server_step(
        self, state: CollectedT, server: Server, replies: Iterable[Reply[StatisticsT]]
    ) -> CollectedT:
        return self._answering(state, server, self.add(state, server, replies))

    def server_step_of_sum(self, state: CollectedT, server: Server, total: SecureTotal) -> CollectedT:
        added = replace(self.add_sum(state, server, total), clients=[*state.clients, *total.clients])
        return self._answering(state, server, added)

    def _answering(self, state: CollectedT, server: Server, added: CollectedT) -> CollectedT:
        """Return the state with these sums, and the model that they give, if they are new."""
        if len(added.clients) == len(state.clients):
            return state
        settings = self.settings
        if settings.distill_epochs is None:
            model = ModelState.of(self.solve(added, server.federation))
        else:
            model = learn_labels(
                server,
                server.model,
                self.public_logits(added, server).argmax(dim=1),
                epochs=settings.distill_epochs,
                batch_size=settings.distill_batch_size,
                smoothing=settings.smoothing,
            )
        return replace(added, model=model, clients=sorted(added.clients))

    def public_logits(self, state: CollectedT, server: Server) -> Tensor:
        """Return what the model that the sums give says of each public sample, as logits (N, C)."""
        net = self.solve(state, server.federation)
        return predict(net, server.public_inputs(self.inputs_of(server.model)))

    def start_model(self, server: Server) -> ModelState:
        """Return what answers for the server before round 1."""
        return (
            server.initial_model() if self.has_server_model else ModelState.of(self.blank(server.federation))
        )

    def server_net(self, federation: FederationInfo) -> tuple[str, nn.Module] | None:
        return None if self.has_server_model else (self.name, self.blank(federation))

    def server_eval_models(
        self, state: CollectedT, server: Server, clients: Callable[[int], NoState]
    ) -> Iterator[tuple[str, nn.Module]]:
        if self.has_server_model:
            yield server.model, server.load(state.model)
        else:
            yield self.inputs_of(server.model), state.model.load_into(self.blank(server.federation))
