"""What may differ in the experiment.toml of a run when it is resumed, and what must not."""

import json
from collections.abc import Iterator
from pathlib import Path

from fedistill.config.schema import Experiment, RuntimeConfig
from fedistill.config.section import Raw, RawTable
from fedistill.errors import ExperimentError

FREE_TABLES = ("runtime", "checkpoint", "flower", "link")
"""Tables of an experiment on which no result depends, but for `_OF_BITS`."""
_OF_BITS = ("runtime.device", "runtime.deterministic", "runtime.fast", "runtime.server_threads")
"""Keys of these tables on which the bits of results depend."""
_PATHS = (
    "task.train",
    "task.test",
    "task.public.train",
    "task.public.test",
    "task.partition.file",
    "task.text.tokenizer",
    "models.start",
)
"""Files may be moved: their content is compared by digests of its own."""
_ABSENT = "absent"
_MOST_NAMED = 8


def check_changes(before: Experiment, now: Experiment, path: Path) -> bool:
    """Return whether a run is resumed with other settings than before, all of which may be changed.

    Rounds and seeds may become more, arms may be added, and files moved; `runtime`, `checkpoint`, `flower`
    and `link` have no part in results, but for `_OF_BITS`.

    Args:
        path: the run's experiment.toml, of which error messages speak.

    Raises:
        ExperimentError: something else was changed; the message names each such key.
    """
    old, new = dict(_settings(before)), dict(_settings(now))
    differing = [key for key in {**old, **new} if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
    wrong = [key for key in differing if not _may_change(key, before, now)]
    if wrong:
        named = [
            f"{key} ({_shown(old.get(key, _ABSENT))}, now {_shown(new.get(key, _ABSENT))})"
            for key in wrong[:_MOST_NAMED]
        ]
        more = f" and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
        raise ExperimentError(
            f"{path} has changed since the run began: {', '.join(named)}{more}. Put the old values back, or"
            " start a new run with another folder; only `rounds` and `seeds` may be raised, arms added, files"
            " moved, and `checkpoint`, `flower`, `link` and `runtime` changed, but for the device, `fast` and"
            " `server_threads`"
        )
    return bool(differing)


def rounding(runtime: RuntimeConfig) -> RawTable:
    """Return what is set, besides the device, on which the bits of results depend."""
    return runtime.model_dump(include={"fast", "server_threads"}, exclude_defaults=True)


def _may_change(key: str, before: Experiment, now: Experiment) -> bool:
    if key.startswith("arms."):
        return key.endswith(".models.start") or _arm_of(key) not in {arm.name for arm in before.arms}
    if key == "rounds":
        return now.rounds > before.rounds
    if key == "seeds":
        return now.all_seeds[: len(before.all_seeds)] == before.all_seeds and before.seeds is not None
    return (key.split(".")[0] in FREE_TABLES and key not in _OF_BITS) or key in _PATHS


def _settings(experiment: Experiment) -> Iterator[tuple[str, Raw]]:
    """Yield every setting with its place, in which an arm's name is JSON, since it may have points in it."""
    raw = experiment.model_dump(mode="json", exclude_none=True)
    arms = {json.dumps(arm["name"]): arm for arm in raw.pop("arms")}
    yield from _flat(raw, "")
    yield from _flat(arms, "arms.")


def _flat(table: RawTable, prefix: str) -> Iterator[tuple[str, Raw]]:
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _arm_of(key: str) -> str:
    name, _ = json.JSONDecoder().raw_decode(key, len("arms."))
    return str(name)


def _shown(value: Raw) -> str:
    text = value if value is _ABSENT else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
