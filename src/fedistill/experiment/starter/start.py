"""From data to an experiment file, in order: locate, read, survey, draft, check."""

import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedistill.config.inputs import SAMPLES
from fedistill.config.schema import Experiment
from fedistill.config.section import RawTable
from fedistill.config.task import PublicSource, TaskConfig
from fedistill.config.toml import parse
from fedistill.data.build import build_task
from fedistill.data.sources import choose_columns, read_splits
from fedistill.data.table import Loaded, Splits
from fedistill.errors import ExperimentError
from fedistill.experiment.advice import examine_and_advise
from fedistill.experiment.findings import Finding, raise_errors
from fedistill.experiment.starter.columns import Columns, find_columns, find_public_input
from fedistill.experiment.starter.draft import MOST_PUBLIC, Public, draft, rounded
from fedistill.experiment.starter.locate import Located, locate
from fedistill.experiment.starter.new_file import taken, write_new
from fedistill.experiment.starter.survey import Survey, doubts, look
from fedistill.federation.arm import ReadyArm


@dataclass(frozen=True)
class Started:
    """A new experiment file, what is in the data, and what its checks have found."""

    path: Path
    survey: Survey
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class _Opened:
    """Data that have been read once."""

    located: Located
    splits: Splits
    columns: Columns
    config: TaskConfig
    loaded: Loaded


def start(
    data: Sequence[str], public: str | None, label: str | None, inputs: str | None, out: Path | None
) -> Started:
    """Look at data, and write an experiment that learns from them; `fedistill doctor` accepts it.

    Args:
        data: a file, a folder, a pattern, several of these, or ``hf:OWNER/NAME``.
        public: the same for unlabelled data that everyone may see, if there are any.
        label: the column of labels, or None if it is to be found.
        inputs: the column of images or texts, or None if it is to be found; a table has none.
        out: the file to write, or None if one in the current folder is to be named after the data.

    Raises:
        ExperimentError: the data cannot be found, read or learned from, or the file exists.
    """
    located = locate(data)
    path = out or Path(f"{located.stem}.toml")
    if path.exists():
        raise taken(path)
    opened = _open(located, label, inputs)
    survey = look(located.title, opened.splits, opened.loaded, opened.config, opened.columns)
    shared = None if public is None else _public(locate([public]), opened, path.parent)
    text = draft(survey, _source(opened, path.parent), located.parts, shared, shlex.quote(str(path)))
    experiment = parse(tomllib.loads(text), str(path), base=path.parent)
    findings = [*doubts(survey), *_check(experiment, opened.splits)]
    raise_errors(findings)
    write_new(path, text)
    return Started(path, survey, tuple(findings))


def _open(located: Located, label: str | None, inputs: str | None) -> _Opened:
    """Read data, and choose what they have been read for."""
    splits = read_splits(TaskConfig.model_validate(located.source))
    columns = find_columns(splits.train, located.title, inputs, label)
    settings: RawTable = {"label": columns.label, "drop_missing": True}
    settings["table" if columns.input is None else "input"] = columns.input or {}
    if columns.site is not None:
        settings["partition"] = {"kind": "natural", "column": columns.site}
    elif located.parts:
        settings["partition"] = {"kind": "iid"}
    config = TaskConfig.model_validate({**located.source, **settings})
    return _Opened(located, splits, columns, config, choose_columns(splits, config))


def _source(opened: _Opened, folder: Path) -> RawTable:
    """Return the data and their columns as a file in a folder names them."""
    source, columns = opened.located.seen_from(folder), opened.columns
    if source.get("format") == "imagefolder" and (columns.input, columns.label) == ("image", "label"):
        return source  # these are no names of the user's
    given = {} if columns.input is None else {"input": columns.input}
    return {**source, **given, "label": columns.label}


def _public(located: Located, opened: _Opened, folder: Path) -> Public:
    """Return public data, and how many of them are none of the private ones."""
    source = PublicSource.model_validate({**located.source, "samples": 1})
    splits = read_splits(source, test=False)
    private, column = opened.columns.input, None
    if private is not None:
        column = find_public_input(splits.train, located.title, private)
    update = {"input": column, "drop_missing": True}
    loaded = choose_columns(splits, source.model_copy(update=update), features=opened.loaded.features)
    if loaded.kind != opened.loaded.kind:
        raise ExperimentError(
            f"--public: {located.title} holds {SAMPLES[loaded.kind]}, but {opened.located.title} holds"
            f" {SAMPLES[opened.loaded.kind]}: name public data of the same kind"
        )
    own = opened.loaded.train.keys() + (opened.loaded.test.keys() if opened.loaded.test else [])
    free = len(loaded.train) - int(np.isin(loaded.train.keys(), own).sum())
    if not free:
        raise ExperimentError(
            f"--public: all samples of {located.title} are in {opened.located.title} too: name other data, or"
            " leave --public out"
        )
    settings = located.seen_from(folder)
    settings.pop("test", None)
    if settings.get("format") != "imagefolder" and column is not None:
        settings["input"] = column
    if len(loaded.train) < len(splits.train):
        settings["drop_missing"] = True
    return Public(settings, rounded(min(MOST_PUBLIC, free)))


def _check(experiment: Experiment, splits: Splits) -> list[Finding]:
    """Return what `fedistill doctor` says of an experiment on splits that have been read."""
    task = build_task(
        experiment.task,
        experiment.seed,
        opened=choose_columns(splits, experiment.task, experiment.task.image_size),
    )
    arms = [ReadyArm.of(arm, experiment, task) for arm in experiment.arms]
    return examine_and_advise(experiment, task, arms)
