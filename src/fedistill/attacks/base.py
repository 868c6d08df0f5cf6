"""The base classes of attacks: a lying client changes its labels, or what it sends."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fedistill.attacks.parts import Part, Role, parts_of, roles_of
from fedistill.communication.messages.base import Message, MessageContext
from fedistill.config.section import Section
from fedistill.errors import ExperimentError
from fedistill.methods.participants import Client
from fedistill.methods.registry import AnyMethod
from fedistill.rng import stream

SHARE = 0.2


@dataclass(frozen=True)
class Liar:
    """A lying client in one round.

    Attributes:
        received: the message that it answers, if it was sent one.
        context: what it and the server know of its message.
    """

    seed: int
    client: int
    round: int
    received: Message | None
    context: MessageContext

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.context.classes

    def draws(self) -> torch.Generator:
        """Return random numbers of this liar and this round."""
        return stream(self.seed, "lie", self.client, self.round)

    def common_draws(self) -> torch.Generator:
        """Return random numbers that all liars share, the same in each round."""
        return stream(self.seed, "common lie")


class Attack(Section, ABC):
    """Base of all attacks; subclasses are final, and found by scanning."""

    kind: str
    share: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description=f"share of the clients that lie, drawn by the seed; default: {SHARE}, or `clients`",
    )
    clients: list[int] | None = Field(
        default=None, min_length=1, description="who lies; clients count from 0"
    )
    from_round: int = Field(default=1, ge=1, description="the first round in which they lie")

    source: ClassVar[str]
    """Where the attack was published, with the section."""

    @model_validator(mode="after")
    def _one_of_two(self) -> "Attack":
        if self.share is not None and self.clients is not None:
            raise ValueError(
                "set either `share`, the share of clients that lie, or `clients`, a list of them"
            )
        return self

    def liars(self, seed: int, count: int) -> tuple[int, ...]:
        """Return the clients that lie, ascending, of ``count`` clients: at least one.

        Raises:
            ExperimentError: `clients` names one that does not exist, or one twice.
        """
        if self.clients is None:
            number = max(1, round((self.share or SHARE) * count))
            order = torch.randperm(count, generator=stream(seed, "liars"))
            return tuple(sorted(order[:number].tolist()))
        wrong = [one for one in self.clients if not 0 <= one < count or self.clients.count(one) > 1]
        if wrong:
            raise ExperimentError(
                f"attack.clients names client {wrong[0]}, but the clients are 0 to {count - 1}, each once"
            )
        return tuple(sorted(self.clients))

    @abstractmethod
    def fits(self, method: AnyMethod) -> bool:
        """Whether a client of this method has anything that the attack can change."""

    def at(self, client: Client) -> Client:
        """Return the client with the data that it works on."""
        return client

    def sent(self, message: Message, liar: Liar) -> Message | None:
        """Return what the client sends in place of its message; None for nothing."""
        return message


class DataAttack(Attack, ABC):
    """Base of attacks on labels: the client trains, counts and sends honestly, but on wrong labels."""

    def fits(self, method: AnyMethod) -> bool:
        return method.uplink is not None

    def at(self, client: Client) -> Client:
        wrong = self.labels(client.data.labels, client.classes)
        return replace(client, data=replace(client.data, labels=wrong))

    @abstractmethod
    def labels(self, labels: Tensor, classes: int) -> Tensor:
        """Return wrong labels (n,) in place of the true ones (n,), all below ``classes``."""


class MessageAttack(Attack, ABC):
    """Base of attacks on messages: the client works honestly, and sends something else."""

    roles: ClassVar[frozenset[Role]]
    """The parts of messages that the attack changes."""

    def fits(self, method: AnyMethod) -> bool:
        return any(self.roles & roles_of(kind) for kind in method.uplinks)

    def sent(self, message: Message, liar: Liar) -> Message:
        for part in [*parts_of(message, liar.received, liar.context)]:
            if part.role in self.roles:
                message = part.put(message, self.lie(part, liar))
        return message

    @abstractmethod
    def lie(self, part: Part, liar: Liar) -> Tensor:
        """Return values of the shape of ``part.values`` that the client sends in their place."""
