"""How a run that goes on is shown in a terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column


class Bars:
    """Shows a run as one progress bar for each arm."""

    def __init__(self, console: Console) -> None:
        # On a narrow terminal the accuracies are cut, not the counts.
        columns = (
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=16, table_column=Column(min_width=4)),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=5)),
            TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn("{task.fields[views]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        )
        self._progress = Progress(*columns, console=console)
        self._bars: dict[str, Any] = {}

    def findings(self, findings: Sequence[Any]) -> None:
        for finding in findings:
            if finding.level == "warning":
                self._progress.console.print(f"warning  {finding}", markup=False, soft_wrap=True)

    def stop(self) -> None:
        if self._bars:
            self._progress.stop()

    def arm(self, name: str, rounds: int, done: int) -> None:
        self._progress.start()
        self._bars[name] = self._progress.add_task(escape(name), total=rounds, completed=done, views="")

    def round(self, name: str, record: Any) -> None:
        shown = "  ".join(f"{view} {value:.1%}" for view, value in record.views.items())
        self._progress.update(self._bars[name], completed=record.round)
        if shown:
            self._progress.update(self._bars[name], views=shown)

    def failed(self, name: str, error: str) -> None:
        self._progress.update(self._bars[name], views="failed")
        self._progress.console.print(f"arm {name!r} failed: {error}", markup=False, soft_wrap=True)
