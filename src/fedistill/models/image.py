"""Image models, from small to large, for any number of channels and any height and width."""

import torch
from torch import Tensor, nn

from fedistill.models.signature import Build, Signature


class _Classifier(nn.Module):
    """A feature extractor, then one linear layer."""

    def __init__(self, features: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(width, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(inputs))
        return logits


_FEWEST_PIXELS = 10_000
"""In a batch, for oneDNN's layout: in smaller ones, it takes longer than converting does."""


class _Convolutions(nn.Sequential):
    """Convolutions, pools and ReLUs, then `nn.Flatten`.

    On a CPU with oneDNN, tensors between the layers of a large batch are in its own layout: converting them
    around each layer takes a tenth of a training step and a third of a prediction. Results are those of the
    plain layers but for rounding. Second derivatives need those:
    ``torch.backends.mkldnn.enabled = False``.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        if not _onednn_computes(inputs):
            flat: Tensor = super().forward(inputs)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            return flat
        *layers, flatten = self
        hidden = inputs.to_mkldnn()
        for layer in layers:
            hidden = layer(hidden)
        vectors: Tensor = flatten(hidden.to_dense())
        return vectors


def _onednn_computes(inputs: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # the first: an exported program may have batches of any size
        and inputs.numel() >= _FEWEST_PIXELS * inputs.shape[1]
        and inputs.device.type == "cpu"
        and inputs.dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and torch._C._functorch.peek_interpreter_stack() is None  # vmap and grad take plain layouts alone
    )


def mlp_s(signature: Signature) -> nn.Module:
    """One hidden layer of 64 units."""
    channels, height, width = signature.shape
    features = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, 64), nn.ReLU())
    return _Classifier(features, 64, signature.classes)


def cnn_s(signature: Signature) -> nn.Module:
    """Two convolutions of 16 and 32 channels, each pooled, and one linear layer."""
    channels, height, width = signature.shape
    features = _Convolutions(*_pooled(channels, 16), *_pooled(16, 32), nn.Flatten())
    return _Classifier(features, 32 * _halved(height, 2) * _halved(width, 2), signature.classes)


def cnn_m(signature: Signature) -> nn.Module:
    """Convolutions of 32, 64 and 64 channels with group norm, and a hidden layer of 128."""
    channels, height, width = signature.shape
    flat = 64 * _halved(height, 2) * _halved(width, 2)
    features = nn.Sequential(
        *_pooled(channels, 32, norm=True),
        *_pooled(32, 64, norm=True),
        nn.Conv2d(64, 64, 3, padding=1, bias=False),
        _norm(64),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(flat, 128),
        nn.ReLU(),
    )
    return _Classifier(features, 128, signature.classes)


def resnet_8(signature: Signature) -> nn.Module:
    """ResNet for small images (He et al., 2016, section 4.2) with n = 1 and group norm."""
    return _resnet(signature, blocks=1)


def resnet_20(signature: Signature) -> nn.Module:
    """ResNet for small images (He et al., 2016, section 4.2) with n = 3 and group norm."""
    return _resnet(signature, blocks=3)


class _Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False),
            _norm(outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, padding=1, bias=False),
            _norm(outside),
        )
        same = inside == outside and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inside, outside, 1, stride, bias=False)
        self.relu = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.relu(self.path(inputs) + self.shortcut(inputs))
        return outputs


def _resnet(signature: Signature, blocks: int) -> nn.Module:
    channels = signature.shape[0]
    layers: list[nn.Module] = [
        nn.Conv2d(channels, 16, 3, padding=1, bias=False),
        _norm(16),
        nn.ReLU(),
    ]
    inside = 16
    for outside, stride in ((16, 1), (32, 2), (64, 2)):
        for block in range(blocks):
            layers.append(_Block(inside, outside, stride if block == 0 else 1))
            inside = outside
    features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return _Classifier(features, inside, signature.classes)


def _pooled(inside: int, outside: int, norm: bool = False) -> list[nn.Module]:
    """Return a convolution with 2x2 max pooling.

    Pooling comes before the ReLU: both are monotone, so the result is the same, and the ReLU processes a
    quarter of the values. A side of one pixel is kept.
    """
    layers: list[nn.Module] = [nn.Conv2d(inside, outside, 3, padding=1, bias=not norm)]
    if norm:
        layers.append(_norm(outside))
    return [*layers, nn.MaxPool2d(2, ceil_mode=True), nn.ReLU()]


def _halved(side: int, times: int) -> int:
    for _ in range(times):
        side = (side + 1) // 2
    return side


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels)


LADDER: dict[str, Build] = {
    "mlp-s": mlp_s,
    "cnn-s": cnn_s,
    "cnn-m": cnn_m,
    "resnet-8": resnet_8,
    "resnet-20": resnet_20,
}
