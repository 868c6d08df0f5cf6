"""What a method is handed: the server and a client in one round, and what both know of the whole arm."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from fedistill.config.schema import Train
from fedistill.data.task import Labelled
from fedistill.models import registry as models
from fedistill.models.features import width
from fedistill.models.signature import Signature
from fedistill.rng import SERVER, stream
from fedistill.training.model_state import ModelState


@dataclass(frozen=True)
class ClientInfo:
    """What the server knows of a client before the run.

    Attributes:
        parts: shapes of the tensors that its model's weights are made of; ``parameters``: P, all of them.
        samples: private samples, as it registered.
    """

    id: int
    model: str
    parameters: int
    parts: tuple[tuple[int, ...], ...] = ()
    samples: int = 0


@dataclass(frozen=True)
class FederationInfo:
    """What a method is asked to do; both sides know it before round 1.

    Attributes:
        signatures: what each model of the arm takes and returns, by its name.
        server_parts: shapes of the tensors of the server's model, where it travels; else empty.
    """

    seed: int
    signatures: Mapping[str, Signature]
    server_model: str
    clients: tuple[ClientInfo, ...]
    public: int
    labelled_public: bool
    server_parts: tuple[tuple[int, ...], ...] = ()

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.signatures[self.server_model].classes

    def feature_width(self, model: str) -> int:
        """Length d of a model's features.

        Raises:
            Refusal: the model has no head.
        """
        return width(model, self.signatures[model])

    @cached_property
    def samples(self) -> tuple[int, ...]:
        """Private samples of each client."""
        return tuple(info.samples for info in self.clients)


@dataclass(frozen=True)
class Participant:
    """What the server and every client have in common.

    Attributes:
        seed: of the arm; names all random streams.
        round: counts from 1.
        federation: what both sides know of the arm.
        model: name of this side's model.
        train: the arm's training settings.
        public: inputs of the public set as the model of a name takes them, or None where this side has no
            copy; methods ask by `public_inputs` and `sampled_public`.
    """

    seed: int
    round: int
    federation: FederationInfo
    model: str
    train: Train
    public: Callable[[str], Tensor] | None

    @property
    def stream_client(self) -> int:
        return SERVER

    @property
    def signature(self) -> Signature:
        """What this side's model takes and returns."""
        return self.signature_of(self.model)

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.signature.classes

    def signature_of(self, model: str) -> Signature:
        return self.federation.signatures[model]

    def initial_weights(self, model: str | None = None) -> Tensor:
        """Initial weights (P,) of this side's model, or of another by name, from this side's stream."""
        return self.initial_model(model).weights

    def initial_model(self, model: str | None = None) -> ModelState:
        """This side's model, or another by name, before it has learned, from this side's stream."""
        name = model or self.model
        return ModelState.of(models.build_model(name, self.signature_of(name), self.seed, self.stream_client))

    def common_model(self) -> ModelState:
        """The initial model that all clients with this side's architecture have in common."""
        return ModelState.of(models.build_model(self.model, self.signature, self.seed, SERVER))

    def load(self, state: ModelState | Tensor, model: str | None = None) -> nn.Module:
        """Return a module with this state, or with these weights (P,) and all else of a fresh build.

        One module for each name is kept in a process and loaded anew: use one state at a time.
        """
        name = model or self.model
        held = state if isinstance(state, ModelState) else ModelState(state)
        return held.load_into(models.reusable(name, self.signature_of(name)))

    def stream(self, purpose: str) -> torch.Generator:
        """The random stream of this purpose, side and round."""
        return stream(self.seed, purpose, self.stream_client, self.round)

    @property
    def public_size(self) -> int:
        """N, the samples of the public set."""
        return self.federation.public

    def public_inputs(self, model: str | None = None) -> Tensor:
        """All public samples (N, ...) as this side's model takes them, or another by name."""
        assert self.public is not None, "the method does not declare that this side needs the public set"
        return self.public(model or self.model)

    def sampled_public(self, samples: int | None, round: int, model: str | None = None) -> Tensor:
        """Inputs of the public samples of a round (`sample_public`); all where ``samples`` is None."""
        inputs = self.public_inputs(model)
        if samples is None or samples >= len(inputs):
            return inputs
        return inputs[sample_public(self.seed, len(inputs), samples, round)]


def sample_public(seed: int, population: int, samples: int, round: int) -> Tensor:
    """Indices (n,) of a round's public samples, in order; server and clients draw the same, for no bytes."""
    if samples >= population:
        return torch.arange(population)
    order = torch.randperm(population, generator=stream(seed, "public", round=round))
    return order[:samples].sort().values


@dataclass(frozen=True)
class Client(Participant):
    """One client in one round, with its private data.

    Attributes:
        data: its private samples as they are, and their labels (n,).
        private: the same samples as the model of a name takes them; methods ask by `inputs`.
        server_model: name of the server's model.
    """

    id: int
    data: Labelled
    private: Callable[[str], Tensor]
    server_model: str

    @property
    def stream_client(self) -> int:
        return self.id

    def inputs(self, model: str | None = None) -> Tensor:
        """Private samples (n, ...) as this client's model takes them, or another by name."""
        return self.private(model or self.model)


@dataclass(frozen=True)
class Server(Participant):
    """The server in one round; ``public_labels`` (N,) only for a method that declares it needs them."""

    public_labels: Tensor | None

    @property
    def clients(self) -> tuple[ClientInfo, ...]:
        """What it knows of each client."""
        return self.federation.clients
