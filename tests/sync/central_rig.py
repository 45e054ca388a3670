"""A central for tests of the sync: speaks the protocol with real signatures, and misbehaves as told."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import re
import ssl
import zlib
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway.sync import protocol

Fault = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
"""What happens to a request in place of the answer; None: the answer after all."""


class CentralRig:
    """One venue, one gateway. Lives on the rigs' loop; what the tests look at is plain data."""

    def __init__(self, gateway: str = "north", venue: str = "main") -> None:
        self.gateway, self.venue, self.history = gateway, venue, "h1"
        self.key = Ed25519PrivateKey.generate()
        self.public = base64.b64encode(
            self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        ).decode()
        self.tokens = ["first-token-0123456789"]
        """Valid ones; the first use of a later one ends those before it."""
        self.renew_with: str | None = None
        self.codes: dict[str, str] = {}
        """One-time codes, with the machine that used each."""
        self.log: list[dict[str, Any]] = []
        self.snapshot = b""
        self.etag = '"s1"'
        self.events: dict[tuple[int, int], dict[str, Any]] = {}
        self.arrived: list[int] = []
        self.poisoned: set[int] = set()
        self.revoked = False
        self.hold = True
        """Whether requests with ``wait`` are held."""
        self.held = 0
        """Requests that are being held now."""
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.always: dict[str, Fault | None] = {}
        self.cut_at: int | None = None
        """The snapshot's answers end after so many bytes."""
        self.requests: list[dict[str, Any]] = []
        self.sizes: list[int] = []
        self._changed = asyncio.Event()
        self._site: web.TCPSite | None = None
        self._runner: web.AppRunner | None = None
        self.url = ""

    # --- life ------------------------------------------------------------------------------------------

    async def start(self, port: int = 0, context: ssl.SSLContext | None = None) -> None:
        app = web.Application(client_max_size=4 << 20)
        app.router.add_post("/v1/enroll", self.enroll)
        app.router.add_get("/v1/changes", self.changes)
        app.router.add_get("/v1/snapshot", self.file)
        app.router.add_post("/v1/events", self.post)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=context)
        await self._site.start()
        port = self._runner.addresses[0][1]
        self.url = f"{'https://localhost' if context else 'http://127.0.0.1'}:{port}"

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def change(self, *records: dict[str, Any]) -> None:
        """On the rigs' loop."""
        self.log.extend(records)
        self._changed.set()
        self._changed = asyncio.Event()

    def use_snapshot(self, content: bytes, etag: str) -> None:
        self.snapshot, self.etag = content, etag

    # --- answers ---------------------------------------------------------------------------------------

    def sign(self, purpose: str, body: bytes) -> str:
        return protocol.sign({"k1": self.key}, purpose, body)

    def have(self) -> dict[str, int]:
        have: dict[str, int] = {}
        for epoch, seq in self.events:
            have[str(epoch)] = max(seq, have.get(str(epoch), 0))
        return have

    def signed(
        self, request: web.Request, purpose: str, said: dict[str, Any], status: int = 200, nonce: str = ""
    ) -> web.Response:
        kind = protocol.MSGPACK if protocol.MSGPACK in request.headers.get("Accept", "") else protocol.JSON
        body = protocol.encode(
            {
                "gateway": self.gateway,
                "venue": self.venue,
                "history": self.history,
                "nonce": nonce or request.query["nonce"],
                "time": datetime.now(UTC).isoformat(),
                "have": self.have(),
                **said,
            },
            kind,
        )
        headers = {"Gateway-Signature": self.sign(purpose, body), "Content-Type": kind}
        if status == 200 and purpose == protocol.CHANGES and self.renew_with is not None:
            headers["Gateway-Token"] = self.renew_with
            if self.renew_with not in self.tokens:
                self.tokens.append(self.renew_with)
            self.renew_with = None
        return web.Response(body=body, status=status, headers=headers)

    async def _before(self, call: str, request: web.Request) -> web.StreamResponse | None:
        self.requests.append({"call": call, "query": dict(request.query), "headers": dict(request.headers)})
        fault = self.faults[call].popleft() if self.faults[call] else self.always.get(call)
        if fault is not None and (answer := await fault(request)) is not None:
            return answer
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.tokens:
            return error(401, "bad_token")
        del self.tokens[: self.tokens.index(token)]
        return None

    async def enroll(self, request: web.Request) -> web.StreamResponse:
        self.requests.append({"call": "enroll", "headers": dict(request.headers)})
        if self.faults["enroll"] and (answer := await self.faults["enroll"].popleft()(request)) is not None:
            return answer
        asked = await request.json()
        used_by = self.codes.get(asked["code"])
        if used_by not in ("", asked["machine"]):
            return error(403, "bad_code")
        self.codes[asked["code"]] = asked["machine"]
        return web.json_response(
            {
                "gateway": self.gateway,
                "venue": self.venue,
                "token": self.tokens[-1],
                "history": self.history,
                "time": datetime.now(UTC).isoformat(),
                "keys": [{"id": "k1", "public": self.public}],
            }
        )

    async def changes(self, request: web.Request) -> web.StreamResponse:
        if (fault := await self._before("changes", request)) is not None:
            return fault
        if self.revoked:
            return self.signed(request, protocol.CHANGES, {"revoked": True}, 403)
        found = re.fullmatch(rf"{self.history}-(\d+)", request.query.get("cursor", ""))
        if found is None:
            return self.signed(request, protocol.CHANGES, {"gone": True}, 410)
        at = int(found[1])
        if at == len(self.log) and self.hold:
            self.held += 1
            try:
                async with asyncio.timeout(min(float(request.query["wait"]), 30)):
                    await self._changed.wait()
            except TimeoutError:
                pass
            finally:
                self.held -= 1
        records = self.log[at : at + protocol.MAX_RECORDS]
        upto = at + len(records)
        return self.signed(
            request,
            protocol.CHANGES,
            {
                "cursor": found[0],
                "next": f"{self.history}-{upto}",
                "position": upto,
                "more": upto < len(self.log),
                "forget": None,
                "records": records,
            },
        )

    async def file(self, request: web.Request) -> web.StreamResponse:
        if (fault := await self._before("snapshot", request)) is not None:
            return fault
        content, etag, start = self.snapshot, self.etag, 0
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if asked is not None and request.headers.get("If-Range") == etag:
            start = int(asked[1])
            if start >= len(content):
                return web.Response(status=416)
        manifest = self.manifest(content)
        headers = {
            "Content-Type": protocol.SNAPSHOT,
            "ETag": etag,
            "Gateway-Manifest": base64.urlsafe_b64encode(manifest).decode(),
            "Gateway-Signature": self.sign(protocol.SNAPSHOT_FILE, manifest),
        }
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        response = web.StreamResponse(status=206 if start else 200, headers=headers)
        response.content_length = len(content) - start
        await response.prepare(request)
        end = len(content) if self.cut_at is None else min(len(content), start + self.cut_at)
        for at in range(start, end, 1 << 16):
            await response.write(content[at : min(at + (1 << 16), end)])
        if end < len(content):
            await cut_off(request)
        else:
            await response.write_eof()
        return response

    def manifest(self, content: bytes) -> bytes:
        return json.dumps(
            {
                "venue": self.venue,
                "history": self.history,
                "cursor": f"{self.history}-{len(self.log)}",
                "position": len(self.log),
                "published": datetime.now(UTC).isoformat(),
                "count": 0,
                "bytes": 0,
                "size": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        ).encode()

    async def post(self, request: web.Request) -> web.StreamResponse:
        if (fault := await self._before("events", request)) is not None:
            return fault
        raw = await request.read()
        self.sizes.append(len(raw))
        batch = json.loads(raw)
        assert len(batch["events"]) <= protocol.MAX_EVENTS
        if self.poisoned.intersection(event["seq"] for event in batch["events"]):
            return error(500, "internal")
        ranges: list[list[int]] = []
        for event in batch["events"]:
            key = event["epoch"], event["seq"]
            if key not in self.events:
                self.events[key] = event
                self.arrived.append(event["seq"])
            if ranges and ranges[-1][0] == key[0] and ranges[-1][2] + 1 == key[1]:
                ranges[-1][2] += 1
            else:
                ranges.append([*key, key[1]])
        said = {"acknowledged": ranges, "refused": [], "conflict": None}
        return self.signed(request, protocol.EVENTS, said, nonce=batch["nonce"])


# --- faults -----------------------------------------------------------------------------------------


def error(status: int, code: str, **headers: str) -> web.Response:
    return web.json_response({"error": "no", "code": code}, status=status, headers=headers)


def answering(status: int, code: str = "internal", **headers: str) -> Fault:
    async def fault(_: web.Request) -> web.StreamResponse:
        return error(status, code, **{name.replace("_", "-"): value for name, value in headers.items()})

    return fault


async def never(_: web.Request) -> web.StreamResponse:
    """Accepted, and not answered."""
    await asyncio.Event().wait()
    raise AssertionError


def later(seconds: float) -> Fault:
    async def fault(_: web.Request) -> None:
        await asyncio.sleep(seconds)

    return fault


async def html(_: web.Request) -> web.StreamResponse:
    """What a proxy or a hotel's login page says."""
    return web.Response(text="<html><body>Please log in.</body></html>", content_type="text/html")


def bomb(encoding: str) -> Fault:
    """128 MiB of zeros, packed to a thousandth, as the body of an answer that looks signed."""

    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    body = b"".join(packer.compress(bytes(1 << 20)) for _ in range(128)) + packer.flush()

    async def fault(_: web.Request) -> web.StreamResponse:
        headers = {
            "Content-Encoding": encoding,
            "Content-Type": protocol.JSON,
            "Gateway-Signature": "k1:" + base64.b64encode(bytes(64)).decode(),
        }
        return web.Response(body=body, headers=headers)

    return fault


async def endless(request: web.Request) -> web.StreamResponse:
    """A body without end, chunked, that looks signed."""
    headers = {"Content-Type": protocol.JSON, "Gateway-Signature": "k1:x"}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    try:
        while True:
            await response.write(bytes(1 << 16))
    except ConnectionError:
        return response


async def cut_off(request: web.Request) -> web.StreamResponse | None:
    """The connection ends here, after what was written so far."""
    assert request.transport is not None
    while request.transport.get_write_buffer_size():  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    request.transport.close()
    return None


def packed(lines: int) -> bytes:
    """Some bytes like a snapshot's."""
    return gzip.compress(b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(lines)), mtime=0)
