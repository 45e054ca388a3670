"""Points about joining, tokens, and what holds for requests in general."""

from __future__ import annotations

import base64
import gzip
import secrets
from typing import Any

import orjson

from gateway import __version__
from gateway.central.adminclient import CentralError
from gateway.central.conformance.client import TIMEOUT_S, Client, Reply, Wire, new_nonce
from gateway.central.conformance.means import PREFIX, Means
from gateway.central.conformance.report import Report, Untested, expect, need
from gateway.sync import protocol as p

_ENROL, _GENERAL, _TOKENS = "`POST /v1/enroll`", "In general", "Tokens"
_TRIES = 30
"""Wrong codes after which a server must have become slower."""
NORTH, SOUTH = f"{PREFIX}north", f"{PREFIX}south"


def ask(wire: Wire, code: str, machine: str, kind: str = p.JSON, **more: Any) -> Reply:
    """A request to join."""
    body = {"code": code, "machine": machine, "hostname": "conformance", "version": __version__, **more}
    return wire.send(
        "POST",
        "/v1/enroll",
        headers={"Content-Type": kind, "Accept": kind, "Gateway-Machine": machine},
        body=p.encode(body, kind),
    )


def machine() -> str:
    return secrets.token_hex(32)


def joined(wire: Wire, reply: Reply, machine_: str) -> Client:
    """The gateway that an answer makes. Raises Failed and ProtocolError."""
    if reply.status == 429:
        wait = reply.headers.get("Retry-After", "some")
        raise CentralError(
            f"{wire.url} takes no enrolments now (429, after wrong codes); try again in {wait} s"
        )
    value = reply.expect(200).value
    p.instant(value, "time")
    listed = value.get("keys")
    expect(isinstance(listed, list) and bool(listed), "keys: a list of at least one key", listed)
    keys = {}
    for key in listed or ():
        expect(isinstance(key, dict), "keys: objects with id and public", key)
        id_ = p.text(key, "id", 32)
        expect(bool(p.KEY_ID.fullmatch(id_)), "a key's id of 1 to 32 letters, digits, - or _", id_)
        keys[id_] = p.public_bytes(key.get("public"))
    token = p.text(value, "token", 512)
    expect(
        token.isascii() and token.isprintable() and " " not in token,
        "token: printable ASCII, no blank",
        "another",
    )
    return Client(
        wire=wire,
        machine=machine_,
        gateway=p.text(value, "gateway"),
        venue=p.text(value, "venue"),
        history=p.text(value, "history", 64),
        token=token,
        keys=keys,
    )


def enrol(report: Report, wire: Wire, means: Means) -> tuple[Client | None, Client | None]:
    """Join two gateways, the first one twice, and try what is not allowed."""
    first: Client | None = None
    north: Client | None = None
    south: Client | None = None
    code, home, away = None, machine(), machine()
    with report.point(_ENROL, "a code is answered with gateway, venue, token, history, time and keys"):
        code = means.code(NORTH)
        first = joined(wire, ask(wire, code, home), home)
    with report.point(
        _ENROL, "the same code from the same machine is answered again while the token is unused"
    ):
        again = joined(wire, ask(wire, need(code, "an enrolment"), home), home)
        expect(again.token != need(first, "an enrolment").token, "a new token", "the same one")
        first = again
    with report.point(_ENROL, "fields that the server does not know are ignored"):
        second_code, new_home = means.code(NORTH), machine()
        north = joined(wire, ask(wire, second_code, new_home, conformance={"unknown": [1]}), new_home)
        expect(
            first is None or north.gateway == first.gateway,
            "a second code for the same gateway",
            north.gateway,
        )
    with report.point(_ENROL, "an enrolment ends the instance before it: its token is worth nothing"):
        old, _ = need(first, "an enrolment"), need(north, "a second enrolment of the same gateway")
        old.changes(None).expect(401)
    with report.point(_ENROL, "another gateway joins with a code of its own"):
        third = means.code(SOUTH)
        there = machine()
        south = joined(wire, ask(wire, third, there), there)
        expect(north is None or south.gateway != north.gateway, "a code for another gateway", south.gateway)
    north = north or first
    if north is not None:
        north.changes(None)  # the token is used from here on
    used = code if north is first else None if north is None else second_code
    own = home if north is first else None if north is None else north.machine
    with report.point(_ENROL, "a used code is refused from another machine"):
        _bad(ask(wire, need(used, "an enrolment"), away))
    with report.point(_ENROL, "a used code is refused from its own machine too, once the token was used"):
        _bad(ask(wire, need(used, "an enrolment"), need(own, "an enrolment")))
    with report.point(_ENROL, "an unknown code is refused"):
        _bad(ask(wire, "CONF-ORMA-NCE0", away))
    with report.point(_ENROL, "a request without a code is a bad request"):
        reply = wire.send(
            "POST",
            "/v1/enroll",
            headers={"Content-Type": p.JSON, "Gateway-Machine": away},
            body=b'{"machine":1}',
        )
        _not_limited(reply).expect(400, "bad_request")
    return north, south


def _not_limited(reply: Reply) -> Reply:
    if reply.status == 429:
        raise Untested("the server takes no enrolments now (429)")
    return reply


def _bad(reply: Reply) -> None:
    _not_limited(reply).expect(403, "bad_code")


def general(report: Report, north: Client | None, south: Client | None) -> None:
    """Who may ask, and in what form."""
    calls = (("GET", "/v1/changes"), ("GET", "/v1/snapshot"), ("POST", "/v1/events"))
    for says, headers in (
        ("a call without a token is refused", {"Authorization": ""}),
        ("a call with an unknown token is refused", {"Authorization": "Bearer conformance-no-such-token"}),
    ):
        with report.point(_GENERAL, says):
            client = need(north, "an enrolled gateway")
            for method, path in calls:
                _plain(client, method, path, headers).expect(401, "bad_token")
    with report.point(_GENERAL, "a token that comes from another computer is refused"):
        client = need(north, "an enrolled gateway")
        for method, path in calls:
            _plain(client, method, path, {"Gateway-Machine": machine()}).expect(403, "other_machine")
    with report.point(_GENERAL, "events of another gateway than the token's are refused"):
        client, other = need(north, "an enrolled gateway"), need(south, "a second enrolled gateway")
        client.upload([], gateway=other.gateway).expect(403, "other_gateway")
    with report.point(_GENERAL, "a request whose body has a Content-Encoding is refused"):
        client = need(north, "an enrolled gateway")
        body = gzip.compress(
            orjson.dumps({"gateway": client.gateway, "nonce": new_nonce(), "keys": [], "events": []})
        )
        headers = {"Content-Type": p.JSON, "Content-Encoding": "gzip"}
        client.ask("POST", "/v1/events", headers=headers, body=body).expect(415)
    with report.point(_GENERAL, "a body that cannot be read is a bad request"):
        client = need(north, "an enrolled gateway")
        for kind, body in ((p.JSON, b'{"gateway":'), (p.JSON, b"[1]"), (p.JSON, b"\xff\xfe")):
            client.ask("POST", "/v1/events", headers={"Content-Type": kind}, body=body).expect(
                400, "bad_request"
            )
    with report.point(_GENERAL, "a nonce that is missing, too short or of other characters is a bad request"):
        client = need(north, "an enrolled gateway")
        for nonce in ("", "x" * 15, "x" * 65, "x" * 20 + "é"):
            query = {"nonce": nonce, "keys": client.key_ids()}
            client.ask("GET", "/v1/changes", query=query).expect(400, "bad_request")
    with report.point(_GENERAL, "JSON comes where only JSON is accepted"):
        client = need(north, "an enrolled gateway")
        kind = client.changes(None, accept=p.JSON).headers.get("Content-Type", "")
        expect(kind.partition(";")[0].strip().lower() == p.JSON, p.JSON, kind)


def msgpack(report: Report, north: Client | None, cursor: str | None) -> None:
    """The same structure in the other form, where the server has it."""
    with report.point(
        _GENERAL, "an answer in msgpack has the structure of that in JSON, and so may a request"
    ):
        client, since = need(north, "an enrolled gateway"), need(cursor, "a cursor")
        packed = client.changes(since, accept=f"{p.MSGPACK}, {p.JSON};q=0.5").expect(200)
        if packed.headers.get("Content-Type", "").partition(";")[0].strip().lower() != p.MSGPACK:
            raise Untested("the server answers JSON also where msgpack is accepted, as it may")
        plain = client.changes(since).expect(200)
        expect(
            set(packed.value) == set(plain.value),
            "the same fields",
            sorted(set(packed.value) ^ set(plain.value)),
        )
        client.upload([], kind=p.MSGPACK).expect(200)


def _plain(client: Client, method: str, path: str, headers: dict[str, str]) -> Reply:
    """A request that is well formed but for these headers."""
    nonce = new_nonce()
    if method == "POST":
        body = orjson.dumps(
            {"gateway": client.gateway, "nonce": nonce, "keys": list(client.keys), "events": []}
        )
        return client.ask(method, path, headers={"Content-Type": p.JSON, **headers}, body=body)
    query = {"nonce": nonce, "keys": client.key_ids()}
    return client.ask(method, path, query=query, headers=headers, timeout=TIMEOUT_S)


def condition(report: Report, north: Client | None, means: Means, cursor: str | None) -> None:
    """The gateway's condition."""
    with report.point("`GET /v1/changes`", "the gateway's condition is taken, and shown to the operator"):
        client, since = need(north, "an enrolled gateway"), need(cursor, "a cursor")
        told = {"version": __version__, "conformance": secrets.token_hex(4)}
        text = base64.urlsafe_b64encode(orjson.dumps(told)).decode()
        client.changes(since, headers={"Gateway-Condition": text}).expect(200)
        kept = means.condition(client.gateway)
        expect(isinstance(kept, dict) and kept.get("conformance") == told["conformance"], str(told), kept)


def tokens(report: Report, north: Client | None, means: Means, cursor: str | None) -> None:
    """Renewal."""
    old: str | None = None
    with report.point(
        _TOKENS, "a renewed token comes with an answer; the old one holds until the new is used"
    ):
        client, since = need(north, "an enrolled gateway"), need(cursor, "a cursor")
        if client.fresh_token is None:
            means.renew_token(client.gateway)
            client.changes(since).expect(200)
        expect(client.fresh_token is not None, "Gateway-Token with the next 200 of /v1/changes", "none")
        client.changes(since).expect(200)
        before, client.token = client.token, need(client.fresh_token, "a new token")
        client.changes(since).expect(200)
        old = before
    with report.point(_TOKENS, "a token that was replaced is used up, and the new one goes on"):
        client, since = need(north, "an enrolled gateway"), need(cursor, "a cursor")
        bearer = {"Authorization": f"Bearer {need(old, 'a renewed token')}"}
        client.changes(since, headers=bearer).expect(401, "token_used_up")
        client.changes(since).expect(200)


def revoked(report: Report, client: Client | None, means: Means, cursor: str | None) -> None:
    """The end of a gateway."""
    with report.point("`GET /v1/changes`", "a revoked gateway is told so, signed"):
        gateway, since = need(client, "an enrolled gateway"), need(cursor, "a cursor")
        means.revoke(gateway.gateway)
        reply = gateway.changes(since).expect(403)
        expect(reply.value.get("revoked") is True, "revoked: true", reply.value)
        p.verify(gateway.keys, p.CHANGES, reply.body, reply.headers.get("Gateway-Signature", ""))
        for method, path in (("GET", "/v1/snapshot"), ("POST", "/v1/events")):
            _plain(gateway, method, path, {}).expect(403)


def guessing(report: Report, wire: Wire) -> None:
    """Whoever tries codes is slowed down. Last, for nobody can join for a while afterwards."""
    with report.point(_ENROL, "after some wrong codes the answer is 429 with Retry-After"):
        reply = None
        for _ in range(_TRIES):
            reply = ask(
                wire, f"CONF-{secrets.token_hex(2).upper()}-{secrets.token_hex(2).upper()}", machine()
            )
            if reply.status == 429:
                break
            reply.expect(403, "bad_code")
        assert reply is not None
        reply.expect(429)
        after = reply.headers.get("Retry-After", "")
        expect(after.isdecimal(), "Retry-After in seconds", after or "none")
