"""What the gate asks of the machine under it: clocks, the lock on its folder, the service manager."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import time
from hashlib import sha256
from pathlib import Path


class DataDirError(Exception):
    """The data_dir cannot be used; the message says why and what to do."""


def wall() -> int:
    """The wall clock, microseconds."""
    return time.time_ns() // 1000


def monotonic() -> int:
    """The monotonic clock, microseconds."""
    return time.monotonic_ns() // 1000


def lock_data_dir(data_dir: Path) -> int:
    """Take the data_dir for this process; the lock is gone with the process. Returns the lock's fd.

    Raises:
        DataDirError: it is not there, not ours, or another gate runs on it.
    """
    try:
        fd = _open_lock(data_dir / "gate.lock")
    except FileNotFoundError:
        raise DataDirError(
            f"gateway.data_dir: {data_dir} is not there; create it: install -d -m 700 {data_dir}"
        ) from None
    except OSError as error:
        raise DataDirError(f"gateway.data_dir: {data_dir}: {error.strerror}; run as its owner") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise DataDirError(
            f"gateway.data_dir: another gate runs on {data_dir}; stop it, or give this one its own"
        ) from None
    return fd


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        # A worn card goes read-only. Then on_ledger_failure has the word, so the gate must start.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def write_durably(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a small file whole or not at all, also in a power cut. Raises OSError."""
    part = path.with_name(f".{path.name}.part")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        if os.write(fd, data) != len(data):  # the rest has no room
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


_MACHINE_ID = ("etc/machine-id", "var/lib/dbus/machine-id")
_BOARD = ("sys/firmware/devicetree/base/serial-number", "sys/class/dmi/id/product_uuid")


def machine_identity(root: Path = Path("/")) -> str:
    """64 hex digits that name this computer: over the installation (machine-id(5)) and, where this user may
    read it, the board's serial number, which a copy of the card does not take along."""
    parts = [_first_readable(root, names) for names in (_MACHINE_ID, _BOARD)]
    return sha256(b"gateway machine\n" + b"\n".join(parts)).hexdigest()


def _first_readable(root: Path, names: tuple[str, ...]) -> bytes:
    for name in names:
        with contextlib.suppress(OSError):
            if found := (root / name).read_bytes().strip(b"\0 \r\n"):
                return found
    return b""


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)); nothing where it does not listen.

    Never waits: with a service manager that does not read, the queue is full after some ten seconds of
    watchdog messages, and a scan would wait for it.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


_MLOCK_ONFAULT = 1
_OF_KERNEL = ("[vvar", "[vdso", "[vsyscall", "[uprobes")


def lock_memory(apart: Path) -> int:
    """Keep this process in memory: its code, heap and stacks as far as they are in use, now and later
    (mlock2(2) with MLOCK_ONFAULT). Where others use memory up, the kernel throws code out or swaps, and the
    next scan waits for the disk (bench/lock.py). What is mapped from files under ``apart`` is left to the
    page cache, for the stores may be larger than the memory.

    Returns the bytes of address space that are kept: few or none where RLIMIT_MEMLOCK is not infinite. What
    is mapped after the call is kept after the next one.
    """
    libc = ctypes.CDLL(None)
    libc.mlock2.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
    others = (*_OF_KERNEL, f"{apart.resolve()}/")
    kept = 0
    for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
        place, *_, path = (*line.split(maxsplit=5), "")[:6]
        if path.startswith(others):
            continue
        start, end = (int(address, 16) for address in place.split("-"))
        # Refused: the limit, or another thread has unmapped it meanwhile.
        if libc.mlock2(start, end - start, _MLOCK_ONFAULT) == 0:
            kept += end - start
    return kept


class _Timex(ctypes.Structure):
    """struct timex of adjtimex(2): only ``modes`` is set (0: ask), the rest is room."""

    _fields_ = (("modes", ctypes.c_uint), ("rest", ctypes.c_byte * 252))


def clock_synchronised() -> bool:
    """Whether somebody keeps the clock right: the kernel says so, or systemd-timesyncd has."""
    if Path("/run/systemd/timesync/synchronized").exists():
        return True
    try:
        # TIME_ERROR (5): the clock is not synchronised. Denied (-1) under ProtectClock.
        return ctypes.CDLL(None).adjtimex(ctypes.byref(_Timex())) in range(5)
    except (OSError, AttributeError):
        return False
