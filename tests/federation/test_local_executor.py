"""Clients in this process and in worker processes: the same outcomes, and a clean end when one dies."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from fedistill import parse
from fedistill.communication.protocol.frame import decode
from fedistill.config.schema import Experiment, RuntimeConfig
from fedistill.data.task import Task
from fedistill.errors import RuntimeFailure, TrainingError
from fedistill.experiment.runner import prepare
from fedistill.federation.client import ClientResult
from fedistill.federation.executor import Executor, Job, worker_count
from fedistill.federation.local_executor import ProcessExecutor, SerialExecutor, start_executor
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run
from fedistill.state import decode_state

MODULE = '''
"""Models that misbehave in training, each in its own way; files in the folder HERE tell how it went."""

import os
import pathlib
import signal
import time

import torch
from torch import nn

HERE = pathlib.Path(__file__).parent


class Net(nn.Module):
    def __init__(self, signature):
        super().__init__()
        self.head = nn.Linear(signature.shape[1] * signature.shape[2], signature.classes)

    def forward(self, x):
        if self.training:
            self.mischief()
        return self.head(x.flatten(1))

    def mischief(self):
        pass


def plain(signature):
    return Net(signature)


class Kills(Net):
    def mischief(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Leaves(Net):
    def mischief(self):
        os._exit(3)


class Stuck(Net):
    def mischief(self):
        (HERE / f"stuck-{os.getpid()}").touch()
        time.sleep(600)


class Raises(Net):
    def mischief(self):
        raise KeyError("no such thing")


class Waits(Net):
    """Until the test lets it go."""

    def mischief(self):
        (HERE / "waiting").touch()
        while not (HERE / "go").exists():
            time.sleep(0.01)


class WaitsLonger(Net):
    def mischief(self):
        while not (HERE / "go on").exists():
            time.sleep(0.01)


class Frees(Net):
    """Lets the one that waits go, once it has trained itself."""

    def forward(self, x):
        if not self.training:
            (HERE / "go").touch()
        return super().forward(x)


class Nan(Net):
    def forward(self, x):
        return super().forward(x) * (float("nan") if self.training else 1.0)


class Unfit(Net):
    """Trains well and cannot be evaluated."""

    def forward(self, x):
        if not self.training:
            raise ValueError("not today")
        return super().forward(x)
'''


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a module `odd_models`, which this process and its workers can import."""
    (tmp_path / "odd_models.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("odd_models", None)


@pytest.fixture(autouse=True)
def no_children_left() -> Iterator[None]:
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) <= before


def experiment(*arms: dict[str, Any], clients: int = 4, **more: Any) -> Experiment:
    raw: dict[str, Any] = {
        "rounds": 2,
        "task": {"name": "digits", "clients": clients, "limit": 120, "public": 40},
        "models": {"clients": ["mlp-s", "cnn-s"], "server": "mlp-s"},
        "train": {"batch_size": 16},
        "arms": list(arms),
    }
    return parse({**raw, **more}, "test")


def arm(name: str, *functions: str, method: str = "local") -> dict[str, Any]:
    """An arm whose clients have these functions of `odd_models` as models."""
    models = [f"odd_models:{function}" for function in functions]
    return {"name": name, "method": method, "models": {"clients": models, "server": "odd_models:plain"}}


def jobs(clients: list[int]) -> list[Job]:
    return [(client, b"", b"") for client in clients]


def bytes_of(outcomes: Iterator[ClientResult]) -> list[tuple[bytes, bytes]]:
    return [(outcome.state, outcome.frame) for outcome in outcomes]


@pytest.mark.parametrize("clients", [3, 40])
def test_serial_and_processes_have_equal_outcomes_in_the_order_of_the_jobs(clients: int) -> None:
    wanted = experiment({"method": "dsfl"}, clients=clients)
    task, _ = prepare(wanted)
    # Not in the order of the clients, nor all of them: the order is that of the jobs.
    order = [client for client in reversed(range(clients)) if client != 1]
    with SerialExecutor(wanted, task) as executor:
        expected = bytes_of(executor.run_clients("dsfl", 1, jobs(order)))
        later = [(client, state, b"") for client, (state, _) in zip(order, expected, strict=True)]
        counts = list(executor.evaluate("dsfl", later))
    assert [decode(frame).peer - 1 for _, frame in expected] == order
    assert len({state for state, _ in expected}) == len(order)
    with ProcessExecutor(2, wanted, task) as executor:
        assert bytes_of(executor.run_clients("dsfl", 1, jobs(order))) == expected
        assert list(executor.evaluate("dsfl", later)) == counts
        # The same workers again, in another order.
        again = bytes_of(executor.run_clients("dsfl", 1, jobs(order[::-1])))
        assert again == expected[::-1]


def test_images_large_enough_for_onednns_layout_have_equal_outcomes() -> None:
    task = {"name": "digits", "clients": 2, "limit": 120, "public": 40, "image_size": [28, 28]}
    cnn = {"clients": ["cnn-s"], "server": "cnn-s"}
    wanted = experiment({"method": "dsfl"}, task=task, models=cnn)
    built, _ = prepare(wanted)
    with SerialExecutor(wanted, built) as executor:
        expected = bytes_of(executor.run_clients("dsfl", 1, jobs([0, 1])))
    with ProcessExecutor(2, wanted, built) as executor:
        assert bytes_of(executor.run_clients("dsfl", 1, jobs([0, 1]))) == expected


def test_outcomes_are_handed_on_in_order_though_the_first_is_last_to_end(models: Path) -> None:
    wanted = experiment(arm("a", "Waits", "Frees", method="dsfl"), clients=2)
    task, _ = prepare(wanted)
    with SerialExecutor(wanted, task) as executor:
        expected = bytes_of(executor.run_clients("a", 1, jobs([1, 0])))[::-1]
    (models / "go").unlink()
    with ProcessExecutor(2, wanted, task) as executor:
        assert bytes_of(executor.run_clients("a", 1, jobs([0, 1]))) == expected


def test_seconds_of_work_are_those_of_the_client() -> None:
    wanted = experiment({"method": "local"}, clients=2)
    task, _ = prepare(wanted)
    with SerialExecutor(wanted, task) as executor:
        assert all(outcome.seconds > 0 for outcome in executor.run_clients("local", 1, jobs([0, 1])))


@pytest.mark.parametrize(
    ("model", "cause"), [("Kills", "signal 9: Killed"), ("Leaves", "exit code 3")], ids=["signal", "exit"]
)
def test_a_worker_that_dies_is_named_and_nothing_is_left(models: Path, model: str, cause: str) -> None:
    wanted = experiment(arm("a", "Stuck", model), clients=2)
    task, _ = prepare(wanted)
    with pytest.raises(RuntimeFailure) as caught, ProcessExecutor(2, wanted, task) as executor:  # noqa: PT012  # two lines raise
        children = multiprocessing.active_children()
        assert len(children) == 2
        list(executor.run_clients("a", 1, jobs([0, 1])))
    said = str(caught.value)
    assert said.startswith("fedistill-worker-")
    assert said.split()[0] in {child.name for child in children}
    assert f"ended ({cause})" in said
    assert "runtime.workers" in said
    assert "runtime.kind" in said
    # The other one was in the middle of its work, and is not waited for.
    for child in children:
        assert not child.is_alive()


def test_no_folder_lists_private_data(tmp_path: Path) -> None:
    """A file that never had a name cannot stay behind, not even after SIGKILL or a power cut."""
    wanted = experiment({"method": "local"}, clients=2)
    task, _ = prepare(wanted, tmp_path / "runs" / "first")
    with ProcessExecutor(2, wanted, task) as executor:
        list(executor.run_clients("local", 1, jobs([0, 1])))
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
        open_files = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        held = [name for name in open_files if name.startswith(str(tmp_path))]
        assert held
        assert all(name.endswith(" (deleted)") for name in held)


def test_a_start_that_is_broken_off_leaves_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = experiment({"method": "local"}, clients=2)
    task, _ = prepare(wanted)
    started = []

    def stop(_: object) -> NoReturn:
        started.extend(multiprocessing.active_children())
        raise KeyboardInterrupt

    monkeypatch.setattr(Task, "file", stop)
    with pytest.raises(KeyboardInterrupt):
        ProcessExecutor(2, wanted, task)
    assert len(started) == 2
    assert not any(child.is_alive() for child in started)


def test_a_worker_killed_while_idle(models: Path) -> None:
    wanted = experiment(arm("a", "plain"), clients=2)
    task, _ = prepare(wanted)
    with ProcessExecutor(2, wanted, task) as executor:
        list(executor.run_clients("a", 1, jobs([0, 1])))
        victim = multiprocessing.active_children()[0]
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        with pytest.raises(RuntimeFailure, match=f"{victim.name} ended"):
            list(executor.run_clients("a", 2, jobs([0, 1])))


KINDS = pytest.mark.parametrize("kind", ["serial", "processes"])


def with_runtime(wanted: Experiment, settings: RuntimeConfig) -> Experiment:
    return wanted.model_copy(update={"runtime": settings})


def begun(kind: str, wanted: Experiment, task: Task) -> Executor:
    return start_executor(with_runtime(wanted, RuntimeConfig(kind=kind, workers=2)), task)


@KINDS
def test_an_arm_that_raises_leaves_the_pool_usable(kind: str, models: Path) -> None:
    wanted = experiment(arm("bad", "plain", "Raises"), arm("good", "plain"))
    task, _ = prepare(wanted)
    with SerialExecutor(wanted, task) as executor:
        expected = bytes_of(executor.run_clients("good", 1, jobs([0, 1, 2, 3])))
    with begun(kind, wanted, task) as executor:
        for _ in range(2):
            outcomes = executor.run_clients("bad", 1, jobs([0, 1, 2, 3]))
            assert (next(outcomes).state, b"") == expected[0]
            with pytest.raises(TrainingError) as caught:
                next(outcomes)
            assert caught.value.place == "round 1, client 1"
            assert caught.value.what.startswith("KeyError: 'no such thing' (")
            assert "odd_models.py, line " in caught.value.what
        assert bytes_of(executor.run_clients("good", 1, jobs([0, 1, 2, 3]))) == expected


def test_results_that_come_too_late_are_not_those_of_the_next_arm(models: Path) -> None:
    wanted = experiment(arm("bad", "Raises", "Waits"), arm("good", "plain", "WaitsLonger"), clients=2)
    task, _ = prepare(wanted)
    with SerialExecutor(wanted, task) as executor:
        (models / "go on").touch()
        expected = bytes_of(executor.run_clients("good", 2, jobs([0, 1])))
        (models / "go on").unlink()
    with ProcessExecutor(2, wanted, task) as executor:
        with pytest.raises(TrainingError, match="round 1, client 0: KeyError"):
            list(executor.run_clients("bad", 1, jobs([0, 1])))
        # Client 1 is still at work for the arm that has failed. Its result, which lies in the pipe when
        # the next arm begins, has the place that the second job of that arm has.
        (models / "go").touch()
        wait([worker.connection for worker in executor._workers])
        outcomes = executor.run_clients("good", 2, jobs([0, 1]))
        first = next(outcomes)
        (models / "go on").touch()
        assert bytes_of(iter([first, *outcomes])) == expected


def test_a_round_that_is_given_up_does_not_leak_into_the_next() -> None:
    wanted = experiment({"method": "local"})
    task, _ = prepare(wanted)
    with SerialExecutor(wanted, task) as executor:
        expected = bytes_of(executor.run_clients("local", 2, jobs([3, 2, 1, 0])))
    with ProcessExecutor(2, wanted, task) as executor:
        given_up = executor.run_clients("local", 1, jobs([0, 1, 2, 3]))
        next(given_up)
        given_up.close()  # type: ignore[attr-defined]  # a generator
        assert bytes_of(executor.run_clients("local", 2, jobs([3, 2, 1, 0]))) == expected


@KINDS
def test_nan_names_the_round_the_client_and_the_setting(kind: str, models: Path) -> None:
    wanted = experiment(arm("a", "plain", "Nan"))
    task, _ = prepare(wanted)
    with begun(kind, wanted, task) as executor, pytest.raises(TrainingError) as caught:
        list(executor.run_clients("a", 2, jobs([0, 1, 2])))
    assert str(caught.value) == (
        "round 2, client 1: the loss is nan before the first step of training: the weights that it starts"
        " from are broken, or the inputs are extreme; if weights were received, look at the rounds before and"
        " at the codec of the downlink"
    )


@KINDS
def test_a_state_that_is_damaged_is_refused(kind: str) -> None:
    wanted = experiment({"method": "local"})
    task, _ = prepare(wanted)
    with begun(kind, wanted, task) as executor:
        with pytest.raises(TrainingError, match="round 1, client 2: ValueError: not a saved state"):
            list(executor.run_clients("local", 1, [(2, b"junk", b"")]))
        with pytest.raises(TrainingError, match="evaluation, client 2: ValueError: not a saved state"):
            list(executor.evaluate("local", [(2, b"junk", b"")]))


@KINDS
def test_a_frame_that_is_damaged_is_refused_by_the_client(kind: str) -> None:
    models = {"clients": ["mlp-s"], "server": "mlp-s"}
    wanted = experiment({"method": "fedavg", "models": models})
    task, (ready,) = prepare(wanted)
    with begun(kind, wanted, task) as executor:
        with pytest.raises(TrainingError, match="round 1, client 2: frame is damaged: its checksum differs"):
            list(executor.run_clients("fedavg", 1, [(2, b"", b"fd\x02\x01" + b"\0" * 20)]))
        play_round(start_run(ready), ready, executor)


@KINDS
def test_a_model_that_fails_in_evaluation_ends_its_arm_alone(kind: str, models: Path) -> None:
    wanted = experiment(arm("clients", "plain", "Unfit"), arm("fine", "plain"))
    task, (bad, fine) = prepare(wanted)
    with begun(kind, wanted, task) as executor:
        run = start_run(bad)
        with pytest.raises(TrainingError) as caught:
            play_round(run, bad, executor)
        assert caught.value.place == "round 1, evaluation, client 1"
        assert caught.value.what.startswith("ValueError: not today (")
        assert (run.round, run.clients, run.records) == (0, {}, [])
        assert play_round(start_run(fine), fine, executor).views


def test_a_model_that_fails_in_evaluation_at_the_server(models: Path) -> None:
    odd = arm("server", "plain", method="server-alone")
    odd["models"]["server"] = "odd_models:Unfit"
    wanted = experiment(odd)
    task, (ready,) = prepare(wanted)
    with SerialExecutor(wanted, task) as executor, pytest.raises(TrainingError) as caught:
        play_round(start_run(ready), ready, executor)
    assert caught.value.place == "round 1, evaluation, server"


def test_a_model_that_fails_in_the_server_step(models: Path) -> None:
    odd = arm("server", "plain", method="server-alone")
    odd["models"]["server"] = "odd_models:Raises"
    wanted = experiment(odd)
    task, (ready,) = prepare(wanted)
    with (
        SerialExecutor(wanted, task) as executor,
        pytest.raises(TrainingError, match="round 1, server: KeyError"),
    ):
        play_round(start_run(ready), ready, executor)


def test_how_many_workers() -> None:
    cores = len(os.sched_getaffinity(0))
    assert worker_count(RuntimeConfig(kind="serial", workers=4), 10) == 1
    assert worker_count(RuntimeConfig(kind="processes", workers=4), 10) == 4
    assert worker_count(RuntimeConfig(kind="auto", workers=4), 3) == 3
    assert worker_count(RuntimeConfig(), 1000) == cores


@pytest.mark.parametrize(
    ("settings", "clients", "expected"),
    [
        (RuntimeConfig(kind="serial"), 4, SerialExecutor),
        (RuntimeConfig(kind="auto", workers=1), 4, SerialExecutor),
        (RuntimeConfig(kind="auto"), 1, SerialExecutor),
        (RuntimeConfig(kind="processes", workers=1), 4, ProcessExecutor),
        (RuntimeConfig(kind="auto", workers=2), 2, ProcessExecutor),
    ],
)
def test_which_runtime(settings: RuntimeConfig, clients: int, expected: type[Executor]) -> None:
    wanted = experiment({"method": "local"}, clients=clients)
    task, _ = prepare(wanted)
    with start_executor(with_runtime(wanted, settings), task) as executor:
        assert type(executor) is expected


def test_torch_has_one_thread_inside_and_its_own_number_outside() -> None:
    wanted = experiment({"method": "local"})
    task, _ = prepare(wanted)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError), SerialExecutor(wanted, task):  # noqa: PT012  # so do these
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_states_are_plain_bytes_that_any_worker_can_go_on_with() -> None:
    """Round 2 of each client by the worker that did not do its round 1, against one process."""
    wanted = experiment({"method": "local"}, clients=2)
    task, _ = prepare(wanted)
    with SerialExecutor(wanted, task) as executor:
        first = bytes_of(executor.run_clients("local", 1, jobs([0, 1])))
        second = bytes_of(executor.run_clients("local", 2, [(0, first[0][0], b""), (1, first[1][0], b"")]))
    assert decode_state(first[0][0]).keys() == {"method"}
    assert decode_state(first[0][0])["method"].keys() == {"model", "optimizer"}
    with ProcessExecutor(2, wanted, task) as executor:
        assert bytes_of(executor.run_clients("local", 1, jobs([0, 1]))) == first
        swapped = bytes_of(executor.run_clients("local", 2, [(1, first[1][0], b""), (0, first[0][0], b"")]))
    assert swapped == second[::-1]
