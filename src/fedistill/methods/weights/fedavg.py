"""FedAvg: all weights up, their mean down."""

from fedistill.communication.messages.weights import Weights
from fedistill.methods.shared.weight_averaging import WeightAveraging


class FedAvg(WeightAveraging):
    """Clients train the global model on private data; the server averages the weights by number of samples.

    Exchanged: all weights, both ways, and the client's number of samples up. Bytes: ``b|θ|/8`` each way
    per client and round, b bits per weight. Clients keep nothing between rounds: local optimizers
    are fresh in each round, as in algorithm 1 of the paper.
    """

    name = "fedavg"
    paper = "McMahan et al., 2017, arXiv 1602.05629, algorithm 1"
    beyond_model = None
    trains_received = True

    def penalty(self, received: Weights) -> None:
        return None
