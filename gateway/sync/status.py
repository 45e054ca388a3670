"""The status page, for the technician's phone and for operations: how everything is, and acts after a login.

The page shows no code, no name and no id of a card. What an operator does is asked of the gate with the token
that they typed: the gate decides, and records it. Here the token is only kept, for as long as they are logged
in, in memory.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import orjson
from aiohttp import web

from gateway import __version__
from gateway.sync.counts import Counts
from gateway.sync.link import Away, Connect, Link, Refused
from gateway.sync.streams import Stream, Streams, event
from gateway.sync.watching import Verdict, Watch

COOKIE = "gateway_session"
IDLE, LONGEST = 1800.0, 12 * 3600.0
"""Seconds after which a session ends that nobody uses; that is used."""
SESSIONS = 64
"""At once; the oldest goes when there are more."""
_CALL = 5.0
"""Seconds that the gate has for an act."""
_AT_ONCE = 4
"""Acts and logins on their way to the gate."""
_FIRST = 2.0
_BODY = 10.0
"""Seconds in which a request must have come."""
_STATUS = {"bad_request": 400, "wrong_token": 401, "busy": 429}


@dataclass(eq=False)
class _Session:
    token: str
    operator: str
    began: float
    used: float
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(16))


class Status:
    """The page's stream, and the acts of operators."""

    def __init__(
        self, watch: Watch, streams: Streams, connect: Connect, counts: Counts, *, central: bool
    ) -> None:
        """``central``: whether one is configured."""
        self._watch, self._streams, self._counts, self._central = watch, streams, counts, central
        self._link = Link(connect, _CALL)
        self._open: set[Stream] = set()
        self._sessions: dict[str, _Session] = {}
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        watch.on_verdict.append(self._verdict)
        watch.on_change.append(self._change)

    def close(self) -> None:
        self._sessions.clear()
        self._link.close()

    # --- looking -----------------------------------------------------------------------------------------

    async def events(self, request: web.Request) -> web.StreamResponse:
        """The stream of one page: everything at first and every two seconds, and each verdict as it falls."""
        stream = Stream()
        with self._watch.look():
            await self._watch.known(_FIRST)
            self._open.add(stream)
            try:
                return await self._streams.serve(request, stream, [event(self._everything())])
            finally:
                self._open.discard(stream)

    def _verdict(self, verdict: Verdict) -> None:
        self._tell({"verdict": seen(verdict)})

    def _change(self) -> None:
        self._tell(self._everything())

    def _tell(self, told: Mapping[str, Any]) -> None:
        if self._open:
            data = event(told)
            for stream in self._open:
                stream.put(data)

    def _everything(self) -> dict[str, Any]:
        value = self._counts.registry.get_sample_value
        return {
            "gate": self._watch.status,
            "verdicts": [seen(each) for each in reversed(self._watch.verdicts)],
            "sync": {
                "version": __version__,
                "central": self._central,
                "up": value("gateway_sync_up") == 1,
                "last_success": value("gateway_sync_last_success_timestamp_seconds") or None,
                "trouble": self._counts.trouble,
            },
        }

    # --- acting ------------------------------------------------------------------------------------------

    async def session(self, request: web.Request) -> web.Response:
        """Who is logged in, with what their acts must carry."""
        session = self._session(request)
        return web.json_response(_who(session))

    async def login(self, request: web.Request) -> web.Response:
        """Begin a session with a token."""
        token = (await self._body(request)).get("token")
        if not isinstance(token, str):
            raise self._refused(400, "bad_request", "token: a text is needed")
        operator = (await self._operate(token.strip(), "login", {}))["operator"]
        now = asyncio.get_running_loop().time()
        session, cookie = _Session(token.strip(), operator, now, now), secrets.token_urlsafe(32)
        self._end(request)
        while len(self._sessions) >= SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        self._sessions[cookie] = session
        response = web.json_response(_who(session))
        tls = request.secure or request.headers.get("X-Forwarded-Proto") == "https"
        response.set_cookie(COOKIE, cookie, httponly=True, samesite="Strict", secure=tls, path="/")
        return response

    async def logout(self, request: web.Request) -> web.Response:
        """End the session."""
        await self._body(request)
        self._end(request)
        response = web.json_response(_who(None))
        response.del_cookie(COOKIE, path="/")
        return response

    async def act(self, request: web.Request) -> web.Response:
        """Open a lane once, or set its state."""
        body, session = await self._body(request), self._session(request)
        if session is None:
            raise self._refused(401, "no_session", "log in first")
        if not secrets.compare_digest(str(body.get("csrf")).encode(), session.csrf.encode()):
            raise self._refused(403, "csrf", "the page is an old one; load it again")
        arguments = {name: body[name] for name in ("lane", "state") if isinstance(body.get(name), str)}
        try:
            done = await self._operate(session.token, str(body.get("act")), arguments)
        except web.HTTPUnauthorized:
            self._end(request)  # the operator was removed
            raise
        return web.json_response(done)

    async def _operate(self, token: str, act: str, arguments: Mapping[str, str]) -> dict[str, Any]:
        try:
            async with self._at_once:
                done: dict[str, Any] = await self._link.call("operate", token=token, act=act, **arguments)
                return done
        except Refused as error:
            raise self._refused(_STATUS.get(error.code, 502), error.code, str(error)) from None
        except Away as error:
            raise self._refused(503, "away", str(error)) from None

    async def _body(self, request: web.Request) -> dict[str, Any]:
        """What was posted by a page of ours. No form can post JSON across sites."""
        if not same_site(request):
            raise self._refused(403, "cross_site", "this came from another site")
        if request.content_type != "application/json":
            raise self._refused(415, "not_json", "send application/json")
        try:
            async with asyncio.timeout(_BODY):
                body = orjson.loads(await request.read())
        except (orjson.JSONDecodeError, TimeoutError, web.RequestPayloadError):
            body = None
        if not isinstance(body, dict):
            raise self._refused(400, "bad_request", "not a JSON object")
        return body

    def _session(self, request: web.Request) -> _Session | None:
        cookie = request.cookies.get(COOKIE, "")
        session, now = self._sessions.get(cookie), asyncio.get_running_loop().time()
        if session is None:
            return None
        if now - session.used > IDLE or now - session.began > LONGEST:
            del self._sessions[cookie]
            return None
        session.used = now
        return session

    def _end(self, request: web.Request) -> None:
        self._sessions.pop(request.cookies.get(COOKIE, ""), None)

    def _refused(self, status: int, reason: str, text: str) -> web.HTTPException:
        self._counts.web_refused.labels(reason).inc()
        kind: type[web.HTTPException] = _EXCEPTIONS.get(status, web.HTTPBadGateway)
        body = orjson.dumps({"code": reason, "error": text}).decode()
        return kind(text=body, content_type="application/json")


_EXCEPTIONS: Mapping[int, type[web.HTTPException]] = {
    400: web.HTTPBadRequest,
    401: web.HTTPUnauthorized,
    403: web.HTTPForbidden,
    415: web.HTTPUnsupportedMediaType,
    429: web.HTTPTooManyRequests,
    502: web.HTTPBadGateway,
    503: web.HTTPServiceUnavailable,
}


def _who(session: _Session | None) -> dict[str, str | None]:
    return {
        "operator": None if session is None else session.operator,
        "csrf": None if session is None else session.csrf,
    }


def seen(verdict: Verdict) -> dict[str, Any]:
    """A verdict, or an event of the kind scan, as the page shows it: nothing of whose it was."""
    return {name: verdict.get(name) for name in ("at", "point", "lane", "verdict", "detail", "guest")}


def same_site(request: web.BaseRequest) -> bool:
    """Whether a browser says that one of our own pages asks. What is no browser says nothing."""
    fetch, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if fetch is not None and fetch != "same-origin":
        return False
    return origin is None or urlsplit(origin).netloc == request.headers.get("Host")
