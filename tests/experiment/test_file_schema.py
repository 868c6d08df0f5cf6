"""The JSON schema of experiment files: what it accepts and refuses is what a run does."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from fedistill.config.toml import parse
from fedistill.errors import ExperimentError
from fedistill.experiment.file_schema import file_schema
from fedistill.federation.arm import resolve_arm
from helpers.installed import installed
from helpers.program import here

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def accepts() -> Callable[[dict[str, Any]], bool]:
    schema = file_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema).is_valid


def raw(**changes: Any) -> dict[str, Any]:
    return {
        "rounds": 3,
        "task": {"name": "digits", "public": 100},
        "models": {"clients": ["cnn-s", "mlp-s@64"], "server": "own.models:wide"},
        "arms": [{"method": "dsfl", "codec": "simplex(bits=4)"}],
    } | changes


def test_models_of_the_hub_by_table_or_spelling(accepts: Callable[[dict[str, Any]], bool]) -> None:
    table = {"name": "hf:owner/bert", "lora": 4}
    for model, valid in ((table, True), ("hf:owner/bert(lora=4)", True), (table | {"rank": 4}, False)):
        tables = raw(models={"clients": [model], "server": model})
        assert accepts(tables) is valid
        if valid:
            assert parse(tables, "test").arms[0].models.clients == ["hf:owner/bert(lora=4)"]
        else:
            with pytest.raises(ExperimentError, match="unknown key `rank`"):
                parse(tables, "test")


def dsfl(**settings: Any) -> dict[str, Any]:
    return {"arms": [{"method": "dsfl", **settings}]}


def task(**settings: Any) -> dict[str, Any]:
    return {"task": {"name": "digits", **settings}}


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.toml")), ids=lambda path: path.stem)
def test_every_example_is_valid(path: Path, accepts: Callable[[dict[str, Any]], bool]) -> None:
    assert accepts(tomllib.loads(path.read_text(encoding="utf-8")))


RIGHT = [
    {},
    {"seeds": 3},
    {"seeds": [0, 7]},
    {"link": "lora"},
    {"link": {"up": 10, "down": 10.5, "latency": 0}},
    task(partition="dirichlet(alpha=0.3)"),
    task(partition={"kind": "natural", "column": "site"}),
    task(public={"samples": 20, "images": 0}),
    {"task": {"format": "csv", "train": ["a.csv", "b.csv"], "image_size": [8, 8]}},
    dsfl(codec={"name": "simplex", "bits": 2}),
    dsfl(codec={"up": "onehot", "down": {"name": "simplex", "bits": 4}}),
    dsfl(codec="my.codecs:Mine"),
    dsfl(aggregation="prior-corrected", distill_epochs=3),
    dsfl(aggregation={"name": "era", "temperature": 0.5}),
    dsfl(start="gaussian(width=32)"),
    dsfl(start={"name": "ridge", "width": 8}),
    dsfl(accumulate={"worth": 1.0, "most": 6}),
    dsfl(train={"optimizer": {"lr": 0.1}}, models={"server": "cnn-m"}),
    {"arms": [{"method": "my.methods:Mine", "codec": "fp16"}]},
]
WRONG = [
    {"ruonds": 3},
    {"rounds": 0},
    {"arms": []},
    {"task": {"name": "digts"}},
    task(clientss=3),
    task(partition={"kind": "dirichlet", "alpha": 0.3, "alfa": 1}),
    task(public={"sample": 20}),
    {"models": {"clients": ["cnn-x"], "server": "cnn-s"}},
    {"train": {"epoch": 2}},
    {"arms": [{"method": "dsffl"}]},
    {"arms": [{"name": "no-method"}]},
    dsfl(distil_epochs=3),
    dsfl(distill_epochs=0),
    dsfl(codec="simplexx"),
    dsfl(codec={"name": "simplex", "bit": 4}),
    dsfl(codec={"up": "onehot", "dwn": "onehot"}),
    dsfl(aggregation="era-x"),
    dsfl(aggregation={"name": "era", "temprature": 1.0}),
    dsfl(train={"optimizer": {"rate": 0.1}}),
]


@pytest.mark.parametrize("changes", RIGHT, ids=json.dumps)
def test_what_a_run_takes_is_valid(
    changes: dict[str, Any], accepts: Callable[[dict[str, Any]], bool]
) -> None:
    parse(raw(**changes), "test")
    assert accepts(raw(**changes))


@pytest.mark.parametrize("changes", WRONG, ids=json.dumps)
def test_what_a_run_refuses_is_not(
    changes: dict[str, Any], accepts: Callable[[dict[str, Any]], bool]
) -> None:
    assert not accepts(raw(**changes))
    if "models" in changes or changes.get("task", {}).get("name") == "digts":
        return  # a run needs the data to tell

    def resolve() -> None:
        for arm in parse(raw(**changes), "test").arms:
            resolve_arm(arm)

    with pytest.raises(ExperimentError):
        resolve()


def test_methods_of_installed_packages_are_in_it(tmp_path: Path) -> None:
    with installed(tmp_path) as packages:
        packages.outside()
        found = file_schema()["$defs"]["Arm"]["anyOf"]
    names = [arm["properties"]["method"].get("const") for arm in found]
    assert {"voting", "fedavg", "ballots"} < set(names)


def test_the_command_prints_it(tmp_path: Path) -> None:
    done = here("schema", cwd=tmp_path)
    assert done.returncode == 0
    assert json.loads(done.stdout) == file_schema()


def test_settings_are_described_and_null_is_nowhere() -> None:
    """TOML has no null; an editor shows what the settings say of themselves."""
    schema = file_schema()
    assert "null" not in json.dumps(schema).replace('"description"', "")
    (arm,) = [
        one for one in schema["$defs"]["Arm"]["anyOf"] if one["properties"]["method"].get("const") == "bridge"
    ]
    assert arm["properties"]["vote_epochs"] == {
        "default": 20,
        "description": "epochs on private data before a client votes",
        "minimum": 1,
        "type": "integer",
    }
