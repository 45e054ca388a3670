"""dcttech USB-HID relay boards (16c0:05df), through their hidraw node.

A command is nine bytes: report number 0, FF (on) or FD (off), the channel from 1, zeros. A feature report
of nine bytes gives the board's five-character id (1 to 5) and the state of the relays (8). The USB id is a
shared one, so the product string ``USBRelayN`` (N relays) must match too. The state says what the board's
logic wants, also without coil power: it proves nothing, and is not asked for after a command. Reading can
fail while the board works (motors nearby; EPROTO, EILSEQ or EIO, by what drives the port); that is tried
again, and leads to no command.

hidapi only lists the boards. Its ``hid`` module would detach the kernel's driver, and its write reports a
lost board as a number; ``hidraw`` lists, and the node is opened here.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from typing import NamedTuple

import hidraw

from gateway.turnstile.board import NoAnswer, check_fd, monotonic_us

VENDOR, PRODUCT = 0x16C0, 0x05DF
REPORT_SIZE = 9
HIDIOCGFEATURE = 0xC0004807 | REPORT_SIZE << 16
"""linux/hidraw.h: HIDIOCGFEATURE(9)."""
READ_TRIES = 3
_REFUSALS = {
    errno.EPIPE: "the board refused the command",
    errno.ETIMEDOUT: "the board did not answer the command",
    errno.ENODEV: "the board was unplugged",
}
"""What a write fails with: a stall, the kernel's time for a control request, a port that is empty now."""
_TRY_AGAIN = (errno.EPROTO, errno.EILSEQ, errno.EIO, errno.EPIPE, errno.ETIMEDOUT)


def command(channel: int, on: bool) -> bytes:
    """The report that puts ``channel`` (from 1) on or off."""
    return bytes((0, 0xFF if on else 0xFD, channel)) + bytes(REPORT_SIZE - 3)


def parse_state(report: bytes) -> tuple[str, int]:
    """(board id, state with bit 0 for relay 1) from a feature report with its leading report number."""
    return report[1:6].decode("ascii", "replace").rstrip("\0"), report[8]


def read_state(fd: int) -> tuple[str, int]:
    """As ``parse_state``, read from the board. Raises OSError when it failed every time."""
    for left in reversed(range(READ_TRIES)):
        report = bytearray(REPORT_SIZE)
        try:
            fcntl.ioctl(fd, HIDIOCGFEATURE, report)
        except OSError as fault:
            if fault.errno not in _TRY_AGAIN or not left:
                raise
        else:
            break
    return parse_state(bytes(report))


class UsbBoard(NamedTuple):
    path: str
    product: str

    @property
    def channels(self) -> int:
        return int(self.product.removeprefix("USBRelay") or 0)


def list_boards() -> list[UsbBoard]:
    """The boards plugged in, by what the system knows of them; none is opened."""
    found = []
    for entry in hidraw.enumerate(VENDOR, PRODUCT):
        product = entry["product_string"] or ""
        if product.startswith("USBRelay") and product[8:].isdecimal():
            found.append(UsbBoard(os.fsdecode(entry["path"]), product))
    return sorted(found)


def board_id(path: str) -> str | None:
    """The id of the board at this node, or None if it cannot be read. Sends it nothing."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return read_state(fd)[0]
    except OSError:
        return None
    finally:
        os.close(fd)


def find_board(wanted: str | None) -> UsbBoard:
    """The board with this id, or the only one there is. Raises OSError with what was found instead."""
    boards = list_boards()
    if wanted is None:
        if len(boards) == 1:
            return boards[0]
        what = "no USB relay board is plugged in" if not boards else "there are several USB relay boards"
        raise OSError(f'{what}: plug in one, or say which with board = "its id" or device = "its path"')
    ids = [(board, board_id(board.path)) for board in boards]
    for board, found in ids:
        if found == wanted:
            return board
    present = ", ".join(f"{board.path} ({found or 'id not readable'})" for board, found in ids) or "none"
    raise OSError(f"no USB relay board with the id {wanted!r}; present: {present}")


class UsbLink:
    """The hidraw node of one board, found by path, or by id, or as the only one.

    ``open_fd`` opens something else in its place.
    """

    gap = 0.0
    prompt = False

    def __init__(
        self, device: str | None, board: str | None, open_fd: Callable[[], int] | None = None
    ) -> None:
        self.channels = 0
        """How many relays the board has; 0: not known."""
        self._device = device
        self._board = board
        self._open_fd = open_fd or self._open_node
        self._fd = -1

    def open(self) -> None:
        self._fd = self._open_fd()

    def check(self) -> None:
        check_fd(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def send(self, channel: int, on: bool) -> int:
        """Returns when the board had taken the report, monotonic microseconds."""
        if self._fd < 0:
            raise OSError("the board is not open")
        if self.channels and channel > self.channels:
            raise NoAnswer(f"there is no channel {channel}, the board has {self.channels}")
        try:
            written = os.write(self._fd, command(channel, on))
        except OSError as fault:
            raise OSError(_REFUSALS.get(fault.errno or 0, str(fault))) from fault
        if written != REPORT_SIZE:
            raise OSError(f"the board took {written} of {REPORT_SIZE} bytes")
        return monotonic_us()

    def _open_node(self) -> int:
        if self._device is None:
            path, self.channels = (found := find_board(self._board)).path, found.channels
        else:
            path = os.path.realpath(self._device)
            if not os.path.exists(path):
                raise OSError("not there: plug it in, or correct 'device' (gateway devices lists the boards)")
            # hidraw numbers change: what is there may be a scanner now, which would swallow the commands.
            if path not in (os.fsdecode(entry["path"]) for entry in hidraw.enumerate(VENDOR, PRODUCT)):
                raise OSError("this is no USB relay board (16c0:05df): gateway devices lists them")
            self.channels = next((board.channels for board in list_boards() if board.path == path), 0)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except PermissionError as fault:
            raise OSError(
                f"no permission for {path}: a udev rule must give it to the gate's group"
            ) from fault
        if self._device is not None and self._board is not None:
            try:
                found_id = read_state(fd)[0]
                if found_id != self._board:
                    raise OSError(
                        f"this is the board {found_id!r}, not {self._board!r}: correct 'device' or 'board'"
                    )
            except OSError:
                os.close(fd)
                raise
        return fd


class UsbContact:
    def __init__(self, link: UsbLink, channel: int) -> None:
        if not 1 <= channel <= 8:
            raise ValueError(f"channel {channel}: USB relay boards have channels 1 to 8")
        self._link = link
        self._channel = channel

    def switch(self, on: bool) -> int:
        return self._link.send(self._channel, on)

    def flash(self, duration: int) -> int | None:
        return None
