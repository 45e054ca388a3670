"""A gate and a sync that run, with cards for everything that the pages show."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable
from typing import Any

from tests.e2e.rig import Fork, Json, Site, card, until, venue

LANES = ({"name": "north", "second_grant": "extend"}, {"name": "south", "relay": {"driver": "memory"}})
POINTS = (
    {"name": "north-in", "lane": "north"},
    {"name": "north-out", "lane": "north", "from": "hall", "to": "outside"},
    {"name": "south-in", "lane": "south"},
)
READERS = (
    {"name": "in", "point": "north-in"},
    {"name": "out", "point": "north-out"},
    {"name": "south", "point": "south-in"},
)
NAMES = {"en": "Family", "de": "Familie", "sv": "Familj", "nb": "Familie", "fr": "Famille"}
SECRET = ("Petra Geheim", "Your new card is at the desk")
"""A holder's name and notice: nowhere to be seen."""


def records() -> list[Json]:
    """A venue whose language is German; cards FAM-xx and DAY-xx of a holder in each language."""
    found = [
        *venue(language="de"),
        {"kind": "product", "id": "family", "name": NAMES, "rules": [{"areas": ["hall"], "guests": 2}]},
        {
            "kind": "product",
            "id": "day",
            "name": {"en": "Day ticket", "de": "Tageskarte"},
            "rules": [{"areas": ["hall"], "limits": [{"max": 1, "per": "day"}]}],
        },
    ]
    for language in NAMES:
        for product in ("family", "day"):
            made = card(f"{product}-{language}", f"{product[:3].upper()}-{language}", product)
            made[0] |= {"language": language, "name": SECRET[0], "notice": SECRET[1]}
            found += made
    return [*found, *card("lost", "LOST", "family", state="lost")]


CLOSED = "Prenez l'escalier."
"""The venue's own words."""


class Pages:
    """The site, its sync, and where the pages are."""

    def __init__(self, make: Callable[..., Site]) -> None:
        self.site = make(LANES, POINTS, READERS)
        self.site.sections["web"] = {"listen": "127.0.0.1:0"}
        self.site.sections["messages"] = {"fr": {"display_closed": CLOSED}}
        self.site.write()
        self.site.imports(records())
        self.site.start()
        self.sync = self.start_sync()

    def start_sync(self) -> Fork:
        """Start it; the pages are where they were, if they were somewhere."""
        self.sync = self.site.fork("sync")
        self.sync.ready()
        until(lambda: '"address":' in self.sync.errors(), "the pages are served")
        found = re.search(r'"address":\["127\.0\.0\.1:(\d+)"\]', self.sync.errors())
        assert found is not None
        self.port = int(found[1])
        self.site.sections["web"]["listen"] = f"127.0.0.1:{self.port}"
        self.site.write()
        return self.sync

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def token(self, name: str = "anna") -> str:
        """Of a new operator."""
        done = self.site.run("operator", "add", name)
        assert done.status == 0, done.err
        token: str = done.json[0]["token"]
        return token

    def metrics(self) -> str:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=20) as answer:
            text: str = answer.read().decode()
            return text

    def shows(self, kind: str, text: str = "") -> str:
        """A condition for the browser: what the display shows."""
        seen = f"document.getElementById('words').innerText.includes({json.dumps(text)})"
        return f"document.body.dataset.kind === {json.dumps(kind)} && {seen}"

    def scan(self, reader: str, code: str) -> Any:
        return self.site.scan(reader, code)
