"""Who may act at the gate from the status page: names, and digests of the tokens that they were given.

The courier only carries a token here, with each act: so whoever takes the courier over can act with the
tokens that it is given while it is theirs, and with no other. A token has 192 random bits, so a salt and one
BLAKE2b (RFC 7693) keep the file from being of use to whoever reads it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from gateway.control import CallError
from gateway.host import write_durably

FILE = "operators.json"
MOST = 64
"""Operators: each is compared with."""
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TOKEN_BYTES = 24
_MOST_TOKEN = 256
_SALT = hashlib.blake2b.SALT_SIZE
TRIES, AGAIN = 5, 2.0
"""So many wrong tokens at once, then one in so many seconds."""


class OperatorsError(Exception):
    """The file cannot be used, or the name cannot; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Operator:
    name: str
    added: int
    """Seconds since 1970."""
    salt: str
    digest: str
    """Hexadecimal, both."""


def load(data_dir: Path) -> list[Operator]:
    """Raises OperatorsError."""
    path = data_dir / FILE
    try:
        found = orjson.loads(path.read_bytes())
        return [_operator(each) for each in found]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OperatorsError(f"{path}: {error.strerror}; run it as root or as the gate's user") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise OperatorsError(f"{path} is damaged; remove it, and add the operators again") from error


def _operator(row: Mapping[str, Any]) -> Operator:
    """Raises ValueError, TypeError, KeyError."""
    made = Operator(str(row["name"]), int(row["added"]), row["salt"], row["digest"])
    if len(bytes.fromhex(made.salt)) > _SALT or not made.digest.isascii():
        raise ValueError("no salt, or no digest")
    return made


def add(data_dir: Path, name: str) -> str:
    """The new operator's token, which is kept nowhere. Raises OperatorsError, OSError."""
    operators = load(data_dir)
    if not NAME.fullmatch(name):
        raise OperatorsError(f"{name!r}: a name has letters, digits, - and _, at most 64")
    if any(each.name == name for each in operators):
        raise OperatorsError(
            f"there is an operator {name} already; for a new token: gateway operator remove {name}"
        )
    if len(operators) >= MOST:
        raise OperatorsError(f"there are {MOST} operators, which is the most; remove one")
    token, salt = secrets.token_urlsafe(_TOKEN_BYTES), secrets.token_bytes(_SALT)
    _save(data_dir, [*operators, Operator(name, int(time.time()), salt.hex(), _digest(token, salt))])
    return token


def remove(data_dir: Path, name: str) -> None:
    """Their token is worth nothing from now on. Raises OperatorsError, OSError."""
    operators = load(data_dir)
    kept = [each for each in operators if each.name != name]
    if len(kept) == len(operators):
        there = ", ".join(each.name for each in operators) or "none"
        raise OperatorsError(f"there is no operator {name}; there are {there}")
    _save(data_dir, kept)


def _save(data_dir: Path, operators: Sequence[Operator]) -> None:
    write_durably(data_dir / FILE, orjson.dumps([asdict(each) for each in operators]))


def _digest(token: str, salt: bytes) -> str:
    return hashlib.blake2b(token.encode(), salt=salt, person=b"operator").hexdigest()


class Operators:
    """Whose token it is; wrong ones are slowed down, and hold up nobody whose token was right before."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._known: set[str] = set()
        """Digests of tokens that were right since the start."""
        self._left, self._at = float(TRIES), 0.0

    def name_of(self, token: str, now: float) -> str:
        """The operator's name. ``now``: monotonic seconds. Raises CallError."""
        operator = self._find(token)
        if operator is not None and operator.digest in self._known:
            return operator.name
        self._left = min(TRIES, self._left + max(0.0, now - self._at) / AGAIN)
        self._at = now
        if self._left < 1:
            # Not even told whether it is right: or they could be tried as fast as we can say busy.
            raise CallError("busy", f"too many wrong tokens; try again in {AGAIN:.0f} seconds")
        if operator is None:
            self._left -= 1
            raise CallError("wrong_token", "no operator has this token; see gateway operator list")
        self._known.add(operator.digest)
        return operator.name

    def _find(self, token: str) -> Operator | None:
        if not 0 < len(token) <= _MOST_TOKEN or not token.isascii():
            return None
        try:
            operators = load(self._data_dir)  # each time: who was removed is removed at once
        except OperatorsError as error:
            raise CallError("no_operators", str(error)) from error
        found = None
        for each in operators:
            if hmac.compare_digest(_digest(token, bytes.fromhex(each.salt)), each.digest):
                found = each
        return found
