"""``gateway enroll URL CODE``: joins this gateway to a central, with the one-time code of its operator.

Order: the central is asked, the gate pins what it said, the token is kept. A failure anywhere leaves a
gateway that can be enrolled with the same command again: the central answers the same code from the same
machine again, as long as the token that it gave was not used.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from gateway import __version__, control
from gateway.config import CentralConfig, Config
from gateway.configkeys import CENTRAL, Wrong
from gateway.courier import make_state_dir
from gateway.host import DataDirError, machine_identity, write_durably
from gateway.sync import protocol
from gateway.sync.client import MACHINE_FILE, TOKEN_FILE, Limits, NoAnswer, enrol, tls
from gateway.trust import Pinned, pin, pinned_from

_AGAIN = "then give the same command again: the code still holds"
_CALL = 30.0


class EnrolError(Exception):
    """The gateway was not joined; the message says why and what to do."""


def enroll(config: Config, source: Path, url: str, code: str) -> tuple[dict[str, Any], str | None]:
    """Join the central at ``url``. ``source``: the configuration's file, to name it in messages.

    Gives what to print, and what is still to be done where the configuration lacks [central].

    Raises:
        EnrolError: it was refused, or what came cannot be right.
        control.CallError, TimeoutError, PermissionError: from the gate's socket or the folders.
    """
    url = _checked(config, source, url)
    data_dir, state_dir = config.gateway.data_dir, config.state_dir
    if not data_dir.is_dir():
        raise EnrolError(
            f"gateway.data_dir: {data_dir} is not there; create it: install -d -m 700 {data_dir}"
        )
    with as_owner(state_dir if state_dir.exists() else state_dir.parent):
        try:
            make_state_dir(state_dir)
        except OSError as error:
            raise EnrolError(str(error)) from error
        machine = machine_identity()
    answer = _ask(config.central, url, code, machine)
    pinned, token = _believed(config, url, answer)
    with as_owner(data_dir):
        _pin(config, pinned)
    with as_owner(state_dir):
        write_durably(state_dir / MACHINE_FILE, machine.encode())
        write_durably(state_dir / TOKEN_FILE, token.encode())
    said = {"gateway": pinned.gateway, "venue": pinned.venue, "url": url, "keys": list(pinned.keys)}
    if config.central is not None:
        return said, None
    return said, f"add these lines to {source}, and start the sync anew:\n{_lines(url)}"


def _lines(url: str) -> str:
    return f'\n[central]\nurl = "{url}"\n'


def _checked(config: Config, source: Path, url: str) -> str:
    try:
        right = CENTRAL["url"].read(url)
    except Wrong as wrong:
        raise EnrolError(
            f"URL {wrong.what}; {wrong.remedy or 'write it as in https://central.example'}"
        ) from None
    assert isinstance(right, str)
    if config.central is not None and config.central.url != right:
        raise EnrolError(
            f"{source} has another central, {config.central.url}; put these lines there in its place, and "
            f"give the command again:\n{_lines(right)}"
        )
    return right


def _ask(central: CentralConfig | None, url: str, code: str, machine: str) -> dict[str, Any]:
    if not 0 < len(code) <= 200 or not code.isprintable():
        raise EnrolError("CODE is empty or cannot be one; it looks like K7QM-2XPD-94HV")
    request = {
        "code": code,
        "machine": machine,
        "hostname": socket.gethostname(),
        "version": __version__,
    }
    try:
        files = (central.ca_file, central.client_cert, central.client_key) if central else (None, None, None)
        context = tls(*files)
    except OSError as error:
        raise EnrolError(f"[central]: {error}") from error
    try:
        status, answer, wait = asyncio.run(enrol(url, request, context, Limits()))
    except NoAnswer as error:
        raise EnrolError(f"{url}: {error}; see to it, {_AGAIN}") from error
    if status == 200:
        return answer
    word = answer.get("code")
    if status == 403 and word == "bad_code":
        raise EnrolError(
            "the central does not know this code: it was used on another machine, has expired or is "
            "mistyped; have a new one made"
        )
    if status == 429:
        raise EnrolError(f"too many codes were tried; wait {round(wait or 60)} s, {_AGAIN}")
    raise EnrolError(f"{url}: the central answers {status}; tell its operator, {_AGAIN}")


def _believed(config: Config, url: str, answer: dict[str, Any]) -> tuple[Pinned, str]:
    """Checked before anything is pinned."""
    try:
        pinned = pinned_from({**answer, "url": url})
        token = protocol.text(answer, "token", 1000)
        if not token.isascii() or not token.isprintable() or " " in token:
            raise protocol.ProtocolError("token: must be printable ASCII without spaces")
    except protocol.ProtocolError as error:
        raise EnrolError(f"{url}: what answers there is no central, or one with a fault: {error}") from error
    if pinned.gateway != config.gateway.id:
        raise EnrolError(
            f"the code is for the gateway {pinned.gateway!r}, and [gateway] id here is "
            f'{config.gateway.id!r}; set id = "{pinned.gateway}" and give the same command again, or have a '
            f"code made for {config.gateway.id!r}"
        )
    return pinned, token


def _pin(config: Config, pinned: Pinned) -> None:
    keys = [{"id": id_, "public": public} for id_, public in pinned.keys.items()]
    what = {"url": pinned.url, "gateway": pinned.gateway, "venue": pinned.venue, "history": pinned.history}
    try:
        try:
            path = config.gateway.admin_socket or config.gateway.data_dir / "admin.sock"
            with closing(control.Client(path)) as gate:
                gate.call("enrolled", timeout=_CALL, keys=keys, **what)
        except control.NoGate:
            pin(config.gateway.data_dir, keys=keys, **what)  # type: ignore[arg-type]
    except (control.CallError, control.NoGate, TimeoutError) as error:
        raise EnrolError(
            f"the central agreed, but the gate does not: {error}; see to it, {_AGAIN}"
        ) from error
    except (DataDirError, protocol.ProtocolError, sqlite3.Error, OSError) as error:
        raise EnrolError(
            f"the central agreed, but it cannot be noted: {error}; see to it, {_AGAIN}"
        ) from error


@contextmanager
def as_owner(folder: Path) -> Iterator[None]:
    """As root: become the folder's owner, or root leaves files behind that the gate cannot open."""
    owner = folder.stat() if os.geteuid() == 0 and folder.exists() else None
    if owner is None or owner.st_uid == 0:
        yield
        return
    group = os.getegid()
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
