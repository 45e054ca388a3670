"""The central's records (DESIGN.md 4.1): one JSON object to one typed record, or a fault with its field.

Pure. :func:`parse` is the whole of it. Credentials, entitlements and holders come by the million, so each
has a hand-written function that gives the fields as a flat tuple, from which the importer packs a row
without making an object; :func:`parse` uses the same functions, so there is one set of rules.
"""

from __future__ import annotations

import re
import zoneinfo
from dataclasses import dataclass
from typing import Any

from gateway.cache import values
from gateway.cache.rules import parse_rules
from gateway.cache.values import JsonObject, RecordError
from gateway.model import (
    MAX_CODE_BYTES,
    OUTSIDE,
    Area,
    CredentialState,
    Entitlement,
    EntitlementState,
    Event,
    Holder,
    Movement,
    Passage,
    Product,
    Text,
    Venue,
)

__all__ = ["CredentialRecord", "Deleted", "Record", "RecordError", "parse"]

_bound = values.bound
_CATEGORIES = {word: word for word in ("membership", "pass", "ticket")}
_CREDENTIAL_STATES = {state.name.lower(): int(state) for state in CredentialState}
_ENTITLEMENT_STATES = {state.name.lower(): int(state) for state in EntitlementState}
_HOLDER_STATES = {"active": False, "blocked": True}
_PASSAGES = {passage.value: passage for passage in Passage}

# Unicode's category Cc is exactly these two ranges (Unicode standard, chapter 23.1).
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_DECIMAL = re.compile(r"\d{1,20}", re.ASCII)


@dataclass(slots=True, frozen=True)
class CredentialRecord:
    """A credential as the central sends it: with its code, and its entitlements by id."""

    id: str
    code: bytes
    state: int
    entitlements: tuple[str, ...]

    def __repr__(self) -> str:
        # Written by hand so that no log or traceback can show the code.
        return f"CredentialRecord(id={self.id!r}, state={self.state})"


@dataclass(slots=True, frozen=True)
class Deleted:
    """A record that is to go. ``id`` is the source of a usage (``gateway/epoch/seq`` or ``id/…``)."""

    kind: str
    id: str


Record = Venue | Area | Event | Product | Holder | Entitlement | CredentialRecord | Movement | Deleted

EntitlementFields = tuple[str, str | None, str | None, int | None, int | None, int, int | None, int | None]
HolderFields = tuple[str, str | None, str | None, Text | None, bool]


def parse(obj: JsonObject) -> Record | None:
    """One record, typed and checked; None for a kind that is not known here.

    Raises RecordError with field and message. Unknown fields are ignored.
    """
    kind = kind_of(obj)
    if kind == "credential":
        if deleted(obj):
            return Deleted(kind, record_id(obj))
        id_, code, state, entitlements = credential_fields(obj)
        return CredentialRecord(id_, code, state, tuple(entitlements))
    if kind == "entitlement":
        return Deleted(kind, record_id(obj)) if deleted(obj) else Entitlement(*entitlement_fields(obj))
    if kind == "holder":
        return Deleted(kind, record_id(obj)) if deleted(obj) else Holder(*holder_fields(obj))
    if kind == "usage":
        return Deleted(kind, usage_source(obj)) if deleted(obj) else _usage(obj)
    if kind == "venue":
        if deleted(obj):
            raise RecordError("deleted", "the venue cannot be deleted; send a venue record that replaces it")
        return _venue(obj)
    if kind not in ("area", "event", "product"):
        return None
    id_ = record_id(obj)
    if deleted(obj):
        return Deleted(kind, id_)
    if kind == "area":
        return _area(id_, obj)
    return _event(id_, obj) if kind == "event" else _product(id_, obj)


def kind_of(obj: object) -> str:
    """The kind of a record, known or not. Raises RecordError where there is none."""
    if type(obj) is not dict:
        raise RecordError("", f'must be an object such as {{"kind": "area", …}}, not {values.json_type(obj)}')
    if "kind" not in obj:
        raise RecordError("kind", "is missing")
    return values.string(obj["kind"], "kind")


def deleted(obj: JsonObject) -> bool:
    return "deleted" in obj and values.flag(obj, "deleted")


def record_id(obj: JsonObject) -> str:
    id_ = obj.get("id")
    if id_ is None:
        raise RecordError("id", "is missing")
    return values.string(id_, "id")


# --- by the million: flat and without helpers on the way that is usual ------------------------------


def credential_fields(obj: JsonObject) -> tuple[str, bytes, int, list[str]]:
    """(id, code, state, ids of the entitlements). The code is checked, and shown in no error."""
    id_ = obj.get("id")
    if type(id_) is not str or not id_:
        id_ = record_id(obj)
    code = obj.get("code")
    if type(code) is not str:
        raise RecordError(
            "code", "is missing" if code is None else f"must be a string, not {values.json_type(code)}"
        )
    # isprintable is false for every control character, and for some others that are allowed.
    if not code.isprintable() and _CONTROL.search(code):
        raise RecordError("code", "has control characters, which no scanner gives; remove them")
    raw = code.encode()
    if not 0 < len(raw) <= MAX_CODE_BYTES:
        raise RecordError("code", f"must be 1 to {MAX_CODE_BYTES} bytes of UTF-8, is {len(raw)}")
    word = obj.get("state")
    state = 0
    if word is not None and word != "active":
        state = values.choice(word, _CREDENTIAL_STATES, "state")
    entitlements = obj.get("entitlements")
    if entitlements is None:
        return id_, raw, state, []
    if type(entitlements) is not list:
        entitlements = values.items(entitlements, "entitlements")
    for item in entitlements:
        if type(item) is not str or not item:
            values.strings(entitlements, "entitlements")  # raises, with the place
    return id_, raw, state, entitlements


def entitlement_fields(obj: JsonObject) -> EntitlementFields:
    """The fields of ``Entitlement`` in their order, without ``blocked``."""
    get = obj.get
    id_ = get("id")
    if type(id_) is not str or not id_:
        id_ = record_id(obj)
    product = get("product")
    if product is not None and (type(product) is not str or not product):
        values.string(product, "product")
    holder = get("holder")
    if holder is not None and (type(holder) is not str or not holder):
        values.string(holder, "holder")
    valid_from = get("valid_from")
    if valid_from is not None:
        valid_from = _bound(valid_from, "valid_from")
    valid_until = get("valid_until")
    if valid_until is not None:
        valid_until = _bound(valid_until, "valid_until")
    word = get("state")
    state = 0
    if word is not None and word != "active":
        state = values.choice(word, _ENTITLEMENT_STATES, "state")
    guests = get("guests")
    if guests is not None:
        values.whole(guests, "guests")
    entries = get("entries")
    if entries is not None:
        values.whole(entries, "entries")
    return id_, product, holder, valid_from, valid_until, state, guests, entries


def holder_fields(obj: JsonObject) -> HolderFields:
    """The fields of ``Holder`` in their order; ``blocked`` is last."""
    get = obj.get
    id_ = get("id")
    if type(id_) is not str or not id_:
        id_ = record_id(obj)
    name = get("name")
    if name is not None and type(name) is not str:
        values.string(name, "name")
    language = get("language")
    if language is not None and (type(language) is not str or not language):
        values.string(language, "language")
    notice = get("notice")
    if notice is not None:
        notice = values.text(notice, "notice")
    word = get("state")
    blocked = word is not None and word != "active" and values.choice(word, _HOLDER_STATES, "state")
    return id_, name, language, notice, blocked


# --- the rest ---------------------------------------------------------------------------------------


def _venue(obj: JsonObject) -> Venue:
    timezone = values.optional_string(obj, "timezone") or "UTC"
    try:
        zoneinfo.ZoneInfo(timezone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):  # OSError: "Europe" is a folder
        raise RecordError(
            "timezone", f"{values.shown(timezone)} is not a time zone like Europe/Berlin"
        ) from None
    day_starts = obj.get("day_starts")
    return Venue(
        timezone=timezone,
        day_starts=0 if day_starts is None else values.clock(day_starts, "day_starts"),
        language=values.optional_string(obj, "language") or "en",
    )


def _area(id_: str, obj: JsonObject) -> Area:
    within = values.optional_string(obj, "within")
    if within == id_:
        raise RecordError("within", "the area lies within itself; name the larger area, or leave it out")
    presence_hours = obj.get("presence_hours")
    if presence_hours is not None and (type(presence_hours) not in (int, float) or not presence_hours >= 0):
        raise RecordError(
            "presence_hours", f"must be a number, not negative; is {values.shown(presence_hours)}"
        )
    return Area(
        id=id_,
        name=_text(obj, "name"),
        capacity=values.optional_whole(obj, "capacity"),
        within=within,
        presence_hours=None if presence_hours is None else float(presence_hours),
    )


def _event(id_: str, obj: JsonObject) -> Event:
    tag = obj.get("tag")
    if tag is None:
        raise RecordError("tag", "is missing; rules name the event by it")
    return Event(
        id=id_,
        tag=values.string(tag, "tag"),
        areas=values.optional_strings(obj, "areas"),
        from_=values.optional_bound(obj, "from"),
        until=values.optional_bound(obj, "until"),
        exclusive=values.flag(obj, "exclusive"),
    )


def _product(id_: str, obj: JsonObject) -> Product:
    category = obj.get("category")
    benefits = obj.get("benefits")
    rules = obj.get("rules")
    return Product(
        id=id_,
        category="membership" if category is None else values.choice(category, _CATEGORIES, "category"),
        name=_text(obj, "name"),
        club=values.optional_string(obj, "club"),
        tier=values.optional_string(obj, "tier"),
        benefits=()
        if benefits is None
        else tuple(
            values.text(item, f"benefits[{i}]") for i, item in enumerate(values.items(benefits, "benefits"))
        ),
        grace_days=values.optional_whole(obj, "grace_days") or 0,
        attention=values.flag(obj, "attention"),
        rules=() if rules is None else parse_rules(rules, "rules"),
    )


def _text(obj: JsonObject, name: str) -> Text:
    value = obj.get(name)
    return "" if value is None else values.text(value, name)


def usage_source(obj: JsonObject) -> str:
    """What identifies a usage for ever: ``gateway/epoch/seq``; ``id/…`` from before there were gateways."""
    gateway = values.optional_string(obj, "gateway")
    if gateway is None:
        if obj.get("id") is None:
            raise RecordError("gateway", "is missing, with epoch and seq; or give an id")
        return f"id/{record_id(obj)}"
    return f"{gateway}/{_number64(obj, 'epoch')}/{_number64(obj, 'seq')}"


def _number64(obj: JsonObject, name: str) -> int:
    """A number of 64 bits. JavaScript and others cannot hold one, so it may come as a string."""
    value: Any = obj.get(name)
    if value is None:
        raise RecordError(name, "is missing")
    if type(value) is str and _DECIMAL.fullmatch(value):
        value = int(value)
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise RecordError(name, f"must be a whole number of at most 64 bits, not {values.shown(value)}")
    return value


def _usage(obj: JsonObject) -> Movement:
    source = usage_source(obj)
    if obj.get("at") is None:
        raise RecordError("at", "is missing")
    if obj.get("to") is None:
        raise RecordError("to", "is missing; it is the area that was entered, or outside")
    holder = values.optional_string(obj, "holder")
    credential = values.optional_string(obj, "credential")
    entries = values.optional_whole(obj, "entries")
    passage = obj.get("passage")
    return Movement(
        at=values.instant(obj["at"], "at"),
        from_=values.optional_string(obj, "from") or OUTSIDE,
        to=values.string(obj["to"], "to"),
        person=holder or (None if credential is None else f"card:{credential}"),
        point=values.optional_string(obj, "point"),
        holder=holder,
        credential=credential,
        entitlement=values.optional_string(obj, "entitlement"),
        guest=values.optional_whole(obj, "guest") or 0,
        entries=1 if entries is None else entries,
        passage=Passage.TAKEN if passage is None else values.choice(passage, _PASSAGES, "passage"),
        source=source,
    )
