"""How a run is followed: in the log, and on a console with one progress bar per arm."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from fedistill.experiment.findings import Finding, merged
from fedistill.federation.failures import list_reasons
from fedistill.federation.history import RoundRecord

logger = logging.getLogger(__name__)
_LONGEST_NAME = 24
_NARROWEST_WITH_BAR = 40
_SPACE = "  "
_SECONDS_BETWEEN_REFRESHES = 0.2


class Watcher(Protocol):
    """Receives the progress of a run."""

    def findings(self, findings: Sequence[Finding]) -> None: ...
    def arm(self, name: str, rounds: int, done: int) -> None: ...
    def round(self, name: str, record: RoundRecord) -> None: ...
    def failed(self, name: str, error: str) -> None: ...


class Logged:
    """Logs the progress of a run: warnings and failures as such, everything else as information."""

    def __init__(self) -> None:
        self._first_with: dict[str, str] = {}
        """The first arm that failed with an error, by its text."""

    def findings(self, findings: Sequence[Finding]) -> None:
        for warning in merged([finding for finding in findings if finding.level == "warning"]):
            logger.warning("%s", warning)

    def arm(self, name: str, rounds: int, done: int) -> None:
        logger.info("arm %r: %d of %d rounds done", name, done, rounds)

    def round(self, name: str, record: RoundRecord) -> None:
        logger.info("arm %r: round %d: %s", name, record.round, _views(record) or "not evaluated")
        if record.missing:
            reasons = list_reasons({int(client): reason for client, reason in record.missing.items()})
            logger.warning("arm %r: round %d: left out: %s", name, record.round, reasons)

    def failed(self, name: str, error: str) -> None:
        first = self._first_with.setdefault(error, name)
        if first == name:
            logger.error("arm %r failed: %s", name, error)
        else:
            logger.error("arm %r failed as arm %r did", name, first)


class Prefixed:
    """Hands on how one of several runs goes on; what was found before they began has been told.

    The prefix of arms' names says which run it is, since a narrow terminal cuts the end off.
    """

    def __init__(self, watcher: Watcher, prefix: str) -> None:
        self._watcher, self._prefix = watcher, prefix

    def findings(self, findings: Sequence[Finding]) -> None:
        pass

    def arm(self, name: str, rounds: int, done: int) -> None:
        self._watcher.arm(self._prefix + name, rounds, done)

    def round(self, name: str, record: RoundRecord) -> None:
        self._watcher.round(self._prefix + name, record)

    def failed(self, name: str, error: str) -> None:
        self._watcher.failed(self._prefix + name, error)


class _Name(ProgressColumn):
    """An arm's name, of which a narrow terminal shows the beginning."""

    def __init__(self, console: Console) -> None:
        super().__init__(Column(no_wrap=True))
        self._console = console

    def render(self, task: Task) -> Text:
        name = Text(task.description)
        name.truncate(min(_LONGEST_NAME, self._console.width // 3), overflow="ellipsis")
        return name


@dataclass(frozen=True)
class _Whole:
    """As many of some texts as there is room for, the first first; none of them is cut."""

    texts: Sequence[str]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(0, min(cell_len(_SPACE.join(self.texts)), options.max_width))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        count = len(self.texts)
        while count and cell_len(_SPACE.join(self.texts[:count])) > options.max_width:
            count -= 1
        yield Text(_SPACE.join(self.texts[:count]), no_wrap=True)


class _Views(ProgressColumn):
    """The accuracies of an arm's last round, without those that a narrow terminal has no room for."""

    def render(self, task: Task) -> _Whole:
        return _Whole(task.fields["views"])


class _Cell:
    """Shows bars below the cell of a notebook, in one place; rich's own way of it needs ipywidgets."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._shown_at = progress, -math.inf
        self._handle: Any = None

    def refresh(self, *, always: bool = False) -> None:
        """Show the bars as they are; not more often than somebody can see, unless ``always``."""
        from IPython.display import display

        now = time.monotonic()
        if not always and now < self._shown_at + _SECONDS_BETWEEN_REFRESHES:
            return
        self._shown_at = now
        table = self._progress.make_tasks_table(self._progress.tasks)
        if self._handle is None:
            self._handle = display(table, display_id=True)
        else:
            self._handle.update(table)


class Bars(Logged):
    """Shows one progress bar per arm as well."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        columns: list[ProgressColumn] = [
            _Name(console),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=5)),
        ]
        if console.width >= _NARROWEST_WITH_BAR:
            columns.insert(1, BarColumn(bar_width=16, table_column=Column(min_width=4)))
            columns += [TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)), _Views()]
        self._progress = Progress(*columns, console=console)
        self._bars: dict[str, TaskID] = {}
        self._cell = _Cell(self._progress) if console.is_jupyter else None

    def stop(self) -> None:
        if self._bars and self._cell is not None:
            self._cell.refresh(always=True)
        elif self._bars:
            self._progress.stop()

    def arm(self, name: str, rounds: int, done: int) -> None:
        super().arm(name, rounds, done)
        if self._cell is None:
            self._progress.start()
        self._bars[name] = self._progress.add_task(name, total=rounds, completed=done, views=())
        self._refresh()

    def round(self, name: str, record: RoundRecord) -> None:
        super().round(name, record)
        self._progress.update(self._bars[name], completed=record.round)
        if record.views:
            self._progress.update(self._bars[name], views=_shares(record))
        self._refresh()

    def failed(self, name: str, error: str) -> None:
        self._progress.update(self._bars[name], views=("failed",))
        self._refresh()
        super().failed(name, error)

    def _refresh(self) -> None:
        if self._cell is not None:  # a terminal is refreshed by a thread
            self._cell.refresh()


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


def _shares(record: RoundRecord) -> list[str]:
    return [f"{view} {value:.1%}" for view, value in record.views.items()]


def _views(record: RoundRecord) -> str:
    return "  ".join(_shares(record))
