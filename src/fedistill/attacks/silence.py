"""Clients that say nothing: what the others reach alone, beside which an attack is measured."""

from typing import Literal

from fedistill.attacks.base import Attack, Liar
from fedistill.communication.messages.base import Message
from fedistill.methods.registry import AnyMethod


class Silent(Attack):
    """The clients send nothing: no attack, but what an attack is compared with, the honest clients alone."""

    kind: Literal["silent"] = "silent"
    source = "a control"

    def fits(self, method: AnyMethod) -> bool:
        return method.uplink is not None

    def sent(self, message: Message, liar: Liar) -> None:
        return None
