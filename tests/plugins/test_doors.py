"""Methods, codecs and aggregations of other packages: named, run, listed, and refused with what is wrong."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedistill import parse
from fedistill.aggregation.registry import registry as aggregations
from fedistill.communication.codecs import registry as codecs
from fedistill.config.partitions import Iid
from fedistill.config.schema import Experiment
from fedistill.config.toml import load
from fedistill.errors import ExperimentError
from fedistill.experiment.findings import Finding
from fedistill.experiment.runner import resume_experiment, run_experiment, settle
from fedistill.federation.arm import resolve_arm
from fedistill.methods.registry import METHODS, create_method
from fedistill.methods.registry import registry as methods
from helpers.installed import Installer

BY_NAME = {
    "method": "ballots",
    "codec": "bf16",
    "aggregation": {"name": "geometric", "floor": 0.01},
}
BY_CLASS = {
    "method": "fedistill_outside.methods:Ballots",
    "codec": "fedistill_outside.codecs:BFloat16",
    "aggregation": {"name": "fedistill_outside.aggregations:Geometric", "floor": 0.01},
}


class Silent:
    def findings(self, findings: Sequence[Finding]) -> None: ...
    def arm(self, name: str, rounds: int, done: int) -> None: ...
    def round(self, name: str, record: Any) -> None: ...
    def failed(self, name: str, error: str) -> None: ...


def experiment(*arms: dict[str, Any], **changes: Any) -> Experiment:
    raw: dict[str, Any] = {
        "rounds": 2,
        "task": {"name": "digits", "clients": 3, "limit": 240, "public": 60},
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "train": {"batch_size": 16, "optimizer": {"lr": 0.05, "momentum": 0.9}},
        "runtime": {"kind": "serial"},
        "arms": list(arms),
    }
    return parse({**raw, **changes}, "test")


def refusal(**arm: Any) -> str:
    with pytest.raises(ExperimentError) as caught:
        resolve_arm(experiment({"method": "dsfl", "name": "mine", **arm}).arms[0])
    return str(caught.value)


# --- a whole package ---


def outcome(folder: Path) -> Any:
    """All that does not tell times, versions or names."""
    (found,) = json.loads((folder / "results.json").read_text())["arms"]
    kept = ("bytes_up", "bytes_down", "views", "kinds")
    rounds = [{key: one[key] for key in kept} for one in found["rounds"]]
    models = [path.read_bytes() for path in sorted((folder / "models").glob("*/*/model.safetensors"))]
    assert len(models) == 4, "three clients and the server"
    return rounds, models


@pytest.mark.usefixtures("outside")
def test_by_name_or_by_class_serial_in_processes_or_resumed_it_ends_in_the_same_bits(tmp_path: Path) -> None:
    run_experiment(experiment(BY_NAME), tmp_path / "serial", "test", Silent())
    expected = outcome(tmp_path / "serial")
    processes = {"kind": "processes", "workers": 2}
    run_experiment(experiment(BY_CLASS, runtime=processes), tmp_path / "processes", "test", Silent())
    assert outcome(tmp_path / "processes") == expected

    class Stop(Silent):
        def round(self, name: str, record: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment(BY_CLASS), tmp_path / "resumed", "test", Stop())
    resume_experiment(tmp_path / "resumed", Silent())
    assert outcome(tmp_path / "resumed") == expected


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("arm", [BY_NAME, BY_CLASS])
def test_a_run_folder_names_it_as_the_arm_wrote_it(tmp_path: Path, arm: dict[str, Any]) -> None:
    both = {"up": arm["codec"], "down": {"name": "qsgd", "levels": 3}}
    results = run_experiment(experiment(arm, rounds=1), tmp_path / "run", "test", Silent())
    (described,) = results["arms"]
    assert (described["name"], described["method"]) == (arm["method"], arm["method"])
    assert described["codec"] == arm["codec"]
    (written,) = tomllib.loads((tmp_path / "run" / "experiment.toml").read_text())["arms"]
    assert {key: written[key] for key in arm} == arm
    assert written["temperature"] == 0.5
    assert load(tmp_path / "run" / "experiment.toml").arms == settle(experiment(arm), "image", 3, Iid()).arms
    # A codec for each way, of which one is an outside one.
    assert codecs.resolved(both)["up"] == arm["codec"]
    assert codecs.title(both) == f"up {arm['codec']}, down qsgd(levels=3)"


@pytest.mark.usefixtures("outside")
def test_its_names_stand_in_listings_and_suggestions() -> None:
    assert methods.names() == [*METHODS, "ballots"]
    assert [listed.name for listed in aggregations.listing()][-1] == "geometric"
    (last,) = codecs.registry.listing()[-1:]
    assert (last.name, last.source, last.problem) == ("bf16", "fedistill-outside 1.0", "")
    assert refusal(method="balots").endswith("ballots or module:Class. Did you mean 'ballots'?")
    assert refusal(codec="bf61").endswith("Did you mean 'bf16'?")
    assert refusal(aggregation="geometrik").endswith("Did you mean 'geometric'?")
    assert refusal(method="ballots", temprature=1).endswith(
        "Settings of method ballots: distill_epochs, distill_batch_size, aggregation, temperature"
    )


@pytest.mark.usefixtures("outside", "broken")
def test_the_commands_list_it_and_mark_what_is_broken(tmp_path: Path) -> None:
    rows = {command: listed(command, tmp_path) for command in ("methods", "codecs")}
    assert rows["methods"]["ballots"][-1] == (
        "none: an example of a method outside of fedistill; fedistill-outside 1.0"
    )
    assert rows["codecs"]["bf16"][-1] == "fedistill-outside 1.0"
    said = rows["methods"]["broken"]
    assert said[0].startswith(
        "cannot be used: method 'broken' (of broken-package 1.0): module 'broken_module'"
    )
    assert "ValueError: no such device" in said[0]
    assert rows["methods"]["dsfl"][-1].startswith("Itahara")


def listed(command: str, place: Path) -> dict[str, list[str]]:
    program = "from fedistill.cli.main import main; main()"
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", program, command],
        cwd=place,
        env={**os.environ, "COLUMNS": "1000", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    return {name: rest for name, *rest in cells}


# --- entry points that cannot be used ---


@pytest.fixture
def broken(install: Installer) -> None:
    install.package(
        "broken-package",
        {"methods": {"broken": "broken_module:Broken"}},
        broken_module="raise ValueError('no such device')\n",
    )


@pytest.mark.usefixtures("broken")
def test_a_broken_package_is_reported_when_it_is_named_and_hurts_nothing_else(tmp_path: Path) -> None:
    assert refusal(method="broken") == (
        "arm 'mine': method 'broken' (of broken-package 1.0): module 'broken_module' cannot be imported"
        " (ValueError: no such device); modules are looked up in the current folder and where Python finds"
        " packages"
    )
    run_experiment(experiment({"method": "local"}, rounds=1), tmp_path / "run", "test", Silent())
    marked = {one.name: one.problem for one in methods.listing() if one.problem}
    assert list(marked) == ["broken"]
    assert "broken_module" not in sys.modules


def test_a_name_that_is_claimed_twice_names_both_packages(install: Installer) -> None:
    install.package("one-package", {"methods": {"fedavg": "one_module:A", "fresh": "one_module:A"}})
    install.package("other-package", {"methods": {"fresh": "other_module:B"}})
    assert refusal(method="fedavg") == (
        "arm 'mine': method 'fedavg' is claimed by fedistill and by one-package 1.0: write"
        " fedistill.methods.weights.fedavg:FedAvg or one_module:A, or uninstall one of the packages"
    )
    assert refusal(method="fresh") == (
        "arm 'mine': method 'fresh' is claimed by one-package 1.0 and by other-package 1.0: write"
        " one_module:A or other_module:B, or uninstall one of the packages"
    )
    own = experiment({"method": "fedistill.methods.weights.fedavg:FedAvg"}).arms[0]
    assert type(create_method(own)) is METHODS["fedavg"]
    assert {one.name for one in methods.listing() if one.problem} == {"fedavg", "fresh"}


def test_an_entry_point_has_the_name_that_the_class_declares(install: Installer) -> None:
    install.package("one-package", {"methods": {"mine": "fedistill.methods.weights.fedavg:FedAvg"}})
    assert refusal(method="mine") == (
        "arm 'mine': method 'mine' (of one-package 1.0): class FedAvg is named 'fedavg'; the entry point and"
        " `name` must be the same"
    )


# --- classes with faults ---

FAULTY = """
from typing import Literal
from fedistill.aggregation.labels import Aggregation, Mean
from fedistill.communication.codecs.base import Codec
from fedistill.communication.codecs.plain import Fp32
from fedistill.communication.messages.base import Message
from fedistill.config.schema import Section
from fedistill.methods.base import Method
from fedistill.methods.weights.fedavg import FedAvg
from fedistill.methods.labels.dsfl import DsFl

class Stranger: ...

class Empty(Method): ...

class Silent(FedAvg):
    name = 3
    paper = ""
    byte_formula = None

class Wordless(Message): ...

class Unkind(Message):
    kind = 3
    def specs(context, numbers): ...

class Talks(FedAvg):
    name = "talks"
    uplink = "weights"
    downlink = Wordless

class Shouts(FedAvg):
    name = "shouts"
    uplink = Unkind
    ServerState = dict

class Settings(Section):
    depth: int
    seed: int = 0

class Sets(FedAvg):
    name = "sets"
    Settings = Settings

class Unset(FedAvg):
    name = "unset"
    Settings = dict

class Misfit(FedAvg):
    name = "misfit"
    send = None
    def __init__(self): ...
    def client_step(self, state, client): ...
    def server_step(self, *args, **more): ...
    @staticmethod
    def check(federation): ...

class EmptyCodec(Codec): ...

class OddCodec(Fp32):
    name = "odd"
    lossiness = None
    codes = {"weights"}
    Settings = Settings
    def decode(self, payload): ...

class Unnamed(Aggregation):
    def combine(self, answers, exchange): ...

class Odd(Aggregation):
    name: Literal["odd"] = "odd"
    power: float = 1.0
    def combine(self, answers): ...

def function(): ...
"""


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "faulty.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("faulty", None)


UNUSABLE = "arm 'mine': method 'faulty:{0}': class {0} cannot be used: "
METHOD_FAULTS = {
    "Stranger": "arm 'mine': method 'faulty:Stranger': class Stranger must be a subclass of Method"
    " (fedistill.methods.base)",
    "Empty": UNUSABLE.format("Empty") + "it lacks client_step, send, server_step, start_client, start_server,"
    " which every method must have; `name` must be a non-empty string; `paper` must be a non-empty string;"
    " `exchanges` must be a non-empty string; `byte_formula` must be a non-empty string",
    "Silent": UNUSABLE.format("Silent")
    + "`name` must be a non-empty string, but is 3; `paper` must be a non-empty string, but is"
    " ''; `byte_formula` must be a non-empty string, but is None",
    "Talks": UNUSABLE.format("Talks") + "`uplink` must be a subclass of Message"
    " (fedistill.communication.messages.base) or None, but is 'weights'; `downlink`: Wordless does not"
    " describe its tensors in `specs`",
    "Shouts": UNUSABLE.format("Shouts") + "`uplink`: message faulty:Unkind: kind is 3; write a number from 64"
    " to 127, for example `kind = 64` (only messages in fedistill.communication have a member of"
    " Kind); `ServerState` must be a dataclass, but is <class 'dict'>",
    "Sets": UNUSABLE.format("Sets") + "the setting `depth` needs a description: Field(description=...); the"
    " setting `seed` needs a description: Field(description=...); the setting `seed` needs another name: this"
    " one is taken",
    "Unset": UNUSABLE.format("Unset") + "`Settings` must be a subclass of Section (fedistill.config.schema),"
    " but is <class 'dict'>",
    "Misfit": UNUSABLE.format("Misfit") + "`__init__(self)` must take (self, settings); `send` must be a"
    " function; `client_step(self, state, client)` must take (self, state, client, received)",
    "function": "arm 'mine': method 'faulty:function': faulty has no class 'function'.",
    "Stranjer": "arm 'mine': method 'faulty:Stranjer': faulty has no class 'Stranjer'. Did you mean"
    " 'Stranger'?",
}


@pytest.mark.usefixtures("faulty")
@pytest.mark.parametrize("name", METHOD_FAULTS)
def test_what_is_wrong_with_a_method_is_said_before_anything_runs(name: str) -> None:
    assert refusal(method=f"faulty:{name}") == METHOD_FAULTS[name]


@pytest.mark.usefixtures("faulty")
@pytest.mark.parametrize(
    ("codec", "said"),
    [
        (
            "faulty:EmptyCodec",
            "class EmptyCodec cannot be used: it lacks decode, encode, which every",
        ),
        ({"name": "faulty:OddCodec"}, "`decode(self, payload)` must take (self, payload, spec, known)"),
        ({"up": "fp32", "down": "faulty:OddCodec"}, "`lossiness` must be a non-empty string, but is None"),
        ("faulty:OddCodec", "`codes` must be a frozenset of Content, and not empty, but is {'weights'}"),
        ("faulty:OddCodec", "the setting `depth` needs a default"),
        ("faulty:Talks", "class Talks must be a subclass of Codec (fedistill.communication.codecs.base)"),
        ("missing_module:Odd", "module 'missing_module' cannot be imported (ModuleNotFoundError: "),
        ("./faulty.py:Odd", "write module:Class as Python would import them, without a path and without .py"),
    ],
)
def test_what_is_wrong_with_a_codec_is_said_before_anything_runs(codec: Any, said: str) -> None:
    found = refusal(codec=codec)
    assert found.startswith("arm 'mine': codec '")
    assert said in found


@pytest.mark.usefixtures("faulty")
@pytest.mark.parametrize(
    ("aggregation", "said"),
    [
        ("faulty:Unnamed", 'class Unnamed cannot be used: `name` needs a default: name: Literal["mine"] ='),
        ({"name": "faulty:Odd"}, "`combine(self, answers)` must take (self, answers, exchange)"),
        ("faulty:Odd", "the setting `power` needs a description"),
        ("faulty:Sets", "class Sets must be a subclass of Aggregation (fedistill.aggregation.labels)"),
    ],
)
def test_what_is_wrong_with_an_aggregation_is_said_before_anything_runs(aggregation: Any, said: str) -> None:
    found = refusal(aggregation=aggregation)
    assert found.startswith("arm 'mine': `aggregation`: 'faulty:")
    assert said in found


def test_ours_are_held_to_the_same_rules() -> None:
    for registry in (methods, codecs.registry, aggregations):
        for kind in registry.own.values():
            assert registry.find(f"{kind.__module__}:{kind.__qualname__}") is kind
