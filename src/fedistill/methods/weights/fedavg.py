"""FedAvg: all weights up, their mean down."""

from fedistill.communication.messages.weights import Weights
from fedistill.methods.shared.weight_averaging import WeightAveraging


class FedAvg(WeightAveraging):
    """Clients train the global model on private data; the server averages, weighted by samples.

    Exchanged: all weights, both ways, and the client's number of samples up. Bytes: ``b|θ|/8`` each way
    for each client and round, b bits a weight. Clients keep nothing between rounds: local optimisers
    start afresh, as in algorithm 1 of the paper.
    """

    name = "fedavg"
    paper = "McMahan et al., 2017, arXiv 1602.05629, algorithm 1"

    def penalty(self, received: Weights) -> None:
        return None
