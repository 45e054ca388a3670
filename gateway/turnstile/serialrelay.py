"""Serial relay boards: LCUS, Numato and KMTronic, each a handful of bytes (8N1, usually 9600 baud).

LCUS (CH340): ``A0 channel op sum``; op 01 on, 00 off, without an answer. Boards with the feedback firmware
also know 03 and 02, which answer ``A0 channel state sum``; other firmware takes these for something else, so
they are used only where the configuration says ``lcus_feedback``.
KMTronic: ``FF channel 01|00``, without an answer. Numato: a line of text; it echoes what it was sent and
ends its answer with a prompt ``>``.
"""

from __future__ import annotations

import os
import time

import serial

from gateway.turnstile.board import NoAnswer, check_fd, monotonic_us
from gateway.turnstile.serialport import open_port

GAP = 0.05
"""Seconds: LCUS boards lose a command that follows the one before more closely."""
ANSWER = 0.25
"""Seconds to wait for an answer; at 9600 baud the longest takes 25 ms."""


def lcus_frame(channel: int, on: bool, feedback: bool = False) -> bytes:
    """``channel`` from 1. With ``feedback``, the ops that are answered."""
    op = (2 if feedback else 0) + on
    return bytes((0xA0, channel, op, (0xA0 + channel + op) & 0xFF))


def lcus_answer(channel: int, on: bool) -> bytes:
    """What the feedback firmware answers to ``lcus_frame(channel, on, feedback=True)``."""
    return lcus_frame(channel, on)


def kmtronic_frame(channel: int, on: bool) -> bytes:
    """``channel`` from 1."""
    return bytes((0xFF, channel, on))


def numato_line(channel: int, on: bool) -> bytes:
    """``channel`` from 1 to 16; on the wire it is one hexadecimal digit from 0, and must be upper case:
    a 16-channel board ignores ``c``, and takes ``12`` for relay 1. Larger boards number differently."""
    if not 1 <= channel <= 16:
        raise ValueError(f"channel {channel}: Numato boards are supported for channels 1 to 16")
    return f"relay {'on' if on else 'off'} {channel - 1:X}\r".encode()


def numato_complaint(line: bytes, answer: bytes) -> str:
    """What a Numato board says beside the echo of ``line`` and the prompt: empty when all is well."""
    text = answer.removesuffix(b">").strip().removeprefix(line.strip())
    return text.strip().decode("ascii", "replace")


class SerialLink:
    """The port. Raises OSError when it cannot be opened or is gone."""

    gap = GAP

    def __init__(self, device: str, baudrate: int, board: str) -> None:
        self.device = device
        self.baudrate = baudrate
        self.board = board
        self.prompt = board in ("lcus", "kmtronic")
        self.port: serial.Serial | None = None

    def open(self) -> None:
        self.port = open_port(self.device, self.baudrate, ANSWER)

    def check(self) -> None:
        if self.port is not None:
            check_fd(self.port.fileno())

    def close(self) -> None:
        if self.port is not None:
            port, self.port = self.port, None
            port.close()

    def write(self, data: bytes, *, answered: bool) -> int:
        """Returns when it was written, monotonic microseconds. Never blocks: at the pace of commands there is
        always room for one. ``answered``: an answer will be read, so bytes that came unasked are dropped
        before."""
        if self.port is None:
            raise OSError("the port is not open")
        if answered and self.port.in_waiting:
            self.port.read(self.port.in_waiting)
        if os.write(self.port.fileno(), data) != len(data):
            raise OSError("the port takes no more bytes")
        return monotonic_us()

    def read(self, until: bytes, size: int) -> bytes:
        """What comes up to and including ``until``, at most ``size`` bytes, within ``ANSWER`` seconds."""
        answer = b""
        deadline = time.monotonic() + ANSWER
        while self.port is not None and len(answer) < size and time.monotonic() < deadline:
            answer += self.port.read(1)
            if until and answer.endswith(until):
                break
        return answer


class LcusContact:
    def __init__(self, link: SerialLink, channel: int, feedback: bool) -> None:
        self._link = link
        self._channel = channel
        self._feedback = feedback

    def switch(self, on: bool) -> int:
        written = self._link.write(lcus_frame(self._channel, on, self._feedback), answered=self._feedback)
        if self._feedback:
            answer = self._link.read(b"", 4)
            if answer != lcus_answer(self._channel, on):
                raise NoAnswer(
                    f"the board answered {answer.hex(' ') or 'nothing'}; if it never"
                    ' answers, it has the plain firmware: use board = "lcus"'
                )
        return written

    def flash(self, duration: int) -> int | None:
        return None


class KmtronicContact:
    def __init__(self, link: SerialLink, channel: int) -> None:
        self._link = link
        self._channel = channel

    def switch(self, on: bool) -> int:
        return self._link.write(kmtronic_frame(self._channel, on), answered=False)

    def flash(self, duration: int) -> int | None:
        return None


class NumatoContact:
    def __init__(self, link: SerialLink, channel: int) -> None:
        self._link = link
        self._lines = {on: numato_line(channel, on) for on in (False, True)}

    def switch(self, on: bool) -> int:
        line = self._lines[on]
        written = self._link.write(line, answered=True)
        answer = self._link.read(b">", 200)
        complaint = numato_complaint(line, answer)
        if complaint or not answer.endswith(b">"):
            raise NoAnswer(f"the board answered {complaint or 'nothing'}")
        return written

    def flash(self, duration: int) -> int | None:
        return None


def serial_contact(link: SerialLink, channel: int) -> LcusContact | KmtronicContact | NumatoContact:
    """The contact on the link's board, a ``SerialBoard`` of the configuration. Raises ValueError for what
    cannot be."""
    if not 1 <= channel <= 255:
        raise ValueError(f"channel {channel}: channels count from 1 as printed on the board")
    match link.board:
        case "lcus" | "lcus_feedback":
            return LcusContact(link, channel, link.board == "lcus_feedback")
        case "kmtronic":
            return KmtronicContact(link, channel)
        case "numato":
            return NumatoContact(link, channel)
    raise ValueError(f"board {link.board!r}: one of lcus, lcus_feedback, numato, kmtronic")
