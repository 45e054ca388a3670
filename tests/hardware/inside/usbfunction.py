"""The own side of a USB device, in a program: what the kernel's ready gadgets cannot be, FunctionFS can.

A device is its descriptors and an answer to each control request. Where the answer is `Refused`, the device
stalls the request (the host's program gets EPIPE); where it is `Silent`, it does not answer at all, and the
host gives up after its own time. Source: the kernel's Documentation/usb/functionfs.rst and
include/uapi/linux/usb/functionfs.h.
"""

import contextlib
import os
import select
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gadget

ENABLED, DISABLED, SETUP = 2, 3, 4
FULL_SPEED, ALL_REQUESTS = 1, 64


class Refused(Exception):
    """Stall this request."""


class Silent(Exception):
    """Leave this request without an answer until the event is set."""

    def __init__(self, until: threading.Event) -> None:
        self.until = until


class Request(NamedTuple):
    """A control request as the device's firmware gets it."""

    kind: int
    request: int
    value: int
    index: int
    length: int

    @property
    def inward(self) -> bool:
        """The host wants to read."""
        return bool(self.kind & 0x80)


def interface(kind: int, *endpoints: bytes, extra: bytes = b"") -> list[bytes]:
    """The descriptors of a device with one interface of a class."""
    return [
        struct.pack("<9B", 9, 4, 0, 0, len(endpoints), kind, 0, 0, 0),
        *([extra] if extra else []),
        *endpoints,
    ]


def endpoint(address: int, attributes: int, size: int, interval: int = 0) -> bytes:
    """``attributes``: 2 is bulk, 3 is interrupt; ``address``: with 0x80 towards the host."""
    return struct.pack("<BBBBHB", 7, 5, address, attributes, size, interval)


def prompt() -> None:
    """This thread is a piece of hardware: it does not wait until the computer's programs leave it a turn."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))


class Function:
    """A device in a program, not plugged in yet."""

    def __init__(
        self,
        name: str,
        descriptors: list[bytes],
        asked: Callable[[Request], bytes],
        given: Callable[[Request, bytes], None],
        **device: Any,
    ) -> None:
        """
        Args:
            asked: called for each request: gives what the host reads (nothing where it writes), or raises
                Refused or Silent.
            given: called with what the host wrote.
            device: as ``gadget.make`` takes it.
        """
        self.name, self._asked, self._given = name, asked, given
        self.on_plugged: Callable[[bool], None] = lambda plugged: None
        gadget.make(name, f"ffs.{name}", **device)
        # These boards are full speed devices or slower.
        (gadget.CONFIG / name / "max_speed").write_text("full-speed")
        self.folder = Path("/run/bench", name)
        self.folder.mkdir(parents=True)
        subprocess.run(["mount", "-t", "functionfs", name, str(self.folder)], check=True)
        self._ep0 = os.open(self.folder / "ep0", os.O_RDWR | os.O_NONBLOCK)
        body = struct.pack("<I", len(descriptors)) + b"".join(descriptors)
        os.write(self._ep0, struct.pack("<III", 3, 12 + len(body), FULL_SPEED | ALL_REQUESTS) + body)
        os.write(self._ep0, struct.pack("<IIII", 2, 16, 0, 0))
        threading.Thread(target=self._serve, daemon=True).start()

    def endpoint(self, number: int) -> int:
        """The file of an endpoint, in the order of the descriptors from 1."""
        return os.open(self.folder / f"ep{number}", os.O_RDWR)

    def _serve(self) -> None:
        prompt()
        # A read that waits holds a lock that unplugging needs (seen on 6.1), so it is never one that waits.
        poller = select.poll()
        poller.register(self._ep0, select.POLLIN)
        while True:
            poller.poll()
            try:
                event = os.read(self._ep0, 12)
            except OSError:
                time.sleep(0.001)
                continue  # the host gave up a request meanwhile: on with the next
            kind = event[8]
            if kind in (ENABLED, DISABLED):
                self.on_plugged(kind == ENABLED)
            elif kind == SETUP:
                with contextlib.suppress(OSError):  # given up by the host, or a stall, which reads as a fault
                    self._answer(Request(*struct.unpack("<BBHHH", event[:8])))

    def _answer(self, request: Request) -> None:
        try:
            answer = self._asked(request)
        except Refused:
            self._stall(request)
        except Silent as silent:
            silent.until.wait()
            self._stall(request)  # a host that still waits is not left hanging
        else:
            if request.inward:
                os.write(self._ep0, answer[: request.length])
            else:
                self._given(request, os.read(self._ep0, request.length))

    def _stall(self, request: Request) -> None:
        """The wrong direction is how FunctionFS is told to."""
        if request.inward:
            os.read(self._ep0, 1)
        else:
            os.write(self._ep0, b"\0")
