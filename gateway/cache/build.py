"""The importer: a stream of records becomes a new generation of the snapshot, whole or not at all.

Three steps, none of which holds the records in memory: every line is parsed, checked and spooled as a row;
the rows of each bucket are sorted and the newest of each id kept; they are appended to an LMDB file in the
order of their keys. The file is built as ``.part``, synced and renamed, and the folder is synced: left out,
a power cut leaves a renamed file that is broken.

Meant to run in a process of its own (:func:`yield_to_gate`), beside a gate that uses the generation before.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import lmdb

from gateway.cache import codekey, generations, rows
from gateway.cache.assemble import assemble
from gateway.cache.generations import SnapshotError
from gateway.cache.intake import Fault, Intake
from gateway.cache.spool import Pacer

__all__ = ["BuildReport", "DataError", "Fault", "NoRoomError", "build", "yield_to_gate"]

_ROOM = 2.5


class DataError(Exception):
    """The records break the rules, and nothing was changed. The message names the lines and the remedy."""

    def __init__(self, source: str, faults: tuple[Fault, ...], count: int) -> None:
        lines = [f"{source}:{fault}" for fault in faults]
        if count > len(faults):
            lines.append(f"and {count - len(faults)} more")
        lines.append(
            "Nothing was imported. Correct these records, or load the rest without them with --skip-bad"
        )
        super().__init__("\n".join(lines))
        self.faults = faults
        self.count = count


class NoRoomError(SnapshotError):
    """The disk has no room for another generation."""


@dataclass(slots=True, frozen=True)
class BuildReport:
    """What an import made. Counts are of what the generation holds, where nothing else is said."""

    generation: int
    path: Path
    lines: int
    """Lines read, empty ones included."""
    records: int
    """Good records read, those that a later one replaced and deletions included."""
    skipped_bad: int
    faults: tuple[Fault, ...]
    """The first of the bad ones."""
    unknown_kinds: dict[str, int]
    """Records of kinds that are not known here, which were skipped."""
    credentials: int
    entitlements: int
    holders: int
    blocked: int
    usages: int
    tables: dict[str, int]
    """Venue, areas, events and products, by kind."""


def build(
    data_dir: Path,
    lines: Iterable[bytes],
    *,
    source: str,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
    cursor: str | None = None,
    published: int | None = None,
    history: str | None = None,
    position: int | None = None,
    pace: float = 1.0,
    free: int | None = None,
    alive: Callable[[], None] | None = None,
) -> BuildReport:
    """Builds the next generation in ``data_dir`` from NDJSON lines and returns what is in it.

    ``source`` names the lines in messages. ``progress`` is called now and then with the records and bytes
    read so far. ``cursor``, ``published`` (microseconds), ``history`` and ``position`` are what the central
    signed with the records.
    ``pace`` scales the pauses that leave the disk to the gate (see ``spool.Pacer``); 0 is none.
    ``free`` is for tests: the free bytes of the disk, instead of asking. ``alive`` is called every so often
    while it writes.

    Raises DataError (bad records, without ``skip_bad``), SnapshotError (the disk fails; NoRoomError: it is
    full), CodeKeyError, BusyError, and what ``lines`` raises, which are read to their end before anything is
    put in place. Whatever it raises, the generations there are untouched and no file is left.
    """
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    collecting = gc.isenabled()
    gc.disable()  # rows are plain bytes, in no cycles; the collector would walk them again and again
    try:
        with generations.building(data_dir), ExitStack() as stack:
            _check_room(data_dir, free)
            key = codekey.load_or_create(data_dir)
            pacer = Pacer(pace, alive)
            intake = Intake(data_dir, stack, key, pacer)
            intake.read(lines, progress)
            if intake.bad and not skip_bad:
                raise DataError(source, tuple(intake.faults), intake.bad)
            meta = rows.Meta(
                generation=next(iter(generations.numbers(data_dir)), 0) + 1,
                key_check=key.check,
                cursor=cursor,
                published=published,
                built=time.time_ns() // 1000,
                source=source,
                history=history,
                position=position,
                base=position,
            )
            counts = assemble(intake, meta, data_dir, stack, pacer)
    except (OSError, lmdb.Error) as error:
        full = isinstance(error, lmdb.DiskError) or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT)
        raise (NoRoomError if full else SnapshotError)(
            f"the new generation cannot be written in {data_dir}: {error}. Look for a full or failing disk "
            "and import again; the generation in use is untouched"
        ) from error
    finally:
        if collecting:
            gc.enable()
    return BuildReport(
        generation=meta.generation,
        path=generations.path_of(data_dir, meta.generation),
        lines=intake.lines,
        records=intake.records,
        skipped_bad=intake.bad,
        faults=tuple(intake.faults),
        unknown_kinds=dict(intake.unknown_kinds),
        credentials=counts["credentials"],
        entitlements=counts["entitlements"],
        holders=counts["holders"],
        blocked=counts["blocked"],
        usages=counts["usage_ids"],
        tables=dict(Counter(kind for kind, _ in intake.tables)),
    )


def yield_to_gate() -> None:
    """Gives this process the lowest claim on processor and disk; for the process that imports."""
    os.nice(19)
    # ioprio_set(2) has no wrapper in libc: who = this process (1, 0), class idle (3 << 13).
    number = {"x86_64": 251, "aarch64": 30}.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None, use_errno=True).syscall(number, 1, 0, 3 << 13)


def _check_room(data_dir: Path, free: int | None) -> None:
    present = next(iter(generations.numbers(data_dir)), None)
    if present is None:
        return
    path = generations.path_of(data_dir, present)
    needed = int(path.stat().st_blocks * 512 * _ROOM)
    if free is None:
        disk = os.statvfs(data_dir)
        free = disk.f_bavail * disk.f_frsize
    if free < needed:
        raise NoRoomError(
            f"{data_dir} has {free / 1e6:.1f} MB free, and a new generation asks for {needed / 1e6:.1f} MB "
            f"({_ROOM} times {path.name}). Free some space and import again; the generation in use serves on"
        )
