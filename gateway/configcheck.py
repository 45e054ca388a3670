"""Checks the tables of a configuration: each by its keys, then what they say of one another.

A value that is wrong is left out of its row, with its fault, and the checks go on with the rest: so
that all that is wrong is told at once, and nothing twice.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from gateway.configkeys import (
    CENTRAL,
    GATEWAY,
    INPUT,
    LANE,
    LANE_PASSAGE,
    POINT,
    READER,
    READER_COMMON,
    RELAY,
    WEB,
    Key,
    Wrong,
    join,
    one_of,
    shown,
    whatever_the_driver,
)
from gateway.messages import LANGUAGES, MESSAGE_KEYS, language_of, placeholder_fault

Row = dict[str, Any]
"""The values of one table that are right, by field name."""
Rows = list[tuple[str, Row]]
"""The rows of one kind, each with where it stands (``lane[0]``)."""

SOCKETS = ("admin_socket", "sync_socket")


def _meant(name: str, known: Iterable[str]) -> str | None:
    return next(iter(get_close_matches(name[:64], list(known), 1)), None)


class Checker:
    """Collects the faults of one configuration, as (key, message), while its tables are read."""

    def __init__(self, replay: bool) -> None:
        self.replay = replay
        self.faults: list[tuple[str, str]] = []

    def fault(self, key: str, what: str, remedy: str) -> None:
        self.faults.append((key, f"{what}; {remedy}"))

    # --- reading any table

    def unknown(self, where: str, name: str, known: Iterable[str]) -> None:
        known = list(known)
        meant = _meant(name, known)
        remedy = f"did you mean {meant}?" if meant else f"remove it; the keys here are: {', '.join(known)}"
        self.fault(join(where, name), "is an unknown key", remedy)

    def table(self, where: str, value: object, keys: Mapping[str, Key], driver: str | None = None) -> Row:
        """Reads one table by its keys. With ``driver`` the faults say which driver needs what is missing."""
        if not isinstance(value, dict):
            self.fault(where, f"is {shown(value)}, and must be a table", f"write [{where}] above its keys")
            return {}
        right: Row = {}
        for name, given in value.items():
            if (key := keys.get(name)) is None:
                self.unknown(where, name, keys)
                continue
            try:
                right[key.field or name] = key.read(given)
            except Wrong as wrong:
                remedy = wrong.remedy or f"write it as in: {name} = {key.example}"
                self.fault(join(where, name), wrong.what, remedy)
        for name, key in keys.items():
            if key.required and name not in value:
                by = f', and the driver "{driver}" needs it' if driver and name not in READER_COMMON else ""
                self.fault(join(where, name), f"is missing{by}", f"add it, as in: {name} = {key.example}")
        return right

    def driven(self, where: str, value: object, drivers: Mapping[str, Mapping[str, Key]]) -> Row:
        """Reads a table whose keys depend on its ``driver``."""
        if not isinstance(value, dict):
            remedy = f'write a table, as in: {{ driver = "..." }}, the driver being {one_of(drivers)}'
            self.fault(where, f"is {shown(value)}, and must be a table", remedy)
            return {}
        driver = value.get("driver")
        rest = {name: given for name, given in value.items() if name != "driver"}
        if not isinstance(driver, str) or driver not in drivers:
            self.no_driver(join(where, "driver"), driver, drivers)
            return self.table(where, rest, whatever_the_driver(drivers))
        for name in [name for name in rest if name not in drivers[driver]]:
            if others := [other for other, keys in drivers.items() if name in keys]:
                what = f'is for {one_of(others)}, and "{driver}" has no use for it'
                self.fault(join(where, name), what, "remove it, or change the driver")
                del rest[name]
        return {"driver": driver, **self.table(where, rest, drivers[driver], driver)}

    def no_driver(self, key: str, driver: object, drivers: Iterable[str]) -> None:
        remedy = "use " + one_of(drivers)
        if driver is None:
            self.fault(key, "is missing", remedy)
        elif drivers is not READER and isinstance(driver, str) and driver in RELAY:
            self.fault(key, f'is "{driver}", which cannot read a contact', remedy)
        else:
            self.fault(key, f"is {shown(driver)}, which is no driver here", remedy)

    def rows(self, name: str, value: object, needs: str) -> list[tuple[str, dict[str, object]]]:
        """The tables of ``[[name]]``, as they are, each with where it stands."""
        if value is None:
            self.fault(name, "is missing", f"add a table [[{name}]], with {needs}")
            return []
        if not isinstance(value, list):
            what = f"is {shown(value)}, and must be a list of tables"
            self.fault(name, what, f"write [[{name}]], with two brackets")
            return []
        if not value:
            self.fault(name, "is empty", f"add a table [[{name}]], with {needs}")
        tables: list[tuple[str, dict[str, object]]] = []
        for number, item in enumerate(value):
            where = f"{name}[{number}]"
            if isinstance(item, dict):
                tables.append((where, item))
            else:
                what = f"is {shown(item)}, and must be a table"
                self.fault(where, what, f"write [[{name}]] above its keys")
        return tables

    def names(self, rows: Rows) -> dict[str, str]:
        """The names, each with where it stands first; a fault for each that stands there already."""
        names: dict[str, str] = {}
        for where, row in rows:
            name = row.get("name")
            if name in names:
                what = f"is {shown(name)}, and so is the name of {names[name]}"
                self.fault(f"{where}.name", what, "give each a name of its own")
            elif name is not None:
                names[name] = where
        return names

    def refers(self, key: str, name: str | None, kind: str, known: Mapping[str, str]) -> None:
        """``name`` must be a known one; where there is none at all, that is the fault, and told elsewhere."""
        if name is None or name in known or not known:
            return
        meant = _meant(name, known)
        remedy = f'did you mean "{meant}"?' if meant else f"the {kind}s are: {one_of(known)}"
        self.fault(key, f"is {shown(name)}, and there is no such {kind}", remedy)

    # --- the tables

    def gateway(self, value: object) -> Row:
        if value is None:
            self.fault("gateway", "is missing", 'add a table [gateway], with id = "north" and data_dir')
            return {}
        row = self.table("gateway", value, GATEWAY)
        if row.get("on_stale") == "deny" and isinstance(value, dict) and "max_snapshot_age_h" not in value:
            what = 'is "deny", which does nothing without an age'
            self.fault("gateway.on_stale", what, "add one, as in: max_snapshot_age_h = 72")
        if "data_dir" in row and not self.replay:
            self.gateway_paths(row)
        return row

    def gateway_paths(self, row: Row) -> None:
        data_dir = row["data_dir"]
        if not os.path.isabs(data_dir):
            what = f"is {shown(data_dir)}, which is no absolute path"
            self.fault("gateway.data_dir", what, "write the whole path, from / on")
            return
        paths = {name: row.get(name, f"{data_dir}/{name.removesuffix('_socket')}.sock") for name in SOCKETS}
        # sun_path holds 108 bytes with the closing zero (unix(7)).
        too_long = [name for name, path in paths.items() if len(os.fsencode(path)) > 107]
        for key in dict.fromkeys(name if name in row else "data_dir" for name in too_long):
            what = "is too long for the path of a socket"
            self.fault(f"gateway.{key}", what, "use a shorter path: with the socket's name 107 bytes")
        if os.path.normpath(paths["admin_socket"]) == os.path.normpath(paths["sync_socket"]):
            what = "is the sync_socket as well, and what a client may do comes from which one it uses"
            self.fault("gateway.admin_socket", what, "give each socket a path of its own")

    def central(self, value: object) -> Row:
        row = self.table("central", value, CENTRAL)
        if "client_key" in row and isinstance(value, dict) and "client_cert" not in value:
            what = "stands without the certificate that it is the key of"
            self.fault("central.client_key", what, 'add it, as in: client_cert = "/etc/gateway/client.pem"')
        return row

    def web(self, value: object) -> Row:
        return self.table("web", value, WEB)

    def lanes(self, value: object) -> Rows:
        rows = []
        for where, table in self.rows("lane", value, "name and relay"):
            row = self.table(where, table, LANE)
            for name, drivers in (("relay", RELAY), ("passage", LANE_PASSAGE), ("emergency", INPUT)):
                if name in row:
                    row[name] = self.driven(f"{where}.{name}", row[name], drivers)
            relay = row.get("relay", {})
            if relay.get("driver") == "usbrelay" and "device" in relay and "board" in relay:
                what = "stands beside device, and each of them names the board"
                self.fault(f"{where}.relay.board", what, "keep one of the two")
            if "timeout" in row.get("passage", {}):
                row["timeout"] = row["passage"].pop("timeout")
            rows.append((where, row))
        return rows

    def points(self, value: object, lanes: Mapping[str, str]) -> Rows:
        rows = []
        for where, table in self.rows("point", value, "name, lane, from and to"):
            row = self.table(where, table, POINT)
            rows.append((where, row))
            if "passage" in row:
                row["passage"] = self.driven(f"{where}.passage", row["passage"], INPUT)
            if "from_" in row and row["from_"] == row.get("to"):
                what = f"is {shown(row['to'])}, and so is from"
                self.fault(f"{where}.to", what, "name the area that the point leads into")
            self.refers(f"{where}.lane", row.get("lane"), "lane", lanes)
        self.sides(rows, lanes)
        return rows

    def sides(self, points: Rows, lanes: Mapping[str, str]) -> None:
        """A lane has one or two sides."""
        for lane, lane_at in lanes.items():
            mine = [(where, row) for where, row in points if row.get("lane") == lane]
            if not self.replay and not mine and points and all(row.get("lane") in lanes for _, row in points):
                remedy = f"add a table [[point]] with lane = {shown(lane)}, or remove the lane"
                self.fault(f"{lane_at}.name", f"is {shown(lane)}, a lane that has no point", remedy)
            for where, _ in mine[2:]:
                what = f"is {shown(lane)}, which has two points already, and a lane has two sides"
                self.fault(f"{where}.lane", what, "give the point a lane of its own, or remove it")

    def readers(self, value: object, points: Mapping[str, str]) -> Rows:
        if value is None and self.replay:
            return []
        rows = []
        for where, table in self.rows("reader", value, "name, point, driver and device"):
            row = self.driven(where, table, READER)
            if row.get("driver") == "stdin":
                row.setdefault("device", "-")
            self.refers(f"{where}.point", row.get("point"), "point", points)
            rows.append((where, row))
        return rows

    def messages(self, value: object) -> dict[str, dict[str, str]]:
        own: dict[str, dict[str, str]] = {}
        if not isinstance(value, dict):
            what = f"is {shown(value)}, and must hold a table for each language"
            self.fault("messages", what, "write [messages.de] above the texts")
            return own
        for tag, texts in value.items():
            where = join("messages", tag)
            language = language_of(tag)
            if language is None:
                self.fault(where, "is no language that has texts", "use " + one_of(LANGUAGES))
            elif language in own:
                self.fault(where, f'is "{language}" once more', "put the texts into one table")
            elif not isinstance(texts, dict):
                what = f"is {shown(texts)}, and must be a table"
                self.fault(where, what, f"write [{where}] above the texts")
            else:
                own[language] = self.texts(where, texts)
        return own

    def texts(self, where: str, texts: dict[str, object]) -> dict[str, str]:
        right: dict[str, str] = {}
        for name, text in texts.items():
            key = join(where, name)
            if name not in MESSAGE_KEYS:
                self.unknown(where, name, MESSAGE_KEYS)
            elif not isinstance(text, str) or not text.strip():
                self.fault(
                    key, f"is {shown(text)}, and must be a text", 'write what is to be said in "quotes"'
                )
            elif wrong := placeholder_fault(name, text):
                self.faults.append((key, wrong))
            else:
                right[name] = text
        return right

    # --- what is used twice

    def contacts(self, lanes: Rows, points: Rows) -> None:
        """No line of a GPIO chip has two tasks. Lanes may share one emergency contact."""
        uses = [
            (f"{where}.{name}", row[name])
            for where, row in lanes + points
            for name in ("relay", "passage", "emergency")
            if row.get(name, {}).get("driver") == "gpio" and {"chip", "line"} <= row[name].keys()
        ]
        seen: dict[tuple[str, int | str], tuple[str, Row]] = {}
        for where, row in uses:
            chip = row["chip"].removeprefix("/dev/")
            first_at, first = seen.setdefault((chip, row["line"]), (where, row))
            if where == first_at:
                continue
            if not (where.endswith(".emergency") and first_at.endswith(".emergency")):
                what = f"is {shown(row['line'])} on {chip}, which {first_at} uses already"
                self.fault(f"{where}.line", what, "wire each to a line of its own")
            elif row != first:
                what = f"is the contact of {first_at} with other settings"
                self.fault(where, what, "write the same in both places")

    def channels(self, lanes: Rows) -> None:
        """No relay opens two lanes."""
        seen: dict[tuple[object, ...], str] = {}
        for where, lane in lanes:
            relay = lane.get("relay", {})
            driver = relay.get("driver")
            if driver not in ("usbrelay", "serial", "modbus"):
                continue
            board = relay.get("board") if driver == "usbrelay" else None
            address = relay.get("address", 1) if driver == "modbus" else None
            channel = relay.get("channel", 1)
            first_at = seen.setdefault((driver, relay.get("device"), board, address, channel), where)
            if first_at != where:
                what = f"is {channel}, and that relay opens {first_at} already"
                self.fault(f"{where}.relay.channel", what, "give each lane a relay of its own")

    def devices(self, lanes: Rows, readers: Rows) -> None:
        """A reader has its device to itself; lanes share one where they agree on what it is."""
        owners: dict[str, tuple[str, Row]] = {}
        relays = [(f"{where}.relay", row.get("relay", {})) for where, row in lanes]
        for where, row in relays + readers:
            if "device" not in row or "driver" not in row:
                continue
            first_at, first = owners.setdefault(os.path.normpath(row["device"]), (where, row))
            if where == first_at:
                continue
            if not where.endswith(".relay"):
                what = f"is {shown(row['device'])}, which {first_at} uses already"
                self.fault(f"{where}.device", what, "give each reader a device of its own")
                continue
            # On a Modbus line there may be several boards, told apart by their address.
            same = ("driver", "baudrate") if row["driver"] == "modbus" else ("driver", "baudrate", "board")
            for key in same:
                if row.get(key, 9600) != first.get(key, 9600):
                    what = f"is not that of {first_at}, and both use {row['device']}"
                    self.fault(f"{where}.{key}", what, "write the same in both places")
                    break
