"""The four calls of docs/protocol.md.

The store is synchronous and lives in one thread; the loop keeps what many ask at the same moment: who a token
is, what stands behind a cursor, what the central has of a gateway's events. So a commit is answered to two
hundred gateways that wait with one look at the store, and a signature for each.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import msgpack  # type: ignore[import-untyped]
import orjson
import structlog
from aiohttp import web

from gateway.central import web as http
from gateway.central.downloads import Downloads, Served
from gateway.central.facts import GatewayRow, Taken
from gateway.central.faults import EnrolError, TokenError
from gateway.central.polls import Page, Polls
from gateway.central.store import Store
from gateway.central.web import Failures, Refusal, Tally
from gateway.sync import protocol
from gateway.sync.protocol import ProtocolError

T = TypeVar("T")

_MAX_ENROL = 4096
_MAX_CONDITION = 4096
_SESSION_S = 60
"""After so long a token is looked up in the store again, and a condition with nothing new is written down."""
_MOST_KEYS = 16
Known = tuple[str, ...] | None
"""The keys that a gateway names; None where it names none at all, and so is not told which there are."""
_RECORDS: bytes = msgpack.packb("records")
_GOES_ON = {"position", "credentials", "last_seq", "acknowledged", "clock_deviation_s"}
"""Of a gateway's condition."""
_STREAMS = 3
"""Long answers of the admin API at a time: each holds a connection to the database."""


@dataclass(slots=True)
class Session:
    """A token that was good when it was last looked up."""

    key: bytes
    gateway: str
    venue: str
    revoked: bool = False
    looked_up: float = 0.0
    condition: bytes = b""
    """What of its condition was written down and matters."""
    noted: float = float("-inf")
    heard: float = 0.0
    fresh: str | None = None
    """The token that follows. One answer carries it: two boxes with a copy of one card must not both get it.
    Where that answer is lost, the store gives another one later."""
    own: bool = True
    """Whether there may be commands for it behind its cursor, so that its pages are nobody else's."""


class Central:
    """The store with its thread, and what is remembered between calls."""

    def __init__(
        self,
        store: Store,
        *,
        log: structlog.typing.FilteringBoundLogger,
        database: str | None = None,
        behind_proxy: bool = False,
    ) -> None:
        self.store = store
        self.log = log
        self.polls = Polls()
        self.tally = Tally(self.connected)
        self.downloads = Downloads(store, database, self.db, log)
        self._behind_proxy = behind_proxy
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._sessions: dict[bytes, Session] = {}
        self._session_of: dict[str, bytes] = {}
        self._have: dict[str, dict[str, int]] = {}
        self._told = 0
        self._taking = threading.local()
        self.streams = asyncio.Semaphore(_STREAMS)
        self._bad_tokens = Failures(20, 60)
        self._bad_codes = Failures(5, 60)
        self._loop = asyncio.get_running_loop()
        store.on_change = self._on_change

    async def db(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run in the store's thread."""
        return await self._loop.run_in_executor(self._thread, work, *arguments)

    async def close(self) -> None:
        await self.downloads.stop()
        await self.db(self.store.close)
        self._thread.shutdown()

    def later(self, work: Callable[[], object]) -> None:
        """Have something done in the store's thread, whenever."""
        self._thread.submit(work)

    def _on_change(self, venue: str, gateway: str | None) -> None:
        """In the thread that has committed."""
        by = getattr(self._taking, "gateway", None)
        self._loop.call_soon_threadsafe(self._moved, venue, gateway, by)

    def _moved(self, venue: str, only: str | None, by: str | None) -> None:
        if only is None:
            # What a gateway has just sent is no news to itself; it comes along with the next that is.
            self.polls.moved(venue, but=by)
        else:
            # A command for it, or its token or right to be here has changed: look it up again.
            self._told += 1
            self._sessions.pop(self._session_of.pop(only, b""), None)
            self.polls.moved(venue, only=only)

    def remote(self, request: web.Request) -> str:
        """Who asks, for the limits on failures: the proxy's word where there is a proxy."""
        if self._behind_proxy and (said := request.headers.get("X-Forwarded-For")):
            return said.rpartition(",")[2].strip()[:64]
        return request.remote or ""

    # --- who asks ------------------------------------------------------------------------------------------

    async def session(self, request: web.Request) -> Session:
        """Whose token this is. Raises Refusal."""
        token = http.bearer(request)
        if not token:
            raise Refusal(401, "bad_token", "say Authorization: Bearer and the gateway's token")
        machine = request.headers.get("Gateway-Machine", "")
        if not protocol.MACHINE.fullmatch(machine):
            raise Refusal(400, "bad_request", "Gateway-Machine: must be 64 hex digits")
        key = hashlib.sha256(f"{machine} {token}".encode(errors="surrogatepass")).digest()
        session = self._sessions.get(key)
        if session is None or time.monotonic() - session.looked_up >= _SESSION_S:
            session = await self._looked_up(key, token, machine, self.remote(request))
        session.heard = time.monotonic()
        return session

    async def _looked_up(self, key: bytes, token: str, machine: str, who: str) -> Session:
        while True:
            told = self._told
            try:
                row = await self.db(self._look_up, token, machine)
            except TokenError as error:
                self._sessions.pop(key, None)
                if seconds := self._bad_tokens.wait(who):
                    raise Refusal(
                        429, "too_many", "too many bad tokens from this address", retry_after=seconds
                    ) from None
                self._bad_tokens.add(who)
                status = 403 if error.code == "other_machine" else 401
                raise Refusal(status, error.code, str(error)) from None
            if told == self._told:
                break  # else somebody's right may have changed since it was read
        session = self._sessions.get(key)
        if session is None:
            # A token that was used ends the one before it.
            session = Session(key, row.id, row.venue)
            self._sessions.pop(self._session_of.get(row.id, b""), None)
            self._session_of[row.id] = key
            self._sessions[key] = session
        session.revoked, session.looked_up = row.revoked, time.monotonic()
        return session

    def _look_up(self, token: str, machine: str) -> GatewayRow:
        row = self.store.authenticate(token, machine)
        if row.id not in self._have:
            self._learn(row.id)
        return row

    def _learn(self, gateway: str) -> None:
        """In the store's thread alone, so that nothing is read that a batch has made old."""
        self._have[gateway] = {str(epoch): seq for epoch, seq in self.store.have(gateway).items()}

    def connected(self) -> int:
        """Gateways that were heard in the last minute."""
        since = time.monotonic() - 60
        return sum(session.heard > since for session in self._sessions.values())

    # --- signing -------------------------------------------------------------------------------------------

    def _signed(
        self,
        purpose: str,
        body: bytes,
        known: Known,
        *,
        content_type: str,
        status: int = 200,
        fresh: str | None = None,
    ) -> web.Response:
        headers = {
            "Gateway-Signature": protocol.sign(self.store.keys.signing(known or ()), purpose, body),
            "Cache-Control": "no-store",
        }
        if fresh is not None:
            headers["Gateway-Token"] = fresh
        return web.Response(status=status, body=body, content_type=content_type, headers=headers)

    # --- POST /v1/enroll -----------------------------------------------------------------------------------

    async def enroll(self, request: web.Request) -> web.Response:
        who = self.remote(request)
        if seconds := self._bad_codes.wait(who):
            raise Refusal(429, "too_many", "too many bad codes from this address", retry_after=seconds)
        asked = await http.decoded(request, _MAX_ENROL)
        code, machine = protocol.text(asked, "code", 64), protocol.text(asked, "machine", 64)
        if not protocol.MACHINE.fullmatch(machine):
            raise ProtocolError("machine: must be 64 hex digits")
        if request.headers.get("Gateway-Machine", machine) != machine:
            raise Refusal(403, "other_machine", "machine and Gateway-Machine name two computers")
        names = [asked.get("hostname", ""), asked.get("version", "")]
        if not all(isinstance(name, str) and len(name) <= 255 for name in names):
            raise ProtocolError("hostname, version: must be texts of at most 255 characters")
        try:
            said = await self.db(self._enrol, code, machine, *names)
        except EnrolError as error:
            self._bad_codes.add(who)
            raise Refusal(403, "bad_code", str(error)) from None
        self.log.info("gateway enrolled", gateway=said["gateway"], venue=said["venue"])
        said["time"] = protocol.rfc3339(self.store.clock())
        packed = _packs(request)
        return web.Response(
            body=protocol.encode(said, packed), content_type=packed, headers={"Cache-Control": "no-store"}
        )

    def _enrol(self, code: str, machine: str, hostname: str, version: str) -> dict[str, Any]:
        enrolled = self.store.enrol(code, machine, hostname, version)
        history, _ = self.store.log(enrolled.venue)
        self._learn(enrolled.gateway)
        return {
            "gateway": enrolled.gateway,
            "venue": enrolled.venue,
            "token": enrolled.token,
            "history": history,
            "keys": self.store.keys.public(),
        }

    # --- GET /v1/changes -----------------------------------------------------------------------------------

    async def changes(self, request: web.Request) -> web.Response:
        nonce, known, cursor, wait = _asked(request.query)
        session = await self.session(request)
        await self._note(session, request.headers.get("Gateway-Condition"))
        until = time.monotonic() + wait
        while True:
            venue = session.venue
            moves = self.polls.moves(venue)
            if session.revoked:
                return await self._revoked(request, session, nonce, known)
            page = await self._page(session, cursor, known)
            if self._sessions.get(session.key) is session:
                left = until - time.monotonic()
                if page.records or page.gone or left <= 0 or self.polls.stopping:
                    break
                await self.polls.wait(venue, session.gateway, moves, left)
            if self._sessions.get(session.key) is not session:
                # Its token was changed meanwhile, somebody enrolled, or there is a command for it, which a
                # page for all leaves out and leads past.
                fresh, session.fresh = session.fresh, None
                session = await self.session(request)
                session.fresh = session.fresh or fresh
        have = self._have[session.gateway]
        said: dict[str, Any] = {
            "gateway": session.gateway,
            "venue": session.venue,
            "history": page.history,
            "nonce": nonce,
            "time": protocol.rfc3339(
                self.store.clock()
            ),  # after ``have``: what was taken by then is in there
            "have": have,
        }
        type_ = _packs(request)
        if page.gone:
            body = protocol.encode({**said, "gone": True}, type_)
            return self._signed(protocol.CHANGES, body, known, content_type=type_, status=410)
        said |= {"cursor": cursor, "next": page.next, "position": page.position, "more": page.more}
        said["forget"] = page.forget and {
            "position": page.forget[0],
            "at": protocol.rfc3339(page.forget[1]),
        }
        body = _with_records(said, page, type_)
        fresh, session.fresh = session.fresh, None
        return self._signed(protocol.CHANGES, body, known, content_type=type_, fresh=fresh)

    async def _revoked(
        self, request: web.Request, session: Session, nonce: str, known: Known
    ) -> web.Response:
        history, _ = await self.db(self.store.log, session.venue)
        said = {
            "gateway": session.gateway,
            "venue": session.venue,
            "history": history,
            "nonce": nonce,
            "time": protocol.rfc3339(self.store.clock()),
            "revoked": True,
        }
        type_ = _packs(request)
        body = protocol.encode(said, type_)
        return self._signed(protocol.CHANGES, body, known, content_type=type_, status=403)

    async def _page(self, session: Session, cursor: str, known: Known) -> Page:
        if session.own:
            page = await self._page_for(session.venue, session.gateway, cursor, known)
            # Not before it has come back with a cursor behind which there is none: an answer can be lost.
            session.own = page.commands or page.more
            return page
        return await self._page_for(session.venue, None, cursor, known)

    async def _page_for(self, venue: str, gateway: str | None, cursor: str, known: Known) -> Page:
        """``gateway``: None for a page without commands, which all share."""

        async def read() -> Page:
            return await self.db(self._read, venue, gateway or "", cursor, known)

        return await self.polls.page(venue, (gateway, cursor, known), read)

    def _read(self, venue: str, gateway: str, cursor: str, known: Known) -> Page:
        position = self.store.position_of(venue, cursor) if cursor else None
        history, _ = self.store.log(venue)
        if position is None:
            return Page(history, gone=True)
        page = self.store.changes(
            venue,
            gateway,
            position,
            known=known,
        )
        return Page(
            history,
            next=self.store.cursor(venue, page.next_position),
            position=page.next_position,
            more=page.more,
            forget=self.store.forget(venue),
            records=tuple(page.records),
        )

    async def _note(self, session: Session, header: str | None) -> None:
        """Write down how the gateway is, where that says something new or a minute has passed; and see
        whether its token is due to be renewed."""
        condition = _condition(header)
        matters = _matters(condition)
        now = time.monotonic()
        if now - session.noted < _SESSION_S and matters == session.condition:
            return
        session.noted, session.condition = now, matters
        fresh = await self.db(self._seen, session.gateway, condition)
        if fresh is not None and not session.revoked:
            session.fresh = fresh

    def _seen(self, gateway: str, condition: dict[str, Any] | None) -> str | None:
        self.store.seen(gateway, condition)
        return self.store.renew_token(gateway)

    # --- POST /v1/events -----------------------------------------------------------------------------------

    async def events(self, request: web.Request) -> web.Response:
        session = await self.session(request)
        if session.revoked:
            raise Refusal(403, "revoked", "this gateway was revoked at the central")
        asked = await http.decoded(request, protocol.MAX_UPLOAD)
        if asked.get("gateway") != session.gateway:
            raise Refusal(403, "other_gateway", "gateway: the token is another gateway's")
        nonce = protocol.text(asked, "nonce", 64)
        keys, batch = asked.get("keys", []), asked.get("events")
        if not protocol.NONCE.fullmatch(nonce):
            raise ProtocolError("nonce: must be 16 to 64 letters, digits, - or _")
        if not isinstance(keys, list):
            raise ProtocolError("keys: must be a list of key ids")
        known = _known(keys)
        if not isinstance(batch, list) or not all(isinstance(event, dict) for event in batch):
            raise ProtocolError("events: must be a list of objects")
        if len(batch) > protocol.MAX_EVENTS:
            raise Refusal(413, "too_large", f"events: at most {protocol.MAX_EVENTS} at a time")
        history, taken = await self.db(self._take, session.venue, session.gateway, batch)
        have = self._have[session.gateway]
        said = {
            "gateway": session.gateway,
            "venue": session.venue,
            "history": history,
            "nonce": nonce,
            "time": protocol.rfc3339(self.store.clock()),
            "have": have,
            "acknowledged": taken.acknowledged,
            "refused": [
                {"epoch": epoch, "seq": seq, "reason": reason} for epoch, seq, reason in taken.refused
            ],
            "conflict": taken.conflict and {"epoch": taken.conflict[0], "seq": taken.conflict[1]},
        }
        type_ = _packs(request)
        body = protocol.encode(said, type_)
        return self._signed(protocol.EVENTS, body, known, content_type=type_)

    def _take(self, venue: str, gateway: str, batch: list[dict[str, Any]]) -> tuple[str, Taken]:
        self._taking.gateway = gateway
        try:
            taken = self.store.take(gateway, batch)
        finally:
            self._taking.gateway = None
        self._learn(gateway)
        return self.store.log(venue)[0], taken

    # --- GET /v1/snapshot ----------------------------------------------------------------------------------

    async def snapshot(self, request: web.Request) -> web.StreamResponse:
        known = _named(request.query)
        at_least = request.query.get("at_least", "")
        session = await self.session(request)
        if session.revoked:
            raise Refusal(403, "revoked", "this gateway was revoked at the central")
        if at_least and not protocol.CURSOR.fullmatch(at_least):
            raise ProtocolError("at_least: must be at most 128 printable ASCII characters")
        file = await self.downloads.find(session.venue, at_least)
        signature = protocol.sign(self.store.keys.signing(known or ()), protocol.SNAPSHOT_FILE, file.manifest)
        manifest = base64.urlsafe_b64encode(file.manifest).decode()
        return Served(file, {"Gateway-Manifest": manifest, "Gateway-Signature": signature})


# --- what a request says -------------------------------------------------------------------------------


def _asked(query: Mapping[str, str]) -> tuple[str, Known, str, int]:
    """(nonce, keys, cursor, wait). Raises ProtocolError."""
    nonce, cursor, wait = query.get("nonce", ""), query.get("cursor", ""), query.get("wait", "0")
    if not protocol.NONCE.fullmatch(nonce):
        raise ProtocolError("nonce: must be 16 to 64 letters, digits, - or _")
    if cursor and not protocol.CURSOR.fullmatch(cursor):
        raise ProtocolError("cursor: must be at most 128 printable ASCII characters")
    if not (wait.isascii() and wait.isdecimal() and len(wait) < 6):
        raise ProtocolError("wait: must be a number of seconds")
    return nonce, _named(query), cursor, min(int(wait), protocol.MAX_WAIT)


def _named(query: Mapping[str, str]) -> Known:
    """The keys in a query. Raises ProtocolError."""
    return _known(query["keys"].split(",")) if "keys" in query else None


def _known(keys: Sequence[object]) -> tuple[str, ...]:
    """The keys that the gateway knows. Raises ProtocolError."""
    ids = {key for key in keys if key != ""}
    if len(keys) > _MOST_KEYS or not all(
        isinstance(id_, str) and protocol.KEY_ID.fullmatch(id_) for id_ in ids
    ):
        raise ProtocolError(f"keys: must be at most {_MOST_KEYS} ids of 1 to 32 letters, digits, - or _")
    return tuple(sorted(map(str, ids)))


def _packs(request: web.Request) -> str:
    """In what the answer goes out."""
    return protocol.MSGPACK if protocol.MSGPACK in request.headers.get("Accept", "") else protocol.JSON


def _with_records(said: dict[str, Any], page: Page, type_: str) -> bytes:
    """The body, with the records spliced in as they were encoded once for everybody."""
    if type_ == protocol.MSGPACK:
        # A map of up to 15 entries begins with 0x80 and their number (msgpack's fixmap).
        head: bytes = msgpack.packb(said)
        return bytes((0x80 | len(said) + 1,)) + head[1:] + _RECORDS + page.msgpack
    return orjson.dumps(said)[:-1] + b',"records":' + page.json + b"}"


def _condition(header: str | None) -> dict[str, Any] | None:
    """How the gateway says it is; None where it says nothing that can be kept. What is wrong with it must
    not keep a revocation from the gate, so it is no reason to refuse."""
    if header is None or len(header) > _MAX_CONDITION * 4 // 3 + 4:
        return None
    try:
        value = orjson.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    except (binascii.Error, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _matters(condition: dict[str, Any] | None) -> bytes:
    """What of a condition is news for an operator: not what goes on with each scan and each change."""
    kept = {name: value for name, value in (condition or {}).items() if name not in _GOES_ON}
    return orjson.dumps(kept, option=orjson.OPT_SORT_KEYS)


def routes(central: Central) -> list[web.RouteDef]:
    return [
        web.post("/v1/enroll", central.enroll),
        web.get("/v1/changes", central.changes, allow_head=False),
        web.get("/v1/snapshot", central.snapshot),
        web.post("/v1/events", central.events),
    ]
