"""What every call of the admin API begins with: who asks, in which role, and what the request says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import web

from gateway.central import web as http
from gateway.central.web import Refusal
from gateway.sync import protocol
from gateway.sync.protocol import ProtocolError

if TYPE_CHECKING:
    from gateway.central.server import Central

T = TypeVar("T")

_ROLES = {"read": 0, "operate": 1, "admin": 2}
_MAX_BODY = 1 << 17
_PIECE = 1 << 16
_WRITE_S = 60
"""A reader of a long answer that takes nothing for so long is cut off: the database keeps a state for it."""


class Ask:
    """One request of somebody who may make it."""

    def __init__(self, request: web.Request, central: Central, by: str, role: str | None) -> None:
        self.request = request
        self.central = central
        self.by = by
        """The name of the token, for the history."""
        self.role = role

    async def db(self, work: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Run in the store's thread."""
        return await self.central.db(lambda: work(*arguments, **named))

    def part(self, name: str) -> str:
        """A part of the path."""
        return self.request.match_info[name]

    async def body(self) -> dict[str, Any]:
        """The JSON body as an object; empty where there is none. Raises Refusal and ProtocolError."""
        if self.request.content_type != protocol.JSON:
            if self.request.body_exists:
                raise Refusal(415, "bad_request", f"send {protocol.JSON}")
            return {}
        raw = await http.body(self.request, _MAX_BODY)
        return protocol.decode(raw, protocol.JSON) if raw else {}

    def query(self, name: str) -> str | None:
        """Raises ProtocolError."""
        value = self.request.query.get(name)
        if value is not None and (not value or len(value) > 512):
            raise ProtocolError(f"{name}: must be a text of 1 to 512 characters")
        return value

    def number(self, name: str, default: int | None, most: int) -> int | None:
        """A whole number of the query, at most ``most``. Raises ProtocolError."""
        value = self.request.query.get(name)
        if value is None:
            return default
        if not (value.isascii() and value.isdecimal() and len(value) <= 19) or int(value) > most:
            raise ProtocolError(f"{name}: must be a whole number of at most {most}")
        return int(value)

    def instant(self, name: str) -> int | None:
        """Microseconds since 1970. Raises ProtocolError."""
        value = self.query(name)
        return None if value is None else protocol.instant({name: value}, name)


def may(role: str | None, needed: str) -> bool:
    return role is not None and _ROLES[role] >= _ROLES[needed]


async def stream(ask: Ask, type_: str, lines: Iterator[bytes]) -> web.StreamResponse:
    """A long answer. ``lines`` runs in the store's thread, a piece at a time, and is closed in any case."""
    pieces = http.batches(lines, _PIECE)
    response = web.StreamResponse(headers={"Content-Type": type_, "Cache-Control": "no-store"})
    async with ask.central.streams:
        try:
            piece = await ask.db(next, pieces, b"")  # what is not there is found out before the status goes
            await response.prepare(ask.request)
            while piece:
                async with asyncio.timeout(_WRITE_S):
                    await response.write(piece)
                piece = await ask.db(next, pieces, b"")
        except BaseException:
            if response.prepared and ask.request.transport is not None:
                ask.request.transport.abort()  # an end without the last chunk: nobody takes it for the whole
            raise
        finally:
            ask.central.later(pieces.close)
    await response.write_eof()
    return response
