"""All scanners at once, until one of them has read a code."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from gateway.config import ReaderConfig
from gateway.readers.hidpos import HidPosDecoder, parse_descriptor
from gateway.readers.opening import OpenDevice, open_device, reason_of
from gateway.setup.asking import Terminal
from gateway.setup.dialogue import Scanner
from gateway.setup.setupcode import BAUDRATES, EveryLayout, Learned, from_hidpos, from_serial

PATIENCE: Final = 120.0
"""Seconds without a scan after which the keyboards are let go of: one of them may be the technician's own."""
_SILENCE: Final = 0.3
"""Seconds without a byte after which a serial scan is over."""
_READ: Final = 4096

Open = Callable[[ReaderConfig], OpenDevice]


class Listener:
    """One scanner that is open. ``feed`` takes what was read; ``over`` says what silence has ended."""

    def __init__(self, place: int, scanner: Scanner, device: OpenDevice, baudrate: int) -> None:
        self.place = place
        self.scanner = scanner
        self.device = device
        self.baudrate = baudrate
        self.data = b""
        """serial: what has come of a scan."""
        self.last = 0.0
        self.keyboard = EveryLayout() if scanner.driver == "keyboard" else None
        self._pos = HidPosDecoder(parse_descriptor(device.descriptor)) if scanner.driver == "hidpos" else None
        self.read_bytes = self._pos.report_bytes if self._pos is not None else _READ

    def feed(self, data: bytes) -> Learned | None:
        if self.keyboard is not None:
            return self.keyboard.feed(data)
        if self._pos is not None:
            payloads = self._pos.report(data)
            return from_hidpos(payloads[0].data) if payloads else None
        self.data += data
        self.last = time.monotonic()
        return None

    def over(self) -> bool:
        return bool(self.data) and time.monotonic() - self.last >= _SILENCE


def listen(
    scanners: Sequence[Scanner],
    terminal: Terminal,
    open_: Open = open_device,
    patience: float = PATIENCE,
    settings: Sequence[dict[str, Any]] | None = None,
) -> tuple[int, Learned] | None:
    """Waits for a code on any of them. Gives the scanner's place and what it tells; None when nothing came,
    or when the person pressed Enter instead. Raises Abandoned, KeyboardInterrupt.

    ``settings``: of each scanner what is known of it already (its speed)."""
    rates = [BAUDRATES[0]] * len(scanners)
    for place, known in enumerate(settings or ()):
        rates[place] = known.get("baudrate", BAUDRATES[0])
    with contextlib.ExitStack() as closing:
        listeners: dict[int, Listener] = {}
        closing.callback(_close, listeners)
        for place, scanner in enumerate(scanners):
            if (made := _opened(place, scanner, rates[place], terminal, open_)) is not None:
                listeners[made.device.fd] = made
        terminal.say("(Enter: go on without a scan)")
        until = time.monotonic() + patience
        while (left := until - time.monotonic()) > 0:
            ready, _, _ = select.select([terminal.fd, *listeners], [], [], min(left, _SILENCE / 3))
            if terminal.fd in ready and terminal.take() is not None:
                return None
            for fd in [fd for fd in ready if fd in listeners]:
                learned = _read(listeners, fd, terminal)
                by_hand = _by_hand(listeners.get(fd))
                if by_hand == "ctrl-c":
                    raise KeyboardInterrupt
                if learned is not None:
                    return listeners[fd].place, learned
                if by_hand:
                    return None
            for made in [made for made in listeners.values() if made.over()]:
                learned = from_serial(made.data, made.baudrate)
                if learned is not None:
                    return made.place, learned
                _next_rate(listeners, made, terminal, open_)
                until = time.monotonic() + patience
    terminal.say("Nothing was scanned.")
    return None


def _by_hand(made: Listener | None) -> str:
    """What somebody pressed on that keyboard: it may be the technician's own."""
    return made.keyboard.by_hand if made is not None and made.keyboard is not None else ""


def _close(listeners: dict[int, Listener]) -> None:
    for made in listeners.values():
        made.device.close()


def _opened(place: int, scanner: Scanner, baudrate: int, terminal: Terminal, open_: Open) -> Listener | None:
    config = ReaderConfig("setup", "setup", scanner.driver, scanner.device, baudrate=baudrate)  # type: ignore[arg-type]
    try:
        return Listener(place, scanner, open_(config), baudrate)
    except OSError as fault:
        terminal.say(f"  {scanner.description}: {reason_of(scanner.device, fault)}")
        return None


def _read(listeners: dict[int, Listener], fd: int, terminal: Terminal) -> Learned | None:
    made = listeners[fd]
    try:
        data = os.read(fd, made.read_bytes)
    except BlockingIOError:
        return None
    except OSError:
        data = b""
    if data:
        return made.feed(data)
    terminal.say(f"  {made.scanner.device} was unplugged.")
    listeners.pop(fd).device.close()
    return None


def _next_rate(listeners: dict[int, Listener], made: Listener, terminal: Terminal, open_: Open) -> None:
    """What came is noise: perhaps the line has another speed."""
    rate = BAUDRATES[(BAUDRATES.index(made.baudrate) + 1) % len(BAUDRATES)]
    listeners.pop(made.device.fd).device.close()
    again = _opened(made.place, made.scanner, rate, terminal, open_)
    if again is None:
        return
    listeners[again.device.fd] = again
    terminal.say(
        f"  {made.scanner.device}: what came cannot be read at {made.baudrate} Bd. "
        f"Scan again, now at {rate} Bd."
    )
