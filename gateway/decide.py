"""The judgement: one scan, all that is known of it, one decision. The order of the checks is the policy.

This is DESIGN.md 4.2 in the order of its steps; the letters and numbers in the comments are its own.
Nothing is changed here and nothing is asked of the world but what comes in as an argument, so the
same call answers a scan at the gate, ``gateway check`` and ``gateway replay``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

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
from gateway.presence import NOWHERE, is_in, stay
from gateway.rules import PointAt, RuleAt, World
from gateway.venuetime import DAY

BUSY = "busy"
"""Detail of ``lane_closed`` where the lane admits one person at a time and somebody is walking."""

_CREDENTIAL_DETAIL = {s: s.name.lower() for s in CredentialState}


class History(Protocol):
    """What happened, as judging asks for it: movements in the order of their time."""

    def person(self, person: str, since: int) -> Sequence[Movement]: ...

    def entitlement(self, entitlement: str, since: int) -> Sequence[Movement]: ...


class Counts(Protocol):
    """How many people are in an area, pending entries included."""

    def count(self, area: str, now: int) -> int: ...


class Grant(Protocol):
    """A grant that waits for its passage."""

    @property
    def decision(self) -> Decision: ...


@dataclass(slots=True)
class Facts:
    """Everything that a judgement rests on besides the scan itself."""

    world: World
    history: History
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


def is_code(payload: bytes) -> str | None:
    """Step 1: the payload as a code, or None where it cannot be one."""
    if not 0 < len(payload) <= MAX_CODE_BYTES:
        return None
    try:
        code = payload.decode()
    except UnicodeDecodeError:
        return None
    if code.isprintable():
        return code
    # Not everything unprintable is a control character (Cc): spaces and unassigned ones are allowed.
    return None if any(c < " " or "\x7f" <= c <= "\x9f" for c in code) else code


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
    *,
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
        decision = _leave(at, credential)
    elif not payload_ok:
        decision = Decision(Verdict.MALFORMED)
    elif credential is None:
        decision = Decision(Verdict.UNKNOWN_CREDENTIAL)
    else:
        decision = _enter(facts, at, now, credential, closed=mode is LaneMode.CLOSED, busy=busy, stale=stale)
    if credential is not None and at.exit and decision.person is not None:
        earlier = facts.pending.get((at.point.name, decision.person))
        if earlier is not None:
            decision = _again(earlier, credential)
    if mode is LaneMode.FREE and not decision.again:
        free = ("free",) + (decision.flags if decision.verdict is Verdict.GRANTED else ())
        decision = replace(decision, verdict=Verdict.GRANTED, detail=None, flags=free)
    if suspect:
        decision.flags = ("clock_suspect", *decision.flags)
    if credential is not None and decision.person is None:
        decision.person = person_of(_first(credential), credential)
    return decision


def _again(earlier: Grant, credential: Credential) -> Decision:
    """The same grant again is the same answer; the card and the clock are this scan's own."""
    said = earlier.decision
    flags = tuple(f for f in said.flags if f != "clock_suspect")
    return replace(said, credential=credential.id, flags=flags, again=True)


def _first(credential: Credential) -> Entitlement | None:
    return credential.entitlements[0] if credential.entitlements else None


def _leave(at: PointAt, credential: Credential | None) -> Decision:
    """An exit point: nobody is ever locked in."""
    if credential is not None:
        first = _first(credential)
        return Decision(
            Verdict.GRANTED,
            credential=credential.id,
            holder=None if first is None else first.holder,
            person=person_of(first, credential),
        )
    if at.point.unknown_at_exit_open:
        return Decision(Verdict.GRANTED)
    return Decision(Verdict.UNKNOWN_CREDENTIAL)


def _enter(
    facts: Facts, at: PointAt, now: int, credential: Credential, *, closed: bool, busy: bool, stale: bool
) -> Decision:
    entitlements = credential.entitlements
    early = Decision(
        Verdict.REVOKED,
        credential=credential.id,
        holder=entitlements[0].holder if entitlements else None,
    )
    if credential.state:  # 3
        early.detail = _CREDENTIAL_DETAIL[CredentialState(credential.state)]
        return early
    if stale:  # 4
        early.verdict = Verdict.SNAPSHOT_STALE
        return early
    if at.hosts and (guest := _guest(facts, at, now, credential, closed=closed)) is not None:  # 5
        if busy and guest.verdict is Verdict.GRANTED:
            return _busy(guest)
        return guest
    if facts.pending and not closed:
        for entitlement in entitlements:
            earlier = facts.pending.get((at.point.name, person_of(entitlement, credential)))
            if earlier is not None:
                return _again(earlier, credential)

    failures: list[Failure] = []
    for entitlement in entitlements:  # 6
        passed = _ask(facts, at, now, entitlement, failures, closed=closed)
        if passed is not None:
            rule, product, grace, entries = passed
            decision = Decision(
                Verdict.GRANTED,
                credential=credential.id,
                holder=entitlement.holder,
                entitlement=entitlement.id,
                product=product.id,
                person=person_of(entitlement, credential),
            )
            if rule.limits:
                decision.left = rule.left(entitlement, entries, now, spend=not rule.move)
            decision = _presence(facts, at, now, rule, product, grace, decision)  # 7, 8
            return _busy(decision) if busy and decision.verdict is Verdict.GRANTED else decision
    if not failures:
        early.verdict = Verdict.NO_RIGHT
        return early
    return _refusal(facts, now, credential, failures, closed=closed)


def _busy(decision: Decision) -> Decision:
    return replace(decision, verdict=Verdict.LANE_CLOSED, detail=BUSY, flags=(), left=None)


# --- 6: entitlements and rules ----------------------------------------------------------------------


def _ask(
    facts: Facts,
    at: PointAt,
    now: int,
    entitlement: Entitlement,
    failures: list[Failure],
    *,
    closed: bool,
) -> tuple[RuleAt, Product, bool, Sequence[Movement]] | None:
    """The first rule of an entitlement that passes a to h, else the failures are noted."""
    world = facts.world
    product = world.products.get(entitlement.product) if entitlement.product is not None else None
    rules = at.rules.get(entitlement.product) if entitlement.product is not None else None

    def fail(step: int, verdict: Verdict, detail: str | None = None, rule: RuleAt | None = None) -> None:
        failures.append(Failure(step, verdict, detail, entitlement, product, rule))

    failed = _standing(world, entitlement, product, now)
    if isinstance(failed, tuple):  # a to c
        step, verdict, detail = failed
        if verdict is Verdict.NOT_YET_VALID:
            for rule in rules or (None,):
                fail(step, verdict, detail, rule)
        else:
            fail(step, verdict, detail)
        return None
    if product is None or rules is None:  # d
        fail(3, Verdict.NO_RIGHT)
        return None
    movements: Sequence[Movement] | None = None
    entries: Sequence[Movement] = NO_MOVEMENTS
    for rule in rules:
        if not rule.on_time(now):  # e
            fail(4, Verdict.NOT_AT_THIS_TIME, rule=rule)
            continue
        if closed and not rule.bypass_closed:  # f
            fail(5, Verdict.LANE_CLOSED, rule=rule)
            continue
        if rule.again is not None or rule.limits:
            if movements is None:
                reach = min(r.reach(entitlement, now) for r in rules)
                movements = facts.history.entitlement(entitlement.id, reach)
            entries = rule.entries(movements, now, guests=False) if movements else NO_MOVEMENTS
            if not rule.move:
                if rule.soon(entries, now) is not None:  # g
                    fail(6, Verdict.TOO_SOON, rule=rule)
                    continue
                if rule.exhausted(rule.limits, entitlement, entries, now, guests=False):  # h
                    fail(7, Verdict.LIMIT_REACHED, rule=rule)
                    continue
        return rule, product, failed, entries
    return None


def _standing(
    world: World, entitlement: Entitlement, product: Product | None, now: int
) -> tuple[int, Verdict, str | None] | bool:
    """Steps a to c of one entitlement: what fails, else whether it lives on in grace."""
    if entitlement.blocked:
        return 0, Verdict.SUSPENDED, "blocked"
    if entitlement.state:
        return 0, Verdict.SUSPENDED, EntitlementState(entitlement.state).name.lower()
    calendar = world.calendar
    bound = entitlement.valid_from
    if bound is not None and (now < bound >> 1 if bound & 1 else calendar.day(now) < bound >> 1):
        return 1, Verdict.NOT_YET_VALID, None
    bound = entitlement.valid_until
    if bound is not None and (now >= bound >> 1 if bound & 1 else calendar.day(now) > bound >> 1):
        days = 0 if product is None else product.grace_days
        if not days or now >= calendar.grace_ends(bound, days):
            return 2, Verdict.EXPIRED, None
        return True
    return False


def _refusal(
    facts: Facts, now: int, credential: Credential, failures: list[Failure], *, closed: bool
) -> Decision:
    """The verdict of the rule that came furthest; on a tie the one that would work soonest, then the
    first listed."""
    furthest = max(f.step for f in failures)
    tied = [f for f in failures if f.step == furthest]
    chosen, works = tied[0], None
    if chosen.verdict in _TIMED:
        soonest = [(_works_at(facts, f, now, closed=closed), f) for f in tied]
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


def _works_at(facts: Facts, failure: Failure, now: int, *, closed: bool) -> int | None:
    rule, entitlement = failure.rule, failure.entitlement
    if rule is None:
        return None
    entries: Sequence[Movement] = NO_MOVEMENTS
    if rule.counts:
        movements = facts.history.entitlement(entitlement.id, rule.reach(entitlement, now))
        entries = rule.entries(movements, now, guests=False)
    grace = 0 if failure.product is None else failure.product.grace_days
    return rule.opens(entitlement, grace, entries, now, closed=closed)


# --- 5: guests --------------------------------------------------------------------------------------


def _guest(facts: Facts, at: PointAt, now: int, credential: Credential, *, closed: bool) -> Decision | None:
    """A guest of somebody who has just been let in here, or None where this scan is no guest's."""
    point, world = at.point, facts.world
    window = point.guest_window
    for entitlement in credential.entitlements:
        if entitlement.product not in at.hosts:
            continue
        person = person_of(entitlement, credential)
        # A guest begins the window anew, so the entry itself may lie further back.
        movements = [
            m
            for m in facts.history.person(person, min(now - DAY, world.presence_since(now)))
            if m.at <= now
            and m.point == point.name
            and m.to == point.to
            and m.passage is not Passage.NOT_TAKEN
        ]
        own = next((m for m in reversed(movements) if not m.guest), None)
        if own is None:
            continue
        guests = [m for m in movements if m.guest and m.at >= own.at]
        if now - max([own.at, *(m.at for m in guests)]) > window:
            continue
        product = world.products[entitlement.product]
        for rule in at.rules[entitlement.product]:
            if rule.guests is None:
                continue
            allowed = rule.guests if entitlement.guests is None else entitlement.guests
            grace = _standing(world, entitlement, product, own.at)
            if (
                len(guests) >= allowed
                or isinstance(grace, tuple)
                or not rule.on_time(own.at)
                or ((own.closed or closed) and not rule.bypass_closed)
            ):
                continue
            entries: Sequence[Movement] = NO_MOVEMENTS
            if rule.limits or rule.guest_limits:
                movements_ = facts.history.entitlement(entitlement.id, rule.reach(entitlement, now))
                came = rule.entries(movements_, now, guests=True)
                if not rule.move and rule.exhausted(
                    rule.guest_limits, entitlement, came, now, guests=True, entered=own.at
                ):
                    continue
                entries = rule.entries(movements_, now, guests=False)
            decision = Decision(
                Verdict.GRANTED,
                flags=_flags(grace, product),
                credential=credential.id,
                holder=entitlement.holder,
                entitlement=entitlement.id,
                product=product.id,
                guest=len(guests) + 1,
                left=rule.left(entitlement, entries, now, spend=False, entered=own.at)
                if rule.limits
                else None,
                person=person,
            )
            if not rule.bypass_capacity and _full(facts, at.capacities, now):  # 8
                decision.verdict, decision.flags, decision.left = Verdict.AREA_FULL, (), None
                decision.guest = 0
            return decision
    return None


def _flags(grace: bool, product: Product) -> tuple[str, ...]:
    if not grace and not product.attention:
        return ()
    return (("grace",) if grace else ()) + (("attention",) if product.attention else ())


# --- 7 and 8: presence and capacity -----------------------------------------------------------------


def _presence(
    facts: Facts, at: PointAt, now: int, rule: RuleAt, product: Product, grace: bool, decision: Decision
) -> Decision:
    """Steps 7 and 8 for somebody whose rule has passed."""
    world, point = facts.world, at.point
    asks_presence = point.anti_passback is not AntiPassback.OFF and not rule.bypass_passback
    asks_capacity = at.capacities_holder and not rule.bypass_capacity
    passback = False
    if asks_presence or asks_capacity:
        movements = facts.history.person(str(decision.person), world.presence_since(now))
        here = stay(world, movements, facts.cleared, now) if movements else NOWHERE
        if asks_presence and is_in(world, here, point.to, now):
            passback = point.anti_passback is not AntiPassback.TIMED or (
                (last := _last_entry(at, movements, now)) is not None
                and now - last < point.anti_passback_time
            )
            if passback and point.anti_passback is not AntiPassback.SOFT:
                decision.verdict, decision.left = Verdict.PASSBACK, None
                return decision
        if asks_capacity:
            capacities = at.capacities_holder
            if here is not NOWHERE:
                capacities = tuple(c for c in capacities if not is_in(world, here, c[0], now))
            if _full(facts, capacities, now):
                decision.verdict, decision.left = Verdict.AREA_FULL, None
                return decision
    if grace or passback or product.attention:
        flags = (("grace",) if grace else ()) + (("passback",) if passback else ())
        decision.flags = flags + (("attention",) if product.attention else ())
    return decision


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


def _full(facts: Facts, capacities: Sequence[tuple[str, int]], now: int) -> bool:
    return any(facts.occupancy.count(area, now) >= capacity for area, capacity in capacities)


Find = Callable[[bytes], Credential | None]
"""The snapshot's look-up: the code's bytes to the credential with its entitlements."""
