"""The admission rules of a product record (DESIGN.md 4.1, table of rules): JSON to :class:`Rule`. Pure."""

from __future__ import annotations

from gateway.cache import values
from gateway.cache.values import JsonObject, RecordError
from gateway.model import Bypass, Limit, Per, Rule

_DAYS = {"mon": 0, "tue": 1, "wed": 2, "thu": 3, "fri": 4, "sat": 5, "sun": 6}
_PER = {per.value: per for per in Per}
_BYPASS = {bypass.value: bypass for bypass in Bypass}


def parse_rules(value: object, field: str) -> tuple[Rule, ...]:
    """Takes the list ``rules`` of a product. Raises RecordError with the path of the fault."""
    return tuple(_rule(item, f"{field}[{i}]") for i, item in enumerate(values.items(value, field)))


def _rule(value: object, field: str) -> Rule:
    obj = _object(value, field)
    where = field + "."
    days = obj.get("days")
    hours = obj.get("hours")
    except_ = obj.get("except")
    bypass = obj.get("bypass")
    during = values.optional_string(obj, "during", where)
    return Rule(
        areas=values.optional_strings(obj, "areas", where),
        points=values.optional_strings(obj, "points", where),
        days=None
        if days is None
        else frozenset(
            values.choice(day, _DAYS, f"{where}days[{i}]")
            for i, day in enumerate(values.items(days, where + "days"))
        ),
        except_=frozenset()
        if except_ is None
        else frozenset(
            values.day(day, f"{where}except[{i}]")
            for i, day in enumerate(values.items(except_, where + "except"))
        ),
        hours=None
        if hours is None
        else tuple(
            values.span(span, f"{where}hours[{i}]")
            for i, span in enumerate(values.items(hours, where + "hours"))
        ),
        from_=values.optional_bound(obj, "from", where),
        until=values.optional_bound(obj, "until", where),
        during=during,
        early_minutes=values.optional_whole(obj, "early_minutes", where) or 0,
        again_after_minutes=values.optional_whole(obj, "again_after_minutes", where),
        limits=_limits(obj, "limits", where, during),
        guests=values.optional_whole(obj, "guests", where),
        guest_limits=_limits(obj, "guest_limits", where, during),
        bypass=frozenset()
        if bypass is None
        else frozenset(
            values.choice(item, _BYPASS, f"{where}bypass[{i}]")
            for i, item in enumerate(values.items(bypass, where + "bypass"))
        ),
    )


def _limits(obj: JsonObject, name: str, where: str, during: str | None) -> tuple[Limit, ...]:
    value = obj.get(name)
    if value is None:
        return ()
    field = where + name
    return tuple(_limit(item, f"{field}[{i}]", during) for i, item in enumerate(values.items(value, field)))


def _limit(value: object, field: str, during: str | None) -> Limit:
    obj = _object(value, field)
    where = field + "."
    most = values.optional_whole(obj, "max", where)
    minutes = values.optional_whole(obj, "minutes", where)
    if (most is None) == (minutes is None):
        raise RecordError(field, "must have either max or minutes, exactly one of them")
    per = obj.get("per")
    if per is None:
        raise RecordError(where + "per", f"is missing; give one of {', '.join(_PER)}")
    per = values.choice(per, _PER, where + "per")
    if per is Per.EVENT and during is None:
        raise RecordError(where + "per", "event needs a during in the same rule, which says what event")
    count = obj.get("count")
    if count is not None:
        values.choice(count, {"days": True}, where + "count")
        if most is None:
            raise RecordError(where + "count", "days goes with max only, not with minutes")
    return Limit(per=per, max=most, minutes=minutes, count_days=count is not None)


def _object(value: object, field: str) -> JsonObject:
    if type(value) is not dict:
        raise RecordError(field, f"must be an object, not {values.json_type(value)}")
    return value
