"""POST /v1/events of docs/protocol.md, and what no call takes: too much, packed, or never coming."""

from __future__ import annotations

import asyncio
import gzip
import socket
import zlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import msgpack
import orjson
import pytest
from aiohttp import web

from gateway.central import web as http
from gateway.sync.protocol import MAX_EVENTS, MAX_UPLOAD
from tests.central.server_rig import Gate, Log, Server, card, scan


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("central")) as server:
        yield server


@pytest.fixture(scope="module")
def gate(server: Server) -> Gate:
    """For what leaves no trace."""
    return server.gate("limits", here=False)


JSON = {"Content-Type": "application/json"}


# --- batches ------------------------------------------------------------------------------------------


def test_a_batch_is_acknowledged_and_kept(server: Server) -> None:
    """Each event is acknowledged in ranges, ``have`` says the highest of each epoch, operators see them."""
    gate = server.gate("batch", here=False)
    body = gate.upload(scan(gate, 1), scan(gate, 2), scan(gate, 5), scan(gate, 1, epoch=1 << 62)).body
    assert set(body) == {
        *("gateway", "venue", "history", "nonce", "time", "have", "acknowledged", "refused", "conflict")
    }
    assert body["acknowledged"] == [[7, 1, 2], [7, 5, 5], [1 << 62, 1, 1]]
    assert body["have"] == {"7": 5, str(1 << 62): 1}
    assert (body["refused"], body["conflict"]) == ([], None)
    shown = server.admin("GET", "events?gateway=batch").body["events"]
    assert [(event["epoch"], event["seq"]) for event in shown] == [(7, 1), (7, 2), (7, 5), (1 << 62, 1)]


def test_the_same_batch_twice_leaves_one(server: Server) -> None:
    """What was acknowledged and comes again is acknowledged again, and stands once."""
    gate = server.gate("twice", here=False)
    events = [scan(gate, seq) for seq in range(1, 4)]
    first, second = gate.upload(*events).body, gate.upload(*events).body
    assert first["acknowledged"] == second["acknowledged"] == [[7, 1, 3]]
    assert len(server.admin("GET", "events?gateway=twice").body["events"]) == 3


def test_one_number_for_two_events_is_a_conflict(server: Server) -> None:
    """What stands before it is taken, it and what follows is not, and the operator is told."""
    gate = server.gate("image", here=False)
    gate.upload(scan(gate, 2))
    body = gate.upload(scan(gate, 1), scan(gate, 2, digest="other"), scan(gate, 3)).body
    assert body["acknowledged"] == [[7, 1, 1]]
    assert body["conflict"] == {"epoch": 7, "seq": 2}
    assert body["have"] == {"7": 2}
    rows = server.admin("GET", "conflicts").body["conflicts"]
    assert [row["detail"] for row in rows if row["gateways"] == ["image"]] == [{"epoch": 7, "seq": 2}]


def test_one_bad_event_does_not_stop_the_rest(server: Server) -> None:
    """It is refused with a reason; unknown kinds and fields are kept, damaged ones keep their place."""
    gate = server.gate("poison", here=False)
    strange = {**scan(gate, 3), "kind": "weather", "rain": [1, {"mm": 2.5}]}
    damaged = {"gateway": gate.id, "epoch": 7, "seq": 4, "digest": None, "damaged": True}
    body = gate.upload(
        scan(gate, 1), scan(gate, 2, at="yesterday"), strange, damaged, scan(gate, 5, gateway="other")
    ).body
    assert body["acknowledged"] == [[7, 1, 1], [7, 3, 4]]
    assert [(each["epoch"], each["seq"]) for each in body["refused"]] == [(7, 2), (7, 5)]
    assert all(each["reason"] for each in body["refused"])
    kept = server.admin("GET", "events?gateway=poison&kind=weather").body["events"]
    assert [event["rain"] for event in kept] == [[1, {"mm": 2.5}]]


def test_msgpack_is_taken_and_given(server: Server) -> None:
    """A batch in msgpack is the same batch; the answer is in what Accept names."""
    gate = server.gate("msgpack", here=False)
    body = {"gateway": gate.id, "nonce": "n" * 20, "keys": list(gate.keys), "events": [scan(gate, 1)]}
    headers = gate.headers(**{"Content-Type": "application/msgpack", "Accept": "application/msgpack"})
    answer = server.ask("POST", "/v1/events", msgpack.packb(body), headers)
    assert gate.verified("events", answer, "n" * 20)
    assert msgpack.unpackb(answer.raw)["acknowledged"] == [[7, 1, 1]]
    assert gate.upload(scan(gate, 1)).body["acknowledged"] == [[7, 1, 1]]


def test_an_empty_batch_says_what_there_is(server: Server) -> None:
    """No event is needed to learn what the central has."""
    gate = server.gate("empty", here=False)
    gate.upload(scan(gate, 9))
    assert gate.upload().body["have"] == {"7": 9}


def test_another_gateways_batch_is_refused(server: Server, gate: Gate) -> None:
    """A token speaks for its own gateway alone."""
    body = {"gateway": "north", "nonce": "n" * 20, "keys": [], "events": []}
    answer = server.ask("POST", "/v1/events", orjson.dumps(body), gate.headers(**JSON))
    assert (answer.status, answer.code) == (403, "other_gateway")


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": "short"},
        {"nonce": 5},
        {"keys": "k1"},
        {"keys": [5]},
        {"keys": ["a b"]},
        {"events": {}},
        {"events": [5]},
        {"events": None},
    ],
)
def test_a_batch_that_is_none(server: Server, gate: Gate, change: dict[str, Any]) -> None:
    """A body that is not as described is 400, and nothing of it is taken."""
    body = {"gateway": gate.id, "nonce": "n" * 20, "keys": [], "events": [scan(gate, 1)]} | change
    answer = server.ask("POST", "/v1/events", orjson.dumps(body), gate.headers(**JSON))
    assert (answer.status, answer.code) == (400, "bad_request")
    assert gate.upload().body["have"] == {}


# --- too much, and what is not looked into -----------------------------------------------------------------


def test_too_many_events_and_too_many_bytes(server: Server, gate: Gate) -> None:
    """A thousand events and two MiB are taken to be looked at, more is 413 without being read through."""
    many = gate.upload(*[{"gateway": gate.id}] * (MAX_EVENTS + 1))
    assert (many.status, many.code) == (413, "too_large")
    assert len(gate.upload(*[{"gateway": gate.id}] * MAX_EVENTS).body["refused"]) == MAX_EVENTS
    long = server.ask("POST", "/v1/events", b" " * (MAX_UPLOAD + 1), gate.headers(**JSON))
    assert (long.status, long.code) == (413, "too_large")
    chunked = raw(
        server,
        b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\nAuthorization: Bearer %b\r\nGateway-Machine: %b\r\n\r\n"
        % (gate.token.encode(), gate.machine.encode()),
        *[b"10000\r\n" + b" " * 0x10000 + b"\r\n"] * 33,
    )
    assert chunked.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
def test_nothing_packed_is_unpacked(server: Server, gate: Gate, encoding: str) -> None:
    """A body with a Content-Encoding is 415 before anything of it is looked at: it may be a bomb."""
    bomb = gzip.compress(b" " * (64 << 20)) if "gzip" in encoding else zlib.compress(b" " * (64 << 20))
    for path, headers in (
        ("/v1/events", gate.headers(**JSON)),
        ("/v1/enroll", JSON),
        ("/admin/v1/venues/main/records", {"Authorization": f"Bearer {server.token}", **JSON}),
    ):
        answer = server.ask("POST", path, bomb, headers | {"Content-Encoding": encoding})
        assert (answer.status, answer.code) == (415, "bad_request")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"[" * 1_000_000),
        ("application/json", b'{"events":' + b"[" * 100_000),
        ("application/json", b'{"a":' * 100_000),
        ("application/json", b'"\xff"'),
        ("application/json", b"[]"),
        ("application/json", b""),
        ("application/msgpack", b"\x91" * 1_000_000),
        ("application/msgpack", b"\xdd\xff\xff\xff\xff"),
        ("application/msgpack", b"\xdf\xff\xff\xff\xff"),
        ("application/msgpack", b"\xc1"),
        ("application/msgpack", b""),
    ],
)
def test_what_is_no_body_is_refused(server: Server, gate: Gate, kind: str, body: bytes) -> None:
    """Depth without end, lengths that lie and bytes that are nothing are 400, on both calls with a body."""
    for path in ("/v1/events", "/v1/enroll"):
        answer = server.ask("POST", path, body, gate.headers(**{"Content-Type": kind}))
        assert (answer.status, answer.code) in ((400, "bad_request"), (413, "too_large"))


def test_a_deep_event_is_refused_and_nothing_else(server: Server) -> None:
    """Depth that can be read but not be written is that event's fault, not the batch's."""
    gate = server.gate("deep", here=False)
    nested = b"[" * 301 + b"]" * 301
    body = orjson.dumps(
        {"gateway": gate.id, "nonce": "n" * 20, "keys": [], "events": [scan(gate, 1), scan(gate, 2, x=0)]}
    )
    answer = server.ask("POST", "/v1/events", body.replace(b'"x":0', b'"x":' + nested), gate.headers(**JSON))
    assert answer.status == 200
    assert answer.body["acknowledged"][0] == [7, 1, 1]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/gzip"])
def test_other_types_are_refused(server: Server, gate: Gate, kind: str) -> None:
    """A body is JSON or msgpack."""
    answer = server.ask("POST", "/v1/events", b"{}", gate.headers(**{"Content-Type": kind}))
    assert (answer.status, answer.code) == (415, "bad_request")


# --- what is no HTTP ----------------------------------------------------------------------------------------


def raw(server: Server, *pieces: bytes) -> bytes:
    """The beginning of what comes back for these bytes."""
    split = urlsplit(server.url)
    with socket.create_connection((split.hostname or "", split.port or 0), timeout=20) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has heard enough
        return connection.recv(4096)


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /v1/changes HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 9000 + b"\r\n\r\n",
        b"GET /" + b"y" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03secret\r\n\r\n",
        b"POST /v1/enroll HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/enroll HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_request_is_refused_without_a_traceback(server: Server, request_: bytes) -> None:
    """Header lines without end, TLS on a plain port and lies about lengths are 400; the log quotes none."""
    answer = raw(server, request_)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    assert b"Traceback" not in answer
    assert not any("secret" in line or "yyyy" in line for line in server.log.lines)
    assert server.ask("GET", "/health").status == 200


def test_a_body_that_never_comes_is_not_waited_for() -> None:
    """Who sends a part of a body and then nothing is told so, and cut off."""

    async def patient(request: web.Request) -> web.Response:
        return web.Response(body=await http.body(request, 100, seconds=0.1))

    async def run() -> bytes:
        app = web.Application(middlewares=[http.guard(http.Tally(lambda: 0), Log().logger())])
        app.add_routes([web.post("/", patient)])
        runner = web.AppRunner(app, access_log=None, lingering_time=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        reader, writer = await asyncio.open_connection(*runner.addresses[0])
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nhalf")
        try:
            return await asyncio.wait_for(reader.read(), 20)
        finally:
            writer.close()
            await runner.cleanup()

    answer = asyncio.run(run())
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"too_slow"' in answer


def test_unknown_paths_and_methods_say_so_in_json(server: Server) -> None:
    """404 and 405 are refusals like all others; 405 names what there is."""
    missing, other = server.ask("GET", "/v2/changes"), server.ask("DELETE", "/v1/events")
    assert (missing.status, missing.code) == (404, "not_found")
    assert (other.status, other.code, other.headers["Allow"]) == (405, "bad_request", "POST")


def test_what_was_sent_does_not_stand_in_the_log(server: Server) -> None:
    """Neither codes nor tokens nor cursors are logged, whatever was refused or failed."""
    gate = server.gate("secret")
    server.put(card(3))
    gate.changes()
    gate.changes(cursor="no-cursor-of-this-central")
    code = server.code_for("secret")
    gate.enroll(code[:-1] + "!")
    server.ask("GET", f"/v1/enroll?code={code}", headers={"Authorization": f"Bearer {gate.token}"})
    server.admin("POST", "codes/find", {"code": "CODE-000003"})
    text = "\n".join(server.log.lines)
    assert "secret" in text  # the gateway's id: there is something to look through
    for secret in (gate.token, gate.cursor, code, code[:-1], "CODE-000003", server.token, "no-cursor"):
        assert secret not in text
