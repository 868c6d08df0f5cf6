"""FD+: class outputs as in FD, together with averaged weights."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor

from fedistill.communication.messages.classwise import WeightsAndOutputs
from fedistill.methods.base import Method, Needs, NoState, Reply
from fedistill.methods.participants import Client, ClientInfo, Server
from fedistill.methods.shared.class_outputs import (
    ClassPoolingSettings,
    ClassTables,
    pool_tables,
    train_following,
)
from fedistill.methods.shared.weight_averaging import (
    AveragingSettings,
    merged_model,
    trained_weights,
)
from fedistill.training.model_state import ModelState
from fedistill.training.optimizers import make_optimizer


class FdPlusSettings(AveragingSettings, ClassPoolingSettings):
    gamma: float = Field(default=0.1, ge=0, description="weight of the distillation term")


@dataclass(frozen=True)
class FdPlusServer:
    """The averaged model, the number of samples it was trained on, and the clients' class outputs."""

    model: ModelState
    outputs: ClassTables = field(default_factory=ClassTables)
    samples: int = 0


class FdPlus(Method[WeightsAndOutputs, WeightsAndOutputs, FdPlusServer, NoState]):
    """FedAvg whose clients also learn from the other clients' mean softmax output per class, as in `fd`.

    Known as FedDistill+ in the results of FedGen. Clients start from the averaged weights. Local loss:
    ``CE(F(x), y) + gamma * CE(F(x), G_y)``, where G_y is the mean, over the other clients, of their mean
    outputs for class y. Exchanged, in one frame: all weights, a (C, C) table and the number of samples, both
    ways. Bytes: ``b (|θ| + C^2) / 8`` each way, b bits per number, and one to three for the sample count.

    Departs from FedGen's code, which differs from Jeong et al.: it averages raw logits, adds them to sums
    that are never reset, counts a class that a client lacks as zeros, and includes the client itself in the
    mean. Here all four follow the paper of `fd`. Codecs of updates cannot be used, since class outputs have
    no update.
    """

    name = "fd-plus"
    paper = "Jeong et al., 2018, arXiv 1811.11479; with weights: Zhu et al., 2021, arXiv 2105.10056, table 1"
    exchanges = "all weights, mean softmax output of each class"
    byte_formula = "up = down = b(|θ|+C²)/8"
    beyond_model = "mean outputs over their private samples of each class"
    uplink = WeightsAndOutputs
    downlink = WeightsAndOutputs
    ServerState = FdPlusServer
    needs = Needs(models="one architecture")
    Settings = FdPlusSettings
    settings: FdPlusSettings

    def broadcast_group(self, state: FdPlusServer, info: ClientInfo) -> int:
        return info.id

    def start_server(self, server: Server) -> FdPlusServer:
        return FdPlusServer(server.initial_model())

    def start_client(self, client: Client) -> NoState:
        return NoState()

    def send(self, state: FdPlusServer, server: Server, client: int) -> WeightsAndOutputs:
        means = state.outputs.for_client(client)
        if means is None:
            means = torch.zeros(server.classes, server.classes)
        return WeightsAndOutputs(state.model.weights, means, state.samples, state.model.integers)

    def client_step(
        self, state: NoState, client: Client, received: WeightsAndOutputs | None
    ) -> tuple[NoState, WeightsAndOutputs]:
        assert received is not None
        model = client.load(ModelState.received(received))
        optimizer = make_optimizer(client.train.optimizer, model)
        means = train_following(model, optimizer, client, received.means, self.settings.gamma)
        sent = trained_weights(model, client)
        return state, WeightsAndOutputs(sent.values, means, sent.samples, sent.integers)

    def server_step(
        self, state: FdPlusServer, server: Server, replies: Iterable[Reply[WeightsAndOutputs]]
    ) -> FdPlusServer:
        tables: dict[int, Tensor] = {}
        samples = 0

        def trained() -> Iterable[tuple[int, WeightsAndOutputs, float]]:
            nonlocal samples
            for reply in replies:
                tables[reply.client] = reply.message.means
                samples += reply.message.samples
                yield reply.client, reply.message, reply.message.samples

        merged = merged_model(server, trained(), state.model, self.settings)
        if merged is None:
            return state
        followed = dict(server.reliability)
        outputs = pool_tables(server, tables, self.settings.pooling)
        # Who lies in one of the two parts is not to be relied on, however right the other is.
        for client, figure in followed.items():
            server.reliability[client] = min(figure, server.reliability.get(client, 1.0))
        return FdPlusServer(merged, outputs, samples)
