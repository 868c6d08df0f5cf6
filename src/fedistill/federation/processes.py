"""How worker processes are started; without torch, so that it can begin before torch is imported."""

import multiprocessing
import os
from typing import TYPE_CHECKING

from fedistill.config.schema import RuntimeConfig

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

_PRELOADED = ("fedistill.federation.local_executor",)


def process_context() -> "ForkServerContext | SpawnContext":
    """Return how workers are started: from a fork server where the system has one."""
    if not _forks():
        return multiprocessing.get_context("spawn")
    forked = multiprocessing.get_context("forkserver")
    forked.set_forkserver_preload([*_PRELOADED])
    return forked


def start_early(settings: RuntimeConfig) -> None:
    """Have the fork server import torch while this process does, if there may be workers."""
    alone = settings.kind == "serial" or (settings.kind == "auto" and (settings.workers or cores()) == 1)
    if alone or not _forks():
        return
    process_context()
    from multiprocessing import forkserver  # which some systems lack

    forkserver.ensure_running()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _forks() -> bool:
    return "forkserver" in multiprocessing.get_all_start_methods()
