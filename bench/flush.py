"""Serial bytes to relay pulse with 20 ms added to each flush, and a keyboard scanner read meanwhile.

Gate and floor run with a library preloaded that makes fsync and fdatasync 20 ms longer (slowflush.c, compiled
here with cc). The pulses are measured as in bench/path.py.

Then a keyboard scanner types without pause, one report a millisecond, while serial scans keep the ledger's
flushes going one after the other. The scanner is a FIFO that the gate's real keyboard reader has open; the
bench stands in for the kernel's buffer of an evdev client: 64 events at most lie unread, and what comes on
top of that throws all of them away for one SYN_DROPPED, as the kernel does. 64 events are 16 characters, so
a loop that stalls for more than 32 ms loses a code. That the stand-in does lose is shown too: the gate is
stopped (SIGSTOP) for 50 ms in the middle of one more code, and that one must be missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import signal
import struct
import subprocess
import termios
import threading
import time
from pathlib import Path

from bench import rig
from bench.row import WORK, Row, run_alone

ADDED_US = 20_000
LANES = 16
CARDS = 20_000
KEYBOARD_CARDS = 10_000
"""The first card that the keyboard types; those before it are for the serial scanners."""
GAP = 0.005
REPORT = 0.001
PAUSE = 0.025
"""Between two codes of the keyboard scanner."""
STALL = 0.05
_BUFFER = 64
_EVENT = struct.Struct("@qqHHi")
_EV_SYN, _EV_KEY, _SYN_REPORT, _SYN_DROPPED, _ENTER = 0, 1, 0, 3, 28
_KEYS = dict(zip("1234567890", range(2, 12), strict=True)) | {
    letter: key
    for letters, first in (("qwertyuiop", 16), ("asdfghjkl", 30), ("zxcvbnm", 44))
    for key, letter in enumerate(letters, first)
}
_SHIFT = 42


def compiled() -> Path | None:
    """The library, or None where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    WORK.mkdir(parents=True, exist_ok=True)
    source, library = Path(__file__).with_name("slowflush.c"), WORK / "slowflush.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"], check=True)
    return library


class Keyboard:
    """A keyboard scanner, and the kernel's buffer between it and the gate."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        self.path = path
        self.overflows = 0
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._due = 0.0

    def type(self, text: str, stop_in_the_middle: int | None = None) -> None:
        """Types a code of digits and capital letters, and Enter. ``stop_in_the_middle``: a process that is
        stopped for a while meanwhile."""
        reports = []
        for char in text:
            key = _KEYS[char.lower()]
            shift = [(_SHIFT, 1)] if char.isupper() else []
            reports += [[*shift, (key, 1)], [(key, 0), *((_SHIFT, 0) for _ in shift)]]
        reports += [[(_ENTER, 1)], [(_ENTER, 0)]]
        self._due = time.monotonic()
        for n, report in enumerate(reports):
            if stop_in_the_middle is not None and n == 4:
                os.kill(stop_in_the_middle, signal.SIGSTOP)
                # One report a millisecond goes on meanwhile, so it needs a code that is long enough.
                threading.Timer(STALL, os.kill, (stop_in_the_middle, signal.SIGCONT)).start()
            self._due += REPORT
            time.sleep(max(0.0, self._due - time.monotonic()))
            self._report(report)

    def _report(self, keys: list[tuple[int, int]]) -> None:
        now = time.monotonic_ns() // 1000
        stamp = divmod(now, 1_000_000)
        events = [_EVENT.pack(*stamp, _EV_KEY, key, value) for key, value in keys]
        events.append(_EVENT.pack(*stamp, _EV_SYN, _SYN_REPORT, 0))
        unread = struct.unpack("i", fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4)))[0] // _EVENT.size
        if unread + len(events) > _BUFFER:
            self.overflows += 1
            with contextlib.suppress(BlockingIOError):
                while os.read(self._fd, 4096):
                    pass
            events = [_EVENT.pack(*stamp, _EV_SYN, _SYN_DROPPED, 0), events[-1]]
        os.write(self._fd, b"".join(events))

    def close(self) -> None:
        os.close(self._fd)
        self.path.unlink()


def measure(library: Path, quick: bool) -> tuple[list[float], list[float]]:
    """Seconds of (floor, gate) from bytes to pulse, interleaved."""
    env = {"LD_PRELOAD": str(library), "SLOW_FLUSH_US": str(ADDED_US)}
    cards = itertools.count()
    data_dir = rig.fresh_data_dir("flush", CARDS)
    with (
        rig.Floor(WORK / "flush-floor", env=env) as floor,
        rig.Gate(data_dir, LANES, env=env, deadline=5000) as gate,
    ):
        pairs = list(zip(gate.scanners, gate.boards, strict=True))

        def bare(count: int) -> list[float]:
            return rig.pulses([(floor.scanner, floor.board)], itertools.islice(cards, count), GAP)

        def whole(count: int) -> list[float]:
            return rig.pulses(pairs, itertools.islice(cards, count), GAP)

        took = rig.interleaved({"floor": bare, "gate": whole}, blocks=4 if quick else 20, block=32, warm=8)
    return took["floor"], took["gate"]


def keyboard(library: Path, quick: bool) -> tuple[int, int, bool]:
    """(codes typed, codes that are not in the ledger, whether a gate that was stopped lost one)."""
    env = {"LD_PRELOAD": str(library), "SLOW_FLUSH_US": str(ADDED_US)}
    data_dir = rig.fresh_data_dir("flush", CARDS)
    device = Keyboard(data_dir / "keyboard")
    codes = 25 if quick else 250
    done = threading.Event()

    def others(gate: rig.Gate) -> None:
        """Serial scans every 5 ms, so that flush follows flush."""
        for card in range(KEYBOARD_CARDS):
            if done.wait(0.005):
                return
            os.write(gate.scanners[card % LANES].master, rig.code(card) + b"\r")

    try:
        with rig.Gate(data_dir, LANES, boards=False, keyboard=device.path, env=env, deadline=5000) as gate:
            thread = threading.Thread(target=others, args=(gate,))
            thread.start()
            time.sleep(0.2)
            for card in range(KEYBOARD_CARDS, KEYBOARD_CARDS + codes):
                device.type(rig.code(card).decode())
                time.sleep(PAUSE)
            time.sleep(0.5)
            overflows = device.overflows
            torn = KEYBOARD_CARDS + codes
            device.type(rig.code(torn).decode() * 4, stop_in_the_middle=gate.process.pid)
            time.sleep(0.5)
            done.set()
            thread.join()
            dropped = gate.metric("gateway_reader_dropped_total")
    finally:
        device.close()
    seen = {credential for _, _, reader, _, credential in gate.events() if reader == "keyboard"}
    due = {rig.credential(card) for card in range(KEYBOARD_CARDS, KEYBOARD_CARDS + codes)}
    loses = device.overflows > overflows and dropped >= 1
    return codes, len(due - seen) + overflows, loses


def run(quick: bool) -> list[Row]:
    library = compiled()
    if library is None:
        why = "not measured: there is no C compiler (cc) for slowflush.c"
        return [Row("serial bytes to relay pulse, flushes 20 ms longer, p50", "-", why, None, "1.2 x", False)]
    floor, gate = measure(library, quick)
    least, took = rig.quantile(floor, 0.5), rig.quantile(gate, 0.5)
    codes, lost, loses = keyboard(library, quick)
    doubt = "" if loses else ", but nor did a gate that stood still: the check is blind"
    return [
        Row(
            "serial bytes to relay pulse, flushes 20 ms longer, p50",
            f"{least * 1e3:.2f} ms",
            f"{took * 1e3:.2f} ms",
            took / least,
            "1.2 x floor",
            took <= 1.2 * least,
        ),
        Row(
            "the same, p99",
            f"{rig.quantile(floor, 0.99) * 1e3:.2f} ms",
            f"{rig.quantile(gate, 0.99) * 1e3:.2f} ms",
            rig.quantile(gate, 0.99) / rig.quantile(floor, 0.99),
            "-",
            None,
        ),
        Row(
            "keyboard scans lost at 1 ms a report, flushes 20 ms longer",
            "-",
            f"{lost} of {codes}{doubt}",
            None,
            "0",
            lost == 0 and loses,
        ),
    ]


if __name__ == "__main__":
    run_alone("flush", __doc__, run)
