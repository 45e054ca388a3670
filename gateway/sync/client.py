"""The calls to the central (docs/protocol.md) over HTTP, bounded in time and size.

What comes back is bytes and headers: nobody here believes them or looks into them. A body that is too long,
encoded or of another type is no answer, and so is a redirect: the address is the one that is configured.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import orjson
from aiohttp.abc import AbstractResolver, ResolveResult

from gateway.host import wall, write_durably
from gateway.sync import policy, protocol
from gateway.sync.counts import Counts
from gateway.sync.link import T, in_thread

TOKEN_FILE = "token"
MACHINE_FILE = "machine"
PIECE = 65_536
_EVENTS_ANSWER = 2 * protocol.MAX_ANSWER
"""The answer to a batch may give a reason for each event; with BASE64 it still fits a line to the gate."""
_ERROR = 4096
_LONGEST_CONDITION = 8000
"""Servers take 8,190 bytes of a header; beyond that a poll would be 400 for ever."""
_TOKEN = re.compile(r"[!-~]{1,1000}", re.ASCII)
_WORD = re.compile(r"[a-z_]{1,40}", re.ASCII)


class NoAnswer(Exception):
    """No answer that can be used; ``kind`` is a word for it."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Answer(NamedTuple):
    """What the central said, as it came."""

    status: int
    type: str
    body: bytes
    """Whole where it is signed; else what tells the error, cut short."""
    signature: str
    retry_after: float | None
    token: str | None
    """A new token for this gateway. Worth something when the gate has verified the answer."""

    @property
    def code(self) -> str:
        """The error's word, of an answer that nobody signed."""
        try:
            word = orjson.loads(self.body).get("code")
        except (orjson.JSONDecodeError, AttributeError):
            return ""
        return word if isinstance(word, str) and _WORD.fullmatch(word) else ""


class Download(NamedTuple):
    """An answer to the call for a snapshot file; the body is read through ``pieces``."""

    status: int
    etag: str
    """"" where the server gives none that a range can be asked for by."""
    manifest: bytes
    signature: str
    start: int
    """Where in the file the body begins."""
    total: int | None
    """The file's length as the answer to a range tells it."""
    retry_after: float | None
    code: str
    pieces: AsyncIterator[bytes]


@dataclass(frozen=True)
class Limits:
    """Seconds."""

    connect: float = 15
    read: float = 30
    """Without a byte, beyond the time for which the central was asked to wait."""
    upload: float = 120
    """Without a byte of an answer to events: a slow line takes long to send a batch."""
    total: float = 300
    download: float = 3600
    """For one request for the snapshot; what is missing is asked for by the next."""


class Tokens:
    """The gateway's token: the file in the state_dir, or before there is one the credential from systemd.

    Read anew at each request, because ``gateway enroll`` may have written it. A token that was renewed is
    used as soon as no request with the one before is on its way: a late one would come with a token that is
    used up, and look like a copied card.
    """

    def __init__(self, state_dir: Path, credentials: Path | None) -> None:
        self.path = state_dir / TOKEN_FILE
        self._fallback = credentials / TOKEN_FILE if credentials is not None else None
        self._used: str | None = None
        self._renewed: str | None = None
        self._flying = 0

    def read(self) -> str | None:
        """The newest token; None before enrolment. Raises OSError where the file is not ours to read."""
        for path in (self.path, self._fallback):
            if path is None:
                continue
            try:
                text = path.read_bytes()[:2000].decode("ascii", "replace").strip()
            except FileNotFoundError:
                continue
            if _TOKEN.fullmatch(text):
                return text
        return None

    @contextlib.contextmanager
    def use(self) -> Iterator[str]:
        """The token for one request, until its answer begins. Raises NoAnswer where there is none."""
        try:
            newest = self.read()
        except OSError as error:
            raise NoAnswer("token", f"{self.path}: {error.strerror}; run as its owner") from error
        if newest is None:
            raise NoAnswer("token", f"{self.path} is not there: gateway enroll URL CODE writes it")
        if newest != self._used and not (self._flying and newest == self._renewed):
            self._used = newest
        assert self._used is not None
        self._flying += 1
        try:
            yield self._used
        finally:
            self._flying -= 1

    def renew(self, token: str) -> None:
        """Keep a new token, durably, before it is used. Blocks. Raises OSError."""
        if _TOKEN.fullmatch(token):
            write_durably(self.path, token.encode())
            self._renewed = token


class _Resolver(AbstractResolver):
    """Names, looked up in a thread that a stop need not wait for."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await in_thread(
            lambda: socket.getaddrinfo(
                host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
            )
        )
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=int(address[1]),
                family=kind,
                proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, proto, _, address in found
        ]

    async def close(self) -> None:
        pass


def tls(ca_file: Path | None, client_cert: Path | None, client_key: Path | None) -> ssl.SSLContext:
    """Whom to believe, and what to show. Raises OSError (ssl.SSLError among them), naming the file."""
    if ca_file is not None:
        context = _named(ca_file, lambda: ssl.create_default_context(cafile=str(ca_file)))
    else:
        context = ssl.create_default_context()
    if client_cert is not None:
        _named(client_cert, lambda: context.load_cert_chain(client_cert, client_key))
    return context


def _named(path: Path, work: Callable[[], T]) -> T:
    try:
        return work()
    except OSError as error:
        what = "is no PEM file with what is needed" if isinstance(error, ssl.SSLError) else error.strerror
        raise OSError(f"{path}: {what}") from error


class Central:
    """The central at one address. Make it inside a running loop; ``close`` it."""

    def __init__(
        self,
        url: str,
        tokens: Tokens,
        machine: str,
        counts: Counts,
        *,
        context: ssl.SSLContext,
        limits: Limits = Limits(),
    ) -> None:
        self._url = url.rstrip("/")
        self.tokens = tokens
        self._counts = counts
        self._limits = limits
        self._headers = {
            "Accept": f"{protocol.MSGPACK}, {protocol.JSON};q=0.9",
            "Gateway-Machine": machine,
        }
        self._session = session(context)

    async def close(self) -> None:
        await self._session.close()

    async def changes(
        self, nonce: str, keys: str, cursor: str | None, wait: int, condition: Mapping[str, Any]
    ) -> Answer:
        """``GET /v1/changes``. Raises NoAnswer."""
        query = {"nonce": nonce, "keys": keys, "wait": str(wait)}
        if cursor is not None:
            query["cursor"] = cursor
        told = base64.urlsafe_b64encode(orjson.dumps(condition)).decode()
        timeout = self._timeout(wait + self._limits.read, wait + self._limits.total)
        headers = {"Gateway-Condition": told} if len(told) <= _LONGEST_CONDITION else {}
        async with self._ask("changes", "GET", timeout, params=query, headers=headers) as response:
            return await self._answer("changes", response, protocol.MAX_ANSWER, (200, 403, 410))

    async def events(self, body: bytes) -> Answer:
        """``POST /v1/events``. Raises NoAnswer."""
        timeout = self._timeout(self._limits.upload, self._limits.total)
        self._counts.sent.inc(len(body))
        async with self._ask(
            "events", "POST", timeout, data=body, headers={"Content-Type": protocol.JSON}
        ) as response:
            return await self._answer("events", response, _EVENTS_ANSWER, (200,))

    @contextlib.asynccontextmanager
    async def snapshot(
        self, keys: str, at_least: str | None, start: int, etag: str
    ) -> AsyncIterator[Download]:
        """``GET /v1/snapshot`` from ``start`` on, if the file is still the one of ``etag``. Raises NoAnswer,
        also while pieces are read."""
        query = {"keys": keys} if at_least is None else {"keys": keys, "at_least": at_least}
        headers = {"Range": f"bytes={start}-", "If-Range": etag} if start else {}
        timeout = self._timeout(self._limits.read, self._limits.download)
        async with self._ask("snapshot", "GET", timeout, params=query, headers=headers) as response:
            error = b"" if response.status in (200, 206) else await self._short(response)
            began, total = _content_range(response)
            tag = response.headers.get("ETag", "")
            yield Download(
                status=response.status,
                etag=tag if re.fullmatch(r'"[!#-~]{1,200}"', tag) else "",
                manifest=_unbase64(response.headers.get("Gateway-Manifest", "")),
                signature=response.headers.get("Gateway-Signature", ""),
                start=began,
                total=total,
                retry_after=_retry_after(response),
                code=Answer(0, "", error, "", None, None).code,
                pieces=self._pieces(response),
            )

    async def _pieces(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        _plain(response)
        received = self._counts.received.labels("snapshot")
        try:
            async for piece in response.content.iter_chunked(PIECE):
                received.inc(len(piece))
                yield piece
        except (aiohttp.ClientError, TimeoutError):
            for piece in _unread(response):
                received.inc(len(piece))
                yield piece
            raise

    # --- one request ---------------------------------------------------------------------------------------

    def _timeout(self, read: float, total: float) -> aiohttp.ClientTimeout:
        connect = self._limits.connect
        return aiohttp.ClientTimeout(total=total, connect=connect, sock_connect=connect, sock_read=read)

    @contextlib.asynccontextmanager
    async def _ask(
        self, call: str, method: str, within: aiohttp.ClientTimeout, headers: dict[str, str], **rest: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        result = "cancelled"
        try:
            with self.tokens.use() as token:
                headers = {**self._headers, **headers, "Authorization": f"Bearer {token}"}
                response = await self._session.request(
                    method,
                    f"{self._url}/v1/{call}",
                    timeout=within,
                    headers=headers,
                    allow_redirects=False,
                    **rest,
                )
            try:
                if 300 <= response.status < 400:
                    raise NoAnswer("redirect", f"the central redirects elsewhere ({response.status})")
                yield response
            finally:
                response.close() if not response.content.at_eof() else response.release()
            result = str(response.status)
        except NoAnswer as error:
            result = error.kind
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            failed = no_answer(error)
            result = failed.kind
            raise failed from error
        finally:
            self._counts.requests.labels(call, result).inc()

    async def _answer(
        self, call: str, response: aiohttp.ClientResponse, most: int, signed: tuple[int, ...]
    ) -> Answer:
        """The body of a signed answer with one of these statuses whole; of others the beginning."""
        signature = response.headers.get("Gateway-Signature", "")
        kind = response.headers.get("Content-Type", "")
        if response.status in signed and signature:
            _plain(response)
            if kind.partition(";")[0].strip().lower() not in (protocol.JSON, protocol.MSGPACK):
                raise NoAnswer("not_protocol", f"the answer's type is neither {protocol.JSON} nor msgpack")
            body = await _bounded(response, most)
        elif response.status == 200:
            raise NoAnswer("not_protocol", "the answer is not the protocol's: is another server in between?")
        else:
            signature, body = "", await self._short(response)
        self._counts.received.labels(call).inc(len(body))
        return Answer(
            response.status,
            kind,
            body,
            signature,
            _retry_after(response),
            response.headers.get("Gateway-Token"),
        )

    async def _short(self, response: aiohttp.ClientResponse) -> bytes:
        """What an error says, if it is short and plain."""
        with contextlib.suppress(NoAnswer):
            _plain(response)
            return await _bounded(response, _ERROR)
        return b""


def session(context: ssl.SSLContext) -> aiohttp.ClientSession:
    """No proxies from the environment, no cookies, nothing unpacked."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context, resolver=_Resolver(), limit=8),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        headers={"Accept-Encoding": "identity", "User-Agent": "entry-scan-gateway"},
    )


def no_answer(error: Exception) -> NoAnswer:
    """An exception of aiohttp as a word and a sentence. The sentence has no address with its query, and no
    header: those may hold what is in no log."""
    if isinstance(error, TimeoutError):
        return NoAnswer("timeout", "the central did not answer in time")
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        inner = (
            error.certificate_error if isinstance(error, aiohttp.ClientConnectorCertificateError) else error
        )
        if reason := getattr(inner, "verify_message", ""):
            return NoAnswer("tls", f"no trust in the central's certificate: {reason}")
        reason = getattr(inner, "reason", "") or getattr(inner, "strerror", "") or type(inner).__name__
        return NoAnswer("tls", f"what answers speaks no TLS that we do: {reason}")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return NoAnswer("name", "the central's name is not known")
    if isinstance(error, aiohttp.ClientConnectorError):
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or "refused"
        return NoAnswer("connection", f"no connection to the central: {why}")
    if isinstance(error, aiohttp.ClientPayloadError):
        return NoAnswer("cut", "the answer was cut")
    return NoAnswer("connection", f"the connection to the central broke ({type(error).__name__})")


def _plain(response: aiohttp.ClientResponse) -> None:
    if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise NoAnswer("encoded", "the answer is encoded, which nobody asked for")


def _unread(response: aiohttp.ClientResponse) -> Iterator[bytes]:
    """What came before the connection broke and was not read yet. aiohttp keeps it (up to 128 KiB) and has no
    public way to it; without it, a line that breaks after every few kilobytes would never bring a file."""
    read = getattr(response.content, "_read_nowait", None)
    while read is not None and (piece := read(PIECE)):
        yield piece


async def _bounded(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body, whatever its Content-Length says."""
    body = bytearray()
    async for piece in response.content.iter_chunked(PIECE):
        body += piece
        if len(body) > most:
            raise NoAnswer("too_large", f"the answer is longer than {most} bytes")
    return bytes(body)


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    return policy.retry_after(response.headers.get("Retry-After"), wall())


def _content_range(response: aiohttp.ClientResponse) -> tuple[int, int | None]:
    if response.status != 206:
        return 0, None
    found = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", response.headers.get("Content-Range", ""))
    return (int(found[1]), int(found[2])) if found else (-1, None)


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return b""


# --- enrolment -------------------------------------------------------------------------------------------


async def enrol(
    url: str, request: Mapping[str, str], context: ssl.SSLContext, limits: Limits
) -> tuple[int, dict[str, Any], float | None]:
    """``POST /v1/enroll``: status, body, seconds of Retry-After. Raises NoAnswer."""
    timeout = aiohttp.ClientTimeout(total=limits.total, connect=limits.connect, sock_read=limits.read)
    async with session(context) as http:
        try:
            async with http.post(
                f"{url.rstrip('/')}/v1/enroll",
                data=orjson.dumps(request),
                headers={
                    "Content-Type": protocol.JSON,
                    "Accept": protocol.JSON,
                    "Gateway-Machine": request["machine"],
                },
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                if 300 <= response.status < 400:
                    raise NoAnswer("redirect", f"the central redirects elsewhere ({response.status})")
                _plain(response)
                body = await _bounded(response, protocol.MAX_ANSWER)
                try:
                    answer = protocol.decode(body, response.headers.get("Content-Type", ""))
                except protocol.ProtocolError as error:
                    if response.status == 200:
                        raise NoAnswer("not_protocol", f"no central answers there: {error}") from error
                    answer = {}
                return response.status, answer, _retry_after(response)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise no_answer(error) from error
