"""What a terminal shows of a run: whole numbers at any width, and each error once."""

import io
import logging
import re
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from fedistill.errors import ExperimentError
from fedistill.experiment.findings import Finding, merged, raise_errors
from fedistill.experiment.progress import Bars, Logged, shown

VIEWS = {"server@global": 0.8123, "client@global": 0.7, "client@own": 1.0}
LONG = "an arm of 16 levels whose name is long [x]"


def last_lines(width: int) -> list[str]:
    console = Console(width=width, height=30, force_terminal=True, file=io.StringIO(), color_system=None)
    bars = Bars(console)
    bars.arm("dsfl", 1000, 0)
    bars.arm(LONG, 1000, 0)
    record: Any = SimpleNamespace(round=998, views=VIEWS, missing={})
    bars.round("dsfl", record)
    bars.round(LONG, record)
    bars.stop()
    assert isinstance(console.file, io.StringIO)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    return [line for line in text.split("\r")[-1].splitlines() if line.strip()]


@pytest.mark.parametrize("width", [24, 30, 39, 40, 52, 60, 70, 80, 81, 100, 110, 120, 150])
def test_a_progress_line_is_never_cut_inside_a_number(width: int) -> None:
    lines = last_lines(width)
    assert len(lines) == 2
    for line in lines:
        assert len(line) <= width
        assert line.count("998/1000") == 1
        # Accuracies are there whole, the first first, or not at all.
        _, _, after = line.partition("998/1000")
        texts = [f"{view} {value:.1%}" for view, value in VIEWS.items()]
        views = after.replace("-:--:--", "").strip()
        assert views in [*("  ".join(texts[:count]) for count in range(4))]
    assert lines[0].startswith("dsfl ")


def test_how_many_accuracies_have_room() -> None:
    assert [last_lines(width)[0].count("@") for width in (60, 80, 100, 120)] == [0, 1, 2, 3]


def test_an_error_of_several_arms_is_one_message_that_names_them() -> None:
    same = [Finding("error", f"arm {name!r}", "model 'x' has no head", "give it one") for name in "abc"]
    other = Finding("error", "arm 'b'", "codec y cannot code weights")
    task = Finding("warning", "task", "odd")
    assert merged([task, *same, other, task]) == [
        task,
        Finding("error", "arms 'a', 'b', 'c'", "model 'x' has no head", "give it one"),
        other,
    ]
    with pytest.raises(ExperimentError) as caught:
        raise_errors([task, *same, other])
    assert str(caught.value).splitlines() == [
        "arms 'a', 'b', 'c': model 'x' has no head: give it one",
        "arm 'b': codec y cannot code weights",
    ]


def test_a_failure_of_several_arms_is_told_in_full_once() -> None:
    console = Console(width=200, file=io.StringIO())
    with shown(console) as watcher:
        watcher.failed("a", "round 1, client 0: the loss is nan")
        watcher.failed("b", "round 1, client 0: the loss is nan")
        watcher.failed("c", "round 2, server: no memory")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "fedistill: arm 'a' failed: round 1, client 0: the loss is nan",
        "fedistill: arm 'b' failed as arm 'a' did",
        "fedistill: arm 'c' failed: round 2, server: no memory",
    ]


def test_a_warning_of_several_arms_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="fedistill"):
        Logged().findings([Finding("warning", f"arm {name!r}", "skewed", "mend it") for name in "ab"])
    assert caplog.messages == ["arms 'a', 'b': skewed: mend it"]
