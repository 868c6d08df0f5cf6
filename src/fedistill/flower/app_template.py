"""A Flower app for one experiment: what ``flwr run`` takes as it is."""

import math
import tomllib
from importlib.metadata import version
from pathlib import Path

import tomli_w

from fedistill.config.partitions import Listed, Natural
from fedistill.config.schema import Experiment
from fedistill.config.section import RawTable
from fedistill.config.task import DEFAULT_CLIENTS
from fedistill.config.toml import parse, to_toml
from fedistill.errors import ExperimentError
from fedistill.flower.allowed_modules import Config, modules_of

_README = """\
# A fedistill experiment as a Flower app

`pyproject.toml` has the whole experiment in its run config. All machines need
`pip install 'fedistill[flower]'`, and, so that none looks for a network beyond the ones named here,

    export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1

## Keys, for a trial

    fedistill flower keys keys --nodes {nodes} --host NAME-OF-THE-SERVER

makes a CA, the server's certificate and a key pair for each node. Real sites make their own key pair
(`ssh-keygen -t ecdsa -b 384`), keep the private half and send the public one.

## The server

    flower-superlink --host 0.0.0.0 --port 8000 \\
        --ssl-ca-certfile keys/ca.crt --ssl-certfile keys/server.crt --ssl-keyfile keys/server.key \\
        --database superlink.db --enable-supernode-auth --disable-runtime-dependency-installation

Whoever reaches this port may command the SuperLink: open it to the sites' addresses alone, or put a proxy in
front of it that passes on `/v1/fleet/` and nothing else.

Name it in `$FLWR_HOME/config.toml`:

    [superlink]
    default = "site"

    [superlink.site]
    address = "NAME-OF-THE-SERVER:8000"
    root-certificates = "/absolute/path/keys/ca.crt"

Then let each node in, once: `flwr supernode register keys/node-0.pub site`.

## Each node

    flower-supernode --root-certificates keys/ca.crt --superlink NAME-OF-THE-SERVER:8000 \\
        --auth-supernode-private-key keys/node-0.key \\
        --node-config 'partition-id=0 state="/var/lib/fedistill"'

`partition-id` is the client's number, below {clients}, another at each node.{several} `state` is where it
keeps its model. With `train="/data/mine.parquet"` (and `format`, `input`, `label`) it learns from its own
samples and not from a share of the experiment's; with `model="cnn-m"` or `model="my_models:net"` (its folder
in `PYTHONPATH`) it has a model of its own.
{modules}
## The run

    flwr run . site --stream

Results go to `{out}` on the server's machine, as `fedistill compare` leaves them but for clients' own models,
which stay at the nodes (`state`). Run again with the same folder, it resumes after the last complete round.
"""


_SEVERAL = """ Each node may be {most} clients:
`partition-ids="0-{last}"` in place of it names several."""


_MODULES = """
The experiment names modules that are not part of fedistill. A node imports none that its site has not
allowed: install them there, or put their folder in `PYTHONPATH`, and add to the node config

    modules="{modules}"
"""


def write_app(experiment: Experiment, folder: Path, out: Path, command: str) -> None:
    """Write ``pyproject.toml``, the apps and a README.

    Args:
        out: where the server leaves the results, on its machine.
        command: what the results will name as theirs.

    Raises:
        ExperimentError: the folder has an app already, or something that the experiment names cannot be used.
    """
    if (folder / "pyproject.toml").exists():
        raise ExperimentError(f"{folder} has an app already; name another folder")
    _check_one_seed(experiment, "`seeds`")
    modules = ",".join(modules_of(experiment))
    package = folder / "fedistill_app"
    package.mkdir(parents=True, exist_ok=True)
    project: RawTable = {
        "build-system": {"requires": ["hatchling"], "build-backend": "hatchling.build"},
        "project": {
            "name": "fedistill-app",
            "version": "1.0.0",
            "description": "A fedistill experiment.",
            "license": "Apache-2.0",
            "dependencies": [f"fedistill[flower]=={version('fedistill')}"],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "fedistill",
                    "components": {
                        "serverapp": "fedistill_app.server:app",
                        "clientapp": "fedistill_app.client:app",
                    },
                    "config": {"experiment": to_toml(experiment), "out": str(out), "command": command},
                }
            }
        },
    }
    (folder / "pyproject.toml").write_text(tomli_w.dumps(project, multiline_strings=True), encoding="utf-8")
    task = experiment.task
    # `fedistill doctor` says how many sites there are, which is known once the data have been read.
    drawn = task.partition is not None and not isinstance(task.partition, Natural | Listed)
    clients = task.clients or (DEFAULT_CLIENTS if drawn or task.format is None else None)
    most = experiment.flower.clients_per_node
    readme = _README.format(
        clients=clients or "NUMBER-OF-CLIENTS",
        nodes=math.ceil(clients / most) if clients else "NUMBER-OF-NODES",
        several=_SEVERAL.format(most=most, last=most - 1) if most > 1 else "",
        out=out,
        modules=modules and _MODULES.format(modules=modules),
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")
    (package / "__init__.py").write_text("")
    # Two modules: a node starts a process for each message, and must not import the server's part.
    for side in ("client", "server"):
        (package / f"{side}.py").write_text(
            f'"""The {side}\'s side of the experiment; what it does is in fedistill."""\n\n'
            f"from fedistill.flower.{side}_app import app\n\n"
            '__all__ = ["app"]\n'
        )


def asked_for(run: Config) -> Experiment:
    """The experiment of a run config that `write_app` wrote, or that somebody has changed.

    Raises:
        ExperimentError: it is none.
    """
    text = run.get("experiment")
    if not isinstance(text, str):
        raise ExperimentError("run config: `experiment` must be the text of an experiment file")
    try:
        experiment = parse(tomllib.loads(text), "run config")
    except tomllib.TOMLDecodeError as error:
        raise ExperimentError(f"run config: `experiment` is not valid TOML: {error}") from None
    _check_one_seed(experiment, "run config: `seeds` of `experiment`")
    return experiment


def _check_one_seed(experiment: Experiment, where: str) -> None:
    if experiment.seeds is not None:
        raise ExperimentError(
            f"{where}: a Flower app runs one seed; take `seeds` out, and write an app for each seed with"
            " --set seed=NUMBER"
        )


def ended(out: Path, run: int) -> Path:
    """The file in which a run says why it ended, empty if it has completed."""
    return out / "flower" / f"ended-{run}"


def say_renew(side: str) -> None:
    """Say, in the log of a process, that its app was written by an earlier version, and how to renew it."""
    print(
        f"this Flower app looks for fedistill.runtime.flower.{side}, which has moved: write the app again"
        " with `fedistill flower init EXPERIMENT.toml FOLDER`; a later version will not find it",
        flush=True,
    )
