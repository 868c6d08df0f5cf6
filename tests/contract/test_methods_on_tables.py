"""Every method on tables: each row of the contract's table, played on scikit-learn's breast cancer data."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fedistill import parse
from fedistill.config.schema import Experiment
from fedistill.config.task import TaskConfig
from fedistill.data.build import build_task
from fedistill.data.task import Task
from fedistill.errors import ExperimentError, Refusal
from fedistill.experiment.preflight import examine
from fedistill.federation.arm import ReadyArm
from fedistill.methods.registry import METHODS
from helpers.method_rows import FAMILIES, ROWS, WIDTHS, Row, each
from helpers.runs import run_serially, views_of

FOR_TABLES = [row for row in ROWS if METHODS[row.method].needs.takes("table")]
ONE = {"clients": ["mlp-tab"], "server": "mlp-tab"}
ONE_WIDTH = {"clients": ["mlp-tab@32", "logistic@32"], "server": "mlp-tab@32"}
MIXED = {"clients": ["mlp-tab", "logistic"], "server": "mlp-tab"}
TASK: dict[str, Any] = {"name": "breast-cancer", "clients": 3, "limit": 150, "public": 80}
MORE_FREQUENT = 0.63
"""Share of benign samples: the accuracy of who names no other class."""
LEARNED = 0.8


@cache
def cells(config: str) -> Task:
    return build_task(TaskConfig.model_validate_json(config), seed=0)


def ready(experiment: Experiment) -> ReadyArm:
    return ReadyArm.of(experiment.arms[0], experiment, cells(experiment.task.model_dump_json()))


def experiment_of(row: Row, **changes: Any) -> Experiment:
    arm = {"method": row.method, **row.settings_for_tables}
    raw = {"rounds": 4, "task": TASK, "models": models(row), "arms": [arm], "evaluate": {"every": 4}}
    return parse(raw | changes, "test")


def models(row: Row) -> dict[str, Any]:
    """Unlike ones where the method takes them."""
    if row.mixes:
        return MIXED
    return ONE_WIDTH if row.refusal == WIDTHS else ONE


@each(FOR_TABLES, everyday=FAMILIES)
def test_it_learns_from_tables(row: Row) -> None:
    """In the view that each method is held to on digits, better than by the share of the classes."""
    experiment = experiment_of(row)
    arm = ready(experiment)
    assert [str(one) for one in examine(experiment, arm.task, [arm]) if one.level == "error"] == []
    record = run_serially(experiment, arm).records[-1]
    assert set(record.views) == views_of(arm.method)
    assert LEARNED > MORE_FREQUENT + 0.1
    assert record.views[row.learns[0]] >= LEARNED


@pytest.mark.parametrize("row", [row for row in ROWS if row not in FOR_TABLES], ids=lambda row: row.name)
def test_others_are_refused_by_name_and_reason(row: Row) -> None:
    arm = ready(experiment_of(row))
    with pytest.raises(Refusal) as refused:
        arm.method.check(arm.federation)
    assert f"method {row.method} needs texts, but the samples of this task are rows of tables" in str(
        refused.value
    )


def test_statistics_of_columns_have_the_width_of_the_table() -> None:
    gaussian = next(row for row in ROWS if row.method == "gaussian")
    experiment = experiment_of(gaussian, arms=[{"method": "gaussian", "width": 16}])
    arm = ready(experiment)
    (error,) = [one.what for one in examine(experiment, arm.task, [arm]) if one.level == "error"]
    assert error == (
        "method gaussian: rows of this table are 30 numbers to a model, and all of these are the features,"
        " not width = 16: leave `width` out"
    )


def test_augmentation_is_for_images_and_texts() -> None:
    local = next(row for row in ROWS if row.method == "local")
    experiment = experiment_of(local, train={"augment": {"flip": True, "drop_words": 0.1}})
    arm = ready(experiment)
    (error,) = [str(one) for one in examine(experiment, arm.task, [arm]) if one.level == "error"]
    assert error == (
        "arm 'local': train.augment has flip, drop_words, but the samples of this task are rows of tables:"
        " take them out"
    )


def test_a_model_of_ones_own_reads_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows d from the signature, and may be distilled from others and averaged with its like."""
    (tmp_path / "own_tab.py").write_text(
        "from torch import nn\n\n\ndef net(signature):\n"
        "    (width,) = signature.shape\n"
        "    assert (signature.kind, width) == ('table', 30)\n"
        "    return nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, signature.classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    dsfl = next(row for row in ROWS if row.method == "dsfl")
    experiment = experiment_of(dsfl, models={"clients": ["own_tab:net", "logistic"], "server": "own_tab:net"})
    arm = ready(experiment)
    assert [str(one) for one in examine(experiment, arm.task, [arm]) if one.level == "error"] == []
    assert run_serially(experiment, arm).records[-1].views["server@global"] >= LEARNED


def test_models_of_images_are_refused_by_name() -> None:
    local = next(row for row in ROWS if row.method == "local")
    experiment = experiment_of(local, models={"clients": ["cnn-s"], "server": "mlp-tab"})
    with pytest.raises(ExperimentError) as refused:
        ready(experiment).federation  # noqa: B018  # built when it is asked for
    assert str(refused.value) == (
        "model 'cnn-s' is for image tasks; this is a task of rows of tables: logistic, mlp-tab"
    )


@pytest.mark.parametrize("public", [{"samples": 50, "quality": 20}, {"samples": 50, "images": 0}])
def test_public_sets_that_are_made_of_images_are_refused(public: dict[str, Any]) -> None:
    setting = next(key for key in public if key != "samples")
    config = TaskConfig.model_validate(TASK | {"public": public})
    with pytest.raises(ExperimentError) as refused:
        build_task(config, seed=0)
    assert str(refused.value) == (
        f"task.public.{setting} is for images, but the task holds rows of tables: leave it out"
    )
