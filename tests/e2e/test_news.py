"""Everyday news of the central, at a real gate: what is signed is done, kept, and done once."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import threading
from collections.abc import Callable
from typing import Any

import pytest

from gateway.control import CallError
from gateway.model import HOUR, SECOND
from gateway.sync import protocol
from tests.e2e.joined import CARDS, LANES, POINTS, READERS, Joined, join, records, revoked
from tests.e2e.rig import Json, Site, card, product, until
from tests.hand import Courier, Hand

KILLS = 24
SEED = 20261122
Make = Callable[..., Site]


@pytest.fixture
def gate(site: Make) -> Joined:
    """A gate with cards of its central in use."""
    return join(site)


def usage(gateway: str, seq: int, n: int, at: int, **more: Any) -> Json:
    """The holder Hn went into the hall at another gate."""
    return {
        **{"kind": "usage", "gateway": gateway, "epoch": 7, "seq": seq, "at": protocol.rfc3339(at)},
        **{"from": "outside", "to": "hall", "holder": f"H{n}", "entitlement": f"E{n}"},
        **{"credential": f"C{n}", "passage": "taken", **more},
    }


# --- joining ------------------------------------------------------------------------------------------


def test_nothing_moves_a_gate_that_is_not_enrolled(site: Make) -> None:
    """Before an enrolment no answer, snapshot or acknowledgement counts, however well it is signed."""
    made = site(LANES, POINTS, READERS)
    made.imports(records())
    made.start()
    gate = Joined(made)
    assert gate.verdict("OPEN0") == "granted"
    made.written()
    before = gate.status
    hand, sync = gate.hand, gate.courier.client
    assert gate.courier.poll() == gate.courier.outbox() == {"enrolled": False}
    asked = {"nonce": "n" * 24, "cursor": None}
    rows = {"nonce": "n" * 24, "rows": [[before["ledger"]["epoch"], "00", 1]]}
    path, manifest = hand.snapshot(made.folder, [])
    for name, arguments in (
        ("answer", hand.changes(asked, [revoked(0)], cursor="h1.0")),
        ("answer", hand.gone(asked)),
        ("answer", hand.revoked(asked)),
        ("uploaded", hand.took(rows)),
        ("refuse", {"seq": 1, "reason": "because"}),
        ("generation", manifest),
    ):
        with pytest.raises(CallError) as told, path.open("rb") as file:
            sync.call_with_fd(name, file.fileno(), **arguments)
        assert told.value.code == "not_enrolled", name
    assert gate.verdict("OPEN0") == "granted"
    after = gate.status
    assert after["snapshot"]["generation"] == before["snapshot"]["generation"]
    assert after["ledger"]["epoch"] == before["ledger"]["epoch"]
    assert after["ledger"]["acknowledged"] == 0
    assert after["central"] is None


def test_enrolment(site: Make) -> None:
    """A code for another gate is refused with words. The right one begins a new epoch; the first answer asks
    for a snapshot, and with that in use its cards are admitted, also after a restart."""
    made = site(LANES, POINTS, READERS)
    made.start()
    gate = Joined(made)
    epoch = gate.status["ledger"]["epoch"]
    with pytest.raises(CallError, match=r"'south'.*'north'") as told:
        gate.enrol(gateway="south")
    assert told.value.code == "bad_request"
    with pytest.raises(CallError, match="keys"):
        gate.enrol(keys=[])
    assert gate.courier.poll() == {"enrolled": False}
    assert gate.verdict("OPEN0") == "unknown_credential"
    begun = gate.enrol()
    assert begun != epoch
    assert gate.status["ledger"]["epoch"] == begun
    assert (made.data_dir / "central.json").stat().st_mode & 0o777 == 0o600
    asked = gate.courier.poll()
    assert (asked["cursor"], asked["snapshot"], asked["wait"]) == (None, None, False)
    assert (asked["gateway"], asked["venue"], asked["keys"]) == ("north", "main", ["k1"])
    assert gate.courier.gone()["gone"]
    assert gate.courier.poll()["snapshot"] == {"at_least": None}
    assert gate.courier.snapshot(records()) == {"generation": 1, "state": "in_use"}
    assert gate.verdict("OPEN0") == "granted"
    asked = gate.courier.poll()
    assert (asked["cursor"], asked["snapshot"], asked["wait"]) == (gate.hand.cursor, None, True)
    gate.restart()
    assert gate.verdict("OPEN0") == "granted"
    asked = gate.courier.poll()
    assert (asked["cursor"], asked["snapshot"]) == (gate.hand.cursor, None)
    assert gate.status["ledger"]["epoch"] == begun


def test_a_damaged_central_json(gate: Joined) -> None:
    """The gate serves on with what it has, believes nobody, and says so; an enrolment mends it."""
    gate.site.kill()
    path = gate.site.data_dir / "central.json"
    path.write_bytes(path.read_bytes()[:-20])
    gate.start()
    assert gate.verdict("OPEN0") == "granted"
    assert gate.courier.poll() == {"enrolled": False}
    assert gate.status["central"] is None
    assert gate.site.gate is not None
    (said,) = [line for line in gate.site.gate.log() if "central.json" in line.get("reason", "")]
    assert said["level"] == "error"
    assert "gateway enroll" in said["reason"]
    gate.enrol()
    assert gate.courier.first(records())["state"] == "in_use"


# --- changes ------------------------------------------------------------------------------------------


def test_changes_count_at_the_next_scan(gate: Joined) -> None:
    """A revocation, a new card, a product with other rules, a block; it is the same after a kill."""
    tell, verdict = gate.courier.tell, gate.verdict
    assert verdict("OPEN0") == "granted"
    assert tell(revoked(0))["changed"] == 1
    assert verdict("OPEN0") == "revoked"
    tell(product("closed", until="2020-01-01"), *card("new", "NEWCARD", "closed"))
    assert verdict("NEWCARD") == "not_at_this_time"
    tell(product("closed"))
    assert verdict("NEWCARD") == "granted"
    tell(
        {"kind": "holder", "id": "H1", "state": "blocked"},
        {"kind": "credential", "id": "C2", "deleted": True},
    )
    gate.restart()
    found = {code: verdict(code) for code in ("OPEN0", "NEWCARD", "OPEN1", "OPEN2", "OPEN3")}
    assert list(found.values()) == ["revoked", "granted", "suspended", "unknown_credential", "granted"]
    assert gate.courier.poll()["cursor"] == gate.hand.cursor


def test_a_bad_record_holds_up_nothing(gate: Joined) -> None:
    """Whatever stands among the records, the good ones count and the cursor goes on; the older version of a
    bad card is not admitted any more."""
    assert gate.verdict("OPEN1") == "granted"
    epoch = gate.status["ledger"]["epoch"]
    bad = [
        *(
            {"kind": "credential", "id": "C1", "code": 7},
            {"kind": ["usage"]},
            {"kind": {"kind": 1}},
            [],
            None,
        ),
        *(
            {"kind": "key"},
            {"kind": "key", "id": "k9", "public": "AAAA"},
            {"kind": "key", "id": "é", "deleted": True},
        ),
        {"kind": "key", "id": "k1", "deleted": True},
        {"kind": "product", "id": "open", "rules": "none"},
        usage("north", (1 << 64) - 1, 3, gate.hand.now, epoch=epoch, to=7),
    ]
    good = [
        usage("north", (1 << 64) - 1, 3, gate.hand.now, epoch=epoch),
        revoked(0),
        {"kind": "vending", "id": "x"},
    ]
    done = gate.courier.tell(*bad, *good)
    assert done["set_aside"] == len(bad)
    assert done["changed"] == 2
    assert [gate.verdict(f"OPEN{n}") for n in range(3)] == ["revoked", "revoked", "granted"]
    asked = gate.courier.poll()
    assert (asked["cursor"], asked["keys"]) == (gate.hand.cursor, ["k1"])
    assert gate.verdict("OPEN3", "strict") == "passback"


def test_both_ways_to_write_a_body(gate: Joined) -> None:
    """msgpack says what JSON says; what only msgpack can say is refused."""
    poll = gate.courier.poll()
    body = gate.hand.said(
        poll["nonce"], cursor=poll["cursor"], next="h1.9", position=9, more=False, records=[revoked(0)]
    )
    for unknown in ({"kind": b"product"}, {b"kind": "product"}, float("nan")):
        whole = {**body, "records": [{**product("open"), "note": unknown}]}
        with contextlib.suppress(CallError):
            gate.courier.client.call("answer", **gate.hand.sealed("changes", whole, type_=protocol.MSGPACK))
            poll = gate.courier.poll()
            body["nonce"], body["cursor"] = poll["nonce"], poll["cursor"]
    gate.courier.client.call("answer", **gate.hand.sealed("changes", body, type_=protocol.MSGPACK))
    assert gate.verdict("OPEN0") == "revoked"


def test_entries_at_other_gates(gate: Joined) -> None:
    """Who went in elsewhere is refused by anti-passback and counted once, however often it is told; annulled,
    it never was. What the own ledger has counts once too."""
    now = gate.hand.now
    gate.courier.tell(usage("south", 1, 0, now - 5 * SECOND))
    assert gate.hall == 1
    gate.courier.tell(usage("south", 1, 0, now - 5 * SECOND))
    assert gate.hall == 1
    assert gate.verdict("OPEN0", "strict") == "passback"
    gate.courier.tell(usage("south", 1, 0, now - 5 * SECOND, passage="not_taken"))
    assert gate.hall == 0
    assert gate.verdict("OPEN0", "strict") == "granted"
    assert gate.hall == 1
    gate.site.written()
    (row,) = [r for r in gate.courier.outbox()["rows"] if r[8] == "granted"]
    own = usage("north", row[2], 0, row[3], epoch=row[0])
    gate.courier.tell(own, usage("south", 2, 1, now - 4 * SECOND, epoch=row[0]))
    assert gate.hall == 2
    gate.restart()
    assert gate.hall == 2
    gate.courier.tell(own)
    assert gate.hall == 2
    assert gate.verdict("OPEN1", "strict") == "passback"


def test_an_answer_is_taken_in_to_its_end(gate: Joined) -> None:
    """A courier that dies while its answer is taken in leaves no half: what is on disk is judged by."""
    rng = random.Random(SEED)
    for n in range(12):
        closed = n % 2 == 0
        changed = product("open", until="2020-01-01") if closed else product("open")
        poll = gate.courier.poll()
        answer = gate.hand.changes(poll, [changed])
        gate.throw("answer", rng.random() * 0.006, **answer)
        if until(lambda: _settled(gate), "the answer was taken in or not")["cursor"] == poll["cursor"]:
            gate.courier.tell(changed)
        assert gate.verdict("OPEN0") == ("not_at_this_time" if closed else "granted")
    assert gate.courier.tell(product("open"))["changed"] == 1


def _settled(gate: Joined) -> Json | None:
    """A poll, when no answer is being taken in: twice the same cursor with an answer refused between them."""
    poll = gate.courier.poll()
    with pytest.raises(CallError) as told:
        gate.courier.client.call("answer", type=protocol.JSON, body="e30=", signature="")
    return poll if told.value.code == "refused" and gate.courier.poll()["cursor"] == poll["cursor"] else None


# --- snapshots ----------------------------------------------------------------------------------------


def test_catching_up_undoes_no_revocation(gate: Joined) -> None:
    """A snapshot of an older position is not switched to until changes bring it there: the revocation that
    came meanwhile holds at every moment, also over a kill."""
    hand, courier = gate.hand, gate.courier
    old = hand.snapshot(gate.site.folder, records())
    courier.tell(*(product(f"p{n}") for n in range(4)), revoked(0))
    assert hand.position == 5
    assert courier.hand_over(*old) == {"generation": 2, "state": "catching_up"}
    assert gate.verdict("OPEN0") == "revoked"
    gate.restart()
    assert gate.verdict("OPEN0") == "revoked"
    asked = gate.courier.poll()
    assert (asked["cursor"], asked["wait"], asked["snapshot"]) == ("h1.0", False, None)
    asked["cursor"] = "h1.5"
    gate.courier.client.call("answer", **hand.changes(asked, [revoked(1)]))
    assert gate.verdict("OPEN1") == "revoked", "a question from before the snapshot came"
    assert gate.courier.poll()["cursor"] == "h1.0"
    with pytest.raises(CallError) as told:
        gate.courier.hand_over(*old)
    assert told.value.code == "busy"
    hand.position = 0
    gate.courier.tell(*(product(f"p{n}") for n in range(3)), more=True)
    assert gate.status["snapshot"]["generation"] == 1
    assert gate.verdict("OPEN0") == "revoked"
    gate.courier.tell(product("p3"), revoked(0), more=True)
    assert gate.status["snapshot"]["generation"] == 1
    gate.courier.tell(revoked(1))
    assert gate.status["snapshot"]["generation"] == 2
    assert [gate.verdict(f"OPEN{n}") for n in range(2)] == ["revoked"] * 2
    gate.restart()
    assert [gate.verdict(f"OPEN{n}") for n in range(2)] == ["revoked"] * 2
    assert gate.courier.poll()["cursor"] == "h1.6"


def test_a_snapshot_that_cannot_catch_up_is_dropped(gate: Joined) -> None:
    """Where the central has no changes any more from an older snapshot on, it is not used, and gone."""
    old = gate.hand.snapshot(gate.site.folder, records())
    gate.courier.tell(revoked(0))
    assert gate.courier.hand_over(*old)["state"] == "catching_up"
    assert gate.courier.gone()["gone"]
    until(lambda: gate.files() == ["code.key", "snapshot-00000001.mdb"])
    gate.restart()
    assert gate.verdict("OPEN0") == "revoked"
    assert gate.courier.poll()["cursor"] == "h1.1"


def test_a_new_history(gate: Joined) -> None:
    """A central that was restored says 410: its snapshot is fetched whatever its position is, and nothing of
    the log before is believed any more."""
    hand = gate.hand
    gate.courier.tell(*(product(f"p{n}") for n in range(5)))
    before = hand.snapshot(gate.site.folder, records())
    hand.history, hand.position = "h2", 2
    assert "history" in gate.refused("answer", **hand.changes(gate.courier.poll()))
    assert gate.courier.gone()["gone"]
    assert gate.courier.poll()["snapshot"] == {"at_least": None}
    with pytest.raises(CallError, match="history"):
        gate.courier.hand_over(*before)
    assert gate.verdict("OPEN0") == "granted"
    gate.restart()
    gate.courier.gone()
    assert gate.courier.poll()["snapshot"] == {"at_least": None}
    assert gate.courier.snapshot([*records(), revoked(0)])["state"] == "in_use"
    assert gate.verdict("OPEN0") == "revoked"
    assert gate.courier.poll()["cursor"] == "h2.2"
    until(lambda: gate.files() == ["code.key", "snapshot-00000002.mdb"])


def test_who_was_deleted_leaves_the_disk(gate: Joined) -> None:
    """Within a day after a holder was deleted a new snapshot is asked for; when it is used, the file before
    is gone at once, which at other times stays."""
    hand, courier = gate.hand, gate.courier
    gone = [{"kind": kind, "id": f"{kind[0].upper()}0", "deleted": True} for kind in ("holder", "credential")]
    hand.position = 20
    forget = {"position": 22, "at": protocol.rfc3339(hand.now)}
    courier.tell(*gone, forget=forget)
    assert courier.poll()["snapshot"] is None
    hand.ahead = 21 * HOUR
    courier.tell(forget=forget)
    assert courier.poll()["snapshot"] == {"at_least": "h1.22"}
    known = [r for r in records() if r.get("id") not in ("H0", "C0")]
    assert courier.snapshot(known)["state"] == "in_use"
    until(lambda: gate.files() == ["code.key", "snapshot-00000002.mdb"])
    courier.tell(forget=forget)
    assert courier.poll()["snapshot"] is None
    assert courier.snapshot(known)["state"] == "in_use"
    assert gate.files() == ["code.key", "snapshot-00000002.mdb", "snapshot-00000003.mdb"]


def test_the_age_of_the_cards(site: Make) -> None:
    """Cards are as old as the newest answer that left nothing open; a 410 or a first page is none."""
    gate = join(site, max_snapshot_age_h=1, on_stale="deny")
    hand, courier = gate.hand, gate.courier
    hand.ahead = -3 * HOUR
    old = hand.snapshot(gate.site.folder, records())
    hand.ahead = 0
    gate.restart()
    courier = gate.courier
    hand.history = "h2"
    courier.gone()
    hand.ahead = -3 * HOUR
    assert courier.snapshot(records())["state"] == "in_use"
    hand.ahead = 0
    assert old is not None
    until(lambda: gate.status["snapshot"]["stale"])
    courier.tell(revoked(0), more=True)
    courier.client.call("answer", **hand.gone(courier.poll()))
    assert gate.status["snapshot"]["age_s"] > 3600
    assert gate.verdict("OPEN1") == "snapshot_stale"
    courier.tell()
    assert gate.status["snapshot"]["age_s"] < 3600
    until(lambda: not gate.status["snapshot"]["stale"])
    assert gate.verdict("OPEN1") == "granted"


# --- keys, commands, revocation -----------------------------------------------------------------------


def test_one_key_follows_another(gate: Joined) -> None:
    """k1 announces k2, k2 ends k1; from then on k1 says nothing, also after a kill."""
    hand = gate.hand
    second = Hand()
    second.keys = {"k2": second.keys["k1"]}
    announced = {"kind": "key", "id": "k2", "public": second.public("k2")}
    ended = {"kind": "key", "id": "k1", "deleted": True}
    assert "signature" in gate.refused(
        "answer", **hand.changes(gate.courier.poll(), [announced], signer=second)
    )
    gate.courier.tell(announced)
    assert gate.courier.poll()["keys"] == ["k1", "k2"]
    gate.restart()
    assert gate.courier.poll()["keys"] == ["k1", "k2"]
    gate.courier.client.call("answer", **hand.changes(gate.courier.poll(), [ended], signer=second))
    assert gate.courier.poll()["keys"] == ["k2"]
    gate.restart()
    assert "signature" in gate.refused("answer", **hand.changes(gate.courier.poll(), [revoked(0)]))
    hand.keys |= second.keys
    gate.courier.tell(revoked(1))
    assert [gate.verdict("OPEN0"), gate.verdict("OPEN1")] == ["granted", "revoked"]


def test_commands(gate: Joined) -> None:
    """Each kind is obeyed once and recorded as the central's; it is remembered over a kill. What has expired,
    is another gate's, or is none of the kinds is not obeyed."""
    hand, courier = gate.hand, gate.courier
    for n in range(2):
        assert gate.verdict(f"OPEN{n}") == "granted"
    gate.site.written()
    seq = gate.status["ledger"]["last_seq"]
    given = [
        hand.command("close", lane="north"),
        hand.command("normal", lane="north"),
        hand.command("open", lane="north"),
        hand.command("annul", seq=seq),
        hand.command("clear", area="hall"),
        hand.command("free", lane="north"),
    ]
    assert courier.tell(*given, given[2])["commands"] == len(given)
    assert gate.hall == 0
    wrong = [
        hand.command("open", lane="north", ago=60),
        hand.command("open", lane="north", gateway="south"),
        hand.command("open", lane="north", ttl_s=25 * 3600),
        hand.command("stop", lane="north"),
        hand.command("open", lane="north", at="now"),
    ]
    done = courier.tell(*wrong, hand.command("open", lane="elsewhere"), hand.command("annul", seq=1 << 62))
    assert done["commands"] == 2
    counted = {"obeyed": 6, "repeated": 1, "expired": 1, "not_ours": 1, "malformed": 3, "impossible": 2}
    for result, count in counted.items():
        assert gate.site.metric(f'gateway_central_commands_total{{result="{result}"}}') == count
    gate.site.written()
    gate.restart()
    assert gate.courier.tell(*given, *wrong)["commands"] == 0
    assert gate.status["lanes"][0]["state"] == "free"
    events = [e for e in gate.site.events() if e.get("by") == "central"]
    kinds = [(e["kind"], e.get("detail")) for e in events]
    assert kinds == [
        *(("lane", "closed"), ("lane", "normal"), ("open", None), ("annul", None), ("clear", None)),
        ("lane", "free"),
    ]


def test_a_revoked_gate_forgets(gate: Joined) -> None:
    """Every card is unknown, files and key are gone, no snapshot is taken; enrolled anew it admits again."""
    newer = gate.hand.snapshot(gate.site.folder, records())
    assert gate.courier.revoked()["revoked"]
    assert gate.verdict("OPEN0") == "unknown_credential"
    until(lambda: gate.files() == [])
    asked = gate.courier.poll()
    assert (asked["revoked"], asked["snapshot"], asked["cursor"]) == (True, None, None)
    with pytest.raises(CallError):
        gate.courier.hand_over(*newer)
    gate.restart()
    assert gate.files() == []
    assert gate.verdict("OPEN0") == "unknown_credential"
    assert gate.courier.poll()["revoked"]
    epoch = gate.status["ledger"]["epoch"]
    assert gate.enrol() != epoch
    assert gate.courier.first(records())["state"] == "in_use"
    assert gate.verdict("OPEN0") == "granted"
    gate.restart()
    assert gate.verdict("OPEN0") == "granted"


def test_a_power_cut_in_the_middle_of_a_revocation(gate: Joined) -> None:
    """Whenever the power goes, the gate is either not revoked, or has nothing left after the next start."""
    rng = random.Random(SEED)
    known = False
    moments: list[float | Callable[[], bool]] = [
        *(rng.random() * 0.012 for _ in range(4)),
        *[lambda: bool(gate.status["central"]["revoked"])] * 3,
        lambda: "code.key" not in gate.files(),
    ]
    for moment in moments:
        asked = gate.courier.poll()
        if asked["revoked"]:
            gate.enrol()
            gate.courier.first(records())
        gate.throw("answer", moment, **gate.hand.revoked(gate.courier.poll()))
        gate.restart()
        known = gate.courier.poll()["revoked"]
        assert gate.verdict("OPEN0") == ("unknown_credential" if known else "granted")
        assert bool(gate.files()) is not known
    assert known


def test_revoked_while_a_snapshot_is_built(gate: Joined) -> None:
    """A snapshot that was on its way is not used, and nothing of it stays."""
    path, arguments = gate.hand.snapshot(gate.site.folder, records(3000))
    other = Courier(gate.site.client("sync"), gate.hand, gate.site.folder)
    refused: list[str] = []

    def build() -> None:
        with pytest.raises(CallError) as told:
            other.hand_over(path, arguments)
        refused.append(told.value.code)

    building = threading.Thread(target=build)
    building.start()
    until(lambda: gate.status["central"]["building"])
    assert gate.courier.revoked()["revoked"]
    building.join()
    assert refused == ["refused"]
    until(lambda: gate.files() == [])
    assert gate.verdict("OPEN0") == "unknown_credential"


# --- uploads ------------------------------------------------------------------------------------------


def test_what_the_central_has_is_not_sent_again(gate: Joined) -> None:
    """The outbox holds what is not acknowledged, the mark moves with the answer, and stays over a kill."""
    for n in range(3):
        gate.verdict(f"OPEN{n}")
    gate.site.written()
    outbox = gate.courier.outbox()
    assert [row[2] for row in outbox["rows"]] == [1, 2, 3]
    assert [row[2] for row in gate.courier.outbox(limit=1)["rows"]] == [1]
    assert [row[2] for row in gate.courier.outbox(since=2)["rows"]] == [3]
    assert gate.courier.upload() == {"acknowledged": 3, "refused": 0, "conflict": False}
    assert gate.courier.outbox()["rows"] == []
    gate.verdict("OPEN4")
    gate.site.written()
    gate.restart()
    assert gate.status["ledger"]["acknowledged"] == 3
    assert [row[2] for row in gate.courier.outbox()["rows"]] == [4]
    assert gate.courier.upload()["acknowledged"] == 4


def test_what_the_central_refuses_is_shown_and_passed_over(gate: Joined) -> None:
    """A refused event is listed with its reason and not sent again; so is one that the courier set aside.
    The others go on, and what is acknowledged cannot be set aside."""
    for n in range(5):
        gate.verdict(f"OPEN{n}")
    gate.site.written()
    epoch = gate.status["ledger"]["epoch"]
    outbox = gate.courier.outbox()
    taken = [[epoch, 1, 1], [epoch, 3, 3]]
    refused = [
        {"epoch": epoch, "seq": 2, "reason": "no such card"},
        {"epoch": epoch - 1, "seq": 3, "reason": "?"},
    ]
    answer = gate.hand.took(outbox, acknowledged=taken, refused=refused, have={str(epoch): 3})
    assert gate.courier.client.call("uploaded", **answer) == {
        "acknowledged": 3,
        "refused": 2,
        "conflict": False,
    }
    gate.courier.client.call("refuse", epoch=epoch, seq=4, reason="fails every time")
    for seq in (0, 1, 3, 6):
        with pytest.raises(CallError):
            gate.courier.client.call("refuse", epoch=epoch, seq=seq, reason="")
    assert [row[2] for row in until(lambda: _one(gate))] == [5]
    assert gate.courier.upload()["acknowledged"] == 5
    listed = gate.site.call("refused")["events"]
    assert [(e["seq"], e["reason"]) for e in listed] == [(2, "no such card"), (4, "fails every time")]
    assert gate.site.run("ledger", "--refused").json == listed


def _one(gate: Joined) -> list[Any] | None:
    rows = gate.courier.outbox()["rows"]
    return rows if len(rows) == 1 else None


def test_a_conflict_begins_a_new_epoch(gate: Joined) -> None:
    """The central has other events under these numbers: what it has not acknowledged goes under a new epoch,
    all of it, and a snapshot is asked for that knows what was forgotten here."""
    for n in range(4):
        gate.verdict(f"OPEN{n}")
    gate.site.written()
    epoch = gate.status["ledger"]["epoch"]
    outbox = gate.courier.outbox()
    conflict = gate.hand.took(outbox, acknowledged=[[epoch, 1, 2]], conflict={"epoch": epoch, "seq": 3})
    assert gate.courier.client.call("uploaded", **conflict)["conflict"]
    rows = until(lambda: [r for r in gate.courier.outbox()["rows"] if r[0] != epoch])
    assert [row[2] for row in rows] == [3, 4]
    assert len({row[0] for row in rows}) == 1
    assert gate.courier.poll()["snapshot"] == {"at_least": "h1.0"}
    gate.hand.have = {str(epoch): 2}
    assert gate.courier.upload()["acknowledged"] == 4
    gate.restart()
    assert gate.status["ledger"]["epoch"] == rows[0][0]
    gate.courier.tell()
    assert gate.courier.poll()["snapshot"] == {"at_least": "h1.0"}
    assert gate.courier.snapshot(records())["state"] == "in_use"
    assert gate.courier.poll()["snapshot"] is None


def test_a_restored_central_gets_again_what_it_lost(gate: Joined) -> None:
    """It has less than it acknowledged: all above that is sent again, under the same identity."""
    for n in range(4):
        gate.verdict(f"OPEN{n}")
    gate.site.written()
    outbox = gate.courier.outbox()
    assert gate.courier.upload()["acknowledged"] == 4
    gate.hand.have = {str(outbox["rows"][0][0]): 1}
    gate.courier.tell()
    assert until(lambda: gate.courier.outbox()["rows"]) == outbox["rows"][1:]
    gate.hand.have = {}
    gate.courier.tell()
    until(lambda: gate.courier.outbox()["rows"] == outbox["rows"])
    assert gate.courier.upload()["acknowledged"] == 4


def test_a_restored_ledger_takes_a_new_epoch(gate: Joined) -> None:
    """The central has more of this gate than the gate: it is an older image of itself, and what follows is
    told apart from what was."""
    gate.verdict("OPEN0")
    gate.site.written()
    (row,) = gate.courier.outbox()["rows"]
    gate.hand.have = {str(row[0]): 5}
    gate.courier.tell()
    epoch = until(lambda: next((e for e in [gate.status["ledger"]["epoch"]] if e != row[0]), None))
    gate.verdict("OPEN1")
    gate.site.written()
    assert [(r[0], r[2]) for r in gate.courier.outbox()["rows"]] == [(row[0], 1), (epoch, 2)]
    assert gate.courier.poll()["snapshot"] is not None
    assert gate.courier.upload()["acknowledged"] == 2
    gate.courier.tell()
    assert gate.status["ledger"]["epoch"] == epoch


def test_a_damaged_event_keeps_its_place(gate: Joined) -> None:
    """What the disk has damaged goes out as damaged, and those after it as they are."""
    for n in range(3):
        gate.verdict(f"OPEN{n}")
    gate.site.written()
    with contextlib.closing(sqlite3.connect(gate.site.data_dir / "ledger.db", timeout=10)) as ledger:
        ledger.execute("UPDATE event SET verdict = 'revoked' WHERE seq = 2")
        ledger.commit()
    rows = gate.courier.outbox()["rows"]
    assert [(row[1] is None, row[2]) for row in rows] == [(False, 1), (True, 2), (False, 3)]
    assert set(rows[1][3:]) == {None}
    assert gate.courier.upload()["acknowledged"] == 3


def test_another_central_gets_nothing_of_before(gate: Joined) -> None:
    """Events from before belong to the central that was joined then; the same one, also where it
    has moved, gets all that it misses."""
    gate.verdict("OPEN0")
    gate.site.written()
    gate.enrol()
    assert [row[2] for row in gate.courier.outbox()["rows"]] == [1]
    gate.enrol(url="https://moved.example")
    assert [row[2] for row in gate.courier.outbox()["rows"]] == [1]
    gate.hand.keys = Hand().keys
    gate.enrol(url="https://other.example")
    assert gate.courier.outbox()["rows"] == []
    gate.verdict("OPEN1")
    gate.site.written()
    assert [row[2] for row in gate.courier.outbox()["rows"]] == [2]
    assert gate.courier.upload()["acknowledged"] == 2


# --- power cuts ---------------------------------------------------------------------------------------


def test_killed_at_any_moment(gate: Joined) -> None:
    """kill -9 in the middle of changes, commands and acknowledgements: an answer was taken in whole or not at
    all, a command is obeyed at most once, and each event reaches the central once, as the ledger has it."""
    rng, hand = random.Random(SEED), gate.hand
    central: dict[tuple[int, int], str] = {}
    ended: set[int] = set()
    given = 0
    for n in range(KILLS):
        card_ = n % CARDS
        again = card(card_, f"OPEN{card_}", "open")[-1] if card_ in ended else revoked(card_)
        for _ in range(rng.randrange(3)):
            gate.verdict(f"OPEN{rng.randrange(CARDS)}")
        outbox = gate.courier.outbox()
        poll = gate.courier.poll()
        gate.throw("uploaded", rng.random() * 0.004, **hand.took(outbox))
        for epoch, digest, seq, *_ in outbox["rows"]:
            assert central.setdefault((epoch, seq), digest) == digest
        command = hand.command("open", lane="north")
        given += 1
        hand.position = int(poll["cursor"].split(".")[1])
        gate.throw("answer", rng.random() * 0.008, **hand.changes(poll, [again, command]))
        gate.restart()
        hand.position = int(gate.courier.poll()["cursor"].split(".")[1])
        if gate.courier.poll()["cursor"] != poll["cursor"]:
            ended ^= {card_}
        elif rng.random() < 0.5:
            gate.courier.tell(again, command)
            ended ^= {card_}
        assert (gate.verdict(f"OPEN{card_}") == "revoked") == (card_ in ended)
    gate.site.written()
    until(lambda: not _send(gate, central))
    events = gate.site.events()
    assert sorted((e["epoch"], e["seq"]) for e in events) == sorted(central)
    opened = [e for e in events if (e["kind"], e.get("by")) == ("open", "central")]
    assert 0 < len(opened) <= given
    assert gate.status["ledger"]["acknowledged"] == gate.status["ledger"]["last_seq"] == len(events)


def _send(gate: Joined, central: dict[tuple[int, int], str]) -> list[Any]:
    """Send what there is, and give what there was."""
    outbox = gate.courier.outbox()
    for epoch, digest, seq, *_ in outbox["rows"]:
        assert central.setdefault((epoch, seq), digest) == digest
    if outbox["rows"]:
        gate.courier.client.call("uploaded", **gate.hand.took(outbox))
    rows: list[Any] = outbox["rows"]
    return rows
