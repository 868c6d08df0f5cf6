"""The experiment file that tuning leaves: each arm with its best settings, and where they come from."""

import json
import textwrap
from collections.abc import Sequence

import tomli_w

from fedistill.config.inputs import InputKind
from fedistill.config.schema import Experiment
from fedistill.config.section import RawTable
from fedistill.studies.goal import Goal, TunedArm
from fedistill.studies.search_space import changed

_WIDTH = 110


def tuned_toml(
    experiment: Experiment,
    arms: Sequence[TunedArm],
    goal: Goal,
    data: InputKind,
    made: Sequence[str],
) -> str:
    """Return the experiment with the best settings of its arms, as TOML.

    An arm has what it does not share with the whole experiment.

    Args:
        arms: in the order of the experiment.
        made: how the file was made, for its heading.
    """
    whole: RawTable = experiment.model_dump(exclude_unset=True, exclude_none=True, exclude={"arms"})
    tables = []
    for arm, tuned in zip(experiment.arms, arms, strict=True):
        best = changed(arm, tuned.best["settings"] if tuned.best else {}, data)
        table: RawTable = best.model_dump(exclude_unset=True, exclude_none=True)
        for key in ("models", "train"):
            table[key] = _beyond(whole.get(key, {}), table[key])
            if not table[key]:
                del table[key]
        if table["name"] == table["method"]:
            del table["name"]
        tables.append(table)
    heading = [*made, *(_origin(tuned, goal) for tuned in arms)]
    return "".join(map(_comment, heading)) + "\n" + tomli_w.dumps({**whole, "arms": tables})


def settings_text(tuned: TunedArm) -> str:
    """Return the best settings as they would stand in an experiment file."""
    if tuned.best is None:
        return "all trials failed" if tuned.trials else "not tuned"
    written = ", ".join(f"{key} = {json.dumps(value)}" for key, value in tuned.best["settings"].items())
    return written or "its own settings"


def outcome_text(tuned: TunedArm, goal: Goal) -> str:
    """Return what the best trial reached, and what the arm's own settings did."""
    if tuned.best is None:
        return "-"
    own = tuned.trials[0]
    found, before = goal.describe(tuned.best), goal.describe(own)
    return found if tuned.best is own else f"{found} (own settings: {before})"


def _beyond(base: RawTable, table: RawTable) -> RawTable:
    """Return what a table has that it would not inherit."""
    found: RawTable = {}
    for key, value in table.items():
        if key not in base:
            found[key] = value
        elif base[key] != value:
            both = isinstance(value, dict) and isinstance(base[key], dict)
            found[key] = _beyond(base[key], value) if both else value
    return found


def _origin(tuned: TunedArm, goal: Goal) -> str:
    if tuned.best is None:
        return f"{tuned.name}: {settings_text(tuned)}"
    return (
        f"{tuned.name}: {settings_text(tuned)}; trial {tuned.best['trial']} of {len(tuned.trials)},"
        f" {outcome_text(tuned, goal)}"
    )


def _comment(text: str) -> str:
    """Return a comment; what TOML forbids in one, such as a line break in a command, becomes a space."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return textwrap.fill(plain, _WIDTH, initial_indent="# ", subsequent_indent="#   ") + "\n"
