"""``fedistill flower``: the same experiment on a real network."""

from pathlib import Path
from typing import Annotated

import typer

from fedistill.errors import ExperimentError

app = typer.Typer(help="Run an experiment on Flower: SuperLink and SuperNodes.", no_args_is_help=True)

ExperimentPath = Annotated[Path, typer.Argument(help="The experiment file (TOML).")]
Folder = Annotated[Path, typer.Argument(help="The folder to write.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting: section.key=value. May be repeated."),
]


@app.command()
def init(
    experiment: ExperimentPath,
    folder: Folder,
    set: Set = None,
    out: Annotated[Path, typer.Option(help="Folder for the results, on the server's machine.")] = Path(
        "fedistill-results"
    ),
) -> None:
    """Write a Flower app that `flwr run` takes as it is."""
    _need_flower()
    from fedistill import cli
    from fedistill.experiment_file import load
    from fedistill.runtime.flower.project import write_app

    write_app(load(experiment, set or []), folder, out, cli.command())
    print(f"wrote {folder}; how to run it stands in {folder / 'README.md'}")


@app.command()
def keys(
    folder: Folder,
    nodes: Annotated[int, typer.Option(min=1, help="How many SuperNodes.")] = 2,
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address of the SuperLink, beside this machine's. May be repeated."),
    ] = None,
) -> None:
    """Make a CA, the SuperLink's certificate and a key pair for each SuperNode, for trials."""
    _need_flower()
    from fedistill.runtime.flower.keys import make

    for path in make(folder, nodes, host or []):
        print(path)


@app.command()
def up(
    experiment: ExperimentPath,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="How many SuperNodes, and clients. Default: task.clients.")
    ] = None,
    set: Set = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the run. Default: runs/EXPERIMENT-TIME.")
    ] = None,
) -> None:
    """Start a SuperLink and SuperNodes on this machine, run the experiment on them, and stop them."""
    _need_flower()
    from fedistill import cli
    from fedistill.experiment_file import load
    from fedistill.runtime.flower import local

    loaded = load(experiment, [*(set or []), *([f"task.clients={nodes}"] if nodes else [])])
    folder = out or cli.default_folder(experiment)
    cli.finish(folder, lambda watcher: local.up(loaded, folder, cli.command(), watcher), "flower resume")


@app.command()
def resume(folder: Annotated[Path, typer.Argument(help="The folder of a run that `up` began.")]) -> None:
    """Go on with a run that `up` began, from its last whole round."""
    _need_flower()
    from fedistill import cli
    from fedistill.runtime.flower import local

    cli.finish(folder, lambda watcher: local.resume(folder, watcher), "flower resume")


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
