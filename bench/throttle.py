"""p99 of bytes to pulse while a million cards are imported, on a disk of 10 MB/s and 400 writes a second.

The disk is a loop device with ext4 on a file under bench/.work, slowed down by the kernel's block throttle:
in cgroup v1 by limits of the root group on that device, which hold for every writer of the machine, the file
system's own thread included; in cgroup v2 by io.max of a group in which gate and import run. Before anything
is measured the limits are tried with plain writes. Needs root and mkfs.ext4; where the disk cannot be made
slow nothing is measured, and the table says why.

The gate's data_dir lies on that disk. Before the limits are set the gate is scanned some hundred times and
left alone for a moment, as a gate is that has run for a while: from then on its ledger writes over its log,
where a growing one costs a flush of the file system's journal too. Scans are measured as in bench/path.py:
alone, then while ``gateway import`` runs in a process of its own, until it has ended and the gate has taken
the generation, and alone again. The commit deadline is set to 5 s, so that no pulse comes before its event
is on disk.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import rig
from bench.row import WORK, Row, run_alone

BYTES_A_SECOND = 10_000_000
WRITES_A_SECOND = 400
READ_BYTES_A_SECOND = 20_000_000
READS_A_SECOND = 1500
"""Of memory cards of application class A1; only where a benchmark asks for slow reads."""
DISK_BYTES = 3 << 30
LANES = 16
CARDS = 20_000
GAP = 0.03
RUN_IN = 800
"""Scans after which the log has its full size."""
WHAT = "p99 of bytes to pulse while a million cards are imported, disk of 10 MB/s, 400 writes/s"

_V1 = Path("/sys/fs/cgroup/blkio")
_V2 = Path("/sys/fs/cgroup")


class CannotThrottle(Exception):
    """This machine does not let us make a disk slow; the message says why."""


def heed_sigterm() -> None:
    """So that a service manager's or time-out's SIGTERM also takes the loop device down."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


@contextlib.contextmanager
def slow_disk(*, reads: bool = False) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A file system of its own, and what makes its disk slow (``reads``: also to read from); gone at the end,
    whatever happens."""
    if os.geteuid() != 0:
        raise CannotThrottle("needs root, for a loop device and the kernel's block throttle")
    for name in ("losetup", "mkfs.ext4", "mount"):
        if shutil.which(name) is None:
            raise CannotThrottle(f"needs {name}")
    WORK.mkdir(parents=True, exist_ok=True)
    image, mount = WORK / "throttle.img", WORK / "throttle-disk"
    with contextlib.ExitStack() as stack:
        stack.callback(image.unlink, missing_ok=True)
        with image.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, DISK_BYTES)
        device = tool("losetup", "--find", "--show", str(image)).strip()
        stack.callback(tool, "losetup", "--detach", device)
        tool("mkfs.ext4", "-q", "-F", device)
        mount.mkdir(exist_ok=True)
        tool("mount", device, str(mount))
        stack.callback(tool, "umount", str(mount))
        number = os.stat(device).st_rdev
        yield mount, _limiter(stack, f"{os.major(number)}:{os.minor(number)}", reads)


def tool(*command: str) -> str:
    """What it prints. Raises CannotThrottle with its word on why not."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CannotThrottle(f"{command[0]}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _limiter(stack: contextlib.ExitStack, device: str, reads: bool) -> Callable[[], None]:
    """What limits the device, until the stack is closed. This process is put where the limits hold."""
    if (_V1 / "blkio.throttle.write_bps_device").exists():
        files = {
            _V1 / "blkio.throttle.write_bps_device": f"{device} {BYTES_A_SECOND}",
            _V1 / "blkio.throttle.write_iops_device": f"{device} {WRITES_A_SECOND}",
        }
        if reads:
            files[_V1 / "blkio.throttle.read_bps_device"] = f"{device} {READ_BYTES_A_SECOND}"
            files[_V1 / "blkio.throttle.read_iops_device"] = f"{device} {READS_A_SECOND}"
        for file in files:
            stack.callback(file.write_text, f"{device} 0")
    elif (_V2 / "cgroup.controllers").exists() and "io" in (_V2 / "cgroup.controllers").read_text().split():
        group = _V2 / "gateway-bench"
        try:
            # With the memory controller the kernel knows whose pages it writes back.
            (_V2 / "cgroup.subtree_control").write_text("+io +memory")
            group.mkdir(exist_ok=True)
            stack.callback(group.rmdir)
            stack.callback((_V2 / "cgroup.procs").write_text, str(os.getpid()))
            (group / "cgroup.procs").write_text(str(os.getpid()))
        except OSError as error:
            raise CannotThrottle(f"no cgroup can be made: {error}") from error
        limits = f"{device} wbps={BYTES_A_SECOND} wiops={WRITES_A_SECOND}"
        if reads:
            limits += f" rbps={READ_BYTES_A_SECOND} riops={READS_A_SECOND}"
        files = {group / "io.max": limits}
    else:
        raise CannotThrottle("the kernel has neither the blkio nor the io controller")

    def limit() -> None:
        for file, text in files.items():
            try:
                file.write_text(text)
            except OSError as error:
                raise CannotThrottle(f"{file.name} does not take {text!r}: {error}") from error

    return limit


def try_limits(mount: Path) -> str:
    """Writes that would be much quicker on a fast disk. CannotThrottle where they are."""
    path = mount / "try"
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(20):
            file.write(bytes(1_000_000))
        os.fdatasync(file.fileno())
        speed = 20 / (time.perf_counter() - began)
        began = time.perf_counter()
        for n in range(200):
            os.pwrite(file.fileno(), bytes([n]) * 4096, n * 65536)
            os.fdatasync(file.fileno())
        flushes = 200 / (time.perf_counter() - began)
    path.unlink()
    if speed > 1.5 * BYTES_A_SECOND / 1e6 or flushes > 1.5 * WRITES_A_SECOND:
        raise CannotThrottle(f"the limits do not bite: {speed:.0f} MB/s, {flushes:.0f} writes/s")
    return f"{speed:.1f} MB/s, {flushes:.0f} flushed writes/s"


def feed(cards: int) -> Path:
    """The file that is imported; made once, on the fast disk."""
    path = WORK / f"throttle-{cards}.ndjson"
    if not path.exists():
        part = path.with_suffix(".part")
        with part.open("wb", buffering=1 << 20) as out:
            out.writelines(line + b"\n" for line in rig.records(cards))
        part.rename(path)
    return path


def measure(quick: bool) -> tuple[list[float], list[float], str]:
    """Seconds to the pulse (alone, during the import), and a few words on the run."""
    path = feed(50_000 if quick else 1_000_000)
    cards = itertools.count()
    rig.snapshot(CARDS)
    with slow_disk() as (mount, limit):
        data_dir = rig.fresh_data_dir("data", CARDS, mount)
        with rig.Gate(data_dir, LANES, deadline=5000) as gate:
            pairs = list(zip(gate.scanners, gate.boards, strict=True))

            def scan(count: int, gap: float = GAP) -> list[float]:
                return rig.pulses(pairs, itertools.islice(cards, count), gap)

            scan(RUN_IN, 0)
            time.sleep(1)
            os.sync()
            limit()
            words = try_limits(mount)
            alone = scan(200 if quick else 600)
            command = [sys.executable, "-m", "gateway", "import", str(path), "--config", str(gate.config)]
            began = time.monotonic()
            with subprocess.Popen(
                command, cwd=rig.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            ) as import_:
                try:
                    busy = []
                    while import_.poll() is None:
                        busy += scan(LANES)
                    took = time.monotonic() - began
                    if import_.returncode:
                        assert import_.stderr is not None
                        raise RuntimeError(f"the import failed: {import_.stderr.read()}")
                finally:
                    import_.kill()
            alone += scan(200 if quick else 600)
    return alone, busy, f"disk {words}; import {took:.0f} s, {len(busy)} scans meanwhile"


def run(quick: bool) -> list[Row]:
    heed_sigterm()
    try:
        alone, busy, words = measure(quick)
    except CannotThrottle as why:
        return [Row(WHAT, "-", f"not measured: {why}", None, "3 x alone", False)]
    p50, p99 = (tuple(rig.quantile(took, q) for took in (alone, busy)) for q in (0.5, 0.99))
    return [
        Row(
            WHAT,
            f"{p99[0] * 1e3:.1f} ms alone",
            f"{p99[1] * 1e3:.1f} ms ({words})",
            p99[1] / p99[0],
            "3 x alone",
            p99[1] <= 3 * p99[0],
        ),
        Row(
            "the same, p50",
            f"{p50[0] * 1e3:.1f} ms alone",
            f"{p50[1] * 1e3:.1f} ms",
            p50[1] / p50[0],
            "-",
            None,
        ),
        Row("the same, longest", f"{max(alone) * 1e3:.1f} ms", f"{max(busy) * 1e3:.1f} ms", None, "-", None),
    ]


if __name__ == "__main__":
    run_alone("throttle", __doc__, run)
