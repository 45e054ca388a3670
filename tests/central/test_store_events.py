"""Access events at the central: taken once, never lost; what they tell the other gates; conflicts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.cache.build import build
from gateway.cache.ledger_rows import event_dict, event_digest, event_json, event_row
from gateway.cache.records import parse
from gateway.cache.snapshot import Snapshot
from gateway.central.faults import NotFound
from gateway.central.store import Store
from gateway.configload import loads
from gateway.model import AccessEvent, LaneMode, Movement
from gateway.replay import ListLedger, Replay
from tests.central.conftest import DAY, START, Clock
from tests.central.storerig import enrol, entitlement, entry, event, passage, put, told, usages


@pytest.fixture
def north(store: Store) -> Store:
    enrol(store, "north")
    return store


def stored(store: Store, **wanted: Any) -> list[dict[str, Any]]:
    return [json.loads(each.body) for each in store.events(**wanted)]


# --- taking ----------------------------------------------------------------------------------------------


def test_taken_once(north: Store) -> None:
    """The same batch twice leaves each event once and is acknowledged again."""
    batch = [entry(1), event(2, "scan", verdict="expired"), entry(3)]
    first = north.take("north", batch)
    position = north.log("main")[1]
    assert north.take("north", batch) == first
    assert (first.acknowledged, first.refused, first.conflict) == ([(7, 1, 3)], [], None)
    assert stored(north) == batch
    assert north.have("north") == {7: 3}
    assert north.log("main")[1] == position


def test_overlapping_batches(north: Store) -> None:
    """What is new of a batch is taken, what is known is acknowledged with it, in the ranges sent."""
    north.take("north", [event(1), event(2)])
    done = north.take("north", [event(2), event(3), event(3), event(5), event(6), event(1, epoch=9)])
    assert done.acknowledged == [(7, 2, 3), (7, 5, 6), (9, 1, 1)]
    assert [e["seq"] for e in stored(north)] == [1, 2, 3, 5, 6, 1]
    assert north.have("north") == {7: 6, 9: 1}


def test_another_digest_is_a_conflict(north: Store) -> None:
    """What stands before it is taken, it and what follows is not; it is marked, once."""
    north.take("north", [event(2)])
    batch = [event(1), event(2) | {"digest": "other"}, event(3)]
    for _ in range(2):
        done = north.take("north", batch)
        assert (done.acknowledged, done.conflict) == ([(7, 1, 1)], (7, 2))
    assert [e["seq"] for e in stored(north)] == [2, 1]
    [conflict] = north.conflicts()
    assert (conflict.kind, conflict.gateways, conflict.detail) == ("epoch", ["north"], {"epoch": 7, "seq": 2})
    assert north.conflicts(since=conflict.number) == []


def test_conflict_inside_a_batch(north: Store) -> None:
    """One number twice in a batch with two digests is the same."""
    done = north.take("north", [event(1), event(1) | {"digest": "other"}])
    assert (done.acknowledged, done.conflict) == ([(7, 1, 1)], (7, 1))


def test_damaged_events(north: Store) -> None:
    """A damaged one keeps its place, is never a conflict, and never replaces a whole one; a whole one fills
    the place of a damaged one."""
    damaged = [{"gateway": "north", "epoch": 7, "seq": n, "digest": None, "damaged": True} for n in (1, 2)]
    north.take("north", [event(1)])
    assert north.take("north", damaged).acknowledged == [(7, 1, 2)]
    assert stored(north) == [event(1), damaged[1]]
    assert north.take("north", [event(2)]).acknowledged == [(7, 2, 2)]
    assert north.take("north", damaged).acknowledged == [(7, 1, 2)]
    assert stored(north) == [event(1), event(2)]


@pytest.mark.parametrize(
    ("bad", "number", "word"),
    [
        ("scan", (0, 0), "object"),
        (event(4, gateway="south"), (7, 4), "gateway"),
        (event(4) | {"epoch": None}, (0, 4), "epoch"),
        (event(4) | {"epoch": 1 << 63}, (0, 4), "epoch"),
        (event(4) | {"epoch": "7"}, (0, 4), "epoch"),
        (event(4) | {"seq": -1}, (7, 0), "seq"),
        (event(4) | {"seq": True}, (7, 0), "seq"),
        (event(4) | {"seq": 4.0}, (7, 0), "seq"),
        (event(4) | {"digest": None}, (7, 4), "digest"),
        (event(4) | {"digest": 12}, (7, 4), "digest"),
        (event(4) | {"at": "yesterday"}, (7, 4), "at"),
        (event(4) | {"at": "2026-11-21T10:00:00"}, (7, 4), "at"),
        (event(4, note="x" * 65_536), (7, 4), "bytes"),
        (event(4, note="\ud800"), (7, 4), "JSON"),
    ],
)
def test_refused(north: Store, bad: Any, number: tuple[int, int], word: str) -> None:
    """What cannot be kept is refused with its number and the reason; the rest of the batch is taken."""
    done = north.take("north", [event(3), bad, event(5)])
    assert done.acknowledged == [(7, 3, 3), (7, 5, 5)]
    [(epoch, seq, reason)] = done.refused
    assert (epoch, seq) == number
    assert word in reason
    assert [e["seq"] for e in stored(north)] == [3, 5]


def test_unknown_kinds_and_fields_are_kept(north: Store) -> None:
    """Whatever a newer gate says is kept as it is, also where a known field has an unknown form."""
    odd = [
        event(1, "weather", sky={"blue": True}), event(2, point=7, holder=["H1"], credential="\0", guest=-3),
        event(3, 12, of="x", passage=4), event((1 << 63) - 1, epoch=(1 << 63) - 1, at=0),
        event(5, "passage", of=3, passage=["taken"]), event(6, passage={}, verdict="granted", to="hall"),
    ]  # fmt: skip
    for each in odd:
        each["at"] = "2026-11-21T10:00:00.000001-05:00"
    assert len(north.take("north", odd).acknowledged) == 3
    assert stored(north) == odd


def test_unknown_gateway(store: Store) -> None:
    """Nobody's events are not taken."""
    with pytest.raises(NotFound):
        store.take("nobody", [event(1)])


def test_events_by_filter(north: Store) -> None:
    """By number, gateway, kind, verdict, point, credential, holder and time."""
    enrol(north, "south")
    north.take("north", [entry(1), entry(2, holder="H2"), event(3, "lane", detail="free")])
    north.take(
        "south", [entry(9, gateway="south", credential="C9", point="s", verdict="expired", passage=None)]
    )

    def seqs(**wanted: Any) -> list[int]:
        return [e["seq"] for e in stored(north, **wanted)]

    assert seqs() == [1, 2, 3, 9]
    assert seqs(since=north.events(limit=2)[-1].number) == [3, 9]
    assert seqs(gateway="south") == seqs(verdict="expired") == seqs(credential="C9") == seqs(point="s") == [9]
    assert seqs(kind="lane") == [3]
    assert seqs(holder="H1") == [1, 9]
    assert seqs(after=START + 2_000_000, before=START + 9_000_000) == [2, 3]
    assert seqs(limit=1) == [1]


# --- what the other gates are told -----------------------------------------------------------------------


def test_assumed_at_once(north: Store) -> None:
    """A lane without a sensor: the scan itself is the entry, in the form of DESIGN.md 4.1."""
    north.take("north", [entry(1)])
    assert told(north) == [
        {
            "kind": "usage", "gateway": "north", "epoch": 7, "seq": 1, "at": entry(1)["at"], "point": "in",
            "from": "outside", "to": "hall", "holder": "H1", "entitlement": "E1", "credential": "C1",
            "guest": 0, "passage": "assumed",
        }
    ]  # fmt: skip


def test_taken_has_the_time_of_the_scan(north: Store) -> None:
    """With a sensor there is nothing to tell before the passage; then it is the scan that counts."""
    north.take("north", [entry(1, "pending")])
    assert told(north) == []
    north.take("north", [passage(2, 1, "taken")])
    [usage] = told(north)
    assert (usage["seq"], usage["at"], usage["passage"], usage["holder"]) == (
        1,
        entry(1)["at"],
        "taken",
        "H1",
    )


def test_not_taken_tells_nobody(north: Store) -> None:
    """A grant that nobody used, in one batch or two, is no news."""
    north.take("north", [entry(1, "pending"), passage(2, 1, "not_taken"), entry(3, "pending")])
    north.take("north", [passage(4, 3, "not_taken")])
    assert north.log("main")[1] == 0


@pytest.mark.parametrize("split", [1, 2, 3])
def test_annulled(north: Store, split: int) -> None:
    """An entry that was told and annulled is told again as not taken; before it was told, it is not."""
    events = [entry(1, "pending"), passage(2, 1, "taken"), event(3, "annul", of=1, passage="not_taken")]
    north.take("north", events[:split])
    before = usages(north)
    north.take("north", events[split:])
    assert before == ({"north/7/1": "taken"} if split == 2 else {} if split == 1 else before)
    assert usages(north) == ({"north/7/1": "not_taken"} if split == 2 else {})


def test_relay_that_did_not_open(north: Store) -> None:
    """`not_taken` after an entry that was assumed takes it back."""
    north.take("north", [entry(1)])
    position = north.log("main")[1]
    north.take("north", [event(2, "fault", of=1), passage(3, 1, "not_taken")])
    assert usages(north, position) == {"north/7/1": "not_taken"}


def test_heads(north: Store) -> None:
    """Free passages, forced ones, and lanes opened by hand with a sensor count heads of their own."""
    north.take(
        "north",
        [
            passage(1, None, "taken", flags=["free"]), passage(2, None, "forced"),
            event(3, "open", passage="pending", from_="outside", to="hall"), passage(4, 3, "taken"),
            event(5, "open", passage="assumed", from_="outside", to="hall"), passage(6, 5, "not_taken"),
            event(7, "scan", verdict="granted", passage="assumed", from_="hall", to="outside"),
            event(8, "clear", from_="hall", to="outside"), event(9, "lane", detail="free"),
        ],
    )  # fmt: skip
    assert usages(north) == {
        "north/7/1": "taken", "north/7/2": "forced", "north/7/3": "taken", "north/7/7": "assumed"
    }  # fmt: skip
    assert all("holder" not in record for record in told(north))


def test_of_another_epoch(north: Store) -> None:
    """An event sent again under a new epoch names one of the epoch before: the newest that has the number."""
    north.take("north", [entry(5, "pending", epoch=1, holder="H0")])
    north.take("north", [entry(5, "pending", epoch=2)])
    north.take("north", [passage(6, 5, "taken", epoch=3)])
    assert usages(north) == {"north/2/5": "taken"}
    north.take("north", [entry(5, "pending", epoch=3, holder="H3"), passage(7, 5, "taken", epoch=3)])
    assert usages(north) == {"north/2/5": "taken", "north/3/5": "taken"}


def test_the_scan_is_not_here(north: Store) -> None:
    """Of an entry whose scan was damaged or set aside the passage says enough."""
    damaged = {"gateway": "north", "epoch": 7, "seq": 1, "digest": None, "damaged": True}
    north.take("north", [damaged, passage(2, 1, "taken", holder="H1"), passage(4, 3, "taken", holder="H2")])
    north.take("north", [passage(6, 5, "not_taken", holder="H3")])
    assert usages(north) == {"north/7/1": "taken", "north/7/3": "taken"}
    north.take("north", [event(7, "annul", of=3, from_="outside", to="hall", passage="not_taken")])
    assert usages(north) == {"north/7/1": "taken", "north/7/3": "not_taken"}


def test_the_scan_comes_late(north: Store) -> None:
    """A scan that arrives after its passage, because the central failed at it for a while, is the entry that
    was told already: it is not told twice, and can be annulled."""
    north.take("north", [passage(2, 1, "taken", holder="H1")])
    position = north.log("main")[1]
    north.take("north", [entry(1, "pending")])
    assert told(north, position) == []
    north.take("north", [event(3, "annul", of=1, passage="not_taken")])
    assert usages(north, position) == {"north/7/1": "not_taken"}
    north.take("north", [passage(5, 4, "taken", holder="H1")])
    north.take("north", [entry(4, "pending"), event(6, "annul", of=4, passage="not_taken")])
    assert usages(north)["north/7/4"] == "not_taken"


def test_usage_that_no_gate_could_take(north: Store) -> None:
    """An event with nonsense in its fields is kept, and makes no usage record that gates would set aside."""
    north.take("north", [entry(1, guest=-1), entry(2, holder=""), entry(3, to="")])
    assert len(stored(north)) == 3
    assert told(north) == []


CONFIG = """
[gateway]
id = "north"
data_dir = "/nonexistent"
[[lane]]
name = "a"
relay = {driver = "memory"}
passage = {driver = "memory", timeout_s = 5}
[[lane]]
name = "b"
relay = {driver = "memory"}
[[point]]
name = "a-in"
lane = "a"
from = "outside"
to = "hall"
[[point]]
name = "a-out"
lane = "a"
from = "hall"
to = "outside"
[[point]]
name = "b-in"
lane = "b"
from = "outside"
to = "hall"
guest_window_s = 60
"""
RECORDS = [
    {"kind": "area", "id": "hall"},
    {"kind": "product", "id": "p", "rules": [{"areas": ["hall"], "guests": 2}]},
    *({"kind": "entitlement", "id": f"E{n}", "product": "p", "holder": f"H{n}"} for n in range(2)),
    *({"kind": "credential", "id": f"C{n}", "code": f"X{n}", "entitlements": [f"E{n}"]} for n in range(2)),
]


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshot]:
    folder = tmp_path_factory.mktemp("cards")
    build(folder, [orjson.dumps(record) for record in RECORDS], source="feed", pace=0)
    snapshot = Snapshot.open(folder)
    assert snapshot is not None
    yield snapshot
    snapshot.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(tmp_path_factory.mktemp("central") / "c", clock=Clock())


def uploaded(events: list[AccessEvent], gateway: str) -> list[dict[str, Any]]:
    """As the gate's ledger writes them and its sync uploads them."""
    lines = []
    for number, each in enumerate(events, 1):
        of = each.of_seq if each.of is None else each.of.seq
        columns = (number, *event_row(each), of)
        row = event_dict(columns, event_digest(columns), 5)
        lines.append(event_json(row, gateway, 5) | {"digest": row["digest"]})
    return lines


ACT = st.tuples(
    st.sampled_from(["a-in", "a-out", "b-in", "pass", "turn", "open", "free", "normal", "annul", "fail"]),
    st.integers(0, 3),
    st.sampled_from([0, 2, 7]),
)
RUNS = iter(range(10**6))


@settings(max_examples=40)
@given(acts=st.lists(ACT, max_size=25), cuts=st.sets(st.integers(1, 40), max_size=4))
def test_usage_is_what_the_gate_counted(
    shared: Store, cards: Snapshot, acts: list[tuple[str, int, int]], cuts: set[int]
) -> None:
    """Whatever happens at a real gate, and however it is cut into batches and sent twice: the central's usage
    says exactly what that gate's own movements say."""
    gateway = f"g{next(RUNS)}"
    shared.create_venue(gateway)
    enrol(shared, gateway, venue=gateway)
    replay = Replay(loads(CONFIG, "test", replay=True), cards)
    gate, ledger = replay.gate, replay.gate.ledger
    assert isinstance(ledger, ListLedger)
    now = START
    for act, which, wait in acts:
        now += wait * 1_000_000 + 1
        replay._advance(now)
        if act in ("a-in", "a-out", "b-in"):
            replay.judge(now, act, f"X{which}")  # two of the four are no cards
        elif act == "pass":
            gate.passed("a", [None, "a-in", "a-out", "a-in"][which], now, now)
        elif act == "turn":
            gate.turned_back("a", "a-in", now, now)
        elif act == "open":
            gate.open_once("ab"[which % 2], "admin", now, now)
        elif act in ("free", "normal"):
            gate.set_mode("a", LaneMode(act), "admin", now, now)
        elif act == "fail":
            gate.not_pulsed("ab"[which % 2], "relay gone", now, now)
        else:
            movements = [e.movement for e in ledger.events if e.movement is not None]
            if len(movements) > which:
                movement = movements[-1 - which]
                assert movement.seq is not None
                pending = gate.pending_of(movement.seq)
                if pending is not None:
                    gate.withdraw(*pending, "admin", now, now)
                elif movement.passage in ("taken", "assumed", "forced"):
                    gate.annul(movement.seq, movement, "admin", now, now)
    lines = uploaded(ledger.events, gateway)
    edges = [0, *sorted(cut for cut in cuts if cut < len(lines)), len(lines)]
    for first, last in itertools.pairwise(edges):
        for start in (first, max(0, first - 3)):
            done = shared.take(gateway, lines[start:last])
            assert (done.refused, done.conflict) == ([], None)
    counted = {
        m.seq: m
        for e in ledger.events
        if (m := e.movement) is not None and m.passage in ("taken", "assumed", "forced")
    }
    records = [r for r in told(shared, venue=gateway, gateway="x") if r["passage"] != "not_taken"]
    assert {r["seq"] for r in records} == set(counted)
    for record in records:
        usage, own = parse(record), counted[record["seq"]]
        assert isinstance(usage, Movement)
        for name in ("at", "from_", "to", "person", "point", "holder", "credential", "entitlement", "guest"):
            assert getattr(usage, name) == getattr(own, name)
        assert usage.passage is own.passage


def test_usage_that_nobody_needs(north: Store, clock: Clock) -> None:
    """Entries are kept for as long as a limit of their product can ask: a term for ever, a year for 13
    months, else forty days; heads for two days. Their going is no deletion that a cursor could miss."""
    rules = {
        "day": [{"max": 1, "per": "day"}],
        "year": [{"max": 9, "per": "year"}],
        "term": [{"max": 9, "per": "term"}],
    }
    put(
        north,
        *({"kind": "product", "id": p, "rules": [{"limits": limits}]} for p, limits in rules.items()),
        *(entitlement(f"E-{p}", product=p) for p in rules),
    )  # fmt: skip
    north.take("north", [entry(n, entitlement=f"E-{p}", holder=p) for n, p in enumerate(rules, 1)])
    north.take("north", [passage(9, None, "taken")])
    cursor = north.cursor("main", 6)
    kept = []
    for days in (1, 2, 36, 2, 350, 20, 2000):
        clock.wait(days)
        north.compact()
        kept.append("".join(sorted(source[-1] for source in usages(north))))
    assert kept == ["1239", "123", "123", "23", "23", "3", "3"]
    assert north.position_of("main", cursor) == 6


# --- conflicts -------------------------------------------------------------------------------------------


@pytest.fixture
def two(north: Store) -> Store:
    enrol(north, "south")
    put(north, {"kind": "area", "id": "hall"}, {"kind": "area", "id": "exh", "within": "hall"})
    return north


def south(seq: int, **fields: Any) -> dict[str, Any]:
    return entry(seq, gateway="south", epoch=8, **fields)


def leave(make: Callable[..., dict[str, Any]], seq: int, **fields: Any) -> dict[str, Any]:
    return make(seq, from_="hall", to="outside", **fields)


def test_in_at_two_gates(two: Store) -> None:
    """The same person in at two gates with no exit between is marked when the later upload comes, by the
    times at which it happened."""
    two.take("south", [south(20)])
    assert two.conflicts() == []
    two.take("north", [entry(10)])
    [conflict] = two.conflicts()
    assert (conflict.kind, conflict.gateways, conflict.at) == (
        "passback",
        ["north", "south"],
        START + 20_000_000,
    )
    assert conflict.detail["area"] == "hall"
    assert conflict.detail["holder"] == "H1"
    assert [(e["gateway"], e["seq"]) for e in conflict.detail["events"]] == [("north", 10), ("south", 20)]
    two.take("north", [entry(10), entry(30, holder="H2")])
    assert len(two.conflicts()) == 1


@pytest.mark.parametrize(
    "between",
    [
        [leave(entry, 15)],
        [event(15, "clear", from_="hall", to="outside")],
        [entry(15, "pending", from_="hall", to="outside"), passage(16, 15, "taken")],
    ],
)
def test_out_between(two: Store, between: list[dict[str, Any]]) -> None:
    """With an exit, or the area declared empty, between them there is no conflict."""
    two.take("north", [entry(10), *between])
    two.take("south", [south(20)])
    assert two.conflicts() == []


@pytest.mark.parametrize(
    "other",
    [
        south(20, guest=1), south(20, holder="H2"), south(20, passage="pending"),
        south(20, at=START + DAY), south(20, from_="hall", to="exh"), south(20, to="garden"),
        event(20, gateway="south", verdict="passback", holder="H1", to="hall", from_="outside"),
    ],
)  # fmt: skip
def test_no_conflict(two: Store, other: dict[str, Any]) -> None:
    """Guests, others, who did not go through, another day, from one area into one inside it, a refusal."""
    two.take("north", [entry(10)])
    two.take("south", [other])
    assert two.conflicts() == []


def test_at_one_gate(two: Store) -> None:
    """Twice in at one gate is that gate's own judgement, and no conflict."""
    two.take("north", [entry(10), entry(20)])
    assert two.conflicts() == []


def test_in_an_area_inside_another(two: Store) -> None:
    """In the exhibition one is in the hall: in at another gate of the hall is a conflict."""
    two.take("north", [entry(10), entry(11, from_="hall", to="exh")])
    two.take("south", [south(20)])
    assert [c.detail["area"] for c in two.conflicts()] == ["hall"]


def test_without_a_holder_it_is_the_card(two: Store) -> None:
    """Who has no holder is known by the credential."""
    two.take("north", [entry(10, holder=None)])
    two.take("south", [south(20, holder=None)])
    [conflict] = two.conflicts()
    assert conflict.detail["credential"] == "C1"
    assert "holder" not in conflict.detail


def test_pending_then_taken_later(two: Store) -> None:
    """The conflict is found when the passage comes, a batch after the scan."""
    two.take("south", [south(20)])
    two.take("north", [entry(10, "pending")])
    assert two.conflicts() == []
    two.take("north", [passage(11, 10, "taken")])
    assert [c.kind for c in two.conflicts()] == ["passback"]


def test_the_venue_day(two: Store) -> None:
    """Presence is over when the venue day ends, which may be at four in the morning, local time."""
    put(two, {"kind": "venue", "timezone": "America/New_York", "day_starts": "04:00"})
    ends = 1_795_424_400_000_000  # 2026-11-23T09:00:00Z, 04:00 in New York
    two.take("north", [entry(1, at=ends - 7_200_000_000), entry(2, at=ends - 1_000_000, holder="H2")])
    two.take("south", [south(1, at=ends - 1), south(2, at=ends, holder="H2")])
    assert [c.detail["holder"] for c in two.conflicts()] == ["H1"]
