"""The nouns of the gateway: values without behaviour, shared by every other module.

Units, everywhere: an *instant* is an ``int`` of microseconds since 1970-01-01T00:00Z; a *duration*
is an ``int`` of microseconds; a venue day is the proleptic ordinal of its date (``date.toordinal``).

A *bound* (``valid_from``, ``until`` ...) may be a date, which is a venue day, or an instant. Both are
held in one ``int``: ``ordinal * 2`` for a date and ``instant * 2 + 1`` for an instant, so that the
common case is one comparison and a record stays a flat row. ``None`` means there is no bound.

Classes on the scan's way are slotted and not frozen: freezing costs 2.5 of 8 microseconds a scan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import NamedTuple

OUTSIDE = "outside"
SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE

MAX_CODE_BYTES = 512

Text = Mapping[str, str] | str
"""A text in several languages (BCP 47 tag to text), or one text for every language."""


class Verdict(StrEnum):
    """The answer to a scan: ``granted``, or one named denial (DESIGN.md 4.2)."""

    GRANTED = "granted"
    MALFORMED = "malformed"
    UNKNOWN_CREDENTIAL = "unknown_credential"
    REVOKED = "revoked"
    SNAPSHOT_STALE = "snapshot_stale"
    SUSPENDED = "suspended"
    NOT_YET_VALID = "not_yet_valid"
    EXPIRED = "expired"
    NO_RIGHT = "no_right"
    NOT_AT_THIS_TIME = "not_at_this_time"
    LANE_CLOSED = "lane_closed"
    TOO_SOON = "too_soon"
    LIMIT_REACHED = "limit_reached"
    PASSBACK = "passback"
    AREA_FULL = "area_full"


class Passage(StrEnum):
    """What became of a grant. ``forced`` is a passage that no grant explains."""

    PENDING = "pending"
    TAKEN = "taken"
    ASSUMED = "assumed"
    NOT_TAKEN = "not_taken"
    FORCED = "forced"


class LaneMode(StrEnum):
    NORMAL = "normal"
    CLOSED = "closed"
    FREE = "free"


class CredentialState(IntEnum):
    ACTIVE = 0
    LOST = 1
    REVOKED = 2
    REPLACED = 3


class EntitlementState(IntEnum):
    ACTIVE = 0
    SUSPENDED = 1
    CANCELLED = 2


class AntiPassback(StrEnum):
    OFF = "off"
    SOFT = "soft"
    HARD = "hard"
    TIMED = "timed"


class Bypass(StrEnum):
    PASSBACK = "passback"
    CAPACITY = "capacity"
    CLOSED = "closed"


class Per(StrEnum):
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"
    EVENT = "event"
    TERM = "term"


# --- records of the central (DESIGN.md 4.1) ---------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Venue:
    timezone: str = "UTC"
    day_starts: int = 0
    """Minutes after local midnight at which the venue day begins."""
    language: str = "en"


@dataclass(slots=True, frozen=True)
class Area:
    id: str
    name: Text = ""
    capacity: int | None = None
    within: str | None = None
    presence_hours: float | None = None


@dataclass(slots=True, frozen=True)
class Event:
    """Something that takes place (kind ``event``), not to be confused with an access event."""

    id: str
    tag: str
    areas: tuple[str, ...] | None = None
    """None: everywhere."""
    from_: int | None = None
    until: int | None = None
    exclusive: bool = False


@dataclass(slots=True, frozen=True)
class Limit:
    """One item of ``limits`` or ``guest_limits``: exactly one of ``max`` and ``minutes`` is set."""

    per: Per
    max: int | None = None
    minutes: int | None = None
    count_days: bool = False


@dataclass(slots=True, frozen=True)
class Rule:
    areas: tuple[str, ...] | None = None
    points: tuple[str, ...] | None = None
    days: frozenset[int] | None = None
    """Weekdays, Monday is 0."""
    except_: frozenset[int] = frozenset()
    """Venue days."""
    hours: tuple[tuple[int, int], ...] | None = None
    """Spans of minutes after midnight, (start, end); end <= start crosses midnight, 1440 is 24:00."""
    from_: int | None = None
    until: int | None = None
    during: str | None = None
    early_minutes: int = 0
    again_after_minutes: int | None = None
    limits: tuple[Limit, ...] = ()
    guests: int | None = None
    guest_limits: tuple[Limit, ...] = ()
    bypass: frozenset[Bypass] = frozenset()


@dataclass(slots=True, frozen=True)
class Product:
    id: str
    category: str = "membership"
    name: Text = ""
    club: str | None = None
    tier: str | None = None
    benefits: tuple[Text, ...] = ()
    grace_days: int = 0
    attention: bool = False
    rules: tuple[Rule, ...] = ()


@dataclass(slots=True)
class Holder:
    id: str
    name: str | None = None
    language: str | None = None
    notice: Text | None = None
    blocked: bool = False


@dataclass(slots=True)
class Entitlement:
    id: str
    product: str | None
    holder: str | None = None
    valid_from: int | None = None
    valid_until: int | None = None
    state: int = EntitlementState.ACTIVE
    guests: int | None = None
    entries: int | None = None
    blocked: bool = False
    """Its holder is blocked. Filled in by the snapshot at the look-up; not part of the record."""


@dataclass(slots=True)
class Credential:
    id: str
    state: int = CredentialState.ACTIVE
    entitlements: tuple[Entitlement, ...] = ()
    """Those that exist, in the order listed; filled in by the snapshot at the look-up."""


@dataclass(slots=True)
class Movement:
    """One person (or one counted head) on the way from one area to another: what presence, limits and
    occupancy are reckoned from. Made by a grant here, or read from a ``usage`` record."""

    at: int
    """When the code was scanned."""
    from_: str
    to: str
    person: str | None
    """Whom presence follows: the holder's id, or ``card:`` and the credential's id. None: a head."""
    point: str | None = None
    holder: str | None = None
    credential: str | None = None
    entitlement: str | None = None
    guest: int = 0
    """0: the person themselves; n: their n-th guest with one entry."""
    entries: int = 1
    """How many entries this stands for (summed usage from before there were gateways)."""
    passage: Passage = Passage.TAKEN
    closed: bool = False
    """The lane was closed at the grant (a rule with the bypass ``closed`` let this person in)."""
    seq: int | None = None
    """The ledger's number of the event that made it; None until written, and for usage."""
    source: str | None = None
    """For usage: ``gateway/epoch/seq`` or ``id/...``, which identifies it for ever."""


NO_MOVEMENTS: tuple[Movement, ...] = ()


# --- configuration of the points and lanes, as far as judging needs it ------------------------------


@dataclass(slots=True, frozen=True)
class Point:
    """An access point (DESIGN.md, configuration table ``[[point]]``). Durations in microseconds."""

    name: str
    lane: str
    from_: str
    to: str
    anti_passback: AntiPassback = AntiPassback.OFF
    anti_passback_time: int = 10 * MINUTE
    guest_window: int = 30 * SECOND
    unknown_at_exit_open: bool = True


# --- what happens on a scan -------------------------------------------------------------------------


@dataclass(slots=True)
class Scan:
    """One payload from one reader at one time."""

    reader: str
    payload: bytes
    at: int
    """Wall clock when the last byte was read."""
    monotonic: int = 0
    """Monotonic clock at the same moment, microseconds."""
    aim: str | None = None
    """The AIM symbology identifier that the scanner put in front, such as ``]Q1``, where it did."""


@dataclass(slots=True)
class Decision:
    """A verdict with all that is said with it (DESIGN.md 4.3)."""

    verdict: Verdict
    detail: str | None = None
    flags: tuple[str, ...] = ()
    credential: str | None = None
    holder: str | None = None
    entitlement: str | None = None
    product: str | None = None
    guest: int = 0
    left: int | None = None
    person: str | None = None
    """Whose presence a passage moves; None for an unknown."""
    again: bool = False
    """The same grant again: nothing is recorded anew, the passage time-out begins anew."""


EMERGENCY = "emergency"
"""``by`` of what the emergency input did."""


class EventKind(StrEnum):
    """Kinds of access events in the ledger."""

    SCAN = "scan"
    PASSAGE = "passage"
    LANE = "lane"
    OPEN = "open"
    CLEAR = "clear"
    ANNUL = "annul"
    FAULT = "fault"


@dataclass(slots=True)
class AccessEvent:
    """The fact that is recorded and uploaded. The code is never part of it."""

    kind: EventKind
    at: int
    point: str | None = None
    lane: str | None = None
    reader: str | None = None
    verdict: str | None = None
    detail: str | None = None
    flags: tuple[str, ...] = ()
    credential: str | None = None
    holder: str | None = None
    entitlement: str | None = None
    product: str | None = None
    guest: int = 0
    left: int | None = None
    from_: str | None = None
    to: str | None = None
    passage: str | None = None
    """For a scan: ``pending``, ``assumed`` or None; for a passage: what became of the grant."""
    of: AccessEvent | None = None
    """The event that this one answers (the grant of a passage, the event annulled)."""
    of_seq: int | None = None
    """The same by number, where the event itself is no longer at hand."""
    by: str | None = None
    """Who asked for it, for acts by hand: ``admin``, ``central``, ``emergency``, ``start``, or ``operator:``
    and a name."""
    movement: Movement | None = field(default=None, compare=False)
    """What this event does to presence and counts: the movement that it makes or settles."""
    trusted: bool = False
    """The clock was synchronised when it was recorded: its time may serve as a floor after a restart."""
    seq: int | None = None
    """Given by the ledger when it is written."""


class Payload(NamedTuple):
    """What a decoder gives: the bytes of one code, without framing, and the AIM identifier if any."""

    data: bytes
    aim: str | None = None
