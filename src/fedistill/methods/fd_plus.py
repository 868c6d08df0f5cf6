"""FD+: class outputs as in FD, and averaged weights."""

from collections.abc import Iterable

import torch
from pydantic import Field
from torch import Tensor

from fedistill.aggregate import weighted_mean
from fedistill.config import Section
from fedistill.distill import soft_cross_entropy
from fedistill.methods.base import Client, Method, Peer, Reply, Server
from fedistill.methods.fd import class_mean
from fedistill.methods.own_model import train_private
from fedistill.methods.private_loss import private_loss
from fedistill.state import State
from fedistill.train import flatten, make_optimizer
from fedistill.wire.message import WeightsAndOutputs


class FdPlusSettings(Section):
    gamma: float = Field(default=0.1, ge=0, description="weight of the distillation term")


class FdPlus(Method[WeightsAndOutputs, WeightsAndOutputs]):
    """FedAvg, whose clients also follow the other clients' mean softmax output of each class, as in `fd`.

    Known as FedDistill+ from the table of FedGen. Local loss, from the averaged weights on: ``CE(F(x), y)
    + gamma * CE(F(x), G_y)``, G_y being the mean over the other clients of their mean output for class y.
    Exchanged, in one frame: all weights, a (C, C) table and the number of samples, both ways. Bytes:
    ``b (|θ| + C^2) / 8`` each way, b bits a number, and one to three for the samples.

    Departs from FedGen's code, which is not what Jeong et al. describe: it averages raw logits, adds them
    to sums that are never reset, counts a class that a client lacks as zeros, and does not leave the
    client itself out. Here all four are as in the paper of `fd`. Codecs of updates cannot code it, since
    class outputs have no update.
    """

    name = "fd-plus"
    paper = "Jeong et al., 2018, arXiv 1811.11479; with weights: Zhu et al., 2021, arXiv 2105.10056, table 1"
    exchanges = "all weights, mean softmax output of each class"
    byte_formula = "up = down = b(|θ|+C²)/8"
    uplink = WeightsAndOutputs
    downlink = WeightsAndOutputs
    one_model = True
    Settings = FdPlusSettings
    settings: FdPlusSettings

    def audience(self, peer: Peer) -> int:
        return peer.id

    def start_server(self, server: Server) -> State:
        return {"model": server.initial_weights(), "outputs": {}, "samples": 0}

    def start_client(self, client: Client) -> State:
        return {}

    def send(self, state: State, server: Server, client: int) -> WeightsAndOutputs:
        names = sorted(state["outputs"], key=int)  # in client order, whatever the order of the keys
        others = [state["outputs"][name] for name in names if name != str(client)]
        classes = server.signature.classes
        means = class_mean(others) if others else torch.zeros(classes, classes)
        return WeightsAndOutputs(state["model"], means, state["samples"])

    def client_step(
        self, state: State, client: Client, received: WeightsAndOutputs | None
    ) -> tuple[State, WeightsAndOutputs]:
        assert received is not None
        model = client.load(received.values)
        labels = client.data.labels
        targets = received.means
        known = targets.sum(dim=1) > 0
        private = private_loss(client, model)
        sums, counts = torch.zeros_like(targets), torch.zeros(len(targets))

        def loss(logits: Tensor, at: Tensor) -> Tensor:
            y = labels[at]
            sums.index_add_(0, y, logits.detach().softmax(dim=1))
            counts.index_add_(0, y, torch.ones(len(y)))
            told = known[y]
            # Divided by the whole batch: a sample without a target adds nothing.
            share = told.float().mean()
            term = soft_cross_entropy(logits[told], targets[y[told]]) if told.any() else torch.zeros(())
            return private(logits, at) + self.settings.gamma * share * term

        train_private(model, make_optimizer(client.train.optimizer, model), client, loss)
        means = sums / counts.clamp(min=1)[:, None]
        return state, WeightsAndOutputs(flatten(model), means, len(client.data))

    def server_step(self, state: State, server: Server, replies: Iterable[Reply[WeightsAndOutputs]]) -> State:
        outputs: dict[str, Tensor] = {}
        samples = 0

        def trained() -> Iterable[tuple[Tensor, float]]:
            nonlocal samples
            for reply in replies:
                outputs[str(reply.client)] = reply.message.means
                samples += reply.message.samples
                yield reply.message.values, reply.message.samples

        mean = weighted_mean(trained())
        return state if mean is None else {"model": mean, "outputs": outputs, "samples": samples}
