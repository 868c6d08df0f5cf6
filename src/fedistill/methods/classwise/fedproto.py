"""FedProto: clients align their features per class with global prototypes."""

import torch
from torch import Tensor

from fedistill.methods.participants import Server
from fedistill.methods.shared.prototypes import (
    PrototypeMethod,
    PrototypeServer,
    PrototypeSettings,
)


class FedProto(PrototypeMethod[PrototypeServer]):
    """Clients share the mean feature vector of each of their classes and pull features to the global mean.

    Local loss: ``CE + lambda * MSE(features, global prototype of the sample's class)``, if that class has
    one. Features are the input of the last linear layer, so clients may have different models with the same
    feature width d. Exchanged: up, vectors of the C_k classes that the client holds; down, vectors of all
    classes that any client held; both with the list of these classes. Bytes: ``b C_k d / 8`` up and
    ``b C d / 8`` down, b bits per number, and a few for the list of classes.

    The paper weights prototypes by the client's number of samples and then divides by the number of clients
    once more. Its code takes the plain mean over the clients that hold the class, as done here. Departs
    from the code: prototypes are means over all samples under the model at the end of the round (the
    paper's equation 3), not under the changing models during training; the optimizer's momentum is
    kept between rounds; a class that is in no reply keeps its prototype. Views use the clients' own
    classifiers; the paper also classifies by the nearest prototype.
    """

    name = "fedproto"
    paper = "Tan et al., 2021, arXiv 2105.00243, algorithm 1; mean as in its published code"
    ServerState = PrototypeServer
    Settings = PrototypeSettings

    def start_server(self, server: Server) -> PrototypeServer:
        return PrototypeServer()

    def aggregate(
        self, state: PrototypeServer, server: Server, vectors: Tensor, present: Tensor
    ) -> PrototypeServer:
        means, named = self.pooled(vectors, present)
        if state.prototypes is not None and state.present is not None:
            means = torch.where(named[:, None], means, state.prototypes)
            named = named | state.present
        return PrototypeServer(means, named)
