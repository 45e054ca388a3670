"""Bytes to pulse while another program uses the memory up: a gate locked in memory, and one that is not.

Gate and hog run in a memory cgroup of their own (v1) of 256 MB. Every file that the gate has mapped, Python
and the C library among them, lies a second time on a disk as slow as a memory card (bench/throttle.py,
reads too) and is mounted over the first in the gate's own mount namespace: else this machine's other
programs would keep the pages in memory for it. The gate that is not locked lacks the right to lock (no
CAP_IPC_LOCK, RLIMIT_MEMLOCK 0); nothing of the gateway is replaced. One scan a second; each round has a
fresh gate and a fresh hog.

Without swap the hog takes what there is but for some megabytes, and reads a large file over and over. With
swap, on the slow disk too, gate and hog together need more than there is, and the hog touches all of its
own in turn.

Needs root, CAP_IPC_LOCK, cgroup v1 with its memory controller, unshare and setpriv.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench import cold, rig, throttle
from bench.row import WORK, Row, run_alone

CARDS = 20_000
MEGABYTES = 256
HOG_ALONE, HOG_SWAPPED = 212, 240
"""Megabytes: a gate has 33 of its own, and 20 of its files."""
ROUNDS, SCANS, PAUSE = 4, 25, 1.0
GROUP = Path("/sys/fs/cgroup/memory/gateway-bench")

_HOG = """
import mmap, sys, time
size, path = int(sys.argv[1]) << 20, sys.argv[2]
held = mmap.mmap(-1, size)
def touch():
    for at in range(0, size, 4096):
        held[at] = 1
touch()
print("ready", flush=True)
room = bytearray(1 << 20)
while True:
    if path:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(room):
                pass
    else:
        touch()
        time.sleep(0.05)
"""


@dataclass
class Side:
    """What one kind of gate has shown."""

    took: list[float] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)
    killed: int = 0
    """Rounds in which the kernel killed the hog."""

    def text(self, q: float) -> str:
        return f"{rig.quantile(self.took, q) * 1e3:.1f} ms"


def mapped() -> list[Path]:
    """The files that a gate has mapped, but for those in its data_dir."""
    with rig.Gate(data_dir := rig.fresh_data_dir("lock", CARDS), 2) as gate:
        lines = Path(f"/proc/{gate.process.pid}/maps").read_text().splitlines()
    found = {Path(line.split(maxsplit=5)[5]) for line in lines if line.count("/")}
    return sorted(path for path in found if path.is_file() and data_dir not in path.parents)


def large() -> Path:
    """A file that does not fit in the group's memory."""
    path = WORK / "lock-large"
    if not path.exists() or path.stat().st_size < MEGABYTES << 21:
        with path.open("wb") as file:
            for _ in range(MEGABYTES * 2):
                file.write(bytes(1 << 20))
    return path


@contextlib.contextmanager
def swap(mount: Path) -> Iterator[None]:
    path = mount / "swap"
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 512 << 20)
    path.chmod(0o600)
    throttle.tool("mkswap", str(path))
    throttle.tool("swapon", str(path))
    try:
        yield
    finally:
        throttle.tool("swapoff", str(path))
        path.unlink()


@contextlib.contextmanager
def memory_group() -> Iterator[None]:
    if not (GROUP.parent / "memory.limit_in_bytes").exists():
        raise throttle.CannotThrottle("needs cgroup v1 with its memory controller")
    GROUP.mkdir(exist_ok=True)
    try:
        (GROUP / "memory.limit_in_bytes").write_text(str(MEGABYTES << 20))
        yield
    finally:
        GROUP.rmdir()


def major_faults(pid: int) -> int:
    return int(rig.stat(pid)[9])


def one_round(
    side: Side, *, locked: bool, mount: Path, files: list[Path], hog: list[str], scans: int
) -> None:
    joined = f"echo $$ > {GROUP}/cgroup.procs"
    mounts = [shlex.join(["mount", "--bind", f"{mount}/files{path}", str(path)]) for path in files]
    steps = ["mount --make-rprivate /", *mounts, joined]
    start = 'exec "$@"' if locked else 'ulimit -l 0 && exec setpriv --bounding-set -ipc_lock "$@"'
    wrap = ["unshare", "--mount", "sh", "-c", " && ".join([*steps, start]), "sh"]
    data_dir = rig.fresh_data_dir("data", CARDS, mount)
    for path in files:  # the group that reads a page is charged for it
        cold.drop(Path(f"{mount}/files{path}"))
    with memory_group(), rig.Gate(data_dir, 2, wrap=wrap) as gate:
        if (rig.memory(gate.process.pid, "VmLck") > 0) is not locked:
            raise throttle.CannotThrottle("needs CAP_IPC_LOCK")
        pairs = list(zip(gate.scanners, gate.boards, strict=True))
        cards = itertools.count()
        rig.pulses(pairs, itertools.islice(cards, 40), rig.CYCLE)
        command = ["sh", "-c", f'{joined} && exec "$@"', "sh", sys.executable, "-c", _HOG, *hog]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                process.stdout.readline()
                for card in itertools.islice(cards, scans):
                    time.sleep(PAUSE)
                    before = major_faults(gate.process.pid)
                    side.took += rig.pulses(pairs[card % 2 :][:1], [card], 0)
                    side.faults.append(major_faults(gate.process.pid) - before)
                side.killed += process.poll() is not None
            finally:
                process.kill()


def measure(quick: bool, files: list[Path], *, swapped: bool) -> tuple[Side, Side]:
    """(not locked, locked)."""
    hog = [str(HOG_SWAPPED), ""] if swapped else [str(HOG_ALONE), str(large())]
    sides = {False: Side(), True: Side()}
    with throttle.slow_disk(reads=True) as (mount, limit), contextlib.ExitStack() as stack:
        for path in files:
            copy = Path(f"{mount}/files{path}")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
        if swapped:
            stack.enter_context(swap(mount))
        os.sync()
        limit()
        draw = random.Random(7)
        for _ in range(1 if quick else ROUNDS):
            for locked in draw.sample([False, True], 2):
                side = sides[locked]
                scans = 8 if quick else SCANS
                one_round(side, locked=locked, mount=mount, files=files, hog=hog, scans=scans)
    return sides[False], sides[True]


def run(quick: bool) -> list[Row]:
    throttle.heed_sigterm()
    files = mapped()
    rows = []
    for swapped in (False, True):
        what = f"bytes to pulse, memory used up, {'swap' if swapped else 'no swap'}"
        try:
            free, locked = measure(quick, files, swapped=swapped)
        except throttle.CannotThrottle as why:
            rows.append(Row(what, "-", f"not measured: {why}", None, "-", False))
            continue
        for q, name in ((0.5, "p50"), (0.9, "p90"), (1.0, "longest")):
            ratio = rig.quantile(locked.took, q) / rig.quantile(free.took, q)
            told = [
                f"{side.text(q)} {'locked' if side is locked else 'not locked'}" for side in (free, locked)
            ]
            rows.append(Row(f"{what}, {name}", *told, ratio, "-", None))
        told = [f"at most {max(side.faults)} a scan, hog killed {side.killed} x" for side in (free, locked)]
        rows.append(Row(f"{what}, major faults", *told, None, "-", None))
    return rows


if __name__ == "__main__":
    run_alone("lock", __doc__, run)
