"""The admin API against a real central: roles, records, acts, events, tokens."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from gateway.central import loading
from gateway.central.admin import OPERATIONS, routes
from gateway.central.openapi import PREFIX
from tests.central.server_rig import Gate, Server, card, scan


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("central")) as server:
        yield server


@pytest.fixture(scope="module")
def tokens(server: Server) -> dict[str, str]:
    """A token of each role."""
    return {
        role: server.admin("POST", "tokens", {"name": f"a {role}", "role": role}).body["token"]
        for role in ("read", "operate", "admin")
    }


def holder(number: int, **more: Any) -> dict[str, Any]:
    return {"kind": "holder", "id": f"H{number}", "name": f"N. {number}"} | more


def entitlement(number: int, **more: Any) -> dict[str, Any]:
    return {"kind": "entitlement", "id": f"E{number}", "product": "family", "holder": f"H{number}"} | more


def member(server: Server, number: int) -> None:
    """A holder with an entitlement of the product ``family``, and a card."""
    server.put(
        {"kind": "product", "id": "family", "rules": [{}]},
        holder(number),
        entitlement(number),
        card(number, entitlements=[f"E{number}"]),
    )


def path(kind: str, id_: str, venue: str = "main") -> str:
    return f"venues/{venue}/records/{kind}/{id_}"


# --- who may ------------------------------------------------------------------------------------------


def test_every_call_asks_for_its_role(server: Server, tokens: dict[str, str]) -> None:
    """Each operation refuses whoever has no token, and each role below its own; nothing is done by that."""
    rank = {"read": 0, "operate": 1, "admin": 2}
    for operation in OPERATIONS:
        if operation.role is None:
            continue
        at = PREFIX + operation.path.replace("{kind}", "area").replace("{", "").replace("}", "")
        nobody = server.ask(operation.method, at)
        assert (nobody.status, nobody.code) == (401, "bad_token"), at
        for role, token in tokens.items():
            if rank[role] < rank[operation.role]:
                answer = server.ask(operation.method, at, headers={"Authorization": f"Bearer {token}"})
                assert (answer.status, answer.code) == (403, "forbidden"), at


def test_a_gateways_token_is_no_admin_token(server: Server) -> None:
    """Neither opens the other's door."""
    gate = server.gate("door", here=False)
    assert server.admin("GET", "venues", token=gate.token).code == "bad_token"
    gate.token = server.token
    assert gate.changes().code == "bad_token"


def test_codes_are_shown_to_the_role_admin_alone(server: Server, tokens: dict[str, str]) -> None:
    """Record, history and export leave a credential's code out for the other roles."""
    member(server, 1)
    for role, token in tokens.items():
        shown = [
            server.admin("GET", path("credential", "C1"), token=token).raw,
            server.admin("GET", path("credential", "C1") + "/history", token=token).raw,
            server.admin("GET", "venues/main/records", token=token).raw,
        ]
        assert all((b"CODE-000001" in raw) == (role == "admin") for raw in shown), role
        assert all(b'"C1"' in raw for raw in shown)


# --- records --------------------------------------------------------------------------------------------


def test_a_load_is_all_or_nothing(server: Server) -> None:
    """One bad record and nothing is loaded; the answer says line and field of it, and never a code."""
    venue = server.venue("whole")
    records = [
        card(2000),
        {"kind": "credential", "id": "C2001", "code": "BAD\x00CODE"},
        holder(2002, state=5),
    ]
    answer = server.admin("POST", f"venues/{venue}/records", records)
    assert (answer.status, answer.code) == (400, "bad_records")
    body = answer.body
    assert [(fault["line"], fault["id"], fault["field"]) for fault in body["faults"]] == [
        (2, "C2001", "code"),
        (3, "H2002", "state"),
    ]
    assert "line 2" in body["error"]
    assert b"BAD" not in answer.raw
    assert server.admin("GET", f"venues/{venue}/records").raw == b""
    rest = server.admin("POST", f"venues/{venue}/records?skip_bad=1", records).body
    assert (rest["count"], rest["bad"]) == (1, 2)
    assert server.admin("GET", f"venues/{venue}/records").raw == orjson.dumps(card(2000)) + b"\n"


def test_a_long_load_is_done_in_parts(server: Server) -> None:
    """Lines are counted over all parts, nothing is loaded before all was looked through, and others have
    their turn meanwhile."""
    venue = server.venue("long")
    gate = server.gate("long-1", venue)
    many = loading.PART * 3
    records = [card(number) for number in range(100_000, 100_000 + many)]
    bad = [*records, {"kind": "area"}]
    refused = server.admin("POST", f"venues/{venue}/records", bad)
    assert [fault["line"] for fault in refused.body["faults"]] == [many + 1]
    assert gate.records() == []
    unknown: list[dict[str, Any]] = [{"kind": "weather"}, {"kind": "weather"}]
    result = server.admin("POST", f"venues/{venue}/records", [*records, *unknown]).body
    assert (result["count"], result["bad"], result["unknown"]) == (many, 0, {"weather": 2})
    assert len(gate.records()) == many


def test_a_line_without_an_end_is_one_bad_record(server: Server) -> None:
    """A line that is far too long is not held in memory whole, and is one fault; the next is read."""
    venue = server.venue("line")
    raw = b'{"kind":"area","id":"' + b"x" * 3_000_000 + b'"}\n' + orjson.dumps(card(3000)) + b"\n\n"
    result = server.admin(
        "POST", f"venues/{venue}/records?skip_bad=1", raw, Content_Type="application/x-ndjson"
    )
    assert (result.body["count"], result.body["bad"]) == (1, 1)


def test_what_is_exported_can_be_loaded(server: Server) -> None:
    """The export of one venue, put into another, is that venue."""
    first, second = server.venue("from"), server.venue("to")
    server.put(holder(4000), entitlement(4000), card(4000, entitlements=["E4000"]), venue=first)
    exported = server.admin("GET", f"venues/{first}/records")
    assert exported.headers.get_content_type() == "application/x-ndjson"
    loaded = server.admin(
        "POST", f"venues/{second}/records", exported.raw, Content_Type="application/x-ndjson"
    )
    assert loaded.body["count"] == 3
    assert server.admin("GET", f"venues/{second}/records").raw == exported.raw


def test_many_exports_at_once_leave_room_for_others(server: Server) -> None:
    """More long answers than may be under way at a time all come, and other calls between them."""
    venue = server.venue("exports")
    server.put(*(card(number) for number in range(50_000, 52_000)), venue=venue)
    lengths: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: lengths.append(len(server.admin("GET", f"venues/{venue}/records").raw))
        )
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    assert server.admin("GET", "venues").status == 200
    for thread in threads:
        thread.join(40)
    assert len(lengths) == 20
    assert len(set(lengths)) == 1


def test_a_record_is_put_read_and_deleted(server: Server) -> None:
    """PUT does the same however often it comes; what is gone is 404, and its versions stay."""
    at = path("area", "A5000")
    for _ in range(2):
        assert server.admin("PUT", at, {"name": "Hall"}).status == 200
    assert server.admin("GET", at).body == {"kind": "area", "id": "A5000", "name": "Hall"}
    assert server.admin("PUT", at, {"kind": "area", "id": "A5000", "capacity": 5}).status == 200
    assert server.admin("DELETE", at).body == {"kind": "area", "id": "A5000", "deleted": True}
    gone = server.admin("DELETE", at)
    assert (gone.status, gone.code) == (404, "not_found")
    assert server.admin("GET", at).status == 404
    versions = server.admin("GET", at + "/history").body["versions"]
    assert [version["deleted"] for version in versions] == [False, False, True]
    assert [version["record"] and version["record"].get("capacity") for version in versions] == [
        None,
        5,
        None,
    ]
    assert {version["by"] for version in versions} == {"admin"}


def test_a_deleted_holder_is_forgotten(server: Server) -> None:
    """Nothing of the person stands in the history after the deletion."""
    server.put(holder(5001))
    assert server.admin("DELETE", path("holder", "H5001")).status == 200
    history = server.admin("GET", path("holder", "H5001") + "/history")
    assert [version["record"] for version in history.body["versions"]] == [None, None]
    assert b"N. 5001" not in history.raw


@pytest.mark.parametrize(
    ("at", "record", "status"),
    [
        (path("holder", "H1"), {"id": "H2"}, 400),
        (path("holder", "H1"), {"kind": "area"}, 400),
        (path("holder", "H1"), {"state": "tired"}, 400),
        (path("holder", "H1"), {"deleted": True}, 400),
        (path("command", "H1"), {}, 400),
        (path("credential", "C1"), {"code": ""}, 400),
        (path("holder", "H1", "nowhere"), {}, 404),
        (path("venue", "other"), {"timezone": "Europe/Berlin"}, 404),
    ],
)
def test_a_record_that_is_none_is_not_put(
    server: Server, at: str, record: dict[str, Any], status: int
) -> None:
    """Kind and id are those of the path, and the record keeps the rules."""
    assert server.admin("PUT", at, record).status == status


def test_ids_may_have_any_characters(server: Server) -> None:
    """Also a slash, a per cent sign and letters that are not ASCII, percent-encoded in the path."""
    assert server.admin("PUT", path("holder", "a%2Fb%25%20%C3%A9"), {}).status == 200
    assert server.admin("GET", path("holder", "a%2Fb%25%20%C3%A9")).body["id"] == "a/b% é"
    usage = {
        "kind": "usage",
        "gateway": "old",
        "epoch": 1,
        "seq": 2,
        "at": "2026-11-21T10:00:00+00:00",
        "to": "hall",
    }
    assert server.admin("PUT", path("usage", "old%2F1%2F2"), usage).status == 200
    assert server.admin("GET", path("usage", "old%2F1%2F2")).body == usage
    assert server.admin("PUT", path("venue", "main"), {"timezone": "Europe/Berlin"}).status == 200
    assert server.admin("GET", path("venue", "main")).body["timezone"] == "Europe/Berlin"
    assert server.admin("GET", path("holder", "a%00b")).status == 400


# --- acts ----------------------------------------------------------------------------------------------


def test_acts_on_memberships(server: Server, tokens: dict[str, str]) -> None:
    """Each does what it says, reaches the gates, and stands in the history under the token's name."""
    member(server, 10)
    gate = server.gate("acts")
    at = tokens["operate"]
    for call, body, kind, id_, field, value in (
        ("credentials/C10/revoke", None, "credential", "C10", "state", "lost"),
        ("credentials/C10/revoke", {"state": "revoked"}, "credential", "C10", "state", "revoked"),
        (
            "entitlements/E10/renew",
            {"valid_until": "2027-12-31"},
            "entitlement",
            "E10",
            "valid_until",
            "2027-12-31",
        ),
        ("entitlements/E10/renew", {"valid_until": None}, "entitlement", "E10", "valid_until", None),
        ("entitlements/E10/suspend", {}, "entitlement", "E10", "state", "suspended"),
        ("entitlements/E10/resume", {}, "entitlement", "E10", "state", "active"),
        ("entitlements/E10/product", {"product": "family"}, "entitlement", "E10", "product", "family"),
        ("holders/H10/block", {}, "holder", "H10", "state", "blocked"),
        ("holders/H10/unblock", {}, "holder", "H10", "state", "active"),
    ):
        assert server.admin("POST", call, body, token=at).status == 200, call
        assert server.admin("GET", path(kind, id_)).body.get(field) == value, call
    last = server.admin("GET", path("holder", "H10") + "/history").body["versions"][-1]
    assert last["by"] == "a operate"
    assert {record["id"] for record in gate.records()} >= {"C10", "E10", "H10"}


def test_a_card_is_replaced(server: Server) -> None:
    """The new card has the old one's entitlements, the old one is refused, and the code is found again."""
    member(server, 11)
    gate = server.gate("replaced")
    made = server.admin("POST", "credentials/C11/replace", {"id": "C11b", "code": "NEW-11"})
    assert made.body == {"credential": "C11b", "replaces": "C11"}
    records = {record["id"]: record for record in gate.records()}
    assert records["C11"]["state"] == "replaced"
    assert records["C11b"]["entitlements"] == ["E11"]
    assert server.admin("POST", "codes/find", {"code": "NEW-11"}).body == {"credential": "C11b"}
    assert server.admin("POST", "codes/find", {"code": "NO-SUCH"}).body == {"credential": None}


@pytest.mark.parametrize(
    ("call", "body", "status"),
    [
        ("credentials/C999/revoke", {}, 404),
        ("credentials/C1/revoke", {"state": "eaten"}, 400),
        ("credentials/C1/replace", {"id": "C1x"}, 400),
        ("entitlements/E1/renew", {}, 400),
        ("entitlements/E1/renew", {"valid_until": "soon"}, 409),
        ("entitlements/E1/renew", {"valid_until": 5}, 400),
        ("entitlements/E1/product", {"product": "none"}, 404),
        ("holders/H999/block", {}, 404),
        ("codes/find", {}, 400),
        ("codes/find", [1], 415),
        ("gateways/nobody/revoke", {}, 404),
        ("gateways/nobody/token", {}, 404),
        ("gateways/nobody/commands", {"do": "open", "lane": "n"}, 404),
        ("venues/nowhere/enrolment-codes", {"gateway": "g"}, 404),
        ("venues/main/enrolment-codes", {"gateway": "g", "ttl_s": 0}, 400),
        ("venues/main/enrolment-codes", {"gateway": ""}, 400),
        ("venues/main/enrolment-codes", {"gateway": "no/rth"}, 409),
        ("venues", {"id": "main"}, 409),
        ("venues", {"id": "x", "names": "yes"}, 400),
        ("keys/k9/use", {}, 404),
        ("tokens", {"name": "admin", "role": "admin"}, 409),
        ("tokens", {"name": "x", "role": "king"}, 400),
    ],
)
def test_what_cannot_be_done_says_so(server: Server, call: str, body: Any, status: int) -> None:
    """Nothing there is 404, a contradiction 409, a body that is not as described 400."""
    member(server, 1)
    answer = server.admin("POST", call, body)
    assert answer.status == status
    assert answer.code


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"do": "open", "lane": "north"}, 201),
        ({"do": "normal", "lane": "north", "ttl_s": 3600}, 201),
        ({"do": "clear", "area": "hall"}, 201),
        ({"do": "annul", "seq": 5}, 201),
        ({"do": "annul", "seq": "5"}, 400),
        ({"do": "open"}, 400),
        ({"do": "open", "lane": "north", "ttl_s": 3601}, 400),
        ({"do": "dance", "lane": "north"}, 400),
        ({"do": ["open"], "lane": "north"}, 400),
        ({}, 400),
    ],
)
def test_commands(server: Server, body: dict[str, Any], status: int) -> None:
    """Each command needs what it acts on, and a time for which it is worth something."""
    if not any(row["gateway"] == "told" for row in server.admin("GET", "gateways").body["gateways"]):
        server.gate("told", here=False)
    assert server.admin("POST", "gateways/told/commands", body).status == status


# --- gateways, tokens ------------------------------------------------------------------------------------


def test_a_gateways_token_is_rotated(server: Server) -> None:
    """At once: those before are worth nothing, and the operator has the new one."""
    gate = server.gate("rotated", here=False)
    new = server.admin("POST", "gateways/rotated/token", {"at_once": True}).body["token"]
    assert gate.changes().code == "bad_token"
    gate.token = new
    assert gate.changes().status == 410


def test_admin_tokens_come_and_go(server: Server) -> None:
    """A new one is shown once and works, a revoked one does not, and the last admin's cannot go."""
    made = server.admin("POST", "tokens", {"name": "till 2", "role": "operate"}).body
    assert server.admin("GET", "venues", token=made["token"]).status == 200
    listed = server.admin("GET", "tokens")
    assert made["token"].encode() not in listed.raw
    assert {"till 2"} <= {row["name"] for row in listed.body["tokens"]}
    assert server.admin("DELETE", "tokens/till%202").status == 200
    assert server.admin("GET", "venues", token=made["token"]).code == "bad_token"
    assert server.admin("DELETE", "tokens/till%202").status == 404


# --- events ----------------------------------------------------------------------------------------------


def uploaded(server: Server, id_: str, *events: dict[str, Any]) -> Gate:
    gate = server.gate(id_, here=False)
    assert gate.upload(*(scan(gate, seq, **event) for seq, event in enumerate(events, 1))).status == 200
    return gate


def test_events_by_cursor_and_filter(server: Server) -> None:
    """Pages go on from ``next``, and every filter leaves out what it should."""
    uploaded(
        server,
        "paged",
        {"verdict": "granted", "at": "2026-11-21T10:00:00+00:00", "holder": "H1"},
        {"verdict": "revoked", "at": "2026-11-21T11:00:00+00:00", "credential": "C9"},
        {"kind": "open", "at": "2026-11-21T12:00:00+00:00", "point": "side"},
    )
    seen, since = [], "0"
    while page := (answer := server.admin("GET", f"events?gateway=paged&limit=1&since={since}").body)[
        "events"
    ]:
        seen += [event["seq"] for event in page]
        since = answer["next"]
    assert seen == [1, 2, 3]
    assert answer["next"] == since
    for query, expected in (
        ("verdict=revoked", [2]),
        ("kind=open", [3]),
        ("point=side", [3]),
        ("credential=C9", [2]),
        ("holder=H1", [1]),
        ("after=2026-11-21T11:00:00Z", [2, 3]),
        ("before=2026-11-21T12:00:00%2B01:00", [1]),
        ("kind=none", []),
    ):
        events = server.admin("GET", f"events?gateway=paged&{query}").body["events"]
        assert [event["seq"] for event in events] == expected, query


@pytest.mark.parametrize(
    "query", ["limit=1001", "limit=-1", "limit=x", "since=x", "after=noon", "kind=", "gatway=north"]
)
def test_questions_for_events_that_are_none(server: Server, query: str) -> None:
    """A filter that is not as described is 400."""
    assert server.admin("GET", f"events?{query}").code == "bad_request"


def test_events_as_csv(server: Server) -> None:
    """A fixed header, a line for each event whatever the page, and no cell that a spreadsheet executes."""
    nasty = '=HYPERLINK("http://x")'
    uploaded(
        server,
        "sheet",
        {"point": nasty},
        {"point": "+1"},
        {"point": 'a,b\n"c"'},
        {"guest": -3, "flags": ["free", "grace"]},
    )
    answer = server.admin("GET", "events?gateway=sheet", Accept="text/csv")
    assert answer.headers.get_content_type() == "text/csv"
    header, *rows = csv.reader(io.StringIO(answer.raw.decode(), newline=""))
    assert ",".join(header) == (
        "number,received,gateway,epoch,seq,at,kind,point,lane,verdict,detail,flags,credential,holder,"
        "entitlement,product,guest,from,to,passage,of,by"
    )
    points = [row[header.index("point")] for row in rows]
    assert points == ["'" + nasty, "'+1", 'a,b\n"c"', "sheet-in"]
    assert rows[3][header.index("guest")] == "-3"
    assert rows[3][header.index("flags")] == "free grace"
    two = server.admin("GET", "events?gateway=sheet&limit=2", Accept="text/csv").raw
    assert two.count(b"\r\n") == 3


# --- the document ------------------------------------------------------------------------------------------


def test_the_document_says_what_there_is(server: Server) -> None:
    """Every route of the app is in the OpenAPI document and the other way round, and it needs no token."""
    document = server.ask("GET", f"{PREFIX}/openapi.json").body
    described = {(method.upper(), at) for at, item in document["paths"].items() for method in item}
    there = {
        (route.method, route.path)
        for route in routes(None)
        if route.path.startswith(PREFIX)  # type: ignore[arg-type]
    }
    assert described == there
    ids = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(set(ids)) == len(ids)


def test_health_and_metrics(server: Server, tokens: dict[str, str]) -> None:
    """Everybody is told whether it serves, the role read what it counts; labels are routes, not paths."""
    assert server.ask("GET", "/health").body["ok"] is True
    assert server.ask("GET", f"{PREFIX}/health").body["ok"] is True
    assert server.ask("GET", "/metrics").code == "bad_token"
    server.admin("GET", path("holder", "H-somebody"))
    text = server.ask("GET", "/metrics", headers={"Authorization": f"Bearer {tokens['read']}"}).raw.decode()
    assert "gateway_central_gateways_connected " in text
    assert 'call="/admin/v1/venues/{venue}/records/{kind}/{id}",status="404"' in text
    assert "somebody" not in text


def test_bad_admin_tokens_are_slowed_down(server: Server) -> None:
    """After twenty bad ones it is 429 with Retry-After; a good one is served all the while."""
    answers = [server.admin("GET", "venues", token=f"guess-{number}") for number in range(25)]
    assert {answer.status for answer in answers} == {401, 429}
    assert int(answers[-1].headers["Retry-After"]) > 0
    assert server.admin("GET", "venues").status == 200
