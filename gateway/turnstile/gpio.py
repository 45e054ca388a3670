"""GPIO lines through libgpiod v2: the relay output, and the inputs for passages and emergency.

A line is set by one ioctl, directly on the loop. A chip is found by path, name or label; the label is the
safe way, for a Raspberry Pi 5 has its header on gpiochip4 or gpiochip0, depending on the kernel, and always
on the label pinctrl-rp1. What a line does once it is let go of is the hardware's choice: the relay's wiring
must be such that a line left alone is the safe state.
"""

from __future__ import annotations

import asyncio
import errno
import glob
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import gpiod
from gpiod.line import Bias, Clock, Direction, Edge, Value

from gateway.turnstile.board import LOOK, check_fd
from gateway.turnstile.relay import InputCallbacks, RelayCallbacks

CONSUMER = "entry-gateway"
_GROUP = "the gate's user must be in its group (often gpio)"
FIRST_RETRY, LAST_RETRY = 0.25, 5.0
"""Seconds of back-off."""
BIAS = {
    "as_is": Bias.AS_IS,
    "disabled": Bias.DISABLED,
    "pull_up": Bias.PULL_UP,
    "pull_down": Bias.PULL_DOWN,
}


def list_chips() -> list[tuple[str, str, int]]:
    """(path, label, number of lines) of the chips that can be opened, each once."""
    chips = []
    for path in sorted({str(path.resolve()) for path in Path("/dev").glob("gpiochip*")}):
        try:
            with gpiod.Chip(path) as chip:
                info = chip.get_info()
        except OSError:
            continue
        chips.append((path, info.label, info.num_lines))
    return chips


def find_chip(wanted: str) -> str:
    """The path of the chip with this path, name (gpiochip0) or label. Raises OSError with what there is."""
    path = wanted if wanted.startswith("/") else f"/dev/{wanted}"
    if os.path.exists(path):
        return path
    chips = list_chips()
    for chip, label, _ in chips:
        if label == wanted:
            return chip
    present = ", ".join(f"{label} ({chip})" for chip, label, _ in chips) or "none that can be opened"
    shut = [path for path in glob.glob("/dev/gpiochip*") if not os.access(path, os.R_OK | os.W_OK)]
    remedy = f"; no permission for {', '.join(shut)}: {_GROUP}" if shut else ""
    raise OSError(f"there is no GPIO chip {wanted!r}; present, by label: {present}{remedy}")


def request(chip: str, line: int | str, settings: gpiod.LineSettings) -> gpiod.LineRequest:
    """Take one line. Raises OSError with the remedy."""
    path = find_chip(chip)
    try:
        return gpiod.request_lines(path, config={line: settings}, consumer=CONSUMER, event_buffer_size=256)
    except PermissionError as fault:
        raise OSError(f"no permission for {path}: {_GROUP}") from fault
    except ValueError as fault:
        raise OSError(f"{path} has no line {line!r}") from fault
    except OSError as fault:
        if fault.errno == errno.EBUSY:
            raise OSError(f"line {line!r} of {path} is in use by {_consumer(path, line)}") from fault
        if fault.errno == errno.ENOENT:
            raise OSError(f"{path} has no line {line!r}") from fault
        raise OSError(f"line {line!r} of {path}: {fault.strerror}") from fault


def _consumer(path: str, line: int | str) -> str:
    try:
        with gpiod.Chip(path) as chip:
            return chip.get_line_info(line).consumer or "the kernel"
    except OSError:
        return "another program"


class _Retry:
    """Calls ``action`` later, each time twice as late, until it is reset."""

    def __init__(self, loop: asyncio.AbstractEventLoop, action: Callable[[], None]) -> None:
        self._loop = loop
        self._action = action
        self._delay = FIRST_RETRY
        self._timer: asyncio.TimerHandle | None = None

    def later(self) -> None:
        self.cancel()
        self._timer = self._loop.call_later(self._delay, self._action)
        self._delay = min(self._delay * 2, LAST_RETRY)

    def reset(self) -> None:
        self.cancel()
        self._delay = FIRST_RETRY

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Watch:
    """Looks now and then whether the chip of a request is still there (USB adapters come and go): a kernel
    before 6.6 wakes nobody when it goes, and the fd would be deaf for ever (seen on 6.1). Touches no line."""

    def __init__(self, loop: asyncio.AbstractEventLoop, gone: Callable[[str], None]) -> None:
        self._loop = loop
        self._gone = gone
        self._timer: asyncio.TimerHandle | None = None

    def start(self, fd: int) -> None:
        self.stop()
        self._timer = self._loop.call_later(LOOK, self._look, fd)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, fd: int) -> None:
        try:
            check_fd(fd)
        except OSError as fault:
            self._gone(f"the GPIO chip is gone: {fault}")
        else:
            self.start(fd)


class GpioRelay:
    """A relay on one output line: a ``Relay``."""

    def __init__(
        self,
        chip: str,
        line: int | str,
        active_low: bool,
        loop: asyncio.AbstractEventLoop,
        callbacks: RelayCallbacks,
    ) -> None:
        self.up = False
        self._chip = chip
        self._line = line
        self._active_low = active_low
        self._loop = loop
        self._callbacks = callbacks
        self._request: gpiod.LineRequest | None = None
        self._told: bool | None = None
        self._held = False
        self._off_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._retry = _Retry(loop, self.open)
        self._watch = _Watch(loop, self._lost)

    def open(self) -> None:
        # The level is part of the request, so the line goes straight to it and never pulses.
        settings = gpiod.LineSettings(
            direction=Direction.OUTPUT,
            active_low=self._active_low,
            output_value=Value.ACTIVE if self._held else Value.INACTIVE,
        )
        try:
            self._request = request(self._chip, self._line, settings)
        except OSError as fault:
            self._lost(str(fault))
            return
        self._watch.start(self._request.fd)
        self._retry.reset()
        self._tell(True, "")

    def pulse(self, duration: int) -> None:
        if self._held and self._request is not None:
            self._loop.call_soon(self._callbacks.on_pulsed, time.monotonic_ns() // 1000)
            return
        if not self._set(True):
            self._loop.call_soon(
                self._callbacks.on_failed, f"GPIO line {self._line!r} cannot be driven: no pulse was given"
            )
            return
        self._loop.call_soon(self._callbacks.on_pulsed, time.monotonic_ns() // 1000)
        self._off_at = max(self._off_at, self._loop.time() + duration / 1e6)
        self._stop_timer()
        self._timer = self._loop.call_at(self._off_at, self._set, False)

    def hold(self, on: bool) -> None:
        self._held = on
        self._stop_timer()
        self._off_at = 0.0
        self._set(on)

    def close(self, on: bool) -> None:
        """A line that shall stay on is not let go of before the process ends: nothing holds it later."""
        self._retry.cancel()
        self._stop_timer()
        if self._set(on) and not on:
            self._release()
        self._retry.cancel()
        self._watch.stop()
        self.up = False

    def _set(self, on: bool) -> bool:
        if self._request is None:
            return False
        try:
            self._request.set_value(self._line, Value.ACTIVE if on else Value.INACTIVE)
        except OSError as fault:
            self._lost(f"GPIO line {self._line!r}: {fault.strerror}")
            return False
        return True

    def _lost(self, reason: str) -> None:
        self._stop_timer()
        self._off_at = 0.0
        self._release()
        self._retry.later()
        self._tell(False, reason)

    def _release(self) -> None:
        self._watch.stop()
        if self._request is not None:
            self._request.release()
            self._request = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self, up: bool, reason: str) -> None:
        self.up = up
        if self._told is not up:
            self._told = up
            self._loop.call_soon(self._callbacks.on_state, up, reason)


class GpioInput:
    """One input line, debounced and time-stamped by the kernel: an ``Input``.

    ``debounce`` in microseconds."""

    def __init__(
        self,
        chip: str,
        line: int | str,
        active_low: bool,
        bias: str,
        debounce: int,
        loop: asyncio.AbstractEventLoop,
        callbacks: InputCallbacks,
    ) -> None:
        self.active: bool | None = None
        self.up = False
        self.lost_edges = 0
        self._chip = chip
        self._line = line
        self._settings = gpiod.LineSettings(
            direction=Direction.INPUT,
            edge_detection=Edge.BOTH,
            bias=BIAS[bias],
            active_low=active_low,
            debounce_period=timedelta(microseconds=debounce),
            event_clock=Clock.MONOTONIC,
        )
        self._loop = loop
        self._callbacks = callbacks
        self._request: gpiod.LineRequest | None = None
        self._told: bool | None = None
        self._seqno = 0
        self._retry = _Retry(loop, self.open)
        self._watch = _Watch(loop, self._lost)

    def open(self) -> None:
        try:
            self._request = request(self._chip, self._line, self._settings)
            self.active = self._request.get_value(self._line) is Value.ACTIVE
        except OSError as fault:
            self._lost(str(fault))
            return
        self._seqno = 0
        self._loop.add_reader(self._request.fd, self._readable)
        self._watch.start(self._request.fd)
        self._retry.reset()
        self._tell(True, "")

    def close(self) -> None:
        self._retry.cancel()
        self._release()
        self.up = False

    def _readable(self) -> None:
        if self._request is None:
            return
        try:
            events = self._request.read_edge_events()
        except OSError as fault:
            self._lost(f"GPIO line {self._line!r}: {fault.strerror}")
            return
        for event in events:
            # The kernel numbers the edges of a line from 1; when its buffer is full it drops the oldest.
            self.lost_edges += event.line_seqno - self._seqno - 1
            self._seqno = event.line_seqno
            # Rising is "became active": the kernel has taken active_low into account.
            self.active = event.event_type is event.Type.RISING_EDGE
            self._callbacks.on_edge(self.active, event.timestamp_ns // 1000)

    def _lost(self, reason: str) -> None:
        self._release()
        self.active = None
        self._retry.later()
        self._tell(False, reason)

    def _release(self) -> None:
        self._watch.stop()
        if self._request is not None:
            self._loop.remove_reader(self._request.fd)
            self._request.release()
            self._request = None

    def _tell(self, up: bool, reason: str) -> None:
        self.up = up
        if self._told is not up:
            self._told = up
            self._loop.call_soon(self._callbacks.on_state, up, reason)
