"""Hand-written worlds with the verdicts that DESIGN.md section 4 promises for them.

Each case is named after the sentence that it holds. They are data, so that the slow evaluator
(``oracle.py``) and the real one are asked the same: ``run_case(case, replay)``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
Replay = Callable[[list[Json], Json, list[Json]], list[Json]]


@dataclass
class Case:
    name: str
    records: list[Json]
    config: Json
    lines: list[Json]
    expect: list[Json] = field(default_factory=list)
    """For each scan line, in order, the fields of the output that the sentence settles."""
    beyond_replay: bool = False
    """Has lines that set a lane's state, which ``gateway replay`` does not know (oracle.py, 39)."""


def run_case(case: Case, replay: Replay) -> None:
    """Runs the case through an implementation of ``replay`` and compares what the case states."""
    got = replay(case.records, case.config, case.lines)
    assert len(got) == len(case.expect), f"{case.name}: {len(got)} lines for {len(case.expect)} scans"
    for number, (line, wanted) in enumerate(zip(got, case.expect, strict=True), start=1):
        seen = {key: line[key] for key in wanted}
        assert seen == wanted, f"{case.name}: scan {number}: {line}"


# --- the words in which the worlds are written --------------------------------------------------------

TUE = "2026-11-24"
WED = "2026-11-25"


def t(clock: str, day: str = TUE, offset: str = "+00:00") -> str:
    return f"{day}T{clock if clock.count(':') == 2 else clock + ':00'}{offset}"


def scan(clock: str, code: str = "A", point: str = "in", day: str = TUE, offset: str = "+00:00") -> Json:
    return {"at": t(clock, day, offset), "point": point, "code": code}


def went(
    clock: str, passage: str = "taken", point: str = "in", day: str = TUE, offset: str = "+00:00"
) -> Json:
    return {"at": t(clock, day, offset), "point": point, "passage": passage}


def mode(clock: str, state: str, lane: str = "north") -> Json:
    return {"at": t(clock), "lane": lane, "mode": state}


def config(sensor: bool = False, **on_in: Any) -> Json:
    """Three lanes: ``in``/``out`` between the street and the hall, ``south`` another way into the hall,
    ``inner``/``inner-out`` between the hall and the exhibition. ``on_in``: keys of the point ``in``; those
    of anti-passback stand on ``south`` and ``inner``, too."""
    lane: Json = {"relay": {"driver": "memory"}}
    if sensor:
        lane["passage"] = {"driver": "memory", "timeout_s": 5}
    passback = {key: value for key, value in on_in.items() if key.startswith("anti_passback")}
    exit_keys = {key: value for key, value in on_in.items() if key == "unknown_at_exit"}
    entry_keys = {key: value for key, value in on_in.items() if key != "unknown_at_exit"}
    return {
        "gateway": {"id": "north", "data_dir": "data"},
        "lane": [{"name": name, **lane} for name in ("north", "south", "inner")],
        "point": [
            {"name": "in", "lane": "north", "from": "outside", "to": "hall", **entry_keys},
            {"name": "out", "lane": "north", "from": "hall", "to": "outside", **exit_keys},
            {"name": "south", "lane": "south", "from": "outside", "to": "hall", **passback},
            {"name": "inner", "lane": "inner", "from": "hall", "to": "exh", **passback},
            {"name": "inner-out", "lane": "inner", "from": "exh", "to": "hall", **exit_keys},
        ],
    }


PLAIN = config()
SENSOR = config(sensor=True)
HALL: Json = {"areas": ["hall"]}


def world(
    *rules: Json,
    product: Json | None = None,
    entitlement: Json | None = None,
    credential: Json | None = None,
    holder: Json | None = None,
    hall: Json | None = None,
    exh: Json | None = None,
    venue: Json | None = None,
    extra: list[Json] | None = None,
) -> list[Json]:
    """One holder H1 with one entitlement E1 of product P and one card CA with the code A."""
    return [
        {"kind": "venue", **(venue or {})},
        {"kind": "area", "id": "hall", "name": {"en": "Hall"}, **(hall or {})},
        {"kind": "area", "id": "exh", "name": {"en": "Exhibition"}, "within": "hall", **(exh or {})},
        {
            "kind": "product",
            "id": "P",
            "category": "membership",
            "name": {"en": "Friend"},
            "rules": list(rules),
            **(product or {}),
        },
        {"kind": "holder", "id": "H1", "name": "A. Lind", **(holder or {})},
        {"kind": "entitlement", "id": "E1", "product": "P", "holder": "H1", **(entitlement or {})},
        {"kind": "credential", "id": "CA", "code": "A", "entitlements": ["E1"], **(credential or {})},
        *(extra or []),
    ]


def person(number: int, code: str, product: str = "P", **entitlement: Any) -> list[Json]:
    """Another holder, with an entitlement and a card."""
    return [
        {"kind": "holder", "id": f"H{number}", "name": f"Nr {number}"},
        {
            "kind": "entitlement",
            "id": f"E{number}",
            "product": product,
            "holder": f"H{number}",
            **entitlement,
        },
        {"kind": "credential", "id": f"C{code}", "code": code, "entitlements": [f"E{number}"]},
    ]


def usage(seq: int, at: str, **fields: Any) -> Json:
    return {
        "kind": "usage",
        "gateway": "south",
        "epoch": 3,
        "seq": seq,
        "at": at,
        "point": "south-in",
        "from": "outside",
        "to": "hall",
        "guest": 0,
        "passage": "taken",
        **fields,
    }


OWN = {"holder": "H1", "entitlement": "E1", "credential": "CA"}


def event(id_: str, begin: str | None, end: str | None, tag: str = "vernissage", **fields: Any) -> Json:
    record = {"kind": "event", "id": id_, "tag": tag, **fields}
    if begin is not None:
        record["from"] = begin
    if end is not None:
        record["until"] = end
    return record


def limit(maximum: int, per: str, **fields: Any) -> Json:
    return {"max": maximum, "per": per, **fields}


def limited(*limits: Json, **fields: Any) -> Json:
    return {"areas": ["hall"], "limits": list(limits), **fields}


def granted(**fields: Any) -> Json:
    return {"verdict": "granted", **fields}


def denied(verdict: str, **fields: Any) -> Json:
    return {"verdict": verdict, "flags": [], "left": None, "guest": 0, **fields}


REPEAT: Json = {
    "verdict": "repeat",
    "detail": None,
    "flags": [],
    "credential": None,
    "holder": None,
    "entitlement": None,
    "product": None,
    "guest": 0,
    "left": None,
    "notice": None,
    "message": None,
}

EXAMPLE = [
    json.loads(line)
    for line in """
{"kind":"venue","timezone":"Europe/Berlin","day_starts":"04:00","language":"de"}
{"kind":"area","id":"hall","name":{"de":"Halle","en":"Hall"},"capacity":800}
{"kind":"area","id":"exh","name":{"de":"Ausstellung","en":"Exhibition"},"within":"hall"}
{"kind":"event","id":"v26","tag":"vernissage","areas":["hall"],"from":"2026-11-27T18:00:00+01:00",\
"until":"2026-11-27T22:00:00+01:00"}
{"kind":"product","id":"family","category":"membership","club":"friends","tier":"gold",\
"name":{"de":"Familie","en":"Family"},"benefits":[{"de":"10 % im Shop","en":"10 % in the shop"}],\
"grace_days":14,"rules":[{"areas":["hall"],"days":["tue","wed","thu","fri","sat","sun"],\
"hours":["10:00-18:00"],"except":["2026-12-24"],"limits":[{"max":1,"per":"day"}],"guests":1},\
{"areas":["hall"],"during":"vernissage","early_minutes":60,"guests":1}]}
{"kind":"holder","id":"H1","name":"A. Lind","language":"en","state":"active",\
"notice":{"en":"Your new card is at the desk"}}
{"kind":"entitlement","id":"E1","product":"family","holder":"H1","valid_from":"2026-01-01",\
"valid_until":"2026-12-31","state":"active"}
{"kind":"credential","id":"C1","code":"8K2MPX4T7Q","state":"active","entitlements":["E1"]}
{"kind":"credential","id":"C0","deleted":true}
{"kind":"usage","gateway":"south","epoch":3,"seq":991,"at":"2026-11-21T10:02:11+01:00","point":"south-in",\
"from":"outside","to":"hall","holder":"H1","entitlement":"E1","credential":"C1","guest":0,"passage":"taken"}
""".strip().split("\n")
]
C1 = "8K2MPX4T7Q"
CET = "+01:00"
CEST = "+02:00"
BERLIN = {"timezone": "Europe/Berlin"}
SPRING = "2026-03-29"
AUTUMN = "2026-10-25"

CASES: list[Case] = []


def case(
    name: str,
    records: list[Json],
    setup: Json,
    lines: list[Json],
    expect: list[Json],
    beyond_replay: bool = False,
) -> None:
    CASES.append(Case(name, records, setup, lines, expect, beyond_replay))


# --- the example feed of 4.1 --------------------------------------------------------------------------

case(
    "example: a member on an ordinary day, once a day, with a guest",
    EXAMPLE,
    PLAIN,
    [
        scan("10:00", C1, day="2026-11-25", offset=CET),
        scan("10:00:05", C1, day="2026-11-25", offset=CET),
        scan("10:00:10", C1, day="2026-11-25", offset=CET),
        scan("11:00", C1, day="2026-11-25", offset=CET),
    ],
    [
        {
            "at": "2026-11-25T10:00:00+01:00",
            "point": "in",
            "verdict": "granted",
            "detail": None,
            "flags": [],
            "credential": "C1",
            "holder": "H1",
            "entitlement": "E1",
            "product": "family",
            "guest": 0,
            "left": 0,
            "notice": "Your new card is at the desk",
        },
        granted(guest=1, entitlement="E1", product="family", left=0),
        denied("limit_reached", detail="2026-11-26T10:00:00+01:00"),
        denied("limit_reached", detail="2026-11-26T10:00:00+01:00"),
    ],
)
case(
    "example: the usage made elsewhere counts for its own day",
    EXAMPLE,
    PLAIN,
    [scan("11:00", C1, day="2026-11-21", offset=CET), scan("10:00", C1, day="2026-11-22", offset=CET)],
    [denied("limit_reached", detail="2026-11-22T10:00:00+01:00"), granted(left=0)],
)
case(
    "example: usage dated later than now has not happened yet",
    EXAMPLE,
    PLAIN,
    [scan("10:01", C1, day="2026-11-21", offset=CET), scan("10:03", C1, day="2026-11-21", offset=CET)],
    [granted(left=0), denied("limit_reached")],
)
case(
    "example: closed on Monday, the detail is Tuesday's opening",
    EXAMPLE,
    PLAIN,
    [scan("12:00", C1, day="2026-11-23", offset=CET)],
    [denied("not_at_this_time", detail="2026-11-24T10:00:00+01:00", entitlement="E1", product="family")],
)
case(
    "example: vernissage from 60 minutes before, with no limit",
    EXAMPLE,
    PLAIN,
    [
        scan("16:59", C1, day="2026-11-27", offset=CET),
        scan("17:00", C1, "south", day="2026-11-27", offset=CET),
        scan("18:30", C1, day="2026-11-27", offset=CET),
        scan("22:00", C1, "south", day="2026-11-27", offset=CET),
    ],
    [
        granted(left=0),
        granted(left=None),
        granted(left=None),
        denied("not_at_this_time", detail="2026-11-28T10:00:00+01:00"),
    ],
)
case(
    "example: expired in grace, through the 14th day, and to 04:00 of the next",
    EXAMPLE,
    PLAIN,
    [
        scan("12:00", C1, day="2026-12-31", offset=CET),
        scan("12:00", C1, day="2027-01-14", offset=CET),
        scan("12:00", C1, day="2027-01-15", offset=CET),
    ],
    [granted(flags=[]), granted(flags=["grace"]), denied("expired", detail=None)],
)
case(
    "example: excepted on 24 December",
    EXAMPLE,
    PLAIN,
    [scan("12:00", C1, day="2026-12-24", offset=CET)],
    [denied("not_at_this_time", detail="2026-12-25T10:00:00+01:00")],
)

# --- codes and credentials ----------------------------------------------------------------------------

case(
    "malformed: empty, over 512 bytes, control characters of category Cc",
    world(HALL),
    PLAIN,
    [
        scan("10:00", ""),
        scan("10:01", "x" * 513),
        scan("10:02", "é" * 257),
        scan("10:03", "A\x1d"),
        scan("10:04", "A\x85"),
        scan("10:05", "x" * 512),
        scan("10:06", "A\u200b"),
    ],
    [denied("malformed", credential=None)] * 5 + [denied("unknown_credential")] * 2,
)
case(
    "codes compare byte for byte: no trimming, no change of case",
    world(HALL),
    PLAIN,
    [scan("10:00", "a"), scan("10:01", "A "), scan("10:02", "A")],
    [denied("unknown_credential", credential=None)] * 2 + [granted(credential="CA")],
)
for state in ("lost", "revoked", "replaced"):
    case(
        f"a card that is {state}: revoked, detail {state}, with the first entitlement's holder",
        world(HALL, credential={"state": state}),
        PLAIN,
        [scan("10:00")],
        [denied("revoked", detail=state, credential="CA", holder="H1", entitlement=None, product=None)],
    )
case(
    "a lost card is revoked and a new one issued, and the membership stays intact",
    world(
        limited(limit(2, "day")),
        credential={"state": "lost"},
        extra=[
            {"kind": "credential", "id": "CN", "code": "NEW", "entitlements": ["E1"]},
            usage(1, t("08:00"), **OWN),
        ],
    ),
    PLAIN,
    [scan("10:00"), scan("10:01", "NEW"), scan("10:02", "NEW")],
    [denied("revoked", detail="lost"), granted(credential="CN", left=0), denied("limit_reached")],
)
case(
    "a later record takes the code, and it does not come back when the later goes",
    world(
        HALL,
        extra=[
            *person(2, "B"),
            {"kind": "credential", "id": "CC", "code": "A", "entitlements": ["E2"]},
            {"kind": "credential", "id": "CC", "code": "C", "entitlements": ["E2"]},
        ],
    ),
    PLAIN,
    [scan("10:00"), scan("10:01", "C")],
    [denied("unknown_credential"), granted(credential="CC", holder="H2")],
)
case(
    "a code belongs to one credential: the later record takes it",
    world(
        HALL, extra=[*person(2, "B"), {"kind": "credential", "id": "CC", "code": "A", "entitlements": ["E2"]}]
    ),
    PLAIN,
    [scan("10:00")],
    [granted(credential="CC", holder="H2", entitlement="E2")],
)
case(
    "a later record of the same kind and id replaces, deleted removes, unknown kinds are skipped",
    [
        {"kind": "credential", "id": "CA", "code": "OLD", "entitlements": ["E1"]},
        {"kind": "locker", "id": "L1"},
        *world(HALL, product={"colour": "red"}),
        *person(2, "B"),
        {"kind": "credential", "id": "CB", "deleted": True},
        {
            "kind": "product",
            "id": "P",
            "name": {"en": "Now"},
            "category": "pass",
            "rules": [{"areas": ["exh"]}],
        },
    ],
    PLAIN,
    [scan("10:00", "OLD"), scan("10:01", "B"), scan("10:02")],
    [denied("unknown_credential"), denied("unknown_credential"), denied("no_right")],
)
case(
    "a reference may come before what it names",
    list(reversed(world(HALL))),
    PLAIN,
    [scan("10:00")],
    [granted(credential="CA", holder="H1", entitlement="E1", product="P")],
)

# --- the entitlement ----------------------------------------------------------------------------------

case(
    "holder blocked comes before the entitlement's state",
    world(HALL, holder={"state": "blocked"}, entitlement={"state": "cancelled"}),
    PLAIN,
    [scan("10:00")],
    [denied("suspended", detail="blocked", entitlement="E1", product="P")],
)
for state in ("suspended", "cancelled"):
    case(
        f"an entitlement that is {state}: verdict suspended, detail {state}",
        world(HALL, entitlement={"state": state, "valid_from": "2027-01-01"}),
        PLAIN,
        [scan("10:00")],
        [denied("suspended", detail=state)],
    )
case(
    "not yet valid: the detail is when the whole rule would pass, not only valid_from",
    world(
        {"areas": ["hall"], "days": ["mon"], "hours": ["10:00-18:00"]},
        entitlement={"valid_from": "2026-12-01"},
    ),
    PLAIN,
    [scan("10:00")],
    [denied("not_yet_valid", detail="2026-12-07T10:00:00+00:00")],
)
case(
    "a date begins with its venue day and runs through it",
    world(
        HALL,
        venue={"day_starts": "04:00"},
        entitlement={"valid_from": "2026-11-24", "valid_until": "2026-11-24"},
    ),
    PLAIN,
    [
        scan("03:59:59"),
        scan("04:00:01"),
        scan("03:59:59", day=WED),
        scan("04:00:01", day=WED),
    ],
    [
        denied("not_yet_valid", detail="2026-11-24T04:00:00+00:00"),
        granted(),
        granted(),
        denied("expired", detail=None),
    ],
)
case(
    "an instant has an offset, and until is exclusive",
    world(HALL, entitlement={"valid_from": t("12:00", offset=CET), "valid_until": t("13:00", offset=CET)}),
    PLAIN,
    [scan("10:59:58"), scan("11:00"), scan("11:59:58"), scan("12:00")],
    [denied("not_yet_valid", detail="2026-11-24T11:00:00+00:00"), granted(), granted(), denied("expired")],
)
case(
    "a grace after an instant ends at the same local time so many days later, also over a clock change",
    world(
        HALL,
        venue=BERLIN,
        product={"grace_days": 2},
        entitlement={"valid_until": "2026-03-28T12:00:00+01:00"},
    ),
    PLAIN,
    [
        scan("11:59", day="2026-03-28", offset=CET),
        scan("12:00", day="2026-03-28", offset=CET),
        scan("11:59", day="2026-03-30", offset=CEST),
        scan("12:00", day="2026-03-30", offset=CEST),
    ],
    [granted(flags=[]), granted(flags=["grace"]), granted(flags=["grace"]), denied("expired")],
)
case(
    "a product without rules admits nowhere; so does a missing one",
    world(extra=[*person(2, "B", product="ghost")]),
    PLAIN,
    [scan("10:00"), scan("10:01", "B")],
    [denied("no_right", entitlement="E1"), denied("no_right", entitlement="E2")],
)
case(
    "a credential with no entitlement left: no_right, with no holder",
    world(HALL, credential={"entitlements": ["E9"]}),
    PLAIN,
    [scan("10:00")],
    [denied("no_right", credential="CA", holder=None, entitlement=None, product=None, detail=None)],
)
case(
    "the to-area is one of the rule's or lies within one; the point is one of the rule's",
    world(
        HALL,
        extra=[
            {
                "kind": "product",
                "id": "Q",
                "name": {"en": "Q"},
                "category": "pass",
                "rules": [{"areas": ["exh"]}, {"points": ["south"]}],
            },
            *person(2, "B", product="Q"),
        ],
    ),
    PLAIN,
    [
        scan("10:00", "A", "inner"),
        scan("10:01", "B"),
        scan("10:02", "B", "inner"),
        scan("10:03", "B", "south"),
    ],
    [granted(), denied("no_right"), granted(), granted()],
)

# --- when a rule holds --------------------------------------------------------------------------------

case(
    "hours: start inclusive, end exclusive",
    world({"areas": ["hall"], "hours": ["10:00-12:00", "14:00-24:00"]}),
    PLAIN,
    [
        scan("09:59:59"),
        scan("10:00:01"),
        scan("11:59:59"),
        scan("12:00:01"),
        scan("13:59:59"),
        scan("23:59:59"),
        scan("00:00:01", day=WED),
    ],
    [
        denied("not_at_this_time", detail="2026-11-24T10:00:00+00:00"),
        granted(),
        granted(),
        denied("not_at_this_time", detail="2026-11-24T14:00:00+00:00"),
        denied("not_at_this_time", detail="2026-11-24T14:00:00+00:00"),
        granted(),
        denied("not_at_this_time", detail="2026-11-25T10:00:00+00:00"),
    ],
)
case(
    "hours at their very edges",
    world({"areas": ["hall"], "hours": ["10:00-12:00"]}),
    PLAIN,
    [scan("10:00"), scan("12:00")],
    [granted(), denied("not_at_this_time")],
)
case(
    "hours may cross midnight; with day_starts 00:00 a rule over midnight needs both days",
    world({"areas": ["hall"], "days": ["fri"], "hours": ["22:00-02:00"]}),
    PLAIN,
    [
        scan("01:00", day="2026-11-27"),
        scan("23:00", day="2026-11-27"),
        scan("01:00", day="2026-11-28"),
    ],
    [granted(), granted(), denied("not_at_this_time", detail="2026-12-04T00:00:00+00:00")],
)
case(
    "with day_starts 04:00, 01:30 on Saturday belongs to Friday",
    world({"areas": ["hall"], "days": ["fri"], "hours": ["22:00-02:00"]}, venue={"day_starts": "04:00"}),
    PLAIN,
    [
        scan("01:30", day="2026-11-27"),
        scan("23:00", day="2026-11-27"),
        scan("01:30", day="2026-11-28"),
        scan("02:00", day="2026-11-28"),
    ],
    [
        denied("not_at_this_time", detail="2026-11-27T22:00:00+00:00"),
        granted(),
        granted(),
        denied("not_at_this_time", detail="2026-12-04T22:00:00+00:00"),
    ],
)
case(
    "a rule's from and until: a date is a venue day, until runs through it",
    world({"areas": ["hall"], "from": "2026-11-24", "until": "2026-11-24"}, venue={"day_starts": "04:00"}),
    PLAIN,
    [scan("03:59"), scan("04:00"), scan("03:59", day=WED), scan("04:00", day=WED)],
    [
        denied("not_at_this_time", detail="2026-11-24T04:00:00+00:00"),
        granted(),
        granted(),
        denied("not_at_this_time", detail=None),
    ],
)
case(
    "during: an event with that tag, in that area, is on, or begins within so many minutes",
    world(
        {"areas": ["hall"], "during": "vernissage", "early_minutes": 30},
        extra=[
            event("x", t("09:00"), t("20:00"), tag="concert"),
            event("y", t("09:00"), t("20:00"), areas=["yard"]),
            event("v", t("18:00"), t("20:00"), areas=["hall"]),
        ],
    ),
    PLAIN,
    [scan("17:29:59"), scan("17:30:01"), scan("19:59:59"), scan("20:00:01")],
    [
        denied("not_at_this_time", detail="2026-11-24T17:30:00+00:00"),
        granted(),
        granted(),
        denied("not_at_this_time", detail=None),
    ],
)
case(
    "an event is on in its areas and in those that lie within them, not in the ones around",
    world(
        {"during": "vernissage"},
        extra=[event("v", t("18:00"), t("20:00"), areas=["exh"])],
    ),
    PLAIN,
    [scan("18:30"), scan("18:31", point="inner")],
    [denied("not_at_this_time", detail=None), granted()],
)
case(
    "while an exclusive event is on, only rules during its tag hold there",
    world(
        HALL,
        extra=[
            event("v", t("18:00"), t("20:00"), areas=["hall"], exclusive=True),
            {
                "kind": "product",
                "id": "Q",
                "category": "membership",
                "name": {"en": "Patron"},
                "rules": [{"areas": ["hall"], "during": "vernissage", "early_minutes": 60}],
            },
            *person(2, "B", product="Q"),
        ],
    ),
    PLAIN,
    [
        scan("17:30"),
        scan("17:31", "B"),
        scan("18:00"),
        scan("18:01", "B"),
        scan("18:02", point="inner"),
        scan("20:00"),
    ],
    [
        granted(),
        granted(),
        denied("not_at_this_time", detail="2026-11-24T20:00:00+00:00"),
        granted(),
        denied("not_at_this_time", detail="2026-11-24T20:00:00+00:00"),
        granted(),
    ],
)
case(
    "a closed lane refuses entries, unless bypassed; exits stay open",
    world(
        HALL,
        extra=[
            {
                "kind": "product",
                "id": "S",
                "category": "pass",
                "name": {"en": "Staff"},
                "rules": [{"bypass": ["closed"]}],
            },
            *person(2, "B", product="S"),
        ],
    ),
    PLAIN,
    [
        mode("09:59", "closed"),
        scan("10:00"),
        scan("10:01", "B"),
        scan("10:02", point="out"),
        mode("10:03", "normal"),
        scan("10:04"),
    ],
    [denied("lane_closed", detail=None), granted(), granted(), granted()],
    beyond_replay=True,
)

# --- again_after and limits ---------------------------------------------------------------------------

case(
    "again_after_minutes since this entitlement's last entry to the rule's areas",
    world({"areas": ["hall"], "again_after_minutes": 30}, extra=[usage(1, t("09:45"), **OWN)]),
    PLAIN,
    [scan("10:00"), scan("10:14:58"), scan("10:15"), scan("10:44")],
    [
        denied("too_soon", detail="2026-11-24T10:15:00+00:00"),
        denied("too_soon"),
        granted(),
        denied("too_soon", detail="2026-11-24T10:45:00+00:00"),
    ],
)
case(
    "again_after_minutes: guests' entries aside",
    world(
        {"areas": ["hall"], "again_after_minutes": 30},
        extra=[usage(1, t("09:00"), **OWN), usage(2, t("09:50"), **{**OWN, "guest": 1})],
    ),
    PLAIN,
    [scan("10:00")],
    [granted()],
)
case(
    "again_after past closing: the detail is the next opening",
    world({"areas": ["hall"], "again_after_minutes": 60, "hours": ["10:00-18:00"]}),
    PLAIN,
    [scan("17:30"), scan("17:45")],
    [granted(), denied("too_soon", detail="2026-11-25T10:00:00+00:00")],
)
case(
    "per hour: less than 60 minutes ago",
    world(limited(limit(2, "hour"))),
    PLAIN,
    [scan("10:00"), scan("10:30"), scan("10:59:58"), scan("11:00"), scan("11:10")],
    [
        granted(left=1),
        granted(left=0),
        denied("limit_reached", detail="2026-11-24T11:00:00+00:00"),
        granted(left=0),
        denied("limit_reached", detail="2026-11-24T11:30:00+00:00"),
    ],
)
case(
    "per day is the venue day",
    world(limited(limit(1, "day")), venue={"day_starts": "04:00"}),
    PLAIN,
    [scan("23:00"), scan("01:00", day=WED), scan("04:00", day=WED)],
    [granted(left=0), denied("limit_reached", detail="2026-11-25T04:00:00+00:00"), granted(left=0)],
)
case(
    "weeks begin on Monday",
    world(limited(limit(1, "week"))),
    PLAIN,
    [scan("10:00"), scan("23:59", day="2026-11-29"), scan("00:00", day="2026-11-30")],
    [granted(), denied("limit_reached", detail="2026-11-30T00:00:00+00:00"), granted()],
)
case(
    "per month and per year, by venue days",
    world(limited(limit(2, "month"), limit(3, "year")), venue={"day_starts": "04:00"}),
    PLAIN,
    [
        scan("10:00"),
        scan("10:00", day=WED),
        scan("02:00", day="2026-12-01"),
        scan("04:00", day="2026-12-01"),
        scan("05:00", day="2026-12-01"),
        scan("03:59", day="2027-01-01"),
        scan("04:00", day="2027-01-01"),
    ],
    [
        granted(left=1),
        granted(left=0),
        denied("limit_reached", detail="2026-12-01T04:00:00+00:00"),
        granted(left=0),
        denied("limit_reached", detail="2027-01-01T04:00:00+00:00"),
        denied("limit_reached"),
        granted(left=1),
    ],
)
case(
    "per event: the one that during found, from its beginning less early_minutes",
    world(
        {"areas": ["hall"], "during": "vernissage", "early_minutes": 30, "limits": [limit(1, "event")]},
        extra=[
            event("v1", t("12:00"), t("13:00")),
            event("v2", t("15:00"), t("16:00")),
            usage(1, t("11:29"), **OWN),
        ],
    ),
    PLAIN,
    [scan("11:30"), scan("12:30"), scan("14:30"), scan("15:59")],
    [
        granted(left=0),
        denied("limit_reached", detail="2026-11-24T14:30:00+00:00"),
        granted(left=0),
        denied("limit_reached", detail=None),
    ],
)
case(
    "of several events with one tag the one that begins first is the one found",
    world(
        {"areas": ["hall"], "during": "vernissage", "limits": [limit(1, "event")]},
        extra=[
            event("v2", t("12:00"), t("16:00")),
            event("v1", t("10:00"), t("14:00")),
            usage(1, t("10:30"), **OWN),
        ],
    ),
    PLAIN,
    [scan("12:30"), scan("14:00")],
    [denied("limit_reached", detail="2026-11-24T14:00:00+00:00"), granted(left=0)],
)
case(
    "per term: since valid_from; entries replaces the max of term items",
    world(
        limited(limit(1, "term"), limit(5, "day")),
        entitlement={"valid_from": "2026-11-24", "entries": 3},
        extra=[
            usage(1, t("23:00", "2026-11-23"), **OWN),
            {"kind": "usage", "id": "old", "at": t("07:00"), "to": "hall", "entitlement": "E1", "entries": 2},
        ],
    ),
    PLAIN,
    [scan("10:00"), scan("11:00")],
    [granted(left=0), denied("limit_reached", detail=None)],
)
case(
    "left is of the tightest limit; null where the rule states none; minutes are left aside",
    world(limited(limit(9, "year"), limit(4, "day"), {"minutes": 30, "per": "day"})),
    PLAIN,
    [scan("10:00"), scan("10:10")],
    [granted(left=3), granted(left=2)],
)
case(
    "count days: on a day that counts already, more entries are free",
    world(limited(limit(2, "week", count="days"))),
    PLAIN,
    [
        scan("10:00"),
        scan("11:00"),
        scan("10:00", day=WED),
        scan("11:00", day=WED),
        scan("10:00", day="2026-11-26"),
    ],
    [
        granted(left=1),
        granted(left=1),
        granted(left=0),
        granted(left=0),
        denied("limit_reached", detail="2026-11-30T00:00:00+00:00"),
    ],
)
case(
    "minutes run out when so many have passed since the period's first entry",
    world(limited({"minutes": 60, "per": "day"})),
    PLAIN,
    [scan("10:00"), scan("10:30"), scan("10:59:58"), scan("11:00")],
    [granted(left=None), granted(), granted(), denied("limit_reached", detail="2026-11-25T00:00:00+00:00")],
)
case(
    "counted are own entries into the rule's areas from outside them, whatever their rule",
    world(
        {"areas": ["hall"], "hours": ["08:00-12:00"]},
        limited(limit(1, "day")),
        extra=[usage(1, t("07:00"), **{**OWN, "from": "hall", "to": "exh"})],
    ),
    PLAIN,
    [scan("10:00"), scan("13:00")],
    [granted(left=None), denied("limit_reached")],
)
case(
    "a move from one of a rule's areas to another is no entry: nothing is asked, nothing is counted",
    world(limited(limit(1, "day"), again_after_minutes=600)),
    PLAIN,
    [
        scan("10:00"),
        scan("10:10", point="inner"),
        scan("10:20", point="inner-out"),
        scan("10:30", point="inner"),
    ],
    [granted(left=0), granted(left=0), granted(entitlement=None), granted(left=0)],
)
case(
    "an event uploaded late by another gate takes its place by its own time",
    world(
        limited(limit(1, "day")),
        extra=[usage(1, t("23:59", "2026-11-23"), **OWN), usage(2, t("12:00"), **OWN)],
    ),
    PLAIN,
    [scan("11:00"), scan("12:00:01")],
    [granted(left=0), denied("limit_reached")],
)
case(
    "not_taken annuls a usage, and the same again replaces it",
    world(
        limited(limit(1, "day")),
        extra=[usage(1, t("09:00"), **OWN), {**usage(1, t("09:00"), **OWN), "passage": "not_taken"}],
    ),
    PLAIN,
    [scan("10:00")],
    [granted(left=0)],
)
case(
    "the same usage twice counts once; another gateway's same number is another",
    world(
        limited(limit(3, "day")),
        extra=[
            usage(1, t("09:00"), **OWN),
            usage(1, t("09:00"), **OWN),
            {**usage(1, t("09:05"), **OWN), "gateway": "west"},
        ],
    ),
    PLAIN,
    [scan("10:00")],
    [granted(left=0)],
)
case(
    "renewal extends the membership: entries before do not count for the new term",
    world(
        limited(limit(1, "term")),
        entitlement={"valid_from": "2026-11-01", "valid_until": "2027-10-31"},
        extra=[usage(1, t("12:00", "2026-10-31"), **OWN)],
    ),
    PLAIN,
    [scan("10:00"), scan("10:10")],
    [granted(left=0), denied("limit_reached", detail=None)],
)

# --- the days when clocks change ----------------------------------------------------------------------

case(
    "spring: a local time that the clock jumps over begins at the jump",
    world(limited(limit(1, "day")), venue={**BERLIN, "day_starts": "02:30"}),
    PLAIN,
    [
        scan("01:59", day=SPRING, offset=CET),
        scan("01:59:30", day=SPRING, offset=CET),
        scan("03:00", day=SPRING, offset=CEST),
        scan("02:29", day="2026-03-30", offset=CEST),
        scan("02:30", day="2026-03-30", offset=CEST),
    ],
    [
        granted(),
        denied("limit_reached", detail="2026-03-29T03:00:00+02:00"),
        granted(),
        denied("limit_reached", detail="2026-03-30T02:30:00+02:00"),
        granted(),
    ],
)
case(
    "autumn: a local time that comes twice begins at the first",
    world(limited(limit(1, "day")), venue={**BERLIN, "day_starts": "02:30"}),
    PLAIN,
    [
        scan("02:29", day=AUTUMN, offset=CEST),
        scan("02:29:30", day=AUTUMN, offset=CEST),
        scan("02:30", day=AUTUMN, offset=CEST),
        scan("02:29", day=AUTUMN, offset=CET),
        scan("02:31", day=AUTUMN, offset=CET),
    ],
    [
        granted(),
        denied("limit_reached", detail="2026-10-25T02:30:00+02:00"),
        granted(),
        denied("limit_reached", detail="2026-10-26T02:30:00+01:00"),
        denied("limit_reached"),
    ],
)
case(
    "spring: hours that cross midnight, on the clock, lose the hour that is not there",
    world({"areas": ["hall"], "hours": ["22:00-02:30"]}, venue=BERLIN),
    PLAIN,
    [
        scan("23:00", day="2026-03-28", offset=CET),
        scan("01:59", day=SPRING, offset=CET),
        scan("03:00", day=SPRING, offset=CEST),
        scan("22:00", day=SPRING, offset=CEST),
    ],
    [granted(), granted(), denied("not_at_this_time", detail="2026-03-29T22:00:00+02:00"), granted()],
)
case(
    "spring: a span whose beginning is jumped over holds from the jump",
    world({"areas": ["hall"], "hours": ["02:30-03:30"]}, venue=BERLIN),
    PLAIN,
    [
        scan("01:59", day=SPRING, offset=CET),
        scan("03:00", day=SPRING, offset=CEST),
        scan("03:30", day=SPRING, offset=CEST),
    ],
    [
        denied("not_at_this_time", detail="2026-03-29T03:00:00+02:00"),
        granted(),
        denied("not_at_this_time", detail="2026-03-30T02:30:00+02:00"),
    ],
)
case(
    "autumn: hours that cross midnight hold in both runs of the hour, by the clock",
    world({"areas": ["hall"], "hours": ["22:00-02:30"]}, venue=BERLIN),
    PLAIN,
    [
        scan("02:29", day=AUTUMN, offset=CEST),
        scan("02:45", day=AUTUMN, offset=CEST),
        scan("02:10", day=AUTUMN, offset=CET),
        scan("02:30", day=AUTUMN, offset=CET),
    ],
    [
        granted(),
        denied("not_at_this_time", detail="2026-10-25T02:00:00+01:00"),
        granted(),
        denied("not_at_this_time", detail="2026-10-25T22:00:00+01:00"),
    ],
)
case(
    "autumn: an hour is 60 minutes, whatever the clock shows",
    world(limited(limit(1, "hour")), venue=BERLIN),
    PLAIN,
    [
        scan("02:30", day=AUTUMN, offset=CEST),
        scan("02:20", day=AUTUMN, offset=CET),
        scan("02:30", day=AUTUMN, offset=CET),
    ],
    [granted(), denied("limit_reached", detail="2026-10-25T02:30:00+01:00"), granted()],
)
case(
    "the day of the change is one day for per-day limits: 23 hours in spring, 25 in autumn",
    world(limited(limit(1, "day")), venue=BERLIN),
    PLAIN,
    [
        scan("00:00", day=SPRING, offset=CET),
        scan("23:59", day=SPRING, offset=CEST),
        scan("00:00", day=AUTUMN, offset=CEST),
        scan("23:59", day=AUTUMN, offset=CET),
        scan("00:00", day="2026-10-26", offset=CET),
    ],
    [
        granted(),
        denied("limit_reached", detail="2026-03-30T00:00:00+02:00"),
        granted(),
        denied("limit_reached", detail="2026-10-26T00:00:00+01:00"),
        granted(),
    ],
)
case(
    "Lord Howe moves by half an hour: 02:15 is jumped over, the day begins at 02:30",
    world(limited(limit(1, "day")), venue={"timezone": "Australia/Lord_Howe", "day_starts": "02:15"}),
    PLAIN,
    [
        scan("01:59", day="2026-10-04", offset="+10:30"),
        scan("01:59:30", day="2026-10-04", offset="+10:30"),
        scan("02:30", day="2026-10-04", offset="+11:00"),
    ],
    [granted(), denied("limit_reached", detail="2026-10-04T02:30:00+11:00"), granted()],
)

# --- guests -------------------------------------------------------------------------------------------

TWO_GUESTS = {"areas": ["hall"], "guests": 2, "limits": [limit(1, "day")]}

case(
    "guests: at most guest_window_s ago, each guest beginning the window anew, then no more",
    world(TWO_GUESTS),
    PLAIN,
    [scan("10:00:00"), scan("10:00:30"), scan("10:01:00"), scan("10:01:10")],
    [granted(guest=0, left=0), granted(guest=1, left=0, flags=[]), granted(guest=2), denied("limit_reached")],
)
case(
    "guests: the window is over after guest_window_s",
    world(TWO_GUESTS),
    PLAIN,
    [scan("10:00:00"), scan("10:00:30.001")],
    [granted(), denied("limit_reached")],
)
case(
    "guests: the point's own window, and only at the point of the entry",
    world(TWO_GUESTS),
    config(guest_window_s=5),
    [scan("10:00:00"), scan("10:00:02", point="south"), scan("10:00:05"), scan("10:00:11")],
    [granted(), denied("limit_reached"), granted(guest=1), denied("limit_reached")],
)
case(
    "entitlement.guests replaces the number in rules that state guests",
    world(TWO_GUESTS, entitlement={"guests": 1}),
    PLAIN,
    [scan("10:00:00"), scan("10:00:05"), scan("10:00:10")],
    [granted(), granted(guest=1), denied("limit_reached")],
)
case(
    "entitlement.guests gives nothing to rules that state none",
    world(limited(limit(1, "day")), entitlement={"guests": 5}),
    PLAIN,
    [scan("10:00:00"), scan("10:00:05")],
    [granted(), denied("limit_reached")],
)
case(
    "guest_limits count guests, limits do not",
    world({"areas": ["hall"], "guests": 1, "guest_limits": [limit(1, "day")], "limits": [limit(2, "day")]}),
    PLAIN,
    [scan("10:00:00"), scan("10:00:05"), scan("11:00:00"), scan("11:00:05"), scan("10:00", day=WED)],
    [
        granted(left=1),
        granted(guest=1, left=1),
        granted(left=0, guest=0),
        denied("limit_reached", detail="2026-11-25T00:00:00+00:00"),
        granted(left=1),
    ],
)
case(
    "guests of one entry all count against the number of the rule asked, whichever let them in",
    world(
        {"areas": ["hall"], "guests": 1},
        {"areas": ["hall"], "guests": 2, "limits": [limit(7, "day")]},
    ),
    PLAIN,
    [scan("10:00:00"), scan("10:00:05"), scan("10:00:10"), scan("10:00:15")],
    [granted(guest=0), granted(guest=1, left=None), granted(guest=2, left=6), granted(guest=0)],
)
case(
    "the guest's rule must have held at the time of the entry, not of the guest",
    world({"areas": ["hall"], "hours": ["10:00-12:00"], "guests": 1}),
    PLAIN,
    [scan("11:59:50"), scan("12:00:10"), scan("12:00:20")],
    [granted(), granted(guest=1), denied("not_at_this_time")],
)
case(
    "a guest is not asked anti-passback, but capacity, standing in the point's from-area",
    world({"areas": ["hall"], "guests": 2}, hall={"capacity": 2}),
    config(anti_passback="hard"),
    [scan("10:00:00"), scan("10:00:05"), scan("10:00:10")],
    [granted(), granted(guest=1), denied("area_full", entitlement="E1", product="P")],
)
case(
    "a guest given back by not_taken leaves room for another",
    world({"areas": ["hall"], "guests": 1, "limits": [limit(1, "day")]}),
    SENSOR,
    [
        scan("10:00:00"),
        went("10:00:01"),
        scan("10:00:05"),
        went("10:00:06", "not_taken"),
        scan("10:00:10"),
        went("10:00:11"),
        scan("10:00:20"),
    ],
    [granted(), granted(guest=1), granted(guest=1), denied("limit_reached")],
)
case(
    "an own entry given back by not_taken brings no guests",
    world({"areas": ["hall"], "guests": 1}),
    SENSOR,
    [scan("10:00:00"), went("10:00:01", "not_taken"), scan("10:00:05")],
    [granted(guest=0), granted(guest=0)],
)
case(
    "another card of the same holder brings the guest, for the window follows the holder",
    world(
        {"areas": ["hall"], "guests": 1, "limits": [limit(1, "day")]},
        extra=[{"kind": "credential", "id": "CX", "code": "X", "entitlements": ["E1"]}],
    ),
    PLAIN,
    [scan("10:00:00"), scan("10:00:01", "X")],
    [granted(credential="CA", guest=0), granted(credential="CX", guest=1)],
)

# --- anti-passback and presence -----------------------------------------------------------------------

case(
    "hard refuses a holder who is already in the to-area; after the exit it is good again",
    world(HALL),
    config(anti_passback="hard"),
    [scan("10:00"), scan("10:10"), scan("10:11", point="south"), scan("10:20", point="out"), scan("10:30")],
    [granted(), denied("passback", detail=None, entitlement="E1"), denied("passback"), granted(), granted()],
)
case(
    "soft grants with flag passback",
    world(HALL, product={"attention": True}),
    config(anti_passback="soft"),
    [scan("10:00"), scan("10:10")],
    [granted(flags=["attention"]), granted(flags=["passback", "attention"])],
)
case(
    "timed is as hard for anti_passback_minutes after the last entry",
    world(HALL),
    config(anti_passback="timed", anti_passback_minutes=15),
    [scan("10:00"), scan("10:14:58"), scan("10:15"), scan("10:29")],
    [granted(), denied("passback"), granted(flags=[]), denied("passback")],
)
case(
    "bypass passback is not asked of this rule's holders",
    world({"areas": ["hall"], "bypass": ["passback"]}),
    config(anti_passback="hard"),
    [scan("10:00"), scan("10:10")],
    [granted(flags=[]), granted(flags=[])],
)
case(
    "presence follows the holder, not the credential",
    world(HALL, extra=[{"kind": "credential", "id": "CX", "code": "X", "entitlements": ["E1"]}]),
    config(anti_passback="hard"),
    [scan("10:00"), scan("10:10", "X"), scan("10:20", "X", "out"), scan("10:30")],
    [granted(), denied("passback"), granted(), granted()],
)
case(
    "an entitlement without a holder belongs to whoever carries the credential",
    world(
        HALL,
        extra=[
            {"kind": "entitlement", "id": "E1", "product": "P"},
            {"kind": "credential", "id": "CX", "code": "X", "entitlements": ["E1"]},
        ],
    ),
    config(anti_passback="hard"),
    [scan("10:00"), scan("10:10", "X"), scan("10:20", "X")],
    [granted(holder=None), granted(holder=None), denied("passback")],
)
case(
    "who is in an area is also in every area that it lies within",
    world(HALL),
    config(anti_passback="hard"),
    [scan("10:00"), scan("10:05", point="inner"), scan("10:10", point="south"), scan("10:15", point="inner")],
    [granted(), granted(), denied("passback"), denied("passback")],
)
case(
    "presence lasts until the venue day in which it began ends",
    world(HALL, venue={"day_starts": "04:00"}),
    config(anti_passback="hard"),
    [scan("23:00"), scan("03:59:58", day=WED), scan("04:00", day=WED)],
    [granted(), denied("passback"), granted()],
)
case(
    "or for the area's presence_hours",
    world(HALL, hall={"presence_hours": 30}),
    config(anti_passback="hard"),
    [scan("10:00"), scan("15:59", day=WED), scan("16:00", day=WED)],
    [granted(), denied("passback"), granted()],
)
case(
    "presence comes from usage too, and an exit elsewhere ends it",
    world(
        HALL,
        extra=[
            usage(1, t("09:00"), **OWN),
            usage(2, t("10:30"), **{**OWN, "from": "hall", "to": "outside", "point": "south-out"}),
        ],
    ),
    config(anti_passback="hard"),
    [scan("10:00"), scan("11:00")],
    [denied("passback"), granted()],
)

# --- occupancy and capacity ---------------------------------------------------------------------------

case(
    "capacity of the to-area; an exit makes room",
    world(HALL, hall={"capacity": 1}, extra=person(2, "B")),
    PLAIN,
    [scan("10:00"), scan("10:01", "B"), scan("10:02", point="out"), scan("10:03", "B")],
    [granted(), denied("area_full", detail=None, entitlement="E2"), granted(), granted()],
)
case(
    "capacity of every area it lies within",
    world(HALL, {"areas": ["exh"]}, hall={"capacity": 1}, extra=person(2, "B")),
    {
        **PLAIN,
        "lane": [*PLAIN["lane"], {"name": "side", "relay": {"driver": "memory"}}],
        "point": [*PLAIN["point"], {"name": "side", "lane": "side", "from": "outside", "to": "exh"}],
    },
    [scan("10:00"), scan("10:01", "B", "side")],
    [granted(), denied("area_full")],
)
case(
    "unless already in there",
    world(HALL, hall={"capacity": 1}, exh={"capacity": 1}, extra=person(2, "B")),
    PLAIN,
    [scan("10:00"), scan("10:01", point="inner"), scan("10:02", point="south"), scan("10:03", "B", "inner")],
    [granted(), granted(), granted(), denied("area_full")],
)
case(
    "bypass capacity is not asked",
    world({"areas": ["hall"], "bypass": ["capacity"]}, hall={"capacity": 0}),
    PLAIN,
    [scan("10:00")],
    [granted()],
)
case(
    "usage without holder and credential counts a head unless it names an entitlement",
    world(
        HALL,
        hall={"capacity": 3},
        extra=[
            {"kind": "usage", "id": "u1", "at": t("08:00"), "to": "hall", "entries": 2},
            {"kind": "usage", "id": "u2", "at": t("08:01"), "to": "hall", "entitlement": "E7", "entries": 5},
            *person(2, "B"),
        ],
    ),
    PLAIN,
    [scan("10:00"), scan("10:01", "B")],
    [granted(), denied("area_full")],
)
case(
    "at an exit a card whose holder is already outside takes out one of the guests",
    world({"areas": ["hall"], "guests": 1}, hall={"capacity": 2}, extra=person(2, "B")),
    PLAIN,
    [
        scan("10:00:00"),
        scan("10:00:05"),
        scan("10:01", "B"),
        scan("10:02", point="out"),
        scan("10:03", "B"),
        scan("10:04", "B", "out"),
        scan("10:05", point="out"),
        scan("10:06", "B"),
        scan("10:07"),
    ],
    [
        granted(guest=0),
        granted(guest=1),
        denied("area_full"),
        granted(),
        granted(),
        granted(),
        granted(),
        granted(),
        granted(),
    ],
)
case(
    "an unknown card at an exit takes out a head first, else one of the holders from the count",
    world(HALL, hall={"capacity": 1}, extra=[*person(2, "B"), *person(3, "C")]),
    PLAIN,
    [
        scan("10:00"),
        scan("10:01", "B"),
        scan("10:02", "nobody", "out"),
        scan("10:03", "B"),
        scan("10:04", "C"),
    ],
    [
        granted(),
        denied("area_full"),
        granted(credential=None, holder=None, entitlement=None),
        granted(),
        denied("area_full"),
    ],
)
case(
    "occupancy is never below zero",
    world(HALL, hall={"capacity": 1}, extra=person(2, "B")),
    PLAIN,
    [scan("10:00", "nobody", "out"), scan("10:01", "none", "out"), scan("10:02"), scan("10:03", "B")],
    [granted(), granted(), granted(), denied("area_full")],
)
case(
    "presence that ends makes room, for holders and for heads",
    world(
        HALL,
        hall={"capacity": 1},
        extra=[{"kind": "usage", "id": "u1", "at": t("20:00"), "to": "hall"}, *person(2, "B")],
    ),
    PLAIN,
    [
        scan("23:59:58"),
        scan("00:00", day=WED),
        scan("00:01", "B", day=WED),
        scan("00:01", "B", day="2026-11-26"),
    ],
    [denied("area_full"), granted(), denied("area_full"), granted()],
)

# --- between grant and passage ------------------------------------------------------------------------

case(
    "a pending entry counts for limits at once, and the time-out gives it back",
    world(limited(limit(1, "day"))),
    SENSOR,
    [scan("10:00:00"), scan("10:00:03", point="south"), scan("10:00:05.001", point="south")],
    [granted(left=0), denied("limit_reached"), granted(left=0)],
)
case(
    "not reported within timeout_s: at the deadline itself it is still pending",
    world(limited(limit(1, "day"))),
    SENSOR,
    [scan("10:00:00"), scan("10:00:05", point="south"), went("10:00:05"), scan("10:05")],
    [granted(), denied("limit_reached"), denied("limit_reached")],
)
case(
    "not_taken gives everything back",
    world(limited(limit(1, "day"), again_after_minutes=60)),
    config(sensor=True, anti_passback="hard"),
    [scan("10:00:00"), went("10:00:02", "not_taken"), scan("10:00:03")],
    [granted(left=0), granted(left=0)],
)
case(
    "the same grant again: the same answer, the time-out begins anew, nothing is counted twice",
    world(limited(limit(1, "day"), again_after_minutes=60)),
    config(sensor=True, anti_passback="hard"),
    [
        scan("10:00:00"),
        scan("10:00:04"),
        scan("10:00:08"),
        went("10:00:12"),
        scan("10:00:20"),
        scan("11:00:00"),
    ],
    [
        granted(left=0, guest=0),
        granted(left=0, guest=0, entitlement="E1", detail=None),
        granted(left=0),
        denied("too_soon", detail="2026-11-25T00:00:00+00:00"),
        denied("limit_reached"),
    ],
)
case(
    "a pending holder is refused by the anti-passback of another point into the same area",
    world(HALL),
    config(sensor=True, anti_passback="hard"),
    [scan("10:00:00"), scan("10:00:02", point="south"), scan("10:00:06", point="south")],
    [granted(), denied("passback"), granted()],
)
case(
    "a pending holder's scan is a guest if one is left, else the same grant again",
    world({"areas": ["hall"], "guests": 1}),
    config(sensor=True, anti_passback="hard"),
    [scan("10:00:00"), scan("10:00:02"), scan("10:00:04")],
    [granted(guest=0), granted(guest=1), granted(guest=0)],
)
case(
    "pending exits do not count yet",
    world(HALL, hall={"capacity": 1}, extra=person(2, "B")),
    SENSOR,
    [
        scan("10:00:00"),
        went("10:00:01"),
        scan("10:10:00", point="out"),
        scan("10:10:02", "B"),
        went("10:10:03", point="out"),
        scan("10:10:10", "B"),
    ],
    [granted(), granted(), denied("area_full"), granted()],
)
case(
    "a pending entry counts for capacity",
    world(HALL, hall={"capacity": 1}, extra=person(2, "B")),
    SENSOR,
    [scan("10:00:00"), scan("10:00:02", "B", "south"), scan("10:00:06", "B", "south")],
    [granted(), denied("area_full"), granted()],
)
case(
    "a passage answers the oldest pending grant; each has its own deadline",
    world(limited(limit(1, "day")), extra=person(2, "B")),
    SENSOR,
    [
        scan("10:00:00"),
        scan("10:00:03", "B"),
        went("10:00:04"),
        scan("10:00:09"),
        scan("10:00:10", "B"),
    ],
    [granted(holder="H1"), granted(holder="H2"), denied("limit_reached"), granted(left=0)],
)
case(
    "a passage without a grant is forced and counts a head",
    world(HALL, hall={"capacity": 1}),
    SENSOR,
    [went("10:00:00"), scan("10:00:10"), went("10:00:20", point="out"), scan("10:00:30")],
    [denied("area_full"), granted()],
)
case(
    "a forced passage answers the direction it was in: an exit's passage does not answer an entry's grant",
    world(limited(limit(1, "day"))),
    SENSOR,
    [scan("10:00:00"), went("10:00:01", point="out"), scan("10:00:10")],
    [granted(), granted()],
)
case(
    "passages are assumed where the lane has no sensor, and its passage lines mean nothing",
    world(limited(limit(1, "day")), hall={"capacity": 2}, extra=[*person(2, "B"), *person(3, "C")]),
    PLAIN,
    [
        scan("10:00:00"),
        went("10:00:01", "not_taken"),
        went("10:00:02"),
        scan("10:00:10"),
        scan("10:00:20", "B"),
    ],
    [granted(), denied("limit_reached"), granted()],
)

# --- repeats ------------------------------------------------------------------------------------------

case(
    "a scan less than repeat_delay_s after the last scan of that code is the same scan",
    world(HALL),
    PLAIN,
    [scan("10:00:00"), scan("10:00:01.499"), scan("10:00:02.998"), scan("10:00:04.498")],
    [granted(), REPEAT, REPEAT, granted()],
)
case(
    "repeats: whatever its verdict was, but for that code at that reader",
    world(HALL, extra=person(2, "B")),
    PLAIN,
    [
        scan("10:00:00", "x"),
        scan("10:00:00.500"),
        scan("10:00:01", "x"),
        scan("10:00:01.100", "B"),
        scan("10:00:01.200", point="south"),
        scan("10:00:01.300"),
    ],
    [denied("unknown_credential"), granted(), REPEAT, granted(), granted(), REPEAT],
)
case(
    "a reader's own repeat_delay_s",
    world(HALL),
    {
        **PLAIN,
        "reader": [
            {"name": "r", "point": "in", "driver": "stdin", "device": "-", "repeat_delay_s": 3},
        ],
    },
    [scan("10:00:00"), scan("10:00:02.900"), scan("10:00:05.900")],
    [granted(), REPEAT, granted()],
)

# --- exits --------------------------------------------------------------------------------------------

case(
    "at an exit any known credential is granted whatever its state",
    world(
        HALL,
        credential={"state": "revoked"},
        holder={"state": "blocked", "notice": "Desk"},
        entitlement={"state": "cancelled"},
    ),
    PLAIN,
    [scan("10:00", point="out"), scan("10:01", point="inner-out"), scan("10:02", point="inner")],
    [
        granted(
            credential="CA", holder="H1", entitlement=None, product=None, left=None, flags=[], notice="Desk"
        ),
        granted(credential="CA"),
        denied("revoked", detail="revoked"),
    ],
)
case(
    "an unknown one follows unknown_at_exit: open",
    world(HALL),
    PLAIN,
    [scan("10:00", "nobody", "out")],
    [granted(credential=None, holder=None, entitlement=None, product=None, guest=0, left=None)],
)
case(
    "an unknown one follows unknown_at_exit: deny",
    world(HALL),
    config(unknown_at_exit="deny"),
    [scan("10:00", "nobody", "out"), scan("10:01", "x\x00", "out"), scan("10:02", point="out")],
    [denied("unknown_credential"), denied("unknown_credential"), granted()],
)

# --- which verdict, and what it says ------------------------------------------------------------------

case(
    "the first rule that passes decides, each entitlement in the order listed",
    world(
        {"areas": ["hall"], "hours": ["18:00-20:00"]},
        limited(limit(5, "day")),
        credential={"entitlements": ["E2", "E1"]},
        extra=[
            *person(2, "B", product="Q"),
            {
                "kind": "product",
                "id": "Q",
                "category": "pass",
                "name": {"en": "Q"},
                "rules": [{"areas": ["exh"]}],
            },
        ],
    ),
    PLAIN,
    [scan("10:00"), scan("10:01", point="inner")],
    [granted(entitlement="E1", holder="H1", left=4), granted(entitlement="E2", holder="H2", left=None)],
)
case(
    "if none passes, the verdict is that of the rule that came furthest",
    world(
        limited(limit(0, "day")),
        {"areas": ["hall"], "hours": ["18:00-20:00"]},
        credential={"entitlements": ["E2", "E1"]},
        extra=[*person(2, "B", product="P", state="suspended")],
    ),
    PLAIN,
    [scan("10:00")],
    [denied("limit_reached", entitlement="E1", holder="H1", detail=None)],
)
case(
    "on a tie the one that would work soonest, then the first listed",
    world(
        {"areas": ["hall"], "until": "2026-01-01"},
        {"areas": ["hall"], "hours": ["18:00-20:00"]},
        credential={"entitlements": ["E1", "E2"]},
        extra=[
            *person(2, "B", product="Q"),
            {
                "kind": "product",
                "id": "Q",
                "category": "pass",
                "name": {"en": "Q"},
                "rules": [{"areas": ["hall"], "hours": ["15:00-16:00"]}],
            },
        ],
    ),
    PLAIN,
    [scan("10:00"), scan("15:00"), scan("16:00")],
    [
        denied("not_at_this_time", detail="2026-11-24T15:00:00+00:00", entitlement="E2", holder="H2"),
        granted(entitlement="E2"),
        denied("not_at_this_time", detail="2026-11-24T18:00:00+00:00", entitlement="E1"),
    ],
)
case(
    "one code that is annual pass and member card at once; a membership without a pass admits nowhere",
    world(
        credential={"entitlements": ["E1", "E2"]},
        extra=[
            *person(2, "B", product="pass", valid_until="2026-11-24"),
            {
                "kind": "entitlement",
                "id": "E2",
                "product": "pass",
                "holder": "H1",
                "valid_until": "2026-11-24",
            },
            {"kind": "product", "id": "pass", "category": "pass", "name": {"en": "Annual"}, "rules": [HALL]},
        ],
    ),
    PLAIN,
    [scan("10:00"), scan("10:00", day=WED)],
    [granted(entitlement="E2", product="pass", holder="H1"), denied("no_right", entitlement="E1")],
)
case(
    "flags stand in the order clock_suspect, grace, passback, attention, and on grants only",
    world(HALL, product={"attention": True, "grace_days": 5}, entitlement={"valid_until": "2026-11-23"}),
    config(anti_passback="soft"),
    [scan("10:00"), scan("09:00"), scan("10:10"), scan("09:59", "x")],
    [
        granted(flags=["grace", "attention"]),
        REPEAT,
        granted(flags=["grace", "passback", "attention"]),
        {"verdict": "unknown_credential", "flags": ["clock_suspect"]},
    ],
)
case(
    "a line earlier than the one before is judged at the newest time, with clock_suspect",
    world({"areas": ["hall"], "hours": ["10:00-12:00"]}, extra=[*person(2, "B"), *person(3, "C")]),
    PLAIN,
    [
        scan("12:00"),
        scan("11:00", "B"),
        scan("11:30", "C"),
        scan("12:00", "B", "out"),
        scan("11:00", "C", "out"),
    ],
    [
        denied("not_at_this_time"),
        {"verdict": "not_at_this_time", "flags": ["clock_suspect"], "at": t("11:00")},
        {"verdict": "not_at_this_time", "flags": ["clock_suspect"]},
        granted(flags=[]),
        granted(flags=["clock_suspect"]),
    ],
)
case(
    "notice in the holder's language, else the venue's, else English, else any",
    world(
        HALL,
        venue={"language": "de"},
        holder={"language": "no", "notice": {"en": "desk", "nb-NO": "skranken", "de": "Kasse"}},
        extra=[
            *person(2, "B"),
            {"kind": "holder", "id": "H2", "language": "fr-CA", "notice": {"en": "desk", "de": "Kasse"}},
            *person(3, "C"),
            {"kind": "holder", "id": "H3", "language": "fr", "notice": {"sv": "disken", "en-GB": "desk"}},
            *person(4, "D"),
            {"kind": "holder", "id": "H4", "notice": {"sv": "disken"}},
        ],
    ),
    PLAIN,
    [scan("10:00"), scan("10:01", "B"), scan("10:02", "C"), scan("10:03", "D")],
    [granted(notice="skranken"), granted(notice="Kasse"), granted(notice="desk"), granted(notice="disken")],
)
case(
    "the detail has the venue's offset",
    world({"areas": ["hall"], "hours": ["10:00-12:00"]}, venue={"timezone": "Asia/Kathmandu"}),
    PLAIN,
    [scan("04:14"), scan("04:15")],
    [denied("not_at_this_time", detail="2026-11-24T10:00:00+05:45"), granted()],
)
case(
    "the detail asks the same rule whole: a limit that frees itself after closing works at the next opening",
    world({"areas": ["hall"], "hours": ["10:00-12:00"], "limits": [limit(1, "hour")], "except": [WED]}),
    PLAIN,
    [scan("11:30"), scan("11:40")],
    [granted(), denied("limit_reached", detail="2026-11-26T10:00:00+00:00")],
)
case(
    "no detail where the rule would never pass again",
    world(limited(limit(1, "term")), entitlement={"valid_until": "2026-11-24"}),
    PLAIN,
    [scan("11:30"), scan("11:40")],
    [granted(), denied("limit_reached", detail=None)],
)
