"""Samples as they are stored: images and encoded rows of tables as tensors, texts as bytes."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fedistill.state import Joined, State


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


def join(parts: Sequence[Samples]) -> State:
    """Return the samples of several parts, one behind the other, as tensors of a state."""
    images = [part for part in parts if isinstance(part, Tensor)]
    if len(images) == len(parts):
        return {"inputs": Joined(images)}
    texts = [part for part in parts if isinstance(part, Texts)]
    lengths = [torch.diff(part.ends, prepend=torch.zeros(1, dtype=torch.int64)) for part in texts]
    return {
        "content": Joined([part.content for part in texts]),
        "ends": torch.cat(lengths).cumsum(dim=0),
    }


def split(state: State, sizes: Sequence[int]) -> list[Samples]:
    """Invert `join`, for parts with these numbers of samples, which are views of the state's tensors."""
    if "inputs" in state:
        return list(state["inputs"].split(list(sizes)))
    found: list[Samples] = []
    start = 0
    for ends in state["ends"].split(list(sizes)):
        stop = int(ends[-1]) if len(ends) else start
        found.append(Texts(state["content"][start:stop], ends - start))
        start = stop
    return found
