"""The values inside a record (DESIGN.md 4.1): strings, numbers, dates, instants, bounds, texts.

Each function takes the value and the name of its field and gives the typed value, or raises
:class:`RecordError`, whose message says what is right. Pure. ``null`` is handled by the ``optional_…``
functions: an optional field that is null is absent.

Dates are ISO 8601 calendar dates (YYYY-MM-DD) and instants RFC 3339 date-times, both strictly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import Any, TypeVar

from gateway.model import SECOND, Text

JsonObject = dict[str, Any]
T = TypeVar("T")

_EPOCH_DAY = date(1970, 1, 1).toordinal()
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_INSTANT = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)
_CLOCK = re.compile(r"(\d\d):(\d\d)", re.ASCII)
_SPAN = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)", re.ASCII)

# A feed of a million entitlements holds a few hundred different dates. The bound keeps a feed of
# instants, which are all different, from filling the memory.
_BOUNDS: dict[str, int] = {}
_BOUNDS_KEPT = 4096


class RecordError(ValueError):
    """A record breaks the rules of DESIGN.md 4.1.

    ``field`` names where (``rules[0].hours[1]``; empty: the record as a whole), ``message`` says what is
    wrong and what would be right. Neither holds a code or a holder's name.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field
        self.message = message


def shown(value: object) -> str:
    """The value as a message shows it, cut short."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def string(value: object, field: str) -> str:
    """A non-empty string. The value itself is not shown: it may be a name."""
    if type(value) is not str:
        raise RecordError(field, f"must be a string, not {json_type(value)}")
    if not value:
        raise RecordError(field, "must not be empty")
    return value


def optional_string(obj: JsonObject, name: str, where: str = "") -> str | None:
    value = obj.get(name)
    return None if value is None else string(value, where + name)


def json_type(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list | tuple) else "an object"


def whole(value: object, field: str) -> int:
    """A whole number, not negative. ``true`` and ``1.0`` are none."""
    if type(value) is not int:
        raise RecordError(field, f"must be a whole number, not {shown(value)}")
    if value < 0:
        raise RecordError(field, f"must not be negative, is {value}")
    return value


def optional_whole(obj: JsonObject, name: str, where: str = "") -> int | None:
    value = obj.get(name)
    return None if value is None else whole(value, where + name)


def flag(obj: JsonObject, name: str) -> bool:
    """``true`` or ``false``, default false."""
    value = obj.get(name)
    if value is None:
        return False
    if type(value) is not bool:
        raise RecordError(name, f"must be true or false, not {shown(value)}")
    return value


def choice(value: object, among: Mapping[str, T], field: str) -> T:
    """One of the words, as what it stands for."""
    if type(value) is not str or value not in among:
        raise RecordError(field, f"must be one of {', '.join(among)}, not {shown(value)}")
    return among[value]


def items(value: object, field: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise RecordError(field, f"must be a list, not {json_type(value)}")
    return list(value)


def strings(value: object, field: str) -> tuple[str, ...]:
    """A list of non-empty strings (ids, names of points)."""
    return tuple(string(item, f"{field}[{i}]") for i, item in enumerate(items(value, field)))


def optional_strings(obj: JsonObject, name: str, where: str = "") -> tuple[str, ...] | None:
    value = obj.get(name)
    return None if value is None else strings(value, where + name)


def text(value: object, field: str) -> Text:
    """A text in several languages (an object of language to text), or one string for all of them."""
    if type(value) is str:
        return value
    if type(value) is not dict:
        raise RecordError(
            field, f'must be a string or an object such as {{"en": "…"}}, not {json_type(value)}'
        )
    for language, words in value.items():
        if type(language) is not str or not language:
            raise RecordError(field, "has a language that is not a tag such as en or pt-BR")
        if type(words) is not str:
            raise RecordError(f"{field}.{language}", f"must be a string, not {json_type(words)}")
    return value


def day(value: object, field: str) -> int:
    """A date, strictly YYYY-MM-DD, as its ordinal."""
    if type(value) is str and _DATE.fullmatch(value):
        try:
            return date.fromisoformat(value).toordinal()
        except ValueError:
            pass
    raise RecordError(field, f"must be a date like 2026-12-31, not {shown(value)}")


def instant(value: object, field: str) -> int:
    """An instant, strictly RFC 3339 with an offset, as microseconds since 1970. Finer digits are cut."""
    match = _INSTANT.fullmatch(value) if type(value) is str else None
    if match:
        date_part, hour, minute, second, fraction, sign, off_hour, off_minute = match.groups()
        h, m, s = int(hour), int(minute), int(second)
        oh, om = int(off_hour or 0), int(off_minute or 0)
        # A second of 60 is a leap second; it is read as the second after, as POSIX time has it.
        if h < 24 and m < 60 and s <= 60 and oh < 24 and om < 60:
            offset = (oh * 60 + om) * (-60 if sign == "-" else 60)
            days = day(date_part, field) - _EPOCH_DAY
            micros = int((fraction or "0")[:6].ljust(6, "0"))
            return (days * 86400 + h * 3600 + m * 60 + s - offset) * SECOND + micros
    raise RecordError(
        field, f"must be an instant with an offset like 2026-12-31T10:00:00+01:00, not {shown(value)}"
    )


def bound(value: object, field: str) -> int:
    """A date or an instant in one int, encoded as ``gateway.model`` says."""
    if type(value) is not str:
        raise RecordError(
            field, f"must be a date like 2026-12-31 or an instant with an offset, not {shown(value)}"
        )
    known = _BOUNDS.get(value)
    if known is not None:
        return known
    result = instant(value, field) * 2 + 1 if len(value) > 10 else day(value, field) * 2
    if len(_BOUNDS) >= _BOUNDS_KEPT:
        _BOUNDS.clear()
    _BOUNDS[value] = result
    return result


def optional_bound(obj: JsonObject, name: str, where: str = "") -> int | None:
    value = obj.get(name)
    return None if value is None else bound(value, where + name)


def clock(value: object, field: str) -> int:
    """A time of day HH:MM, 00:00 to 23:59, as minutes after midnight."""
    match = _CLOCK.fullmatch(value) if type(value) is str else None
    if match and int(match[1]) < 24 and int(match[2]) < 60:
        return int(match[1]) * 60 + int(match[2])
    raise RecordError(field, f"must be a time of day like 04:00, not {shown(value)}")


def span(value: object, field: str) -> tuple[int, int]:
    """HH:MM-HH:MM in minutes after midnight. 24:00 is allowed as an end; it may cross midnight."""
    match = _SPAN.fullmatch(value) if type(value) is str else None
    if match:
        start_h, start_m, end_h, end_m = (int(part) for part in match.groups())
        start, end = start_h * 60 + start_m, end_h * 60 + end_m
        if start_h < 24 and start_m < 60 and end_m < 60 and end <= 24 * 60:
            return start, end
    raise RecordError(
        field, f"{shown(value)} is not a span like 10:00-18:00 (00:00 to 23:59, 24:00 as an end)"
    )
