"""The task as the round loop sees it: tensors, and who holds which of them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedistill.models.signature import Signature
from fedistill.state import decode_state, encode_state, write_file


@dataclass(frozen=True)
class Labelled:
    """Samples with labels: inputs uint8 (n, channels, height, width) or int32 (n, length), labels (n,)."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class PublicSet:
    """Samples that everyone may see, without labels.

    Attributes:
        inputs: as in `Labelled`.
        bytes: what one copy costs in its stored form (Parquet, zstd; no labels).
        source: where the samples come from, in words.
    """

    inputs: Tensor
    bytes: int
    source: str

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Task:
    """All data of a run.

    Attributes:
        name: as in the experiment file.
        signature: what models of this task take and give.
        classes: the classes' names.
        clients: each client's private samples; disjoint from ``test`` and ``public``.
        test: the server's test set.
        public: the public set, or None.
        public_labels: the labels that were stripped from a held-out public set, (n,). Only the
            control `server-alone` is handed them.
        partition: how the private samples were dealt out, in words.
        vocabulary_frame: the set-up frame with the tokenizer of a text task, else empty.
        vocabulary_from_public: whoever holds the public set can build that tokenizer.
        samples_elsewhere: how many samples each client has, where those of others are not here, as at a
            site; None: all are here.
    """

    name: str
    signature: Signature
    classes: tuple[str, ...]
    clients: tuple[Labelled, ...]
    test: Labelled
    public: PublicSet | None
    public_labels: Tensor | None
    partition: str
    vocabulary_frame: bytes = b""
    vocabulary_from_public: bool = True
    samples_elsewhere: tuple[int, ...] | None = None

    def samples(self) -> tuple[int, ...]:
        """How many samples each client has."""
        return self.samples_elsewhere or tuple(map(len, self.clients))

    def class_counts(self) -> Tensor:
        """Samples of each client and class, int64 (clients, classes)."""
        return torch.stack(
            [torch.bincount(data.labels, minlength=len(self.classes)) for data in self.clients]
        )

    def save(self, path: Path) -> None:
        """Write the task for worker processes."""
        write_file(path, self._bytes())

    def fingerprint(self) -> str:
        """A digest of all that the task is; equal tasks have equal ones."""
        return hashlib.blake2b(self._bytes(), digest_size=16).hexdigest()

    def _bytes(self) -> bytes:
        state: dict[str, Any] = {
            "name": self.name,
            "kind": self.signature.kind,
            "shape": list(self.signature.shape),
            "vocabulary": self.signature.vocabulary,
            "classes": list(self.classes),
            "sizes": [len(data) for data in self.clients],
            "inputs": torch.cat([data.inputs for data in self.clients]),
            "labels": torch.cat([data.labels for data in self.clients]),
            "test": {"inputs": self.test.inputs, "labels": self.test.labels},
            "partition": self.partition,
            "frame": self.vocabulary_frame.hex(),
            "from_public": self.vocabulary_from_public,
            "public_labels": self.public_labels,
        }
        if self.samples_elsewhere is not None:
            state["elsewhere"] = list(self.samples_elsewhere)
        if self.public is not None:
            state["public"] = {
                "inputs": self.public.inputs,
                "bytes": self.public.bytes,
                "source": self.public.source,
            }
        return encode_state(state)

    @classmethod
    def open(cls, path: Path) -> "Task":
        """Read a task that `save` wrote."""
        state = decode_state(path.read_bytes())
        sizes = state["sizes"]
        clients = zip(state["inputs"].split(sizes), state["labels"].split(sizes), strict=True)
        public, elsewhere = state.get("public"), state.get("elsewhere")
        return cls(
            name=state["name"],
            signature=Signature(
                state["kind"], tuple(state["shape"]), len(state["classes"]), state["vocabulary"]
            ),
            classes=tuple(state["classes"]),
            clients=tuple(Labelled(inputs, labels) for inputs, labels in clients),
            test=Labelled(state["test"]["inputs"], state["test"]["labels"]),
            public=None if public is None else PublicSet(**public),
            public_labels=state["public_labels"],
            partition=state["partition"],
            vocabulary_frame=bytes.fromhex(state["frame"]),
            vocabulary_from_public=state["from_public"],
            samples_elsewhere=None if elsewhere is None else tuple(elsewhere),
        )
