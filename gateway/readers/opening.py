"""Opening and setting up a scanner's device, by driver; what comes of it is owned by ``device.Reader``."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import struct
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import serial

from gateway.config import ReaderConfig
from gateway.readers.keyboard import EV_MSC, KEY_STATE_BYTES

# ioctl numbers of linux/input.h for 64-bit and 32-bit kernels alike.
EVIOCGRAB: Final = 0x40044590
EVIOCSMASK: Final = 0x40104593
EVIOCSCLOCKID: Final = 0x400445A0
EVIOCGKEY: Final = 0x80004518 | KEY_STATE_BYTES << 16

_FORBIDDEN: Final = frozenset((errno.EACCES, errno.EPERM))
_BUSY: Final = frozenset((errno.EBUSY, errno.EAGAIN))


@dataclass(slots=True, frozen=True)
class OpenDevice:
    """A device that is open and set up. The fd is readable without blocking once the loop says so."""

    fd: int
    close: Callable[[], None]
    descriptor: bytes = b""
    """hidpos: the report descriptor, where it can be had."""
    key_state: Callable[[], bytes] | None = None
    """keyboard: asks for the keys that are held; None where that cannot be asked."""


def open_device(config: ReaderConfig) -> OpenDevice:
    """Opens and sets up the device of a reader. Raises OSError where it cannot be had."""
    if config.driver == "serial":
        return _open_serial(config)
    if config.driver == "keyboard":
        return _open_keyboard(config.device)
    if config.driver == "hidpos":
        return _open_hidpos(config.device)
    fd = os.dup(0)  # left in its mode: another program may share this terminal
    return OpenDevice(fd, lambda: os.close(fd))


def _open_serial(config: ReaderConfig) -> OpenDevice:
    try:
        # exclusive is flock, which keeps off every program that asks for it, also root's; TIOCEXCL the
        # others. inter_byte_timeout=0 is how pyserial sets VMIN to 1: with 0, no data would read as b"",
        # which is the sign of an unplugged device.
        port = serial.Serial(
            config.device, config.baudrate, timeout=0, exclusive=True, inter_byte_timeout=0
        )  # raises DTR, without which some scanners send nothing
    except (ValueError, termios.error) as fault:
        raise OSError(errno.EINVAL, f"it is no serial port that can be set up: {fault}") from fault

    def close() -> None:
        # A pty keeps the flag as long as its master is open; the next open would be refused.
        with contextlib.suppress(OSError):
            fcntl.ioctl(port.fd, termios.TIOCNXCL)
        port.close()

    try:
        fcntl.ioctl(port.fd, termios.TIOCEXCL)
    except OSError:
        close()
        raise
    return OpenDevice(port.fd, close)


def _open_raw(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def _open_keyboard(path: str) -> OpenDevice:
    fd = _open_raw(path)
    # Without MSC_SCAN events the kernel's buffer holds 15 characters, with them 10 (measured).
    no_codes = array.array("B", bytes(8))
    mask = struct.pack("@IIQ", EV_MSC, len(no_codes), no_codes.buffer_info()[0])
    try:
        # Nobody else may see the codes, least of all a login prompt on the console.
        fcntl.ioctl(fd, EVIOCGRAB, 1)
        fcntl.ioctl(fd, EVIOCSMASK, mask)
        # Where there is no clock chip the time of day jumps after boot, which would tear a code.
        fcntl.ioctl(fd, EVIOCSCLOCKID, struct.pack("@i", time.CLOCK_MONOTONIC))
    except OSError:
        os.close(fd)
        raise
    return OpenDevice(
        fd, lambda: os.close(fd), key_state=lambda: fcntl.ioctl(fd, EVIOCGKEY, bytes(KEY_STATE_BYTES))
    )


def _open_hidpos(path: str) -> OpenDevice:
    fd = _open_raw(path)
    try:
        # hidraw gives each report to everyone who has the node open: two gates would judge each scan.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    node = Path(os.path.realpath(path)).name
    try:
        descriptor = Path("/sys/class/hidraw", node, "device/report_descriptor").read_bytes()
    except OSError:
        descriptor = b""
    return OpenDevice(fd, lambda: os.close(fd), descriptor=descriptor)


def reason_of(path: str, fault: OSError) -> str:
    """What is wrong with a device that cannot be opened, and what to do about it."""
    if fault.errno == errno.ENOENT:
        return f"{path}: not there: plug it in, or correct 'device' (gateway devices shows what is there)"
    if fault.errno in _FORBIDDEN:
        return f"{path}: no permission: give the gateway's user the device's group, or add a udev rule"
    if fault.errno in _BUSY:
        return f"{path}: another program has it: stop that program (fuser -v {path} names it)"
    return f"{path}: cannot be opened: {fault.strerror or fault}"
