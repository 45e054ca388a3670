"""How long to wait before the next try, and what to send after a refusal. Pure: no clock, and randomness is
passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import NamedTuple

from gateway.sync.protocol import MAX_EVENTS

LONGEST_RETRY_AFTER = 3600.0
"""Seconds. Whatever a server asks for, an hour later it is asked again: its clock may be wrong."""

Random = Callable[[], float]
"""A number from 0 to 1."""


class Backoff:
    """Seconds to wait after one failure and the next: anything between ``least`` and a ceiling that doubles
    from ``first`` to ``most``. The whole range is drawn from, so that a thousand gateways that lost their
    central at once do not come back at once."""

    def __init__(self, random: Random, *, first: float, most: float, least: float = 0.0) -> None:
        self._random = random
        self._first, self._most, self._least = first, most, least
        self._ceiling = first

    def next(self) -> float:
        ceiling, self._ceiling = self._ceiling, min(self._ceiling * 2, self._most)
        return self._least + self._random() * (ceiling - self._least)

    def reset(self) -> None:
        self._ceiling = self._first


def retry_after(text: str | None, now: int) -> float | None:
    """The header ``Retry-After`` (RFC 9110 10.2.3: seconds, or a date) as seconds from 0 to an hour; ``now``
    in microseconds. None where it is missing or cannot be read."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:10]), LONGEST_RETRY_AFTER)
    try:
        moment = parsedate_to_datetime(text)
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        return min(max(0.0, moment.timestamp() - now / 1e6), LONGEST_RETRY_AFTER)
    except (ValueError, TypeError, OverflowError):
        return None


# --- what to send -------------------------------------------------------------------------------------


class Event(NamedTuple):
    """Which event."""

    epoch: int
    seq: int


class Ask(NamedTuple):
    """What to send next."""

    most: int
    """Events."""
    since: int | None = None
    """Those after this number, instead of after what is acknowledged."""
    calm: bool = False
    """Wait as after any failure; otherwise the next try may follow soon."""


class _State(Enum):
    SENDING = "sending"
    """Batches from the mark on, of ``_size``."""
    ALONE = "alone"
    """One event, which was refused alone, once more."""
    LOOKING = "looking"
    """A later event alone: does the central take anything?"""
    PROVING = "proving"
    """It took that one: the first one again."""


_STRIKES = 2
"""So often a batch is refused with 5xx before its events are to blame."""
_PROOFS = 3
"""So often the suspect must be refused just after another event was taken. Once would do against a central
that was down and is up; against one that fails at random, each further proof divides the error."""
_GROWTH = 4
_SMALL = 30
_AGAIN = 2
"""So many batches of a size go through before a larger one is tried: after a halving, both halves."""


class Uploads:
    """Finds the event that the central cannot take, and lets the rest go by.

    It is told what became of what was sent and says what to send next. A batch that is refused (5xx twice,
    413 once) is halved down to one event. That one is to blame only if the central takes others at the same
    time: a later event is sent alone, then the suspect again, in turns. If the central takes nothing else, it
    is the central that is broken, and nothing is set aside however long that lasts.
    """

    def __init__(self, most: int = MAX_EVENTS) -> None:
        self._most = most
        self._size = most
        self._halving = False
        """The last batch was a half of one that was refused: one refusal is enough."""
        self._strikes = 0
        self._through = 0
        self._state = _State.SENDING
        self._suspect: Event | None = None
        self._proofs = 0
        self._step = 0
        """Later events are looked for 1, 2, 4, ... behind the suspect, to get past a row of bad ones."""
        self._round = 0
        """And that much further where this came to the end of the ledger: so each has its turn."""
        self._witness: Event | None = None
        """The event that was taken last while one was looked for: it will be taken again."""
        self._calm = False

    def ask(self) -> Ask:
        """What to send. Same answer until something is told."""
        if self._state is _State.SENDING:
            return Ask(self._size, calm=self._calm)
        suspect = self._suspect
        assert suspect is not None
        if self._state is not _State.LOOKING:
            return Ask(1, calm=self._calm)
        witness = self._witness
        if witness is not None and witness.epoch == suspect.epoch and witness.seq > suspect.seq:
            return Ask(1, since=witness.seq - 1, calm=self._calm)
        return Ask(1, since=suspect.seq + self._round + (1 << self._step) - 1, calm=self._calm)

    def taken(self, sent: Sequence[Event]) -> None:
        """The central took them, or made a step: has them now, or refused some by name."""
        self._strikes, self._calm = 0, False
        if self._state is _State.LOOKING:
            self._witness = sent[-1]
            self._state = _State.PROVING
            return
        if self._state is not _State.SENDING:  # the suspect was taken: the central was to blame
            self._let_go()
        self._through += 1
        if self._size < self._most and self._through >= _AGAIN:
            self._size = min(self._size * _GROWTH, self._most)
            self._through = 0
        if self._size == self._most:
            self._halving = False

    def refused(self, sent: Sequence[Event], *, too_large: bool = False) -> Event | None:
        """The central refused the whole of it (5xx, or 413: ``too_large``). Gives the event to set aside."""
        self._through = 0
        if self._state is _State.LOOKING:
            self._witness = None
            self._step += 1
            self._calm = True
            return None
        if self._state is _State.PROVING and sent[0] == self._suspect:
            self._proofs += 1
            self._step = 0
            if self._proofs < _PROOFS:
                self._state = _State.LOOKING
                return None
            self._let_go()
            self._size, self._halving = 1, True
            return sent[0]
        if len(sent) > 1:
            self._halve(len(sent), too_large)
        else:
            self._accuse(sent[0], too_large)
        return None

    def _halve(self, count: int, too_large: bool) -> None:
        self._let_go()
        self._strikes += 1
        if self._strikes < _STRIKES and not self._halving and not too_large:
            self._calm = True
            return
        self._size, self._halving = count // 2, True
        self._strikes, self._calm = 0, False

    def _accuse(self, event: Event, too_large: bool) -> None:
        if event != self._suspect:
            self._let_go()
            self._suspect = event
            self._strikes = 0
        self._size, self._halving = 1, True
        self._strikes += 1
        if self._strikes < _STRIKES and not too_large:
            self._state, self._calm = _State.ALONE, True
            return
        self._state = _State.LOOKING
        self._strikes, self._calm = 0, False

    def no_answer(self, *, slow: bool = False) -> None:
        """Nothing came, or 429 or 503: that is never an event's fault, and proves nothing either.

        ``slow``: it was waited for in vain; on a slow line smaller batches may go through."""
        self._calm = True
        if self._state is _State.PROVING:
            self._state = _State.LOOKING
        if slow and self._size > _SMALL:
            self._size, self._through = max(self._size // 2, _SMALL), 0

    def nothing(self) -> None:
        """The gate has nothing to send at that place."""
        self._calm = True
        if self._state is _State.LOOKING:
            # No later event, so no witness: the suspect again, until another comes or it is taken.
            self._round = self._round + 1 if self._step else 0
            self._witness, self._step = None, 0
            self._state = _State.ALONE
        elif self._state is not _State.SENDING:
            self._let_go()

    def _let_go(self) -> None:
        self._state, self._suspect, self._calm = _State.SENDING, None, False
        self._proofs = self._step = self._round = 0
