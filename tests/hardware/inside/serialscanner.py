"""A scanner with a USB serial port (CDC-ACM): plug it in, let it read a code, pull it out."""

import os
import tty
from pathlib import Path

import gadget


def make(
    name: str,
    vendor: int = 0x1EAB,
    product: int = 0x0C06,
    maker: str = "Newland",
    label: str = "Serial Scanner",
    serial: str = "SN03",
) -> None:
    gadget.make(name, f"acm.{name}", vendor=vendor, product=product, maker=maker, label=label, serial=serial)


plug, unplug = gadget.plug, gadget.unplug


def type(name: str, code: str, end: str = "\r", torn: int | None = None) -> None:
    """It read this. ``torn``: it is pulled out after so many characters."""
    if torn is None:
        send(name, (code + end).encode().hex())
    else:
        send(name, code[:torn].encode().hex())
        gadget.pull(name)


def send(name: str, data: str) -> None:
    """These bytes (hexadecimal) leave it."""
    number = (Path(gadget.CONFIG, name, "functions", f"acm.{name}") / "port_num").read_text().strip()
    port = os.open(f"/dev/ttyGS{number}", os.O_RDWR | os.O_NOCTTY)
    try:
        tty.setraw(port)
        rest = bytes.fromhex(data)
        while rest:
            rest = rest[os.write(port, rest) :]
    finally:
        os.close(port)
