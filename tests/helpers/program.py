"""The command ``fedistill``, as a process and inside this one."""

import contextlib
import io
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedistill.cli import main
from fedistill.models import registry
from fedistill.stop_signals import STOP_SIGNALS

PROGRAM = Path(sys.executable).parent / "fedistill"
PATIENCE = 240  # seconds until a test gives up on a process; says nothing about how long one should take


def fedistill(*arguments: str | Path, cwd: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, until it ends."""
    command = [str(PROGRAM), *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE, check=False, **more
    )


def start(*arguments: str | Path, cwd: Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """The program in a session of its own, as a terminal has it: Ctrl-C reaches it, its output is kept."""
    return subprocess.Popen(
        [PROGRAM, *arguments],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that are started in the background may ignore these, and their children with them.
        preexec_fn=lambda: [signal.signal(one, signal.SIG_DFL) for one in STOP_SIGNALS],
    )


def here(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The program inside this process: each of its own needs seconds to import its libraries."""
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        patch.chdir(cwd)
        patch.setenv("COLUMNS", "300")
        patch.setattr(sys, "argv", ["fedistill", *map(str, arguments)])
        patch.setattr(sys, "path", list(sys.path))
        try:
            main.main()
            status: Any = 0
        except SystemExit as ended:
            status = ended.code or 0
        finally:
            _forget_modules_in(cwd)
    return subprocess.CompletedProcess(sys.argv, status, out.getvalue(), err.getvalue())


def _forget_modules_in(folder: Path) -> None:
    """Let the next test import its own file of the same name; what lies deeper, such as libraries, stays."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is not None and Path(file).parent == folder.resolve():
            del sys.modules[name]
            for made in (registry._begins_in_first_pass, registry._reused):
                made.cache_clear()
