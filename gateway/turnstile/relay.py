"""What a lane needs of a relay and of an input, and the ones in memory.

The shell asks and goes on: every call on a relay returns at once and never raises for a fault of the
device. What became of it is told by callbacks, on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


def _ignore(_: int) -> None:
    """The default of ``on_pulsed``: nobody asks when."""


@dataclass(slots=True, frozen=True)
class RelayCallbacks:
    """What a relay tells, always on the event loop and never from inside the call that caused it."""

    on_state: Callable[[bool, str], None]
    """(up, reason): the device can be driven or cannot, once for each change and once at the start."""
    on_failed: Callable[[str], None]
    """(reason): a pulse was not given, or it is unknown whether it was. It is never repeated."""
    on_pulsed: Callable[[int], None] = _ignore
    """(monotonic microseconds): when the pulse's first command had been written to the device."""


class Relay(Protocol):
    """One output of one board. ``open`` first, ``close`` last and once.

    A lost device is told by ``on_state(False, reason)`` once and opened again with back-off; the contact
    is then put in the state that the lane has at that moment: off, or on where it is held. A pulse asked
    for meanwhile is told by ``on_failed`` and not made up for.
    """

    up: bool
    """The device can be driven, as far as is known."""

    def open(self) -> None:
        """Start driving the device, and put the contact off without ever pulsing it."""

    def pulse(self, duration: int) -> None:
        """Contact on, and off after so many microseconds. A pulse during a pulse makes it longer."""

    def hold(self, on: bool) -> None:
        """Contact on until told otherwise, or off."""

    def close(self, on: bool) -> None:
        """Leave the contact on (fail-safe) or off (fail-secure) and let go of the device.

        Waits for it for at most a second. A process that is killed cannot do this: a board then stays as
        it is until the next ``open`` puts it off, except for pulses that the board times itself.
        """


class Input(Protocol):
    """A contact that is read: told as edges, with the time at which the kernel saw them."""

    active: bool | None
    """The level last seen; None while it is unknown. A level is not an event: read it after ``on_state``."""
    up: bool
    lost_edges: int
    """Edges that the kernel saw and we did not, since the start."""

    def open(self) -> None: ...

    def close(self) -> None: ...


@dataclass(slots=True, frozen=True)
class InputCallbacks:
    """What an input tells, on the event loop."""

    on_edge: Callable[[bool, int], None]
    """(active, monotonic microseconds): the contact changed."""
    on_state: Callable[[bool, str], None]
    """(up, reason): as for a relay. The level may have changed meanwhile: see ``active``."""


class MemoryRelay:
    """A relay without a device: for the demo, a dry run and tests. The newest changes are in ``history``
    as (monotonic microseconds, on); ``on_change`` gets each one."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        callbacks: RelayCallbacks,
        on_change: Callable[[int, bool], None] | None = None,
        keep: int = 1000,
    ) -> None:
        self.up = False
        self.on = False
        self.history: deque[tuple[int, bool]] = deque(maxlen=keep)
        self._loop = loop
        self._callbacks = callbacks
        self.on_change = on_change
        self._held = False
        self._off_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def open(self) -> None:
        self.recover()

    def pulse(self, duration: int) -> None:
        if not self.up:
            self._loop.call_soon(self._callbacks.on_failed, "the relay in memory is switched off")
            return
        self._loop.call_soon(self._callbacks.on_pulsed, time.monotonic_ns() // 1000)
        if self._held:
            return
        self._off_at = max(self._off_at, self._loop.time() + duration / 1e6)
        if self._timer is None:
            self._timer = self._loop.call_at(self._off_at, self._end)
        self._set(True)

    def _end(self) -> None:
        """The pulse is over, unless another has made it longer since."""
        self._timer = None
        if self._loop.time() < self._off_at:
            self._timer = self._loop.call_at(self._off_at, self._end)
        else:
            self._set(False)

    def hold(self, on: bool) -> None:
        self._held = on
        self._off_at = 0.0
        self._stop_timer()
        if self.up:
            self._set(on)

    def close(self, on: bool) -> None:
        self._stop_timer()
        if self.up:
            self._set(on)
        self.up = False

    def lose(self, reason: str) -> None:
        """Behave from now on like a board that was pulled out."""
        self.up = False
        self._off_at = 0.0
        self._stop_timer()
        self.on = False
        self._loop.call_soon(self._callbacks.on_state, False, reason)

    def recover(self) -> None:
        """The board is back, with its contact as the lane wants it."""
        self.up = True
        self._set(self._held)
        self._loop.call_soon(self._callbacks.on_state, True, "")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, on: bool) -> None:
        if on == self.on:
            return
        self.on = on
        now = time.monotonic_ns() // 1000
        self.history.append((now, on))
        if self.on_change is not None:
            self.on_change(now, on)


class MemoryInput:
    """An input without a device; ``fire`` and ``set`` are the finger on the contact."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callbacks: InputCallbacks) -> None:
        self.active: bool | None = None
        self.up = False
        self.lost_edges = 0
        self._loop = loop
        self._callbacks = callbacks

    def open(self) -> None:
        self.up = True
        self.active = False
        self._loop.call_soon(self._callbacks.on_state, True, "")

    def close(self) -> None:
        self.up = False

    def set(self, active: bool, at: int | None = None) -> None:
        """Put the contact in a state; an edge is told if that is a change. ``at``: monotonic microseconds."""
        if self.up and active != self.active:
            self.active = active
            self._callbacks.on_edge(active, time.monotonic_ns() // 1000 if at is None else at)

    def fire(self, at: int | None = None) -> None:
        """One passage: the contact closes and opens again."""
        self.set(True, at)
        self.set(False, at)
