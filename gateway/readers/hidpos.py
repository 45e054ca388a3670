"""Reports of a USB HID POS scanner (usage page 0x8C) to codes.

Usages: HID Usage Tables 1.5 and HID POS Usage Tables 1.02; descriptor items: Device Class Definition for
HID 1.11, 6.2.2. Makers order and size the same fields differently, so the places are read from the report
descriptor. Three layouts known from manuals stand in where a descriptor does not say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from gateway.model import Payload
from gateway.readers.line import MAX_PAYLOAD_BYTES

_BYTE_COUNT: Final = 0x0001_003B
_AIM: Final = (0x008C_00FB, 0x008C_00FC, 0x008C_00FD)
_DATA: Final = 0x008C_00FE
_CONTINUED: Final = 0x008C_00FF

MAX_REPORT_BYTES: Final = 4096
"""What the kernel's usbhid takes is 16 KiB; scanners have 64. More is a broken descriptor."""
_MAX_RANGE: Final = 256
_MAX_STACK: Final = 16

_STATUS_AIM: Final = "]Z6"
_TEXT_AIM: Final = "]X0"


@dataclass(slots=True, frozen=True)
class Layout:
    """Where a scan stands in an input report. Offsets count from the report's first byte as hidraw delivers
    it, the report id included where there is one."""

    report_id: int
    """0: the device numbers no reports, and none begins with an id."""
    size: int
    count: int | None
    """Offset of the number of data bytes in this report. None: the data is what precedes trailing zeros."""
    aim: tuple[int, int, int] | None
    data: int
    capacity: int
    continued: tuple[int, int] | None
    """Offset and mask of the bit that says that more reports follow."""
    sizes: dict[int, int] = field(default_factory=dict)
    """Length of every input report of the device by its id, to cut a stream into reports."""


def _known(aim: int | None, data: int) -> Layout:
    places = None if aim is None else (aim, aim + 1, aim + 2)
    return Layout(
        report_id=2, size=64, count=1, aim=places, data=data, capacity=56, continued=(63, 1), sizes={2: 64}
    )


LAYOUT_A: Final = _known(aim=2, data=5)
"""Honeywell, Hand Held Products, Access-IS."""
LAYOUT_B: Final = _known(aim=None, data=2)
"""Newland, ID TECH, Saveo: no AIM identifier."""
LAYOUT_C: Final = _known(aim=3, data=6)
"""One more byte before the AIM identifier."""


class _Field(NamedTuple):
    report_id: int
    bit: int
    bits: int
    usage: int
    times: int
    """How many elements in a row have this usage."""


def parse_descriptor(descriptor: bytes) -> Layout | None:
    """Where the scanned data stands, from the device's report descriptor; None where it does not say.

    Takes any bytes; never raises."""
    fields, ends = _input_fields(descriptor)
    numbered = any(ends)  # report ids are 1 and up
    data = next((f for f in fields if f.usage == _DATA and f.bits == 8 and f.bit % 8 == 0), None)
    if data is None:
        return None
    first = 1 if numbered else 0
    sizes = {report_id: first + (end + 7) // 8 for report_id, end in ends.items()}
    if max(sizes.values()) > MAX_REPORT_BYTES:
        return None
    capacity = 0
    for f in fields:  # one field of many bytes, or many of one
        if f.report_id == data.report_id and f.usage == _DATA and f.bit == data.bit + 8 * capacity:
            capacity += f.times
    found = {f.usage: f for f in reversed(fields) if f.report_id == data.report_id}

    def offset(usage: int) -> int | None:
        place = found.get(usage)
        return first + place.bit // 8 if place and place.bits == 8 and place.bit % 8 == 0 else None

    one, two, three = (offset(usage) for usage in _AIM)
    continued = found.get(_CONTINUED)
    return Layout(
        report_id=data.report_id,
        size=sizes[data.report_id],
        count=offset(_BYTE_COUNT),
        aim=None if one is None or two is None or three is None else (one, two, three),
        data=first + data.bit // 8,
        capacity=capacity,
        continued=(first + continued.bit // 8, 1 << continued.bit % 8) if continued else None,
        sizes=sizes,
    )


def _input_fields(descriptor: bytes) -> tuple[list[_Field], dict[int, int]]:
    """Every input field that has a usage, in order, and the length in bits of each input report."""
    fields: list[_Field] = []
    ends: dict[int, int] = {}
    stack: list[tuple[int, int, int, int]] = []
    page = bits = count = report_id = 0
    usages: list[int] = []
    low = 0
    at = 0
    while at < len(descriptor):
        prefix = descriptor[at]
        if prefix == 0xFE:  # long item: length, tag, data; none is defined
            at += 3 + (descriptor[at + 1] if at + 1 < len(descriptor) else 0)
            continue
        size = (0, 1, 2, 4)[prefix & 3]
        value = int.from_bytes(descriptor[at + 1 : at + 1 + size], "little")
        at += 1 + size
        tag = prefix & 0xFC
        # A usage of four bytes brings its own page.
        usage = value if size == 4 else page << 16 | value
        if tag == 0x04:
            page = value & 0xFFFF
        elif tag == 0x74:
            bits = value
        elif tag == 0x94:
            count = value
        elif tag == 0x84:
            report_id = value & 0xFF
        elif tag == 0xA4 and len(stack) < _MAX_STACK:
            stack.append((page, bits, count, report_id))
        elif tag == 0xB4 and stack:
            page, bits, count, report_id = stack.pop()
        elif tag == 0x08:
            usages.append(usage)
        elif tag == 0x18:
            low = usage
        elif tag == 0x28:
            usages += range(low, min(usage, low + _MAX_RANGE) + 1)
        elif tag == 0x80:
            start = ends.get(report_id, 0)
            ends[report_id] = start + bits * count
            # The last usage stands for all elements that are left.
            for index, name in enumerate(usages[:count]):
                times = count - index if index == len(usages) - 1 else 1
                fields.append(_Field(report_id, start + index * bits, bits, name, times))
        if tag & 0x0C == 0:  # a main item ends the local ones
            usages = []
            low = 0
    return fields, ends


class HidPosDecoder:
    """Reports to payloads; nothing raises; memory is bounded.

    ``dropped`` counts the scans thrown away: torn or too long. ``ignored`` counts reports that are no scans:
    wrong ids, impossible lengths, and answers to commands.

    A scanner answers a command through the same reports: text with ``]X0``, then its status with ``]Z6``
    (seen on a Honeywell 1602g). ``]X0`` alone is also an honest code of a rare symbology, so such a code is
    held back until the next report, or ``flush``, shows that no ``]Z6`` follows.
    """

    def __init__(self, layout: Layout | None, max_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        self.dropped = 0
        self.ignored = 0
        self._layout = layout
        self._max = max_bytes
        self._stream = b""
        self._code = bytearray()
        self._of: Layout | None = None
        """The layout of the code that is being joined; None between codes."""
        self._aim: str | None = None
        self._too_long = False
        self._held: Payload | None = None

    @property
    def report_bytes(self) -> int:
        """Length of the longest report, for the owner's read."""
        return max(self._layout.sizes.values()) if self._layout else LAYOUT_A.size

    @property
    def pending(self) -> bool:
        """Something waits for another report: silence is worth a ``flush``."""
        return bool(self._stream or self._of or self._held)

    def feed(self, data: bytes) -> list[Payload]:
        """Takes a stream of whole reports in pieces of any size; gives the codes that ended in it."""
        self._stream += data
        payloads: list[Payload] = []
        while self._stream:
            size = self._size(self._stream[0])
            if len(self._stream) < size:
                break
            payloads += self.report(self._stream[:size])
            self._stream = self._stream[size:]
        return payloads

    def report(self, report: bytes) -> list[Payload]:
        """Takes one report as one read of hidraw gives it; gives the code that ended with it.

        A device may leave trailing zeros out of a report."""
        layout = self._of or self._layout or _guess(report)
        if not report or (layout.report_id and report[0] != layout.report_id):
            self.ignored += 1
            return []
        report = report.ljust(layout.size, b"\0")
        aim = None
        if layout.aim is not None:
            letters = bytes(report[place] for place in layout.aim)
            aim = letters.decode("ascii", "replace") if letters[0] == 0x5D else None
        if aim == _STATUS_AIM:
            self.ignored += 1
            self._held = None
            if self._aim == _TEXT_AIM:
                self._reset()
            return []
        payloads = self._take_held()
        data = _data(layout, report)
        if data is None:
            self.ignored += 1
            self._tear()
            return payloads
        if self._of and aim != self._aim:
            # Each report of a code repeats its AIM identifier: the end of the one before was lost.
            self._tear()
        self._of = layout
        self._aim = aim
        if len(self._code) + len(data) > self._max:
            self._too_long = True
            self._code.clear()
        if not self._too_long:
            self._code += data
        if layout.continued is None or not report[layout.continued[0]] & layout.continued[1]:
            payloads += self._end()
        return payloads

    def flush(self) -> list[Payload]:
        """To be called after silence: gives the code that was held back, throws away a torn one."""
        payloads = self._take_held()
        if self._stream and not self._of:
            self.dropped += 1
        self._stream = b""
        self._tear()
        return payloads

    def _size(self, report_id: int) -> int:
        if self._layout is None:
            return LAYOUT_A.size
        if self._layout.report_id == 0:
            return self._layout.size
        return self._layout.sizes.get(report_id, self._layout.size)

    def _take_held(self) -> list[Payload]:
        held, self._held = self._held, None
        return [] if held is None else [held]

    def _reset(self) -> None:
        self._code.clear()
        self._of = None
        self._aim = None
        self._too_long = False

    def _tear(self) -> None:
        self.dropped += self._of is not None
        self._reset()

    def _end(self) -> list[Payload]:
        # A suffix that is set up in the scanner is the last of the data.
        code = Payload(bytes(self._code).rstrip(b"\r\n"), self._aim)
        self.dropped += self._too_long
        self._reset()
        if not code.data:
            return []
        if code.aim == _TEXT_AIM:
            self._held = code
            return []
        return [code]


def _data(layout: Layout, report: bytes) -> bytes | None:
    """The data bytes of a report of at least ``layout.size`` bytes; None where its count is impossible."""
    whole = report[layout.data : layout.data + layout.capacity]
    if layout.count is None:
        return whole.rstrip(b"\0")
    count = report[layout.count]
    return whole[:count] if count <= layout.capacity else None


def _guess(report: bytes) -> Layout:
    """Which of the known layouts a report is of: by where its AIM identifier stands."""
    if _is_aim(report[2:5]):
        return LAYOUT_A
    if _is_aim(report[3:6]):
        return LAYOUT_C
    return LAYOUT_B


def _is_aim(letters: bytes) -> bool:
    return len(letters) == 3 and letters[0] == 0x5D and letters[1:].isalnum() and letters[1:2].isalpha()
