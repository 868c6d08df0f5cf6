"""``fedistill flower``: the same experiment on a real network."""

from pathlib import Path
from typing import Annotated

import typer

from fedistill.cli.console import (
    ExperimentPath,
    Json,
    Out,
    Quiet,
    Set,
    Track,
    callbacks,
    follow,
    typed_command,
)
from fedistill.errors import ExperimentError

app = typer.Typer(help="Run an experiment on Flower: SuperLink and SuperNodes.", no_args_is_help=True)

NewFolder = Annotated[Path, typer.Argument(help="The folder to write.")]


@app.command("init")
def init_command(
    experiment: ExperimentPath,
    folder: NewFolder,
    set: Set = None,
    out: Annotated[Path, typer.Option(help="Folder for the results, on the server's machine.")] = Path(
        "fedistill-results"
    ),
) -> None:
    """Write a Flower app that `flwr run` takes as it is."""
    _need_flower()
    from fedistill.config.toml import load
    from fedistill.flower.app_template import write_app

    write_app(load(experiment, set or []), folder, out, typed_command())
    print(f"wrote {folder}; how to run it stands in {folder / 'README.md'}")


@app.command("keys")
def keys_command(
    folder: NewFolder,
    nodes: Annotated[int, typer.Option(min=1, help="How many SuperNodes.")] = 2,
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address of the SuperLink, beside this machine's. May be repeated."),
    ] = None,
) -> None:
    """Make a CA, the SuperLink's certificate and a key pair for each SuperNode, for trials."""
    _need_flower()
    from fedistill.flower.keys import make_keys

    for path in make_keys(folder, nodes, host or []):
        print(path)


@app.command("up")
def up_command(
    experiment: ExperimentPath,
    nodes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many SuperNodes, each flower.clients_per_node clients. Default: as task.clients needs.",
        ),
    ] = None,
    set: Set = None,
    out: Out = None,
    track: Track = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Start a SuperLink and SuperNodes on this machine, run the experiment on them, and stop them."""
    _need_flower()
    from fedistill.config.toml import load
    from fedistill.experiment.run_folder import default_folder
    from fedistill.flower import local_trial

    loaded = load(experiment, set or [])
    if nodes:
        clients = nodes * loaded.flower.clients_per_node
        loaded = load(experiment, [*(set or []), f"task.clients={clients}"])
    folder = out or default_folder(experiment.stem)
    told = callbacks(track)
    follow(
        folder,
        lambda watcher: local_trial.run_trial(loaded, folder, typed_command(), watcher, told),
        quiet,
        json,
        "flower resume",
    )


@app.command("resume")
def resume_command(
    folder: Annotated[Path, typer.Argument(help="The folder of a run that `up` began.")],
    track: Track = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Resume a run that `up` started, after its last complete round."""
    _need_flower()
    from fedistill.flower import local_trial

    told = callbacks(track)
    follow(
        folder,
        lambda watcher: local_trial.resume_trial(folder, watcher, told),
        quiet,
        json,
        "flower resume",
    )


def _need_flower() -> None:
    try:
        import cryptography
        import flwr

        assert cryptography
        assert flwr
    except ImportError as error:
        raise ExperimentError(
            f"fedistill flower needs the extra `flower` ({error}): pip install 'fedistill[flower]'"
        ) from None
