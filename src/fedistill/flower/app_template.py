"""A Flower app for one experiment, ready for ``flwr run``."""

import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w

from fedistill.config.schema import Experiment
from fedistill.config.toml import parse, to_toml
from fedistill.errors import ExperimentError
from fedistill.flower.allowed_modules import modules_of

_README = """\
# A fedistill experiment as a Flower app

`pyproject.toml` has the complete experiment in its run config. All machines need
`pip install 'fedistill[flower]'`, and, to contact no hosts other than those named here,

    export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1

## Keys, for a trial

    fedistill flower keys keys --nodes {nodes} --host NAME-OF-THE-SERVER

makes a CA, the server's certificate and a key pair for each node. Real sites make their own key pair
(`ssh-keygen -t ecdsa -b 384`), keep the private key and send the public one.

## The server

    flower-superlink --host 0.0.0.0 --port 8000 \\
        --ssl-ca-certfile keys/ca.crt --ssl-certfile keys/server.crt --ssl-keyfile keys/server.key \\
        --database superlink.db --enable-supernode-auth --disable-runtime-dependency-installation

Anyone who can reach this port can control the SuperLink: open it to the sites' addresses only, or put a proxy
in front of it that forwards `/v1/fleet/` and nothing else.

Name it in `$FLWR_HOME/config.toml`:

    [superlink]
    default = "site"

    [superlink.site]
    address = "NAME-OF-THE-SERVER:8000"
    root-certificates = "/absolute/path/keys/ca.crt"

Then register each node, once: `flwr supernode register keys/node-0.pub site`.

## Each node

    flower-supernode --root-certificates keys/ca.crt --superlink NAME-OF-THE-SERVER:8000 \\
        --auth-supernode-private-key keys/node-0.key \\
        --node-config 'partition-id=0 state="/var/lib/fedistill"'

`partition-id` is the client's number, below {nodes} and different at each node. `state` is the folder for its
model. With `train="/data/mine.parquet"` (and `format`, `input`, `label`) it learns from its own samples
instead of a share of the experiment's; with `model="cnn-m"` or `model="my_models:net"` (its folder in
`PYTHONPATH`) it has a model of its own.
{modules}
## The run

    flwr run . site --stream

Results go to `{out}` on the server's machine. They are those of `fedistill compare`, except for clients' own
models, which stay at the nodes (`state`). Run again with the same folder, it resumes after the last complete
round.
"""


_MODULES = """
The experiment names modules that are not part of fedistill. A node imports only those that its site has
allowed: install them there, or put their folder in `PYTHONPATH`, and add to the node config

    modules="{modules}"
"""


def write_app(experiment: Experiment, folder: Path, out: Path, command: str) -> None:
    """Write ``pyproject.toml``, the apps and a README.

    Args:
        out: folder for the results on the server's machine.
        command: the command that the results will name.

    Raises:
        ExperimentError: the folder contains an app already, or something that the experiment names cannot be
            used.
    """
    if (folder / "pyproject.toml").exists():
        raise ExperimentError(f"{folder} contains an app already; choose another folder")
    modules = ",".join(modules_of(experiment))
    package = folder / "fedistill_app"
    package.mkdir(parents=True, exist_ok=True)
    project: dict[str, Any] = {
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
    readme = _README.format(
        nodes=experiment.task.clients, out=out, modules=modules and _MODULES.format(modules=modules)
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")
    (package / "__init__.py").write_text("")
    # Two modules: a node starts a process for each message, which should not import the server's code.
    for side in ("client", "server"):
        (package / f"{side}.py").write_text(
            f'"""The {side}\'s side of the experiment; its code is in fedistill."""\n\n'
            f"from fedistill.flower.{side}_app import app\n\n"
            '__all__ = ["app"]\n'
        )


def asked_for(run: dict[str, Any]) -> Experiment:
    """Return the experiment in a run config written by `write_app`, possibly edited since.

    Raises:
        ExperimentError: it holds no valid experiment.
    """
    text = run.get("experiment")
    if not isinstance(text, str):
        raise ExperimentError("run config: `experiment` must be the text of an experiment file")
    try:
        return parse(tomllib.loads(text), "run config")
    except tomllib.TOMLDecodeError as error:
        raise ExperimentError(f"run config: `experiment` is not valid TOML: {error}") from None


def ended(out: Path, run: int) -> Path:
    """Return the path of the file in which a run leaves the reason why it ended, empty after success."""
    return out / "flower" / f"ended-{run}"


def say_renew(side: str) -> None:
    """Log that the running app was written by an earlier version, and how to renew it."""
    print(
        f"this Flower app imports fedistill.runtime.flower.{side}, which has moved: write the app again with"
        " `fedistill flower init EXPERIMENT.toml FOLDER`; it will not work with later versions",
        flush=True,
    )
