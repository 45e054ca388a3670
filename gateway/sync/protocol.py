"""The sync protocol, as far as it is bytes and rules: signatures, limits, and what an answer must say. Pure.

docs/protocol.md is the text for other people's servers; both sides of ours use this module.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeGuard

import msgpack  # type: ignore[import-untyped]
import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

JSON = "application/json"
MSGPACK = "application/msgpack"
SNAPSHOT = "application/gzip"

MAX_ANSWER = 262_144
MAX_RECORDS = 250
MAX_RECORD = 65_536
MAX_EVENTS = 1_000
MAX_UPLOAD = 2_097_152
MAX_WAIT = 30
MAX_KEYS = 8
"""That a gateway pins at a time."""
WAIT = 25
NONCE_LIFE = 120_000_000
"""Microseconds for which a nonce may be answered."""

CHANGES, EVENTS, SNAPSHOT_FILE = "changes", "events", "snapshot"
"""What a signature is for."""

NONCE = re.compile(r"[A-Za-z0-9_-]{16,64}", re.ASCII)
KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,32}", re.ASCII)
CURSOR = re.compile(r"[!-~]{1,128}", re.ASCII)
MACHINE = re.compile(r"[0-9a-f]{64}", re.ASCII)
ACTS = ("open", "close", "free", "normal", "clear", "annul")

_EPOCH_TEXT = re.compile(r"0|[1-9]\d{0,18}", re.ASCII)
_MOST = 1 << 63
_START = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class ProtocolError(Exception):
    """What the other side sent breaks the protocol. The message names the field."""


# --- signatures -------------------------------------------------------------------------------------


def signed_bytes(purpose: str, body: bytes) -> bytes:
    """What a signature is made over."""
    return b"gateway/1 " + purpose.encode() + b"\n" + body


def sign(keys: Mapping[str, Ed25519PrivateKey], purpose: str, body: bytes) -> str:
    """The header ``Gateway-Signature``, with a signature by each key."""
    message = signed_bytes(purpose, body)
    return ", ".join(f"{id_}:{base64.b64encode(key.sign(message)).decode()}" for id_, key in keys.items())


def verify(keys: Mapping[str, bytes], purpose: str, body: bytes, header: str) -> str:
    """The id of the first key among ``keys`` (id to 32 bytes) that signed this body for this purpose.

    Raises ProtocolError where none did.
    """
    message = signed_bytes(purpose, body)
    for part in header.split(",")[:8]:
        id_, _, text = part.strip().partition(":")
        key = keys.get(id_)
        if key is None:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(base64.b64decode(text, validate=True), message)
        except (InvalidSignature, binascii.Error, ValueError):
            continue
        return id_
    raise ProtocolError("the signature is missing, wrong, or by a key that is not known here")


def public_bytes(text: object) -> bytes:
    """A public key as the protocol writes it. Raises ProtocolError."""
    try:
        key = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32:
        raise ProtocolError("public: must be 32 bytes in BASE64")
    return key


# --- bodies -----------------------------------------------------------------------------------------


def decode(body: bytes, content_type: str) -> dict[str, Any]:
    """A body as an object. Raises ProtocolError."""
    kind = content_type.partition(";")[0].strip().lower()
    try:
        if kind == MSGPACK:
            value = msgpack.unpackb(body, strict_map_key=True, max_str_len=MAX_UPLOAD)
            # msgpack has binary keys and values, extensions and timestamps. JSON has not, and what stands
            # behind this writes records and events as JSON.
            orjson.dumps(value)
        elif kind == JSON:
            value = orjson.loads(body)
        else:
            raise ProtocolError(f"the content type is {kind[:60]!r}, not {JSON} or {MSGPACK}")
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"the body is not {kind}") from error
    if not isinstance(value, dict):
        raise ProtocolError("the body is not an object")
    return value


def encode(value: Mapping[str, Any], content_type: str) -> bytes:
    """The other way."""
    if content_type == MSGPACK:
        packed: bytes = msgpack.packb(value)
        return packed
    return orjson.dumps(value)


def rfc3339(at: int) -> str:
    """Microseconds since 1970 as the protocol writes an instant."""
    return (_START + timedelta(microseconds=at)).isoformat()


def text(body: Mapping[str, Any], name: str, longest: int = 200) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= longest:
        raise ProtocolError(f"{name}: must be a text of 1 to {longest} characters")
    return value


def _is_whole(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _MOST


def whole(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name)
    if not _is_whole(value):
        raise ProtocolError(f"{name}: must be a whole number of at most 63 bits")
    return value


def cursor(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not CURSOR.fullmatch(value):
        raise ProtocolError(f"{name}: must be 1 to 128 printable ASCII characters")
    return value


def flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if type(value) is not bool:
        raise ProtocolError(f"{name}: must be true or false")
    return value


def instant(body: Mapping[str, Any], name: str) -> int:
    """Microseconds since 1970."""
    try:
        moment = datetime.fromisoformat(text(body, name, 40))
        if moment.tzinfo is None:
            raise ValueError
        return (moment - _START) // _MICROSECOND
    except (ValueError, OverflowError):
        raise ProtocolError(f"{name}: must be an instant with an offset") from None


# --- what signed answers say --------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Said:
    """What every signed answer says."""

    gateway: str
    venue: str
    history: str
    nonce: str
    time: int
    have: Mapping[int, int] | None
    """Highest number that the central has, by epoch; None where the answer does not say."""


@dataclass(slots=True, frozen=True)
class Changes:
    """An answer to ``/v1/changes``, of any of its three kinds."""

    said: Said
    gone: bool = False
    revoked: bool = False
    cursor: str | None = None
    next: str = ""
    position: int = 0
    more: bool = False
    forget_position: int | None = None
    forget_at: int = 0
    records: Sequence[Any] = ()


@dataclass(slots=True, frozen=True)
class Uploaded:
    """An answer to ``/v1/events``."""

    said: Said
    acknowledged: Sequence[tuple[int, int, int]]
    """(epoch, first, last)."""
    refused: Sequence[tuple[int, int, str]]
    """(epoch, seq, reason)."""
    conflict: tuple[int, int] | None


@dataclass(slots=True, frozen=True)
class Manifest:
    """What the central signed about a snapshot file."""

    venue: str
    history: str
    cursor: str
    position: int
    published: int
    count: int
    bytes: int
    size: int
    sha256: str


def _said(body: Mapping[str, Any]) -> Said:
    have = body.get("have")
    if have is not None:
        if not isinstance(have, dict) or len(have) > 1000:
            raise ProtocolError("have: must be an object of epochs")
        if not all(
            isinstance(e, str) and _EPOCH_TEXT.fullmatch(e) and int(e) < _MOST and _is_whole(s)
            for e, s in have.items()
        ):
            raise ProtocolError("have: must be the highest number for each epoch")
        have = {int(epoch): seq for epoch, seq in have.items()}
    return Said(
        gateway=text(body, "gateway"),
        venue=text(body, "venue"),
        history=text(body, "history", 64),
        nonce=text(body, "nonce", 64),
        time=instant(body, "time"),
        have=have,
    )


def changes_of(body: Mapping[str, Any]) -> Changes:
    """Raises ProtocolError."""
    said = _said(body)
    if flag(body, "revoked"):
        return Changes(said, revoked=True)
    if flag(body, "gone"):
        return Changes(said, gone=True)
    forget = body.get("forget")
    position, at = None, 0
    if forget is not None:
        if not isinstance(forget, dict):
            raise ProtocolError("forget: must be an object or null")
        position, at = whole(forget, "position"), instant(forget, "at")
    records = body.get("records")
    if not isinstance(records, list) or len(records) > MAX_RECORDS:
        raise ProtocolError(f"records: must be a list of at most {MAX_RECORDS}")
    return Changes(
        said,
        cursor=cursor(body, "cursor"),
        next=cursor(body, "next"),
        position=whole(body, "position"),
        more=flag(body, "more"),
        forget_position=position,
        forget_at=at,
        records=records,
    )


def uploaded_of(body: Mapping[str, Any]) -> Uploaded:
    """Raises ProtocolError."""
    said = _said(body)
    acknowledged, refused, conflict = body.get("acknowledged"), body.get("refused"), body.get("conflict")
    if not isinstance(acknowledged, list) or not isinstance(refused, list):
        raise ProtocolError("acknowledged, refused: must be lists")
    ranges = []
    for item in acknowledged:
        if not isinstance(item, list) or len(item) != 3 or not all(map(_is_whole, item)) or item[1] > item[2]:
            raise ProtocolError("acknowledged: must be [epoch, first, last]")
        ranges.append((item[0], item[1], item[2]))
    aside = []
    for item in refused:
        if not isinstance(item, dict):
            raise ProtocolError("refused: must be objects")
        aside.append((whole(item, "epoch"), whole(item, "seq"), text(item, "reason", 2000)))
    at = None
    if conflict is not None:
        if not isinstance(conflict, dict):
            raise ProtocolError("conflict: must be an object or null")
        at = (whole(conflict, "epoch"), whole(conflict, "seq"))
    return Uploaded(said, ranges, aside, at)


def manifest_of(body: Mapping[str, Any]) -> Manifest:
    """Raises ProtocolError."""
    digest = text(body, "sha256", 64)
    if not MACHINE.fullmatch(digest):
        raise ProtocolError("sha256: must be 64 hex digits")
    return Manifest(
        venue=text(body, "venue"),
        history=text(body, "history", 64),
        cursor=cursor(body, "cursor"),
        position=whole(body, "position"),
        published=instant(body, "published"),
        count=whole(body, "count"),
        bytes=whole(body, "bytes"),
        size=whole(body, "size"),
        sha256=digest,
    )
