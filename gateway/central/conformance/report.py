"""The points of a conformance run, and what became of each."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson

from gateway.sync.protocol import ProtocolError

OK, FAILED, NOT_TESTED = "ok", "FAILED", "not tested"
_SHOWN = 300
"""Characters of what came that a line of the report shows."""

T = TypeVar("T")


class Failed(Exception):
    """A point does not hold."""

    def __init__(self, expected: str, came: object) -> None:
        super().__init__(expected)
        self.expected = expected
        self.came = shown(came)


class Untested(Exception):
    """A point cannot be tested here; the message says what it would take."""


def shown(came: object) -> str:
    """What came, in one line of the report."""
    text = (
        came
        if isinstance(came, str)
        else orjson.dumps(came, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
    )
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def expect(holds: bool, expected: str, came: object) -> None:
    """Raises Failed where it does not hold."""
    if not holds:
        raise Failed(expected, came)


def need(value: T | None, what: str) -> T:
    """A value that an earlier point should have given. Raises Untested without it."""
    if value is None:
        raise Untested(f"needs {what}")
    return value


@dataclass(slots=True, frozen=True)
class Point:
    """One rule of the protocol, tested or not."""

    section: str
    """The heading in docs/protocol.md."""
    says: str
    outcome: str
    expected: str = ""
    came: str = ""

    def line(self) -> str:
        head = f"{self.outcome:<10}  {self.section.replace('`', '')}: {self.says}"
        if self.outcome == OK:
            return head
        if self.outcome == NOT_TESTED:
            return f"{head} | {self.came}"
        where = self.section.replace("`", "")
        return f"{head} | expected: {self.expected} | came: {self.came} | docs/protocol.md, {where}"

    def json(self) -> dict[str, Any]:
        known = {"point": self.says, "outcome": self.outcome, "section": self.section.replace("`", "")}
        if self.outcome == FAILED:
            known |= {"expected": self.expected, "came": self.came}
        elif self.outcome == NOT_TESTED:
            known["why"] = self.came
        return known


class Report:
    """Points in the order in which they were tested; ``tell`` hears of each at once."""

    def __init__(self, tell: Callable[[Point], None]) -> None:
        self.points: list[Point] = []
        self._tell = tell

    def add(self, point: Point) -> None:
        self.points.append(point)
        self._tell(point)

    def count(self, outcome: str) -> int:
        return sum(point.outcome == outcome for point in self.points)

    @contextmanager
    def point(self, section: str, says: str) -> Iterator[None]:
        """A block that tests one point: it holds unless the block raises."""
        try:
            yield
        except Untested as error:
            self.add(Point(section, says, NOT_TESTED, came=str(error)))
        except Failed as error:
            self.add(Point(section, says, FAILED, error.expected, error.came))
        except ProtocolError as error:
            self.add(Point(section, says, FAILED, "an answer as that section shows it", str(error)))
        except (OSError, http.client.HTTPException) as error:
            came = f"{type(error).__name__}: {error}"
            self.add(Point(section, says, FAILED, "an answer over HTTP", shown(came)))
        else:
            self.add(Point(section, says, OK))
