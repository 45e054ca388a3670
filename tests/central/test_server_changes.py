"""GET /v1/changes and POST /v1/enroll of docs/protocol.md, against a real central on loopback."""

from __future__ import annotations

import base64
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgpack
import orjson
import pytest

from gateway.model import HOUR, SECOND
from gateway.sync import protocol
from gateway.sync.protocol import MAX_ANSWER, MAX_RECORDS
from tests.central.server_rig import Gate, Server, background, card, scan


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("central")) as server:
        yield server


def waiting(server: Server, gate: Gate) -> None:
    """Until the central has this gateway's poll in hand: its condition is shown."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        rows = server.admin("GET", "gateways").body["gateways"]
        if any(row["gateway"] == gate.id and row["condition"] for row in rows):
            time.sleep(0.2)  # it is written down just before the wait begins
            return
        time.sleep(0.02)
    raise AssertionError("the poll did not arrive")


def conditioned(**condition: Any) -> dict[str, str]:
    return {"Gateway-Condition": base64.urlsafe_b64encode(orjson.dumps(condition)).decode()}


def poll(gate: Gate) -> Any:
    """A long poll, recognisable to ``waiting``; it fails where it is not answered long before its time."""
    return gate.changes(30, within=20, **conditioned(version="0.1.0"))


# --- joining and tokens --------------------------------------------------------------------------------


def test_a_gateway_joins_with_a_code(server: Server) -> None:
    """Enrolment gives id, venue, token, history, the time, and the keys that verify all that follows."""
    gate = Gate(server, "join", secrets.token_hex(32))
    said = gate.enroll(server.code_for("join")).body
    assert set(said) == {"gateway", "venue", "token", "history", "time", "keys"}
    assert (said["gateway"], said["venue"]) == ("join", "main")
    assert protocol.instant(said, "time") > 0
    answer = gate.changes()
    assert answer.status == 410
    assert answer.body["history"] == said["history"]


def test_a_lost_answer_to_enrolment_is_asked_for_again(server: Server) -> None:
    """The same code from the same machine gives a new token until one was used; nobody else gets anything."""
    code = server.code_for("again")
    gate = Gate(server, "again", secrets.token_hex(32))
    gate.enroll(code)
    lost = gate.token
    assert gate.enroll(code).status == 200
    assert gate.token != lost
    other = Gate(server, "again", secrets.token_hex(32)).enroll(code)
    assert (other.status, other.code) == (403, "bad_code")
    assert gate.changes().status == 410
    used = gate.enroll(code)
    assert (used.status, used.code) == (403, "bad_code")


def test_enrolment_ends_the_instance_before(server: Server) -> None:
    """A gateway that was replaced is refused from the moment at which the new one has joined."""
    old = server.gate("twin")
    with background(lambda: poll(old)) as late:
        waiting(server, old)
        new = server.gate("twin")
    assert [(answer.status, answer.code) for answer in late] == [(401, "bad_token")]
    assert old.changes().status == 401
    assert new.changes().status == 200


def test_wrong_codes_are_counted(tmp_path: Path) -> None:
    """Unknown codes are 403, after a few 429 with Retry-After, and an expired one is as good as unknown."""
    with Server(tmp_path) as server:
        code = server.code_for("late")
        server.clock.ahead = 25 * HOUR
        gate = Gate(server, "late", secrets.token_hex(32))
        assert gate.enroll(code).code == "bad_code"
        codes = [gate.enroll("AAAA-BBBB-CCCC") for _ in range(6)]
        assert [answer.status for answer in codes] == [403] * 4 + [429] * 2
        assert 0 < int(codes[-1].headers["Retry-After"]) <= 60
        assert codes[-1].code == "too_many"


def test_behind_a_proxy_the_address_is_its_word(tmp_path: Path) -> None:
    """Failures are counted by the last address of X-Forwarded-For, so that one does not lock all out."""
    with Server(tmp_path, behind_proxy=True) as server:
        body = orjson.dumps({"code": "AAAA-BBBB-CCCC", "machine": "0" * 64})

        def status(address: str) -> int:
            headers = {"Content-Type": "application/json", "X-Forwarded-For": f"203.0.113.9, {address}"}
            return server.ask("POST", "/v1/enroll", body, headers).status

        assert [status("198.51.100.1") for _ in range(6)] == [403] * 5 + [429]
        assert status("198.51.100.2") == 403


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"code": 5, "machine": "0" * 64},
        {"code": "AAAA", "machine": "x"},
        {"code": "AAAA", "machine": "0" * 64, "hostname": 5},
        {"code": "A" * 65, "machine": "0" * 64},
    ],
)
def test_nonsense_is_no_enrolment(server: Server, body: dict[str, Any]) -> None:
    """A body that is not as described is 400, and no attempt at a code."""
    answer = server.ask("POST", "/v1/enroll", orjson.dumps(body), {"Content-Type": "application/json"})
    assert (answer.status, answer.code) == (400, "bad_request")


def test_tokens_are_asked_for(server: Server) -> None:
    """No token, an unknown one and one from another computer are told apart, on every call."""
    gate = server.gate("who")
    for method, path, body in (
        ("GET", "/v1/changes?nonce=" + "n" * 20, None),
        ("GET", "/v1/snapshot", None),
        ("POST", "/v1/events", b"{}"),
    ):
        asked = [
            server.ask(method, path, body, headers)
            for headers in (
                {"Gateway-Machine": gate.machine},
                {"Gateway-Machine": gate.machine, "Authorization": "Bearer nobody"},
                {"Gateway-Machine": gate.machine, "Authorization": "Bearer nob\xf6dy"},
                {"Gateway-Machine": "0" * 64, "Authorization": f"Bearer {gate.token}"},
                {"Authorization": f"Bearer {gate.token}"},
            )
        ]
        assert [(answer.status, answer.code) for answer in asked] == [
            *[(401, "bad_token")] * 3,
            (403, "other_machine"),
            (400, "bad_request"),
        ]
        assert asked[0].headers["WWW-Authenticate"] == "Bearer"
    kinds = {each["kind"] for each in server.admin("GET", "conflicts").body["conflicts"]}
    assert kinds == {"instance"}


def test_many_bad_tokens_are_slowed_down_and_nobody_else(tmp_path: Path) -> None:
    """Bad tokens become 429 with Retry-After; a good one from the same address is served all the while."""
    with Server(tmp_path) as server:
        gate = server.gate("good")
        bad = [
            server.ask("GET", "/v1/snapshot", headers=gate.headers(Authorization=f"Bearer x{number}"))
            for number in range(21)
        ]
        assert [answer.status for answer in bad] == [401] * 20 + [429]
        assert int(bad[-1].headers["Retry-After"]) > 0
        assert gate.changes().status == 200
        text = "\n".join(server.log.lines)
        assert gate.token not in text
        assert "nonce" not in text


def test_a_token_is_renewed_after_a_day(tmp_path: Path) -> None:
    """Gateway-Token comes once a day, with one answer, so that two boxes with copies of a card never both get
    it; where that is lost another comes an hour later. Once it was used, the old one is used up."""
    with Server(tmp_path) as server:
        gate = server.gate("daily")
        assert "Gateway-Token" not in gate.changes().headers
        server.clock.ahead = 25 * HOUR
        # A token is not looked at again within a minute, unless the gateway has something new to say.
        lost = gate.changes(**conditioned(version="0.2.0")).headers["Gateway-Token"]
        assert "Gateway-Token" not in gate.changes().headers
        server.clock.ahead = 27 * HOUR
        first = gate.changes(**conditioned(version="0.3.0")).headers["Gateway-Token"]
        assert first != lost
        old, gate.token = gate.token, first
        assert "Gateway-Token" not in gate.changes().headers
        gate.token = old
        again = gate.changes()
        assert (again.status, again.code) == (401, "token_used_up")
        [conflict] = server.admin("GET", "conflicts").body["conflicts"]
        assert (conflict["kind"], conflict["gateways"]) == ("instance", ["daily"])


# --- cursors and pages ---------------------------------------------------------------------------------


def test_changes_come_once_in_their_newest_version(server: Server) -> None:
    """What changed since the cursor, each record once as it is now; what is gone as a deletion."""
    venue = server.venue("once")
    gate = server.gate("once-1", venue)
    server.put(card(1), card(2), venue=venue)
    server.put(card(1, state="lost"), venue=venue)
    server.put({"kind": "credential", "id": "C2", "deleted": True}, venue=venue)
    found = gate.records()
    assert found == [card(1, state="lost"), {"kind": "credential", "id": "C2", "deleted": True}]
    assert gate.records() == []


def test_an_answer_says_everything_that_is_promised(server: Server) -> None:
    """The fields of an answer to /v1/changes, with position growing as the log does."""
    venue = server.venue("said")
    gate = server.gate("said-1", venue)
    before = gate.changes().body
    assert set(before) == {
        *("gateway", "venue", "history", "nonce", "time", "have", "cursor", "next", "position", "more"),
        *("forget", "records"),
    }
    assert before["cursor"] == gate.cursor
    server.put(card(1), venue=venue)
    after = gate.changes().body
    assert after["position"] > before["position"]
    assert after["forget"] is None


def test_pages_are_bounded(server: Server) -> None:
    """Many records, and large ones, come in answers within the limits, and all come."""
    venue = server.venue("pages")
    gate = server.gate("pages-1", venue)
    large = {"kind": "product", "rules": [], "name": {"en": "x" * 60_000}}
    server.put(
        *(card(number) for number in range(600)), *(large | {"id": f"P{n}"} for n in range(9)), venue=venue
    )
    seen, more = [], True
    while more:
        answer = gate.changes()
        assert len(answer.raw) <= MAX_ANSWER
        body = answer.body
        assert 0 < len(body["records"]) <= MAX_RECORDS
        seen += [record["id"] for record in body["records"]]
        gate.cursor, more = body["next"], body["more"]
    assert seen == [f"C{number}" for number in range(600)] + [f"P{number}" for number in range(9)]


def test_other_cursors_are_gone(server: Server) -> None:
    """Without a cursor, with one of another venue, and with one that was never given: a signed 410."""
    venue = server.venue("gone")
    gate = server.gate("gone-1", venue)
    other = server.gate("gone-2")
    for cursor in ("", other.cursor, "nonsense", gate.cursor[:-1] + "!", "x" * 128):
        answer = gate.changes(cursor=cursor) if cursor else Gate.changes(_without(gate))
        assert answer.status == 410
        body = answer.body
        assert set(body) == {"gateway", "venue", "history", "nonce", "time", "have", "gone"}
        assert "Gateway-Signature" in answer.headers
    server.put(card(1), venue=venue)
    assert gate.changes().status == 200


def _without(gate: Gate) -> Gate:
    return Gate(gate.server, gate.id, gate.machine, gate.venue, gate.token, gate.keys)


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"nonce": "short"},
        {"nonce": "n" * 65},
        {"nonce": "n" * 15 + "é"},
        {"nonce": "n" * 20, "cursor": "x" * 129},
        {"nonce": "n" * 20, "cursor": "a b"},
        {"nonce": "n" * 20, "wait": "-1"},
        {"nonce": "n" * 20, "wait": "soon"},
        {"nonce": "n" * 20, "keys": "a b"},
        {"nonce": "n" * 20, "keys": "x" * 33},
        {"nonce": "n" * 20, "keys": ",".join(f"k{number}" for number in range(17))},
    ],
)
def test_questions_that_are_none(server: Server, query: dict[str, str]) -> None:
    """A nonce, cursor, wait or list of keys that is not as described is 400."""
    answer = server.ask("GET", f"/v1/changes?{urlencode(query)}", headers=server_gate(server).headers())
    assert (answer.status, answer.code) == (400, "bad_request")


_asking: dict[str, Gate] = {}


def server_gate(server: Server) -> Gate:
    """One gateway for all the questions that need any."""
    if server.url not in _asking:
        _asking[server.url] = server.gate("asking")
    return _asking[server.url]


def test_msgpack_has_the_same_structure(server: Server) -> None:
    """Where Accept names msgpack the answer is that, signed as sent, with the same records."""
    venue = server.venue("packed")
    gate = server.gate("packed-1", venue)
    server.put(card(1), venue=venue)
    packed = gate.changes(Accept="application/msgpack, application/json;q=0.5")
    assert packed.headers.get_content_type() == "application/msgpack"
    body = msgpack.unpackb(packed.raw)
    plain = gate.changes().body
    differ = ("nonce", "time")
    assert {k: v for k, v in body.items() if k not in differ} == {
        k: v for k, v in plain.items() if k not in differ
    }
    assert gate.changes(cursor="nonsense", Accept="application/msgpack").status == 410


def test_a_deleted_holder_is_told(server: Server) -> None:
    """``forget`` names the place and time of the newest deletion of a holder; what was theirs goes too."""
    venue = server.venue("forget")
    gate = server.gate("forget-1", venue)
    server.put(
        {"kind": "holder", "id": "HF", "name": "A. Lind"},
        {"kind": "entitlement", "id": "EF", "product": "p", "holder": "HF"},
        venue=venue,
    )
    assert {"kind": "holder", "id": "HF"} in gate.records()  # names are not sent unless the venue says so
    assert server.admin("DELETE", f"venues/{venue}/records/holder/HF").status == 200
    body = gate.changes().body
    assert {"kind": "entitlement", "id": "EF", "deleted": True} in body["records"]
    assert body["forget"]["position"] <= body["position"]
    assert protocol.instant(body["forget"], "at") <= protocol.instant(body, "time")


# --- waiting -------------------------------------------------------------------------------------------


def test_a_change_is_answered_as_it_is_made(server: Server) -> None:
    """A poll that waits comes back with the change, long before its time is over."""
    venue = server.venue("wake")
    gate = server.gate("wake-1", venue)
    with background(lambda: poll(gate)) as answers:
        waiting(server, gate)
        server.put(card(1), venue=venue)
    assert answers[0].body["records"] == [card(1)]


def test_nothing_new_is_an_answer(server: Server) -> None:
    """At the end of its wait a poll says so: no records, and a cursor as good as the one given."""
    gate = server.gate("quiet", server.venue("quiet"))
    body = gate.changes(wait=1).body
    assert (body["records"], body["more"]) == ([], False)
    gate.cursor = body["next"]
    assert gate.changes().body["records"] == []


def test_other_venues_are_not_told(server: Server) -> None:
    """What is put into another venue is no news here."""
    venue = server.venue("apart")
    gate = server.gate("apart-1", venue)
    with background(lambda: poll(gate)) as answers:
        waiting(server, gate)
        server.put(card(77))
        server.put(card(1), venue=venue)
    assert answers[0].body["records"] == [card(1)]


def test_entries_wake_the_others_and_not_who_made_them(server: Server) -> None:
    """An entry goes to the venue's other gates at once; its own gate hears of it with the next news."""
    venue = server.venue("usage")
    mine, other = server.gate("usage-1", venue), server.gate("usage-2", venue)
    with background(lambda: poll(mine)) as own:
        waiting(server, mine)
        with background(lambda: poll(other)) as heard:
            waiting(server, other)
            assert mine.upload(scan(mine, 1)).body["acknowledged"] == [[7, 1, 1]]
        [usage] = heard[0].body["records"]
        server.put(card(1), venue=venue)
    assert (usage["kind"], usage["gateway"], usage["epoch"], usage["seq"]) == ("usage", "usage-1", 7, 1)
    assert own[0].body["records"] == [usage, card(1)]
    assert own[0].body["have"] == {"7": 1}


def test_a_client_that_goes_away_leaves_nothing_behind(server: Server) -> None:
    """A poll whose connection is cut does not wait on; the next one of that gateway is served."""
    gate = server.gate("cut", server.venue("cut"))
    for _ in range(6):
        with pytest.raises(TimeoutError):
            server.ask(
                "GET",
                "/v1/changes?" + urlencode({"nonce": "n" * 20, "cursor": gate.cursor, "wait": 25}),
                headers=gate.headers(),
                timeout=0.1,
            )
    assert gate.changes().status == 200


# --- commands, revocation, keys ------------------------------------------------------------------------


def test_a_command_goes_to_its_gateway_alone(server: Server) -> None:
    """It wakes its gateway and no other, and comes again for as long as the cursor says it was not heard."""
    venue = server.venue("order")
    gate, other = server.gate("order-1", venue), server.gate("order-2", venue)
    with background(lambda: poll(other)) as deaf:
        waiting(server, other)
        with background(lambda: poll(gate)) as heard:
            waiting(server, gate)
            made = server.admin("POST", "gateways/order-1/commands", {"do": "open", "lane": "north"}).body
        server.put(card(5), venue=venue)
    [command] = heard[0].body["records"]
    expected = {"kind": "command", "id": made["id"], "gateway": "order-1", "do": "open", "lane": "north"}
    assert {**command, "at": ""} == {**expected, "at": "", "ttl_s": 30}
    assert deaf[0].body["records"] == [card(5)]
    assert gate.records() == [command, card(5)], "the answer may have been lost"
    assert gate.records() == []


def test_a_command_given_while_a_question_is_answered(server: Server) -> None:
    """No answer leads past a command that it does not have."""
    gate = server.gate("between", server.venue("between"))
    with server.clock.holding():
        order = {"do": "open", "lane": "north"}
        with background(lambda: server.admin("POST", "gateways/between/commands", order)) as made:
            assert server.clock.held.wait(20)
            with background(gate.changes) as answers:
                time.sleep(0.3)  # it is behind the command now
                server.clock.let_go()
    gate.cursor = answers[0].body["next"]
    heard = answers[0].body["records"] + gate.records()
    assert [record["id"] for record in heard] == [made[0].body["id"]]


def test_an_expired_command_is_not_sent(server: Server) -> None:
    """A gateway that comes too late is not told, nor one whose answer was lost and that asks again then."""
    gate = server.gate("tardy", server.venue("tardy"))
    server.admin("POST", "gateways/tardy/commands", {"do": "clear", "area": "hall", "ttl_s": 1})
    assert len(gate.changes().body["records"]) == 1
    server.clock.ahead += 2 * SECOND
    assert gate.records() == []


def test_a_revoked_gateway_hears_it_at_once(server: Server) -> None:
    """Its waiting poll is answered by a signed 403, and so is everything that it asks later."""
    gate = server.gate("thief", server.venue("thief"))
    with background(lambda: poll(gate)) as answers:
        waiting(server, gate)
        assert server.admin("POST", "gateways/thief/revoke").status == 200
    for answer in (answers[0], gate.changes(), gate.changes(wait=25)):
        assert answer.status == 403
        assert set(answer.body) == {"gateway", "venue", "history", "nonce", "time", "revoked"}
        assert "Gateway-Signature" in answer.headers
    assert gate.upload(scan(gate, 1)).code == "revoked"
    refused = server.ask("GET", "/v1/snapshot", headers=gate.headers())
    assert (refused.status, refused.code) == (403, "revoked")


def test_keys_are_announced_used_and_retired(tmp_path: Path) -> None:
    """A key reaches the gates signed by the one before; each is signed to by the newest that it knows."""
    with Server(tmp_path) as server:
        server.put(card(1))
        gate, slow = server.gate("keyed"), server.gate("slow")
        [first] = gate.keys
        second = server.admin("POST", "keys").body["id"]
        [record] = gate.records()
        assert (record["kind"], record["id"]) == ("key", second)
        gate.keys[second] = protocol.public_bytes(record["public"])
        assert server.admin("POST", f"keys/{second}/use").status == 200
        assert gate.changes().headers["Gateway-Signature"].startswith(f"{second}:")
        assert slow.changes().headers["Gateway-Signature"].startswith(f"{first}:")
        assert server.admin("POST", f"keys/{second}/retire").status == 409
        assert server.admin("POST", f"keys/{first}/retire").body["state"] == "retired"
        assert {"kind": "key", "id": first, "deleted": True} in gate.records()
        states = {key["id"]: key["state"] for key in server.admin("GET", "keys").body["keys"]}
        assert states == {first: "retired", second: "present"}


# --- conditions ----------------------------------------------------------------------------------------


def test_the_last_condition_is_shown(server: Server) -> None:
    """How a gateway says it is stands in the list of gateways, with when it was last heard."""
    gate = server.gate("fit")
    gate.changes(**conditioned(version="0.1.0", lanes={"north": "normal"}))
    gate.changes(**conditioned(version="0.1.0", lanes={"north": "closed"}))
    [row] = [row for row in server.admin("GET", "gateways").body["gateways"] if row["gateway"] == "fit"]
    assert row["condition"]["lanes"] == {"north": "closed"}
    assert protocol.instant(row, "seen") > 0


@pytest.mark.parametrize(
    "header",
    [
        "%%%",
        base64.urlsafe_b64encode(b"[1]").decode(),
        base64.urlsafe_b64encode(b"{").decode(),
        base64.urlsafe_b64encode(b'{"a":' * 900).decode(),
        base64.urlsafe_b64encode(orjson.dumps({"x": "y" * 4200})).decode(),
    ],
)
def test_a_condition_that_is_none_keeps_no_news_back(server: Server, header: str) -> None:
    """A revocation must reach a gate whose condition cannot be read: that is left out, the rest answered."""
    answer = server_gate(server).changes(**{"Gateway-Condition": header})
    assert answer.status == 200


def test_a_condition_with_nothing_new_asks_nothing_of_the_store(server: Server) -> None:
    """What goes on with each scan and each change is no news; two hundred gateways say it at every commit."""
    gate = server.gate("calm")
    said = {"version": "0.1.0", "lanes": {"north": "normal"}, "generation": 1, "position": 5}
    said |= {"credentials": 9, "last_seq": 7, "acknowledged": 6, "clock_deviation_s": 0.001}
    gate.changes(**conditioned(**said))
    server.clock.asked = 0
    said |= {"position": 6, "credentials": 8, "last_seq": 9, "acknowledged": 9, "clock_deviation_s": 0.2}
    assert gate.changes(**conditioned(**said)).status == 200
    assert server.clock.asked == 0
    assert gate.changes(**conditioned(**said | {"lanes": {"north": "fault"}})).status == 200
    assert server.clock.asked > 0


# --- a backup ------------------------------------------------------------------------------------------


def test_a_restored_backup_is_another_history(tmp_path: Path) -> None:
    """A central that went on after its backup and is put back says 410 in a new history, and says what it
    still has of the events; one that had not gone on is told, too, once a cursor of one that had has come."""
    data, backup = tmp_path / "data", tmp_path / "backup"
    with Server(data) as server:
        server.put(card(1))
        gate, still = server.gate("ahead"), server.gate("still")
        gate.upload(scan(gate, 1))
        gate.records()
        history = gate.changes().body["history"]
    shutil.copytree(data, backup)
    with Server(data) as server:
        gate.server = server
        server.put(card(2))
        gate.upload(scan(gate, 2))
        assert card(2) in gate.records()
    shutil.rmtree(data)
    backup.rename(data)
    with Server(data) as server:
        gate.server = still.server = server
        answer = gate.changes()
        assert answer.status == 410
        assert answer.body["history"] != history
        assert answer.body["have"] == {"7": 1}
        assert still.changes().status == 410
        gate.catch_up()
        assert gate.changes().body["history"] == answer.body["history"]
        assert gate.upload(scan(gate, 2)).body["acknowledged"] == [[7, 2, 2]]
