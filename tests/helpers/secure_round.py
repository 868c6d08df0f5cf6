"""A secure sum from the first turn to the last, without a network: who leaves when, and what is seen."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedistill.communication.secure_aggregation.collector import Collector
from fedistill.communication.secure_aggregation.fixed_point import Addend
from fedistill.communication.secure_aggregation.participant import Participant
from fedistill.communication.secure_aggregation.sizes import SECRETS
from fedistill.communication.secure_aggregation.total import SecureTotal
from fedistill.config.secure_sums import SecureSums

Integers = Mapping[str, NDArray[np.int64]]
Tamper = Callable[[str, int, bytes], bytes]
"""Returns what arrives of a frame up, by its turn and client."""


def secrets_of(client: int, round: int = 1) -> bytes:
    """48 bytes for a client and a round."""
    return np.random.default_rng([client, round]).bytes(SECRETS)


@dataclass
class SecureRound:
    """All frames of a round, by turn and client, and the server's side of it."""

    addends: Mapping[str, Addend]
    settings: SecureSums = field(default_factory=SecureSums)
    round: int = 1
    draw: Callable[[int, int], bytes] = secrets_of
    up: dict[tuple[str, int], bytes] = field(default_factory=dict)
    down: dict[tuple[str, int], bytes] = field(default_factory=dict)

    def play(
        self,
        integers: Mapping[int, Integers],
        unshared: Collection[int] = (),
        unadded: Collection[int] = (),
        silent: Collection[int] = (),
        tamper: Tamper = lambda turn, client, data: data,
    ) -> SecureTotal:
        """Return the total.

        Args:
            unshared: clients that leave before they share; ``unadded``: after that, before their integers
                arrive; ``silent``: after these have arrived, before they send shares for unmasking.
        """
        server = self.server = Collector(self.round, self.addends, self.settings)
        parties: dict[int, Participant | None] = {}
        for client, values in integers.items():
            party = Participant.begin(client, self.round, self.draw(client, self.round), values)
            parties[client] = party
            server.take_keys(client, self._sent("keys", client, party.announce(), tamper))
        for client in server.members:
            if client not in unshared:
                data = self._answer(parties, "shares", client, server.keys())
                server.take_shares(client, self._sent("shares", client, data, tamper))
        server.check_enough(len(server.sharing), "shares")
        for client in server.sharing:
            if client not in unadded:
                data = self._answer(parties, "addends", client, server.shares(client))
                server.take_addends(client, self._sent("addends", client, data, tamper))
        server.check_enough(len(server.added), "what it adds")
        heard = [client for client in server.added if client not in silent]
        for client in heard:
            data = self._answer(parties, "unmasking", client, server.unmasking())
            server.take_unmasking(client, self._sent("unmasking", client, data, tamper))
        server.check_enough(len(heard), "shares for unmasking")
        return server.total()

    def _answer(self, parties: dict[int, Participant | None], turn: str, client: int, data: bytes) -> bytes:
        party = parties[client]
        assert party is not None
        self.down[turn, client] = data
        parties[client], reply = party.answer(data, self.addends, self.settings)
        return reply

    def _sent(self, turn: str, client: int, data: bytes, tamper: Tamper) -> bytes:
        self.up[turn, client] = data
        return tamper(turn, client, data)
