"""The LCUS relay board on its CH340: plug it in, hear what it was told, pull it out.

It listens at 9600 baud and takes four bytes, A0 channel op sum. Whatever arrives comes to the host as
``{"stream":"board","board":NAME,"command":"a00101a2","baud":9600,"at":µs}``: whole commands where the sum is
right, and every other byte for itself. Source: reference/hardware.md 4.2.
"""

import time

import ch340
import wire


class Board:
    def __init__(self, name: str, channels: int, feedback: bool) -> None:
        """``feedback``: the firmware that answers ops 2 and 3."""
        self.name, self.channels, self.feedback = name, channels, feedback
        self.answers = True
        self.state = 0
        self._rest = b""
        self.adapter = ch340.Adapter(name, self.received, self.gone)

    def gone(self) -> None:
        self.state, self._rest = 0, b""

    def _heard_well(self) -> bool:
        """A serial port makes out bits up to 3 % too fast or slow; a CH340 does 9615 baud."""
        return abs(self.adapter.speed - 9600) < 288

    def received(self, data: bytes) -> None:
        self._rest += data
        while self._rest:
            if self._rest[0] == 0xA0 and len(self._rest) < 4:
                return
            frame = self._rest[:4]
            right = self._heard_well() and frame[0] == 0xA0 and sum(frame[:3]) & 0xFF == frame[3]
            frame = frame if right else frame[:1]
            self._rest = self._rest[len(frame) :]
            now = time.monotonic_ns() // 1000
            said = {"command": frame.hex(), "baud": self.adapter.speed, "at": now}
            wire.say({"stream": "board", "board": self.name, **said})
            if right:
                self.told(*frame[1:3])

    def told(self, channel: int, op: int) -> None:
        if not 1 <= channel <= self.channels or op > (3 if self.feedback else 1):
            return
        bit = 1 << channel - 1
        self.state = self.state | bit if op & 1 else self.state & ~bit
        if op & 2 and self.answers:
            answer = bytes((0xA0, channel, op & 1))
            self.adapter.send(answer + bytes((sum(answer) & 0xFF,)))


_boards: dict[str, Board] = {}


def make(name: str, channels: int = 1, feedback: bool = False) -> None:
    _boards[name] = Board(name, channels, feedback)


plug, unplug = ch340.plug, ch340.unplug


def answers(name: str, answers: bool) -> None:
    """Whether the firmware that answers does so; it obeys all the same."""
    _boards[name].answers = answers


def state(name: str) -> int:
    """Which relays are on: bit 0 for the first."""
    return _boards[name].state
