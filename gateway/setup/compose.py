"""The text of the configuration: the plan's tables as TOML, with comments for who opens it in a year."""

from __future__ import annotations

import json
import re
from typing import Any

from gateway.setup.dialogue import Plan, Table

_HEAD = """\
# Written by gateway setup {version}. Every key, with its default and its meaning: docs/configuration.md
# After a change: gateway doctor, then restart gate and sync.
"""
_ABOVE = {
    "gateway": "This gateway. Its id must not change, and no other gateway may have it.",
    "central": "Where cards come from and entries go. It was joined by gateway enroll, or is to be.",
    "lane": "A turnstile, with the relay that opens it.",
    "point": "One side of a turnstile: where people come from and where they get to.",
    "reader": "A scanner, by a name that stays the same.",
}
_BEHIND = {
    ("lane", "relay", "memory"): "nothing opens yet: see gateway devices",
    ("reader", "driver", "stdin"): "no scanner yet: see gateway devices",
}
_PASSAGE = '# passage = { driver = "gpio", chip = "...", line = 22 }  # a contact that tells of each passage'
_EMERGENCY = (
    '# emergency = { driver = "gpio", chip = "...", line = 27 }  # the alarm panel: docs/configuration.md'
)


def compose(plan: Plan, version: str) -> str:
    """The whole file."""
    parts = [_HEAD.format(version=version), _table("gateway", plan.gateway)]
    if plan.central:
        parts.append(_table("central", plan.central))
    for lane in plan.lanes:
        missing = [
            line for key, line in (("passage", _PASSAGE), ("emergency", _EMERGENCY)) if key not in lane
        ]
        parts.append(
            _table("lane", {"pulse_ms": 300, **lane}, many=True) + "".join(f"{m}\n" for m in missing)
        )
        parts += [_table("point", point, many=True) for point in plan.points if point["lane"] == lane["name"]]
    parts += [_table("reader", reader, many=True) for reader in plan.readers]
    for name, table in plan.kept.items():
        parts += _kept(name, table)
    return "\n".join(parts)


def _table(name: str, table: Table, many: bool = False) -> str:
    lines = [f"# {_ABOVE[name]}", f"[[{name}]]" if many else f"[{name}]"]
    order = sorted(table, key=lambda key: key != "name")
    for key in order:
        value = table[key]
        driver = value.get("driver") if isinstance(value, dict) else value
        note = _BEHIND.get((name, key, driver)) if isinstance(driver, str) else None
        lines.append(f"{_key(key)} = {toml(value)}" + (f"  # {note}" if note else ""))
    return "\n".join(lines) + "\n"


def _kept(name: str, table: Table) -> list[str]:
    """Tables of the file before, as they were."""
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    parts = []
    if plain:
        parts.append(
            f"[{name}]\n" + "".join(f"{_key(key)} = {toml(value)}\n" for key, value in plain.items())
        )
    for key, value in table.items():
        if isinstance(value, dict):
            parts += _kept(f"{name}.{_key(key)}", value)
    return parts


def toml(value: Any) -> str:
    """A value of TOML; dates are none of the configuration's."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if isinstance(value, dict):
        inner = ", ".join(f"{_key(key)} = {toml(item)}" for key, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    # A JSON string is a TOML basic string, but for the DEL character, which TOML wants escaped.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml(name)
