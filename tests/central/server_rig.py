"""A real central on loopback, and a gateway that speaks the real protocol to it and believes no one."""

from __future__ import annotations

import asyncio
import base64
import http.client
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import orjson
import structlog

from gateway.central.run import Unservable, running
from gateway.host import wall
from gateway.sync import protocol


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    raw: bytes

    @property
    def body(self) -> Any:
        kind = self.headers.get_content_type()
        return protocol.decode(self.raw, kind)

    @property
    def code(self) -> str:
        """The error's word; every refusal is JSON with a sentence."""
        assert self.headers.get_content_type() == "application/json"
        body = orjson.loads(self.raw)
        assert isinstance(body["error"], str)
        assert "Traceback" not in body["error"]
        code: str = body["code"]
        return code


class Clock:
    """The central's clock, which can be put forward, and at which the store's thread can be held up."""

    def __init__(self) -> None:
        self.ahead = 0
        self.asked = 0
        """How often by the store."""
        self.held = threading.Event()
        self._go_on = threading.Event()
        self._go_on.set()

    def __call__(self) -> int:
        if threading.current_thread().name.startswith("store"):
            self.asked += 1
            if not self._go_on.is_set():
                self.held.set()
                assert self._go_on.wait(20)
        return wall() + self.ahead

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Within the block, the store stops where it asks for the time; ``held`` says that it has."""
        self.held.clear()
        self._go_on.clear()
        try:
            yield
        finally:
            self.let_go()

    def let_go(self) -> None:
        self._go_on.set()


class Log:
    """What the central has logged."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def logger(self) -> Any:
        return structlog.wrap_logger(
            structlog.PrintLogger(), processors=[self._keep], wrapper_class=structlog.BoundLogger
        )

    def _keep(self, _logger: object, method: str, event: Any) -> Any:
        self.lines.append(f"{method} {dict(event)}")
        raise structlog.DropEvent


class Server:
    """A central in a thread of its own."""

    def __init__(self, directory: Path, **how: Any) -> None:
        self.directory = directory
        self.clock = Clock()
        self.log = Log()
        self._how = how
        self._ready = threading.Event()
        self._stop: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._serve)
        self._error: Unservable | None = None
        self.url = ""

    def _serve(self) -> None:
        try:
            asyncio.run(self._run())
        except Unservable as error:
            self._error = error
        finally:
            self._ready.set()

    async def _run(self) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._stop = lambda: loop.call_soon_threadsafe(stop.set)
        async with running(self.directory, log=self.log.logger(), clock=self.clock, **self._how) as self.url:
            self._ready.set()
            await stop.wait()

    def __enter__(self) -> Server:
        self._thread.start()
        assert self._ready.wait(30)
        assert self._error is None, self._error
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._thread.join(30)
        assert not self._thread.is_alive()

    @property
    def token(self) -> str:
        return (self.directory / "admin.token").read_text().strip()

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        timeout: float = 30,
    ) -> Answer:
        """One request on a connection of its own."""
        split = urlsplit(self.url)
        assert split.hostname is not None
        connection = http.client.HTTPConnection(split.hostname, split.port or 80, timeout=timeout)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def admin(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, **headers: str
    ) -> Answer:
        """A call of the admin API. A list goes as NDJSON."""
        given = {"Authorization": f"Bearer {token or self.token}"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        raw = body
        if isinstance(body, list):
            raw = b"".join(orjson.dumps(record) + b"\n" for record in body)
            given.setdefault("Content-Type", "application/x-ndjson")
        elif isinstance(body, dict):
            raw = orjson.dumps(body)
            given.setdefault("Content-Type", "application/json")
        return self.ask(method, f"/admin/v1/{path}", raw, given)

    def put(self, *records: dict[str, Any], venue: str = "main") -> None:
        answer = self.admin("POST", f"venues/{venue}/records", list(records))
        assert answer.status == 200, answer.raw

    def venue(self, id_: str) -> str:
        assert self.admin("POST", "venues", {"id": id_}).status == 201
        return id_

    def code_for(self, gateway: str, venue: str = "main") -> str:
        answer = self.admin("POST", f"venues/{venue}/enrolment-codes", {"gateway": gateway})
        assert answer.status == 201, answer.raw
        code: str = answer.body["code"]
        return code

    def gate(self, id_: str, venue: str = "main", *, here: bool = True) -> Gate:
        """A gateway that has just joined; with ``here`` it has all there is so far."""
        gate = Gate(self, id_, secrets.token_hex(32))
        assert gate.enroll(self.code_for(id_, venue)).status == 200
        if here:
            gate.catch_up()
        return gate


@dataclass
class Gate:
    """A gateway: what it knows, and its calls. Every signed answer is verified before it is given out."""

    server: Server
    id: str
    machine: str
    venue: str = ""
    token: str = ""
    keys: dict[str, bytes] = field(default_factory=dict)
    cursor: str = ""

    def headers(self, **more: str) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self.token}",
            "Gateway-Machine": self.machine,
            "Accept": "application/json",
        } | {name.replace("_", "-"): value for name, value in more.items()}

    def enroll(self, code: str) -> Answer:
        body = {"code": code, "machine": self.machine, "hostname": "gate-pc", "version": "0.1.0"}
        headers = {"Content-Type": "application/json", "Gateway-Machine": self.machine}
        answer = self.server.ask("POST", "/v1/enroll", orjson.dumps(body), headers)
        if answer.status == 200:
            said = answer.body
            self.token, self.venue = said["token"], said["venue"]
            self.keys = {key["id"]: protocol.public_bytes(key["public"]) for key in said["keys"]}
        return answer

    def changes(
        self, wait: int = 0, cursor: str | None = None, *, within: float = 50, **headers: str
    ) -> Answer:
        nonce = secrets.token_urlsafe(18)
        query = {"nonce": nonce, "keys": ",".join(self.keys), "wait": wait}
        if cursor := self.cursor if cursor is None else cursor:
            query["cursor"] = cursor
        answer = self.server.ask(
            "GET", f"/v1/changes?{urlencode(query)}", headers=self.headers(**headers), timeout=within
        )
        if "Gateway-Signature" in answer.headers:
            self.verified(protocol.CHANGES, answer, nonce)
        return answer

    def records(self, wait: int = 0) -> list[dict[str, Any]]:
        """What is new, to the last page; the cursor goes on."""
        found = []
        while True:
            answer = self.changes(wait)
            assert answer.status == 200, answer.raw
            body = answer.body
            found += body["records"]
            self.cursor = body["next"]
            if not body["more"]:
                return found

    def upload(self, *events: dict[str, Any], **headers: str) -> Answer:
        nonce = secrets.token_urlsafe(18)
        body = {"gateway": self.id, "nonce": nonce, "keys": list(self.keys), "events": list(events)}
        answer = self.server.ask(
            "POST",
            "/v1/events",
            orjson.dumps(body),
            self.headers(**{"Content-Type": "application/json", **headers}),
        )
        if "Gateway-Signature" in answer.headers:
            self.verified(protocol.EVENTS, answer, nonce)
        return answer

    def verified(self, purpose: str, answer: Answer, nonce: str) -> str:
        """The key that signed; the answer is for this gateway and this question."""
        signer = protocol.verify(self.keys, purpose, answer.raw, answer.headers["Gateway-Signature"])
        said = answer.body
        assert (said["gateway"], said["venue"], said["nonce"]) == (self.id, self.venue, nonce)
        if purpose == protocol.CHANGES:
            protocol.changes_of(said)
        else:
            protocol.uploaded_of(said)
        return signer

    def snapshot(self, method: str = "GET", at_least: str = "", **headers: str) -> Answer:
        """As soon as there is one."""
        query = urlencode({"keys": ",".join(self.keys), **({"at_least": at_least} if at_least else {})})
        until = time.monotonic() + 30
        while True:
            answer = self.server.ask(method, f"/v1/snapshot?{query}", headers=self.headers(**headers))
            if answer.status != 503:
                return answer
            assert int(answer.headers["Retry-After"]) > 0
            assert time.monotonic() < until
            time.sleep(0.1)

    def manifest(self, answer: Answer) -> dict[str, Any]:
        raw = base64.urlsafe_b64decode(answer.headers["Gateway-Manifest"])
        protocol.verify(self.keys, protocol.SNAPSHOT_FILE, raw, answer.headers["Gateway-Signature"])
        said: dict[str, Any] = orjson.loads(raw)
        protocol.manifest_of(said)
        return said

    def catch_up(self) -> None:
        self.cursor = self.manifest(self.snapshot("HEAD"))["cursor"]
        self.records()


def card(number: int, **more: Any) -> dict[str, Any]:
    return {"kind": "credential", "id": f"C{number}", "code": f"CODE-{number:06}", "entitlements": []} | more


def scan(gate: Gate, seq: int, epoch: int = 7, **more: Any) -> dict[str, Any]:
    """A card that was let in, and that nobody's sensor watched: so it is an entry."""
    return {
        "gateway": gate.id,
        "epoch": epoch,
        "seq": seq,
        "digest": f"{seq:016x}",
        "at": "2026-11-21T10:00:00+00:00",
        "kind": "scan",
        "point": f"{gate.id}-in",
        "verdict": "granted",
        "credential": "C1",
        "guest": 0,
        "from": "outside",
        "to": "hall",
        "passage": "assumed",
    } | more


@contextmanager
def background(work: Callable[[], Any]) -> Iterator[list[Any]]:
    """Runs beside the block; the list has its result when the block has ended."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    try:
        yield results
    finally:
        thread.join(60)
    assert not thread.is_alive()
