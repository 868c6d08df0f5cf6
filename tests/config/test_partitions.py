"""The short spelling of partitions: the same as the table, and errors as clear."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from fedistill.config.partitions import Partition
from fedistill.config.task import TaskConfig
from fedistill.config.toml import load
from fedistill.data.partition import partition_title
from fedistill.errors import ExperimentError

SPELLED: dict[str, dict[str, Any]] = {
    "iid": {"kind": "iid"},
    "dirichlet(alpha=0.3)": {"kind": "dirichlet", "alpha": 0.3},
    "dirichlet(alpha=0.3, min_samples=5)": {"kind": "dirichlet", "alpha": 0.3, "min_samples": 5},
    "pathological(classes_per_client=2)": {"kind": "pathological", "classes_per_client": 2},
    "quantity(alpha=1.5)": {"kind": "quantity", "alpha": 1.5},
    "natural(column=hospital)": {"kind": "natural", "column": "hospital"},
    'natural(column="site, ward")': {"kind": "natural", "column": "site, ward"},
    'natural(column="7")': {"kind": "natural", "column": "7"},
}
FILE = """
rounds = 2
task = {{ name = "digits", partition = {} }}
models = {{ clients = ["mlp-s"], server = "mlp-s" }}
arms = [{{ method = "fedavg" }}]
"""


def write(folder: Path, partition: str) -> Path:
    path = folder / "exp.toml"
    path.write_text(FILE.format(partition))
    return path


@pytest.mark.parametrize("spelled", SPELLED)
def test_a_spelling_is_the_table_and_what_results_print(spelled: str, tmp_path: Path) -> None:
    kind = TypeAdapter(Partition).validate_python(SPELLED[spelled])
    assert TaskConfig.model_validate({"name": "digits", "partition": spelled}).partition == kind
    assert load(write(tmp_path, f"'{spelled}'")).task.partition == kind
    assert load(write(tmp_path, "'iid'"), [f"task.partition={spelled}"]).task.partition == kind
    assert partition_title(kind) == spelled


def test_without_settings_a_natural_partition_is_by_files() -> None:
    kind = TypeAdapter(Partition).validate_python("natural")
    assert kind.model_dump(exclude_none=True) == {"kind": "natural"}


def test_an_override_changes_one_setting_of_a_spelled_one(tmp_path: Path) -> None:
    path = write(tmp_path, '"dirichlet(alpha=0.3, min_samples=5)"')
    found = load(path, ["task.partition.alpha=0.1"]).task.partition
    assert found is not None
    assert found.model_dump() == {"kind": "dirichlet", "alpha": 0.1, "min_samples": 5}


def test_files_of_a_spelled_one_are_found_from_the_experiment_file(tmp_path: Path) -> None:
    for spelled in ("indices(file=parts.json)", "natural(column=who, file=parts.json)"):
        found = load(write(tmp_path, f'"{spelled}"')).task.partition
        assert found is not None
        assert found.model_dump()["file"] == str(tmp_path / "parts.json")


@pytest.mark.parametrize(
    ("spelled", "said"),
    [
        (
            "dirichlet(alpha=0.3",
            "`task.partition`: 'dirichlet(alpha=0.3': the brackets do not enclose the settings of one name;"
            " write a name, or a name with settings such as name(setting=1, other=0.5)",
        ),
        ("dirichlet(alpha=0.3, alpa=0.3)", "unknown key `task.partition.alpa`. Did you mean 'alpha'?"),
        ("dirichlet(alpha=0)", "`task.partition.alpha` = 0: must be greater than 0"),
        ("dirichlet", "`task.partition.alpha` is missing"),
        ("natural(column=7)", "`task.partition.column` = 7: must be text in quotes"),
        (
            "dirichlett(alpha=1)",
            "`task.partition.kind` = 'dirichlett': must be one of iid, dirichlet, pathological, quantity,"
            " natural, indices. Did you mean 'dirichlet'?",
        ),
    ],
)
def test_what_is_wrong_with_a_spelling_is_named(spelled: str, said: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"'{spelled}'")
    with pytest.raises(ExperimentError) as caught:
        load(path)
    lines = [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]
    assert lines == [said]
