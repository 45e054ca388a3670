"""Asking the admin API of a central: one connection a call, answers as they come.

``http.client`` is enough: the callers are commands that do one thing after the other.
"""

from __future__ import annotations

import http.client
import os
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import orjson

TIMEOUT_S = 60
"""For a call whose work is small."""
LONG_S = 3600
"""For a load: the answer comes when the last record is stored."""

_CHUNK = 1 << 16
_LARGEST_ERROR = 1 << 20
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class CentralError(Exception):
    """The central cannot be asked, or refuses. The message says why and what to do."""


def read_token(file: str | None) -> str:
    """The admin token in this file. Raises CentralError, which never repeats what was given."""
    if not file:
        raise CentralError(
            "no admin token: name the file that has it with --admin-token FILE or GATEWAY_ADMIN_TOKEN_FILE;"
            " the first one is admin.token in the folder of gateway central serve --data"
        )
    try:
        words = Path(file).read_text(encoding="ascii").split()
    except PermissionError:
        raise CentralError(f"{file}: may not be read by you; run this as the user who owns it") from None
    except (OSError, ValueError):
        # Somebody may have given the token itself: it must not stand in a terminal or a log.
        raise CentralError(
            "--admin-token (or GATEWAY_ADMIN_TOKEN_FILE) is not a file that can be read; give the name of a"
            " file with the token in it, never the token"
        ) from None
    if len(words) != 1:
        raise CentralError(f"{file}: must hold one admin token and nothing else")
    return words[0]


def parts(url: str) -> tuple[str, str, int, str]:
    """Scheme, host, port and path before ``/admin`` and ``/v1``. Raises CentralError."""
    try:
        split = urlsplit(url)
        port = split.port
    except ValueError:
        raise CentralError(f"{url}: is no URL; write it like http://127.0.0.1:9470") from None
    if split.scheme not in ("http", "https") or not split.hostname or split.query or split.username:
        raise CentralError(f"{url}: must be http://HOST:PORT or https://HOST:PORT")
    return (
        split.scheme,
        split.hostname,
        port or (443 if split.scheme == "https" else 80),
        split.path.rstrip("/"),
    )


def connect(url: str, timeout: float) -> tuple[http.client.HTTPConnection, str]:
    """A connection (made at the first request) and the path of the URL. Raises CentralError."""
    scheme, host, port, path = parts(url)
    if scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=timeout), path
    context = ssl.create_default_context()  # the system's CAs; SSL_CERT_FILE names others
    return http.client.HTTPSConnection(host, port, timeout=timeout, context=context), path


class Admin:
    """The admin API at a URL."""

    def __init__(self, url: str, token: str) -> None:
        """Raises CentralError for an address to which the token would go unencrypted."""
        scheme, host, _, _ = parts(url)
        if scheme == "http" and host not in _LOOPBACK:
            raise CentralError(
                f"{url}: would show the admin token to the network; write https://, or run this on the"
                " central's machine: http:// is for localhost, 127.0.0.1 and [::1] alone"
            )
        self.url = url
        self._token = token

    def call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | Iterable[bytes] | None = None,
        *,
        query: dict[str, Any] | None = None,
    ) -> Any:
        """What the central answers, decoded. ``path`` begins after ``/admin/v1/``.

        A dictionary goes as JSON, anything else as NDJSON, piece by piece. Raises CentralError.
        """
        with self.answer(method, path, body, query=query) as response:
            raw = response.read()
        try:
            return orjson.loads(raw) if raw else None
        except ValueError:
            raise CentralError(
                f"{self.url} answers something that is not JSON; is it the URL of the central, or of a proxy?"
            ) from None

    def pieces(
        self, path: str, *, query: dict[str, Any] | None = None, accept: str = "application/x-ndjson"
    ) -> Iterator[bytes]:
        """A long answer, in pieces as they come. Raises CentralError."""
        with self.answer("GET", path, query=query, accept=accept) as response:
            while piece := response.read1(_CHUNK):
                yield piece

    @contextmanager
    def answer(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | Iterable[bytes] | None = None,
        *,
        query: dict[str, Any] | None = None,
        accept: str = "application/json",
    ) -> Iterator[http.client.HTTPResponse]:
        """A good answer, not read yet; the connection ends with the block. Raises CentralError."""
        headers = {"Authorization": f"Bearer {self._token}", "Accept": accept}
        if isinstance(body, dict):
            content: Any = orjson.dumps(body)
            headers["Content-Type"] = "application/json"
        else:
            content = body
            if body is not None:
                headers["Content-Type"] = "application/x-ndjson"
        connection, base = connect(
            self.url, TIMEOUT_S if content is None or isinstance(body, dict) else LONG_S
        )
        given = {name: value for name, value in (query or {}).items() if value is not None}
        target = f"{base}/admin/v1/{path}" + ("?" + _query(given) if given else "")
        try:
            # It may refuse before it has read everything; then its answer says why.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, target, content, headers)
            response = connection.getresponse()
            if response.status >= 300:
                raise CentralError(_refusal(self.url, response))
            yield response
        except ConnectionRefusedError:
            raise CentralError(
                f"no central answers at {self.url}; start it: gateway central serve --data DIR,"
                " or name its address with --url or GATEWAY_CENTRAL_URL"
            ) from None
        except TimeoutError:
            raise CentralError(f"the central at {self.url} does not answer; see its log") from None
        except ssl.SSLCertVerificationError as error:
            raise CentralError(
                f"{self.url}: its certificate is not trusted here ({error.verify_message});"
                " name the CA's file in SSL_CERT_FILE"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise CentralError(
                f"{self.url}: {str(error) or type(error).__name__}; is it the address of the central,"
                " http or https as it is served?"
            ) from None
        finally:
            connection.close()


def name(id_: object) -> str:
    """An id as a part of a path."""
    return quote(str(id_), safe="")


def _query(given: dict[str, Any]) -> str:
    return "&".join(f"{quote(key)}={quote(str(value), safe='')}" for key, value in given.items())


def _refusal(url: str, response: http.client.HTTPResponse) -> str:
    """A sentence and a remedy for an answer that is an error."""
    try:
        said = orjson.loads(response.read(_LARGEST_ERROR))
        text = str(said["error"])
    except (ValueError, TypeError, KeyError, OSError, http.client.HTTPException):
        return (
            f"{url} answers {response.status} {response.reason}, and not as a central does;"
            " is it the URL of the central, or of a proxy?"
        )
    remedy = {
        401: "give the file of a token that this central made: gateway central tokens lists their names",
        403: "use the token of a role that may: gateway central tokens lists the roles",
        429: f"try again in {response.headers.get('Retry-After', 'some')} seconds",
        503: f"try again in {response.headers.get('Retry-After', 'some')} seconds",
    }.get(response.status)
    if response.status >= 500 and remedy is None:
        remedy = "its log says more"
    return f"{text}; {remedy}" if remedy else text


def default_url() -> str:
    return os.environ.get("GATEWAY_CENTRAL_URL") or "http://127.0.0.1:9470"
