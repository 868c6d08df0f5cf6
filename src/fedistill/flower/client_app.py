"""A SuperNode's part: its own data, its own state on its own disk, and `federation.client` in between.

Flower starts a process for each message, so all that a node is between two messages lies in a folder: its
share of the data as tensors, its state after each of the last two rounds that it worked in, and the newest
model of each arm. None is ever sent, and nobody else on the machine may read them.
"""

import json
import os
import secrets
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TypedDict

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from pydantic import ValidationError

from fedistill.attacks.registry import refuse_on_network
from fedistill.communication.messages.base import contents
from fedistill.communication.tensor_specs import Content
from fedistill.config.messages import explain_errors
from fedistill.config.plugins import before_import
from fedistill.config.schema import RuntimeConfig
from fedistill.config.section import RawTable
from fedistill.config.task import MOST_CLIENTS, Source
from fedistill.data.samples import none_of
from fedistill.data.task import Labelled, Task
from fedistill.errors import ExperimentError, FedistillError, TrainingError
from fedistill.experiment.saved_models import about_site, save_client_model
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client import ClientResult, is_secure_turn, run_client
from fedistill.federation.client_evaluation import evaluate_client
from fedistill.federation.executor import prepare_process
from fedistill.federation.scores import Scores
from fedistill.flower.allowed_modules import AllowedModules, Config, look_up
from fedistill.flower.app_template import asked_for
from fedistill.flower.parent_watch import end_with_parent
from fedistill.flower.serde import Answer, Order, open_order, seal_answer
from fedistill.models.checks import check_model
from fedistill.privacy.registry import refuse_privacy_on_network
from fedistill.state import write_file
from fedistill.training.devices import computing

app = ClientApp()
_OWN_KEYS = ("format", "input", "label", "separator", "encoding", "drop_missing", "background", "white_level")
"""Settings of `[task]` that a node config may have for the site's own data."""


class OwnDataError(ExperimentError):
    """A site's own data cannot be used; what it says may quote them, and stays at the site."""


class _Built(TypedDict):
    """What a node's data were built from.

    Attributes:
        source: of its own samples, or None if it has a share of the experiment's.
        fingerprint: of the task, see `Task.fingerprint`.
    """

    source: RawTable | None
    fingerprint: str


class Node:
    """One client of a run, in the folder that its node config names."""

    def __init__(self, run: Config, own: Config, session: str) -> None:
        """From the run config, the node config and the session's name.

        Raises:
            ExperimentError: one of the configs is wrong.
        """
        self.experiment = asked_for(run)
        refuse_on_network(self.experiment)
        refuse_privacy_on_network(self.experiment)
        # How many sites a natural partition has is known once the data have been read.
        self.client = _client_number(own, self.experiment.task.clients or MOST_CLIENTS)
        self._config = own
        self._own, self._model = _own_data(own), own.get("model")
        self.allowed = AllowedModules.of(own)
        self.runtime = _runtime(own, self.experiment.runtime)
        home = Path(os.environ.get("FLWR_HOME", Path.home() / ".flwr"))
        root = Path(str(own.get("state", home / "fedistill")))
        self.folder = root / session / f"client-{self.client}"
        self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    @cached_property
    def task(self) -> Task:
        """The task with this client's samples alone."""
        built = self._built
        if built is None or built["source"] != self._source:
            self._build()
        return Task.open(self._samples)

    def about(self, order: Order) -> Answer:
        """Who this is: its client's number, whether its data are its own, and the task as it has built it.

        If what it has built is not what the server has, whose fingerprint is the frame, it builds again: a
        wrong file may have been replaced.
        """
        if self._built != {"source": self._source, "fingerprint": order.frame.decode(errors="replace")}:
            self._build()
        assert self._built is not None
        fingerprint = self._built["fingerprint"]
        return Answer(
            words={"client": self.client, "own-data": self._own is not None, "fingerprint": fingerprint}
        )

    def _build(self) -> None:
        # For most messages the data have been built; the readers of data take seconds to import.
        from fedistill.data.build import build_at_site, build_task

        config, seed = self.experiment.task, self.experiment.seed
        if self._own is None:
            whole = build_task(config, seed, scratch=self.folder.parent)
            number = _client_number(self._config, len(whole.clients))
            private, held = whole.clients[number], whole.own_tests[number] if whole.own_tests else None
        else:
            self._check_scaling()
            try:
                whole, private, held = build_at_site(config, seed, self._own, self.client, self.folder.parent)
            except FedistillError as error:
                raise OwnDataError(str(error)) from None
        _only(whole, self.client, private, held).save(self._samples)
        built: _Built = {"source": self._source, "fingerprint": whole.fingerprint()}
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

    def arm(self, name: str) -> ReadyArm:
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
        dealt[self.client] = str(self._model)
        given = found[0].models.model_copy(update={"clients": dealt})
        return ReadyArm.of(found[0].model_copy(update={"models": given}), self.experiment, self.task)

    def work(self, order: Order) -> Answer:
        """Do the client's part of a round; keep its state before and after.

        Later turns of a secure sum are a part of the round, but no work: `_next_turn`.
        """
        arm = self.arm(order.arm)
        if arm.secure_sums is not None and is_secure_turn(order.frame):
            return self._next_turn(arm, order)
        for left in self._states(arm).parent.glob("*/secure-sum"):
            left.unlink()  # of a sum that ended without this client
        outcome = self._run(arm, order, self._state(arm, before=order.round))
        self._keep_for_next_turn(arm, outcome.kept)
        folder = self._states(arm)
        write_file(folder / f"{order.round}.safetensors", outcome.state)
        for round, path in self._kept(arm):
            if round > order.round:  # of a future that the server has lost
                path.unlink()
        # The last, and those of rounds that a server may have lost and begins again.
        kept = self.experiment.checkpoint.every + 1
        for _, path in self._kept(arm)[:-kept]:
            path.unlink()
        self._save_model(arm, order.round, outcome.state)
        words: dict[str, float | str | list[int]] = {
            "seconds": outcome.seconds,
            "cost": [outcome.cost.multiply_adds, outcome.cost.memory],
        }
        due = order.round, arm.local_rounds(order.round, order.frame)
        if arm.evaluates(*due) and arm.evaluates_clients(*due):
            scores = evaluate_client(arm, self.client, outcome.state)
            words |= {"counts": scores.correct, **_words(scores)}
        return Answer(outcome.frame, words)

    def _next_turn(self, arm: ReadyArm, order: Order) -> Answer:
        """Answer the server's frame of a turn of a secure sum, from what was kept after the turn before."""
        path = self._between_turns(arm)
        taken = path.with_name("secure-sum-taken")
        try:  # only one of two orders that come at once finds it: each turn is answered once
            path.rename(taken)
            kept = taken.read_bytes()
            taken.unlink()
        except FileNotFoundError:
            kept = b""
        outcome = self._run(arm, order, kept)
        self._keep_for_next_turn(arm, outcome.kept)
        return Answer(outcome.frame, {"seconds": outcome.seconds})

    def _run(self, arm: ReadyArm, order: Order, state: bytes) -> ClientResult:
        try:
            return run_client(arm, self.client, order.round, state, order.frame, secrets.token_bytes)
        except TrainingError as error:  # the server knows its round and its client
            raise TrainingError(error.what) from error

    def _keep_for_next_turn(self, arm: ReadyArm, kept: bytes) -> None:
        """Keep the secrets of a secure sum for its next turn; after the last one, or without one, none."""
        path = self._between_turns(arm)
        if kept:
            write_file(path, kept)
        else:
            path.unlink(missing_ok=True)

    def _between_turns(self, arm: ReadyArm) -> Path:
        return self._states(arm) / "secure-sum"

    def _save_model(self, arm: ReadyArm, round: int, state: bytes) -> None:
        """Leave the newest model where its site can use it."""
        if arm.method.has_client_models:
            path, about = self.folder / "models" / self._states(arm).name, about_site(arm, round)
            save_client_model(path, self.experiment, arm, self.client, state, about, own=self._own)

    def evaluate(self, order: Order) -> Answer:
        """Evaluate the client's own model, or the server's in the order's frame on the client's samples."""
        arm = self.arm(order.arm)
        scores = evaluate_client(arm, self.client, self._state(arm, before=None), order.frame)
        if order.frame:
            return Answer(scores.encode())
        return Answer(words={"counts": scores.correct, **_words(scores)})

    def _state(self, arm: ReadyArm, before: int | None) -> bytes:
        """The newest state, of rounds before one."""
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
def evaluate(message: Message, context: Context) -> Message:
    return _answered(message, context, Node.evaluate)


def _answered(message: Message, context: Context, what: Callable[[Node, Order], Answer]) -> Message:
    """Answer with an error in words where anything goes wrong, so that the server can name it."""
    end_with_parent()
    prepare_process()
    try:
        order = open_order(message)
        node = Node(context.run_config, context.node_config, order.session)
        with before_import(node.allowed.check):
            look_up(node.experiment)
            with computing(node.runtime):
                answer = what(node, order)
    except OwnDataError as error:
        print(error, flush=True)
        answer = Answer(words={"error": "its own data cannot be used; its log says why"})
    except FedistillError as error:
        answer = Answer(words={"error": str(error)})
    except Exception as error:  # whatever it is, the server hears of it at once and the site's log has it all
        traceback.print_exc()
        answer = Answer(words={"error": f"{type(error).__name__}; its log says where"})
    return seal_answer(answer, message)


def _words(scores: Scores) -> dict[str, str]:
    """What an answer says of scores beside the counts; nothing where there is nothing else."""
    return {"scores": scores.encode().decode()} if scores.beyond_counts() else {}


def _client_number(own: Config, clients: int) -> int:
    """Return the client that a site's node config names, checked against the number of clients."""
    client = own.get("partition-id")
    if not isinstance(client, int) or not 0 <= client < clients:
        raise ExperimentError(
            f"node config: partition-id = {client!r} must be a whole number from 0 to {clients - 1}"
        )
    return client


def _runtime(own: Config, asked: RuntimeConfig) -> RuntimeConfig:
    """Return where a site's models compute: as its node config says, or else as the experiment does."""
    if "device" not in own:
        return asked
    try:
        return RuntimeConfig.model_validate(asked.model_dump() | {"device": own["device"]})
    except ValidationError as error:
        raise ExperimentError(explain_errors(error, "node config", RuntimeConfig)) from None


def _own_data(own: Config) -> Source | None:
    """Where a site's own samples are, and how they are read: `train` and, beside it, any of `_OWN_KEYS`."""
    if "train" not in own:
        return None
    given = {key: own[key] for key in ("train", *_OWN_KEYS) if key in own}
    try:
        return Source.model_validate({"format": "parquet", **given})
    except ValidationError as error:
        raise ExperimentError(explain_errors(error, "node config", Source)) from None


def _only(task: Task, client: int, private: Labelled, held: Labelled | None) -> Task:
    """A task in which one client has samples, and of all others there is but their number."""
    nothing = Labelled(none_of(task.test.samples), task.test.labels[:0])

    def alone(own: Labelled) -> tuple[Labelled, ...]:
        return tuple(own if number == client else nothing for number in range(len(task.clients)))

    samples = tuple(
        len(private) if number == client else count for number, count in enumerate(task.samples())
    )
    return replace(
        task,
        clients=alone(private),
        own_tests=() if held is None else alone(held),
        public_labels=None,
        samples_elsewhere=samples,
    )
