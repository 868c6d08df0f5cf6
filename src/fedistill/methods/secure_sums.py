"""What a method declares that works with secure sums: what is added up, and what the sum is for."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor

from fedistill.communication.messages.base import Message
from fedistill.communication.secure_aggregation.fixed_point import Addend
from fedistill.communication.secure_aggregation.total import SecureTotal
from fedistill.config.secure_sums import SecureSums
from fedistill.methods.base import AnyState
from fedistill.methods.participants import Client, FederationInfo, Server


class AddsUp(ABC):
    """A method whose server can do with the sum of the replies, each weighted at its client."""

    bounded_by_samples: ClassVar[bool] = True
    """What clients add is bounded or weighted by how many samples each has, which all must know alike."""

    def without_sums(self, federation: FederationInfo) -> Iterator[str]:
        """Yield which of its settings rule secure sums out, and what to do, a clause each."""
        yield from ()

    @abstractmethod
    def addends(self, federation: FederationInfo, settings: SecureSums) -> dict[str, Addend]:
        """Return what clients add up, by name: the same for all clients and rounds of an arm."""

    @abstractmethod
    def to_add(self, client: Client, message: Message, settings: SecureSums) -> dict[str, Tensor]:
        """Return what a client adds, by the same names, from the message that it would send."""

    @abstractmethod
    def server_step_of_sum(self, state: AnyState, server: Server, total: SecureTotal) -> AnyState:
        """Process the sum of a round in place of its replies; return the new state."""
