"""A SuperNode's side: runs `federation.client` on the node's own data, with its state on its own disk.

Flower starts a process for each message, so everything that a node keeps between two messages is in a
folder: its share of the data as tensors, its state after each of the last two rounds that it worked in, and
the newest model of each arm. None of these is ever sent, and no other user of the machine can read them.
"""

import json
import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from pydantic import ValidationError

from fedistill.communication.messages.base import contents
from fedistill.communication.tensor_specs import Content
from fedistill.config.messages import explain_errors
from fedistill.config.plugins import before_import
from fedistill.config.schema import Source
from fedistill.data.samples import none_of
from fedistill.data.task import Labelled, Task
from fedistill.errors import ExperimentError, FedistillError
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client import client_state, count_correct, run_client
from fedistill.federation.executor import prepare_process
from fedistill.flower.allowed_modules import AllowedModules, look_up
from fedistill.flower.app_template import asked_for
from fedistill.flower.parent_watch import end_with_parent
from fedistill.flower.serde import Answer, Order, open_order, seal_answer
from fedistill.models import registry as models
from fedistill.state import write_file
from fedistill.training.model_state import save_model

app = ClientApp()
_KEPT = 2
"""How many rounds' states are kept: the latest, and one more in case the server did not save the latest."""


class OwnDataError(ExperimentError):
    """A site's own data cannot be used. The message may quote the data, so it stays at the site."""


class Node:
    """One client of a run, in the folder that its node config names."""

    def __init__(self, run: dict[str, Any], own: dict[str, Any], session: str) -> None:
        """
        Args:
            run: the run config.
            own: the node config.
            session: name of the run; the node's folder is under it.

        Raises:
            ExperimentError: one of the configs is wrong.
        """
        self.experiment = asked_for(run)
        clients = self.experiment.task.clients
        client = own.get("partition-id")
        if not isinstance(client, int) or not 0 <= client < clients:
            raise ExperimentError(
                f"node config: partition-id = {client!r} must be a whole number from 0 to {clients - 1}"
            )
        self.client = client
        self._own, self._model = _own_data(own), own.get("model")
        self.allowed = AllowedModules.of(own)
        home = Path(os.environ.get("FLWR_HOME", Path.home() / ".flwr"))
        root = Path(str(own.get("state", home / "fedistill")))
        self.folder = root / session / f"client-{client}"
        self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    @cached_property
    def task(self) -> Task:
        """The task with the samples of this client only."""
        built = self._built
        if built is None or built["source"] != self._source:
            self._build()
        return Task.open(self._samples)

    def about(self, order: Order) -> Answer:
        """Introduce the node: its client number, whether its data are its own, and its task's fingerprint.

        If that fingerprint differs from the server's, which is the frame, build the task again: a wrong file
        may have been fixed in the meantime.
        """
        if self._built != {"source": self._source, "fingerprint": order.frame.decode(errors="replace")}:
            self._build()
        assert self._built is not None
        fingerprint = self._built["fingerprint"]
        return Answer(
            words={"client": self.client, "own-data": self._own is not None, "fingerprint": fingerprint}
        )

    def _build(self) -> None:
        # For most messages the data are prepared already; importing the data readers takes seconds.
        from fedistill.data.build import build_at_site, build_task

        config, seed = self.experiment.task, self.experiment.seed
        if self._own is None:
            whole = build_task(config, seed)
            private = whole.clients[self.client]
        else:
            try:
                whole, private = build_at_site(config, seed, self._own)
            except FedistillError as error:
                raise OwnDataError(str(error)) from None
        _only(whole, self.client, private).save(self._samples)
        built = {"source": self._source, "fingerprint": whole.fingerprint()}
        write_file(self.folder / "built.json", json.dumps(built).encode())

    @property
    def _samples(self) -> Path:
        return self.folder / "task.safetensors"

    @property
    def _source(self) -> dict[str, Any] | None:
        return None if self._own is None else self._own.model_dump(mode="json")

    @property
    def _built(self) -> dict[str, Any] | None:
        """Where the stored data came from and the fingerprint of their task, or None if none are stored."""
        path = self.folder / "built.json"
        found: dict[str, Any] | None = json.loads(path.read_bytes()) if path.exists() else None
        return found

    def arm(self, name: str) -> ReadyArm:
        found = [arm for arm in self.experiment.arms if arm.name == name]
        if not found:
            raise ExperimentError(f"an order names arm {name!r}, which the experiment does not have")
        arm = ReadyArm.of(found[0], self.experiment, self.task)
        if self._model is None:
            return arm
        sent = {
            content for kind in (arm.method.uplink, arm.method.downlink) if kind for content in contents(kind)
        }
        if Content.WEIGHTS in sent and arm.method.travels != "server":
            raise ExperimentError(
                f"node config: model = {self._model!r}, but method {arm.method.name} sends the weights of the"
                " model that the experiment names: remove `model`, or run a method that sends labels"
            )
        models.check_model(str(self._model), arm.signature(str(self._model)))
        dealt = [info.model for info in arm.federation.clients]
        dealt[self.client] = str(self._model)
        given = found[0].models.model_copy(update={"clients": dealt})
        return ReadyArm.of(found[0].model_copy(update={"models": given}), self.experiment, self.task)

    def work(self, order: Order) -> Answer:
        """Do the client's work of a round; keep its states before and after."""
        arm = self.arm(order.arm)
        outcome = run_client(arm, self.client, order.round, self._state(arm, before=order.round), order.frame)
        folder = self._states(arm)
        write_file(folder / f"{order.round}.safetensors", outcome.state)
        for round, path in self._kept(arm):
            if round > order.round:  # the server lost these rounds
                path.unlink()
        for _, path in self._kept(arm)[:-_KEPT]:
            path.unlink()
        self._save_model(arm, outcome.state)
        words: dict[str, Any] = {"seconds": outcome.seconds}
        if arm.method.has_client_models and arm.evaluates(
            order.round, arm.local_rounds(order.round, order.frame)
        ):
            words["counts"] = count_correct(arm, self.client, outcome.state)
        return Answer(outcome.frame, words)

    def _save_model(self, arm: ReadyArm, state: bytes) -> None:
        """Save the newest model where the site can use it."""
        if arm.method.has_client_models:
            name = arm.federation.clients[self.client].model
            module = models.reusable(name, arm.signature(name))
            path = self.folder / "models" / f"{self._states(arm).name}.safetensors"
            save_model(
                path, module, client_state(arm, self.client, state).model, {"arm": arm.name, "model": name}
            )

    def correct(self, order: Order) -> Answer:
        arm = self.arm(order.arm)
        return Answer(words={"counts": count_correct(arm, self.client, self._state(arm, before=None))})

    def _state(self, arm: ReadyArm, before: int | None) -> bytes:
        """Return the newest state, optionally of the rounds before a given one; empty if there is none."""
        kept = [path for round, path in self._kept(arm) if before is None or round < before]
        return kept[-1].read_bytes() if kept else b""

    def _kept(self, arm: ReadyArm) -> list[tuple[int, Path]]:
        return sorted((int(path.stem), path) for path in self._states(arm).glob("*.safetensors"))

    def _states(self, arm: ReadyArm) -> Path:
        return self.folder / str([one.name for one in self.experiment.arms].index(arm.name))


@app.query()
def hello(message: Message, context: Context) -> Message:
    return _answered(message, context, Node.about)


@app.train()
def work(message: Message, context: Context) -> Message:
    return _answered(message, context, Node.work)


@app.evaluate()
def correct(message: Message, context: Context) -> Message:
    return _answered(message, context, Node.correct)


def _answered(message: Message, context: Context, what: Callable[[Node, Order], Answer]) -> Message:
    """Answer a message; if anything fails, with an error message that the server can show."""
    end_with_parent()
    prepare_process()
    try:
        order = open_order(message)
        node = Node(dict(context.run_config), dict(context.node_config), order.session)
        with before_import(node.allowed.check):
            look_up(node.experiment)
            answer = what(node, order)
    except OwnDataError as error:
        print(error, flush=True)
        answer = Answer(words={"error": "its own data cannot be used; its log says why"})
    except FedistillError as error:
        answer = Answer(words={"error": str(error)})
    except Exception as error:
        traceback.print_exc()
        answer = Answer(words={"error": f"{type(error).__name__}; its log says where"})
    return seal_answer(answer, message)


def _own_data(own: dict[str, Any]) -> Source | None:
    """Return where a site's own samples are (`train`, `format`, `input`, `label`), or None if not set."""
    if "train" not in own:
        return None
    given = {key: own[key] for key in ("train", "format", "input", "label") if key in own}
    try:
        return Source.model_validate({"format": "parquet", **given})
    except ValidationError as error:
        raise ExperimentError(explain_errors(error, "node config", Source)) from None


def _only(task: Task, client: int, private: Labelled) -> Task:
    """Return a task in which only one client has samples; of the others only the counts are known."""
    nothing = Labelled(none_of(task.test.samples), task.test.labels[:0])
    clients = tuple(private if number == client else nothing for number in range(len(task.clients)))
    samples = tuple(
        len(private) if number == client else count for number, count in enumerate(task.samples())
    )
    return replace(task, clients=clients, public_labels=None, samples_elsewhere=samples)
