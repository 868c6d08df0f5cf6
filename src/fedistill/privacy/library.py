"""The one place that imports Opacus, which is an extra, and takes seconds."""

import importlib
import logging
from types import ModuleType

from fedistill.errors import ExperimentError


def opacus(part: str) -> ModuleType:
    """Return a module of Opacus, by its name within the package.

    Raises:
        ExperimentError: Opacus is not installed.
    """
    root = logging.getLogger()
    handlers, level = [*root.handlers], root.level
    try:
        return importlib.import_module(f"opacus.{part}")
    except ImportError as error:
        raise ExperimentError(
            f"DP-SGD needs the package opacus ({error}): pip install 'fedistill[privacy]'"
        ) from None
    finally:  # its import sets up the log of the whole program
        root.handlers[:] = handlers
        root.setLevel(level)
