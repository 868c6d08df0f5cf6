"""The fork server is started before torch is imported, where there may be workers, and nowhere else."""

import subprocess
import sys

import pytest

SCRIPT = """
import os, sys
from multiprocessing import forkserver
from fedistill.config.schema import RuntimeConfig
from fedistill.federation import processes

processes._PRELOADED = ()  # that it begins is enough here
os.sched_getaffinity = lambda process: range({cores})
processes.start_early(RuntimeConfig({settings}))
print("torch" in sys.modules, forkserver._forkserver._forkserver_pid is not None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="has cores that a process may not use, and a fork server")
@pytest.mark.parametrize(
    ("cores", "settings", "started"),
    [
        (4, "", True),
        (1, "", False),
        (1, "workers=2", True),
        (4, "workers=1", False),
        (4, "kind='serial'", False),
        (1, "kind='processes'", True),
    ],
)
def test_the_fork_server_is_started_where_there_may_be_workers(
    cores: int, settings: str, started: bool
) -> None:
    script = SCRIPT.format(cores=cores, settings=settings)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"False {started}\n"
