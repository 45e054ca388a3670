"""Parsing and checking of the central's records: every kind, every field, every fault with its place."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cache import values
from gateway.cache.records import CredentialRecord, Deleted, RecordError, parse
from gateway.model import (
    Area,
    Bypass,
    CredentialState,
    Entitlement,
    EntitlementState,
    Event,
    Holder,
    Limit,
    Movement,
    Passage,
    Per,
    Product,
    Rule,
    Venue,
)


def day(text: str) -> int:
    return date.fromisoformat(text).toordinal()


def micros(text: str) -> int:
    return (datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def test_the_records_of_the_design() -> None:
    """Each example record of DESIGN.md 4.1 becomes the value that it stands for."""
    assert parse(
        {"kind": "venue", "timezone": "Europe/Berlin", "day_starts": "04:00", "language": "de"}
    ) == Venue("Europe/Berlin", 240, "de")
    assert parse(
        {"kind": "area", "id": "hall", "name": {"de": "Halle", "en": "Hall"}, "capacity": 800}
    ) == Area("hall", {"de": "Halle", "en": "Hall"}, 800)
    assert parse({"kind": "area", "id": "exh", "within": "hall", "presence_hours": 2}) == Area(
        "exh", within="hall", presence_hours=2.0
    )
    assert parse(
        {
            "kind": "event",
            "id": "v26",
            "tag": "vernissage",
            "areas": ["hall"],
            "from": "2026-11-27T18:00:00+01:00",
            "until": "2026-11-28",
            "exclusive": True,
        }
    ) == Event(
        "v26",
        "vernissage",
        ("hall",),
        micros("2026-11-27T18:00:00+01:00") * 2 + 1,
        day("2026-11-28") * 2,
        True,
    )
    assert parse(
        {
            "kind": "holder",
            "id": "H1",
            "name": "A. Lind",
            "language": "en",
            "state": "blocked",
            "notice": {"en": "Your new card"},
        }
    ) == Holder("H1", "A. Lind", "en", {"en": "Your new card"}, True)
    assert parse(
        {
            "kind": "entitlement",
            "id": "E1",
            "product": "family",
            "holder": "H1",
            "valid_from": "2026-01-01",
            "valid_until": "2026-12-31T00:00:00Z",
            "state": "suspended",
            "guests": 2,
            "entries": 10,
        }
    ) == Entitlement(
        "E1",
        "family",
        "H1",
        day("2026-01-01") * 2,
        micros("2026-12-31T00:00:00+00:00") * 2 + 1,
        EntitlementState.SUSPENDED,
        2,
        10,
    )
    assert parse(
        {"kind": "credential", "id": "C1", "code": "8K2MPÄ", "state": "lost", "entitlements": ["E1", "E2"]}
    ) == CredentialRecord("C1", "8K2MPÄ".encode(), CredentialState.LOST, ("E1", "E2"))
    assert parse({"kind": "credential", "id": "C0", "deleted": True}) == Deleted("credential", "C0")


def test_a_product_with_every_field_of_a_rule() -> None:
    """Rules, limits and benefits keep all that they state."""
    limits = [
        {"max": 1, "per": "day"},
        {"max": 3, "per": "week", "count": "days"},
        {"minutes": 90, "per": "event"},
    ]
    rule = {
        "areas": ["hall"],
        "points": ["north-in"],
        "days": ["mon", "sun"],
        "hours": ["10:00-18:00", "22:00-02:00", "20:00-24:00"],
        "except": ["2026-12-24"],
        "from": "2026-01-01",
        "until": "2026-12-31T12:00:00.25+01:00",
        "during": "vernissage",
        "early_minutes": 60,
        "again_after_minutes": 30,
        "limits": limits,
        "guests": 1,
        "guest_limits": [{"max": 10, "per": "term"}],
        "bypass": ["passback", "capacity", "closed"],
    }
    product = {
        "kind": "product",
        "id": "family",
        "category": "pass",
        "club": "friends",
        "tier": "gold",
        "name": "Family",
        "benefits": [{"de": "10 %"}, "free tea"],
        "grace_days": 14,
        "attention": True,
        "rules": [rule, {}],
        "colour": "unknown fields are ignored",
    }
    assert parse(product) == Product(
        "family",
        "pass",
        "Family",
        "friends",
        "gold",
        ({"de": "10 %"}, "free tea"),
        14,
        True,
        (
            Rule(
                areas=("hall",),
                points=("north-in",),
                days=frozenset({0, 6}),
                except_=frozenset({day("2026-12-24")}),
                hours=((600, 1080), (1320, 120), (1200, 1440)),
                from_=day("2026-01-01") * 2,
                until=micros("2026-12-31T12:00:00.250000+01:00") * 2 + 1,
                during="vernissage",
                early_minutes=60,
                again_after_minutes=30,
                limits=(
                    Limit(Per.DAY, 1),
                    Limit(Per.WEEK, 3, count_days=True),
                    Limit(Per.EVENT, minutes=90),
                ),
                guests=1,
                guest_limits=(Limit(Per.TERM, 10),),
                bypass=frozenset(Bypass),
            ),
            Rule(),
        ),
    )


def test_usage() -> None:
    """A usage is a movement with the source that identifies it, and a person where it names one."""
    usage = {"kind": "usage", "at": "2026-11-21T10:02:11+01:00", "to": "hall"}
    at = micros("2026-11-21T10:02:11+01:00")
    assert parse(
        usage
        | {
            "gateway": "south",
            "epoch": 3,
            "seq": 991,
            "point": "south-in",
            "from": "exh",
            "holder": "H1",
            "entitlement": "E1",
            "credential": "C1",
            "guest": 2,
            "passage": "assumed",
        }
    ) == Movement(
        at,
        "exh",
        "hall",
        "H1",
        "south-in",
        "H1",
        "C1",
        "E1",
        2,
        1,
        Passage.ASSUMED,
        source="south/3/991",
    )
    summed = parse(usage | {"id": "old-7", "entries": 9, "credential": "C1"})
    assert summed == Movement(at, "outside", "hall", "card:C1", credential="C1", entries=9, source="id/old-7")
    head = parse(usage | {"gateway": "south", "epoch": str(2**64 - 1), "seq": 1})
    assert isinstance(head, Movement)
    assert (head.person, head.source) == (None, f"south/{2**64 - 1}/1")
    gone = {"kind": "usage", "gateway": "south", "epoch": "3", "seq": 991, "deleted": True}
    assert parse(gone) == Deleted("usage", "south/3/991")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"kind": "venue"}, Venue()),
        ({"kind": "area", "id": "a"}, Area("a")),
        ({"kind": "event", "id": "e", "tag": "t"}, Event("e", "t")),
        ({"kind": "product", "id": "p"}, Product("p")),
        ({"kind": "holder", "id": "h"}, Holder("h")),
        ({"kind": "entitlement", "id": "e"}, Entitlement("e", None)),
        ({"kind": "credential", "id": "c", "code": "x"}, CredentialRecord("c", b"x", 0, ())),
    ],
)
def test_defaults_and_null(record: dict[str, Any], expected: object) -> None:
    """What is absent, or null, has its default."""
    assert parse(record) == expected
    every = (
        "timezone day_starts language name capacity within presence_hours areas from until exclusive "
        "category club tier benefits grace_days attention rules notice state product holder valid_from "
        "valid_until guests entries entitlements deleted"
    )
    assert parse(dict.fromkeys(every.split()) | record) == expected


def test_unknown_kinds_are_no_fault() -> None:
    """A kind from a newer central is None, so that it can be counted."""
    assert parse({"kind": "locker", "whatever": 1}) is None


P = {"kind": "product", "id": "p"}
E = {"kind": "entitlement", "id": "e"}
C = {"kind": "credential", "id": "c", "code": "x"}
H = {"kind": "holder", "id": "h"}
A = {"kind": "area", "id": "a"}
V = {"kind": "venue"}
U = {"kind": "usage", "id": "u", "at": "2026-11-21T10:02:11Z", "to": "hall"}
T = {"kind": "event", "id": "t", "tag": "x"}


def ruled(**rule: object) -> dict[str, Any]:
    return P | {"rules": [{}, rule]}


@pytest.mark.parametrize(
    ("record", "field", "says"),
    [
        ([], "", "must be an object"),
        ({"id": "x"}, "kind", "is missing"),
        ({"kind": 7}, "kind", "must be a string, not a number"),
        ({"kind": "credential", "code": "x"}, "id", "is missing"),
        (E | {"id": ""}, "id", "must not be empty"),
        (H | {"id": 5}, "id", "must be a string, not a number"),
        (A | {"id": None}, "id", "is missing"),
        (C | {"deleted": "yes"}, "deleted", "must be true or false"),
        (V | {"deleted": True}, "deleted", "cannot be deleted"),
        ({"kind": "credential", "id": "c"}, "code", "is missing"),
        (C | {"code": 12345}, "code", "must be a string, not a number"),
        (C | {"code": ""}, "code", "1 to 512 bytes"),
        (C | {"code": "ä" * 257}, "code", "is 514"),
        (C | {"code": "a\tb"}, "code", "control characters"),
        (C | {"code": "a\x85b"}, "code", "control characters"),
        (C | {"state": "gone"}, "state", "must be one of active, lost, revoked, replaced, not 'gone'"),
        (C | {"state": ["active"]}, "state", "must be one of"),
        (C | {"entitlements": "E1"}, "entitlements", "must be a list, not a string"),
        (C | {"entitlements": ["E1", 2]}, "entitlements[1]", "must be a string"),
        (C | {"entitlements": [""]}, "entitlements[0]", "must not be empty"),
        (E | {"product": 4}, "product", "must be a string"),
        (E | {"holder": ""}, "holder", "must not be empty"),
        (E | {"valid_from": "2026-2-1"}, "valid_from", "must be a date like 2026-12-31, not '2026-2-1'"),
        (E | {"valid_from": "2026-W01-1"}, "valid_from", "must be a date"),
        (E | {"valid_from": "20260101"}, "valid_from", "must be a date"),
        (E | {"valid_until": "2026-02-30"}, "valid_until", "must be a date"),
        (E | {"valid_until": "2026-02-01T10:00:00"}, "valid_until", "instant with an offset"),
        (E | {"valid_until": "2026-02-01 10:00:00Z"}, "valid_until", "instant with an offset"),
        (E | {"valid_until": "2026-02-01T25:00:00Z"}, "valid_until", "instant with an offset"),
        (E | {"valid_until": "2026-02-01T10:00:00+0100"}, "valid_until", "instant with an offset"),
        (E | {"valid_until": 20260101}, "valid_until", "must be a date"),
        (E | {"state": "active "}, "state", "active, suspended, cancelled"),
        (E | {"guests": -1}, "guests", "must not be negative"),
        (E | {"entries": True}, "entries", "must be a whole number, not True"),
        (E | {"entries": 1.0}, "entries", "must be a whole number"),
        (H | {"name": {"de": "A"}}, "name", "must be a string, not an object"),
        (H | {"language": 3}, "language", "must be a string"),
        (H | {"notice": ["a"]}, "notice", "must be a string or an object"),
        (H | {"notice": {"de": 3}}, "notice.de", "must be a string"),
        (H | {"state": "lost"}, "state", "active, blocked"),
        (A | {"capacity": "800"}, "capacity", "must be a whole number"),
        (A | {"within": "a"}, "within", "lies within itself"),
        (A | {"presence_hours": True}, "presence_hours", "must be a number"),
        (A | {"presence_hours": -0.5}, "presence_hours", "not negative"),
        (V | {"timezone": "Europe/Berlinn"}, "timezone", "is not a time zone like Europe/Berlin"),
        (V | {"timezone": "Europe"}, "timezone", "is not a time zone"),
        (V | {"timezone": "../etc/passwd"}, "timezone", "is not a time zone"),
        (V | {"day_starts": "24:00"}, "day_starts", "time of day like 04:00"),
        (V | {"day_starts": 4}, "day_starts", "time of day"),
        (V | {"language": ""}, "language", "must not be empty"),
        ({"kind": "event", "id": "t"}, "tag", "is missing"),
        (T | {"areas": "hall"}, "areas", "must be a list"),
        (T | {"from": "tomorrow"}, "from", "must be a date"),
        (T | {"exclusive": 1}, "exclusive", "must be true or false"),
        (P | {"category": "card"}, "category", "membership, pass, ticket"),
        (P | {"benefits": "tea"}, "benefits", "must be a list"),
        (P | {"benefits": [1]}, "benefits[0]", "must be a string or an object"),
        (P | {"grace_days": -3}, "grace_days", "must not be negative"),
        (P | {"attention": "no"}, "attention", "must be true or false"),
        (P | {"rules": {}}, "rules", "must be a list, not an object"),
        (P | {"rules": ["x"]}, "rules[0]", "must be an object"),
        (ruled(areas=[3]), "rules[1].areas[0]", "must be a string"),
        (ruled(points="x"), "rules[1].points", "must be a list"),
        (ruled(days=["monday"]), "rules[1].days[0]", "mon, tue, wed"),
        (ruled(**{"except": ["24.12."]}), "rules[1].except[0]", "must be a date"),
        (
            ruled(hours=["10:00-18:00", "25:00-26:00"]),
            "rules[1].hours[1]",
            "'25:00-26:00' is not a span like 10:00-18:00",
        ),
        (ruled(hours=["24:00-02:00"]), "rules[1].hours[0]", "is not a span"),
        (ruled(hours=["10:00-24:01"]), "rules[1].hours[0]", "is not a span"),
        (ruled(hours=["10-18"]), "rules[1].hours[0]", "is not a span"),
        (ruled(until="x"), "rules[1].until", "must be a date"),
        (ruled(during=1), "rules[1].during", "must be a string"),
        (ruled(early_minutes=-1), "rules[1].early_minutes", "must not be negative"),
        (ruled(again_after_minutes="5"), "rules[1].again_after_minutes", "must be a whole number"),
        (ruled(limits={}), "rules[1].limits", "must be a list"),
        (ruled(limits=[{"per": "day"}]), "rules[1].limits[0]", "exactly one of them"),
        (
            ruled(limits=[{"max": 1, "minutes": 1, "per": "day"}]),
            "rules[1].limits[0]",
            "exactly one of them",
        ),
        (ruled(limits=[{"max": 1}]), "rules[1].limits[0].per", "is missing"),
        (ruled(limits=[{"max": 1, "per": "decade"}]), "rules[1].limits[0].per", "hour, day, week"),
        (ruled(limits=[{"max": 1, "per": "event"}]), "rules[1].limits[0].per", "needs a during"),
        (ruled(limits=[{"max": -1, "per": "day"}]), "rules[1].limits[0].max", "must not be negative"),
        (
            ruled(limits=[{"minutes": 9, "per": "day", "count": "days"}]),
            "rules[1].limits[0].count",
            "with max only",
        ),
        (
            ruled(limits=[{"max": 9, "per": "day", "count": "cats"}]),
            "rules[1].limits[0].count",
            "one of days",
        ),
        (ruled(guest_limits=[{"max": 1, "per": "event"}]), "rules[1].guest_limits[0].per", "during"),
        (ruled(guests=-1), "rules[1].guests", "must not be negative"),
        (ruled(bypass=["all"]), "rules[1].bypass[0]", "passback, capacity, closed"),
        (U | {"id": None}, "gateway", "or give an id"),
        (U | {"gateway": "g"}, "epoch", "is missing"),
        (U | {"gateway": "g", "epoch": 1}, "seq", "is missing"),
        (U | {"gateway": "g", "epoch": "0x10", "seq": 1}, "epoch", "at most 64 bits"),
        (U | {"gateway": "g", "epoch": 1 << 64, "seq": 1}, "epoch", "at most 64 bits"),
        (U | {"gateway": "g", "epoch": 1, "seq": -1}, "seq", "at most 64 bits"),
        (U | {"at": None}, "at", "is missing"),
        (U | {"at": "2026-11-21"}, "at", "must be an instant"),
        (U | {"to": None}, "to", "is missing"),
        (U | {"guest": -1}, "guest", "must not be negative"),
        (U | {"entries": "9"}, "entries", "must be a whole number"),
        (U | {"passage": "gone"}, "passage", "pending, taken, assumed, not_taken, forced"),
    ],
)
def test_faults_name_the_field_and_the_remedy(record: Any, field: str, says: str) -> None:
    """Each rule of DESIGN.md 4.1 that is broken gives the path of the field and what would be right."""
    with pytest.raises(RecordError) as caught:
        parse(record)
    assert caught.value.field == field
    assert says in caught.value.message


def test_no_fault_shows_a_code_or_a_name() -> None:
    """Neither a message nor a repr gives away a code or a holder's name."""
    for record in (C | {"code": "SECRET\x00"}, C | {"code": "SECRET" * 200}, C | {"code": ["SECRET"]}):
        with pytest.raises(RecordError) as caught:
            parse(record)
        assert "SECRET" not in str(caught.value)
    with pytest.raises(RecordError) as caught:
        parse(H | {"name": ["SECRET"]})
    assert "SECRET" not in str(caught.value)
    assert "SECRET" not in repr(parse(C | {"code": "SECRET"}))


def test_codes_keep_their_bytes() -> None:
    """A code may hold spaces, soft hyphens and any letter: only control characters are refused."""
    for code in (" a b ", "\u00adx", "\u2028", "ẞ", "字" * 170):
        record = parse(C | {"code": code})
        assert isinstance(record, CredentialRecord)
        assert record.code == code.encode()


@given(st.datetimes(min_value=datetime(1900, 1, 1)), st.integers(-1439, 1439))  # noqa: DTZ001
def test_instants_agree_with_datetime(local: datetime, offset: int) -> None:
    """The hand-made reading of an RFC 3339 instant is that of the datetime module."""
    sign = "-" if offset < 0 else "+"
    hours, minutes = divmod(abs(offset), 60)
    text = f"{local.isoformat(timespec='microseconds')}{sign}{hours:02d}:{minutes:02d}"
    expected = (local - datetime(1970, 1, 1)) // timedelta(microseconds=1) - offset * 60_000_000  # noqa: DTZ001
    assert values.instant(text, "at") == expected
    assert values.bound(text, "until") == expected * 2 + 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01t00:00:00z", 0),
        ("1970-01-01T00:00:00.1Z", 100_000),
        ("1970-01-01T00:00:00.12345678Z", 123_456),
        ("1969-12-31T23:59:60Z", 0),
        ("1970-01-01T00:00:00-00:00", 0),
    ],
)
def test_instants_in_all_forms_of_rfc_3339(text: str, expected: int) -> None:
    """Small letters, any number of digits and a leap second are allowed by RFC 3339."""
    assert values.instant(text, "at") == expected


def test_the_kept_bounds_are_bounded() -> None:
    """A feed of a hundred thousand different instants does not fill the memory."""
    for second in range(10_000):
        values.bound(f"2026-01-01T{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}Z", "until")
    assert len(values._BOUNDS) <= values._BOUNDS_KEPT
    assert values.bound("2026-01-01", "until") == day("2026-01-01") * 2
