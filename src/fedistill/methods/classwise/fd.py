"""FD: mean outputs per class, averaged over the other clients."""

from collections.abc import Iterable

import torch
from pydantic import Field

from fedistill.communication.messages.classwise import ClassOutputs
from fedistill.methods.base import Method, Reply
from fedistill.methods.participants import Client, ClientInfo, Server
from fedistill.methods.shared.class_outputs import (
    ClassPoolingSettings,
    ClassTables,
    pool_tables,
    train_following,
)
from fedistill.methods.shared.own_model import Learner


class FdSettings(ClassPoolingSettings):
    gamma: float = Field(default=0.1, ge=0, description="weight of the distillation term")


class Fd(Method[ClassOutputs, ClassOutputs, ClassTables, Learner]):
    """Clients share their mean softmax output per class and learn from the mean of the other clients.

    Local loss: ``CE(F(x), y) + gamma * CE(F(x), G_y)``, where G_y is the mean, over the other clients, of
    their mean outputs for class y. Exchanged: a (C, C) table each way. Bytes: ``b C^2 / 8`` each way, b
    bits per number. There is no public data and no server model.

    The paper gives no value of gamma and does not cover missing classes and clients. Here a class that a
    client does not hold is a row of zeros and is left out of the mean; a class that no other client holds
    has no distillation term; a client that missed the last exchange receives the mean over all clients that
    took part in it.
    """

    name = "fd"
    paper = "Jeong et al., 2018, arXiv 1811.11479, algorithm 1"
    exchanges = "mean softmax output of each class"
    byte_formula = "up = down = bC²/8"
    beyond_model = "mean outputs over their private samples of each class"
    uplink = ClassOutputs
    downlink = ClassOutputs
    ServerState = ClassTables
    ClientState = Learner
    Settings = FdSettings
    settings: FdSettings

    def broadcast_group(self, state: ClassTables, info: ClientInfo) -> int:
        return info.id

    def start_server(self, server: Server) -> ClassTables:
        return ClassTables()

    def start_client(self, client: Client) -> Learner:
        return Learner(client.initial_model())

    def send(self, state: ClassTables, server: Server, client: int) -> ClassOutputs | None:
        means = state.for_client(client)
        return None if means is None else ClassOutputs(means)

    def client_step(
        self, state: Learner, client: Client, received: ClassOutputs | None
    ) -> tuple[Learner, ClassOutputs]:
        model, optimizer = state.restore(client)
        targets = torch.zeros(client.classes, client.classes) if received is None else received.means
        means = train_following(model, optimizer, client, targets, self.settings.gamma)
        return state.after(model, optimizer), ClassOutputs(means)

    def server_step(
        self, state: ClassTables, server: Server, replies: Iterable[Reply[ClassOutputs]]
    ) -> ClassTables:
        tables = {reply.client: reply.message.means for reply in replies}
        return pool_tables(server, tables, self.settings.pooling) if tables else state
