"""Shared by methods whose server adds up statistics, each client's once."""

from collections.abc import Hashable
from typing import Protocol, TypeVar

from fedistill.communication.messages.base import Message
from fedistill.communication.messages.statistics import StatisticsRequest
from fedistill.methods.base import Method, NoState
from fedistill.methods.participants import Client, ClientInfo, Server


class Collected(Protocol):
    """The state of a server that adds up statistics."""

    @property
    def clients(self) -> list[int]:
        """Those whose statistics are in the sum."""
        ...


StatisticsT = TypeVar("StatisticsT", bound=Message)
CollectedT = TypeVar("CollectedT", bound=Collected)


class SumsOfStatistics(Method[StatisticsT, StatisticsRequest, CollectedT, NoState]):
    """Base of methods that ask each client for its statistics until they have arrived, and for no more.

    So a client whose reply was lost is asked again, and one that joins late is asked then.
    """

    downlink = StatisticsRequest
    one_shot = True

    @property
    def has_server_model(self) -> bool:
        return False  # it is solved for, and not `models.server`: see `server_net`

    @property
    def clients_use_models(self) -> bool:
        return False

    def broadcast_group(self, state: CollectedT, info: ClientInfo) -> Hashable:
        return info.id in state.clients

    def start_client(self, client: Client) -> NoState:
        return NoState()

    def send(self, state: CollectedT, server: Server, client: int) -> StatisticsRequest | None:
        return None if client in state.clients else StatisticsRequest()
