"""The only owner of input fds: opens, configures, grabs, reads, loses and reopens a scanner.

Theory of operation. One callback per readable fd does all the work: read, decode, hand each scan on. No
thread, task or queue stands between, so nothing can overtake and nothing can pile up but in the kernel.

A lost device is closed at once: while the old fd of a serial port is open, the replugged device gets another
name (ttyACM1 in place of ttyACM0, measured on kernel 6.1). While its path is not there an attempt to open it
costs a few microseconds and is made every 0.2 s; what is there and cannot be opened is tried again with
growing pauses. Right after plugging in that is normal: the node has its rights 0.3 to 0.8 s later, when udev
has given them.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import time
from collections.abc import Callable
from typing import Final

from gateway.config import ReaderConfig
from gateway.model import Payload, Scan
from gateway.readers.hidpos import HidPosDecoder, parse_descriptor
from gateway.readers.keyboard import KeyboardDecoder
from gateway.readers.line import LineDecoder
from gateway.readers.opening import OpenDevice, open_device, reason_of

READ_BYTES: Final = 4096
TORN_LINE: Final = 1.0
"""Seconds of silence after which a serial code without its suffix is torn: packets of one code come within
milliseconds, but somebody may type at a terminal for a test."""
TORN_REPORT: Final = 0.5
"""The same for HID POS, whose reports come up to 128 ms apart (the longest interval at which Linux asks a
full-speed device). What still came of a code that was torn too early would be judged as a code of its own."""
RETRY_FIRST: Final = 0.2
RETRY_LAST: Final = 5.0
"""Seconds between attempts to open, doubling from the first to the last; a path that is not there is looked
for at the first pace always."""
SETTLES: Final = 1.0
"""Seconds for which a fault must last before it is told, where the device was down already."""

Decoder = LineDecoder | KeyboardDecoder | HidPosDecoder


def _make_decoder(config: ReaderConfig, device: OpenDevice) -> Decoder:
    if config.driver == "keyboard":
        return KeyboardDecoder(config.layout, config.idle, config.strip_aim)
    if config.driver == "hidpos":
        return HidPosDecoder(parse_descriptor(device.descriptor))
    return LineDecoder(config.framing if config.driver == "serial" else "suffix", config.strip_aim)


def _silence(config: ReaderConfig) -> float | None:
    """Seconds without a byte after which what is half read is finished or torn; None: never."""
    if config.driver == "stdin":
        return None
    if config.driver == "hidpos":
        return TORN_REPORT
    if config.driver == "keyboard" or config.framing == "idle":
        return config.idle / 1_000_000
    return TORN_LINE


class Reader:
    """One scanner, from ``start`` to ``close``, whatever happens to its device. All on the loop's thread.

    ``on_scan`` gets each scan. ``on_state`` gets the reader's name, whether it is up, and why not: once when
    it goes down, and again if it stays down for another reason. ``on_drop`` gets the name and how many scans
    were dropped just now (torn, too long, or lost in the kernel's buffer).
    """

    def __init__(
        self,
        config: ReaderConfig,
        loop: asyncio.AbstractEventLoop,
        on_scan: Callable[[Scan], None],
        on_state: Callable[[str, bool, str], None],
        on_drop: Callable[[str, int], None],
        open_device: Callable[[ReaderConfig], OpenDevice] = open_device,
    ) -> None:
        self.name = config.name
        self.up = False
        self._config = config
        self._loop = loop
        self._on_scan = on_scan
        self._on_state = on_state
        self._on_drop = on_drop
        self._open_device = open_device
        self._silence = _silence(config)
        self._device: OpenDevice | None = None
        self._decoder: Decoder = LineDecoder("suffix")
        self._feed: Callable[[bytes], list[Payload]] = self._decoder.feed
        self._read_bytes = READ_BYTES
        self._dropped = 0
        self._last = 0.0
        self._paused_until = 0.0
        self._silence_timer: asyncio.TimerHandle | None = None
        self._pause_timer: asyncio.TimerHandle | None = None
        self._open_timer: asyncio.TimerHandle | None = None
        self._retry = RETRY_FIRST
        self._told: int | None = None
        """The errno of the fault that ``on_state`` was told last; None while up or before the first."""
        self._fault = 0
        """The errno of the last attempt to open."""
        self._fault_since = 0.0
        self._closed = False
        self._reads = 0
        self._unread: int | None = None
        """How often was read when bytes were last seen waiting; None: none were."""

    def start(self) -> None:
        """Open the device, or begin to wait for it."""
        self._try_open()

    def close(self) -> None:
        """Close the device for good. Nothing is called back any more."""
        self._closed = True
        if self._open_timer is not None:
            self._open_timer.cancel()
            self._open_timer = None
        self._close_device()
        self.up = False

    def slow(self, seconds: float) -> None:
        """Read nothing from this reader for so long. What comes meanwhile waits in the kernel."""
        self._paused_until = max(self._paused_until, self._loop.time() + seconds)
        if self._device is not None:
            self._stop_reading()
            self._resume()

    def works(self) -> bool:
        """Whether it does its work, asked now and then, with time between for the loop: a device that is away
        is looked for, and what waited the last time has been read since."""
        before, self._unread = self._unread, None
        if self._closed or self._config.driver == "stdin":
            return True
        if self._device is None:
            return self._open_timer is not None and not self._open_timer.cancelled()
        if self._pause_timer is not None:
            return not self._pause_timer.cancelled()
        waiting = select.poll()
        waiting.register(self._device.fd, select.POLLIN)
        if waiting.poll(0):
            self._unread = self._reads
        return before is None or self._unread != before

    # --- opening and losing --------------------------------------------------------------------------

    def _try_open(self) -> None:
        self._open_timer = None
        try:
            device = self._open_device(self._config)
        except OSError as fault:
            self._failed(fault)
            return
        self._device = device
        self._decoder = _make_decoder(self._config, device)
        self._feed = self._decoder.feed
        self._read_bytes = READ_BYTES
        if isinstance(self._decoder, HidPosDecoder):
            # hidraw gives one report a read, whole; what ends early is a short report, no torn one.
            self._feed = self._decoder.report
            self._read_bytes = self._decoder.report_bytes
        self._dropped = 0
        try:
            self._sync_keys(device)
        except OSError as fault:
            self._close_device()
            self._failed(fault)
            return
        self._retry = RETRY_FIRST
        self._told = None
        self._fault = 0
        self.up = True
        self._on_state(self.name, True, "")
        if self._device is device:  # on_state may have closed this reader
            self._resume()

    def _failed(self, fault: OSError) -> None:
        code = fault.errno or errno.EIO
        now = self._loop.time()
        if code != self._fault:
            self._fault = code
            self._fault_since = now
        if self._told is None or (code != self._told and now - self._fault_since >= SETTLES):
            self._told = code
            self._on_state(self.name, False, reason_of(self._config.device, fault))
        if code == errno.ENOENT:
            self._retry = RETRY_FIRST
            delay = RETRY_FIRST
        else:
            delay = self._retry
            self._retry = min(2 * delay, RETRY_LAST)
        if not self._closed:
            self._open_timer = self._loop.call_later(delay, self._try_open)

    def _lost(self, reason: str) -> None:
        torn = self._decoder.pending
        self._close_device()
        self.up = False
        self._told = self._fault = errno.ENOENT
        if self._config.driver != "stdin":
            self._open_timer = self._loop.call_later(RETRY_FIRST, self._try_open)
        if torn:
            self._on_drop(self.name, 1)
        self._on_state(self.name, False, reason)

    def _lost_to(self, fault: OSError) -> None:
        self._lost(f"{self._config.device}: unplugged ({fault.strerror})")

    def _close_device(self) -> None:
        if self._device is None:
            return
        self._stop_reading()
        device, self._device = self._device, None
        self._unread = None
        device.close()

    # --- reading -------------------------------------------------------------------------------------

    def _resume(self) -> None:
        """Begin to read, or put that off while this reader is slowed down."""
        self._pause_timer = None
        if self._device is None:
            return
        if self._loop.time() < self._paused_until:
            self._pause_timer = self._loop.call_at(self._paused_until, self._resume)
            return
        try:
            self._loop.add_reader(self._device.fd, self._readable)
        except PermissionError:
            # stdin from a file or /dev/null: epoll refuses it, and it is always readable.
            self._pause_timer = self._loop.call_later(0, self._resume)
            self._readable()
            return
        if self._decoder.pending:
            self._await_silence()

    def _stop_reading(self) -> None:
        if self._device is not None:
            self._loop.remove_reader(self._device.fd)
        for timer in (self._silence_timer, self._pause_timer):
            if timer is not None:
                timer.cancel()
        self._silence_timer = self._pause_timer = None

    def _readable(self) -> None:
        device = self._device
        if device is None:
            return
        self._reads += 1
        try:
            data = os.read(device.fd, self._read_bytes)
        except BlockingIOError:
            return
        except OSError as fault:
            self._lost_to(fault)
            return
        if not data:
            self._ended()
            return
        self._deliver(self._feed(data))
        if self._device is not device:  # a scan may have closed this reader
            return
        if isinstance(self._decoder, KeyboardDecoder) and self._decoder.needs_keys:
            try:
                self._sync_keys(device)
            except OSError as fault:
                self._lost_to(fault)
                return
        if self._pause_timer is None and self._decoder.pending:
            self._await_silence()

    def _ended(self) -> None:
        if self._config.driver != "stdin":
            self._lost(f"{self._config.device}: unplugged")
            return
        self._deliver(self._feed(b"\n"))  # the last line may have no end of its own
        if self._device is not None:
            self._lost("end of input")

    def _sync_keys(self, device: OpenDevice) -> None:
        if isinstance(self._decoder, KeyboardDecoder) and device.key_state is not None:
            self._decoder.keys(device.key_state(), time.monotonic_ns() // 1000)

    def _deliver(self, payloads: list[Payload]) -> None:
        if payloads:
            at = time.time_ns() // 1000
            monotonic = time.monotonic_ns() // 1000
            for payload in payloads:
                self._on_scan(Scan(self.name, payload.data, at, monotonic, payload.aim))
        if self._decoder.dropped != self._dropped:
            dropped, self._dropped = self._decoder.dropped - self._dropped, self._decoder.dropped
            self._on_drop(self.name, dropped)

    # --- silence -------------------------------------------------------------------------------------

    def _await_silence(self) -> None:
        # One timer at a time, put off when it fires early: none is made per byte. The loop serves readable
        # fds before timers, so bytes that waited while it was busy are no silence.
        if self._silence is None:
            return
        self._last = self._loop.time()
        if self._silence_timer is None:
            self._silence_timer = self._loop.call_later(self._silence, self._silent)

    def _silent(self) -> None:
        assert self._silence is not None
        due = self._last + self._silence
        if self._loop.time() < due:
            self._silence_timer = self._loop.call_at(due, self._silent)
            return
        self._silence_timer = None
        self._deliver(self._decoder.flush())
