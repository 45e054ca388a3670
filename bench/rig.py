"""A real gate process for the benchmarks: ``gateway gate`` on a configuration, with ptys for its devices.

The bench holds the other end of every pty: it is the scanner that types codes, and the relay board that
sees the pulse. Nothing of the gate is replaced or hooked.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import time
import tty
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.row import WORK
from gateway.control import Client, NoGate

ROOT = Path(__file__).resolve().parent.parent
PULSE_MS = 50
"""The shortest pulse that a lane can be set to, so that a board is soon free for the next one."""
CYCLE = 0.17
"""Seconds after which a lane's board is at rest again: the pulse, and before and after its end the gap
that an LCUS board needs between two commands (0.05)."""
ON, OFF = bytes.fromhex("a00101a2"), bytes.fromhex("a00100a1")

_GATEWAY = """[gateway]
id = "bench"
data_dir = {data_dir}
commit_deadline_ms = {deadline}
"""
_LANE = """
[[lane]]
name = "lane-{n}"
relay = {relay}
pulse_ms = {pulse}
second_grant = "extend"

[[point]]
name = "in-{n}"
lane = "lane-{n}"
from = "outside"
to = "hall"
anti_passback = "hard"
"""
_READER = """
[[reader]]
name = "{name}"
point = "in-{n}"
driver = "{driver}"
device = {device}
"""


class Pty:
    """One serial device. Its other end is ``master``."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        tty.setraw(self.slave)
        self.device = os.ttyname(self.slave)

    def drain(self) -> bytes:
        """What has come and was not read yet."""
        data = b""
        os.set_blocking(self.master, False)
        try:
            while True:
                data += os.read(self.master, 4096)
        except BlockingIOError:
            return data
        finally:
            os.set_blocking(self.master, True)

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


def code(card: int) -> bytes:
    """The code of a card: ten characters, all different, in no order."""
    return b"%010X" % (card * 2654435761 % (1 << 40))


def credential(card: int) -> str:
    return f"C{card:08d}"


def snapshot(cards: int) -> Path:
    """A folder with a generation of so many cards, built once by the real importer.

    Every card enters at any time of the day: what is measured here is the way of a grant. It still asks for
    the hours, a limit per day, presence (anti-passback) and the capacity of the area.
    """
    folder = WORK / f"gate-{cards}"
    if any(folder.glob("*.mdb")):
        return folder
    from gateway.cache.build import build

    shutil.rmtree(folder, ignore_errors=True)
    # Begun beside it, so that an interrupted build is not taken for a whole one.
    with_part = folder.with_name(folder.name + ".part")
    shutil.rmtree(with_part, ignore_errors=True)
    build(with_part, records(cards), source="bench", pace=0)
    with_part.rename(folder)
    return folder


def records(cards: int) -> Iterable[bytes]:
    """The feed of ``snapshot``, line by line."""
    yield b'{"kind":"venue","timezone":"Europe/Berlin","day_starts":"04:00","language":"de"}'
    yield b'{"kind":"area","id":"hall","name":{"de":"Halle","en":"Hall"},"capacity":100000000}'
    yield (
        b'{"kind":"product","id":"annual","category":"pass","name":{"de":"Jahreskarte","en":"Annual pass"},'
        b'"grace_days":14,"rules":[{"areas":["hall"],"hours":["00:00-24:00"],'
        b'"limits":[{"max":4,"per":"day"}]}]}'
    )
    for n in range(cards):
        yield (b'{"kind":"credential","id":"C%08d","code":"%s","entitlements":["E%08d"]}' % (n, code(n), n))
        yield (
            b'{"kind":"entitlement","id":"E%08d","product":"annual","holder":"H%08d",'
            b'"valid_from":"2020-01-01","valid_until":"2099-12-31"}' % (n, n)
        )


def fresh_data_dir(name: str, cards: int, parent: Path = WORK) -> Path:
    """An empty ledger's data_dir with a copy of the snapshot."""
    folder = parent / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(snapshot(cards), folder)
    folder.chmod(0o700)
    return folder


class Gate:
    """``gateway gate`` in a process of its own, with ``lanes`` lanes and a serial reader at each."""

    def __init__(
        self,
        data_dir: Path,
        lanes: int,
        *,
        boards: bool = True,
        keyboard: Path | None = None,
        env: Mapping[str, str] | None = None,
        deadline: int = 150,
        profile: Path | None = None,
        central: str | None = None,
        wrap: Sequence[str] = (),
    ) -> None:
        """``boards``: each lane has an LCUS board on a pty, else its relay is in memory. ``keyboard``: a
        keyboard reader there, at the last lane. ``profile``: where cProfile puts what the gate did.
        ``central``: the address of the one that it is to join. ``wrap``: the words of a command that starts
        the one that follows it."""
        self.data_dir = data_dir
        self.scanners = [Pty() for _ in range(lanes)]
        self.boards = [Pty() for _ in range(lanes)] if boards else []
        text = _GATEWAY.format(data_dir=json.dumps(str(data_dir)), deadline=deadline)
        if central is not None:
            text += f'\n[central]\nurl = {json.dumps(central)}\n\n[web]\nlisten = "127.0.0.1:0"\n'
        for n in range(lanes):
            relay = '{ driver = "memory" }'
            if boards:
                device = json.dumps(self.boards[n].device)
                relay = f'{{ driver = "serial", board = "lcus", device = {device}, channel = 1 }}'
            text += _LANE.format(n=n, relay=relay, pulse=PULSE_MS)
            text += _READER.format(
                name=f"scanner-{n}", n=n, driver="serial", device=json.dumps(self.scanners[n].device)
            )
        if keyboard is not None:
            text += _READER.format(
                name="keyboard", n=lanes - 1, driver="keyboard", device=json.dumps(str(keyboard))
            )
        self.config = data_dir / "gateway.toml"
        self.config.write_text(text)
        command = [*wrap, sys.executable]
        if profile is not None:
            command += ["-m", "cProfile", "-o", str(profile)]
        command += ["-m", "gateway", "gate", "--config", str(self.config)]
        self.log = data_dir / "gate.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, stderr=log
            )
        self.client = self._connect()
        self._await_devices()

    def _connect(self) -> Client:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                return Client(self.data_dir / "admin.sock")
            except (NoGate, OSError):
                time.sleep(0.05)
        self.process.kill()
        raise RuntimeError(f"the gate did not start:\n{self.log.read_text()}")

    def _await_devices(self) -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            status = self.client.call("status")
            ready = all(reader["up"] for reader in status["readers"])
            if ready and all(lane["fault"] is None for lane in status["lanes"]):
                time.sleep(0.3)  # each board hears its first command after it was opened
                for board in self.boards:
                    board.drain()
                return
            time.sleep(0.05)
        raise RuntimeError(f"the gate's devices are not ready:\n{self.log.read_text()}")

    def metric(self, name: str) -> float:
        """The sum of all series of a metric."""
        text = self.client.call("metrics")["text"]
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if re.split(r"[ {]", line, maxsplit=1)[0] == name
        )

    def cpu(self) -> float:
        """Seconds of processor that the gate has used so far."""
        return cpu(self.process.pid)

    def close(self) -> None:
        """Stop it in order, so that everything is on disk, and let go of the devices."""
        self.client.close()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pty in (*self.scanners, *self.boards):
            pty.close()

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def events(self) -> list[tuple[Any, ...]]:
        """(seq, kind, reader, verdict, credential) of every event, from the closed ledger."""
        with sqlite3.connect(self.data_dir / "ledger.db") as conn:
            return conn.execute("SELECT seq, kind, reader, verdict, credential FROM event").fetchall()


def stat(pid: int) -> list[str]:
    """/proc/PID/stat (proc(5)) from its third field on; the name before it may have anything in it."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()


def cpu(pid: int) -> float:
    """Seconds of processor that a process has used so far."""
    fields = stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int, field: str = "VmHWM") -> float:
    """MB of memory of a process: its peak, or another field of /proc/PID/status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"no {field} in /proc/{pid}/status")


class Floor:
    """The bare loop in a process of its own: see ``bench/floor.py``."""

    def __init__(self, folder: Path, *, env: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("floor.db*"):
            old.unlink()
        self.scanner, self.board = Pty(), Pty()
        command = [sys.executable, "-m", "bench.floor", self.scanner.device, self.board.device]
        self.process = subprocess.Popen(
            [*command, str(folder / "floor.db")], cwd=ROOT, env={**os.environ, **(env or {})}
        )
        assert os.read(self.board.master, 1) == b"."

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.scanner.close()
        self.board.close()

    def __enter__(self) -> Floor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def pulse_after(scanner: Pty, board: Pty, payload: bytes) -> float:
    """Seconds from writing a code's bytes to reading the relay's ON at the other pty."""
    began = time.perf_counter()
    os.write(scanner.master, payload + b"\r")
    data = os.read(board.master, 64)
    while ON not in data:
        data += os.read(board.master, 64)
    return time.perf_counter() - began


def pulses(pairs: list[tuple[Pty, Pty]], cards: Iterable[int], gap: float) -> list[float]:
    """One scan at a time, each on the next pair of scanner and board, ``gap`` seconds after the pulse of
    the one before, and never sooner than the boards' cycle allows."""
    took = []
    due = [0.0] * len(pairs)
    for turn, card in enumerate(cards):
        time.sleep(max(gap, due[turn % len(pairs)] - time.monotonic()))
        scanner, board = pairs[turn % len(pairs)]
        took.append(pulse_after(scanner, board, code(card)))
        if len(pairs) > 1:
            due[turn % len(pairs)] = time.monotonic() + CYCLE
    return took


def interleaved(
    sides: Mapping[str, Callable[[int], list[float]]], blocks: int, block: int, warm: int
) -> dict[str, list[float]]:
    """Blocks of scans on each side in turn; which goes first is drawn. The first ``warm`` of each side are
    thrown away."""
    rng = random.Random(7)
    took: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        run(warm)
    for _ in range(blocks):
        names = list(sides)
        rng.shuffle(names)
        for name in names:
            took[name] += sides[name](block)
    return took


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
