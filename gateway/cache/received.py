"""A snapshot file from the courier becomes a generation, in a child process beside the gate.

The central has signed what the file is (docs/protocol.md), and the gate has verified that. The file itself is
the courier's: it may be another one, change or grow while it is read, or not be a file at all. So it is read
once, from the first byte to the last, and nothing of it counts until all of it has turned out to be what was
signed: its length and SHA-256 as sent, its length unpacked, and its number of lines. It is never mapped, and
what it unpacks to is never held.

The child is ``python -m gateway.cache.received DATA_DIR FD`` with a line of JSON on its standard input:
``{"manifest", "source", "pace"}``. It says ``{}`` every second while it gets on, and at last what
:class:`Received` has.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import select
import signal
import stat
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import orjson

from gateway.cache.build import NoRoomError, build, yield_to_gate
from gateway.cache.codekey import CodeKeyError
from gateway.cache.generations import BusyError, SnapshotError

MAX_RECORD = 65_536
"""Bytes of a line."""
PATIENCE = 60.0
"""Seconds that the child may take to get on."""
_PACKED = 1 << 18
_BLOCK = 1 << 20
"""Bytes read, and unpacked, in one step."""
_GZIP = 31
"""zlib's window bits for a gzip stream and nothing else (zlib.h, inflateInit2)."""
_SAY = 1.0
_FAULTS = 5


class DamagedError(Exception):
    """The file is not what was signed."""


@dataclass(slots=True, frozen=True)
class Received:
    """What became of a file."""

    ok: bool
    code: str = ""
    """``damaged``: it is not what was signed; ``no_room``; ``busy``: something else builds; ``stalled``;
    ``failed``: the disk, the key, the child."""
    error: str = ""
    generation: int = 0
    credentials: int = 0
    bad: int = 0
    """Records that were set aside."""
    faults: tuple[str, ...] = ()
    """The first of them."""


def lines(fd: int, manifest: Mapping[str, Any]) -> Iterable[bytes]:
    """The lines of a file, without their line feeds. When the last has been given, the file was what
    ``manifest`` says (``size``, ``sha256``, ``bytes``, ``count``); else DamagedError is raised before."""
    return chain.from_iterable(_blocks(fd, manifest))


def _blocks(fd: int, manifest: Mapping[str, Any]) -> Iterator[list[bytes]]:
    digest = hashlib.sha256()
    unpacking = zlib.decompressobj(_GZIP)
    size = length = count = 0
    rest = b""
    while packed := _read(fd, size):
        size += len(packed)
        digest.update(packed)
        if size > manifest["size"]:
            raise DamagedError(f"it is longer than the {manifest['size']} bytes that were signed")
        while True:
            try:
                block = unpacking.decompress(packed, _BLOCK)
            except zlib.error as error:
                raise DamagedError(f"it cannot be unpacked: {error}") from error
            length += len(block)
            found = (rest + block).split(b"\n")
            rest = found.pop()
            count += len(found)
            if length > manifest["bytes"] or count > manifest["count"]:
                raise DamagedError("it unpacks to more than was signed")
            if max(len(rest), max(map(len, found), default=0)) > MAX_RECORD:
                raise DamagedError(f"it has a line of more than {MAX_RECORD} bytes")
            yield found
            packed = unpacking.unconsumed_tail
            if not packed and len(block) < _BLOCK:
                break
        if unpacking.unused_data:
            raise DamagedError("something follows the gzip stream")
    if size != manifest["size"]:
        raise DamagedError(f"it ends after {size} of {manifest['size']} bytes")
    if digest.hexdigest() != manifest["sha256"]:
        raise DamagedError("its SHA-256 is another than was signed")
    if not unpacking.eof:
        raise DamagedError("the gzip stream does not end")
    count += bool(rest)
    if length != manifest["bytes"] or count != manifest["count"]:
        raise DamagedError(
            f"it unpacks to {length} bytes and {count} lines, but {manifest['bytes']} bytes and "
            f"{manifest['count']} lines were signed"
        )
    if rest:
        yield [rest]


def _read(fd: int, offset: int) -> bytes:
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise DamagedError("it is no regular file")
        return os.pread(fd, _PACKED, offset)
    except OSError as error:
        raise DamagedError(f"it cannot be read: {error.strerror}") from error


def take(
    data_dir: Path,
    fd: int,
    manifest: Mapping[str, Any],
    *,
    source: str,
    pace: float = 1.0,
    alive: Callable[[], None] = lambda: None,
) -> Received:
    """Builds a generation from the file. ``manifest``: as it was signed, with ``published`` in microseconds.
    Bad records are set aside. Where it fails, nothing has changed in ``data_dir``."""
    try:
        report = build(
            data_dir,
            lines(fd, manifest),
            source=source,
            skip_bad=True,
            progress=lambda *_: alive(),
            cursor=manifest["cursor"],
            published=manifest["published"],
            history=manifest["history"],
            position=manifest["position"],
            pace=pace,
            alive=alive,
        )
    except DamagedError as error:
        return Received(False, "damaged", f"the snapshot file is not what the central signed: {error}")
    except BusyError as error:
        return Received(False, "busy", str(error))
    except (SnapshotError, CodeKeyError) as error:
        return Received(False, "no_room" if isinstance(error, NoRoomError) else "failed", str(error))
    return Received(
        ok=True,
        generation=report.generation,
        credentials=report.credentials,
        bad=report.skipped_bad,
        faults=tuple(str(fault)[:300] for fault in report.faults[:_FAULTS]),
    )


async def receive(
    data_dir: Path,
    fd: int,
    manifest: Mapping[str, Any],
    *,
    source: str,
    pace: float = 1.0,
    patience: float = PATIENCE,
) -> Received:
    """The same in a child, which is killed when it does not get on for ``patience`` seconds, and when this is
    cancelled. The descriptor stays the caller's. Nothing is asked of it here: also that may wait for ever."""
    child = _Child(patience)
    job = orjson.dumps({"manifest": manifest, "source": source, "pace": pace}) + b"\n"
    # Not asyncio's own subprocesses: one that is cancelled while its pipes are being connected, as at the
    # gate's stop, waits for ever (CPython 3.11).
    work = asyncio.get_running_loop().run_in_executor(None, child.run, data_dir, fd, job)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        child.give_up()
        await work
        raise


class _Child:
    """The child, as a thread of the gate sees it."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._given_up = False

    def give_up(self) -> None:
        with self._lock:
            self._given_up = True
            if self._process is not None:
                self._process.kill()

    def run(self, data_dir: Path, fd: int, job: bytes) -> Received:
        """Until it has ended, in whichever way."""
        command = [sys.executable, "-m", "gateway.cache.received", str(data_dir), str(fd)]
        with self._lock:
            if self._given_up:
                return Received(False, "failed", "given up")
            try:
                process = subprocess.Popen(
                    command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(fd,)
                )
            except (OSError, ValueError) as error:  # ValueError: a descriptor that cannot be one
                return Received(False, "failed", f"the snapshot builder cannot be started: {error}")
            self._process = process
        with process:
            try:
                return self._told(process, job)
            finally:
                process.kill()

    def _told(self, process: subprocess.Popen[bytes], job: bytes) -> Received:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(job)
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        told = b""
        while poll.poll(self._patience * 1000):
            more = os.read(process.stdout.fileno(), 1 << 16)
            if not more:
                return Received(False, "failed", "the process that builds snapshots ended before it was done")
            *told_before, told = (told + more).split(b"\n")
            for line in told_before:
                if result := orjson.loads(line):
                    return Received(**{**result, "faults": tuple(result["faults"])})
        return Received(
            False,
            "stalled",
            f"the snapshot was not built on for {self._patience:.0f} s; look for a failing disk",
        )


def main() -> None:
    """The child."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # of a terminal, where it is meant for the gate
    data_dir, fd = Path(sys.argv[1]), int(sys.argv[2])
    job = orjson.loads(sys.stdin.buffer.readline())
    yield_to_gate()
    said = time.monotonic()

    def alive() -> None:
        nonlocal said
        if time.monotonic() - said > _SAY:
            said = time.monotonic()
            os.write(1, b"{}\n")  # raises when the gate is gone: nobody would use the generation

    result = take(data_dir, fd, job["manifest"], source=job["source"], pace=job["pace"], alive=alive)
    with contextlib.suppress(BrokenPipeError):
        os.write(1, orjson.dumps(asdict(result)) + b"\n")


if __name__ == "__main__":
    main()
