"""What the command line does with signals, inside this process and in a terminal that closes."""

import contextlib
import gc
import os
import pty
import signal
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedistill import compare, parse
from fedistill.stop_signals import STOP_SIGNALS, Stopped, stop_requests
from helpers.processes import wait_for
from helpers.program import PATIENCE, PROGRAM

EXPERIMENT = """
rounds = {rounds}
[task]
name = "digits"
clients = 2
limit = 40
[models]
clients = ["mlp-s"]
server = "mlp-s"
[runtime]
kind = "serial"
[[arms]]
method = "local"
"""


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {one: signal.getsignal(one) for one in STOP_SIGNALS}
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.mark.parametrize("asked", STOP_SIGNALS)
def test_a_signal_is_taken_for_ctrl_c_inside_the_context_only(asked: signal.Signals) -> None:
    signal.signal(asked, signal.SIG_DFL)
    with stop_requests(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(asked)
    assert signal.getsignal(asked) is signal.SIG_DFL


@pytest.mark.parametrize("asked", STOP_SIGNALS)
def test_an_ignored_signal_stays_ignored(asked: signal.Signals) -> None:
    signal.signal(asked, signal.SIG_IGN)
    with stop_requests():
        assert signal.getsignal(asked) is signal.SIG_IGN
        signal.raise_signal(asked)


def test_a_second_signal_does_not_cut_the_cleaning_up_short() -> None:
    cleaned = False
    with stop_requests(), pytest.raises(Stopped, match="stopped by SIGTERM"):  # noqa: PT012  # `finally` is part of it
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGINT)
            cleaned = True
    assert cleaned


def test_a_signal_that_was_swallowed_can_be_sent_again() -> None:
    gc.disable()  # the exception must go by itself
    try:
        with stop_requests():
            for _ in range(2):
                try:
                    signal.raise_signal(signal.SIGTERM)
                except Stopped:
                    pass
                else:
                    pytest.fail("the signal was ignored")
    finally:
        gc.enable()


def test_the_python_api_leaves_the_handlers_of_its_host_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    took: list[int] = []
    for one in STOP_SIGNALS:
        signal.signal(one, lambda number, frame: took.append(number))

    from fedistill.experiment import runner

    played = runner.play_round

    def play(*arguments: Any) -> Any:
        for one in STOP_SIGNALS:
            signal.raise_signal(one)
        return played(*arguments)

    monkeypatch.setattr(runner, "play_round", play)
    compare(parse(tomllib.loads(EXPERIMENT.format(rounds=1)), "test"), tmp_path / "run", quiet=True)
    assert took == list(STOP_SIGNALS)


def test_a_terminal_that_closes_stops_the_run_and_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "exp.toml").write_text(EXPERIMENT.format(rounds=100_000))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", PROGRAM, "compare", "exp.toml", "--out", "run"],
        cwd=tmp_path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: [signal.signal(one, signal.SIG_DFL) for one in STOP_SIGNALS],
    )
    os.close(theirs)
    try:
        events = tmp_path / "run" / "events.jsonl"
        os.set_blocking(ours, False)

        def begun() -> bool:
            with contextlib.suppress(BlockingIOError):
                os.read(ours, 1 << 16)  # else the terminal is full
            return events.exists() and '"round": 2' in events.read_text()

        wait_for(begun, "round 2", PATIENCE)
        os.close(ours)
        assert process.wait(PATIENCE) == 1
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "run" / "results.json").exists()
