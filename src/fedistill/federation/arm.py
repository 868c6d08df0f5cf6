"""An arm made ready to run: its method, codec and models on a task. Both sides build it alike."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor, nn

from fedistill.attacks.base import Attack
from fedistill.attacks.registry import attack_of
from fedistill.communication.codecs import registry as codecs
from fedistill.communication.messages.base import MessageContext
from fedistill.communication.protocol import frame as frames
from fedistill.communication.protocol.message_coder import MessageCoder
from fedistill.communication.protocol.shared_state import SharedState
from fedistill.communication.secure_aggregation.fixed_point import Addend
from fedistill.config.inputs import InputKind
from fedistill.config.schema import Arm, Evaluate, Experiment, Sampling
from fedistill.config.secure_sums import SecureSums
from fedistill.config.training import OptimizerConfig, ResolvedTrain
from fedistill.data.task import Task
from fedistill.errors import ExperimentError, FrameError
from fedistill.federation.local_rounds import fixed_rounds
from fedistill.federation.metrics import CONFUSION, Metric, find_metrics
from fedistill.federation.privacy_settings import privacy_in, with_noise, with_noisy_votes
from fedistill.federation.scores import Answers
from fedistill.methods.participants import Client, ClientInfo, FederationInfo, Server
from fedistill.methods.registry import AnyMethod, create_method
from fedistill.methods.secure_sums import AddsUp
from fedistill.models import registry as models
from fedistill.models.huggingface.folder import check_digests
from fedistill.models.saved_start import load_starts
from fedistill.models.signature import Signature
from fedistill.privacy.mechanisms import DpSgd, Mechanism
from fedistill.rng import SERVER, scoped
from fedistill.training.model_state import ModelState, WeightLayout
from fedistill.training.threads import TORCH_THREADS

_MOST_CONTEXTS = 4096


def resolve_arm(config: Arm) -> Arm:
    """Return the arm with its method's and its codecs' settings written out.

    Raises:
        ExperimentError: the method, a codec, or a setting of one is unknown.
    """
    method = create_method(config)
    wanted = method.codec if config.codec is None else config.codec
    try:
        codec = codecs.resolved(wanted)
    except ExperimentError as error:
        raise ExperimentError(f"arm {config.name!r}: {error}") from None
    return config.model_copy(update={"codec": codec, **method.settings.model_dump(exclude_none=True)})


def settle_arm(config: Arm, data: InputKind) -> Arm:
    """Return the arm as `resolve_arm` does, with training settings that suit its kind of data written out.

    Raises:
        ExperimentError: as `resolve_arm`.
    """
    return resolve_arm(config).model_copy(update={"train": config.train.written_out(data)})


@dataclass(frozen=True)
class ReadyArm:
    """One arm on one task."""

    config: Arm
    train: ResolvedTrain
    task: Task
    method: AnyMethod
    coder: MessageCoder
    seed: int
    rounds: int
    sampling: Sampling
    evaluate: Evaluate
    metrics: tuple[Metric, ...]
    attack: Attack | None = None
    privacy: Mechanism | None = None
    server_threads: int = TORCH_THREADS

    @classmethod
    def of(cls, config: Arm, experiment: Experiment, task: Task) -> "ReadyArm":
        """Make an arm ready.

        Raises:
            ExperimentError: the method, a codec, or a setting of one is unknown.
        """
        config = resolve_arm(config)
        assert config.codec is not None
        seed = experiment.seed if config.seed is None else config.seed
        privacy = privacy_in(config)
        method = with_noisy_votes(create_method(config), privacy, config.name)
        up, down = codecs.pair(config.codec)
        return cls(
            config=config,
            train=config.train.resolved(task.signature.kind),
            task=task,
            method=method,
            coder=MessageCoder(up, down, seed, method.uplinks + method.downlinks),
            seed=seed,
            rounds=experiment.rounds,
            sampling=experiment.sampling,
            evaluate=experiment.evaluate,
            metrics=find_metrics(experiment.evaluate.metrics),
            attack=attack_of(experiment),
            privacy=privacy,
            server_threads=experiment.runtime.server_threads,
        )

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def secure_sums(self) -> SecureSums | None:
        """The settings of secure sums, or None if the server reads each client's message."""
        return self.config.secure_sums

    @property
    def adds_up(self) -> AddsUp:
        """The method, which has been found to work with secure sums before round 1."""
        assert isinstance(self.method, AddsUp)
        return self.method

    @cached_property
    def addends(self) -> dict[str, Addend]:
        """What clients add up in a round with secure sums, by name."""
        assert self.secure_sums is not None
        return self.adds_up.addends(self.federation, self.secure_sums)

    @cached_property
    def draws_by_torch_alone(self) -> bool:
        """Whether client steps draw from no global generators but torch's: no code is the user's own."""
        ours = self.attack is None and type(self.method).__module__.startswith("fedistill.methods.")
        optimizers = (self.train.optimizer, getattr(self.method.settings, "optimizer", None))
        own = [one for one in optimizers if isinstance(one, OptimizerConfig) and one.own]
        built_in = all(map(models.is_built_in, self.federation.signatures))
        return ours and built_in and not own and not self.train.own_loss

    @cached_property
    def federation(self) -> FederationInfo:
        """Who takes part with which models; builds each architecture once."""
        dealt, server = self.config.models.clients, self.config.models.server
        check_digests(self.config.models.hf_digests or {})
        layouts = {name: self._layout(name) for name in dict.fromkeys([*dealt, server])}
        samples = self.task.samples()
        names = [dealt[client % len(dealt)] for client in range(len(samples))]
        return FederationInfo(
            seed=self.seed,
            signatures={name: self.signature(name) for name in (*layouts, *self.method.frozen_models)},
            server_model=server,
            clients=tuple(
                ClientInfo(client, name, layouts[name].size, samples[client])
                for client, name in enumerate(names)
            ),
            public=0 if self.task.public is None else len(self.task.public),
            labelled_public=self.task.public_labels is not None,
            layouts=layouts,
            optimizer=self.train.optimizer,
            starts=self._starts(layouts),
        )

    def _starts(self, names: Iterable[str]) -> dict[str, ModelState]:
        """Return what models of these names start from, if it was saved.

        Raises:
            ExperimentError: it cannot be read, or fits none of them.
        """
        config = self.config.models
        if config.start is None:
            return {}
        built = {name: models.build_model(name, self.signature(name), self.seed, SERVER) for name in names}
        return load_starts(config.start, config.start_digest, built)

    @cached_property
    def mechanism(self) -> Mechanism | None:
        """What makes the arm private, with the noise that its budget allows.

        Raises:
            ExperimentError: no noise is enough; or a package is missing.
        """
        return with_noise(self.privacy, self.train, self.rounds)

    @cached_property
    def liars(self) -> tuple[int, ...]:
        """The clients that lie, ascending; the same in all arms of one seed.

        Raises:
            ExperimentError: the attack names a client that does not exist.
        """
        return () if self.attack is None else self.attack.liars(self.seed, len(self.task.clients))

    def attack_by(self, client: int, round: int) -> Attack | None:
        """Return what a client does in a round in place of its honest work, or None if it is honest."""
        if self.attack is None or round < self.attack.from_round or client not in self.liars:
            return None
        return self.attack

    def signature(self, model: str) -> Signature:
        """What a model of this arm takes and returns, by its name."""
        return self.task.signature_for(models.preprocessing(model))

    def answers(self, model: str, module: nn.Module, client: int | None = None) -> Answers:
        """Return what a module answers to the global test set, or to what a client has held out of its own.

        Args:
            model: the name of the model whose inputs it takes.
        """
        wanted = models.preprocessing(model)
        if client is None:
            inputs, labels = self.task.test_inputs(wanted), self.task.test.labels
        else:
            inputs, labels = self.task.own_test_inputs(client, wanted), self.task.own_tests[client].labels
        with scoped(self.seed, "evaluation"):  # a custom model may draw numbers in evaluation too
            return Answers.of(module, inputs, labels, self.evaluate.batch_size)

    @property
    def holds_out(self) -> bool:
        """Whether clients hold out some of their own samples to test on."""
        return bool(self.task.own_tests)

    @property
    def asks_for_confusion(self) -> bool:
        return CONFUSION in self.evaluate.metrics

    def model_for_sites(self) -> tuple[str, nn.Module] | None:
        """Return what clients can evaluate of the server: a name and the module, whatever its weights.

        The name is that of the model whose inputs it takes. None if the server has no model, or one that
        answers only together with the clients' models.
        """
        found = self.server_model()
        if found is None or self.method.needs.evaluation_at_clients:
            return None
        server = self.config.models.server
        return server if self.method.has_server_model else self.method.inputs_of(server), found[1]

    def parameters(self) -> dict[str, int]:
        """Trainable parameters: of the server's model, and of each architecture among the clients."""
        server = self.server_model()
        found = {} if server is None else {"server": models.count_parameters(server[1])}
        if self.method.clients_use_models:
            found |= {
                name: models.count_parameters(self._module(name)) for name in self.config.models.clients
            }
        return found

    def server_model(self) -> tuple[str, nn.Module] | None:
        """Return name and module of the server's model, whatever its weights, or None if it has none."""
        if self.method.has_server_model:
            return self.config.models.server, self._module(self.config.models.server)
        return self.method.server_net(self.federation)

    def message_context(self, client: int) -> MessageContext:
        """Return what both sides know in advance of a client's messages, the same in all rounds."""
        if client not in self._contexts:
            if len(self._contexts) == _MOST_CONTEXTS:
                self._contexts.clear()
            self._contexts[client] = self.method.message_context(self.federation, client)
        return self._contexts[client]

    @cached_property
    def _contexts(self) -> dict[int, MessageContext]:
        return {}

    def initial_shared_state(self, client: int) -> SharedState:
        """Return what both sides of a client's link know before its first exchange."""
        return self._initial_shared_states[self.travelling(client)]

    def local_rounds(self, round: int, frame: bytes) -> int:
        """Return the rounds of local training behind a client's reply, from the frame that it was sent.

        Raises:
            FrameError: the frame is damaged, or asks for more than the arm allows.
        """
        accumulate = self.config.accumulate
        if isinstance(accumulate, int):
            return fixed_rounds(accumulate, round)
        asked = frames.decode(frame).local if frame else 1
        if asked > accumulate.most:
            raise FrameError(
                f"a frame asks for {asked} rounds of local training, more than {accumulate.most}"
            )
        return asked

    def evaluates(self, round: int, local: int) -> bool:
        """Whether to evaluate after an exchange in this round, behind which are ``local`` local rounds."""
        return self._due(self.evaluate.every, round, local)

    def evaluates_clients(self, round: int, local: int) -> bool:
        """Whether to evaluate clients' models, if there are any, where `evaluates` says to evaluate."""
        every = self.evaluate.clients or self.evaluate.every
        return self.method.has_client_models and self._due(every, round, local)

    def evaluates_at_sites(self, round: int, local: int) -> bool:
        """Whether clients evaluate the server's model, where `evaluates` says to evaluate."""
        if not self.holds_out or not self._due(self.evaluate.clients or self.evaluate.every, round, local):
            return False
        return self.model_for_sites() is not None

    def _due(self, every: int, round: int, local: int) -> bool:
        return round // every > (round - local) // every or round == self.rounds

    def client(self, client: int, round: int, local: int = 1) -> Client:
        """What a client has to work with in a round; ``local``: rounds that it trains for."""
        train = self._train(round)
        steps = None if train.steps is None else train.steps * local
        return Client(
            seed=self.seed,
            round=round,
            federation=self.federation,
            model=self.federation.clients[client].model,
            train=train
            if local == 1
            else train.model_copy(update={"epochs": train.epochs * local, "steps": steps}),
            public=self._public("clients"),
            id=client,
            data=self.task.clients[client],
            private=lambda model: self.task.client_inputs(client, models.preprocessing(model)),
            server_model=self.config.models.server,
            dp_sgd=self.mechanism if isinstance(self.mechanism, DpSgd) else None,
            noise_name=self.name,
        )

    def server(self, round: int) -> Server:
        """What the server has to work with in a round."""
        return Server(
            seed=self.seed,
            round=round,
            federation=self.federation,
            model=self.config.models.server,
            train=self._train(round),
            public=self._public("server"),
            public_labels=self.task.public_labels if self.method.needs.public_labels else None,
            threads=self.server_threads,
        )

    def _train(self, round: int) -> ResolvedTrain:
        """Return the training settings of a round; before round 1, those of that round."""
        return self.train.in_round(max(round, 1), self.rounds)

    @cached_property
    def _initial_shared_states(self) -> dict[str, SharedState]:
        server = self.server(round=0)
        names = dict.fromkeys(self.travelling(info.id) for info in self.federation.clients)
        return {name: self.coder.start(self.method.known_weights(server, name)) for name in names}

    def _public(self, side: Literal["clients", "server"]) -> Callable[[str], Tensor] | None:
        if side not in self.method.needs.public or self.task.public is None:
            return None
        return lambda model: self.task.public_inputs(models.preprocessing(model))

    def travelling(self, client: int) -> str:
        """Name of the model whose weights cross between the server and a client."""
        server, own = self.config.models.server, self.federation.clients[client].model
        return server if self.method.travels == "server" else own

    def _layout(self, name: str) -> WeightLayout:
        layout = WeightLayout.of(self._module(name))
        if not layout.integers.values:
            return layout
        # Integers may be drawn, and those of the module that this process reuses are of another seed.
        return WeightLayout.of(models.build_model(name, self.signature(name), self.seed, SERVER))

    def _module(self, name: str) -> nn.Module:
        return models.reusable(name, self.signature(name))
