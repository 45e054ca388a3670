"""A real gate from a real configuration, with scanners and relay boards on ptys, for the tests.

The gates and commands are forks of one prepared process (``zygote``). Everything waits for what it waits
for, with a deadline; nothing sleeps for luck.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gateway import control
from gateway.cache.build import build
from gateway.turnstile.serialrelay import lcus_frame

ROOT = Path(__file__).resolve().parents[2]
WAIT = 20.0
"""Seconds after which what was waited for will not come. Generous: only a failing test waits so long."""

Json = dict[str, Any]
T = TypeVar("T")


def until(holds: Callable[[], T], what: str = "", timeout: float = WAIT) -> T:
    """Poll until something holds, and give it back."""
    deadline = time.monotonic() + timeout
    while not (found := holds()):
        assert time.monotonic() < deadline, f"in vain: {what or holds}"
        time.sleep(0.003)
    return found


# --- forks --------------------------------------------------------------------------------------------


class Done(NamedTuple):
    """A command that has ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> list[Json]:
        """The NDJSON that it printed."""
        return [json.loads(line) for line in self.out.splitlines()]


class Zygote:
    """The prepared process. ``wrap`` goes before its command line, as ``unshare -m``."""

    def __init__(self, *wrap: str) -> None:
        self._lock = threading.RLock()
        self._way, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*wrap, sys.executable, "-m", "tests.e2e.zygote", str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, do: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        assert line, "the process that tests fork from is gone; see its stderr"
        return json.loads(line)

    def connect(self, host: str, port: int) -> socket.socket:
        """A TCP connection from where the process is, perhaps in another network. Raises OSError."""
        with self._lock:
            if error := self.ask("connect", host=host, port=port):
                raise ConnectionError(error)
            _, (fd,), _, _ = socket.recv_fds(self._way, 1, 1)
        made = socket.socket(fileno=fd)
        made.settimeout(WAIT)
        return made

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._way.close()
        with contextlib.suppress(BrokenPipeError):  # it is gone already
            self._process.stdin.close()
        self._process.wait(WAIT)
        self._process.stdout.close()


class Fork:
    """A command of the gateway that is running."""

    def __init__(
        self, zygote: Zygote, folder: Path, name: str, arguments: list[str], stdin: str = "/dev/null"
    ) -> None:
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        self._zygote = zygote
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify = folder / f"{name}.notify"
        self._notify.bind(str(notify))
        self.pid = zygote.ask(
            "start",
            arguments=arguments,
            files=[stdin, str(self.out), str(self.err)],
            environment={"NOTIFY_SOCKET": str(notify)},
            folder=str(folder),
        )
        self._pidfd = os.pidfd_open(self.pid)
        self.status: int | None = None

    def ready(self) -> None:
        """Wait for its READY=1."""
        deadline = time.monotonic() + WAIT
        while True:
            readable, _, _ = select.select(
                [self._notify, self._pidfd], [], [], max(0, deadline - time.monotonic())
            )
            assert self._notify in readable, f"not ready: {self.errors()}"
            if self._notify.recv(4096).startswith(b"READY=1"):
                return

    def fill_notifications(self) -> None:
        """Be a service manager that has stopped reading."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(BlockingIOError):
            sock.setblocking(False)
            while True:
                sock.sendto(b"x", self._notify.getsockname())

    def signal(self, number: int) -> None:
        signal.pidfd_send_signal(self._pidfd, number)

    def wait(self, timeout: float = WAIT) -> int:
        """Its exit status; negative: the signal that ended it."""
        if self.status is None:
            assert select.select([self._pidfd], [], [], timeout)[0], f"does not end: {self.errors()}"
            self.status = self._zygote.ask("reap", pid=self.pid)
            os.close(self._pidfd)
            self._notify.close()
        return self.status

    def kill(self) -> None:
        """As a power cut would, but for what is in the kernel."""
        if self.status is None:
            self.signal(signal.SIGKILL)
            self.wait()

    def ends(self, timeout: float = 0) -> bool:
        """Whether it ends within so many seconds."""
        return self.status is not None or bool(select.select([self._pidfd], [], [], timeout)[0])

    def output(self) -> str:
        return self.out.read_text() if self.out.exists() else ""

    def errors(self) -> str:
        return self.err.read_text() if self.err.exists() else ""

    def log(self) -> list[Json]:
        """What it logged; beside it stands only its last word to people."""
        lines = [line for line in self.errors().splitlines(keepends=True) if line.endswith("\n")]
        return [json.loads(line) for line in lines if line.startswith("{")]


# --- devices ------------------------------------------------------------------------------------------


class _Pty:
    """A device at a stable name, that can be pulled out and plugged in."""

    def __init__(self, link: Path) -> None:
        self._link = link
        self._master = -1
        self.plug()

    def plug(self) -> None:
        """Plug it in, or another one in its place."""
        self.unplug()
        self._master, slave = os.openpty()
        tty.setraw(slave)
        os.set_blocking(self._master, False)
        self._link.symlink_to(os.ttyname(slave))
        os.close(slave)

    def unplug(self) -> None:
        if self._master >= 0:
            self._link.unlink()
            os.close(self._master)
            self._master = -1

    def fileno(self) -> int:
        return self._master


class Scanner(_Pty):
    """A serial scanner."""

    def write(self, data: bytes) -> int:
        """Send what fits, and say how many bytes that were. Raises BlockingIOError."""
        return os.write(self._master, data)

    def send(self, data: bytes) -> None:
        """Send all of it, as fast as it is read."""
        view = memoryview(data)
        deadline = time.monotonic() + WAIT
        while view:
            try:
                view = view[self.write(view) :]
            except BlockingIOError:
                assert time.monotonic() < deadline, "the scanner is not read"
                select.select([], [self._master], [], 0.1)

    def scan(self, code: str | bytes) -> None:
        self.send((code.encode() if isinstance(code, str) else code) + b"\r")


class Board(_Pty):
    """A serial LCUS board: takes its frames, and notes each with the time at which it was seen."""

    def __init__(self, link: Path) -> None:
        self._data = b""
        self._seen: list[tuple[float, int, bool]] = []
        super().__init__(link)

    def read(self) -> bool:
        """Take what has come; whether something may still come."""
        going = True
        try:
            while data := os.read(self._master, 4096):
                self._data += data
        except BlockingIOError:
            pass
        except OSError:  # nobody has it open
            going = False
        while len(self._data) >= 4:
            frame, self._data = self._data[:4], self._data[4:]
            channel, on = frame[1], frame[2] == 1
            assert frame == lcus_frame(channel, on), f"no frame of this board: {frame.hex(' ')}"
            self._seen.append((time.monotonic(), channel, on))
        return going

    def frames(self) -> list[tuple[float, int, bool]]:
        """(monotonic seconds, channel, on) of all that have come so far."""
        if self._master >= 0:
            self.read()
        return self._seen

    def pulses(self, channel: int = 1) -> int:
        """How many ON frames have come."""
        return sum(on for _, of, on in self.frames() if of == channel)

    def last(self, channel: int = 1) -> bool | None:
        """What the contact was told last."""
        return next((on for _, of, on in reversed(self.frames()) if of == channel), None)

    def drain(self) -> None:
        """Take everything that a process that is gone has written."""
        until(lambda: not self.read(), "the end of what was written to the board")
        self._data = b""


# --- sites --------------------------------------------------------------------------------------------


def toml(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {toml(inner)}" for name, inner in value.items()) + " }"
    return json.dumps(str(value) if isinstance(value, Path) else value)


class Watch(control.Client):
    """A connection on which verdicts are told."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, timeout=WAIT)
        self.call("watch")

    def next(self) -> Json:
        while True:
            message = self._read()
            if "verdict" in message:
                verdict: Json = message["verdict"]
                return verdict


class Site:
    """A folder with a configuration, a data_dir, scanners and boards; gates run on it one after the other.

    Lanes, points and readers are given as their tables. A lane's relay ``"board"`` is an LCUS board of its
    own, a reader without a driver a serial scanner.
    """

    def __init__(
        self,
        folder: Path,
        zygote: Zygote,
        lanes: Iterable[Json] = ({"name": "north"},),
        points: Iterable[Json] = (
            {"name": "north-in", "lane": "north"},
            {"name": "north-out", "lane": "north", "from": "hall", "to": "outside"},
        ),
        readers: Iterable[Json] = (
            {"name": "in", "point": "north-in"},
            {"name": "out", "point": "north-out"},
        ),
        *,
        data_dir: Path | None = None,
        **gateway: Any,
    ) -> None:
        self.folder, self.zygote = folder, zygote
        self.data_dir = data_dir or folder / "data"
        if data_dir is None:
            self.data_dir.mkdir(mode=0o700)
        self.devices = folder / "dev"
        self.devices.mkdir()
        self.gateway: Json = {
            "id": "north",
            "data_dir": self.data_dir,
            "admin_socket": folder / "a",
            "sync_socket": folder / "s",
            **gateway,
        }
        self.scanners: dict[str, Scanner] = {}
        self.boards: dict[str, Board] = {}
        self.lanes = [self._lane(dict(lane)) for lane in lanes]
        self.points = [{"from": "outside", "to": "hall", **point} for point in points]
        self.readers = [self._reader(dict(reader)) for reader in readers]
        self.sections: dict[str, Json] = {}
        """Further tables of the configuration, as [central]."""
        self.config = folder / "gateway.toml"
        self.write()
        self.forks: list[Fork] = []
        self.gate: Fork | None = None
        self._clients: list[control.Client] = []
        self._watch: Watch | None = None

    def _lane(self, lane: Json) -> Json:
        if lane.setdefault("relay", "board") == "board":
            path = self.devices / f"board-{lane['name']}"
            self.boards[lane["name"]] = Board(path)
            lane["relay"] = {"driver": "serial", "board": "lcus", "device": path}
        return {"pulse_ms": 50, **lane}

    def _reader(self, reader: Json) -> Json:
        if "driver" not in reader:
            path = self.devices / f"scanner-{reader['name']}"
            self.scanners[reader["name"]] = Scanner(path)
            reader |= {"driver": "serial", "device": path}
        return {"repeat_delay_s": 0, **reader}

    def write(self) -> None:
        """Write the configuration."""
        text = ""
        for section, keys in {"gateway": self.gateway, **self.sections}.items():
            text += f"\n[{section}]\n" + "".join(f"{k} = {toml(v)}\n" for k, v in keys.items())
        for kind, tables in (("lane", self.lanes), ("point", self.points), ("reader", self.readers)):
            for table in tables:
                text += f"\n[[{kind}]]\n" + "".join(f"{k} = {toml(v)}\n" for k, v in table.items())
        self.config.write_text(text)

    def imports(self, records: Iterable[Json]) -> None:
        """Build a generation with nobody looking."""
        build(self.data_dir, ndjson(records).splitlines(), source="test", pace=0)

    # --- running ---

    def fork(self, *arguments: str, stdin: bytes | None = None) -> Fork:
        """Begin a command on this site's configuration."""
        name = f"{len(self.forks)}-{arguments[0]}"
        source = "/dev/null"
        if stdin is not None:
            source = str(self.folder / f"{name}.in")
            Path(source).write_bytes(stdin)
        command = [*arguments, "--config", str(self.config)] if arguments[0] != "demo" else [*arguments]
        fork = Fork(self.zygote, self.folder, name, command, source)
        self.forks.append(fork)
        return fork

    def run(self, *arguments: str, stdin: bytes | None = None) -> Done:
        """Run a command to its end."""
        fork = self.fork(*arguments, stdin=stdin)
        status = fork.wait()
        assert "Traceback" not in fork.errors(), fork.errors()
        return Done(status, fork.output(), fork.errors())

    def start(self) -> Fork:
        """Start a gate and wait until it admits, its boards driven."""
        self._disconnect()
        offs = {name: len(board.frames()) for name, board in self.boards.items()}
        self.gate = self.fork("gate")
        self.gate.ready()
        for name, board in self.boards.items():
            until(lambda board=board, n=offs[name]: len(board.frames()) > n, f"board of {name} is driven")
        return self.gate

    def kill(self) -> None:
        """kill -9, and new ptys."""
        assert self.gate is not None
        self.gate.kill()
        self._plug_anew()

    def stop(self, number: int = signal.SIGTERM) -> None:
        """SIGTERM or another, an end in order, and new ptys."""
        assert self.gate is not None
        self.gate.signal(number)
        assert self.gate.wait() == 0, self.gate.errors()
        self._plug_anew()

    def _plug_anew(self) -> None:
        """What the gate that is gone has not read goes with its devices, and so does a pty's mark that it is
        used by one alone, which a port loses when it is closed and a pty does not."""
        self._disconnect()
        for board in self.boards.values():
            if board.fileno() >= 0:
                board.drain()
            board.plug()
        for scanner in self.scanners.values():
            scanner.plug()

    def close(self) -> None:
        """End everything; no gate may have had an accident."""
        self._disconnect()
        for fork in self.forks:
            fork.kill()
        for device in (*self.boards.values(), *self.scanners.values()):
            device.unplug()
        for fork in self.forks:
            assert "Traceback (most" not in fork.errors(), fork.errors()
            if "-gate" in fork.err.name:
                for line in fork.log():
                    assert line["level"] != "critical", line

    # --- asking ---

    def client(self, role: str = "admin") -> control.Client:
        client = control.Client(Path(str(self.gateway[f"{role}_socket"])), timeout=WAIT)
        self._clients.append(client)
        return client

    def call(self, name: str, **arguments: Any) -> Any:
        """One call on a connection of its own."""
        with contextlib.closing(control.Client(Path(str(self.gateway["admin_socket"])), WAIT)) as client:
            return client.call(name, **arguments)

    def _disconnect(self) -> None:
        for client in self._clients:
            client.close()
        self._clients.clear()
        self._watch = None

    def scan(self, reader: str, code: str | bytes) -> Json:
        """Scan a code and wait for its verdict. Verdicts of other readers meanwhile are passed over."""
        self.watch()
        self.scanners[reader].scan(code)
        return self.verdict(reader)

    def watch(self) -> None:
        """See to it that verdicts are listened to."""
        if self._watch is None:
            self._watch = Watch(Path(str(self.gateway["admin_socket"])))
            self._clients.append(self._watch)

    def verdict(self, reader: str | None = None) -> Json:
        """The next verdict that is told."""
        assert self._watch is not None
        while True:
            verdict = self._watch.next()
            if reader is None or verdict["reader"] == reader:
                return verdict

    def metric(self, name: str) -> float:
        """A metric's value, by its name with labels."""
        for line in self.call("metrics")["text"].splitlines():
            if line.startswith(name + " "):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no metric {name}")

    def events(self, since: int = 0) -> list[Json]:
        """What ``gateway ledger`` prints."""
        done = self.run("ledger", "--since", str(since))
        assert done.status == 0, done.err
        return done.json

    def written(self) -> None:
        """Wait until every event is on disk."""
        until(lambda: self.call("status")["ledger"]["pending"] == 0, "events are written")

    def pulses(self, n: int, lane: str = "north") -> None:
        """Wait until the lane was pulsed so many times in all."""
        board = self.boards[lane]
        until(lambda: board.pulses() >= n, f"pulse {n} of lane {lane}")
        assert board.pulses() == n


def ndjson(records: Iterable[Json]) -> bytes:
    """Records as a feed."""
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def venue(**more: Any) -> list[Json]:
    """A venue whose day does not end while a test runs, with a hall."""
    ends = datetime.now(UTC) + timedelta(hours=12)
    return [
        {"kind": "venue", "timezone": "UTC", "day_starts": f"{ends:%H}:00", "language": "en", **more},
        {"kind": "area", "id": "hall"},
    ]


def product(id_: str, **rule: Any) -> Json:
    """A product with one rule, for the hall."""
    return {"kind": "product", "id": id_, "rules": [{"areas": ["hall"], **rule}]}


def card(n: int | str, code: str, product_: str, **credential: Any) -> list[Json]:
    """Credential, entitlement and holder of one person."""
    return [
        {"kind": "holder", "id": f"H{n}"},
        {"kind": "entitlement", "id": f"E{n}", "product": product_, "holder": f"H{n}"},
        {"kind": "credential", "id": f"C{n}", "code": code, "entitlements": [f"E{n}"], **credential},
    ]
