"""How a run is followed: in the log, and on a console with one progress bar per arm."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from fedistill.experiment.preflight import Finding
from fedistill.federation.history import RoundRecord

logger = logging.getLogger(__name__)


class Watcher(Protocol):
    """Receives the progress of a run."""

    def findings(self, findings: Sequence[Finding]) -> None: ...
    def arm(self, name: str, rounds: int, done: int) -> None: ...
    def round(self, name: str, record: RoundRecord) -> None: ...
    def failed(self, name: str, error: str) -> None: ...


class Logged:
    """Logs the progress of a run: warnings and failures as such, everything else as information."""

    def findings(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            if finding.level == "warning":
                logger.warning("%s", finding)

    def arm(self, name: str, rounds: int, done: int) -> None:
        logger.info("arm %r: %d of %d rounds done", name, done, rounds)

    def round(self, name: str, record: RoundRecord) -> None:
        logger.info("arm %r: round %d: %s", name, record.round, _views(record) or "not evaluated")

    def failed(self, name: str, error: str) -> None:
        logger.error("arm %r failed: %s", name, error)


class Bars(Logged):
    """Shows one progress bar per arm as well."""

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
        self._bars: dict[str, TaskID] = {}

    def stop(self) -> None:
        if self._bars:
            self._progress.stop()

    def arm(self, name: str, rounds: int, done: int) -> None:
        super().arm(name, rounds, done)
        self._progress.start()
        self._bars[name] = self._progress.add_task(escape(name), total=rounds, completed=done, views="")

    def round(self, name: str, record: RoundRecord) -> None:
        super().round(name, record)
        self._progress.update(self._bars[name], completed=record.round)
        if record.views:
            self._progress.update(self._bars[name], views=_views(record))

    def failed(self, name: str, error: str) -> None:
        self._progress.update(self._bars[name], views="failed")
        super().failed(name, error)


class ConsoleHandler(logging.Handler):
    """Prints messages on a console, above the bars where there are any."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        mark = "fedistill: " if record.levelno >= logging.ERROR else f"{record.levelname.lower():8} "
        print_line(self._console, mark + record.getMessage())


@contextmanager
def shown(console: Console, quiet: bool = False) -> Iterator[Watcher]:
    """Show a run on a console: errors; unless quiet, warnings, and bars in a terminal or a notebook."""
    package = logging.getLogger("fedistill")
    handler = ConsoleHandler(console)
    handler.setLevel(logging.ERROR if quiet else logging.WARNING)
    package.addHandler(handler)
    try:
        if quiet or not is_interactive(console):
            yield Logged()
            return
        bars = Bars(console)
        try:
            yield bars
        finally:
            with suppress(OSError):  # the terminal has closed
                bars.stop()
    finally:
        package.removeHandler(handler)


def is_interactive(console: Console) -> bool:
    """Whether somebody looks on: in a terminal or in a notebook."""
    return console.is_terminal or console.is_jupyter


def print_line(console: Console, text: str) -> None:
    """Print a text as it is: in one line, so that a command in it can be copied."""
    console.print(text, markup=False, soft_wrap=True, highlight=False)


def _views(record: RoundRecord) -> str:
    return "  ".join(f"{view} {value:.1%}" for view, value in record.views.items())
