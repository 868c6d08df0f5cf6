"""Features of images and tables that are fixed by design: nobody trains them, and nothing of them is sent."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from fedistill.models.frozen_features import FrozenFeatures

_ORIENTATIONS = 4
_SIZE = 5
_WAVELENGTH = 6.0
_DEVIATION = 1.5
_HEAD_START = 2
"""By so many steps of frequency, brightness comes before edges."""


class EdgeFrequencies(nn.Module):
    """Low frequencies of an image and of its edges in four directions, (n, d).

    The image, averaged over channels, is filtered by odd Gabor filters of 5 by 5; the absolute values show
    where it has edges of a direction. Brightness and these four maps are transformed by the two-dimensional
    discrete cosine transform (type 2, orthonormal). The features are the d coefficients with the lowest sum
    of row and column frequency, where brightness is ahead by 2.

    Attributes:
        width: d.
    """

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        _, height, across = shape
        self.width = width
        grown = height - _SIZE + 1, across - _SIZE + 1
        sizes = [(height, across), *[grown] * _ORIENTATIONS]
        order = sorted(
            (row + column - (_HEAD_START if place == 0 else 0), place, row, column)
            for place, (rows, columns) in enumerate(sizes)
            for row in range(rows)
            for column in range(columns)
        )
        kept = order[:width]
        self._sizes = sizes
        self._kept = [
            torch.tensor([(row, column) for _, at, row, column in kept if at == place]).reshape(-1, 2)
            for place in range(len(sizes))
        ]
        self._filters = torch.stack([_edge_filter(turn) for turn in range(_ORIENTATIONS)])[:, None]

    @staticmethod
    def most(shape: tuple[int, ...]) -> int:
        """Return the largest width that images of this shape allow; 0 if they are too small."""
        _, height, across = shape
        grown = max(height - _SIZE + 1, 0) * max(across - _SIZE + 1, 0)
        return height * across + _ORIENTATIONS * grown if grown else 0

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Return the least and the most that each feature can be (d,), float64, of images in [-1, 1]."""
        brightest = torch.ones(len(self._sizes))
        brightest[1:] = self._filters.abs().sum(dim=(1, 2, 3))
        low, high = [], []
        for place, (size, kept, most) in enumerate(zip(self._sizes, self._kept, brightest, strict=True)):
            rows, columns = (_cosines(length, kept[:, axis]).double() for axis, length in enumerate(size))
            (row_up, row_down), (up, down) = (
                (w.clamp(min=0).sum(1), w.clamp(max=0).sum(1)) for w in (rows, columns)
            )
            up, down = row_up * up + row_down * down, row_up * down + row_down * up
            # Brightness is from -1 to 1, and the size of an edge at least 0.
            high.append(most * (up if place else up - down))
            low.append(most * (down if place else down - up))
        return torch.cat(low), torch.cat(high)

    def forward(self, images: Tensor) -> Tensor:
        brightness = images.mean(dim=1, keepdim=True)
        edges = conv2d(brightness, self._filters.to(images.device)).abs()
        maps = [brightness[:, 0], *edges.unbind(dim=1)]
        parts = [_frequencies(one, kept) for one, kept in zip(maps, self._kept, strict=True)]
        return torch.cat(parts, dim=1)


class EncodedColumns(nn.Module):
    """The inputs of models of tables themselves, (n, d).

    Attributes:
        width: d.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, rows: Tensor) -> Tensor:
        return rows


FixedFeatures = EdgeFrequencies | EncodedColumns | FrozenFeatures


class FixedFeaturesNet(nn.Module):
    """Fixed features, then a linear layer, which alone is the model's state."""

    def __init__(self, features: FixedFeatures, classes: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(features.width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(inputs))
        return logits


def _edge_filter(turn: int) -> Tensor:
    """Return an odd Gabor filter of 5 by 5, whose sum is 0."""
    places = torch.arange(_SIZE) - (_SIZE - 1) / 2
    down, right = torch.meshgrid(places, places, indexing="ij")
    angle = math.pi * turn / _ORIENTATIONS
    along = right * math.cos(angle) + down * math.sin(angle)
    wave = torch.sin(2 * math.pi * along / _WAVELENGTH)
    return wave * torch.exp(-(right**2 + down**2) / (2 * _DEVIATION**2))


def _frequencies(images: Tensor, kept: Tensor) -> Tensor:
    """Return the coefficients (n, k) of images (n, height, width) at these frequencies (k, 2)."""
    rows, columns = (
        _cosines(size, kept[:, axis]).to(images.device) for axis, size in enumerate(images.shape[1:])
    )
    # Two by two: of three, opt_einsum chooses the order where it is installed, so that results would depend
    # on it, and an exported program would take batches of one size alone.
    return torch.einsum("njk,kj->nk", torch.einsum("nij,ki->njk", images, rows), columns)


def _cosines(size: int, frequencies: Tensor) -> Tensor:
    """Return cosines (k, size) of these frequencies (k,); those of different ones are orthonormal."""
    places = (torch.arange(size) + 0.5) * (math.pi / size)
    scale = torch.where(frequencies == 0, math.sqrt(1 / size), math.sqrt(2 / size))
    return scale[:, None] * torch.cos(frequencies[:, None] * places)
