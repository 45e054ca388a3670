"""The files of the snapshot: what they are called, which is whole, which may go.

A generation is ``snapshot-<number>.mdb`` in the data_dir. It is built as ``.part`` and renamed when it is on
disk, so a file of the final name was whole once. A power cut or a broken card can still cut it, and mapping
a cut file kills the process (SIGBUS) instead of raising: hence :func:`guard`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

_NAME = re.compile(r"snapshot-(\d{8,})\.mdb")
_LOCK_FILE = ".build.lock"

# The two meta pages of LMDB 0.9 (mdb.c: MDB_page, MDB_meta, MDB_db; 64 bit, native byte order): a page
# header of 16 bytes, whose flags are at 10; then magic, version, address, mapsize (24 bytes); two MDB_db of
# 48 bytes, the first of which begins with the page size; then the last page's number and the transaction's.
_META_BYTES = 152
_FLAGS = struct.Struct("=10xH")
_MAGIC_VERSION = struct.Struct("=16xII")
_PAGE_SIZE = struct.Struct("=40xI")
_LAST_PAGE_TXN = struct.Struct("=136xQQ")
_META_FLAG = 0x08
_MAGIC = 0xBEEFC0DE
_VERSION = 1


class SnapshotError(Exception):
    """A generation cannot be used, or not be written; the message names the file and the remedy."""


class SnapshotTooNew(SnapshotError):
    """A newer program wrote that generation. An older one is no way out: it may know a card that was revoked
    since."""


class BusyError(Exception):
    """Another import is building in this data_dir."""


def path_of(data_dir: Path, generation: int) -> Path:
    return data_dir / f"snapshot-{generation:08d}.mdb"


def lock_path(path: Path) -> Path:
    """LMDB's lock file beside a generation."""
    return path.with_name(path.name + "-lock")


def numbers(data_dir: Path) -> list[int]:
    """The generations there, whole or not, the newest first."""
    found = (_NAME.fullmatch(entry.name) for entry in os.scandir(data_dir))
    return sorted((int(match[1]) for match in found if match), reverse=True)


def used_bytes(path: Path) -> tuple[int, int]:
    """(bytes that the newer meta page says are in use, size of the file). Raises SnapshotError.

    Two preads, no mapping.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SnapshotError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        size = os.fstat(fd).st_size
        first = _meta(path, os.pread(fd, _META_BYTES, 0))
        (page_size,) = _PAGE_SIZE.unpack_from(first)
        if not 512 <= page_size <= 65536 or page_size & (page_size - 1):
            raise SnapshotError(f"{path} says it has pages of {page_size} bytes: it is no LMDB file")
        second = _meta(path, os.pread(fd, _META_BYTES, page_size))
    except OSError as error:
        raise SnapshotError(f"{path} cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)
    metas = (_LAST_PAGE_TXN.unpack_from(page) for page in (first, second))
    last_page, _ = max(metas, key=lambda meta: meta[1])
    return (last_page + 1) * page_size, size


def guard(path: Path) -> None:
    """Call before any open. Raises SnapshotError where the file is cut or is no LMDB data file."""
    used, size = used_bytes(path)
    if size < used:
        raise SnapshotError(f"{path} is cut: it has {size} of {used} bytes")


def _meta(path: Path, page: bytes) -> bytes:
    if len(page) < _META_BYTES:
        raise SnapshotError(f"{path} is cut: it ends inside its first two pages")
    magic, version = _MAGIC_VERSION.unpack_from(page)
    if not _FLAGS.unpack_from(page)[0] & _META_FLAG or magic != _MAGIC:
        raise SnapshotError(f"{path} is no LMDB data file")
    if version != _VERSION:
        raise SnapshotError(f"{path} is of LMDB data version {version}; this program reads {_VERSION}")
    return page


def grow(path: Path, size: int) -> None:
    """Makes the file at least so long, with a hole: takes no room on the disk.

    LMDB may give a page a number and free it again before it was ever written, so a whole file can end
    short of its last page. The guard would take that for a cut.
    """
    if path.stat().st_size < size:
        os.truncate(path, size)


def prune(data_dir: Path, in_use: int, *, keep_before: bool = True) -> list[int]:
    """Removes the generations older than the one in use, but for the newest that passes the guard.

    ``keep_before=False`` removes that one too (after a holder was deleted). Newer ones stay: a build that
    is not yet switched to. Returns the numbers that were removed.
    """
    removed = []
    for number in numbers(data_dir):
        if number >= in_use:
            continue
        path = path_of(data_dir, number)
        if keep_before and passes(path):
            keep_before = False
            continue
        path.unlink(missing_ok=True)
        lock_path(path).unlink(missing_ok=True)
        removed.append(number)
    return removed


def remove(path: Path) -> None:
    """Removes one generation."""
    path.unlink(missing_ok=True)
    lock_path(path).unlink(missing_ok=True)


def remove_all(data_dir: Path) -> None:
    """Removes every generation, and what killed builds left: the central has revoked this gateway."""
    for number in numbers(data_dir):
        remove(path_of(data_dir, number))
    clean_leftovers(data_dir)


def passes(path: Path) -> bool:
    try:
        guard(path)
    except SnapshotError:
        return False
    return True


@contextlib.contextmanager
def building(data_dir: Path) -> Iterator[None]:
    """Holds the right to build in this data_dir, and begins by removing what killed builds left behind.

    Raises BusyError while another process builds.
    """
    fd = os.open(data_dir / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"another import is building in {data_dir}; wait until it has ended, then try again"
            ) from None
        for entry in list(os.scandir(data_dir)):
            if _is_leftover(entry.name):
                os.unlink(entry.path)
        yield
    finally:
        os.close(fd)


def clean_leftovers(data_dir: Path) -> None:
    """Removes what killed builds left behind; for the start of the gate. Leaves a running build alone."""
    with contextlib.suppress(BusyError), building(data_dir):
        pass


def _is_leftover(name: str) -> bool:
    part = name.startswith("snapshot-") and name.endswith(".part")
    return part or (name.startswith(".build-") or name.startswith(".code.key-"))
