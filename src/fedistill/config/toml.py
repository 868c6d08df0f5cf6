"""The experiment file: reads TOML and overrides into a validated `Experiment`, and writes it back."""

import tomllib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import tomli_w

from fedistill.config.partitions import partition_table
from fedistill.config.schema import Experiment
from fedistill.config.section import Raw, RawTable
from fedistill.errors import ExperimentError, nearest


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file and apply ``section.key=value`` overrides.

    Paths in the file are relative to the file itself.

    Raises:
        ExperimentError: the file is missing or is not TOML, or a key or value is wrong.
    """
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors write a byte order mark
    except FileNotFoundError:
        raise ExperimentError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path}: cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise ExperimentError(f"{path}: not valid TOML: {error}") from None
    raw = _with_partition_table(raw)  # so that overrides can change one setting of it
    for override in overrides:
        _override(raw, override)
    return parse(raw, str(path), base=path.parent)


def parse(raw: RawTable, where: str = "experiment", base: Path | None = None) -> Experiment:
    """Return an experiment from the tables of a file, as a dict; ``where`` names it in error messages.

    Raises:
        ExperimentError: a key or value is wrong; the message names each such place and the nearest known key.
    """
    if base is not None:
        raw = _anchor(raw, base)
    return Experiment.model_validate(raw, context={"where": where})


def settings_of(overrides: Sequence[str]) -> RawTable:
    """Return the tables that ``section.key=value`` overrides make without an experiment file.

    Raises:
        ExperimentError: one is not of this form.
    """
    raw: RawTable = {}
    for override in overrides:
        _override(raw, override)
    return raw


def to_toml(experiment: Experiment) -> str:
    """Return the fully resolved experiment as TOML; loading it again returns an equal experiment."""
    return tomli_w.dumps(experiment.model_dump(exclude_none=True))


def _override(raw: RawTable, text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ExperimentError(f"--set {text}: write section.key=value, for example rounds=5")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    *parents, last = key.strip().split(".")
    place: Raw = raw
    for depth, part in enumerate(parents):
        inside = ".".join(parents[: depth + 1])
        place = _item(place, part, text) if isinstance(place, list) else place.setdefault(part, {})
        if not isinstance(place, dict | list):
            raise ExperimentError(
                f"--set {text}: `{inside}` is a value, not a table: set it as a whole,"
                f" {inside}={{ {last} = {value} }}"
            )
    if isinstance(place, list):
        whole = ".".join(parents)
        example = "arms.0.codec=fp16" if whole == "arms" else f'{whole}=["a", "b"]'
        raise ExperimentError(
            f"--set {text}: `{whole}` is a list: name a key of one of its tables, or set it as a whole,"
            f" for example {example}"
        )
    place[last] = parsed


def _item(items: list[Raw], part: str, text: str) -> Raw:
    """Return the arm with this position or name."""
    if part.isdecimal() and int(part) < len(items):
        return items[int(part)]
    names = [item.get("name", item.get("method")) for item in items if isinstance(item, dict)]
    for item, name in zip(items, names, strict=False):
        if part == name:
            return item
    known = ", ".join(f"{place} ({name})" for place, name in enumerate(names))
    guess = nearest(part, [name for name in names if isinstance(name, str)])
    raise ExperimentError(f"--set {text}: there is no arm {part!r}; the arms are {known}.{guess}")


def _with_partition_table(raw: RawTable) -> RawTable:
    task = raw.get("task")
    if not isinstance(task, dict) or not isinstance(task.get("partition"), str):
        return raw
    with suppress(ExperimentError):  # the validation says what is wrong, and where
        return {**raw, "task": {**task, "partition": partition_table(task["partition"])}}
    return raw


def _anchor(raw: RawTable, base: Path) -> RawTable:
    """Make the paths of local files absolute, so that a run can be resumed from any folder."""
    raw = _with_anchored_starts(_with_partition_table(raw), base)
    task = raw.get("task")
    if not isinstance(task, dict):
        return raw
    task = _anchored_source(task, base)
    partition = task.get("partition")
    if isinstance(partition, dict) and isinstance(partition.get("file"), str):
        task["partition"] = {**partition, "file": str((base / partition["file"]).resolve())}
    if isinstance(task.get("public"), dict):
        task["public"] = _anchored_source(task["public"], base)
    text = task.get("text")
    if isinstance(text, dict) and isinstance(text.get("tokenizer"), str):
        task["text"] = {**text, "tokenizer": str((base / text["tokenizer"]).resolve())}
    return {**raw, "task": task}


def _with_anchored_starts(raw: RawTable, base: Path) -> RawTable:
    """Make the paths of saved models absolute, those of the experiment and of its arms."""

    def anchored(table: Raw) -> Raw:
        models = table.get("models") if isinstance(table, dict) else None
        if not isinstance(models, dict) or not isinstance(models.get("start"), str):
            return table
        return {**table, "models": {**models, "start": str((base / models["start"]).resolve())}}

    arms = raw.get("arms")
    found: RawTable = anchored(raw)
    return {**found, "arms": [anchored(arm) for arm in arms]} if isinstance(arms, list) else found


def _anchored_source(source: RawTable, base: Path) -> RawTable:
    if "format" not in source:
        return dict(source)
    paths: RawTable = {key: _anchored_paths(source[key], base) for key in ("train", "test") if key in source}
    return {**source, **paths}


def _anchored_paths(value: Raw, base: Path) -> Raw:
    if isinstance(value, list):
        return [_anchored_paths(item, base) for item in value]
    return str((base / value).resolve()) if isinstance(value, str) else value
