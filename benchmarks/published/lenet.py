"""The network of NIID-bench: convolutions of 6 and 16 channels (5x5), then 120, 84 and C units."""

from torch import nn

from fedistill import Signature


def lenet(signature: Signature) -> nn.Module:
    channels, height, width = signature.shape
    flat = 16 * (((height - 4) // 2 - 4) // 2) * (((width - 4) // 2 - 4) // 2)
    return nn.Sequential(
        *(nn.Conv2d(channels, 6, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(6, 16, 5), nn.MaxPool2d(2), nn.ReLU()),
        nn.Flatten(),
        *(nn.Linear(flat, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()),
        nn.Linear(84, signature.classes),
    )
