"""What both halves of the central's HTTP need: refusals, bodies with bounds, the guard around every call.

Nobody who asks is trusted to be quick, small or sane: a body is read up to a bound and for a time, nothing is
unpacked, and whatever goes wrong here is told in one sentence and never with a traceback.
"""

from __future__ import annotations

import asyncio
import errno
import time
import traceback
from collections.abc import Awaitable, Callable, Generator, Iterator
from typing import IO, Any

import orjson
import structlog
from aiohttp import http_exceptions, web
from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics
from sqlalchemy.exc import OperationalError

from gateway.sync import protocol
from gateway.sync.protocol import ProtocolError

BODY_S = 60
"""For how long a body of bounded size may be on its way, and each piece of an unbounded one."""
_AGAIN_S = 10
"""Until a gateway asks again, where the machine is at fault."""
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_ADDRESSES = 10_000
"""So many addresses are remembered for what failed."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refusal(Exception):
    """A request that is not served: the status, a word for programs, a sentence for people."""

    def __init__(self, status: int, code: str, text: str, *, retry_after: int | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.retry_after = retry_after


def refused(status: int, code: str, text: str, retry_after: int | None = None) -> web.Response:
    """The answer that says so (docs/protocol.md)."""
    headers = {"Cache-Control": "no-store"}
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return web.Response(
        status=status,
        body=orjson.dumps({"error": text, "code": code}),
        content_type=protocol.JSON,
        headers=headers,
    )


def answered(value: Any, status: int = 200) -> web.Response:
    return web.Response(
        status=status,
        body=orjson.dumps(value),
        content_type=protocol.JSON,
        headers={"Cache-Control": "no-store"},
    )


# --- what comes in ------------------------------------------------------------------------------------


async def body(request: web.Request, most: int, seconds: float = BODY_S) -> bytes:
    """The whole body. Raises Refusal where it is longer than ``most`` bytes or does not come."""
    if (request.content_length or 0) > most:
        raise Refusal(413, "too_large", f"the body is longer than {most} bytes")
    read = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.content.iter_any():
                read += piece
                if len(read) > most:
                    raise Refusal(413, "too_large", f"the body is longer than {most} bytes")
    except TimeoutError:
        raise Refusal(408, "too_slow", f"the body did not come within {seconds} seconds") from None
    return bytes(read)


async def decoded(request: web.Request, most: int) -> dict[str, Any]:
    """The body as an object, JSON or msgpack as its content type says. Raises Refusal."""
    if request.content_type not in (protocol.JSON, protocol.MSGPACK):
        raise Refusal(415, "bad_request", f"send {protocol.JSON} or {protocol.MSGPACK}")
    return protocol.decode(await body(request, most), request.content_type)


def bearer(request: web.Request) -> str:
    """The token of the request; empty where there is none."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and len(token) <= 512 else ""


# --- who failed lately ----------------------------------------------------------------------------------


class Failures:
    """Attempts that failed, by address: more than ``most`` in ``window`` seconds are too many."""

    def __init__(self, most: int, window: int) -> None:
        self._most = most
        self._window = window
        self._count: dict[str, tuple[int, float]] = {}

    def wait(self, who: str) -> int:
        """For how many seconds this address has to wait; 0 where it has not."""
        count, until = self._count.get(who, (0, 0.0))
        left = until - time.monotonic()
        return int(left) + 1 if left > 0 and count >= self._most else 0

    def add(self, who: str) -> None:
        now = time.monotonic()
        count, until = self._count.pop(who, (0, 0.0))
        self._count[who] = (count + 1, until) if until > now else (1, now + self._window)
        while len(self._count) > _ADDRESSES:
            del self._count[next(iter(self._count))]


# --- the guard --------------------------------------------------------------------------------------------


class Tally:
    """What the central counts about its own calls."""

    def __init__(self, connected: Callable[[], int]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "gateway_central_requests_total",
            "Requests answered, by call and status",
            ("call", "status"),
            registry=self.registry,
        )
        Gauge(
            "gateway_central_gateways_connected",
            "Gateways heard of in the last minute",
            registry=self.registry,
        ).set_function(connected)

    def add(self, call: str, status: int) -> None:
        self._requests.labels(call, str(status)).inc()

    async def answered(self, request: web.Request, response: web.StreamResponse) -> None:
        """When an answer begins: only then does one with a file know whether it is of a part, 206."""
        self.add(_call(request), response.status)


def guard(tally: Tally, log: structlog.typing.FilteringBoundLogger) -> Any:
    """The middleware: refuses what is packed, turns what is raised into answers, logs.

    The line in the log names the route and not the path, and no query: those have codes and cursors.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        began = time.monotonic()
        try:
            response = await _answer(request, handler, log)
        except asyncio.CancelledError:
            tally.add(_call(request), 499)  # the client went away
            raise
        call = _call(request)
        if response.status >= 400 and response.status not in (410, 503):
            log.info(
                "request refused",
                call=f"{request.method} {call}",
                status=response.status,
                remote=request.remote,
                seconds=round(time.monotonic() - began, 3),
            )
        return response

    return middleware


async def _answer(
    request: web.Request, handler: Handler, log: structlog.typing.FilteringBoundLogger
) -> web.StreamResponse:
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        return refused(415, "bad_request", "send the body as it is, without Content-Encoding")
    try:
        return await handler(request)
    except Refusal as refusal:
        return refused(refusal.status, refusal.code, str(refusal), refusal.retry_after)
    except ProtocolError as error:
        return refused(400, "bad_request", str(error))
    except web.HTTPMethodNotAllowed as error:
        response = refused(405, "bad_request", f"this call has no {request.method[:20]}")
        response.headers["Allow"] = error.headers["Allow"]
        return response
    except web.HTTPException as error:
        return refused(
            error.status, "not_found" if error.status == 404 else "bad_request", _said(error.status)
        )
    except (web.RequestPayloadError, http_exceptions.BadHttpMessage):
        return refused(400, "bad_request", "the body broke off, or is not as its headers say")
    except ConnectionError:
        raise  # the client went away
    except Exception as error:
        # The one place that catches whatever comes: an answer must never be a traceback. The message of the
        # exception may quote what was sent, so the log has its type and the place only.
        if (reason := _of_the_machine(error)) is not None:
            log.error("the central's data cannot be used", call=_call(request), reason=reason)
            text = "the central cannot write or read its data; is its disk full?"
            return refused(503, "failed", text, retry_after=_AGAIN_S)
        place = "".join(traceback.format_tb(error.__traceback__)[-6:])
        log.error("a call failed", call=_call(request), error=type(error).__name__, place=place)
        return refused(500, "failed", "the central failed at this; its log says where")


def _of_the_machine(error: Exception) -> str | None:
    """The reason, where a disk is full or a database is away: no fault of the request, and 503 tells a
    gateway that none of its events is to blame."""
    if isinstance(error, OperationalError):
        return str(error.orig)
    if isinstance(error, OSError) and error.errno in _DISK:
        return error.strerror
    return None


def _said(status: int) -> str:
    return "there is no such call" if status == 404 else "this request cannot be served"


def _call(request: web.Request) -> str:
    """The route's pattern: few values, and nothing of what was asked."""
    resource = request.match_info.route.resource
    return "other" if resource is None else resource.canonical


# --- long bodies --------------------------------------------------------------------------------------------


async def spooled(request: web.Request, file: IO[bytes], most: int) -> None:
    """The body into a file, in pieces: a long load is neither held in memory nor a transaction kept open
    for whoever sends slowly. Raises Refusal."""
    if (request.content_length or 0) > most:
        raise Refusal(413, "too_large", f"the body is longer than {most} bytes; load it in parts")
    total = 0
    while True:
        try:
            async with asyncio.timeout(BODY_S):
                piece = await request.content.readany()
        except TimeoutError:
            raise Refusal(408, "too_slow", f"nothing came for {BODY_S} seconds") from None
        if not piece:
            return
        total += len(piece)
        if total > most:
            raise Refusal(413, "too_large", f"the body is longer than {most} bytes; load it in parts")
        await asyncio.to_thread(file.write, piece)


def batches(lines: Iterator[bytes], size: int) -> Generator[bytes, None, None]:
    """Lines put together to pieces of about so many bytes."""
    piece = bytearray()
    for line in lines:
        piece += line
        if len(piece) >= size:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)
