"""A trial of the real thing: an experiment on a SuperLink and SuperNodes on this machine."""

import json
import math
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fedistill.attacks.registry import refuse_on_network
from fedistill.config.schema import Experiment
from fedistill.errors import ExperimentError, RuntimeFailure
from fedistill.experiment.callbacks import NO_CALLBACKS, Callbacks
from fedistill.experiment.findings import raise_errors
from fedistill.experiment.folder_lock import alone_in, network_in
from fedistill.experiment.preflight import examine
from fedistill.experiment.progress import Watcher
from fedistill.experiment.results import AnyResultsJson, ResultsJson
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.runner import prepare, resolve
from fedistill.experiment.seeds import resume_seeds, run_seeds
from fedistill.federation.arm import ReadyArm
from fedistill.flower import app_template, keys
from fedistill.flower.allowed_modules import modules_of
from fedistill.flower.app_template import ended
from fedistill.flower.event_tail import EventTail
from fedistill.flower.processes import TrialNetwork
from fedistill.flower.told_callbacks import ToldCallbacks
from fedistill.privacy.registry import refuse_privacy_on_network

_POLL_SECONDS = 0.5
_ASK_SECONDS = 30.0
"""Between questions to Flower, each a process of two seconds; a run that ends says so itself."""


def run_trial(
    experiment: Experiment, out: Path, command: str, watcher: Watcher, callbacks: Callbacks = NO_CALLBACKS
) -> AnyResultsJson:
    """Run an experiment with SuperNodes on this machine; return the results.

    Each of several seeds has a network of its own, one after the other.

    Raises:
        ExperimentError: the experiment or the folder is wrong; nothing was started.
        RuntimeFailure: the run or a callback failed.
    """
    told = callbacks if experiment.seeds is None else callbacks.of_seed()
    run = partial(_run_one, callbacks=told)
    return run_seeds(experiment, out, command, watcher, run, callbacks)


def _run_one(
    experiment: Experiment, out: Path, command: str, watcher: Watcher, callbacks: Callbacks
) -> ResultsJson:
    refuse_on_network(experiment)
    refuse_privacy_on_network(experiment)
    _check_free(out)
    task, arms = prepare(experiment, out)
    findings = examine(experiment, task, arms)
    watcher.findings(findings)
    raise_errors(findings)
    experiment = resolve(experiment, task)
    with network_in(out):
        with alone_in(out):  # another may have begun while data were read
            _check_free(out)
        callbacks.run_start(out, experiment, resumed=False)
        keys.make_keys(_keys(out), _nodes(experiment), [])
        app_template.write_app(experiment, out / "flower" / "app", out.absolute(), command)
        return _play_and_tell(experiment, out, watcher, callbacks, arms)


def _nodes(experiment: Experiment) -> int:
    """Return how many SuperNodes the clients of a trial need."""
    assert experiment.task.clients is not None, "written out where the run began"
    return math.ceil(experiment.task.clients / experiment.flower.clients_per_node)


def _check_free(out: Path) -> None:
    """Raise `ExperimentError` if a folder holds a run, or what is left of one or is about to be one."""
    RunFolder.check_free(out)
    if _keys(out).exists():
        with network_in(out):
            raise ExperimentError(
                f"{out / 'flower'} is left from a run that never began: its logs say why; delete it, and run"
                " this again"
            )


def _keys(out: Path) -> Path:
    """Return the folder that a trial writes before all others."""
    return out / "flower" / "keys"


def resume_trial(out: Path, watcher: Watcher, callbacks: Callbacks = NO_CALLBACKS) -> AnyResultsJson:
    """Resume a run that `up` began; return the results.

    Raises:
        ExperimentError: there is none in the folder, or it is still going on; nothing was changed.
        RuntimeFailure: the run or a callback failed.
    """
    folder = RunFolder.open(out)
    # A trial that never began may have left its app where a run in one process was begun after it.
    if not folder.on_trial or (folder.experiment().seeds is None and not folder.on_network):
        raise ExperimentError(
            f"{out} was not run by `fedistill flower up`; continue with: {folder.resume_command()}"
        )
    told = callbacks if folder.experiment().seeds is None else callbacks.of_seed()
    run, resume = partial(_run_one, callbacks=told), partial(_resume_one, callbacks=told)
    return resume_seeds(out, watcher, run, resume, callbacks)


def _resume_one(out: Path, watcher: Watcher, callbacks: Callbacks) -> ResultsJson:
    folder = RunFolder(out)
    experiment, app = folder.experiment(), out / "flower" / "app"
    with network_in(out):
        begun = len(list(_keys(out).glob("node-*.key")))
        if _nodes(experiment) != begun:
            raise ExperimentError(
                f"{out} holds the states of clients at {begun} nodes: set flower.clients_per_node in its"
                " experiment.toml as it was when the run began"
            )
        # The folder may have been moved, and its settings for the network changed. The app there stays until
        # the new one is whole: it is what tells that a network played here.
        new = app.with_name("app.new")
        shutil.rmtree(new, ignore_errors=True)
        app_template.write_app(experiment, new, out.absolute(), folder.command())
        shutil.rmtree(app, ignore_errors=True)
        new.rename(app)
        arms = prepare(experiment, out)[1] if callbacks else []
        callbacks.run_start(out, experiment, resumed=True)
        return _play_and_tell(experiment, out, watcher, callbacks, arms)


def _play_and_tell(
    experiment: Experiment, out: Path, watcher: Watcher, callbacks: Callbacks, arms: Sequence[ReadyArm]
) -> ResultsJson:
    """Do as `_play`, and tell the callbacks, if there are any, of the arms."""
    if not callbacks:
        return _play(experiment, out, watcher)
    told = ToldCallbacks(callbacks, watcher, RunFolder(out), arms)
    return told.until_the_end(lambda: _play(experiment, out, told))


def _play(experiment: Experiment, out: Path, watcher: Watcher) -> ResultsJson:
    # The nodes are on the user's own machine, and so may import whatever the user's experiment names.
    clients = experiment.task.clients
    with TrialNetwork(out, _nodes(experiment), modules_of(experiment), clients) as network:
        try:
            follow(network, experiment, out, watcher)
        except RuntimeFailure as failure:
            raise RuntimeFailure("; ".join([str(failure), *network.ended()])) from None
    results: ResultsJson = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return results


def follow(network: TrialNetwork, experiment: Experiment, out: Path, watcher: Watcher) -> None:
    """Run the app and tell how it goes on, until it ends.

    Raises:
        RuntimeFailure: the run failed, or the SuperLink ended.
    """
    run = network.run()
    news = EventTail(out, watcher)
    for arm in experiment.arms:
        watcher.arm(arm.name, experiment.rounds, RunFolder(out).last_round(arm.name))
    asked = time.monotonic()
    while True:
        time.sleep(_POLL_SECONDS)
        news.tell()
        network.check("superlink")
        if ended(out, run).exists():
            break
        if time.monotonic() > asked + _ASK_SECONDS:
            asked = time.monotonic()
            if network.status(run).startswith("finished"):
                break
    news.tell()
    last = ended(out, run)
    said = (
        last.read_text(encoding="utf-8")
        if last.exists()
        else f"the server's process has ended; {network.log('superlink')}"
    )
    if said:
        raise RuntimeFailure(said)
