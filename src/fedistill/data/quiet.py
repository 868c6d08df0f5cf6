"""Runs readers of other libraries without their logs and warnings."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silence the readers, which log errors that they also raise, and warnings of files not closed yet."""
    import datasets  # takes as long as torch, and only some sources need it

    before = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # files are closed by the garbage collector
            try:
                yield
            except Exception as error:  # re-raised unchanged
                # The traceback's frames would keep the file open for as long as the error exists.
                inner = error.__cause__ or error.__context__
                while inner is not None:
                    inner.__traceback__ = None
                    inner = inner.__cause__ or inner.__context__
                raise
    finally:
        datasets.logging.set_verbosity(before)


def first_line(error: BaseException) -> str:
    """Return the type and the first line of the message of an error, cut after 200 characters."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
