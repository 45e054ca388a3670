"""A scanner that plays keyboard: plug it in, let it type a code in the layout that it is set to, pull it out.

Its reports: Device Class Definition for HID 1.11, appendix B.1.
"""

import os
import time

import gadget
from strokes import ENTER, strokes

_DESCRIPTOR = bytes.fromhex(
    "05010906a101 050719e029e71500250175019508 8102 95017508 8103"  # eight modifiers, a reserved byte
    "95057501 050819012905 9102 95017503 9103"  # the lamps
    "95067508 15002565 050719002965 8100 c0"  # six keys
)


def make(
    name: str,
    vendor: int = 0x1EAB,
    product: int = 0x0003,
    maker: str = "Newland",
    label: str = "Keyboard Scanner",
    serial: str = "",
) -> None:
    settings = {"protocol": b"1", "subclass": b"1", "report_length": b"8", "report_desc": _DESCRIPTOR}
    gadget.make(
        name,
        f"hid.{name}",
        vendor=vendor,
        product=product,
        maker=maker,
        label=label,
        serial=serial,
        settings=settings,
    )


plug, unplug = gadget.plug, gadget.unplug


def type(name: str, code: str, layout: str = "us", torn: int | None = None) -> dict[str, float]:
    """It read this: a report each millisecond, or as fast as a busy computer takes them; Enter at the end.
    ``torn``: it is pulled out after so many characters. Gives how many reports went, and in how many ms."""
    keys = [stroke for character in code[:torn] for stroke in strokes(layout)[character]]
    if torn is None:
        keys.append((0, ENTER))
    reports = [r for held, key in keys for r in (bytes([held, 0, key, 0, 0, 0, 0, 0]), bytes(8))]
    if torn is not None:
        reports.pop()  # pulled out with the last key down
    port = os.open(gadget.node((gadget.CONFIG / name / f"functions/hid.{name}/dev").read_text()), os.O_RDWR)
    try:
        begun = time.monotonic_ns()
        for number, report in enumerate(reports):
            while (left := begun + number * 1_000_000 - time.monotonic_ns()) > 0:
                time.sleep(left / 1e9)
            os.write(port, report)
        took = (time.monotonic_ns() - begun) / 1e6
    finally:
        os.close(port)
    if torn is not None:
        gadget.pull(name)
    return {"reports": len(reports), "ms": round(took, 1)}
