"""The demo's venue: cards for each story that a gate has to tell, made to fit the present moment."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

Json = dict[str, Any]


def zone() -> str:
    """The machine's time zone by name, UTC where it has none."""
    names = [
        os.environ.get("TZ", "").lstrip(":"),
        str(Path("/etc/localtime").resolve()).partition("zoneinfo/")[2],
    ]
    for name in names:
        try:
            if name and ZoneInfo(name):
                return name
        except (ZoneInfoNotFoundError, ValueError, OSError):
            continue
    return "UTC"


def feed(now: datetime) -> tuple[list[Json], list[tuple[str, str]]]:
    """The sample records, made to fit this moment, and the sample codes with what they show."""
    today = now.date()
    year = {"valid_from": f"{today.year}-01-01", "valid_until": f"{today.year + 1}-12-31"}
    later = now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=3)
    hours = f"{later:%H:%M}-{later + timedelta(hours=2):%H:%M}"
    begins, ends = now - timedelta(hours=1), now + timedelta(hours=4)
    records: list[Json] = [
        {"kind": "venue", "timezone": str(now.tzinfo), "day_starts": "04:00", "language": "en"},
        {"kind": "area", "id": "hall", "name": {"en": "Hall", "de": "Halle"}, "capacity": 800},
        {
            "kind": "event",
            "id": "v1",
            "tag": "vernissage",
            "areas": ["hall"],
            "from": begins.isoformat(),
            "until": ends.isoformat(),
        },
    ]

    def product(id_: str, *rules: Json, **more: Any) -> None:
        records.append({"kind": "product", "id": id_, "rules": list(rules), **more})

    product("family", {"areas": ["hall"], "guests": 1}, name={"en": "Family"}, grace_days=14)
    product(
        "patron", {"areas": ["hall"], "during": "vernissage", "early_minutes": 60, "guests": 1}, tier="gold"
    )
    product("single", {"areas": ["hall"], "limits": [{"max": 1, "per": "term"}]}, category="ticket")
    product("annual", {"areas": ["hall"]}, category="pass")
    product("member", category="membership", club="friends")
    product("off-peak", {"areas": ["hall"], "hours": [hours]}, name={"en": "Off-peak"})

    def card(
        n: int, code: str, product_: str, *more_products: str, state: str = "active", **more: Any
    ) -> None:
        entitlements = []
        for i, each in enumerate((product_, *more_products)):
            entitlements.append(f"E{n}{'abc'[i] if i else ''}")
            records.append(
                {
                    "kind": "entitlement",
                    "id": entitlements[-1],
                    "product": each,
                    "holder": f"H{n}",
                    **year,
                    **(more if not i else {}),
                }
            )
        records.append(
            {"kind": "credential", "id": f"C{n}", "code": code, "state": state, "entitlements": entitlements}
        )

    card(1, "FAMILY-8K2M", "family")
    card(2, "VERNISSAGE-4T7Q", "patron")
    card(3, "SUSPENDED-2PX9", "family", state="active")
    records[-2]["state"] = "suspended"
    card(4, "NEWCARD-5H3J", "annual")
    records.append(
        {
            "kind": "credential",
            "id": "C4old",
            "code": "LOSTCARD-5H3J",
            "state": "lost",
            "entitlements": ["E4"],
        }
    )
    card(5, "REPLACED-7W1B", "annual", state="replaced")
    card(6, "PASS+MEMBER-6D4F", "member", "annual")
    card(7, "GRACE-3N8C", "family", valid_until=f"{today - timedelta(days=3)}")
    card(8, "OFFPEAK-9R2L", "off-peak")
    card(9, "SINGLE-1Z5V", "single")
    records.append(
        {
            "kind": "holder",
            "id": "H1",
            "notice": {"en": "Your new card is at the desk", "de": "Ihre neue Karte liegt bereit"},
        }
    )
    records.append({"kind": "holder", "id": "H6", "language": "de"})
    return records, [
        ("FAMILY-8K2M", "a family with a plus-one: scan it again for the guest"),
        ("VERNISSAGE-4T7Q", "admits to vernissages, and one is on now"),
        ("SUSPENDED-2PX9", "a membership that is suspended"),
        ("LOSTCARD-5H3J", "a lost card; its membership lives on in the next one"),
        ("NEWCARD-5H3J", "the card that was issued for it"),
        ("REPLACED-7W1B", "a card that was replaced by another"),
        ("PASS+MEMBER-6D4F", "annual pass and membership on one code, in German"),
        ("GRACE-3N8C", "expired three days ago, within 14 days of grace"),
        ("OFFPEAK-9R2L", f"off-peak: admits from {hours.replace('-', ' to ')}"),
        ("SINGLE-1Z5V", "a single ticket: admits once"),
        ("out FAMILY-8K2M", "the first card at the exit: out, a space and a code"),
        ("ANYTHING-ELSE", "an unknown code"),
    ]
