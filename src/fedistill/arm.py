"""An arm made ready to run: its method, codec and models on a task. Both sides build it alike."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from fedistill import models
from fedistill.config import Arm, Evaluate, Experiment, Sampling
from fedistill.errors import ExperimentError
from fedistill.methods import AnyMethod, create
from fedistill.methods.base import Client, Peer, Plan, Server
from fedistill.sampling import chosen
from fedistill.tasks.task import Task
from fedistill.train import flatten
from fedistill.wire import codec, message
from fedistill.wire.message import Sizes


def parts(config: Arm) -> tuple[AnyMethod, codec.Codec]:
    """Return the method and the codec of an arm.

    Raises:
        ExperimentError: the method, a setting of it, or the codec is unknown.
    """
    method = create(config)
    try:
        return method, codec.get(config.codec)
    except ExperimentError as error:
        raise ExperimentError(f"arm {config.name!r}: {error}") from None


@dataclass(frozen=True)
class ReadyArm:
    """One arm on one task."""

    config: Arm
    task: Task
    method: AnyMethod
    codec: codec.Codec
    seed: int
    rounds: int
    sampling: Sampling
    evaluate: Evaluate

    @classmethod
    def of(cls, config: Arm, experiment: Experiment, task: Task) -> "ReadyArm":
        """Make an arm ready.

        Raises:
            ExperimentError: the method, a setting of it, or the codec is unknown.
        """
        method, coder = parts(config)
        return cls(
            config=config,
            task=task,
            method=method,
            codec=coder,
            seed=experiment.seed if config.seed is None else config.seed,
            rounds=experiment.rounds,
            sampling=experiment.sampling,
            evaluate=experiment.evaluate,
        )

    @property
    def name(self) -> str:
        return self.config.name

    @cached_property
    def plan(self) -> Plan:
        """Who takes part with which models; builds each architecture once."""
        dealt = self.config.models.clients
        sizes = {name: len(flatten(self._module(name))) for name in dict.fromkeys(dealt)}
        names = [dealt[client % len(dealt)] for client in range(len(self.task.clients))]
        return Plan(
            signature=self.task.signature,
            server_model=self.config.models.server,
            peers=tuple(Peer(client, name, sizes[name]) for client, name in enumerate(names)),
            public=0 if self.task.public is None else len(self.task.public),
            labelled_public=self.task.public_labels is not None,
        )

    def parameters(self) -> dict[str, int]:
        """Trainable parameters: of the server's model, and of each architecture among the clients."""
        found = {"server": models.count(self._module(self.config.models.server))}
        if not self.method.has_server_model:
            found = {}
        if self.method.clients_work:
            found |= {name: models.count(self._module(name)) for name in self.config.models.clients}
        return found

    def sizes(self, client: int) -> Sizes:
        return self.method.sizes(self.plan, client)

    def client(self, client: int, round: int) -> Client:
        """What a client has to work with in a round."""
        return Client(
            seed=self.seed,
            round=round,
            signature=self.task.signature,
            model=self.plan.peers[client].model,
            public=self._public(self.method.clients_need_public),
            train=self.config.train,
            id=client,
            data=self.task.clients[client],
        )

    def server(self, round: int) -> Server:
        """What the server has to work with in a round."""
        needed = self.method.needs_public_labels
        return Server(
            seed=self.seed,
            round=round,
            signature=self.task.signature,
            model=self.config.models.server,
            public=self._public(self.method.server_needs_public),
            train=self.config.train,
            peers=self.plan.peers,
            public_labels=self.task.public_labels if needed else None,
        )

    def public_bytes(self) -> int:
        """One copy of the public set for each client that needs one."""
        if self.task.public is None or not self.method.clients_need_public:
            return 0
        return self.task.public.bytes * len(self.task.clients)

    def setup_frame(self) -> bytes:
        """The frame that each client gets before round 1, or nothing.

        Clients that hold the public set build the vocabulary from it; others are sent it. A tokenizer of
        the user's own is sent to all.
        """
        alone = self.method.uplink is None and self.method.downlink is None
        builds = self.method.clients_need_public and self.task.vocabulary_from_public
        return b"" if alone or builds else self.task.vocabulary_frame

    def expected_bytes(self) -> tuple[int, int]:
        """Bytes up and down of a full round once all is under way; exact for codecs of fixed width."""
        participants = len(chosen(self.sampling, len(self.task.clients), self.seed, round=1))
        totals = []
        for kind in (self.method.uplink, self.method.downlink):
            lengths = [
                0 if kind is None else message.length(kind, self.codec, self.sizes(peer.id))
                for peer in self.plan.peers
            ]
            totals.append(sum(lengths) * participants // len(lengths))
        return totals[0], totals[1]

    def _public(self, needed: bool) -> Tensor | None:
        return self.task.public.inputs if needed and self.task.public is not None else None

    def _module(self, name: str) -> nn.Module:
        return models.reusable(name, self.task.signature)
