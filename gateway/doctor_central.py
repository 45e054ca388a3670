"""What ``gateway doctor`` finds about the central: is this gate joined, does the sync carry, who answers.

The central is asked without the token: a token that is used by two at once looks like a copied card.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import stat
from collections.abc import Generator, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
from cryptography import x509

from gateway.config import CentralConfig, Config
from gateway.enrolment import as_owner
from gateway.findings import Finding
from gateway.host import machine_identity, wall
from gateway.sync.client import MACHINE_FILE, TOKEN_FILE, NoAnswer, no_answer, session, tls
from gateway.trust import Pinned, TrustError, load

_ANEW = "have a code made at the central (gateway central enrol-code {id}), then: gateway enroll {url} -"
_PATIENCE = aiohttp.ClientTimeout(total=10, connect=5)
_MOST = 65_536
_SILENT = 180
"""Seconds. A central has something to say every half a minute, and the longest pause after a failure is as
long."""
_BACKLOG = 1000
"""Events: a batch. What is more than that has not been taken for a while."""
_RENEW = timedelta(days=21)
"""Before the end of a certificate: time for somebody to renew it."""
_CLOCK = 2.0
"""Seconds; the warning of the gate begins there too. ``Date`` has whole seconds."""


def findings(config: Config, status: dict[str, Any] | None) -> Iterator[Finding]:
    """``status``: what a running gate says of itself, None without one."""
    pinned, damaged = None, False
    try:
        trust = load(config.gateway.data_dir)
        pinned = None if trust is None else trust.pinned
    except TrustError as error:
        damaged = True
        url = "URL" if config.central is None else config.central.url
        yield Finding("central", "fault", str(error), _anew(config, url))
    if config.central is None:
        if damaged:
            return
        if pinned is None:
            yield Finding("central", "ok", "none configured: works on imported files")
        else:
            yield Finding(
                "central",
                "fault",
                f"joined to {pinned.url}, and the configuration has none: nothing is carried",
                f'add the lines [central] and url = "{pinned.url}", and start the sync anew',
            )
        return
    if not damaged:
        yield from _joined(config, config.central, pinned)
    yield from _files(config.central)
    answers = yield from _reachable(config.central)
    carried = yield from _sync(config, answers, status)
    if pinned is not None:
        yield from _token(config, carried)
    if pinned is not None and status is not None:
        yield from _carried(status)


def _anew(config: Config, url: str) -> str:
    return _ANEW.format(id=config.gateway.id, url=url)


def _joined(config: Config, central: CentralConfig, pinned: Pinned | None) -> Iterator[Finding]:
    if pinned is None:
        yield Finding("central", "fault", "not joined yet", _anew(config, central.url))
    elif pinned.revoked:
        yield Finding(
            "central", "fault", "it has revoked this gateway; its cards are gone", _anew(config, central.url)
        )
    elif pinned.gateway != config.gateway.id:
        yield Finding(
            "central",
            "fault",
            f'joined as "{pinned.gateway}", and [gateway] id is "{config.gateway.id}"',
            f'set id = "{pinned.gateway}" again, or {_anew(config, central.url)}',
        )
    elif pinned.url != central.url:
        yield Finding(
            "central",
            "warning",
            f"joined at {pinned.url}, and [central] url is {central.url}",
            f"nothing if that is the same central under another name, else {_anew(config, central.url)}",
        )
    else:
        yield Finding("central", "ok", f"joined to {pinned.url}, venue {pinned.venue}")


def _files(central: CentralConfig) -> Iterator[Finding]:
    for about, path in (("ca_file", central.ca_file), ("client_cert", central.client_cert)):
        with contextlib.suppress(OSError, ValueError):  # one that cannot be read is told by the way there
            for found in x509.load_pem_x509_certificates(path.read_bytes()) if path is not None else ():
                yield from _ends(about, f"{path}", found.not_valid_after_utc, f"put a newer one into {path}")
    key = central.client_key or central.client_cert
    if key is not None and key.exists() and key.stat().st_mode & stat.S_IRWXO:
        yield Finding("client_key", "fault", f"others may read {key}", f"chmod 640 {key}")


# --- the way there --------------------------------------------------------------------------------------


def _reachable(central: CentralConfig) -> Generator[Finding, None, bool]:
    """Returns whether it answers."""
    about = "way to the central"
    try:
        context = tls(central.ca_file, central.client_cert, central.client_key)
    except OSError as error:
        yield Finding(about, "fault", str(error), "set ca_file, client_cert, client_key in [central] right")
        return False
    try:
        status, word, date = asyncio.run(_knock(central.url, context))
    except NoAnswer as error:
        yield Finding(about, "fault", f"{central.url}: {error}", _remedy(error.kind, central))
        return False
    if (status, word) not in ((401, "bad_token"), (400, "bad_request")):
        found = f"{central.url} answers {status} {word}".rstrip()
        if status in (429, 502, 503, 504):
            yield Finding(about, "fault", f"{found}: the central is not well", "tell its operator")
        else:
            yield Finding(
                about,
                "fault",
                f"{found}, as no central does",
                "correct url in [central]: perhaps it is another web server's, or lacks a part of its path",
            )
        return False
    secured = ", over TLS" if central.url.startswith("https:") else ""
    yield Finding(about, "ok", f"{central.url} answers{secured}")
    if secured:
        with contextlib.suppress(OSError):  # it was there a moment ago
            yield from _ends(
                "central's certificate",
                "it",
                _certificate_ends(central.url, context),
                "have the central's operator renew it",
            )
    if date is not None and abs(date) > _CLOCK:
        yield Finding(
            "clock",
            "warning",
            f"{abs(date):.0f} s {'ahead of' if date > 0 else 'behind'} the central's",
            "timedatectl set-ntp true, here and there",
        )
    return True


def _certificate_ends(url: str, context: ssl.SSLContext) -> datetime:
    """When the certificate that is shown there ends. Raises OSError."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    with (
        socket.create_connection((host, parts.port or 443), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        told = secured.getpeercert() or {}
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(told["notAfter"])), UTC)


def _ends(about: str, what: str, end: datetime, remedy: str) -> Iterator[Finding]:
    """Nothing while there is time enough."""
    left = end - datetime.now(UTC)
    if left < timedelta(0):
        yield Finding(about, "fault", f"{what} ended on {end:%Y-%m-%d}", remedy)
    elif left < _RENEW:
        yield Finding(about, "warning", f"{what} ends in {left.days} days, on {end:%Y-%m-%d}", remedy)


async def _knock(url: str, context: Any) -> tuple[int, str, float | None]:
    """Ask for changes without a token. Gives the status, the error's word and this clock less the server's
    in seconds. Raises NoAnswer."""
    async with session(context) as http:
        try:
            async with http.get(
                f"{url.rstrip('/')}/v1/changes", timeout=_PATIENCE, allow_redirects=False
            ) as response:
                body = await response.content.read(_MOST)
                return response.status, _word(body), _ahead(response.headers.get("Date"))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise no_answer(error) from error


def _word(body: bytes) -> str:
    try:
        word = orjson.loads(body).get("code")
    except (orjson.JSONDecodeError, AttributeError):
        return ""
    return word if isinstance(word, str) and word.isprintable() and len(word) <= 40 else ""


def _ahead(date: str | None) -> float | None:
    try:
        return None if date is None else wall() / 1e6 - parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _remedy(kind: str, central: CentralConfig) -> str:
    host = central.url.partition("//")[2].partition("/")[0].rpartition("@")[2]
    if kind == "tls":
        return (
            f"is {host} the name in its certificate, and the certificate's time not over? "
            "For a CA of your own set ca_file in [central]"
        )
    if kind == "name":
        return "correct url in [central], or see to the name server (resolvectl status)"
    return f"see to the network and whether the central runs: curl -v {central.url}/v1/changes"


# --- what carries ---------------------------------------------------------------------------------------


def _sync(config: Config, answers: bool, status: dict[str, Any] | None) -> Generator[Finding, None, bool]:
    """Returns whether the sync says that the central answers it."""
    host, port = config.web.address
    if port == 0:
        yield Finding("sync", "ok", "its pages have a port of their own choice, so it was not asked")
        return False
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/health"
    try:
        health = asyncio.run(_health(url))
    except NoAnswer:
        yield Finding("sync", "fault", f"nobody answers at {url}", "start it: gateway sync, or gateway run")
        return False
    central = health.get("central")
    if "gate" not in health or not isinstance(central, dict):
        yield Finding(
            "sync",
            "fault",
            f"what answers at {url} is not the sync of this gateway",
            "set [web] listen to an address that is free, or start gateway sync anew",
        )
        return False
    if status is not None and not health["gate"]:
        yield Finding(
            "sync", "fault", "runs, and the gate does not answer it", "run both as one user; see its log"
        )
        return False
    trouble = central.get("trouble") or {}
    for what, text in sorted(trouble.items()):
        yield Finding(f"sync, {what}", "fault", str(text), "see to that; its log has the rest")
    if trouble:
        return bool(central.get("up"))
    if not central.get("up") and answers and status is not None:
        yield Finding("sync", "warning", "runs, and has had no answer yet", "look again in a minute")
    else:
        yield Finding("sync", "ok", "runs")
    return bool(central.get("up"))


async def _health(url: str) -> dict[str, Any]:
    """Raises NoAnswer."""
    async with aiohttp.ClientSession(trust_env=False) as http:
        try:
            async with http.get(url, timeout=_PATIENCE, allow_redirects=False) as response:
                found = orjson.loads(await response.content.read(_MOST))
                return found if isinstance(found, dict) else {}
        except orjson.JSONDecodeError:
            return {}
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise no_answer(error) from error


def _token(config: Config, carried: bool) -> Iterator[Finding]:
    token, machine = config.state_dir / TOKEN_FILE, config.state_dir / MACHINE_FILE
    assert config.central is not None
    anew = _anew(config, config.central.url)
    try:
        found = token.stat()
    except FileNotFoundError:
        if not carried:  # else it is a credential of systemd's
            yield Finding("token", "fault", f"{token} is not there", anew)
        return
    except PermissionError:
        yield Finding("token", "warning", f"{token} is for the sync's eyes", "sudo gateway doctor sees it")
        return
    owner = config.state_dir.stat().st_uid
    if found.st_mode & 0o077:
        yield Finding("token", "fault", f"others may read {token}", f"chmod 600 {token}")
    elif found.st_uid != owner:
        yield Finding(
            "token", "fault", f"{token} is another user's", f"chown --reference={config.state_dir} {token}"
        )
    elif found.st_size == 0:
        yield Finding("token", "fault", f"{token} is empty", anew)
    else:
        yield Finding("token", "ok", f"{token} is its owner's alone")
    with as_owner(config.state_dir):  # root can read more of this computer than the sync
        here = machine_identity()
    if machine.exists() and machine.read_text(errors="replace").strip() != here:
        yield Finding("token", "warning", "this is another computer than the one that was joined", anew)


def _carried(status: dict[str, Any]) -> Iterator[Finding]:
    central, ledger = status["central"], status["ledger"]
    if central is None:
        yield Finding("news", "fault", "the gate does not know the central", "restart the gate")
        return
    heard = central["heard_s"]
    if heard is None:
        yield Finding(
            "news", "warning", "none since the gate was started", "see the findings of sync and central"
        )
    elif heard > _SILENT:
        yield Finding(
            "news",
            "fault",
            f"last heard {timedelta(seconds=heard)} ago: cards are as they were then",
            "see the findings of sync and central",
        )
    else:
        yield Finding("news", "ok", f"last heard {heard} s ago")
    deviation = central["clock_deviation_s"]
    if deviation is not None and abs(deviation) > _CLOCK:
        yield Finding(
            "clock",
            "warning",
            f"{abs(deviation):.1f} s {'ahead of' if deviation > 0 else 'behind'} what the central signed",
            "timedatectl set-ntp true, here and there",
        )
    waiting = ledger["last_seq"] - ledger["acknowledged"]
    if waiting > _BACKLOG:
        yield Finding(
            "entries",
            "warning",
            f"{waiting} are not at the central yet",
            "they wait on disk; see the findings of sync and central",
        )
    else:
        yield Finding("entries", "ok", f"{waiting} on their way to the central")
