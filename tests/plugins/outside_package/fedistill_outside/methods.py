"""A method with a message of its own: labels of public samples, and how many clients stand behind them."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from pydantic import Field
from torch import Tensor

from fedistill.aggregation.labels import Mean
from fedistill.aggregation.registry import AnyAggregation
from fedistill.communication.messages.base import Message, MessageContext, Numbers
from fedistill.communication.tensor_specs import Content, TensorSpec
from fedistill.config.schema import Positive
from fedistill.errors import FrameError
from fedistill.methods.base import Method, Needs, Reply
from fedistill.methods.participants import Client, Server
from fedistill.methods.shared.own_model import Learner, train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.methods.shared.public_labels import DistillSettings, distil, distil_server
from fedistill.state import State
from fedistill.training.loop import predict


@dataclass(frozen=True)
class Ballot(Message):
    """Class probabilities (n, C) of all public samples, and the number of voters that they are of."""

    kind = 64
    probs: Tensor
    voters: int

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return {"probs": TensorSpec(Content.PROBS, (context.population, context.classes))}

    def check(self) -> None:
        if self.voters != 1:
            raise FrameError(f"a client has one vote, and not {self.voters}")


class BallotsSettings(DistillSettings):
    aggregation: AnyAggregation = Mean()
    temperature: Positive = Field(default=0.5, description="of the softmax that clients answer with")


@dataclass(frozen=True)
class BallotServer(Learner):
    """A server that keeps the last labels (n, C), their voters, and what its aggregation keeps."""

    labels: Tensor | None = None
    voters: int = 0
    aggregation: State = field(default_factory=dict)


class Ballots(Method[Ballot, Ballot, BallotServer, Learner]):
    """Clients answer with a softmax at a temperature; all learn what their answers are aggregated to.

    Exchanged: (n, C) probabilities each way, and the number of voters. Bytes: ``bnC/8`` each way.
    """

    name = "ballots"
    paper = "none: an example of a method outside of fedistill"
    exchanges = "sharpened labels on public samples"
    byte_formula = "up = down = bnC/8"
    uplink = Ballot
    downlink = Ballot
    ServerState = BallotServer
    ClientState = Learner
    needs = Needs(public=("clients", "server"))
    Settings = BallotsSettings
    settings: BallotsSettings

    def start_server(self, server: Server) -> BallotServer:
        return BallotServer(server.initial_model())

    def start_client(self, client: Client) -> Learner:
        return Learner(client.initial_model())

    def send(self, state: BallotServer, server: Server, client: int) -> Ballot | None:
        return None if state.labels is None else Ballot(state.labels, state.voters)

    def client_step(self, state: Learner, client: Client, received: Ballot | None) -> tuple[Learner, Ballot]:
        model, optimizer = state.restore(client)
        inputs = client.public_inputs()
        if received is not None:
            distil(client, model, optimizer, inputs, received.probs, self.settings)
        train_private(model, optimizer, client, private_loss(client, model))
        labels = (predict(model, inputs) / self.settings.temperature).softmax(dim=1)
        return state.after(model, optimizer), Ballot(labels, voters=1)

    def server_step(
        self, state: BallotServer, server: Server, replies: Iterable[Reply[Ballot]]
    ) -> BallotServer:
        rows = ((reply.client, reply.message.probs) for reply in replies)
        draws = server.stream("ties")
        found = self.settings.aggregation.aggregate(rows, draws, state=state.aggregation)
        if found is None:
            return state
        learned = distil_server(state, server, server.public_inputs(), found.labels, self.settings)
        return replace(learned, labels=found.labels, voters=len(found.trust), aggregation=found.state)
