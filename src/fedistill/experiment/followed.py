"""How a run that Python code starts is shown, and how it ends."""

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from rich.console import Console

from fedistill.errors import MissingMainGuard, RuntimeFailure
from fedistill.experiment.progress import Logged, Watcher, is_interactive, shown
from fedistill.experiment.results import AnyResultsJson
from fedistill.stop_signals import stop_requests_of_guest


def follow(folder: Path, quiet: bool, play: Callable[[Watcher], AnyResultsJson]) -> None:
    """Run something, shown to whoever looks on; an error that leaves a run to resume has a note on how to."""
    with _watched(quiet) as watcher:
        try:
            with stop_requests_of_guest():
                play(watcher)
        except MissingMainGuard:
            _hide_traceback_of_missing_guard()
            raise
        except (RuntimeFailure, KeyboardInterrupt, OSError) as error:
            if (folder / "experiment.toml").exists():
                error.add_note(f"Finished rounds are kept; resume with: fedistill.resume({str(folder)!r})")
            raise


def _hide_traceback_of_missing_guard() -> None:
    """Let the interpreter end with the message alone: what it says is all that the script's author needs."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, MissingMainGuard):
            print(f"fedistill: {error}", file=sys.stderr)
        else:
            before(kind, error, trace)

    sys.excepthook = hook


@contextlib.contextmanager
def _watched(quiet: bool) -> Iterator[Watcher]:
    console = Console(stderr=True)
    if quiet or not is_interactive(console):
        yield Logged()
        return
    with warnings.catch_warnings():
        # tqdm, which data libraries import, would like to have ipywidgets in a notebook.
        warnings.filterwarnings("ignore", "IProgress not found")
        with shown(console) as watcher:
            yield watcher
