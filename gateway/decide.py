"""The judgement: one scan, all that is known of it, one decision. The order of the checks is the policy.

This is DESIGN.md 4.2 in the order of its steps; the letters and numbers in the comments are its own.
Nothing is changed here and nothing is asked of the world but what comes in as an argument, so the
same call answers a scan at the gate, ``gateway check`` and ``gateway replay``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from gateway.agenda import Plan
from gateway.model import (
    MAX_CODE_BYTES,
    NO_MOVEMENTS,
    AntiPassback,
    Credential,
    CredentialState,
    Decision,
    Entitlement,
    EntitlementState,
    LaneMode,
    Movement,
    Passage,
    Product,
    Verdict,
)
from gateway.presence import is_in, stay
from gateway.rules import RuleAt
from gateway.world import PointAt, World

BUSY = "busy"
"""Detail of ``lane_closed`` where the lane admits one person at a time and somebody is walking."""

# Looking up a member of an enum costs as much as a comparison of integers: on the scan's way, only once.
_GRANTED, _CLOSED, _FREE = Verdict.GRANTED, LaneMode.CLOSED, LaneMode.FREE
_CREDENTIAL_DETAIL = {s: s.name.lower() for s in CredentialState}


class History(Protocol):
    """What happened, as judging asks for it: movements in the order of their time."""

    def person(self, person: str, since: int) -> Sequence[Movement]: ...

    def entitlement(self, entitlement: str, since: int) -> Sequence[Movement]: ...


Quiet = Callable[[str, str, int], bool]
"""Whether certainly neither this person nor this entitlement has moved from an instant on, as most people at
a gate have not: one question in the place of two. False: ask."""


class Counts(Protocol):
    """How many people are in the areas, pending entries included."""

    def full(self, capacities: Sequence[tuple[str, int]], now: int) -> bool:
        """Whether one of these areas holds as many as it may."""


class Grant(Protocol):
    """A grant that waits for its passage."""

    @property
    def decision(self) -> Decision: ...


@dataclass(slots=True)
class Facts:
    """Everything that a judgement rests on besides the scan itself."""

    world: World
    history: History
    quiet: Quiet
    occupancy: Counts
    cleared: Mapping[str, int]
    pending: Mapping[tuple[str, str], Grant]
    """Grants of people themselves (not of guests) that wait for passage, by point and person."""


class Failure(NamedTuple):
    """Why one rule did not pass."""

    step: int
    verdict: Verdict
    detail: str | None
    entitlement: Entitlement
    product: Product | None
    rule: RuleAt | None


_TIMED = (Verdict.NOT_YET_VALID, Verdict.NOT_AT_THIS_TIME, Verdict.TOO_SOON, Verdict.LIMIT_REACHED)
"""Denials that say from when it would work."""


def is_code(payload: bytes) -> bool:
    """Step 1: whether the payload can be a code."""
    if not 0 < len(payload) <= MAX_CODE_BYTES:
        return False
    if payload.isalnum():  # ASCII letters and digits, as nearly all codes are
        return True
    try:
        code = payload.decode()
    except UnicodeDecodeError:
        return False
    # Not everything unprintable is a control character (Cc): spaces and unassigned ones are allowed.
    return code.isprintable() or not any(c < " " or "\x7f" <= c <= "\x9f" for c in code)


def person_of(entitlement: Entitlement | None, credential: Credential) -> str:
    """Whom presence follows: the holder, or the credential where there is none."""
    if entitlement is not None and entitlement.holder is not None:
        return entitlement.holder
    return f"card:{credential.id}"


def decide(
    facts: Facts,
    at: PointAt,
    now: int,
    payload_ok: bool,
    credential: Credential | None,
    mode: LaneMode = LaneMode.NORMAL,
    busy: bool = False,
    stale: bool = False,
    suspect: bool = False,
) -> Decision:
    """Judge one scan at one access point.

    ``payload_ok``: it is a possible code; ``credential``: what the snapshot has under it; ``busy``: the
    lane refuses a second grant now; ``stale``: the snapshot is too old and ``on_stale`` is deny;
    ``suspect``: the clock is not to be trusted and ``now`` is the newest trusted time.
    """
    if at.exit:
        decision = _leave(facts, at, credential)
    elif credential is not None:
        decision = _enter(facts, at, now, credential, mode is _CLOSED, busy, stale)
    else:
        decision = Decision(Verdict.UNKNOWN_CREDENTIAL if payload_ok else Verdict.MALFORMED)
    if mode is _FREE and not decision.again:
        free = ("free",) + (decision.flags if decision.verdict is Verdict.GRANTED else ())
        decision = replace(decision, verdict=Verdict.GRANTED, detail=None, flags=free)
    if suspect:
        decision.flags = ("clock_suspect", *decision.flags)
    return decision


def _again(earlier: Grant, credential: Credential) -> Decision:
    """The same grant again is the same answer; the card and the clock are this scan's own."""
    said = earlier.decision
    flags = tuple(f for f in said.flags if f != "clock_suspect")
    return replace(said, credential=credential.id, flags=flags, again=True)


def _first(credential: Credential) -> Entitlement | None:
    return credential.entitlements[0] if credential.entitlements else None


def _leave(facts: Facts, at: PointAt, credential: Credential | None) -> Decision:
    """An exit point: nobody is ever locked in."""
    if credential is None:
        return Decision(Verdict.GRANTED if at.point.unknown_at_exit_open else Verdict.UNKNOWN_CREDENTIAL)
    decision = _early(credential, Verdict.GRANTED)
    earlier = facts.pending.get((at.point.name, str(decision.person)))
    return decision if earlier is None else _again(earlier, credential)


def _early(credential: Credential, verdict: Verdict, detail: str | None = None) -> Decision:
    """A decision for which no entitlement was asked: it names the first one's holder."""
    first = _first(credential)
    return Decision(
        verdict,
        detail,
        credential=credential.id,
        holder=None if first is None else first.holder,
        person=person_of(first, credential),
    )


def _enter(
    facts: Facts, at: PointAt, now: int, credential: Credential, closed: bool, busy: bool, stale: bool
) -> Decision:
    if credential.state:  # 3
        return _early(credential, Verdict.REVOKED, _CREDENTIAL_DETAIL[CredentialState(credential.state)])
    if stale:  # 4
        return _early(credential, Verdict.SNAPSHOT_STALE)
    agenda = at.agenda
    if not agenda.start <= now < agenda.end:
        agenda.turn(now)
    quiet, entitlements = facts.quiet, credential.entitlements
    came: dict[str, Sequence[Movement]] = {}
    """By entitlement, the movements of its person; not where it is known that neither has moved."""
    for entitlement in entitlements:
        plan = agenda[entitlement.product]
        person = entitlement.holder or person_of(entitlement, credential)
        if quiet(person, entitlement.id, agenda.since if plan is None else plan.since):
            continue
        movements = came[entitlement.id] = facts.history.person(person, agenda.since)
        if movements and plan is not None and plan.hosts:  # 5
            guest = _guest(facts, at, now, credential, entitlement, plan, movements, closed)
            if guest is not None:
                return _busy(guest) if busy and guest.verdict is _GRANTED else guest
    if came and not closed:
        for entitlement in entitlements:
            person = entitlement.holder or person_of(entitlement, credential)
            earlier = facts.pending.get((at.point.name, person))
            if earlier is not None:
                return _again(earlier, credential)

    failures: list[Failure] = []
    for entitlement in entitlements:
        decision = _ask(facts, at, now, credential, entitlement, came.get(entitlement.id), failures, closed)
        if decision is not None:
            return _busy(decision) if busy and decision.verdict is _GRANTED else decision
    if not failures:
        return _early(credential, Verdict.NO_RIGHT)
    return _refusal(facts, now, credential, failures, closed)


def _busy(decision: Decision) -> Decision:
    return replace(decision, verdict=Verdict.LANE_CLOSED, detail=BUSY, flags=(), left=None)


# --- 6: entitlements and rules ----------------------------------------------------------------------


def _ask(
    facts: Facts,
    at: PointAt,
    now: int,
    credential: Credential,
    entitlement: Entitlement,
    came: Sequence[Movement] | None,
    failures: list[Failure],
    closed: bool,
) -> Decision | None:
    """Steps 6 to 9 for one entitlement; None where no rule of it passes, and the failures are noted.

    ``came``: the movements of its person; None where it is known that neither of the two has moved.
    """
    agenda = at.agenda
    plan = agenda[entitlement.product]
    product = facts.world.products.get(entitlement.product or "") if plan is None else plan.product
    standing = _standing(facts, entitlement, product, now, agenda.day)
    if standing is not False and standing is not True:  # a to c
        step, verdict, detail = standing
        rules = [None] if plan is None else plan.rules
        failures.extend(Failure(step, verdict, detail, entitlement, product, rule) for rule in rules)
        return None
    if plan is None or product is None:  # d
        failures.append(Failure(3, Verdict.NO_RIGHT, None, entitlement, product, None))
        return None
    if came is None and plan.first is not None and not closed:
        rule, left = plan.first, plan.first.first_left
    else:
        passed = _passes(facts, now, entitlement, plan, came is None, failures, closed)
        if passed is None:
            return None
        rule, left = passed
    decision = Decision(
        _GRANTED,
        None,
        (),
        credential.id,
        entitlement.holder,
        entitlement.id,
        product.id,
        0,
        left,
        entitlement.holder or person_of(entitlement, credential),
    )
    if came or standing or product.attention:
        _presence(facts, at, now, rule, product, standing, decision, came or NO_MOVEMENTS)  # 7, 8
    elif rule.capacities and facts.occupancy.full(rule.capacities, now):  # 8
        decision.verdict, decision.left = Verdict.AREA_FULL, None
    return decision


def _passes(
    facts: Facts,
    now: int,
    entitlement: Entitlement,
    plan: Plan,
    quiet: bool,
    failures: list[Failure],
    closed: bool,
) -> tuple[RuleAt, int | None] | None:
    """The first rule that passes e to h, with what is left; else the failures are noted. ``quiet``: it is
    known that the entitlement has no movements that count."""
    product = plan.product
    if not plan.on_time:  # e; where one is on time the others do not come as far as that one
        failures.extend(
            Failure(4, Verdict.NOT_AT_THIS_TIME, None, entitlement, product, rule) for rule in plan.rules
        )
        return None
    movements: Sequence[Movement] | None = NO_MOVEMENTS if quiet else None
    for rule in plan.on_time:
        if closed and not rule.bypass_closed:  # f
            failures.append(Failure(5, Verdict.LANE_CLOSED, None, entitlement, product, rule))
            continue
        left = rule.first_left
        if rule.counted:
            if movements is None:
                movements = facts.history.entitlement(entitlement.id, plan.reaches(entitlement, now))
            if movements or rule.by_term:
                entries = rule.entries(movements, now, guests=False)
                if not rule.move:
                    if rule.soon(entries, now) is not None:  # g
                        failures.append(Failure(6, Verdict.TOO_SOON, None, entitlement, product, rule))
                        continue
                    if rule.exhausted(rule.limits, entitlement, entries, now, guests=False):  # h
                        failures.append(Failure(7, Verdict.LIMIT_REACHED, None, entitlement, product, rule))
                        continue
                left = rule.left(entitlement, entries, now, spend=not rule.move)
            elif rule.never:
                failures.append(Failure(7, Verdict.LIMIT_REACHED, None, entitlement, product, rule))
                continue
        return rule, left
    return None


def _standing(
    facts: Facts, entitlement: Entitlement, product: Product | None, now: int, day: int
) -> tuple[int, Verdict, str | None] | bool:
    """Steps a to c of one entitlement: what fails, else whether it lives on in grace. ``day``: the venue
    day of ``now``."""
    if entitlement.blocked:
        return 0, Verdict.SUSPENDED, "blocked"
    if entitlement.state:
        return 0, Verdict.SUSPENDED, EntitlementState(entitlement.state).name.lower()
    bound = entitlement.valid_from
    if bound is not None and (now < bound >> 1 if bound & 1 else day < bound >> 1):
        return 1, Verdict.NOT_YET_VALID, None
    bound = entitlement.valid_until
    if bound is not None and (now >= bound >> 1 if bound & 1 else day > bound >> 1):
        days = 0 if product is None else product.grace_days
        if not days or now >= facts.world.calendar.grace_ends(bound, days):
            return 2, Verdict.EXPIRED, None
        return True
    return False


def _refusal(
    facts: Facts, now: int, credential: Credential, failures: list[Failure], closed: bool
) -> Decision:
    """The verdict of the rule that came furthest; on a tie the one that would work soonest, then the
    first listed."""
    furthest = max(f.step for f in failures)
    tied = [f for f in failures if f.step == furthest]
    chosen, works = tied[0], None
    if chosen.verdict in _TIMED:
        soonest = [(_works_at(facts, f, now, closed), f) for f in tied]
        for opens, failure in soonest:
            if opens is not None and (works is None or opens < works):
                works, chosen = opens, failure
    return Decision(
        chosen.verdict,
        detail=chosen.detail if works is None else facts.world.calendar.rfc3339(works),
        credential=credential.id,
        holder=chosen.entitlement.holder,
        entitlement=chosen.entitlement.id,
        product=chosen.entitlement.product,
        person=person_of(chosen.entitlement, credential),
    )


def _works_at(facts: Facts, failure: Failure, now: int, closed: bool) -> int | None:
    rule, entitlement = failure.rule, failure.entitlement
    if rule is None:
        return None
    entries: Sequence[Movement] = NO_MOVEMENTS
    if rule.counts:
        movements = facts.history.entitlement(entitlement.id, rule.reach(entitlement, now, guests=False))
        entries = rule.entries(movements, now, guests=False)
    grace = 0 if failure.product is None else failure.product.grace_days
    return rule.opens(entitlement, grace, entries, now, closed=closed)


# --- 5: guests --------------------------------------------------------------------------------------


def _guest(
    facts: Facts,
    at: PointAt,
    now: int,
    credential: Credential,
    entitlement: Entitlement,
    plan: Plan,
    came: Sequence[Movement],
    closed: bool,
) -> Decision | None:
    """A guest of somebody who has just been let in here, or None where this scan is no guest's.

    ``came``: the movements of the entitlement's holder. A guest begins the window anew, so the holder's own
    entry may lie further back than the window is long.
    """
    calendar, name = facts.world.calendar, at.point.name
    movements = [m for m in came if m.at <= now and m.point == name and m.passage is not Passage.NOT_TAKEN]
    own = next((m for m in reversed(movements) if not m.guest), None)
    if own is None:
        return None
    guests = [m for m in movements if m.guest and m.at >= own.at]
    if now - max([own.at, *(m.at for m in guests)]) > at.point.guest_window:
        return None
    product = plan.product
    grace = _standing(facts, entitlement, product, own.at, calendar.day(own.at))
    if not isinstance(grace, bool):
        return None
    for rule in plan.rules:
        if rule.guests is None:
            continue
        allowed = rule.guests if entitlement.guests is None else entitlement.guests
        if (
            len(guests) >= allowed
            or not rule.on_time(own.at)
            or ((own.closed or closed) and not rule.bypass_closed)
        ):
            continue
        entries: Sequence[Movement] = NO_MOVEMENTS
        if rule.limits or rule.guest_limits:
            used = facts.history.entitlement(entitlement.id, rule.reach(entitlement, now, guests=True))
            guested = rule.entries(used, now, guests=True)
            if not rule.move and rule.exhausted(
                rule.guest_limits, entitlement, guested, now, guests=True, entered=own.at
            ):
                continue
            entries = rule.entries(used, now, guests=False)
        decision = Decision(
            Verdict.GRANTED,
            flags=_flags(grace, product),
            credential=credential.id,
            holder=entitlement.holder,
            entitlement=entitlement.id,
            product=product.id,
            guest=len(guests) + 1,
            left=rule.left(entitlement, entries, now, spend=False, entered=own.at) if rule.limits else None,
            person=person_of(entitlement, credential),
        )
        if not rule.bypass_capacity and facts.occupancy.full(at.capacities, now):  # 8
            decision.verdict, decision.flags, decision.left = Verdict.AREA_FULL, (), None
            decision.guest = 0
        return decision
    return None


MOST_GUESTS = 20
"""More than these are not counted ahead."""


class _Imagined:
    """A history in which more guests have come than did."""

    def __init__(self, history: History, guests: Sequence[Movement]) -> None:
        self._history, self._guests = history, guests

    def person(self, person: str, since: int) -> Sequence[Movement]:
        return (*self._history.person(person, since), *self._guests)

    def entitlement(self, entitlement: str, since: int) -> Sequence[Movement]:
        return (*self._history.entitlement(entitlement, since), *self._guests)


def guests_left(
    facts: Facts, at: PointAt, now: int, credential: Credential, decision: Decision, closed: bool
) -> int:
    """How many guests may still follow somebody who has just been let in: each further scan is judged as
    one that is made at once, but for places that the guests before take. At most MOST_GUESTS. For those who
    tell the visitor; no scan waits for it.
    """
    entitlement = next((e for e in credential.entitlements if e.id == decision.entitlement), None)
    plan = None if entitlement is None or at.exit else at.agenda[entitlement.product]
    if entitlement is None or plan is None or not plan.hosts or decision.verdict is not Verdict.GRANTED:
        return 0
    person, point = person_of(entitlement, credential), at.point
    guests: list[Movement] = []
    imagined = replace(facts, history=_Imagined(facts.history, guests))
    while len(guests) < MOST_GUESTS:
        came = imagined.history.person(person, at.agenda.since)
        guest = _guest(imagined, at, now, credential, entitlement, plan, came, closed)
        if guest is None or guest.verdict is not Verdict.GRANTED:
            break
        guests.append(
            Movement(
                now,
                point.from_,
                point.to,
                person,
                point.name,
                entitlement.holder,
                credential.id,
                entitlement.id,
                guest.guest,
                passage=Passage.PENDING,
            )
        )
    return len(guests)


def _flags(grace: bool, product: Product) -> tuple[str, ...]:
    if not grace and not product.attention:
        return ()
    return (("grace",) if grace else ()) + (("attention",) if product.attention else ())


# --- 7 and 8: presence and capacity -----------------------------------------------------------------


def _presence(
    facts: Facts,
    at: PointAt,
    now: int,
    rule: RuleAt,
    product: Product,
    grace: bool,
    decision: Decision,
    movements: Sequence[Movement],
) -> None:
    """Steps 7 and 8 for somebody whose rule has passed; the decision is changed where they say otherwise.
    ``movements`` are the person's."""
    capacities: Sequence[tuple[str, int]] = rule.capacities
    passback = False
    if movements:
        world, point = facts.world, at.point
        here = stay(world, movements, facts.cleared, now)
        if rule.asks_presence and is_in(world, here, point.to, now):
            passback = point.anti_passback is not AntiPassback.TIMED or (
                (last := _last_entry(at, movements, now)) is not None
                and now - last < point.anti_passback_time
            )
            if passback and point.anti_passback is not AntiPassback.SOFT:
                decision.verdict, decision.left = Verdict.PASSBACK, None
                return
        capacities = [c for c in capacities if not is_in(world, here, c[0], now)]
    if capacities and facts.occupancy.full(capacities, now):
        decision.verdict, decision.left = Verdict.AREA_FULL, None
    elif grace or passback or product.attention:
        flags = (("grace",) if grace else ()) + (("passback",) if passback else ())
        decision.flags = flags + (("attention",) if product.attention else ())


def _last_entry(at: PointAt, movements: Sequence[Movement], now: int) -> int | None:
    return max(
        (
            m.at
            for m in movements
            if m.at <= now
            and not m.guest
            and m.passage is not Passage.NOT_TAKEN
            and m.to in at.to_down
            and m.from_ not in at.to_down
        ),
        default=None,
    )
