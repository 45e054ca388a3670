"""Modbus-RTU relay boards, through pymodbus. Where the board can time the pulse itself, it does: then a
gate that dies in mid-pulse leaves no lane open.

What each board is sent (function, address, value), n the channel from 1:

    board      on                  off                 a pulse timed by the board
    plain      05, n-1, FF00       05, n-1, 0000       -
    lctech     as plain; leaves the factory with the unit address 255
    waveshare  as plain                                05, 0200+n-1, tenths of a second ("flash on")
    laskakit   06, n, 0100         06, n, 0200         06, n, 0600 + seconds

waveshare needs firmware V2 (September 2021) or later. A value other than FF00 and 0000 is outside the
standard's function 05, and pymodbus's own call cannot send it; hence a request class of our own.
"""

from __future__ import annotations

import logging
import struct

from pymodbus.client import ModbusSerialClient
from pymodbus.exceptions import ConnectionException, ModbusException
from pymodbus.pdu import ModbusPDU

from gateway.turnstile.board import NoAnswer, check_fd, monotonic_us
from gateway.turnstile.serialport import open_port

BOARDS = ("waveshare", "lctech", "laskakit", "plain")
ANSWER = 0.25
"""Seconds to wait for an answer. A request and its echo take 17 ms at 9600 baud."""
COIL, REGISTER = 5, 6

Command = tuple[int, int, int]
"""Function code, address, value."""


def switch_command(board: str, channel: int, on: bool) -> Command:
    """What puts ``channel`` (from 1) on or off."""
    if board == "laskakit":
        return REGISTER, channel, 0x0100 if on else 0x0200
    return COIL, channel - 1, 0xFF00 if on else 0x0000


def flash_command(board: str, channel: int, duration: int) -> Command | None:
    """What makes the board itself pulse for ``duration`` microseconds, rounded up to what it can count;
    None where it cannot."""
    if board == "waveshare":
        tenths = max(1, -(-duration // 100_000))
        return (COIL, 0x0200 + channel - 1, tenths) if tenths <= 0x7FFF else None
    if board == "laskakit":
        seconds, rest = divmod(duration, 1_000_000)
        return (REGISTER, channel, 0x0600 + seconds) if rest == 0 and 1 <= seconds <= 255 else None
    return None


class WriteSingle(ModbusPDU):
    """A write of one coil or register with any 16-bit value."""

    def __init__(self, unit: int, command: Command) -> None:
        super().__init__(dev_id=unit, address=command[1])
        self.function_code, _, self.value = command

    def encode(self) -> bytes:
        return struct.pack(">HH", self.address, self.value)


class ModbusLink:
    """The port of one RS-485 line, with any number of boards on it."""

    gap = 0.01
    """Seconds. The line must be silent for 3.5 characters between frames: 4 ms at 9600 baud."""

    prompt = False

    def __init__(self, device: str, baudrate: int) -> None:
        self.device = device
        self.baudrate = baudrate
        self._client: ModbusSerialClient | None = None
        self._written = 0
        # What pymodbus would log of a silent board, once for each try, is in the reason that we tell.
        logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)

    def open(self) -> None:
        port = open_port(self.device, self.baudrate, ANSWER)
        # retries=0: a flash-on that was carried out and whose echo was lost would admit a second person.
        client = ModbusSerialClient(
            self.device, baudrate=self.baudrate, timeout=ANSWER, retries=0, trace_packet=self._trace
        )
        # The port is opened here, because pymodbus would only say that it could not.
        client.socket = port
        self._client = client

    def check(self) -> None:
        if self._client is not None and self._client.socket is not None:
            check_fd(self._client.socket.fileno())

    def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            client.close()  # type: ignore[no-untyped-call]

    def execute(self, unit: int, command: Command) -> int:
        """Send once, and see the board's echo. Returns when it was written, monotonic microseconds.

        Raises OSError if the port is gone, NoAnswer if the board is silent or refuses.
        """
        if self._client is None or self._client.socket is None:
            raise OSError("the port is not open")
        where = f"the board with address {unit}"
        try:
            answer = self._client.execute(False, WriteSingle(unit, command))
        except ConnectionException as fault:
            raise OSError("the port was lost") from fault
        except (ModbusException, struct.error, ValueError, IndexError) as fault:
            raise NoAnswer(f"{where} did not answer") from fault
        if answer.isError():
            raise NoAnswer(f"{where} refused with Modbus exception {answer.exception_code}: wrong channel?")
        if (answer.function_code, answer.address) != command[:2]:
            raise NoAnswer(f"{where} answered another question")
        return self._written

    def _trace(self, sending: bool, data: bytes) -> bytes:
        """pymodbus calls this just before it writes, and with all it has read."""
        if sending:
            self._written = monotonic_us()
        return data


class ModbusContact:
    def __init__(self, link: ModbusLink, unit: int, board: str, channel: int) -> None:
        if board not in BOARDS:
            raise ValueError(f"board {board!r}: one of {', '.join(BOARDS)}")
        if not 1 <= channel <= 255:
            raise ValueError(f"channel {channel}: channels count from 1 as printed on the board")
        if not 1 <= unit <= 255:
            raise ValueError(f"address {unit}: from 1 to 255")
        self._link = link
        self._unit = unit
        self._board = board
        self._channel = channel

    def switch(self, on: bool) -> int:
        return self._link.execute(self._unit, switch_command(self._board, self._channel, on))

    def flash(self, duration: int) -> int | None:
        command = flash_command(self._board, self._channel, duration)
        return None if command is None else self._link.execute(self._unit, command)
