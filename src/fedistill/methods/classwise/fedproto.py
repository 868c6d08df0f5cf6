"""FedProto: clients agree on where the features of each class lie."""

import torch
from torch import Tensor

from fedistill.methods.participants import Server
from fedistill.methods.shared.prototypes import (
    PrototypeMethod,
    PrototypeServer,
    PrototypeSettings,
    class_means,
)


class FedProto(PrototypeMethod[PrototypeServer]):
    """Clients share the mean feature vector of each class they have and are drawn to the mean of all.

    Local loss: ``CE + lambda * MSE(features, global prototype of the sample's class)``, where there is
    one. Features are the input of the last linear layer, so clients may have unlike models of one
    feature width d. Exchanged: up, vectors of the C_k classes that the client has; down, of all classes
    that any had; and which these are. Bytes: ``b C_k d / 8`` up and ``b C d / 8`` down, b bits a number,
    and a few for the choice of classes.

    The paper weighs a client's prototype by its samples and then divides by the number of clients once
    more; its code takes the plain mean over the clients that have the class, and so does this. Departs
    from the code: prototypes are means over all samples under the model at the end of the round (the
    paper's equation 3), not under the models that training went through; the optimiser's momentum is
    kept between rounds; a class that no reply names keeps its prototype. Views are of the clients' own
    classifiers; the paper also takes the nearest prototype.
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
        means, named = class_means(vectors, present)
        if state.prototypes is not None and state.present is not None:
            means = torch.where(named[:, None], means, state.prototypes)
            named = named | state.present
        return PrototypeServer(means, named)
