"""A ledger in a folder, with what it tells, for the tests."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from gateway.cache.ledger import Ledger
from gateway.model import AccessEvent, EventKind, Movement, Passage, Verdict

DAY = 86_400_000_000


class Rig:
    """Opens a ledger on the running loop, and keeps what its callbacks said."""

    def __init__(
        self,
        folder: Path,
        *,
        deadline: int = 30_000_000,
        memory: int = 10_000,
        on_failure: Literal["admit", "deny"] = "admit",
        recent_from: int = 0,
        gateway: str = "north",
    ) -> None:
        self.folder = folder
        self.late = 0
        self.commits: list[int] = []
        self.faults: list[str | None] = []
        self.answers: dict[int, list[bool]] = {}
        self.ledger = Ledger.open(
            folder,
            gateway,
            loop=asyncio.get_running_loop(),
            commit_deadline=deadline,
            memory_events=memory,
            on_failure=on_failure,
            on_late=self._late,
            on_commit=lambda seconds, events: self.commits.append(events),
            on_fault=self.faults.append,
            recent_from=recent_from,
        )

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.ledger.close()

    def _late(self, events: int) -> None:
        self.late += events

    def record(self, event: AccessEvent, number: int) -> None:
        """Records with a ``then`` that keeps its answers under the number."""
        self.answers.setdefault(number, [])
        self.ledger.record(event, self.answers[number].append)

    def grants(self, first: int, last: int, passage: Passage = Passage.ASSUMED) -> list[AccessEvent]:
        """Records grants of these numbers, each by a card of its own."""
        events = [grant(number, passage=passage) for number in range(first, last)]
        for number, event in enumerate(events, first):
            self.record(event, number)
        return events

    async def on_disk(self) -> None:
        """Until all that was recorded is committed."""
        await self.until(lambda: self.ledger.pending == 0)

    async def until(self, condition: Callable[[], object]) -> None:
        """Polls; the test's own time-out is the bound."""
        while not condition():  # noqa: ASYNC110  what is waited for happens in another thread
            await asyncio.sleep(0.005)


def grant(
    number: int, *, person: str | None = None, at: int | None = None, passage: Passage = Passage.ASSUMED
) -> AccessEvent:
    """A grant with its movement; card, holder and entitlement named after the number."""
    when = number if at is None else at
    who = person or f"H{number}"
    movement = Movement(
        when, "outside", "hall", who, "north-in", who, f"C{number}", f"E-{who}", passage=passage
    )
    return AccessEvent(
        EventKind.SCAN,
        when,
        point="north-in",
        lane="north",
        reader="scanner",
        verdict=Verdict.GRANTED,
        flags=("grace", "attention"),
        credential=f"C{number}",
        holder=who,
        entitlement=f"E-{who}",
        product="family",
        left=3,
        from_="outside",
        to="hall",
        passage=passage,
        movement=movement,
    )


def outcome(granted: AccessEvent, passage: Passage, at: int | None = None) -> AccessEvent:
    """The passage event that settles a grant; changes the movement as the gate does."""
    assert granted.movement is not None
    granted.movement.passage = passage
    return AccessEvent(
        EventKind.PASSAGE,
        granted.at + 1 if at is None else at,
        point=granted.point,
        lane=granted.lane,
        passage=passage,
        of=granted,
        movement=granted.movement,
    )


@contextlib.contextmanager
def file(folder: Path) -> Iterator[sqlite3.Connection]:
    """The ledger's file by another connection, as a technician's program has it."""
    with contextlib.closing(sqlite3.connect(folder / "ledger.db", isolation_level=None)) as conn:
        yield conn


def rows(folder: Path, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
    with file(folder) as conn:
        return conn.execute(sql, arguments).fetchall()


def names(folder: Path) -> list[str]:
    """The files in a folder."""
    return sorted(path.name for path in folder.iterdir())
