"""Samples as they are stored: images and encoded rows of tables as tensors, texts as bytes."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class Texts:
    """Texts as plain data that can be stored in a state and passed to a process.

    Attributes:
        content: all texts in UTF-8, concatenated, uint8 (bytes,).
        ends: position in ``content`` at which each text ends, int64 (n,).
    """

    def __init__(self, content: Tensor, ends: Tensor) -> None:
        self.content, self.ends = content, ends

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Texts":
        """Encode these strings."""
        encoded = [text.encode() for text in texts]
        content = torch.frombuffer(bytearray(b"".join(encoded)) or bytearray(1), dtype=torch.uint8)
        ends = torch.tensor([len(text) for text in encoded], dtype=torch.int64).cumsum(dim=0)
        return cls(content[: int(ends[-1]) if encoded else 0], ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[str]:
        data, start = self.content.numpy().tobytes(), 0
        for end in self.ends.tolist():
            yield data[start:end].decode()
            start = end

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the texts take."""
        return self.content.nbytes + self.ends.nbytes


Samples = Tensor | Texts
"""Images, uint8 (n, channels, height, width), n texts, or encoded rows of tables, float32 (n, d)."""


def none_of(samples: Samples) -> Samples:
    """Return an empty set of samples of the same kind."""
    return samples[:0] if isinstance(samples, Tensor) else Texts.of([])
