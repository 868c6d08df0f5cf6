"""A model of one's own: a function from the task's signature to a module."""

from torch import nn

from fedistill import Signature


def wide_net(signature: Signature) -> nn.Module:
    """One hidden layer of 256 units; `features` is the layer whose output is a feature vector."""
    channels, height, width = signature.shape
    net = nn.Sequential()
    net.add_module(
        "features", nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, 256), nn.ReLU())
    )
    net.add_module("head", nn.Linear(256, signature.classes))
    return net
