"""A gateway as a server sees it: requests of the protocol, and an eye on every answer.

A rule that holds for every answer (signatures, nonces, limits …) is noted in the audit; the points look at
their own matter only, so that one fault of a server is reported where it belongs.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import orjson

from gateway.central.adminclient import connect
from gateway.central.conformance.audit import Audit
from gateway.central.conformance.report import Failed, expect, shown
from gateway.sync import protocol as p
from gateway.sync.protocol import ProtocolError

TIMEOUT_S = 60
PATIENCE_S = 120
"""How long 503 is followed while a snapshot is being made."""
BOTH = f"{p.MSGPACK}, {p.JSON};q=0.5"


@dataclass(slots=True)
class Reply:
    """An answer as it came."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    took_s: float

    @property
    def value(self) -> dict[str, Any]:
        """The body, decoded. Raises ProtocolError."""
        return p.decode(self.body, self.headers.get("Content-Type", ""))

    def expect(self, status: int, code: str | None = None) -> Reply:
        """Raises Failed unless it has this status (and code)."""
        expected = f"{status} {code}" if code else str(status)
        came = f"{self.status} {shown(self.body.decode(errors='replace'))}"
        expect(self.status == status, expected, came)
        if code is not None:
            try:
                said = self.value.get("code")
            except ProtocolError:
                said = None
            expect(said == code, expected, came)
        return self


class Wire:
    """A server at a URL."""

    def __init__(self, url: str, audit: Audit) -> None:
        self.url = url
        self.audit = audit

    def send(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        timeout: float = TIMEOUT_S,
    ) -> Reply:
        """One request on a connection of its own. Raises OSError and HTTPException."""
        connection, base = connect(self.url, timeout)
        target = base + path + ("?" + urlencode(query) if query else "")
        start = time.monotonic()
        try:
            # It may refuse before it has read everything; then its answer says why.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, target, body, {"Accept-Encoding": "gzip", **(headers or {})})
            response = connection.getresponse()
            reply = Reply(response.status, response.headers, response.read(), time.monotonic() - start)
        finally:
            connection.close()
        self.audit.note(
            "encoding",
            "Content-Encoding" not in reply.headers,
            f"{path}: {_header(reply, 'Content-Encoding')}",
        )
        self._watch_error(path, reply)
        return reply

    def _watch_error(self, path: str, reply: Reply) -> None:
        if reply.status < 400 or reply.status in (410, 416):
            return
        try:
            value = reply.value
        except ProtocolError:
            value = {}
        if reply.status == 403 and value.get("revoked") is True:
            return
        good = isinstance(value.get("error"), str) and isinstance(value.get("code"), str)
        self.audit.note("error", good, f"{path}: {reply.status} {reply.body[:200].decode(errors='replace')}")


def _header(reply: Reply, name: str) -> str:
    return f"{name}: {reply.headers.get(name, '(none)')}"


def new_nonce() -> str:
    return secrets.token_urlsafe(24)


@dataclass(slots=True)
class Client:
    """An enrolled gateway."""

    wire: Wire
    machine: str
    gateway: str
    venue: str
    history: str
    token: str
    keys: dict[str, bytes]
    fresh_token: str | None = None
    """The last that came in Gateway-Token; never used by itself."""
    _newest: int = field(default=0)

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        timeout: float = TIMEOUT_S,
    ) -> Reply:
        """With token and machine; a header that is given replaces these, an empty one leaves them out."""
        own = {"Authorization": f"Bearer {self.token}", "Gateway-Machine": self.machine, **(headers or {})}
        given = {name: value for name, value in own.items() if value}
        return self.wire.send(method, path, query=query, headers=given, body=body, timeout=timeout)

    def key_ids(self) -> str:
        return ",".join(self.keys)

    # --- /v1/changes ------------------------------------------------------------------------------------

    def changes(
        self,
        cursor: str | None,
        *,
        wait: int = 0,
        nonce: str | None = None,
        keys: str | None = None,
        accept: str = p.JSON,
        headers: dict[str, str] | None = None,
        more: dict[str, str] | None = None,
    ) -> Reply:
        """Any answer; watched where it should be signed."""
        nonce = nonce or new_nonce()
        query: dict[str, Any] = {"nonce": nonce, "keys": keys or self.key_ids(), "wait": wait, **(more or {})}
        if cursor is not None:
            query["cursor"] = cursor
        reply = self.ask(
            "GET",
            "/v1/changes",
            query=query,
            headers={"Accept": accept, **(headers or {})},
            timeout=wait + TIMEOUT_S,
        )
        self._watch_changes(reply, nonce, cursor, accept)
        self.fresh_token = reply.headers.get("Gateway-Token") or self.fresh_token
        return reply

    def news(self, cursor: str | None, *, wait: int = 0, nonce: str | None = None) -> dict[str, Any]:
        """A good answer, decoded. Raises Failed."""
        return self.changes(cursor, wait=wait, nonce=nonce).expect(200).value

    def drain(self, cursor: str) -> tuple[list[dict[str, Any]], dict[str, Any], list[Reply]]:
        """All that came after a cursor: the records, the last answer and every answer. Raises Failed."""
        records: list[dict[str, Any]] = []
        replies: list[Reply] = []
        while True:
            reply = self.changes(cursor).expect(200)
            replies.append(reply)
            value = reply.value
            records += value.get("records") or []
            if value.get("more") is not True:
                return records, value, replies
            following = value.get("next")
            expect(
                isinstance(following, str) and following != cursor and len(replies) < 10_000,
                "with more: true a next that leads on, and an end",
                f"next is {following!r} after {cursor!r}",
            )
            cursor = str(following)

    def _watch_changes(self, reply: Reply, nonce: str, cursor: str | None, accept: str) -> None:
        note = self.wire.audit.note
        if reply.status not in (200, 410, 403):
            return
        try:
            value = reply.value
        except ProtocolError as error:
            if reply.status != 403:
                note("form", False, str(error))
            return
        if reply.status == 403 and value.get("revoked") is not True:
            return
        rule = {200: "signed", 410: "signed gone", 403: "signed revoked"}[reply.status]
        self._watch_signature(rule, p.CHANGES, reply, reply.body)
        kind = reply.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        note("type", kind in accept, f"{kind!r} for Accept: {accept}")
        if reply.status == 410:
            # The log may have a new history: that is what the gateway is told with this answer.
            self.history = str(value.get("history"))
        self._watch_said(value, nonce, have=reply.status != 403)
        if reply.status != 200:
            flag = "gone" if reply.status == 410 else "revoked"
            note("form", value.get(flag) is True, f"{reply.status} without {flag}: true: {shown(value)}")
            return
        note("bytes", len(reply.body) <= p.MAX_ANSWER, f"{len(reply.body):,} bytes")
        records = value.get("records")
        if isinstance(records, list):
            note("records", len(records) <= p.MAX_RECORDS, f"{len(records)} records")
            for record in records:
                size = len(orjson.dumps(record)) if isinstance(record, dict) else 0
                note("record", size <= p.MAX_RECORD, f"{size:,} bytes")
            names = [identity(record) for record in records]
            note("once", len(names) == len(set(names)), "a record that is there twice")
        for name in ("cursor", "next"):
            text = value.get(name)
            note("cursor", isinstance(text, str) and bool(p.CURSOR.fullmatch(text)), f"{name} is {text!r}")
        note("asked", value.get("cursor") == cursor, f"{value.get('cursor')!r}, asked with {cursor!r}")
        try:
            p.changes_of({**value, **self._good(nonce)})
            whole = isinstance(value.get("more"), bool) and "forget" in value
            note("form", whole, "more or forget is missing")
        except ProtocolError as error:
            note("form", False, str(error))

    # --- what every signed answer says --------------------------------------------------------------------

    def _good(self, nonce: str) -> dict[str, Any]:
        return {
            "gateway": self.gateway,
            "venue": self.venue,
            "history": self.history,
            "nonce": nonce,
            "time": p.rfc3339(0),
            "have": {},
        }

    def _watch_said(self, value: dict[str, Any], nonce: str, *, have: bool = True) -> None:
        note = self.wire.audit.note
        good = self._good(nonce)
        for name in ("gateway", "venue", "history", "nonce"):
            note(name, value.get(name) == good[name], f"{value.get(name)!r}, not {good[name]!r}")
        try:
            at = p.instant(value, "time")
            note("time", at >= self._newest, f"{value['time']}, earlier than an answer before it")
            self._newest = max(at, self._newest)
        except ProtocolError as error:
            note("time", False, str(error))
        if have:
            try:
                said = p.changes_of({**good, "gone": True, "have": value.get("have")}).said
                note("have", said.have is not None, "no have")
            except ProtocolError as error:
                note("have", False, str(error))

    def _watch_signature(self, rule: str, purpose: str, reply: Reply, body: bytes) -> None:
        header = reply.headers.get("Gateway-Signature", "")
        try:
            p.verify(self.keys, purpose, body, header)
            self.wire.audit.note(rule, True, "")
        except ProtocolError as error:
            came = str(error) if header else f"{reply.status} without Gateway-Signature"
            self.wire.audit.note(rule, False, came)

    # --- /v1/events -----------------------------------------------------------------------------------------

    def upload(
        self,
        events: list[dict[str, Any]],
        *,
        kind: str = p.JSON,
        nonce: str | None = None,
        headers: dict[str, str] | None = None,
        **fields: Any,
    ) -> Reply:
        """Any answer; watched where it should be signed."""
        nonce = nonce or new_nonce()
        body = {"gateway": self.gateway, "nonce": nonce, "keys": list(self.keys), "events": events, **fields}
        reply = self.ask(
            "POST",
            "/v1/events",
            headers={"Content-Type": kind, "Accept": kind, **(headers or {})},
            body=p.encode(body, kind),
        )
        if reply.status == 200:
            self._watch_signature("signed events", p.EVENTS, reply, reply.body)
            note = self.wire.audit.note
            try:
                value = reply.value
                self._watch_said(value, nonce)
                p.uploaded_of({**value, **self._good(nonce)})
                note(
                    "events form", "conflict" in value, "conflict is missing; it is null where there is none"
                )
            except ProtocolError as error:
                note("events form", False, str(error))
        return reply

    def uploaded(self, events: list[dict[str, Any]], **fields: Any) -> p.Uploaded:
        """What became of these events. Raises Failed and ProtocolError."""
        value = self.upload(events, **fields).expect(200).value
        return p.uploaded_of({**self._good("x" * 16), **value})

    # --- /v1/snapshot -------------------------------------------------------------------------------------

    def snapshot(self, at_least: str | None = None, *, headers: dict[str, str] | None = None) -> Reply:
        """The file, or a part of it; 503 is followed for a while. Raises Failed."""
        query = {"keys": self.key_ids()} | ({"at_least": at_least} if at_least else {})
        until = time.monotonic() + PATIENCE_S
        while True:
            reply = self.ask("GET", "/v1/snapshot", query=query, headers=headers, timeout=PATIENCE_S)
            if reply.status != 503:
                break
            after = reply.headers.get("Retry-After", "")
            expect(after.isdecimal(), "503 with Retry-After in seconds", _header(reply, "Retry-After"))
            if time.monotonic() > until:
                raise Failed(f"a snapshot within {PATIENCE_S} s", "503 all the time")
            time.sleep(min(int(after), 5))
        if reply.status in (200, 206):
            self._watch_signature("signed snapshot", p.SNAPSHOT_FILE, reply, manifest_bytes(reply))
        return reply


def manifest_bytes(reply: Reply) -> bytes:
    """What Gateway-Manifest holds; nothing where it is missing or no BASE64."""
    text = reply.headers.get("Gateway-Manifest", "")
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return b""


def identity(record: Any) -> tuple[Any, ...]:
    """What makes a record this one."""
    if not isinstance(record, dict):
        return ("?", shown(record))
    if record.get("kind") == "usage" and record.get("gateway") is not None:
        return ("usage", record["gateway"], record.get("epoch"), record.get("seq"))
    return (record.get("kind"), record.get("id"))
