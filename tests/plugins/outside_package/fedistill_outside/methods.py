"""A method with a message of its own: labels of public samples, and how many clients stand behind them."""

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import Field
from torch import Tensor

from fedistill.aggregation.labels import Mean
from fedistill.aggregation.registry import AnyAggregation
from fedistill.communication.kinds import Kind
from fedistill.communication.messages.base import Message, MessageContext, Numbers
from fedistill.communication.messages.labels import SoftLabels
from fedistill.communication.tensor_specs import TensorSpec
from fedistill.config.schema import Positive
from fedistill.methods.base import Server
from fedistill.methods.shared.public_labels import DrawnLabels, DrawnSettings
from fedistill.state import State


@dataclass(frozen=True)
class Ballot(Message):
    """Class probabilities on the public samples of round ``drawn``, (n, C), of so many ``voters``."""

    kind = Kind.SOFT_LABELS
    probs: Tensor
    drawn: int
    voters: int

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return SoftLabels.specs(context, numbers)


class BallotsSettings(DrawnSettings):
    aggregation: AnyAggregation = Mean()
    temperature: Positive = Field(default=0.5, description="of the softmax that clients answer with")


class Ballots(DrawnLabels):
    """Clients answer with softmax at a temperature; all learn what their answers are pooled to.

    Exchanged: (n, C) probabilities each way, and a number of voters. Bytes: ``bnC/8`` each way.
    """

    name = "ballots"
    paper = "none: an example of a method outside of fedistill"
    exchanges = "sharpened labels on public samples"
    byte_formula = "up = down = bnC/8"
    uplink = Ballot
    downlink = Ballot
    Settings = BallotsSettings
    settings: BallotsSettings

    def message(self, probs: Tensor, drawn: int) -> Ballot:
        return Ballot(probs, drawn, voters=1)

    def labels(self, logits: Tensor) -> Tensor:
        return (logits / self.settings.temperature).softmax(dim=1)

    def pooled(self, probs: Iterable[Tensor], state: State, server: Server) -> Tensor | None:
        return self.settings.aggregation.aggregate(probs, server.stream("ties"))
