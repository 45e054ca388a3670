"""Generated worlds: (records, config, lines) for the judgement, small, so that things meet.

Few ids, few codes and few clock times, all clustered about a handful of days on which something
happens (clocks change, a year or a month begins), so that limits, events, presence, passages and
repeats touch each other often. No two usages share an instant (their order would be left open).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

Json = dict[str, Any]
WEEKDAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]

PLACES: list[tuple[str, list[date]]] = [
    ("Europe/Berlin", [date(2026, 3, 28), date(2026, 3, 29), date(2026, 10, 24), date(2026, 10, 25)]),
    ("America/New_York", [date(2026, 3, 8), date(2026, 11, 1), date(2026, 12, 31)]),
    ("Australia/Lord_Howe", [date(2026, 4, 5), date(2026, 10, 4)]),
    ("Asia/Kathmandu", [date(2026, 11, 27), date(2026, 2, 28)]),
    ("UTC", [date(2026, 11, 29), date(2026, 11, 30), date(2026, 12, 31)]),
    ("Europe/Berlin", [date(2026, 11, 27), date(2026, 12, 31)]),
]
CLOCKS = [0, 90, 120, 135, 150, 180, 210, 240, 600, 720, 1020, 1080, 1320, 1380, 1439]
"""Minutes after midnight at which spans, days, events and scans like to begin and end."""
DELTAS = [
    0,
    0.4,
    1.4,
    1.5,
    1.6,
    2,
    2,
    2,
    3,
    3,
    4.9,
    5,
    5,
    5.1,
    6,
    10,
    10,
    29,
    30,
    31,
    60,
    600,
    1800,
    3540,
    3600,
]
"""Seconds from one line to the next within a cluster."""
CODES = ["A", "B", "C", "D", "E"]
POINTS = ["in", "out", "south", "inner", "inner-out", "side"]


class World(NamedTuple):
    records: list[Json]
    config: Json
    lines: list[Json]


def clock(minutes: int) -> str:
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


class Maker:
    """Draws the parts of one world; keeps the place and the days that everything clusters about."""

    def __init__(self, choose: Callable[[list[Any]], Any]) -> None:
        self.pick = choose
        self.zone_name, days = choose(PLACES)
        self.zone = ZoneInfo(self.zone_name)
        self.day = choose(days)
        self.day_starts = choose([0, 0, 240, 120, 150])
        self.nested = choose([True, True, True, False])
        self.instants: list[datetime] = []
        """Where something begins or ends: scans cluster about these."""

    def some(self, values: list[Any], most: int = 3) -> list[Any]:
        """Between one and ``most`` different ones."""
        found: list[Any] = []
        for _ in range(self.pick(list(range(1, most + 1)))):
            value = self.pick(values)
            if value not in found:
                found.append(value)
        return found

    def chance(self, share: int) -> bool:
        """True in about one of so many."""
        return bool(self.pick([False] * (share - 1) + [True]))

    def near(self, first: int = -2, last: int = 2) -> date:
        return self.day + timedelta(days=self.pick(list(range(first, last + 1))))

    def moment(self, first: int = 0, last: int = 1) -> datetime:
        day = self.near(first, last)
        wall = datetime(day.year, day.month, day.day) + timedelta(minutes=self.pick(CLOCKS))  # noqa: DTZ001
        return wall.replace(tzinfo=self.zone, fold=self.pick([0, 1])).astimezone(UTC)

    def text(self, t: datetime) -> str:
        """An instant as a record or a line would have it, at the venue's offset or in UTC."""
        if self.chance(4):
            return t.astimezone(UTC).isoformat().replace("+00:00", "Z")
        return t.astimezone(self.zone).isoformat()

    def bound(self, first: int, last: int) -> str:
        if self.chance(3):
            t = self.moment(first, last)
            self.instants.append(t)
            return self.text(t)
        return self.near(first, last).isoformat()

    # --- records ------------------------------------------------------------------------------------

    def areas(self) -> list[Json]:
        hall: Json = {"kind": "area", "id": "hall", "name": {"en": "Hall"}}
        exh: Json = {"kind": "area", "id": "exh", "name": {"en": "Exhibition"}}
        if self.nested:
            exh["within"] = "hall"
        vault: Json = {"kind": "area", "id": "vault", "name": "Vault", "within": "exh"}
        for area in (hall, exh, vault):
            if self.chance(2):
                area["capacity"] = self.pick([0, 1, 1, 1, 2, 2, 2, 3, 3])
            if self.chance(4):
                area["presence_hours"] = self.pick([1, 2, 30])
        return [hall, exh, vault]

    def event(self, number: int) -> Json:
        record: Json = {"kind": "event", "id": f"v{number}", "tag": self.pick(["party", "party", "late"])}
        begin = self.moment(-1, 1)
        end = begin + timedelta(minutes=self.pick([30, 60, 240, 1500]))
        if not self.chance(8):
            record["from"] = self.text(begin)
            self.instants.append(begin)
        if not self.chance(8):
            record["until"] = self.text(end)
            self.instants.append(end)
        if self.chance(2):
            record["areas"] = self.some(["hall", "exh"])
        if self.chance(3):
            record["exclusive"] = True
        return record

    def limit(self, during: bool) -> Json:
        periods = ["hour", "day", "day", "week", "month", "year", "term"]
        item: Json = {"per": self.pick([*periods, "event", "event"] if during else periods)}
        if self.chance(5):
            item["minutes"] = self.pick([10, 60, 90])
        else:
            item["max"] = self.pick([0, 1, 1, 1, 1, 2, 2, 2, 3, 3])
            if self.chance(4):
                item["count"] = "days"
        return item

    def rule(self) -> Json:
        rule: Json = {}
        if not self.chance(4):
            rule["areas"] = self.pick([["hall"]] * 6 + [["exh"], ["exh", "hall"]])
        if self.chance(14):
            rule["points"] = self.some(POINTS)
        if self.chance(7):
            rule["days"] = self.pick(
                [["sat", "sun"], ["mon", "tue", "wed", "thu", "fri"], ["fri"], ["sun", "mon"]]
            )
        if self.chance(10):
            rule["except"] = [self.near().isoformat()]
        if self.chance(5):
            rule["hours"] = [
                f"{clock(self.pick(CLOCKS))}-{clock(self.pick([*CLOCKS, 1440]))}"
                for _ in range(self.pick([1, 1, 2]))
            ]
        if self.chance(10):
            rule["from"] = self.bound(-1, 2)
        if self.chance(10):
            rule["until"] = self.bound(0, 3)
        during = self.chance(6)
        if during:
            rule["during"] = self.pick(["party", "party", "late"])
            if self.chance(2):
                rule["early_minutes"] = self.pick([15, 60])
        if self.chance(4):
            rule["again_after_minutes"] = self.pick([1, 10, 60, 600])
        if self.chance(2):
            rule["limits"] = [self.limit(during) for _ in range(self.pick([1, 1, 2]))]
        if self.chance(2):
            rule["guests"] = self.pick([0, 1, 1, 2])
            if self.chance(3):
                rule["guest_limits"] = [self.limit(during)]
        if self.chance(7):
            rule["bypass"] = self.some(["passback", "capacity", "closed"])
        return rule

    def product(self, id_: str) -> Json:
        record: Json = {"kind": "product", "id": id_, "category": "membership", "name": {"en": id_}}
        record["rules"] = [self.rule() for _ in range(self.pick([0, *[1] * 6, *[2] * 6, 3, 3]))]
        if self.chance(3):
            record["grace_days"] = self.pick([1, 2, 14])
        if self.chance(5):
            record["attention"] = True
        return record

    def entitlement(self, number: int) -> Json:
        record: Json = {"kind": "entitlement", "id": f"E{number}"}
        record["product"] = self.pick(["P", "P", "P", "Q", "Q", "ghost"] if self.chance(6) else ["P", "Q"])
        if not self.chance(6):
            record["holder"] = self.pick([f"H{number}", "H1", "H2"])
        if self.chance(4):
            record["valid_from"] = self.bound(-3, 1)
        if self.chance(3):
            record["valid_until"] = self.bound(-1, 3)
        if self.chance(20):
            record["state"] = self.pick(["suspended", "cancelled"])
        if self.chance(6):
            record["guests"] = self.pick([0, 1, 3])
        if self.chance(6):
            record["entries"] = self.pick([0, 1, 2])
        return record

    def holder(self, number: int) -> Json:
        record: Json = {"kind": "holder", "id": f"H{number}", "name": f"Nr {number}"}
        if self.chance(20):
            record["state"] = "blocked"
        if self.chance(3):
            record["language"] = self.pick(["de", "en-GB", "no", "fr"])
        if self.chance(4):
            record["notice"] = self.pick(
                [{"de": "Kasse", "en": "desk"}, {"nb": "skranken"}, {"sv": "disken", "en": "d"}]
            )
        return record

    def credential(self, number: int, entitlements: int) -> Json:
        listed = [f"E{n}" for n in range(1, entitlements + 1)]
        record: Json = {"kind": "credential", "id": f"C{number}", "code": CODES[number - 1]}
        record["entitlements"] = (
            self.some([*listed, *listed, "E9"]) if self.chance(2) else [self.pick(listed)]
        )
        if self.chance(20):
            record["state"] = self.pick(["lost", "revoked", "replaced"])
        return record

    def usage(self, number: int, records: list[Json], base: datetime) -> Json:
        at = base + timedelta(
            minutes=self.pick([-1500, -600, -60, -59, -30, -10, -1, 1, 5, 60]), seconds=number
        )
        self.instants.append(at)
        record: Json = {"kind": "usage", "at": self.text(at)}
        if self.chance(5):
            record["id"] = f"u{number}"
            if self.chance(2):
                record["entries"] = self.pick([1, 2, 3])
        else:
            record.update(gateway="far", epoch=1, seq=number)
        if self.chance(3):
            record["point"] = self.pick(["in", "far-in"])
        record["from"], record["to"] = self.pick(
            [("outside", "hall")] * 4
            + [("hall", "outside"), ("hall", "exh"), ("exh", "hall"), ("outside", "exh")]
        )
        if self.chance(6):
            return record  # nobody: a head
        owned = [r for r in records if r["kind"] == "entitlement"]
        entitlement = self.pick(owned)
        record["entitlement"] = entitlement["id"]
        if self.chance(8):
            return record  # an entitlement alone
        if "holder" in entitlement:
            record["holder"] = entitlement["holder"]
        record["credential"] = self.pick([r["id"] for r in records if r["kind"] == "credential"])
        record["guest"] = self.pick([0, 0, 0, 1])
        record["passage"] = self.pick(["taken", "taken", "assumed", "not_taken"])
        return record

    def records(self) -> list[Json]:
        venue: Json = {"kind": "venue", "timezone": self.zone_name, "day_starts": clock(self.day_starts)}
        if self.chance(2):
            venue["language"] = self.pick(["de", "sv"])
        records = [venue, *self.areas()]
        records += [self.event(n) for n in range(self.pick([0, 1, 1, 2]))]
        records += [self.product("P"), self.product("Q")]
        records += [self.holder(n) for n in range(1, self.pick([2, 3, 4, 5]))]
        entitlements = self.pick([1, 2, 3, 3, 5])
        records += [self.entitlement(n) for n in range(1, entitlements + 1)]
        records += [self.credential(n, entitlements) for n in range(1, self.pick([2, 3, 4, 6]))]
        if self.chance(10):  # a card takes another's code, and perhaps lets go of it
            records.append({"kind": "credential", "id": "CX", "code": "A", "entitlements": ["E1"]})
            if self.chance(2):
                records.append({"kind": "credential", "id": "CX", "deleted": True})
        if self.chance(10):
            records.append(
                self.pick([{"kind": "locker", "id": "L"}, {"kind": "holder", "id": "H1", "deleted": True}])
            )
        if self.chance(12):
            records.append({"kind": "entitlement", "id": "E1", "deleted": True})
        return records

    # --- configuration and lines --------------------------------------------------------------------

    def config(self) -> Json:
        lanes: list[Json] = []
        for name in ("north", "south", "inner"):
            lane: Json = {"name": name, "relay": {"driver": "memory"}}
            if self.chance(2):
                lane["passage"] = {"driver": "memory"}
                if self.chance(3):
                    lane["passage"]["timeout_s"] = self.pick([2, 10])
            lanes.append(lane)
        side = self.pick([("outside", "exh"), ("exh", "outside"), ("exh", "vault"), ("outside", "vault")])
        ways = {
            "in": ("north", "outside", "hall"),
            "out": ("north", "hall", "outside"),
            "south": ("south", "outside", "hall"),
            "inner": ("inner", "hall", "exh"),
            "inner-out": ("inner", "exh", "hall"),
            "side": ("south", *side),
        }
        names = ["in", *sorted(self.some(POINTS[1:], most=4), key=POINTS.index)]
        points: list[Json] = []
        for name in names:
            lane_name, from_, to = ways[name]
            point: Json = {"name": name, "lane": lane_name, "from": from_, "to": to}
            mode = self.pick(["off", "off", "soft", "hard", "hard", "timed"])
            if mode != "off":
                point["anti_passback"] = mode
            if mode == "timed":
                point["anti_passback_minutes"] = self.pick([1, 10])
            if self.chance(4):
                point["guest_window_s"] = self.pick([3, 10, 120])
            if to == "outside" and self.chance(3):
                point["unknown_at_exit"] = self.pick(["open", "deny"])
            points.append(point)
        used = {point["lane"] for point in points}
        made: Json = {
            "gateway": {"id": "north", "data_dir": "data"},
            "lane": [lane for lane in lanes if lane["name"] in used],
            "point": points,
        }
        if self.chance(8):
            made["reader"] = [
                {
                    "name": "r",
                    "point": "in",
                    "driver": "stdin",
                    "device": "-",
                    "repeat_delay_s": self.pick([0, 3]),
                }
            ]
        return made

    def code(self, codes: list[str]) -> str:
        if self.chance(20):
            return self.pick(["X", "X", "", "A\n", "a", "y" * 513])
        return self.pick(codes)

    def times(self, count: int) -> list[datetime]:
        """Clusters about the interesting instants, in order."""
        anchors = sorted(self.pick([self.moment(), *self.instants[:4]]) for _ in range(self.pick([1, 2, 3])))
        times: list[datetime] = []
        t = anchors[0] + timedelta(seconds=self.pick([-60, -2, -0.5, 0, 0, 0]))
        for number in range(count):
            if number and number % 6 == 0 and anchors[1:] and anchors[1] > t:
                anchors.pop(0)
                t = anchors[0] + timedelta(seconds=self.pick([-60, -2, -0.5, 0, 0, 0]))
            elif number:
                t += timedelta(seconds=self.pick(DELTAS))
            times.append(t)
        return times

    def lines(self, config: Json, codes: list[str], times: list[datetime]) -> list[Json]:
        points = [point["name"] for point in config["point"]]
        favourite = self.code(codes)
        lines: list[Json] = []
        for t in times:
            early = timedelta(seconds=self.pick([1, 60, 7200])) if self.chance(20) else timedelta()
            line: Json = {"at": self.text(t - early), "point": self.pick(["in", "in", *points])}
            if self.chance(5):
                line["passage"] = self.pick(["taken", "taken", "taken", "not_taken"])
            else:
                line["code"] = favourite if not self.chance(3) else self.code(codes)
            lines.append(line)
        return lines


def make(choose: Callable[[list[Any]], Any], most_lines: int) -> World:
    maker = Maker(choose)
    records = maker.records()
    config = maker.config()
    times = maker.times(choose(list(range(1, most_lines + 1))))
    base = choose(times)
    records += [maker.usage(n, records, base) for n in range(choose([0, 0, 1, 2, 4]))]
    codes = [record["code"] for record in records if record["kind"] == "credential" and "code" in record]
    return World(records, config, maker.lines(config, codes, times))


@st.composite
def worlds(draw: st.DrawFn, most_lines: int = 20) -> World:
    """A small feed, a configuration and the scans and passages of a few clusters of minutes."""
    return make(lambda values: draw(st.sampled_from(values)), most_lines)


def world_of(seed: int, most_lines: int = 20) -> World:
    """The world of that number: spread more evenly than hypothesis draws them, and many times faster.
    ``smallest`` does for these what shrinking does for the others."""
    return make(Random(seed).choice, most_lines)


def smallest(world: World, fails: Callable[[World], bool]) -> World:
    """Takes away lines, records, fields, rules and points for as long as the world still fails."""
    found = world
    shrunk = True
    while shrunk:
        shrunk = False
        for smaller in without_one(found):
            try:
                still = fails(smaller)
            except (KeyError, IndexError, ValueError, StopIteration):
                continue  # what is left is no valid world any more
            if still:
                found, shrunk = smaller, True
                break
    return found


def without_one(world: World) -> Iterator[World]:
    """Every world that has one line, point, record, field, rule or field of a rule less."""
    for n in range(len(world.lines)):
        yield world._replace(lines=world.lines[:n] + world.lines[n + 1 :])
    for n, record in enumerate(world.records):
        yield world._replace(records=world.records[:n] + world.records[n + 1 :])
        for smaller in without_field(
            record, keep=("kind", "id", "code", "at", "to", "gateway", "epoch", "seq")
        ):
            yield world._replace(records=[*world.records[:n], smaller, *world.records[n + 1 :]])
    for n in range(len(world.config["point"])):
        points = world.config["point"]
        if not any(line["point"] == points[n]["name"] for line in world.lines):
            yield world._replace(config={**world.config, "point": points[:n] + points[n + 1 :]})
        for smaller in without_field(points[n], keep=("name", "lane", "from", "to")):
            yield world._replace(config={**world.config, "point": [*points[:n], smaller, *points[n + 1 :]]})


def without_field(record: Json, keep: tuple[str, ...]) -> Iterator[Json]:
    for key in record:
        if key not in keep and key != "rules":
            yield {k: v for k, v in record.items() if k != key}
    for n, rule in enumerate(record.get("rules", [])):
        smaller = copy.deepcopy(record)
        del smaller["rules"][n]
        yield smaller
        for key in rule:
            smaller = copy.deepcopy(record)
            del smaller["rules"][n][key]
            yield smaller
