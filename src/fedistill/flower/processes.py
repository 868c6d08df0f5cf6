"""Processes of a SuperLink and its SuperNodes on this machine, with TLS and known keys."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import tomli_w

from fedistill.errors import RuntimeFailure
from fedistill.flower.allowed_modules import KEY
from fedistill.flower.node_config import ONE, SEVERAL
from fedistill.flower.process_guard import ProcessGuard
from fedistill.state import write_file
from fedistill.stop_signals import STOP_SIGNALS

HOST = "127.0.0.1"
_LINK = "trial"
_START_SECONDS, _STOP_SECONDS, _COMMAND_SECONDS = 60.0, 10.0, 120.0

_Said = TypedDict(
    "_Said",
    {"success": bool, "error-message": str, "run-id": int | str, "runs": list[dict[str, str]]},
    total=False,
)
"""What a command of Flower prints as JSON, with the keys that are used here."""


class TrialNetwork:
    """Processes of one trial, in the folder ``flower`` of its run; all of them end with the context.

    Attributes:
        environment: of all processes.
        listens_on: the SuperLink's address.
    """

    listens_on = HOST

    def __init__(
        self, out: Path, nodes: int, modules: Sequence[str] = (), clients: int | None = None
    ) -> None:
        """
        Args:
            modules: what the nodes let the experiment name.
            clients: how many the nodes are together, divided as evenly as can be; by default one each.
        """
        self._modules, self._clients = modules, clients or nodes
        self.folder = out.absolute() / "flower"
        self._count = nodes
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._guard = ProcessGuard()
        self._ports = free_ports(nodes + 1)
        # Without telemetry, and without a look for updates, it works offline.
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            # As for `fedistill` itself, own modules may lie in the folder that one is in.
            "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")])),
            "FLWR_HOME": str(self.folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
        }
        # What goes to this machine must not go by way of a proxy.
        near = ",".join(
            filter(None, [os.environ.get("NO_PROXY", os.environ.get("no_proxy")), HOST, "localhost"])
        )
        self.environment |= {"NO_PROXY": near, "no_proxy": near}

    def __enter__(self) -> "TrialNetwork":
        self._write_settings()
        # To an earlier SuperLink these nodes are still online, and would not be let in again.
        for path in self.folder.glob("superlink.db*"):
            path.unlink()
        self._guard.__enter__()
        try:
            self.start_link()
            for node in range(self._count):
                self._flwr("supernode", "register", str(self._key(node, "pub")), _LINK)
                self.start_node(node)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """Where SuperNodes reach the SuperLink."""
        return f"{HOST}:{self._ports[0]}"

    def start_link(self) -> None:
        """Start the SuperLink and wait until it listens.

        Raises:
            RuntimeFailure: it does not.
        """
        certificates = [
            *("--ssl-certfile", self._file("server.crt"), "--ssl-keyfile", self._file("server.key")),
            *("--ssl-ca-certfile", self._file("ca.crt")),
        ]
        self._start(
            "superlink",
            "flower-superlink",
            *certificates,
            *("--host", self.listens_on, "--port", str(self._ports[0])),
            *("--database", str(self.folder / "superlink.db")),
            "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
        )
        until = time.monotonic() + _START_SECONDS
        while not self._listens():
            self.check("superlink")
            if time.monotonic() > until:
                waited = f"the SuperLink does not listen after {_START_SECONDS:g} s"
                raise RuntimeFailure(f"{waited}; {self.log('superlink')}")
            time.sleep(0.1)

    def start_node(self, node: int) -> None:
        self._start(
            f"node-{node}",
            "flower-supernode",
            *("--root-certificates", self._file("ca.crt"), "--superlink", self.address),
            *("--auth-supernode-private-key", str(self._key(node, "key"))),
            *("--port", str(self._ports[1 + node])),
            *("--node-config", self.node_config(node)),
        )

    def node_config(self, node: int) -> str:
        """In trials all that nodes hold are the shares of the data that have their clients' numbers."""
        allowed = f' {KEY}="{",".join(self._modules)}"' if self._modules else ""
        first, end = (self._clients * place // self._count for place in (node, node + 1))
        who = f"{ONE}={first}" if end == first + 1 else f'{SEVERAL}="{first}-{end - 1}"'
        return f'{who} state="{self.folder / f"node-{node}"}"{allowed}'

    def run(self) -> int:
        """Hand the app in; return the run's number."""
        return int(self._flwr("run", str(self.folder / "app"), _LINK)["run-id"])

    def status(self, run: int) -> str:
        """What Flower says of the run, such as ``running`` or ``finished:failed``."""
        return str(self._flwr("ls", _LINK, "--run-id", str(run))["runs"][0]["status"])

    def check(self, name: str) -> None:
        """Raise `RuntimeFailure` where a process has ended."""
        process = self._processes.get(name)
        if process is None or process.poll() is not None:
            raise RuntimeFailure(f"{name} has ended; {self.log(name)}")

    def ended(self) -> list[str]:
        """Where to read why processes have ended by themselves."""
        return [self.log(name) for name, process in self._processes.items() if process.poll() is not None]

    def kill(self, name: str) -> None:
        """End a process and its children at once, as a power cut would."""
        process = self._processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._guard.forget(process.pid)

    def stop(self) -> None:
        """End all that was started, politely and then not; a second Ctrl-C waits until that is done."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self._stop()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _stop(self) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        until = time.monotonic() + _STOP_SECONDS
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, until - time.monotonic()))
        for name in list(self._processes):
            self.kill(name)
        self._guard.__exit__()

    def _write_settings(self) -> None:
        link = {"address": self.address, "root-certificates": self._file("ca.crt")}
        home = self.folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        write_file(
            home / "config.toml", tomli_w.dumps({"superlink": {"default": _LINK, _LINK: link}}).encode()
        )

    def _start(self, name: str, program: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [_program(program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,  # Ctrl-C is ours to hand on
            )
        self._guard.watch(self._processes[name].pid)

    def _flwr(self, *arguments: str) -> _Said:
        """What a command of Flower says.

        Raises:
            RuntimeFailure: it failed.
        """
        try:
            done = subprocess.run(
                [_program("flwr"), *arguments, "--format", "json"],
                capture_output=True,
                text=True,
                env=self.environment,
                timeout=_COMMAND_SECONDS,
            )
        except subprocess.TimeoutExpired:
            what = f"flwr {arguments[0]} has not ended after {_COMMAND_SECONDS:g} s"
            raise RuntimeFailure(f"{what}; {self.log('superlink')}") from None
        try:
            said: _Said = json.loads(done.stdout)
        except json.JSONDecodeError:
            said = {"success": False, "error-message": (done.stderr or done.stdout).strip()}
        if not said.get("success"):
            raise RuntimeFailure(f"flwr {arguments[0]} failed: {said.get('error-message', said)}")
        return said

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self._ports[0])) == 0

    def _file(self, name: str) -> str:
        return str(self.folder / "keys" / name)

    def _key(self, node: int, kind: str) -> Path:
        return self.folder / "keys" / f"node-{node}.{kind}"

    def log(self, name: str) -> str:
        return f"see {self.folder / f'{name}.log'}"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; all different."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _program(name: str) -> str:
    """A command that was installed beside this Python."""
    return str(Path(sys.executable).parent / name)
