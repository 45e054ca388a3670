"""Bytes of a serial scanner, or of stdin, to codes.

Framings as scanners offer them: a suffix (CR, LF, CRLF or TAB), STX ... ETX, or nothing but silence.
A code that may contain CR, LF, STX or ETX itself needs the last one.
"""

from __future__ import annotations

import re
from typing import Final

from gateway.config import Framing
from gateway.model import MAX_CODE_BYTES, Payload

MAX_PAYLOAD_BYTES: Final = 2 * MAX_CODE_BYTES
"""What a decoder holds at most. A payload over ``MAX_CODE_BYTES`` is still delivered up to here, because
it is judged (``malformed``) and recorded; beyond, it is garbage, and dropped up to the next boundary."""

STX: Final = b"\x02"
ETX: Final = b"\x03"

_SUFFIX = re.compile(rb"[\r\n\t]")
_FRAME_MARK = re.compile(rb"[\x02\x03]")
# AIM symbology identifier, ISO/IEC 15424: ], a letter for the symbology, a modifier.
_AIM = re.compile(rb"\][A-Za-z][0-9A-Za-z]")


def split_aim(data: bytes, strip: bool) -> Payload:
    """The payload of ``data``, with the AIM identifier reported where it begins with one.

    It is taken off only if ``strip``: a code of its own may begin with ``]``, so only the venue knows."""
    found = _AIM.match(data)
    if found is None:
        return Payload(data)
    return Payload(data[3:] if strip else data, found.group().decode("ascii"))


class LineDecoder:
    """Any split of the same bytes gives the same payloads; nothing raises; memory is bounded.

    ``dropped`` counts the scans thrown away: torn by silence or by a new STX, or longer than ``max_bytes``.
    """

    def __init__(self, framing: Framing, strip_aim: bool = False, max_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        self.dropped = 0
        self._framing = framing
        self._strip_aim = strip_aim
        self._max = max_bytes
        self._code = bytearray()
        self._inside = framing != "stx_etx"
        """Bytes belong to a code. False: before STX, or in the rest of one that was too long."""

    @property
    def pending(self) -> bool:
        """A code is half read, or the rest of a dropped one still expected: silence is worth a ``flush``."""
        return bool(self._code) or self._inside == (self._framing == "stx_etx")

    def feed(self, data: bytes) -> list[Payload]:
        """Takes bytes as they were read, in pieces of any size; gives the codes that ended in them."""
        if self._framing == "suffix":
            return self._feed_suffix(data)
        if self._framing == "stx_etx":
            return self._feed_frames(data)
        self._add(data)
        return []

    def flush(self) -> list[Payload]:
        """To be called after silence. It ends a code of framing ``idle``; of the others it tears one."""
        code = bytes(self._code)
        # In framing stx_etx an open frame is torn even where nothing has come since its STX.
        torn = self._inside if self._framing == "stx_etx" else bool(code)
        self._code.clear()
        self._inside = self._framing != "stx_etx"
        if self._framing == "idle":
            return [split_aim(code, self._strip_aim)] if code else []
        self.dropped += torn
        return []

    def _feed_suffix(self, data: bytes) -> list[Payload]:
        payloads = []
        *ended, rest = _SUFFIX.split(data)
        for part in ended:
            self._add(part)
            # Nothing before the suffix is the LF of a CRLF, or an empty line: no scan.
            if self._code:
                payloads.append(split_aim(bytes(self._code), self._strip_aim))
                self._code.clear()
            self._inside = True
        self._add(rest)
        return payloads

    def _feed_frames(self, data: bytes) -> list[Payload]:
        payloads = []
        start = 0
        for mark in _FRAME_MARK.finditer(data):
            self._add(data[start : mark.start()])
            start = mark.end()
            if mark.group() == STX:
                self.dropped += self._inside
            elif self._inside:
                # An empty frame is a payload all the same: somebody framed it. It is judged malformed.
                payloads.append(split_aim(bytes(self._code), self._strip_aim))
            self._code.clear()
            self._inside = mark.group() == STX
        self._add(data[start:])
        return payloads

    def _add(self, data: bytes) -> None:
        if not self._inside:
            return
        if len(self._code) + len(data) > self._max:
            self.dropped += 1
            self._code.clear()
            self._inside = False
        else:
            self._code += data
