"""A CH340 USB serial adapter (1a86:7523): the kernel's own ch341 driver makes /dev/ttyUSB0 of it.

No serial number, as in the real one. Its registers keep what is written to them, and the speed is read from
them as the chip does; nothing is known of time on the wire. Source: the driver, drivers/usb/serial/ch341.c.
"""

import os
import threading
from collections.abc import Callable

import gadget
import usbfunction

VERSION, READ, WRITE = 0x5F, 0x95, 0x9A
DIVISOR = (0x12, 0x13)
CLOCK = 48_000_000


class Adapter:
    def __init__(self, name: str, received: Callable[[bytes], None], gone: Callable[[], None]) -> None:
        """``received`` gets what leaves on the wire; ``gone`` is told when the power goes."""
        self.registers: dict[int, int] = {}
        self._received, self._gone = received, gone
        out, into = usbfunction.endpoint(0x02, 2, 32), usbfunction.endpoint(0x82, 2, 32)
        self.function = usbfunction.Function(
            name,
            usbfunction.interface(0xFF, into, out, usbfunction.endpoint(0x81, 3, 8, 1)),
            self.asked,
            self.given,
            vendor=0x1A86,
            product=0x7523,
            maker="",
            label="USB Serial",
        )
        self.function.on_plugged = self.plugged
        self._into = self.function.endpoint(1)
        threading.Thread(target=self._hear, args=(self.function.endpoint(2),), daemon=True).start()

    @property
    def speed(self) -> int:
        """Bits a second, as the driver set them; 0 before it did."""
        low, high = (self.registers.get(number, 0) for number in DIVISOR)
        if not high:
            return 0
        prescaler, fact = low & 3, low >> 2 & 1
        return round(CLOCK / ((1 << 12 - 3 * prescaler - fact) * (0x100 - high)))

    def send(self, data: bytes) -> None:
        """These bytes come in from the wire."""
        os.write(self._into, data)

    def plugged(self, plugged: bool) -> None:
        if not plugged:
            self.registers.clear()
            self._gone()

    def asked(self, request: usbfunction.Request) -> bytes:
        if request.request == VERSION:
            return b"\x31\x00"
        if request.request == READ:
            return bytes(self.registers.get(n, 0xFF) for n in (request.value & 0xFF, request.value >> 8))
        if request.inward:
            raise usbfunction.Refused
        return b""

    def given(self, request: usbfunction.Request, data: bytes) -> None:
        if request.request == WRITE:
            for shift in (0, 8):
                self.registers[request.value >> shift & 0xFF] = request.index >> shift & 0xFF

    def _hear(self, wire: int) -> None:
        usbfunction.prompt()
        while True:
            try:
                data = os.read(wire, 512)
            except OSError:
                continue  # unplugged; the next read waits until it is in a socket again
            self._received(data)


plug, unplug = gadget.plug, gadget.unplug
