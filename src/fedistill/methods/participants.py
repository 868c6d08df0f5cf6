"""What a method works with: the server or a client in one round, and what both know about the arm."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from fedistill.config.training import OptimizerConfig, ResolvedTrain
from fedistill.data.task import Labelled
from fedistill.errors import TrainingError
from fedistill.models import registry as models
from fedistill.models.features import width
from fedistill.models.signature import Signature
from fedistill.privacy.mechanisms import DpSgd
from fedistill.rng import SERVER, stream
from fedistill.training.model_state import ModelState, WeightLayout
from fedistill.training.threads import TORCH_THREADS, threads


@dataclass(frozen=True)
class ClientInfo:
    """What the server knows about a client before the run.

    Attributes:
        model: name of its model.
        parameters: P, the number of weights of its model.
        samples: number of private samples, as registered.
    """

    id: int
    model: str
    parameters: int
    samples: int = 0


@dataclass(frozen=True)
class FederationInfo:
    """What the server and all clients know about the arm before round 1.

    Attributes:
        signatures: inputs and outputs of each model of the arm, by name.
        public: number of public samples.
        labelled_public: whether the public set has labels.
        layouts: what the weights and integers of each model of the arm consist of, by name.
        optimizer: the arm's, at its full learning rate, whatever a schedule makes of it in a round.
        starts: the saved state that all models of a name start from, where there is one, in place of a drawn
            one.
    """

    seed: int
    signatures: Mapping[str, Signature]
    server_model: str
    clients: tuple[ClientInfo, ...]
    public: int
    labelled_public: bool
    layouts: Mapping[str, WeightLayout] = field(default_factory=dict)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    starts: Mapping[str, ModelState] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.signatures[self.server_model].classes

    def feature_width(self, model: str) -> int:
        """Return the width d of a model's features.

        Raises:
            Refusal: the model has no head.
        """
        return width(model, self.signatures[model])

    @cached_property
    def samples(self) -> tuple[int, ...]:
        """Number of private samples of each client."""
        return tuple(info.samples for info in self.clients)


@dataclass(frozen=True)
class Participant:
    """What the server and every client have in common.

    Attributes:
        seed: seed of the arm, from which all random streams are derived.
        round: number of the round, from 1.
        federation: what the server and all clients know about the arm.
        model: name of this participant's model.
        train: the arm's training settings in this round.
        public: returns the inputs of the public set as the named model takes them, or None if this
            participant has no copy; methods use `public_inputs` and `sampled_public`.
    """

    seed: int
    round: int
    federation: FederationInfo
    model: str
    train: ResolvedTrain
    public: Callable[[str], Tensor] | None

    @property
    def stream_client(self) -> int:
        return SERVER

    @property
    def signature(self) -> Signature:
        """Inputs and outputs of this participant's model."""
        return self.signature_of(self.model)

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.signature.classes

    def signature_of(self, model: str) -> Signature:
        return self.federation.signatures[model]

    def initial_weights(self, model: str | None = None) -> Tensor:
        """Return the weights (P,) of `initial_model`."""
        return self.initial_model(model).weights

    def initial_model(self, model: str | None = None) -> ModelState:
        """Return the initial state of this participant's model, or of another one, from its own stream."""
        name = model or self.model
        return ModelState.of(models.build_model(name, self.signature_of(name), self.seed, self.stream_client))

    def common_model(self, model: str | None = None) -> ModelState:
        """Return the initial state that all who have this participant's architecture, or another, share.

        A method whose clients call this has `clients_build_common`.
        """
        name = model or self.model
        if name in self.federation.starts:
            return self.federation.starts[name]
        return ModelState.of(models.build_model(name, self.signature_of(name), self.seed, SERVER))

    def load(self, state: ModelState | Tensor, model: str | None = None, *, slot: int = 0) -> nn.Module:
        """Return a module with this state, or with these weights (P,) and otherwise freshly built.

        A process keeps one module per name and slot and loads each state into it: use one state at a time,
        or another slot.
        """
        name = model or self.model
        held = state if isinstance(state, ModelState) else ModelState(state)
        return held.load_into(models.reusable(name, self.signature_of(name), slot))

    def stream(self, purpose: str) -> torch.Generator:
        """Return the random stream for a purpose, this participant and this round."""
        return stream(self.seed, purpose, self.stream_client, self.round)

    @property
    def public_size(self) -> int:
        """N, the number of public samples."""
        return self.federation.public

    def public_inputs(self, model: str | None = None) -> Tensor:
        """Return all public samples (N, ...) as this participant's model takes them, or another by name."""
        if self.public is None:
            raise TrainingError(
                "the method asks for public samples without declaring it: give the class"
                ' `needs = Needs(public=("clients",))`, "server", or both'
            )
        return self.public(model or self.model)

    def sampled_public(self, samples: int | None, round: int, model: str | None = None) -> Tensor:
        """Return inputs of a round's public samples (`sample_public`), or of all if ``samples`` is None."""
        inputs = self.public_inputs(model)
        if samples is None or samples >= len(inputs):
            return inputs
        return inputs[sample_public(self.seed, len(inputs), samples, round)]


def sample_public(seed: int, population: int, samples: int, round: int) -> Tensor:
    """Return sorted indices (n,) of a round's public samples.

    Server and clients draw the same ones, so that nothing has to be sent.
    """
    if samples >= population:
        return torch.arange(population)
    order = torch.randperm(population, generator=stream(seed, "public", round=round))
    return order[:samples].sort().values


@dataclass(frozen=True)
class Client(Participant):
    """One client in one round, with its private data.

    Attributes:
        data: its private samples as stored, and their labels (n,).
        private: returns these samples as the named model takes them; methods use `inputs`.
        server_model: name of the server's model.
        dp_sgd: how its model is to be trained on these samples, unless without noise.
        noise_name: what the streams of its noise, and of its batches with noise, are named by; no two arms
            have the same.
        noisy_steps: how many steps each such training has taken; `methods.shared.own_model` notes them.
    """

    id: int
    data: Labelled
    private: Callable[[str], Tensor]
    server_model: str
    dp_sgd: DpSgd | None = None
    noise_name: str = ""
    noisy_steps: list[int] = field(default_factory=list, compare=False)

    @property
    def stream_client(self) -> int:
        return self.id

    def inputs(self, model: str | None = None) -> Tensor:
        """Return private samples (n, ...) as this client's model takes them, or another by name."""
        return self.private(model or self.model)


@dataclass(frozen=True)
class Server(Participant):
    """The server in one round.

    Attributes:
        public_labels: (N,), None unless the method declares that need.
        threads: of its own computation (`computing`).
        reliability: how far the method followed each client's reply in this round, from 0 to 1, by number;
            `note_reliability` adds to it. Empty for methods that follow all alike.
        left_out: why the method left clients' replies out that `check_reply` alone could not refuse.
    """

    public_labels: Tensor | None
    threads: int = TORCH_THREADS
    reliability: dict[int, float] = field(default_factory=dict, compare=False)
    left_out: dict[int, str] = field(default_factory=dict, compare=False)

    def computing(self) -> AbstractContextManager[None]:
        """Have torch compute with all threads that the experiment allows the server, inside.

        For what no client computes too, such as to train and evaluate the server's own model: another number
        of threads rounds otherwise. Replies are read outside, since clients may be at work meanwhile.
        """
        return threads(self.threads)

    def note_reliability(self, figures: Mapping[int, float]) -> None:
        """Note how far clients were followed, from 0 to 1, for results and report."""
        self.reliability.update(figures)

    def leave_out(self, client: int, reason: str) -> None:
        """Note that a reply does not count, since beside those of the others it cannot be true.

        The exchange stands all the same: both sides remember the reply. The client counts as missing.
        """
        self.left_out[client] = reason

    def initial_model(self, model: str | None = None) -> ModelState:
        """Return the initial state of the server's model, or of another one: the one that is shared."""
        return self.common_model(model)

    @property
    def clients(self) -> tuple[ClientInfo, ...]:
        """What the server knows about each client."""
        return self.federation.clients
