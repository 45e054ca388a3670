"""A scanner in HID POS mode: plug it in, let it read a code, pull it out.

Layout A is that of Honeywell and Access-IS, with the AIM identifier in each report; B that of Newland,
ID TECH and Saveo, without one. Source: the makers' manuals; HID POS Usage Tables 1.02.
"""

import os

import gadget

_HEAD = "058c 0902 a101 8502 0912 a102 1500 26ff00 7508 9501 0501 093b 8102 058c"  # report 2: the count
_TAIL = "058c 2501 7501 9501 09ff 8102 7507 8103 c0 c0"  # one bit: more reports follow
_DATA = "9538 09fe 820201"
_VENDORS = "06 66ff 0904 8102"
DESCRIPTORS = {
    "A": bytes.fromhex(f"{_HEAD} 9503 09fb 09fc 09fd 8102 {_DATA} 9502 {_VENDORS} {_TAIL}"),
    "B": bytes.fromhex(f"{_HEAD} {_DATA} 9504 8103 9501 {_VENDORS} {_TAIL}"),
}
IN_ONE = 56
"""Bytes of a code that one report has room for."""
_QR = 0x73

_layouts: dict[str, str] = {}


def make(
    name: str,
    layout: str = "A",
    vendor: int = 0x0C2E,
    product: int = 0x0907,
    maker: str = "Honeywell",
    label: str = "POS Scanner",
    serial: str = "",
) -> None:
    settings = {
        "protocol": b"0",
        "subclass": b"0",
        "report_length": b"64",
        "report_desc": DESCRIPTORS[layout],
    }
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
    _layouts[name] = layout


plug, unplug = gadget.plug, gadget.unplug


def reports(layout: str, code: bytes) -> list[bytes]:
    """The reports of a code, each 64 bytes."""
    parts = [code[at : at + IN_ONE] for at in range(0, len(code), IN_ONE)]
    more = [part is not parts[-1] for part in parts]
    if layout == "A":
        return [
            bytes([2, len(part)]) + b"]Q1" + part.ljust(IN_ONE, b"\0") + bytes([_QR, 0, on])
            for part, on in zip(parts, more, strict=True)
        ]
    return [
        bytes([2, len(part)]) + part.ljust(IN_ONE, b"\0") + bytes([0, 0, 0, 0, _QR, on])
        for part, on in zip(parts, more, strict=True)
    ]


def type(name: str, code: str, torn: int | None = None) -> None:
    """It read this. ``torn``: it is pulled out after so many reports."""
    port = os.open(gadget.node((gadget.CONFIG / name / f"functions/hid.{name}/dev").read_text()), os.O_RDWR)
    try:
        for report in reports(_layouts[name], code.encode())[:torn]:
            os.write(port, report)
    finally:
        os.close(port)
    if torn is not None:
        gadget.pull(name)
