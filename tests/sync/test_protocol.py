"""gateway.sync.protocol: what goes out comes back, and nothing that comes in breaks more than one answer."""

from __future__ import annotations

import base64
from contextlib import suppress
from typing import Any

import msgpack
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from gateway.sync import protocol as p
from gateway.sync.protocol import ProtocolError

PURPOSES = st.sampled_from((p.CHANGES, p.EVENTS, p.SNAPSHOT_FILE))
KEY_IDS = st.text("abcXYZ019-_", min_size=1, max_size=32)
SECRETS = st.binary(min_size=32, max_size=32)
TYPES = st.sampled_from((p.JSON, p.MSGPACK))
WHOLE = st.integers(0, (1 << 63) - 1)
NUMBERS = st.integers(-(1 << 63), (1 << 64) - 1)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)

SAID: dict[str, Any] = {
    "gateway": "north",
    "venue": "main",
    "history": "h7",
    "nonce": "n" * 16,
    "time": "2026-11-21T10:00:00.123456+00:00",
    "have": {"731": 991},
}
CHANGES = {
    **SAID,
    "cursor": "C",
    "next": "C2",
    "position": 4711,
    "more": False,
    "forget": {"position": 7, "at": "2026-11-21T10:00:00+01:00"},
    "records": [{"kind": "area", "id": "hall"}],
}
UPLOADED = {
    **SAID,
    "acknowledged": [[731, 992, 993]],
    "refused": [{"epoch": 731, "seq": 990, "reason": "why"}],
    "conflict": {"epoch": 731, "seq": 994},
}
MANIFEST = {
    "venue": "main",
    "history": "h7",
    "cursor": "C",
    "position": 4700,
    "published": "2026-11-21T10:00:00+00:00",
    "count": 250_000,
    "bytes": 41_000_000,
    "size": 9_000_000,
    "sha256": "ab" * 32,
}
READERS = [(p.changes_of, CHANGES), (p.uploaded_of, UPLOADED), (p.manifest_of, MANIFEST)]


def pair(secret: bytes) -> tuple[Ed25519PrivateKey, bytes]:
    key = Ed25519PrivateKey.from_private_bytes(secret)
    return key, key.public_key().public_bytes_raw()


# --- signatures ---------------------------------------------------------------------------------------


@given(st.dictionaries(KEY_IDS, SECRETS, min_size=1, max_size=4), PURPOSES, st.binary(max_size=200))
def test_a_signature_is_found_good_by_whoever_knows_one_of_the_keys(
    secrets: dict[str, bytes], purpose: str, body: bytes
) -> None:
    """Each key that signed is enough by itself."""
    pairs = {id_: pair(secret) for id_, secret in secrets.items()}
    header = p.sign({id_: private for id_, (private, _) in pairs.items()}, purpose, body)
    for id_, (_, public) in pairs.items():
        assert p.verify({id_: public}, purpose, body, header) == id_


@given(SECRETS, PURPOSES, PURPOSES, st.binary(max_size=80), st.binary(max_size=80))
def test_a_signature_is_bound_to_purpose_and_body(
    secret: bytes, purpose: str, other: str, body: bytes, another: bytes
) -> None:
    """It is good for what was signed and for nothing else."""
    private, public = pair(secret)
    header = p.sign({"k1": private}, purpose, body)
    if (purpose, body) == (other, another):
        assert p.verify({"k1": public}, other, another, header) == "k1"
    else:
        with pytest.raises(ProtocolError, match="signature"):
            p.verify({"k1": public}, other, another, header)


@given(SECRETS, SECRETS, st.binary(max_size=80))
def test_a_signature_is_bound_to_its_key(secret: bytes, other: bytes, body: bytes) -> None:
    """Another key of the same id, and the same key of another id, prove nothing."""
    private, public = pair(secret)
    header = p.sign({"k1": private}, p.CHANGES, body)
    if secret != other:
        with pytest.raises(ProtocolError, match="signature"):
            p.verify({"k1": pair(other)[1]}, p.CHANGES, body, header)
    with pytest.raises(ProtocolError, match="signature"):
        p.verify({"k2": public}, p.CHANGES, body, header)


@given(st.binary(max_size=80), st.integers(0, 511))
def test_one_bit_of_a_body_or_a_signature_makes_it_bad(body: bytes, bit: int) -> None:
    """Flipped anywhere."""
    private, public = pair(bytes(range(32)))
    signature = private.sign(p.signed_bytes(p.CHANGES, body))
    flipped = bytearray(signature)
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ProtocolError, match="signature"):
        p.verify({"k1": public}, p.CHANGES, body, f"k1:{base64.b64encode(flipped).decode()}")
    if body:
        changed = bytearray(body)
        changed[bit // 8 % len(body)] ^= 1 << bit % 8
        with pytest.raises(ProtocolError, match="signature"):
            p.verify({"k1": public}, p.CHANGES, bytes(changed), p.sign({"k1": private}, p.CHANGES, body))


@given(st.text(max_size=200) | st.from_regex(r"k1:[A-Za-z0-9+/=]{0,90}(, k1:.{0,20})?", fullmatch=True))
def test_any_header_is_a_bad_signature_and_no_more(header: str) -> None:
    """Whatever stands in Gateway-Signature, the answer is refused with a ProtocolError."""
    with pytest.raises(ProtocolError, match="signature"):
        p.verify({"k1": pair(bytes(32))[1], "bad": b"short"}, p.CHANGES, b"{}", header)


def test_a_good_signature_behind_many_bad_ones_is_not_looked_for() -> None:
    """A header costs at most eight verifications."""
    private, public = pair(bytes(32))
    good = p.sign({"k1": private}, p.CHANGES, b"{}")
    bad = "k1:" + base64.b64encode(bytes(64)).decode()
    assert p.verify({"k1": public}, p.CHANGES, b"{}", ", ".join([bad] * 7 + [good])) == "k1"
    with pytest.raises(ProtocolError, match="signature"):
        p.verify({"k1": public}, p.CHANGES, b"{}", ", ".join([bad] * 8 + [good]))


@given(VALUES | st.binary(max_size=64).map(lambda raw: base64.b64encode(raw).decode()))
def test_a_public_key_has_32_bytes(text: Any) -> None:
    """Whatever an answer says is one, it is 32 bytes or a ProtocolError."""
    try:
        key = p.public_bytes(text)
    except ProtocolError:
        return
    assert len(key) == 32
    assert base64.b64encode(key).decode() == text


# --- bodies -------------------------------------------------------------------------------------------


@given(st.dictionaries(TEXTS, VALUES, max_size=6), TYPES, st.sampled_from(("", "; charset=utf-8", " ;x")))
def test_a_body_comes_back_as_it_went(body: dict[str, Any], kind: str, parameter: str) -> None:
    """In both forms, with what a proxy may add to the type."""
    assert p.decode(p.encode(body, kind), kind.upper() + parameter) == body


@given(st.binary(max_size=400), TYPES | st.text(max_size=30))
def test_any_bytes_are_an_object_or_a_protocol_error(body: bytes, kind: str) -> None:
    """What is decoded can be written as JSON, so that nothing stumbles over it later."""
    try:
        value = p.decode(body, kind)
    except ProtocolError:
        return
    assert type(value) is dict
    orjson.dumps(value)


NOT_JSON = (
    st.binary(min_size=1, max_size=8)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=8))
    | st.builds(msgpack.Timestamp, st.integers(0, 1 << 33), st.integers(0, 999_999_999))
)


@given(NOT_JSON, st.booleans())
def test_msgpack_that_json_cannot_say_is_refused(value: Any, nested: bool) -> None:
    """Binary, extension types and timestamps have no place in the structure, however deep."""
    body = msgpack.packb({"records": [{"kind": value}] if nested else value})
    with pytest.raises(ProtocolError, match="not application/msgpack"):
        p.decode(body, p.MSGPACK)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"[" * 100_000, p.JSON),
        (b"\x91" * 100_000, p.MSGPACK),
        (b'{"a":"\\ud800"}', p.JSON),
        (b"\x81\xa1a\xa1\xff", p.MSGPACK),
        (msgpack.packb({1: 2}), p.MSGPACK),
        (msgpack.packb({b"a": 2}), p.MSGPACK),
        (b"\xdf\xff\xff\xff\xff", p.MSGPACK),
        (b"\xdd\xff\xff\xff\xff", p.MSGPACK),
        (b"{}{}", p.JSON),
        (b"\x80\x80", p.MSGPACK),
        (b'{"a":NaN}', p.JSON),
        (b"[]", p.JSON),
        (b"\xc0", p.MSGPACK),
        (b"", p.JSON),
        (b"", p.MSGPACK),
        (b"{}", "text/html"),
    ],
)
def test_bodies_of_the_wrong_form_are_refused(body: bytes, kind: str) -> None:
    """Nested without end, not UTF-8, keys that are no text, lengths that are lies, two bodies in one."""
    with pytest.raises(ProtocolError):
        p.decode(body, kind)


# --- fields -------------------------------------------------------------------------------------------


@given(st.integers(-(10**15), 10**17))
def test_an_instant_comes_back_to_the_microsecond(at: int) -> None:
    """What rfc3339 writes, instant reads."""
    assert p.instant({"at": p.rfc3339(at)}, "at") == at


@given(VALUES | st.datetimes().map(lambda moment: moment.isoformat()))
def test_an_instant_has_an_offset(value: Any) -> None:
    """A local time, a date or anything else is refused."""
    try:
        at = p.instant({"at": value}, "at")
    except ProtocolError:
        return
    assert isinstance(value, str)
    assert p.instant({"at": p.rfc3339(at)}, "at") == at


@pytest.mark.parametrize(("reader", "body"), READERS, ids=["changes", "uploaded", "manifest"])
@given(data=st.data())
def test_an_answer_with_wrong_fields_is_a_protocol_error(
    reader: Any, body: dict[str, Any], data: Any
) -> None:
    """Fields that are missing, of another type or out of bounds raise nothing else, whatever they hold."""
    changed = dict(body)
    for name in data.draw(st.sets(st.sampled_from(sorted(body)), min_size=1, max_size=3)):
        if data.draw(st.booleans()):
            del changed[name]
        else:
            changed[name] = data.draw(VALUES | st.lists(st.lists(NUMBERS, max_size=4), max_size=2))
    with suppress(ProtocolError):
        reader(changed)


@given(st.dictionaries(WHOLE.map(str), WHOLE, max_size=5))
def test_have_is_read_to_the_last_of_63_bits(have: dict[str, int]) -> None:
    """By epoch, as whole numbers."""
    assert p.changes_of({**CHANGES, "have": have}).said.have == {int(e): s for e, s in have.items()}


@pytest.mark.parametrize(
    ("reader", "body", "change"),
    [
        (p.changes_of, CHANGES, {"have": {str(1 << 63): 1}}),
        (p.changes_of, CHANGES, {"have": {"007": 1}}),
        (p.changes_of, CHANGES, {"have": {"7": 1 << 63}}),
        (p.changes_of, CHANGES, {"next": "a blank"}),
        (p.changes_of, CHANGES, {"next": "å"}),
        (p.changes_of, CHANGES, {"cursor": "x" * 129}),
        (p.changes_of, CHANGES, {"position": True}),
        (p.changes_of, CHANGES, {"position": 1.0}),
        (p.changes_of, CHANGES, {"records": [{}] * 251}),
        (p.changes_of, CHANGES, {"more": 1}),
        (p.changes_of, CHANGES, {"time": "2026-11-21T10:00:00"}),
        (p.changes_of, CHANGES, {"revoked": "yes"}),
        (p.uploaded_of, UPLOADED, {"acknowledged": [[1, 2, 1 << 63]]}),
        (p.uploaded_of, UPLOADED, {"acknowledged": [[1, 3, 2]]}),
        (p.uploaded_of, UPLOADED, {"acknowledged": [[1, 2, True]]}),
        (p.uploaded_of, UPLOADED, {"refused": ["epoch"]}),
        (p.uploaded_of, UPLOADED, {"conflict": [1, 2]}),
        (p.manifest_of, MANIFEST, {"cursor": "\n"}),
        (p.manifest_of, MANIFEST, {"sha256": "AB" * 32}),
        (p.manifest_of, MANIFEST, {"size": -1}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) and len(value) == 1 else "",
)
def test_values_just_outside_are_refused(reader: Any, body: dict[str, Any], change: dict[str, Any]) -> None:
    """Each rule of a field has an edge, and this is beyond it."""
    reader(body)
    with pytest.raises(ProtocolError, match=next(iter(change))):
        reader({**body, **change})


def test_the_three_kinds_of_an_answer_are_told_apart() -> None:
    """News, gone and revoked; a field that is not known changes nothing."""
    assert p.changes_of({**CHANGES, "later": 1}).next == "C2"
    assert p.changes_of({**SAID, "gone": True}).gone
    assert p.changes_of({**SAID, "revoked": True}).revoked
    assert p.changes_of({**CHANGES, "forget": None}).forget_position is None
    assert p.uploaded_of({**UPLOADED, "conflict": None}).conflict is None
