"""The server's part: the round loop in a Flower ServerApp, with SuperNodes as its clients."""

import secrets
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedistill.attacks.registry import refuse_on_network
from fedistill.config.schema import Experiment
from fedistill.config.toml import to_toml
from fedistill.data.task import Task
from fedistill.errors import ExperimentError, FedistillError
from fedistill.experiment.changes import FREE_TABLES
from fedistill.experiment.folder_lock import alone_in
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.runner import resume_experiment, run_experiment, settle
from fedistill.federation.executor import Executor
from fedistill.federation.failures import describe_error
from fedistill.flower.app_template import asked_for, ended
from fedistill.flower.executor import FlowerExecutor
from fedistill.flower.log import RunLog
from fedistill.flower.parent_watch import end_with_parent
from fedistill.privacy.registry import refuse_privacy_on_network
from fedistill.state import write_file

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment of the run config, or resume it if its folder holds a part of it."""
    end_with_parent()
    run = context.run_config
    place = run.get("out")
    if not isinstance(place, str):
        raise ExperimentError("run config: `out` must be the folder for the results")
    out = Path(place)
    said = ""
    try:
        # One whose SuperLink has died may not know it yet, and still play in the folder.
        with alone_in(out, wait=True):
            _play(grid, asked_for(run), out, str(run.get("command", "flwr run")))
    except FedistillError as failure:
        said = str(failure)
        raise
    except BaseException as failure:
        said = describe_error(failure)
        raise
    finally:
        write_file(ended(out, context.run_id), said.encode())


def _play(grid: Grid, asked: Experiment, out: Path, command: str) -> None:
    """Begin, or resume what the folder holds of the same experiment; `[flower]` may have changed.

    Raises:
        ExperimentError: the folder holds another run.
    """
    refuse_on_network(asked)
    refuse_privacy_on_network(asked)
    folder = RunFolder(out)
    begun = (out / "experiment.toml").exists()
    if begun:
        _check_same(folder, asked)
    else:
        write_file(folder.session, secrets.token_hex(8).encode())
    session = folder.session.read_text()

    def start(experiment: Experiment, task: Task) -> Executor:
        return FlowerExecutor(grid, experiment.model_copy(update={"flower": asked.flower}), task, session)

    if begun:
        resume_experiment(out, RunLog(), start)
    else:
        run_experiment(asked, out, command, RunLog(), start)


def _check_same(folder: RunFolder, asked: Experiment) -> None:
    if not folder.on_network:
        raise ExperimentError(
            f"{folder.path} holds a run that was begun in one process: continue with:"
            f" {folder.resume_command()}, or name another folder for the results"
        )
    held = folder.experiment()
    held = held.model_copy(update={table: getattr(asked, table) for table in FREE_TABLES})
    kinds = [event["kind"] for event in folder.events() if event["event"] == "task" and "kind" in event]
    # What the experiment leaves open has been written out for the run's data.
    clients, partition = asked.task.clients or held.task.clients, held.task.partition
    assert clients is not None
    assert partition is not None
    if to_toml(held) != to_toml(settle(asked, kinds[0] if kinds else "image", clients, partition)):
        raise ExperimentError(
            f"{folder.path} holds a run of another experiment: name another folder for the results (`out` in"
            " the run config), or run the app of that experiment to resume it"
        )
