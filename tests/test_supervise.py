"""The supervisor, with real children: order, restarts, a configuration error, the stop, its own death."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway import log
from gateway.supervise import Part, PartFailed, Supervisor

ROOT = Path(__file__).parent.parent
WAIT = 20.0

# What a part does is written with these: it notes what happens in a file, a line each.
PRELUDE = """
import os, signal, socket, sys, time
name, notes = sys.argv[1:3]
def note(text):
    fd = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{name} {text}\\n".encode())
    os.close(fd)
def say(text):
    where = os.environ["NOTIFY_SOCKET"].replace("@", "\\0", 1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.sendto(text.encode(), where)
def stop(*_):
    note("stops")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
note(f"starts {os.getpid()}")
"""
READY = 'say("READY=1\\nSTATUS=well")\n'
FOR_EVER = "while True: time.sleep(100)\n"


def part(name: str, notes: Path, body: str = READY + FOR_EVER, **more: object) -> Part:
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(body), name, str(notes)]
    return Part(name, command, **more)  # type: ignore[arg-type]


def noted(notes: Path) -> list[str]:
    """What the parts did, without the ids of their processes."""
    if not notes.exists():
        return []
    return [" ".join(line.split()[:2]) for line in notes.read_text().splitlines()]


def started(notes: Path, name: str) -> list[int]:
    """The ids of the processes that a part was, in order."""
    text = notes.read_text() if notes.exists() else ""
    return [int(line.split()[2]) for line in text.splitlines() if line.startswith(f"{name} starts")]


async def until(holds: Callable[[], object]) -> None:
    """Wait for something to hold."""
    async with asyncio.timeout(WAIT):
        while not holds():  # noqa: ASYNC110 - it is other processes that are waited for
            await asyncio.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_started_in_order_and_stopped_in_the_opposite_one(tmp_path: Path) -> None:
    """The second part starts when the first has said that it is ready, and is stopped before it."""
    notes = tmp_path / "notes"

    async def play() -> None:
        supervisor = Supervisor()
        slow = 'time.sleep(0.3); note("ready")\n' + READY + FOR_EVER
        await supervisor.start(part("a", notes, slow))
        await supervisor.start(part("b", notes))
        await supervisor.stop()

    asyncio.run(play())
    assert noted(notes) == ["a starts", "a ready", "b starts", "b stops", "a stops"]


def test_a_part_that_ends_is_started_again_and_the_others_go_on(tmp_path: Path) -> None:
    """Whatever ends it, a signal or an exit of its own, also 2 once it was ready; nobody else notices."""
    notes = tmp_path / "notes"
    ends: list[tuple[str, int]] = []

    async def play() -> None:
        supervisor = Supervisor(pause=0.01, on_end=lambda p, status: ends.append((p.name, status)))
        await supervisor.start(part("a", notes))
        body = "signal.signal(signal.SIGUSR1, lambda *_: os._exit(2))\n" + READY + 'note("runs")\n' + FOR_EVER
        await supervisor.start(part("b", notes, body))
        await until(lambda: "b runs" in noted(notes))
        for number, status in ((signal.SIGKILL, -9), (signal.SIGUSR1, 2), (signal.SIGTERM, 0)):
            n = noted(notes).count("b runs")
            os.kill(started(notes, "b")[-1], number)
            await until(lambda n=n: noted(notes).count("b runs") > n)  # type: ignore[misc]
            assert ends[-1] == ("b", status)
        await supervisor.stop()

    asyncio.run(play())
    assert len(started(notes, "a")) == 1
    assert all(name == "b" for name, _ in ends)


@pytest.mark.parametrize(("steady", "expected"), [(1e9, [0.01, 0.02, 0.04, 0.04]), (0.0, [0.01] * 4)])
def test_the_pause_before_a_restart(tmp_path: Path, steady: float, expected: list[float]) -> None:
    """It doubles up to the longest one, and is the first again after a part has run long enough."""
    notes = tmp_path / "notes"

    async def play() -> None:
        supervisor = Supervisor(pause=0.01, longest=0.04, steady=steady)
        await supervisor.start(part("a", notes, READY + "sys.exit(7)"))
        await until(lambda: len(started(notes, "a")) > 4)
        await supervisor.stop()

    with (tmp_path / "log").open("w+") as lines:
        writer = log.start("info", lines)
        asyncio.run(play())
        writer.close()
        lines.seek(0)
        told = [json.loads(line) for line in lines]
    assert [line["again_in_s"] for line in told][:4] == expected
    assert {line["status"] for line in told} == {"status 7"}


def test_a_part_that_is_never_ready(tmp_path: Path) -> None:
    """Ending before it was ready: with 2 it is final and said; with anything else it is tried again, unless
    the part is one that must start at once."""
    notes = tmp_path / "notes"

    async def play() -> None:
        supervisor = Supervisor(pause=0.01)
        with pytest.raises(PartFailed, match="a ended with status 2 before it was ready"):
            await supervisor.start(part("a", notes, "sys.exit(2)"))
        with pytest.raises(PartFailed, match="b ended with SIGKILL"):
            await supervisor.start(part("b", notes, "os.kill(os.getpid(), 9)", patient=False))
        third = "if sum(1 for line in open(notes) if line.startswith('c')) < 3: sys.exit(70)\n"
        await supervisor.start(part("c", notes, third + READY + FOR_EVER))
        await supervisor.stop()

    asyncio.run(play())
    assert [len(started(notes, name)) for name in "abc"] == [1, 1, 3]


def test_a_part_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    """Who takes longer than the limit gets SIGKILL; the part before it is stopped in order all the same."""
    notes = tmp_path / "notes"

    async def play() -> None:
        supervisor = Supervisor(patience=0.2)
        await supervisor.start(part("a", notes))
        deaf = 'signal.signal(signal.SIGTERM, lambda *_: note("is deaf"))\n' + READY + FOR_EVER
        await supervisor.start(part("b", notes, deaf))
        await supervisor.stop()

    asyncio.run(play())
    assert noted(notes) == ["a starts", "b starts", "b is", "a stops"]
    assert gone(started(notes, "b")[0])


def test_a_part_that_hangs_is_killed_and_started_again(tmp_path: Path) -> None:
    """Having fed its watchdog and then no more; one that never fed it is left alone."""
    notes = tmp_path / "notes"
    ends: list[tuple[str, int]] = []

    async def play() -> None:
        supervisor = Supervisor(pause=0.01, on_end=lambda p, status: ends.append((p.name, status)))
        await supervisor.start(part("a", notes))
        await supervisor.start(part("b", notes, READY + 'say("WATCHDOG=1")\n' + FOR_EVER, watchdog=1))
        await until(lambda: len(started(notes, "b")) > 1)
        await supervisor.stop()

    asyncio.run(play())
    assert ends == [("b", -9)]
    assert len(started(notes, "a")) == 1


def test_the_output_of_a_part_can_go_to_a_file(tmp_path: Path) -> None:
    """What it prints and what it complains about; it has nothing to read."""
    notes = tmp_path / "notes"

    async def play() -> None:
        supervisor = Supervisor()
        body = "print(len(sys.stdin.read()), flush=True)\nprint('oh', file=sys.stderr)\n" + READY + FOR_EVER
        await supervisor.start(part("a", notes, body, log=tmp_path / "log"))
        await supervisor.stop()

    asyncio.run(play())
    assert (tmp_path / "log").read_text() == "0\noh\n"


# --- as a process -------------------------------------------------------------------------------------


PROGRAM = """
import asyncio, sys
from gateway import log
from gateway.supervise import Part, Supervisor, run
notes, *bodies = sys.argv[1:]
writer = log.start()
parts = [Part(name, [sys.executable, "-c", body, name, notes]) for name, body in zip("ab", bodies)]
status = asyncio.run(run(parts, Supervisor(pause=0.01)))
writer.close()
sys.exit(status)
"""


@contextlib.contextmanager
def running(notes: Path, *bodies: str) -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    """A supervisor with these parts, and the socket on which it says that it is ready."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind("")
        told.settimeout(WAIT)
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(notes), *(PRELUDE + body for body in bodies)],
            env={**os.environ, "NOTIFY_SOCKET": "@" + told.getsockname()[1:].decode()},
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        try:
            yield process, told
        finally:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop(tmp_path: Path, number: int) -> None:
    """READY=1 goes up when all parts are ready; after a signal, and another, all stop in order, status 0."""
    notes = tmp_path / "notes"
    slow = "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), stop()))\n" + READY + FOR_EVER
    with running(notes, READY + FOR_EVER, slow) as (process, told):
        assert told.recv(100) == b"READY=1"
        assert noted(notes) == ["a starts", "b starts"]
        process.send_signal(number)
        process.send_signal(number)
        assert process.wait(WAIT) == 0
        assert told.recv(100) == b"STOPPING=1"
    assert noted(notes) == ["a starts", "b starts", "b stops", "a stops"]


def test_told_to_stop_before_all_are_ready(tmp_path: Path) -> None:
    """A part that is still starting holds up no stop."""
    notes = tmp_path / "notes"
    with running(notes, READY + FOR_EVER, FOR_EVER) as (process, _):
        asyncio.run(until(lambda: started(notes, "b")))
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT) == 0
    assert noted(notes) == ["a starts", "b starts", "b stops", "a stops"]


def test_a_wrong_configuration_ends_all(tmp_path: Path) -> None:
    """A part that ends with 2 at the start is not tried again: the others are stopped, the status is 2."""
    notes = tmp_path / "notes"
    with running(notes, READY + FOR_EVER, "sys.exit(2)") as (process, _):
        assert process.wait(WAIT) == 2
        assert "b ended with status 2 before it was ready" in process.stderr.read()
    assert noted(notes) == ["a starts", "b starts", "a stops"]


def test_killed_with_its_parts(tmp_path: Path) -> None:
    """kill -9 of the supervisor ends its parts too, also one that takes no notice of signals."""
    notes = tmp_path / "notes"
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY + FOR_EVER
    with running(notes, READY + FOR_EVER, deaf) as (process, told):
        assert told.recv(100) == b"READY=1"
        pids = started(notes, "a") + started(notes, "b")
        process.kill()
        process.wait()
        deadline = time.monotonic() + WAIT
        while not all(gone(pid) for pid in pids):
            assert time.monotonic() < deadline, "a part lives on"
            time.sleep(0.01)


def test_systemd_speaks_to_the_supervisor_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watchdog and handed-over sockets of the unit are not taken for the child's own."""
    for name in ("WATCHDOG_USEC", "LISTEN_FDS", "OTHER"):
        monkeypatch.setenv(name, "1")

    async def play() -> None:
        supervisor = Supervisor()
        body = "print(*sorted({'WATCHDOG_USEC', 'LISTEN_FDS', 'OTHER'} & set(os.environ)), flush=True)\n"
        await supervisor.start(part("a", tmp_path / "notes", body + READY + FOR_EVER, log=tmp_path / "log"))
        await supervisor.stop()

    asyncio.run(play())
    assert (tmp_path / "log").read_text() == "OTHER\n"
