"""The settings of a run as its page shows them: those that it has used, without folders of any machine."""

from pathlib import PurePosixPath, PureWindowsPath

import tomli_w

from fedistill.config.schema import Experiment
from fedistill.config.section import Raw, RawTable
from fedistill.experiment.results import AnyResultsJson
from fedistill.experiment.table import on_network

_OF_FILES = ("encoding", "separator", "missing", "drop_missing", "relabel")
"""Settings of a task that say how files are read."""
_INHERITED = ("models", "train")
"""Tables of an experiment that arms take over."""


def shown_settings(experiment: Experiment, results: AnyResultsJson) -> str:
    """Return the experiment as TOML, without what does not concern this run.

    Left out are settings of other kinds of data, of networks where there was none, empty ones, and those that
    an arm has in common with the experiment. Of a file's path, the name alone is shown.
    """
    raw: RawTable = experiment.model_dump(exclude_none=True)
    task = raw["task"]
    unused = [kind for kind in ("text", "table") if kind != results["task"]["kind"]]
    for key in (*unused, *(() if "format" in task else _OF_FILES)):
        task.pop(key, None)
    if not on_network(results):
        del raw["flower"]
    for arm in raw["arms"]:
        for table in _INHERITED:
            arm[table] = _changed(arm[table], raw.get(table, {}))
    shown = _without_folders(raw)
    assert isinstance(shown, dict)
    return tomli_w.dumps(shown)


def _changed(own: RawTable, common: RawTable) -> RawTable:
    """Return what a table has otherwise than the common one."""
    found: RawTable = {}
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(common.get(key), dict):
            found[key] = _changed(value, common[key])
        elif key not in common or value != common[key]:
            found[key] = value
    return found


def _without_folders(value: Raw) -> Raw:
    """Return a value without empty tables and lists in it, and with names in place of absolute paths."""
    if isinstance(value, dict):
        found = {key: _without_folders(item) for key, item in value.items()}
        return {key: item for key, item in found.items() if item not in ({}, [])}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if isinstance(value, str) and (
        PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()
    ):
        return PureWindowsPath(value).name
    return value
