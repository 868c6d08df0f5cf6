"""The task as the round loop sees it: raw samples, which client holds which, and the inputs of models."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedistill.data.image import Rendering
from fedistill.data.nameless_file import NamelessFile, TensorStore, map_file
from fedistill.data.record_encoding import RecordEncoding, read_encoding
from fedistill.data.samples import Samples, join, split
from fedistill.models.signature import Preprocessing, Signature
from fedistill.state import Joined, State, state_in, state_pieces, write_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Labelled:
    """Raw samples with labels (n,)."""

    samples: Samples
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class PublicSet:
    """Samples that everyone may see, without labels.

    Attributes:
        samples: as in `Labelled`.
        bytes: size of one copy in its stored form (Parquet, zstd; no labels).
        source: where the samples come from, for people to read.
    """

    samples: Samples
    bytes: int
    source: str

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class AbsentSite:
    """A site of a natural or listed partition without a client.

    Attributes:
        samples: how many of the training samples are its own.
        private: how many of these are left after the test set, the public set and ``task.limit``.
    """

    name: str
    samples: int
    private: int


@dataclass
class _Made:
    """What has been made of a task so far.

    Attributes:
        encoded: the token ids of its texts, by whose they are and for which preprocessing.
        file: the file that it lies in.
    """

    encoded: TensorStore | None = None
    file: NamelessFile | None = None


_UNSAVED = ("absent", "unused", "left_out", "unknown_categories")
"""Attributes of a task that only the checks before a run read."""


@dataclass(frozen=True)
class Task:
    """All data of a run.

    Attributes:
        name: as in the experiment file.
        signature: inputs and outputs of models, except those that declare their own preprocessing
            (`signature_for`).
        classes: the classes' names.
        clients: each client's private samples; disjoint from ``test`` and ``public``.
        test: the server's test set.
        public: the public set, or None.
        public_labels: the labels (n,) that were stripped from a held-out public set, or None. Only the
            control `server-alone` receives them.
        partition: how the private samples were divided, for people to read.
        vocabulary_frame: the set-up frame with the tokenizer of a text task, or with how rows of a table are
            encoded; of images empty.
        vocabulary_from_public: whether a client that holds the public set can build what is in that frame.
        column_sums: the set-up frame of each client with the sums of its rows, if these are encoded by them.
        samples_elsewhere: how many samples each client has, at a site, where those of the other clients are
            missing; or None if the samples of all clients are here.
        own_tests: the samples that each client has held out of its own to test on; empty if none does so.
        client_names: the clients' names if the partition has sites; empty if it was drawn.
        absent: the sites without a client.
        unused: how many other private samples no client has. Neither is saved, since only the checks before a
            run read them.
        rendering: how images that were transparent or had more than 8 bits were rendered, for saved models.
        left_out: why columns of a table are no inputs, by name; ``unknown_categories``: the share of
            categories in private rows that the encoding does not know, or None if there are none. Neither is
            saved.
        scratch: the folder for what is too large for memory; None stands for the system's temporary files.
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
    own_tests: tuple[Labelled, ...] = ()
    client_names: tuple[str, ...] = ()
    absent: tuple[AbsentSite, ...] = ()
    unused: int = 0
    rendering: Rendering = field(default_factory=Rendering)
    column_sums: tuple[bytes, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    unknown_categories: float | None = None
    scratch: Path | None = field(default=None, compare=False)
    _made: _Made = field(default_factory=_Made, init=False, compare=False, repr=False)

    def signature_for(self, wanted: Preprocessing) -> Signature:
        """Return the signature of models with this preprocessing.

        Raises:
            ExperimentError: the model's tokenizer cannot be read.
        """
        if self.signature.kind != "text" or wanted == Preprocessing():
            return self.signature
        if wanted.buckets is not None:
            return replace(self.signature, shape=(self._length(wanted),), vocabulary=wanted.buckets + 1)
        from fedistill.data.text import signature_of  # imports tokenizers, which images do not need

        return signature_of(self.tokenizer(wanted), len(self.classes))

    def client_inputs(self, client: int, wanted: Preprocessing) -> Tensor:
        """Return a client's private samples as model inputs.

        Images are uint8 (n, C, H, W), texts int32 (n, length), rows of tables float32 (n, d).
        """
        return self._inputs(client, self.clients[client].samples, wanted)

    def test_inputs(self, wanted: Preprocessing) -> Tensor:
        """Return the test set as model inputs, as `client_inputs` does."""
        return self._inputs("test", self.test.samples, wanted)

    def own_test_inputs(self, client: int, wanted: Preprocessing) -> Tensor:
        """Return the samples that a client has held out as model inputs, as `client_inputs` does."""
        return self._inputs(f"held out by {client}", self.own_tests[client].samples, wanted)

    def public_inputs(self, wanted: Preprocessing) -> Tensor:
        """Return the public set, which must exist, as model inputs, as `client_inputs` does."""
        assert self.public is not None
        return self._inputs("public", self.public.samples, wanted)

    def unknown_share(self, wanted: Preprocessing) -> float | None:
        """Return the share of unknown words among those of the private texts that models read, 0 to 1.

        None if all words are known: to a tokenizer that works on bytes, or as hashed words.
        """
        from fedistill.data.text import unknown_id

        if wanted.buckets is not None:
            return None
        unknown = unknown_id(self.tokenizer(wanted))
        if unknown is None:
            return None
        inputs = [self.client_inputs(client, wanted) for client in range(len(self.clients))]
        words = sum(int((tokens != 0).sum()) for tokens in inputs)
        return sum(int((tokens == unknown).sum()) for tokens in inputs) / words

    def _inputs(self, whose: int | str, samples: Samples, wanted: Preprocessing) -> Tensor:
        if isinstance(samples, Tensor):
            return samples
        encoded, key = self._made.encoded or TensorStore(self.scratch), (whose, wanted)
        self._made.encoded = encoded
        if key not in encoded:
            from fedistill.data.text import encode_texts, hash_texts

            texts = list(samples)
            if wanted.buckets is None:
                ids = encode_texts(self.tokenizer(wanted), texts)
            else:
                ids = hash_texts(texts, self._length(wanted), wanted.buckets)
            encoded.put(key, torch.from_numpy(ids))
        return encoded[key]

    def _length(self, wanted: Preprocessing) -> int:
        return wanted.length or self.signature.shape[0]

    def tokenizer(self, wanted: Preprocessing) -> "Tokenizer":
        """Return the tokenizer of text models with this preprocessing, which must not be hashed words.

        Raises:
            ExperimentError: the model's tokenizer cannot be read.
        """
        from fedistill.data.text import tokenizer_for

        return tokenizer_for(self.vocabulary_frame, self.signature.shape[0], wanted)

    def record_encoding(self) -> RecordEncoding | None:
        """Return how rows of a table are encoded; None for other tasks."""
        return read_encoding(self.vocabulary_frame) if self.signature.kind == "table" else None

    def samples(self) -> tuple[int, ...]:
        """Return how many samples each client has."""
        return self.samples_elsewhere or tuple(map(len, self.clients))

    def class_counts(self) -> Tensor:
        """Return the number of samples per client and class, int64 (clients, classes)."""
        return torch.stack(
            [torch.bincount(data.labels, minlength=len(self.classes)) for data in self.clients]
        )

    def save(self, path: Path) -> None:
        """Write the complete task to a file, private samples too, for `open`."""
        write_file(path, state_pieces(self._state()))

    @classmethod
    def open(cls, path: Path) -> "Task":
        """Read a task that `save` wrote; its samples are read when they are used."""
        with path.open("rb") as file:
            return cls._of_state(state_in(map_file(file.fileno())))

    def stored(self) -> "Task":
        """Return the task with its samples in a nameless file, from which they are read when they are used.

        Raises:
            RuntimeFailure: the disk is full or fails.
        """
        file = NamelessFile(self.scratch)
        file.write(state_pieces(self._state()))
        stored = type(self).in_file(file, self.scratch)
        task = replace(stored, **{name: getattr(self, name) for name in _UNSAVED})
        task._made.file = file
        return task

    def file(self) -> NamelessFile:
        """Return a file with the complete task, for `in_file`, perhaps in another process.

        Raises:
            RuntimeFailure: as `stored`.
        """
        found = self._made.file or self.stored()._made.file
        assert found is not None
        return found

    @classmethod
    def in_file(cls, file: NamelessFile, scratch: Path | None) -> "Task":
        """Return the task that `file` gave."""
        task = replace(cls._of_state(state_in(file.mapped())), scratch=scratch)
        task._made.file = file
        return task

    def fingerprint(self) -> str:
        """Return a digest of the complete task; equal tasks have equal digests."""
        digest = hashlib.blake2b(digest_size=16)
        # How images were rendered shows in their pixels.
        for piece in state_pieces(replace(self, rendering=Rendering())._state()):
            digest.update(piece)
        return digest.hexdigest()

    def _state(self) -> State:
        """Return the complete task, private samples too, for `_of_state`."""
        state: State = {
            "name": self.name,
            "kind": self.signature.kind,
            "shape": list(self.signature.shape),
            "vocabulary": self.signature.vocabulary,
            "classes": list(self.classes),
            "sizes": [len(data) for data in self.clients],
            **join([data.samples for data in self.clients]),
            "labels": Joined([data.labels for data in self.clients]),
            "test": {**join([self.test.samples]), "labels": self.test.labels},
            "partition": self.partition,
            "frame": self.vocabulary_frame.hex(),
            "from_public": self.vocabulary_from_public,
            "public_labels": self.public_labels,
        }
        if self.samples_elsewhere is not None:
            state["elsewhere"] = list(self.samples_elsewhere)
        if self.column_sums:
            state["sums"] = [frame.hex() for frame in self.column_sums]
        if self.own_tests:
            state["own_tests"] = {
                **join([data.samples for data in self.own_tests]),
                "sizes": list(map(len, self.own_tests)),
                "labels": Joined([data.labels for data in self.own_tests]),
            }
        if self.client_names:
            state["names"] = list(self.client_names)
        if self.rendering != Rendering():
            state["rendering"] = asdict(self.rendering)
        if self.public is not None:
            state["public"] = {
                **join([self.public.samples]),
                "bytes": self.public.bytes,
                "source": self.public.source,
            }
        return state

    @classmethod
    def _of_state(cls, state: State) -> "Task":
        """Return the task of which this is the `_state`, as it is read again."""
        public, elsewhere = state.get("public"), state.get("elsewhere")
        (tested,) = split(state["test"], [len(state["test"]["labels"])])
        return cls(
            name=state["name"],
            signature=Signature(
                state["kind"], tuple(state["shape"]), len(state["classes"]), state["vocabulary"]
            ),
            classes=tuple(state["classes"]),
            clients=_labelled(state),
            test=Labelled(tested, state["test"]["labels"]),
            public=None if public is None else _public(public),
            public_labels=state["public_labels"],
            partition=state["partition"],
            vocabulary_frame=bytes.fromhex(state["frame"]),
            vocabulary_from_public=state["from_public"],
            samples_elsewhere=None if elsewhere is None else tuple(elsewhere),
            own_tests=_labelled(state["own_tests"]) if "own_tests" in state else (),
            client_names=tuple(state.get("names", ())),
            rendering=Rendering(**state.get("rendering", {})),
            column_sums=tuple(map(bytes.fromhex, state.get("sums", ()))),
        )


def _labelled(state: State) -> tuple[Labelled, ...]:
    """Return each client's samples from those of all, with their labels and sizes."""
    sizes = state["sizes"]
    parts = zip(split(state, sizes), state["labels"].split(sizes), strict=True)
    return tuple(Labelled(samples, labels) for samples, labels in parts)


def _public(state: State) -> PublicSet:
    count = len(state["inputs"] if "inputs" in state else state["ends"])
    (samples,) = split(state, [count])
    return PublicSet(samples, state["bytes"], state["source"])
