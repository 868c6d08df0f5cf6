"""FedGen: the server learns a generator of features, and clients train their predictors on its output."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedistill.communication.messages.base import MessageContext
from fedistill.communication.messages.weights import CountedWeights, GeneratorWeights
from fedistill.errors import FrameError, Refusal
from fedistill.methods.base import Method, Needs, Reply
from fedistill.methods.participants import Client, FederationInfo, Server
from fedistill.methods.shared.own_model import Learner, train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.methods.shared.weight_averaging import mean_model
from fedistill.models.features import Split
from fedistill.models.generator import Generator, GeneratorSettings, Predictor, learn, predictor
from fedistill.models.registry import reusable
from fedistill.rng import scoped
from fedistill.state import State
from fedistill.training.model_state import ModelState, WeightLayout, flatten, unflatten
from fedistill.training.optimizers import make_optimizer


class FedGenSettings(GeneratorSettings):
    share: Literal["all", "predictor"] = Field(
        default="all", description="which weights travel: all, or those of the last layer"
    )
    weight: float = Field(default=1.0, ge=0, description="alpha, weight of the loss on generated features")
    decay: float = Field(default=1.0, gt=0, le=1, description="factor on that weight after each round")


@dataclass(frozen=True)
class FedGenServer:
    """The generator's weights and optimizer state, the class shares (1, C), and what is shared."""

    generator: Tensor
    shared: ModelState
    shares: Tensor
    optimizer: State = field(default_factory=dict)

    @property
    def model(self) -> ModelState:
        """The averaged model, if all weights are shared."""
        return self.shared


@dataclass(frozen=True)
class FedGenClient:
    """The client's own model and optimizer, if it shares only its predictor."""

    own: Learner | None = None

    @property
    def model(self) -> ModelState | None:
        return None if self.own is None else self.own.model


class FedGen(Method[CountedWeights, GeneratorWeights, FedGenServer, FedGenClient]):
    """The server learns to generate features that the clients' predictors agree on; clients train on them.

    The generator G maps a label and noise to features. Server loss: ``E[sum_k a_k(y) CE(g_k(G(y)), y)] +
    diversity``, where g_k is client k's predictor (the last linear layer), a_k(y) its share of the samples of
    class y, and y is drawn from the label distribution of the round's clients. Client loss: ``CE(x, y) +
    alpha E[CE(g(G(y')), y')]``. With ``share = "predictor"`` only the last layer is shared: clients may have
    different models with the same feature width, and the server has no model. Exchanged: weights and label
    counts up; mean weights, the generator and the class shares down. Bytes: ``b (|θ| + C) / 8`` up,
    ``b (|θ| + |G| + C) / 8`` down, b bits per number. Codecs of updates cannot be used.

    The paper uses the loss of mean logits; a_k is from its code, which also has alpha = 10, a decay of 0.98,
    uniformly drawn labels, batch norm in the generator, and a KL term between outputs on real and made data.
    """

    name = "fedgen"
    paper = "Zhu et al., 2021, arXiv 2105.10056, algorithm 1, and its published code"
    exchanges = "weights or last layer and label counts; a feature generator back"
    byte_formula = "up = b(|θ|+C)/8, down = b(|θ|+|G|+C)/8"
    beyond_model = "how many samples of each class they have"
    uplink = CountedWeights
    downlink = GeneratorWeights
    ServerState = FedGenServer
    ClientState = FedGenClient
    needs = Needs(models="one architecture")
    Settings = FedGenSettings
    settings: FedGenSettings

    def __init__(self, settings: FedGenSettings) -> None:
        super().__init__(settings)
        self._all = settings.share == "all"
        if not self._all:
            self.needs = Needs(models="one width")
            self.clients_build_common = True

    @property
    def has_server_model(self) -> bool:
        return self._all

    @property
    def has_client_models(self) -> bool:
        return not self._all

    def check(self, federation: FederationInfo) -> None:
        super().check(federation)
        if len({self.message_context(federation, info.id).parameters for info in federation.clients}) > 1:
            raise Refusal(
                f"method {self.name}: either all models or none must have a bias in their last layer"
            )

    def message_context(self, federation: FederationInfo, client: int) -> MessageContext:
        context, name = super().message_context(federation, client), federation.clients[client].model
        signature = federation.signatures[name]
        split = Split(reusable(name, signature), name, signature)
        with torch.device("meta"):  # so that no initial weights are drawn
            generator = self._generator(split)
        context = replace(context, generator=WeightLayout.of(generator).parts)
        return context if self._all else WeightLayout.of(split.head).into(context)

    def start_server(self, server: Server) -> FedGenServer:
        initial, split = self._split(server)
        with scoped(server.seed, "generator"):
            generator = flatten(self._generator(split))
        shared = initial if self._all else ModelState(flatten(split.head))
        return FedGenServer(generator, shared, torch.zeros(1, split.head.out_features))

    def start_client(self, client: Client) -> FedGenClient:
        return FedGenClient() if self._all else FedGenClient(Learner(client.common_model()))

    def send(self, state: FedGenServer, server: Server, client: int) -> GeneratorWeights:
        return GeneratorWeights(state.shared.weights, state.generator, state.shares, state.shared.integers)

    def client_step(
        self, state: FedGenClient, client: Client, received: GeneratorWeights | None
    ) -> tuple[FedGenClient, CountedWeights]:
        assert received is not None
        learner = state.own or Learner(ModelState.received(received))
        model, optimizer = learner.restore(client)
        split = Split(model, client.model, client.signature)
        if not self._all:
            unflatten(split.head, received.values)
        generator = self._generator(split)
        unflatten(generator, received.generator)
        shares, random = received.shares[0].clamp(min=0), client.stream("generator")
        weight = self.settings.weight * self.settings.decay ** (client.round - 1)
        private = private_loss(client, model)

        def loss(logits: Tensor, at: Tensor) -> Tensor:
            value = private(logits, at)
            if not shares.any():  # the generator has not learned yet
                return value
            y, noise = generator.draw(shares, len(at), random)
            made = split.head(generator(y, noise).detach().to(split.head.weight.device))
            return value + weight * cross_entropy(made.to(y.device), y)

        train_private(split, optimizer, client, loss)
        counts = torch.bincount(client.data.labels, minlength=len(shares)).float()[None]
        kept = FedGenClient() if self._all else FedGenClient(learner.after(model, optimizer))
        sent = ModelState.of(model if self._all else split.head)
        return kept, CountedWeights(sent.weights, counts, sent.integers)

    def check_reply(self, state: FedGenServer, server: Server, reply: Reply[CountedWeights]) -> None:
        total, own = float(reply.message.counts.sum()), server.clients[reply.client].samples
        if total > 2 * own:  # a lossy codec may make an honest client's counts larger
            raise FrameError(f"its weights claim {total:.3g} samples, but the client has {own}")

    def server_step(
        self, state: FedGenServer, server: Server, replies: Iterable[Reply[CountedWeights]]
    ) -> FedGenServer:
        _, split = self._split(server)  # all predictors have the same shape
        predictors, counts = list[Predictor](), list[Tensor]()

        def trained() -> Iterable[tuple[CountedWeights, float]]:
            for reply in replies:
                unflatten(split.model if self._all else split.head, reply.message.values)
                predictors.append(predictor(split.head))
                counts.append(reply.message.counts[0].clamp(min=0))
                yield reply.message, max(float(counts[-1].sum()), 1.0)

        mean = mean_model(trained())
        if mean is None:
            return state
        generator = self._generator(split)
        unflatten(generator, state.generator)
        optimizer, each = make_optimizer(self.settings.optimizer, generator), torch.stack(counts)
        optimizer.restore(state.optimizer)
        learn(generator, optimizer, predictors, each, self.settings, server.stream("generator"))
        shares = each.sum(dim=0, keepdim=True) / each.sum()
        return FedGenServer(flatten(generator), mean, shares, optimizer.state())

    def _split(self, server: Server) -> tuple[ModelState, Split]:
        """Initial state of the first client's model, and that model."""
        name = server.clients[0].model
        initial = server.initial_model(name)
        return initial, Split(server.load(initial, name), name, server.signature_of(name))

    def _generator(self, split: Split) -> Generator:
        return Generator(split.head.out_features, split.head.in_features, self.settings)
