"""The thread of one relay board, shared by the lanes whose relays are on that board.

Theory. A USB control transfer can block for seconds and a Modbus answer takes tens of milliseconds, so a
board is driven from a thread of its own and the loop only puts a word in its queue. The thread knows for
each relay what its contact should be (off, held, or on until a time), and drives towards that; it never
keeps a list of things still to be done, so nothing can be done late by surprise. A pulse is tried once:
when it cannot be given, when it comes too late, or when the board does not answer for it, that is told
and the next thing the board hears is the contact's present state.

There is one short cut. Where a command can neither block nor is answered (``Link.prompt``) and the board is
at rest, the loop begins the pulse itself, under the board's lock, and leaves its end to the thread: waking
the thread for it costs a scan 0.1 ms. Whatever is not plain about it is left to the thread as a whole.

Two kinds of failure are kept apart. ``OSError``: the device is gone, every relay on it is down, the device
is closed at once (a fd kept open makes a replugged tty come back under another name) and opened again
with back-off. ``NoAnswer``: one board on a bus is silent; the others on that bus go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from gateway.turnstile.relay import RelayCallbacks

FIRST_RETRY = 0.25
LAST_RETRY = 5.0
"""Seconds of back-off: doubled from the first to the last. A gate is wanted back soon, and trying to
open a path that is not there costs nothing."""
LOOK = 0.5
"""Seconds between two looks at an idle device: does it still exist?"""
STALE = 1.0
"""Seconds after which a pulse that the thread could not begin with is not given any more: the visitor
does not stand there forever, and a gate must not open for nobody."""
CLOSE_WAIT = 1.0

_log = logging.getLogger(__name__)


class NoAnswer(Exception):
    """The board did not answer a command, or not as it should; the line to it works. The text does not
    name the device, nor do those of OSError: the board's thread puts its name in front."""


class Link(Protocol):
    """The device that the commands go through. Called in the board's thread; may block, unless ``prompt``."""

    gap: float
    """Seconds between two commands at least."""
    prompt: bool
    """A command is a write that never blocks, and nothing is waited for."""

    def open(self) -> None:
        """Raises OSError, with a text that says what to do."""

    def check(self) -> None:
        """Raises OSError if the device is gone, without sending anything."""

    def close(self) -> None: ...


class Contact(Protocol):
    """One output, reached through a link. Raises OSError or NoAnswer."""

    def switch(self, on: bool) -> int:
        """Returns when the command had been written (monotonic microseconds)."""

    def flash(self, duration: int) -> int | None:
        """Like ``switch(True)``, and the board itself ends it after ``duration`` microseconds or a little
        more. None, with nothing sent: the board cannot time this."""


def monotonic_us() -> int:
    return time.monotonic_ns() // 1000


def check_fd(fd: int) -> None:
    """Raises OSError if the device behind ``fd`` has been pulled out."""
    poller = select.poll()
    poller.register(fd, 0)
    if poller.poll(0):
        raise OSError("the device was disconnected")


@dataclass(slots=True, eq=False)
class _Output:
    """What the thread knows of one relay."""

    contact: Contact
    tell: _Tell
    up: bool = False
    told: bool | None = None
    held: bool = False
    off_at: float | None = None
    retry_at: float = 0.0
    delay: float = FIRST_RETRY


@dataclass(slots=True)
class _Tell:
    """The way back to the loop."""

    loop: asyncio.AbstractEventLoop
    on_state: Callable[[bool, str], None]
    on_failed: Callable[[str], None]
    on_pulsed: Callable[[int], None]

    def call(self, function: Callable[..., None], *args: object) -> None:
        # At the very end of the process the loop may be closed before the thread is.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(function, *args)


@dataclass(slots=True)
class _Close:
    output: _Output
    on: bool
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(slots=True)
class _Pulse:
    output: _Output
    duration: int
    asked: float


@dataclass(slots=True)
class _Hold:
    output: _Output
    on: bool


@dataclass(slots=True)
class _Open:
    output: _Output


@dataclass(slots=True)
class _Begun:
    """A pulse has begun; the thread sees to its end."""


_Command = _Open | _Pulse | _Begun | _Hold | _Close


class BoardRelay:
    """One relay of a board that has its own thread: a ``Relay``."""

    def __init__(
        self, board: Board, contact: Contact, loop: asyncio.AbstractEventLoop, callbacks: RelayCallbacks
    ) -> None:
        self.up = False
        self._board = board
        self._callbacks = callbacks
        tell = _Tell(loop, self._state, callbacks.on_failed, callbacks.on_pulsed)
        self._output = _Output(contact, tell)

    def open(self) -> None:
        self._board.start()
        self._board.put(_Open(self._output))

    def pulse(self, duration: int) -> None:
        if not self._board.begin_pulse(self._output, duration):
            self._board.put(_Pulse(self._output, duration, time.monotonic()))

    def hold(self, on: bool) -> None:
        self._board.put(_Hold(self._output, on))

    def close(self, on: bool) -> None:
        self.up = False
        if self._board.running:
            command = _Close(self._output, on)
            self._board.put(command)
            command.done.wait(CLOSE_WAIT)

    def _state(self, up: bool, reason: str) -> None:
        self.up = up
        self._callbacks.on_state(up, reason)


class Board:
    """One device and the thread that drives it. The thread begins with the first relay that is opened,
    lets go of the device and ends when the last one is closed; it is a daemon, for it may hang in the
    kernel."""

    def __init__(self, name: str, link: Link) -> None:
        self.name = name
        self.link = link
        self._queue: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._driving = threading.Lock()
        """Held by whoever gives commands to the device or changes what is known of it."""
        self._thread: threading.Thread | None = None
        self._outputs: list[_Output] = []
        self._is_open = False
        self._open_at = 0.0
        self._open_delay = FIRST_RETRY
        self._fault = ""
        self._last_command = 0.0

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"board {self.name}", daemon=True)
            self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def put(self, command: _Command) -> None:
        self._queue.put(command)

    def begin_pulse(self, output: _Output, duration: int) -> bool:
        """On the loop: the short cut. False, and nothing done: it is for the thread."""
        if not self.link.prompt or not self._driving.acquire(blocking=False):
            return False
        try:
            now = time.monotonic()
            at_rest = self._queue.empty() and now >= self._last_command + self.link.gap
            if not at_rest or not output.up or output.held or output.off_at is not None:
                return False
            self._last_command = now
            written = output.contact.switch(True)
            output.off_at = (written + duration) / 1e6
        except (OSError, NoAnswer):
            return False  # the thread meets it too, and knows what to do
        finally:
            self._driving.release()
        self.put(_Begun())
        output.tell.loop.call_soon(output.tell.on_pulsed, written)
        return True

    # --- the thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        ended = False
        while not ended:
            try:
                command: _Command | None = self._queue.get(timeout=self._wait())
            except queue.Empty:
                command = None
            with self._driving:
                ended = self._drive(command)

    def _drive(self, command: _Command | None) -> bool:
        """Returns whether it was the last one."""
        try:
            self._step(command)
        except OSError as fault:
            self._lost(f"{self.name}: {fault}")
        except Exception as fault:
            # A mistake in one driver, or in the library under it, must not leave a lane silently dead:
            # it is told like a lost device, and driven again from a fresh start.
            _log.exception("the driver of %s failed", self.name)
            self._lost(f"{self.name}: the driver failed ({type(fault).__name__}: {fault})")
        if not isinstance(command, _Close):
            return False
        ended = self._forget(command.output)
        command.done.set()
        return ended

    def _wait(self) -> float:
        """Seconds until something is due: the end of a pulse, a retry, a look at the idle device."""
        if not self._is_open:
            return max(0.0, self._open_at - time.monotonic()) if self._outputs else LOOK
        due = time.monotonic() + LOOK
        for output in self._outputs:
            if not output.up:
                due = min(due, output.retry_at)
            elif output.off_at is not None:
                due = min(due, output.off_at)
        return max(0.0, due - time.monotonic())

    def _step(self, command: _Command | None) -> None:
        """One command, if there is one, then whatever is due. The command comes first: somebody waits."""
        match command:
            case _Pulse(output, duration, asked):
                self._pulse(output, duration, asked)
            case _Hold(output, on):
                output.held = on
                output.off_at = None
                if output.up:
                    self._switch(output, on)
            case _Open(output):
                self._outputs.append(output)
                if not self._is_open and self._fault:
                    self._say(output, False, self._fault)
            case _Close(output, on):
                output.held = on
                output.off_at = None
                if output.up:
                    self._switch(output, on)
                return
            case _Begun():
                pass
            case None:
                if self._is_open:
                    self.link.check()
        self._due()

    def _due(self) -> None:
        if not self._is_open and self._outputs and time.monotonic() >= self._open_at:
            self.link.open()
            self._is_open = True
            self._fault = ""
            self._open_delay = FIRST_RETRY
        if not self._is_open:
            return
        for output in self._outputs:
            now = time.monotonic()
            if not output.up and now >= output.retry_at:
                # The rest state first: whatever a board did while we were away, it now does what the lane
                # says, and a pulse that was lost stays lost.
                output.off_at = None
                output.up = True
                if self._switch(output, output.held):
                    output.delay = FIRST_RETRY
                    self._say(output, True, "")
            elif output.up and output.off_at is not None and now >= output.off_at:
                output.off_at = None
                self._switch(output, output.held)

    def _pulse(self, output: _Output, duration: int, asked: float) -> None:
        if not output.up:
            output.tell.call(output.tell.on_failed, f"{self.name} cannot be driven: no pulse was given")
            return
        if time.monotonic() - asked > STALE:
            output.tell.call(output.tell.on_failed, f"{self.name} was busy for too long: no pulse was given")
            return
        if output.held:
            output.tell.call(output.tell.on_pulsed, monotonic_us())
            return
        self._pause()
        try:
            written = output.contact.flash(duration)
            if written is None:
                # The end is fixed before the command: if the device is lost in between, or the answer
                # is, nothing here believes the contact to be on for ever.
                end = time.monotonic() + duration / 1e6
                output.off_at = end if output.off_at is None else max(end, output.off_at)
                written = output.contact.switch(True)
                output.off_at = max(output.off_at, written / 1e6 + duration / 1e6)
        except NoAnswer as fault:
            output.tell.call(
                output.tell.on_failed, f"{self.name}: {fault}; whether it pulsed is unknown, not repeated"
            )
            self._silent(output, f"{self.name}: {fault}")
        except OSError as fault:
            output.tell.call(
                output.tell.on_failed, f"{self.name}: {fault}; the pulse may be lost, not repeated"
            )
            raise
        else:
            output.tell.call(output.tell.on_pulsed, written)
        finally:
            self._last_command = time.monotonic()

    def _switch(self, output: _Output, on: bool) -> bool:
        self._pause()
        try:
            output.contact.switch(on)
        except NoAnswer as fault:
            self._silent(output, f"{self.name}: {fault}")
            return False
        finally:
            self._last_command = time.monotonic()
        return True

    def _pause(self) -> None:
        """Keep the board's gap between two commands; an idle board is not waited for."""
        rest = self._last_command + self.link.gap - time.monotonic()
        if rest > 0:  # a sleep of nothing costs a pulse 50 µs
            time.sleep(rest)

    def _silent(self, output: _Output, reason: str) -> None:
        """One board on the line does not answer."""
        output.up = False
        output.retry_at = time.monotonic() + output.delay
        output.delay = min(output.delay * 2, LAST_RETRY)
        self._say(output, False, reason)

    def _lost(self, reason: str) -> None:
        self.link.close()
        self._is_open = False
        self._fault = reason
        self._open_at = time.monotonic() + self._open_delay
        self._open_delay = min(self._open_delay * 2, LAST_RETRY)
        for output in self._outputs:
            output.up = False
            output.retry_at = 0.0
            self._say(output, False, reason)

    def _say(self, output: _Output, up: bool, reason: str) -> None:
        if output.told is not up:
            output.told = up
            output.tell.call(output.tell.on_state, up, reason)

    def _forget(self, output: _Output) -> bool:
        """Returns whether that was the last relay, and the device is let go of."""
        if output in self._outputs:
            self._outputs.remove(output)
        if not self._outputs:
            self.link.close()
            self._is_open = False
            return True
        return False
