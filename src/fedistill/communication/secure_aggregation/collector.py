"""The server's part of a secure sum: it passes on keys and shares, adds up, and takes off the masks."""

from collections.abc import Mapping

from fedistill.communication.entropy_coding.bit_packing import unpack
from fedistill.communication.kinds import Kind
from fedistill.communication.secure_aggregation import turns
from fedistill.communication.secure_aggregation.fixed_point import Addend
from fedistill.communication.secure_aggregation.participant import pair_mask, zeros
from fedistill.communication.secure_aggregation.primitives import (
    KeyPair,
    commitment,
    joined,
    mask,
    self_mask_key,
)
from fedistill.communication.secure_aggregation.sizes import ANNOUNCED, SEALED, SECRET
from fedistill.communication.secure_aggregation.total import SecureTotal
from fedistill.config.secure_sums import SecureSums
from fedistill.errors import FrameError, TrainingError


class Collector:
    """The server in one round. Each ``take`` reads a client's frame, and refuses it by raising `FrameError`:

    that client is then away from this turn on. Between the turns, `check_enough` tells whether to go on.
    """

    def __init__(self, round: int, addends: Mapping[str, Addend], settings: SecureSums) -> None:
        self._round, self._addends, self._settings = round, addends, settings
        self._keys: dict[int, bytes] = {}
        self._sealed: dict[int, list[bytes]] = {}
        self._added: list[int] = []
        self._sums = zeros(addends)
        self._shares: dict[int, list[bytes]] = {}

    @property
    def members(self) -> list[int]:
        """The clients that have sent keys."""
        return sorted(self._keys)

    @property
    def sharing(self) -> list[int]:
        """Those of them that have sent shares."""
        return sorted(self._sealed)

    @property
    def added(self) -> list[int]:
        """Those of them whose integers have arrived; the sum is theirs."""
        return sorted(self._added)

    @property
    def needed(self) -> int:
        """How many clients must remain to the end."""
        return self._settings.needed(len(self._keys))

    def check_enough(self, there: int, what: str) -> None:
        """Raise `TrainingError` if fewer clients have sent ``what`` than are needed."""
        if there < self.needed:
            raise TrainingError(
                f"{there} of {len(self._keys)} clients sent {what}, but a secure sum needs {self.needed}"
                " (secure_sums.threshold), so that nothing was unmasked"
            )

    def take_keys(self, client: int, data: bytes) -> None:
        """Read the public keys of a client; those that others could not use would cost them the round."""
        frame = turns.opened(data, Kind.SECURE_KEYS, self._round, client, sections=1)
        (keys,) = turns.parts(frame.sections[0], 1, ANNOUNCED)
        public = keys[:32], keys[32:64]
        known = {part for held in self._keys.values() for part in (held[:32], held[32:64])}
        if public[0] == public[1] or not known.isdisjoint(public):
            raise FrameError("its public keys are not its own: one of them is there already")
        for key in public:
            KeyPair(bytes(16)).agreed(key, "check")
        self._keys[client] = keys

    def keys(self) -> bytes:
        """Return the frame with the keys of all."""
        keys = b"".join(self._keys[member] for member in self.members)
        return turns.down(Kind.SECURE_KEYS, self._round, None, turns.client_list(self.members), keys)

    def take_shares(self, client: int, data: bytes) -> None:
        """Read a client's sealed shares, one for each other."""
        frame = turns.opened(data, Kind.SECURE_SHARES, self._round, client, sections=1)
        self._sealed[client] = turns.parts(frame.sections[0], len(self._keys) - 1, SEALED)

    def shares(self, client: int) -> bytes:
        """Return the frame with all shares for a client."""
        sealed = b"".join(
            self._sealed[sender][self._place(sender, client)] for sender in self.sharing if sender != client
        )
        return turns.down(Kind.SECURE_SHARES, self._round, client, turns.client_list(self.sharing), sealed)

    def take_addends(self, client: int, data: bytes) -> None:
        """Read a client's masked integers, and add them up."""
        frame = turns.opened(data, Kind.SECURE_ADDENDS, self._round, client, sections=len(self._addends))
        found = {}
        for (name, addend), section in zip(self._addends.items(), frame.sections, strict=True):
            found[name] = unpack(section, addend.count, addend.bits(len(self._keys)))
        for name, values in found.items():
            self._sums[name] += values
        self._added.append(client)

    def unmasking(self) -> bytes:
        """Return the frame that asks for shares: it lists whose integers have arrived."""
        return turns.down(Kind.SECURE_UNMASKING, self._round, None, turns.client_list(self.added))

    def take_unmasking(self, client: int, data: bytes) -> None:
        """Read a client's shares of one secret of each client that has shared."""
        frame = turns.opened(data, Kind.SECURE_UNMASKING, self._round, client, sections=1)
        self._shares[client] = turns.parts(frame.sections[0], len(self._sealed), SECRET)

    def total(self) -> SecureTotal:
        """Take the masks off the sum, and return it.

        Raises:
            FrameError: shares do not give a client's secret back, or the sum is none.
        """
        for place, member in enumerate(self.sharing):
            secret = self._secret(member, place)
            keys = (
                [(self_mask_key(secret, self._round), -1)]
                if member in self._added
                else self._left_over(member, secret)
            )
            for key, sign in keys:
                for name, drawn in mask(key, self._addends).items():
                    self._sums[name] += sign * drawn
        sums = {}
        for name, addend in self._addends.items():
            modulus = 1 << addend.bits(len(self._keys))
            sums[name] = addend.decode(self._sums[name] & (modulus - 1), len(self._added))
        return SecureTotal(tuple(self.added), sums)

    def _left_over(self, member: int, secret: bytes) -> list[tuple[bytes, int]]:
        """Return the keys of the masks that others have added for a client that is away, with their signs.

        What the client itself would have added is just what takes these off.
        """
        pair = KeyPair(secret)
        return [pair_mask(pair, member, other, self._keys[other][32:64], self._round) for other in self.added]

    def _secret(self, member: int, place: int) -> bytes:
        """Return the secret of a client from the shares of others, checked against what it has announced.

        If it does not fit, one client may have sent a wrong share: that one is named.
        """
        keys = self._keys[member]
        answered = sorted(self._shares)

        def found(clients: list[int]) -> bytes | None:
            secret = joined([(self.members.index(one), self._shares[one][place]) for one in clients])
            if member in self._added:
                return secret if commitment(secret) == keys[64:] else None
            return secret if KeyPair(secret).public == keys[32:64] else None

        secret = found(answered[: self.needed])
        if secret is not None:
            return secret
        for wrong in answered:
            others = [one for one in answered if one != wrong][: self.needed]
            if len(others) == self.needed and found(others) is not None:
                raise FrameError(f"client {wrong} has sent a wrong share of client {member}'s secret")
        raise FrameError(f"the shares of client {member}'s secret do not give back what it has announced")

    def _place(self, sender: int, receiver: int) -> int:
        """Return where the share for a client is among those that another has sent: its own is left out."""
        place = self.members.index(receiver)
        return place - (receiver > sender)
