"""Points about news: what changed, once, at once, and from the right place on."""

from __future__ import annotations

import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gateway.central.conformance.client import Client
from gateway.central.conformance.events import HOLDER
from gateway.central.conformance.means import PREFIX, Means
from gateway.central.conformance.report import Failed, Report, Untested, expect, need
from gateway.sync import protocol as p

_SECTION, _CURSORS, _KEYS, _COMMANDS = "`GET /v1/changes`", "Cursors", "Signatures", "Commands"
_HOLD_S = 2
_WOKEN_S = 10
_TTL_S = 1
MARK = f"{PREFIX}mark"


def gone(report: Report, north: Client | None) -> None:
    """The cases of 410 that need nothing at the server."""
    with report.point(_SECTION, "without a cursor the answer is 410 with gone"):
        _is_gone(need(north, "an enrolled gateway"), None)
    with report.point(_SECTION, "with a cursor that the server did not make the answer is 410 with gone"):
        _is_gone(need(north, "an enrolled gateway"), "conformance-no-such-cursor")


def foreign(report: Report, north: Client | None, cursors: list[str]) -> None:
    """The others. A cursor from the future may make the server begin a new history, so this comes late."""
    with report.point(
        _SECTION, "with a cursor of another history, the future or long ago it is 410 with gone"
    ):
        client = need(north, "an enrolled gateway")
        if not cursors:
            raise Untested("needs --gone-cursors FILE with such cursors, one a line")
        for cursor in cursors:
            _is_gone(client, cursor)


def _is_gone(client: Client, cursor: str | None) -> None:
    value = client.changes(cursor).expect(410).value
    expect(value.get("gone") is True, "gone: true", value)


def parameters(report: Report, north: Client | None, cursor: str | None) -> None:
    """What a request may say."""
    with report.point(_SECTION, "a nonce may have 16 to 64 characters, with - and _"):
        client, since = need(north, "an enrolled gateway"), need(cursor, "a cursor")
        for length in (16, 64):
            nonce = ("-_" + secrets.token_hex(32))[:length]
            value = client.news(since, nonce=nonce)
            expect(value.get("nonce") == nonce, f"nonce: {nonce}", value.get("nonce"))
    with report.point("In general", "parameters that the server does not know are ignored"):
        client = need(north, "an enrolled gateway")
        client.changes(need(cursor, "a cursor"), more={"conformance": "1"}).expect(200)


def polls(report: Report, north: Client | None, means: Means, cursor: str | None) -> None:
    """Nothing new, and waiting."""
    here: str | None = None
    with report.point(_SECTION, "nothing new is said at once, and next is as good as cursor"):
        client = need(north, "an enrolled gateway")
        here = _quiet(client, need(cursor, "a cursor"))
    with report.point(_SECTION, "with wait an answer without news comes when the time is over"):
        client = need(north, "an enrolled gateway")
        for _ in range(5):  # somebody else may change something meanwhile
            reply = client.changes(need(here, "a cursor"), wait=_HOLD_S).expect(200)
            here = p.text(reply.value, "next", 128)
            if not reply.value.get("records"):
                break
        expect(reply.took_s > _HOLD_S - 1, f"an answer after {_HOLD_S} s", f"after {reply.took_s:.1f} s")
        expect(reply.took_s < _HOLD_S + 20, f"an answer after {_HOLD_S} s", f"after {reply.took_s:.1f} s")
    with report.point(_SECTION, "a request that waits is answered when something changes"):
        client, since = need(north, "an enrolled gateway"), need(here, "a cursor")
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(client.changes, since, wait=p.WAIT)
            time.sleep(0.5)
            means.change(1)
            changed = time.monotonic()
            reply = held.result(p.WAIT + 60).expect(200)
            late = time.monotonic() - changed
        expect(bool(reply.value.get("records")), "records with the change", "none")
        expect(late < _WOKEN_S, "an answer as soon as it changes", f"{late:.1f} s later")


def _quiet(client: Client, cursor: str) -> str:
    """A cursor after which there is nothing. Raises Failed."""
    for _ in range(5):
        _, last, _ = client.drain(cursor)
        value = client.news(p.text(last, "next", 128))
        if value.get("records") == [] and value.get("more") is False:
            again = client.news(p.text(value, "next", 128))
            if again.get("records") == []:
                return p.text(again, "next", 128)
        cursor = p.text(last, "next", 128)
    raise Failed("records: [] where nothing has changed", "records again and again")


def records(
    report: Report, north: Client | None, means: Means, cursor: str | None
) -> tuple[str | None, int | None]:
    """Put, change, delete; gives a cursor and position after them."""
    here, position = cursor, None
    start: str | None = None
    holder = {"kind": "holder", "id": HOLDER, "state": "active", "language": "de"}
    product = {"kind": "product", "id": f"{PREFIX}product", "name": {"en": "Å test"}, "rules": []}
    right = {"kind": "entitlement", "id": f"{PREFIX}pass", "product": product["id"], "holder": HOLDER}
    card: dict[str, Any] = {"kind": "credential", "id": f"{PREFIX}card", "entitlements": [right["id"]]}
    card |= {"code": f"CONFORMANCE-{secrets.token_hex(8)}", "state": "active"}
    with report.point(_SECTION, "a record that was put comes as it was put"):
        client = need(north, "an enrolled gateway")
        here = _quiet(client, need(cursor, "a cursor"))
        before = p.whole(client.news(here), "position")
        means.records(holder, product, right, card)
        start = here
        found, last, _ = client.drain(here)
        for sent in (holder, product, right, card):
            came = _of(found, sent)
            expect(came is not None, f"the {sent['kind']} {sent['id']}", f"{len(found)} records without it")
            wrong = [name for name in sent if came is not None and came.get(name) != sent[name]]
            expect(not wrong, f"the {sent['kind']} as it was put", f"other values of {', '.join(wrong)}")
        here, position = p.text(last, "next", 128), p.whole(last, "position")
        expect(position > before, f"a position above {before}", position)
    with report.point(
        _CURSORS, "a cursor stands for one place: what came after it comes again, and only that"
    ):
        client = need(north, "an enrolled gateway")
        again, _, _ = client.drain(need(start, "a cursor before the records"))
        expect(
            _of(again, holder) is not None, f"the holder {HOLDER} again", f"{len(again)} records without it"
        )
        later, _, _ = client.drain(need(here, "a cursor"))
        expect(_of(later, holder) is None, "nothing from before the cursor", f"the holder {HOLDER}")
    with report.point(_SECTION, "a record that changed often comes once, in its newest version"):
        client, since = need(north, "an enrolled gateway"), need(here, "a cursor")
        for count in range(3):
            means.records({"kind": "holder", "id": MARK, "notice": f"version {count}"})
        found, last, _ = client.drain(since)
        versions = [record.get("notice") for record in found if record.get("id") == MARK]
        expect(len(versions) == 1, f"one record {MARK}", f"{len(versions)}: {versions}")
        expect(versions in (["version 2"], [{"en": "version 2"}]), "version 2", versions)
    with report.point(_SECTION, "a lost card comes as lost"):
        client, since = need(north, "an enrolled gateway"), need(here, "a cursor")
        means.records({**card, "state": "lost"})
        found, last, _ = client.drain(since)
        came = _of(found, card)
        expect(came is not None and came.get("state") == "lost", "state: lost", came and came.get("state"))
        here, position = p.text(last, "next", 128), p.whole(last, "position")
    return here, position


def _of(records_: list[dict[str, Any]], sent: dict[str, Any]) -> dict[str, Any] | None:
    return next((r for r in records_ if (r.get("kind"), r.get("id")) == (sent["kind"], sent["id"])), None)


def deletions(report: Report, north: Client | None, means: Means, cursor: str | None) -> None:
    """What is gone, and the people who must be forgotten. Removes what ``records`` has put."""
    with report.point(_SECTION, "a record that is gone comes with deleted: true"):
        client, since = need(north, "an enrolled gateway"), need(cursor, "a cursor")
        mark = {"kind": "area", "id": f"{PREFIX}gone"}
        means.records(mark)
        means.delete(("area", mark["id"]))
        found, _, _ = client.drain(since)
        came = _of(found, mark)
        expect(came is not None and came.get("deleted") is True, "deleted: true", came or "no such record")
    with report.point(_SECTION, "forget names the newest deletion of a holder"):
        client, since = need(north, "an enrolled gateway"), need(cursor, "a cursor")
        means.records({"kind": "holder", "id": f"{PREFIX}forgotten"})
        before = p.whole(client.drain(since)[1], "position")
        means.delete(("holder", f"{PREFIX}forgotten"))
        _, last, _ = client.drain(since)
        forget = last.get("forget")
        expect(isinstance(forget, dict), 'forget: {"position":…,"at":…}', forget)
        assert isinstance(forget, dict)
        p.instant(forget, "at")
        at = p.whole(forget, "position")
        expect(before < at <= p.whole(last, "position"), f"a position after {before}", at)


def pages(report: Report, north: Client | None, means: Means, cursor: str | None) -> None:
    """Much at once, in answers that keep the limits."""
    many = [f"{PREFIX}many-{number:03}" for number in range(600)]
    large = [f"{PREFIX}large-{number}" for number in range(8)]
    here = cursor
    try:
        for says, ids, notice in (
            ("600 changes come in answers of at most 250, with more: true before the last", many, "n"),
            ("eight large records come in answers of at most 262,144 bytes", large, "n" * 60_000),
        ):
            with report.point(_SECTION, says):
                client, since = need(north, "an enrolled gateway"), need(here, "a cursor")
                means.records(*({"kind": "holder", "id": id_, "notice": notice} for id_ in ids))
                found, last, replies = client.drain(since)
                sizes = [(len(reply.value["records"]), len(reply.body)) for reply in replies]
                good = all(count <= p.MAX_RECORDS and size <= p.MAX_ANSWER for count, size in sizes)
                expect(good, "answers within the limits", f"(records, bytes) {sizes}")
                expect(len(replies) > 1, "more than one answer", "one")
                came = [record.get("id") for record in found if record.get("id") in set(ids)]
                expect(
                    sorted(map(str, came)) == ids,
                    f"each of {len(ids)} once",
                    f"{len(came)}, {len(set(came))} of them different",
                )
                here = p.text(last, "next", 128)
    finally:
        left = [("holder", id_) for id_ in many + large if means.has_put("holder", id_)]
        if left:
            means.delete(*left)


def commands(
    report: Report, north: Client | None, south: Client | None, means: Means, cursor: str | None
) -> None:
    """Commands to a gateway."""
    lane = f"{PREFIX}lane"
    with report.point(_COMMANDS, "a command comes to its gateway, with id, do, lane, at and ttl_s"):
        client, since = need(north, "an enrolled gateway"), need(cursor, "a cursor")
        means.open(client.gateway, lane, 60)
        found, _, _ = client.drain(since)
        came = [record for record in found if record.get("kind") == "command" and record.get("lane") == lane]
        expect(len(came) == 1, "one record of the kind command", f"{len(came)} of {len(found)} records")
        p.text(came[0], "id")
        p.instant(came[0], "at")
        said = {name: came[0].get(name) for name in ("gateway", "do", "ttl_s")}
        expect(said == {"gateway": client.gateway, "do": "open", "ttl_s": 60}, "as it was given", said)
    with report.point(_COMMANDS, "a command does not come to another gateway"):
        client, other = need(north, "an enrolled gateway"), need(south, "a second enrolled gateway")
        means.open(client.gateway, lane, 60)
        found, _, _ = other.drain(need(cursor, "a cursor"))
        came = [record for record in found if record.get("kind") == "command" and record.get("lane") == lane]
        expect(not came, "no command of another gateway", f"{len(came)}")
    with report.point(_COMMANDS, "a command that has expired does not come any more"):
        client, since = need(north, "an enrolled gateway"), need(cursor, "a cursor")
        short = f"{lane}-short"
        means.open(client.gateway, short, _TTL_S)
        time.sleep(_TTL_S + 0.5)
        found, _, _ = client.drain(since)
        expect(not [r for r in found if r.get("lane") == short], "no expired command", "it")


def _announced(found: list[dict[str, Any]]) -> dict[str, bytes]:
    """The keys in these records by id. Raises ProtocolError."""
    told = {}
    for record in found:
        if record.get("kind") == "key" and not record.get("deleted"):
            id_ = p.text(record, "id", 32)
            expect(bool(p.KEY_ID.fullmatch(id_)), "an id of letters, digits, - or _", id_)
            told[id_] = p.public_bytes(record.get("public"))
    return told


def keys(report: Report, north: Client | None, means: Means, cursor: str | None) -> None:
    """Rotation: announce a key, use it, go back, end it."""
    added: str | None = None
    old: str | None = None
    used = False
    here = cursor
    try:
        with report.point(_KEYS, "a new key is announced by a signed record of the kind key"):
            client, since = need(north, "an enrolled gateway"), need(cursor, "a cursor")
            found, last, replies = client.drain(since)
            signature = replies[-1].headers.get("Gateway-Signature", "")
            old = p.verify(client.keys, p.CHANGES, replies[-1].body, signature)
            before = {**client.keys, **_announced(found)}
            means.announce_key()
            found, last, _ = client.drain(p.text(last, "next", 128))
            came = {id_: public for id_, public in _announced(found).items() if id_ not in before}
            expect(len(came) == 1, "a record of the kind key with a new id", f"{len(came)} such records")
            [added] = came
            client.keys[added], here = came[added], p.text(last, "next", 128)
        with report.point(
            _KEYS, "a gateway that does not know the present key gets a signature by an older one"
        ):
            client, new, first = (
                need(north, "an enrolled gateway"),
                need(added, "a new key"),
                need(old, "a key"),
            )
            means.use_key(new)
            used = True
            reply = client.changes(need(here, "a cursor"), keys=first).expect(200)
            only = {first: client.keys[first]}
            p.verify(only, p.CHANGES, reply.body, reply.headers.get("Gateway-Signature", ""))
        with report.point(_KEYS, "a gateway that knows the present key gets a signature by it"):
            client, new = need(north, "an enrolled gateway"), need(added, "a new key")
            reply = client.changes(need(here, "a cursor"), keys=f"{old},{new}").expect(200)
            only = {new: client.keys[new]}
            p.verify(only, p.CHANGES, reply.body, reply.headers.get("Gateway-Signature", ""))
    finally:
        if used and old is not None:
            means.use_key(old)
        if added is not None and north is not None:
            means.retire_key(added)
            del north.keys[added]
    with report.point(_KEYS, "a key that ended comes as a record with deleted: true"):
        client, ended = need(north, "an enrolled gateway"), need(added, "a new key")
        found, _, _ = client.drain(need(here, "a cursor"))
        end = [r for r in found if r.get("kind") == "key" and r.get("id") == ended]
        expect(
            bool(end) and end[-1].get("deleted") is True,
            f"{ended} with deleted: true",
            end or "no such record",
        )
