"""A client's part of a secure sum (Bonawitz et al., 2017, CCS, figure 4, without signatures).

Between two turns all that a client is lies in a `Participant`, plain data that holds its secrets: it stays
at the client, and is gone after the last turn, or with its next work if it was left out. The secrets are
new in each round, so that no mask is used twice.

Server and clients are taken to be honest but curious: they follow the protocol, and up to ``needed - 1``
clients and the server may put together all that they see. Nobody vouches for whose a public key is, so that
a server that lies could stand between all clients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from fedistill.communication.entropy_coding.bit_packing import pack
from fedistill.communication.kinds import Kind
from fedistill.communication.protocol.frame import StateId
from fedistill.communication.secure_aggregation import turns
from fedistill.communication.secure_aggregation.fixed_point import Addend
from fedistill.communication.secure_aggregation.primitives import (
    KeyPair,
    commitment,
    mask,
    seal,
    self_mask_key,
    split,
    unseal,
)
from fedistill.communication.secure_aggregation.sizes import ANNOUNCED, SEALED, SECRET, SHARES
from fedistill.communication.tensor_specs import Classes
from fedistill.config.secure_sums import SecureSums
from fedistill.errors import FrameError
from fedistill.state import as_bytes, as_tensor


def _no_bytes() -> Tensor:
    return torch.empty(0, dtype=torch.uint8)


@dataclass(frozen=True)
class Participant:
    """A client between two turns.

    Attributes:
        secrets: uint8 (48,): of the pair of keys that shares are sealed with, of the pair that masks come
            from, and of its own mask.
        integers: what it adds, int64 (n,), by name.
        members: the clients whose keys it has, itself among them; ``keys``: uint8 (80 m,), theirs.
        shares: uint8 (32 m,): its shares of the secrets of each member, empty before it has them.
        sharing: the members whose shares it has.
    """

    client: int
    round: int
    secrets: Tensor
    integers: dict[str, Tensor]
    members: list[int] = field(default_factory=list)
    keys: Tensor = field(default_factory=_no_bytes)
    sharing: list[int] = field(default_factory=list)
    shares: Tensor = field(default_factory=_no_bytes)

    @classmethod
    def begin(cls, client: int, round: int, secrets: bytes, integers: Mapping[str, Classes]) -> "Participant":
        """Return the client before its first turn.

        Args:
            secrets: 48 random bytes that are used in no other round.
            integers: what it adds, by name (`Addend.encode`).
        """
        plain = {name: torch.from_numpy(values) for name, values in integers.items()}
        return cls(client, round, as_tensor(secrets), plain)

    def announce(self, state_id: StateId | None = None) -> bytes:
        """Return the frame with its public keys; ``state_id``: of the state that its link shares."""
        return turns.up(Kind.SECURE_KEYS, self.round, self.client, self._announced, state_id=state_id)

    def answer(
        self, data: bytes, addends: Mapping[str, Addend], settings: SecureSums
    ) -> tuple["Participant | None", bytes]:
        """Take the server's frame of a turn; return the client after it, None after the last, and its frame.

        Raises:
            FrameError: the frame is not the one that belongs here, or a share that another client has sent
                was changed on its way; the message names that client.
        """
        if not self.members:
            return self._share(data, settings)
        if not self.sharing:
            return self._add(data, addends, settings)
        return None, self._unmask(data, settings)

    def _share(self, data: bytes, settings: SecureSums) -> tuple["Participant", bytes]:
        frame = turns.opened(data, Kind.SECURE_KEYS, self.round, self.client, sections=2)
        members = turns.read_clients(frame.sections[0])
        needed = self._check_group(members, None, settings.needed(len(members)))
        keys = turns.parts(frame.sections[1], len(members), ANNOUNCED)
        if keys[members.index(self.client)] != self._announced:
            raise FrameError("the server lists other keys for this client than it has sent")
        public = [part for key in keys for part in (key[:32], key[32:64])]
        if len(set(public)) != len(public):
            raise FrameError("two clients are listed with the same public key")
        after = replace(self, members=members, keys=as_tensor(b"".join(keys)))
        mine, sealed = b"", b""
        of_masks = split(self._secret(1), needed, len(members))
        of_own = split(self._secret(2), needed, len(members))
        for member, both in zip(members, map(bytes.__add__, of_masks, of_own), strict=True):
            if member == self.client:
                mine = both
            else:
                sealed += seal(after._sealing_key(self.client, member), both)
        kept = replace(after, shares=as_tensor(mine))
        return kept, turns.up(Kind.SECURE_SHARES, self.round, self.client, sealed)

    def _add(
        self, data: bytes, addends: Mapping[str, Addend], settings: SecureSums
    ) -> tuple["Participant", bytes]:
        frame = turns.opened(data, Kind.SECURE_SHARES, self.round, self.client, sections=2)
        sharing = turns.read_clients(frame.sections[0])
        self._check_group(sharing, self.members, settings.needed(len(self.members)))
        sealed = iter(turns.parts(frame.sections[1], len(sharing) - 1, SEALED))
        shares = [
            as_bytes(self.shares) if member == self.client else self._unsealed(member, next(sealed))
            for member in sharing
        ]
        after = replace(self, sharing=sharing, shares=as_tensor(b"".join(shares)), integers={})
        masked = {name: values.numpy().copy() for name, values in self.integers.items()}
        for key, sign in self._mask_keys(sharing):
            for name, drawn in mask(key, addends).items():
                masked[name] += sign * drawn  # wraps around at 2**64, a multiple of every modulus
        sections = []
        for name, addend in addends.items():
            bits = addend.bits(len(self.members))
            sections.append(pack(masked[name] & ((1 << bits) - 1), bits))
        return after, turns.up(Kind.SECURE_ADDENDS, self.round, self.client, *sections)

    def _unmask(self, data: bytes, settings: SecureSums) -> bytes:
        frame = turns.opened(data, Kind.SECURE_UNMASKING, self.round, self.client, sections=1)
        added = turns.read_clients(frame.sections[0])
        self._check_group(added, self.sharing, settings.needed(len(self.members)))
        shares = turns.parts(as_bytes(self.shares), len(self.sharing), SHARES)
        # Never both: with the two secrets of a client, its integers could be read.
        chosen = [
            both[SECRET:] if member in added else both[:SECRET]
            for member, both in zip(self.sharing, shares, strict=True)
        ]
        return turns.up(Kind.SECURE_UNMASKING, self.round, self.client, b"".join(chosen))

    def _check_group(self, clients: Sequence[int], among: Sequence[int] | None, needed: int) -> int:
        """Return how many clients are needed, once it is seen that this one is among enough others."""
        if self.client not in clients or (among is not None and not {*clients} <= {*among}):
            raise FrameError("the server lists other clients than those of the turn before")
        if len(clients) < needed:
            raise FrameError(f"the server lists {len(clients)} clients, fewer than the {needed} needed")
        return needed

    def _secret(self, place: int) -> bytes:
        return as_bytes(self.secrets)[place * SECRET : (place + 1) * SECRET]

    @property
    def _announced(self) -> bytes:
        pairs = KeyPair(self._secret(0)).public + KeyPair(self._secret(1)).public
        return pairs + commitment(self._secret(2))

    def _keys_of(self, member: int) -> bytes:
        at = self.members.index(member) * ANNOUNCED
        return as_bytes(self.keys[at : at + ANNOUNCED])

    def _sealing_key(self, sender: int, receiver: int) -> bytes:
        other = receiver if sender == self.client else sender
        purpose = f"shares of client {sender} for client {receiver} in round {self.round}"
        return KeyPair(self._secret(0)).agreed(self._keys_of(other)[:32], purpose)

    def _unsealed(self, member: int, sealed: bytes) -> bytes:
        try:
            return unseal(self._sealing_key(member, self.client), sealed)
        except FrameError as error:
            raise FrameError(f"the share that client {member} has sent: {error}") from None

    def _mask_keys(self, sharing: Sequence[int]) -> list[tuple[bytes, int]]:
        """Return the keys of all masks, each with its sign: its own, and one for each other client."""
        pair = KeyPair(self._secret(1))
        return [
            (self_mask_key(self._secret(2), self.round), 1),
            *(
                pair_mask(pair, self.client, member, self._keys_of(member)[32:64], self.round)
                for member in sharing
                if member != self.client
            ),
        ]


def pair_mask(pair: KeyPair, client: int, other: int, public: bytes, round: int) -> tuple[bytes, int]:
    """Return the key of the mask that two clients share, and the sign with which the first adds it.

    Args:
        pair: the first client's; ``public``: the public key of the other's pair.
    """
    low, high = sorted((client, other))
    key = pair.agreed(public, f"mask of clients {low} and {high} in round {round}")
    return key, 1 if client == low else -1


def zeros(addends: Mapping[str, Addend]) -> dict[str, Classes]:
    """Return sums before anything is added, by name."""
    return {name: np.zeros(addend.count, np.int64) for name, addend in addends.items()}
