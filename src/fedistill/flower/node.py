"""A SuperNode: which clients it is, and their data on its own disk.

It holds its clients' shares of the data as tensors, and the folders of `NodeClient`. None is ever sent, and
nobody else on the machine may read them.
"""

import json
import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TypedDict

from fedistill.attacks.registry import refuse_on_network
from fedistill.communication.messages.base import contents
from fedistill.communication.tensor_specs import Content
from fedistill.config.section import RawTable
from fedistill.config.task import MOST_CLIENTS
from fedistill.data.samples import none_of
from fedistill.data.task import Labelled, Task
from fedistill.errors import ExperimentError, FedistillError
from fedistill.federation.arm import ReadyArm
from fedistill.flower.allowed_modules import AllowedModules, Config
from fedistill.flower.app_template import asked_for
from fedistill.flower.node_client import NodeClient
from fedistill.flower.node_config import SEVERAL, client_numbers, own_data, runtime
from fedistill.models.checks import check_model
from fedistill.privacy.registry import refuse_privacy_on_network
from fedistill.state import write_file


class OwnDataError(ExperimentError):
    """A site's own data cannot be used; what it says may quote them, and stays at the site."""


class _Built(TypedDict):
    """What a node's data were built from.

    Attributes:
        clients: whose samples they are.
        source: of its own samples, or None if it has shares of the experiment's.
        fingerprint: of the task, see `Task.fingerprint`.
    """

    clients: list[int]
    source: RawTable | None
    fingerprint: str


class Node:
    """One SuperNode of a run.

    Attributes:
        clients: their numbers, ascending.
    """

    def __init__(self, run: Config, own: Config, session: str) -> None:
        """From the run config, the node config and the session's name.

        Raises:
            ExperimentError: one of the configs is wrong.
        """
        self.experiment = asked_for(run)
        refuse_on_network(self.experiment)
        refuse_privacy_on_network(self.experiment)
        # How many sites a natural partition has is known once the data have been read.
        self.clients = client_numbers(own, self.experiment.task.clients or MOST_CLIENTS)
        self._config = own
        self._own, self._model = own_data(own), own.get("model")
        if self._own is not None and len(self.clients) > 1:
            raise ExperimentError(
                f"node config: `train` is the data of one client, but {SEVERAL} names {len(self.clients)}:"
                " start a node for each site that has data of its own"
            )
        self.allowed = AllowedModules.of(own)
        self.runtime = runtime(own, self.experiment.runtime)
        home = Path(os.environ.get("FLWR_HOME", Path.home() / ".flwr"))
        self._session = Path(str(own.get("state", home / "fedistill"))) / session
        self.folder = self.folder_of(self.clients[0])
        self._session.mkdir(mode=0o700, parents=True, exist_ok=True)

    def folder_of(self, client: int) -> Path:
        return self._session / f"client-{client}"

    @cached_property
    def task(self) -> Task:
        """The task with its own clients' samples alone.

        Raises:
            OwnDataError: the site's own data cannot be used.
            ExperimentError: the experiment's cannot, or the node is a client that there is not.
        """
        built = self._built
        if built is None or (built["clients"], built["source"]) != (self.clients, self._source):
            self._build()
        return Task.open(self._samples)

    def fingerprint(self, expected: str) -> str:
        """Return that of the task as it has been built here.

        If it is not the expected one, which the server has, it is built again: a wrong file may have been
        replaced. Raises what `task` does.
        """
        if self._built != {"clients": self.clients, "source": self._source, "fingerprint": expected}:
            self._build()
        assert self._built is not None
        return self._built["fingerprint"]

    @property
    def has_own_data(self) -> bool:
        """Whether its samples are its own, and not a share of the experiment's."""
        return self._own is not None

    def _build(self) -> None:
        # For most messages the data have been built; the readers of data take seconds to import.
        from fedistill.data.build import build_at_site, build_task

        config, seed = self.experiment.task, self.experiment.seed
        held: dict[int, Labelled] = {}
        if self._own is None:
            whole = build_task(config, seed, scratch=self._session)
            client_numbers(self._config, len(whole.clients))
            private = {client: whole.clients[client] for client in self.clients}
            if whole.own_tests:
                held = {client: whole.own_tests[client] for client in self.clients}
        else:
            self._check_scaling()
            (client,) = self.clients
            try:
                whole, mine, mine_held = build_at_site(config, seed, self._own, client, self._session)
            except FedistillError as error:
                raise OwnDataError(str(error)) from None
            private, held = {client: mine}, {} if mine_held is None else {client: mine_held}
        _only(whole, private, held).save(self._samples)
        built: _Built = {
            "clients": self.clients,
            "source": self._source,
            "fingerprint": whole.fingerprint(),
        }
        write_file(self.folder / "built.json", json.dumps(built).encode())

    def _check_scaling(self) -> None:
        """Raise where the scale of a table comes from sums: unlike what is wrong with data, all may know."""
        table = self.experiment.task.table
        if table is not None and table.scaling == "sums":
            raise ExperimentError(
                'task.table.scaling = "sums" needs the sums of every site before the task is built, and those'
                " of data that are only at a site, as its node config has them by `train`, do not reach it:"
                ' set it to "public"'
            )

    @property
    def _samples(self) -> Path:
        return self.folder / "task.safetensors"

    @property
    def _source(self) -> RawTable | None:
        return None if self._own is None else self._own.model_dump(mode="json")

    @property
    def _built(self) -> _Built | None:
        """What has been built here, or None if nothing has."""
        path = self.folder / "built.json"
        found: _Built | None = json.loads(path.read_bytes()) if path.exists() else None
        return found

    def client(self, client: int, arm: ReadyArm) -> NodeClient:
        """Return one of its clients in an arm.

        Raises:
            ExperimentError: the node is not that client.
        """
        if client not in self.clients:
            raise ExperimentError(f"an order is for client {client}, which this node is not")
        return NodeClient(client, arm, self.experiment, self._own, self.folder_of(client))

    def arm(self, name: str) -> ReadyArm:
        """Return an arm as it is at this node.

        Raises:
            ExperimentError: there is no such arm, or it does not go with the node's own data or model.
        """
        found = [arm for arm in self.experiment.arms if arm.name == name]
        if not found:
            raise ExperimentError(f"an order names arm {name!r}, which the experiment does not have")
        arm = ReadyArm.of(found[0], self.experiment, self.task)
        if self._own is not None and arm.secure_sums is not None and arm.adds_up.bounded_by_samples:
            raise ExperimentError(
                f"secure sums of method {arm.method.name} are bounded by how many samples each site has, and"
                " the server does not know that of a site's own data: take secure_sums out, or run `dsfl` or"
                " `voting`"
            )
        if self._model is None:
            return arm
        sent = {content for kind in arm.method.uplinks + arm.method.downlinks for content in contents(kind)}
        if Content.WEIGHTS in sent and arm.method.travels != "server":
            raise ExperimentError(
                f"node config: model = {self._model!r}, but method {arm.method.name} sends the weights of the"
                " model that the experiment names: take `model` away, or run a method that sends labels"
            )
        check_model(str(self._model), arm.signature(str(self._model)))
        dealt = [info.model for info in arm.federation.clients]
        for client in self.clients:
            dealt[client] = str(self._model)
        given = found[0].models.model_copy(update={"clients": dealt})
        return ReadyArm.of(found[0].model_copy(update={"models": given}), self.experiment, self.task)


def _only(task: Task, private: dict[int, Labelled], held: dict[int, Labelled]) -> Task:
    """A task in which some clients have samples, and of all others there is but their number."""
    nothing = Labelled(none_of(task.test.samples), task.test.labels[:0])

    def alone(own: dict[int, Labelled]) -> tuple[Labelled, ...]:
        return tuple(own.get(number, nothing) for number in range(len(task.clients)))

    samples = tuple(
        len(private[number]) if number in private else count for number, count in enumerate(task.samples())
    )
    return replace(
        task,
        clients=alone(private),
        own_tests=alone(held) if held else (),
        public_labels=None,
        samples_elsewhere=samples,
    )
