"""What is asked, in which order, and what comes of it. Pure: who asks and who looks is elsewhere.

``dialogue`` is a generator: it yields questions and is sent their answers, in the type that each question
names; it returns the plan. A terminal and a file of answers drive the same generator, so that both ask
the same things. ``Given`` is how a file answers at once what a person at the gate finds out by scanning or
by clicking a relay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.configkeys import CENTRAL, GATEWAY, POINT, Key, Wrong
from gateway.setup.setupcode import LAYOUTS

Table = dict[str, Any]
"""A table of the configuration, as TOML has it."""

MAKES: Final = {
    "lcus": ("serial", "LCUS and its many copies (blue relays, CH340), without an answer"),
    "lcus_feedback": ("serial", "LCUS with the firmware that answers"),
    "kmtronic": ("serial", "KMTronic"),
    "numato": ("serial", "Numato"),
    "waveshare": ("modbus", "Waveshare, Modbus RTU"),
    "lctech": ("modbus", "LCTech, Modbus RTU"),
    "laskakit": ("modbus", "LaskaKit, Modbus RTU"),
    "plain": ("modbus", "any other Modbus RTU board with coils"),
}
"""Makes of boards behind a serial port, which cannot be told apart by asking them, with their driver."""


# --- questions ----------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Text:
    """A line of text. Answer: what ``read`` gives; it raises Wrong."""

    key: str
    prompt: str
    default: str | None = None
    read: Callable[[object], object] = str
    secret: bool = False
    """Is not shown while it is typed."""


@dataclass(slots=True, frozen=True)
class Yes:
    """Yes or no. Answer: bool. ``default`` None: Enter alone is no on a terminal, and a file must say it."""

    key: str
    prompt: str
    default: bool | None = None


@dataclass(slots=True, frozen=True)
class Choice:
    """One of some lines. Answer: its place, from 0."""

    key: str
    prompt: str
    options: tuple[str, ...]
    default: int = 0


@dataclass(slots=True, frozen=True)
class Given:
    """Does a file of answers say this? Answer: its value, or None on a terminal."""

    key: str
    what: str
    """What it must be, for who left it out."""


@dataclass(slots=True, frozen=True)
class ScanFor:
    """A code is to be scanned. Answer: (place in ``scanners``, Learned), or None where nothing came."""

    key: str
    prompt: str
    scanners: tuple[Scanner, ...]


@dataclass(slots=True, frozen=True)
class Click:
    """A relay is to be pulsed once. Answer: "", or why that went wrong."""

    key: str
    relay: Table


@dataclass(slots=True, frozen=True)
class Say:
    """Something to tell. Answer: nothing."""

    text: str
    key: str = ""


Question = Text | Yes | Choice | Given | ScanFor | Click | Say
Dialogue = Generator[Question, Any, Any]


# --- what is known ------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Scanner:
    """A scanner that was found."""

    driver: str
    device: str
    """The path to configure."""
    description: str
    node: str
    """The real path, which tells whether two names are one device."""


@dataclass(slots=True, frozen=True)
class Relay:
    """A relay that was found, or a port that a board may hang on (``relay`` has no driver yet)."""

    name: str
    relay: Table
    node: str


@dataclass(slots=True, frozen=True)
class Known:
    """What is known before the first question."""

    scanners: tuple[Scanner, ...] = ()
    relays: tuple[Relay, ...] = ()
    chips: tuple[tuple[str, int], ...] = ()
    """Label and number of lines of each GPIO chip."""
    id: str = "gate"
    """A good default."""
    data_dir: str = "/var/lib/gateway"
    before: Table = field(default_factory=dict)
    """The configuration that is replaced; empty where there is none, or none that can be read."""


@dataclass(slots=True)
class Plan:
    """What the answers come to."""

    gateway: Table
    lanes: list[Table]
    points: list[Table]
    readers: list[Table]
    central: Table = field(default_factory=dict)
    kept: Table = field(default_factory=dict)
    """Tables of the configuration before that setup does not ask for."""
    code: str = ""
    """The one-time code of the central's operator; is written nowhere."""


# --- the dialogue -------------------------------------------------------------------------------------


def dialogue(known: Known) -> Generator[Question, Any, Plan]:
    """Asks for everything that the configuration needs and cannot be found out."""
    old_gateway = known.before.get("gateway", {})
    old_central = known.before.get("central", {})
    id_ = yield Text(
        "id",
        "Name of this gateway (no other gateway of the venue may have it)",
        str(old_gateway.get("id", known.id)),
        _reader(GATEWAY["id"]),
    )
    count = yield Text("lanes", "How many turnstiles (lanes) does it open", "1", _whole(1, 32))
    plan = Plan({**old_gateway, "id": id_, "data_dir": known.data_dir}, [], [], [])
    plan.kept = {name: known.before[name] for name in ("web", "messages") if name in known.before}
    scanners, relays = list(known.scanners), list(known.relays)
    area = "hall"
    for number in range(count):
        area = yield from _lane(plan, number, count, area, scanners, relays, known)
    url = yield Text(
        "central.url",
        "Address of the central, as https://central.example; none: works on imported files",
        str(old_central.get("url", "")) or "none",
        _url,
    )
    if url:
        plan.central = {**old_central, "url": url}
        ca_file = yield Text(
            "central.ca_file",
            "File with the CA of its certificate, if that is your own; none: the system's",
            str(old_central.get("ca_file", "")) or "none",
            _ca_file,
        )
        plan.central.pop("ca_file", None)
        if ca_file:
            plan.central["ca_file"] = ca_file
        plan.code = yield Text(
            "central.code",
            "One-time code of the central's operator (is not shown); none: join later",
            "none",
            _none,
            secret=True,
        )
    return plan


def _lane(
    plan: Plan, number: int, count: int, area: str, scanners: list[Scanner], relays: list[Relay], known: Known
) -> Generator[Question, Any, str]:
    """One turnstile with its sides, scanners, relay and sensor. Returns the area that it leads into."""
    key = f"lane[{number}]"
    default = plan.gateway["id"] if count == 1 else f"lane-{number + 1}"
    taken = {lane["name"] for lane in plan.lanes}
    name = yield Text(f"{key}.name", f"Name of lane {number + 1}", default, _fresh(POINT["name"], taken))
    area = yield Text(
        f"{key}.area", f"Name of the area that lane {name} leads into, as the cards name it", area, _area
    )
    # A venue's ways out often have no scanner: only what is there is worth asking for.
    two_ways = yield Yes(f"{key}.exit", f"Has lane {name} a scanner for the way out too", len(scanners) > 1)
    sides = [("in", "outside", area)] + ([("out", area, "outside")] if two_ways else [])
    for side, from_, to in sides:
        taken = {point["name"] for point in plan.points}
        point = yield Text(
            f"{key}.{side}.point",
            f"Name of the way {side} of lane {name}",
            f"{name}-{side}",
            _fresh(POINT["name"], taken),
        )
        plan.points.append({"name": point, "lane": name, "from": from_, "to": to})
        reader = yield from _scanner(f"{key}.{side}", f"the way {side} of lane {name}", scanners)
        plan.readers.append({"name": f"{point}-scanner", "point": point, **reader})
    free = {scanner.node for scanner in scanners}
    used = {scanner.node for scanner in known.scanners} - free
    relays[:] = [relay for relay in relays if relay.node not in used]
    relay = yield from _relay(f"{key}.relay", name, relays, known, plan)
    lane: Table = {"name": name, "relay": relay}
    sensor = yield from _sensor(f"{key}.passage", name, known, relay)
    if sensor:
        lane["passage"] = sensor
    plan.lanes.append(lane)
    return str(area)


# --- scanners -----------------------------------------------------------------------------------------


def _scanner(key: str, where: str, scanners: list[Scanner]) -> Generator[Question, Any, Table]:
    """Which scanner that is, as keys of its reader. One that is taken is no candidate any more."""
    given = yield Given(
        f"{key}.scanner", 'the device of a scanner as gateway devices shows it, or a table { driver = "..." }'
    )
    if given is not None:
        return (yield from _given_scanner(f"{key}.scanner", given, scanners))
    while True:
        found = yield ScanFor(
            f"{key}.scanner",
            f"Scan the set-up code at {where} now (any other code will do, but tells less)",
            tuple(scanners),
        )
        if found is not None:
            place, learned = found
            scanner = scanners[place]
            yield Say(f"That was {scanner.description}, {scanner.device}.")
            for note in learned.notes:
                yield Say(f"  Note: {note}.")
            settings = dict(learned.settings)
            if not learned.layout_known:
                layout = yield from _layout(f"{key}.layout")
                if layout is None:
                    continue
                settings["layout"] = layout
            scanners.pop(place)
            return {"driver": scanner.driver, "device": scanner.device, **settings}
        names = tuple(f"{scanner.description}, {scanner.device}" for scanner in scanners)
        chosen = yield Choice(
            f"{key}.which",
            "Nothing was scanned. What now",
            ("try again", *names, "no scanner yet: standard input"),
        )
        if chosen == len(names) + 1:
            return {"driver": "stdin"}
        if chosen:
            scanner = scanners[chosen - 1]
            reader: Table = {"driver": scanner.driver, "device": scanner.device}
            if scanner.driver == "keyboard":
                layout = yield from _layout(f"{key}.layout")
                if layout is None:
                    continue
                reader["layout"] = layout
            scanners.pop(chosen - 1)
            return reader


def _layout(key: str) -> Generator[Question, Any, str | None]:
    """The layout that a keyboard scanner types, where the set-up code has not told it."""
    chosen = yield Choice(
        key,
        "It plays keyboard and this was not the set-up code. Which layout is it set to",
        ("scan the set-up code (gateway setup --print-code)", *LAYOUTS),
    )
    return LAYOUTS[chosen - 1] if chosen else None


def _given_scanner(key: str, given: object, scanners: list[Scanner]) -> Generator[Question, Any, Table]:
    if isinstance(given, dict):
        for place, scanner in enumerate(scanners):
            if scanner.device == given.get("device"):
                scanners.pop(place)
                break
        return dict(given)
    for place, scanner in enumerate(scanners):
        if scanner.device == given:
            scanners.pop(place)
            reader: Table = {"driver": scanner.driver, "device": scanner.device}
            if scanner.driver == "keyboard":
                reader["layout"] = yield Text(
                    f"{key.removesuffix('scanner')}layout", "Its layout", "us", _one_of(LAYOUTS)
                )
            return reader
    there = ", ".join(scanner.device for scanner in scanners) or "none"
    raise Wrong(
        f"{key}: is no scanner that is free here; there are: {there}",
        'give one of them, or, for one that is not there, { driver = "serial", device = "/dev/..." }',
    )


# --- relays -------------------------------------------------------------------------------------------


def _relay(
    key: str, lane: str, relays: list[Relay], known: Known, plan: Plan
) -> Generator[Question, Any, Table]:
    """Which relay opens that lane; on a terminal found by clicking."""
    given = yield Given(
        key, 'the table of the relay, as { driver = "gpio", chip = "pinctrl-rp1", line = 17 }'
    )
    if given is not None:
        return dict(given) if isinstance(given, dict) else given  # what is wrong with it, the loader says
    untried = 0
    while True:
        options = [relay.name for relay in relays]
        chips = [f"a GPIO line of {label} ({lines} lines)" for label, lines in known.chips]
        chosen = yield Choice(
            f"{key}.which",
            f"Which relay opens lane {lane}",
            (*options, *chips, "none yet: nothing opens"),
            min(untried, len(options) + len(chips)),
        )
        if chosen == len(options) + len(chips):
            return {"driver": "memory"}
        if chosen < len(relays):
            relay = yield from _complete(key, relays[chosen])
        else:
            label, lines = known.chips[chosen - len(options)]
            line = yield Text(f"{key}.line", f"Number of the line of {label}", "17", _whole(0, lines - 1))
            low = yield Yes(f"{key}.active_low", "Is the relay on while the line is low", False)
            relay = {"driver": "gpio", "chip": label, "line": line, **({"active_low": True} if low else {})}
        if any(_same(relay, other["relay"]) for other in plan.lanes):
            yield Say("That relay opens another lane already.")
        elif (yield from _clicked(key, lane, relay)):
            return relay
        else:
            untried = chosen + 1


def _complete(key: str, relay: Relay) -> Generator[Question, Any, Table]:
    """A port says nothing of what hangs on it: ask for the make, the channel and the address."""
    if "driver" in relay.relay:
        return dict(relay.relay)
    makes = tuple(MAKES)
    chosen = yield Choice(
        f"{key}.make", "Which board is that", tuple(f"{make}: {MAKES[make][1]}" for make in makes)
    )
    make = makes[chosen]
    driver = MAKES[make][0]
    table = {"driver": driver, "board": make, **relay.relay}
    if driver == "modbus":
        table["address"] = yield Text(
            f"{key}.address", "Its address", "255" if make == "lctech" else "1", _whole(1, 255)
        )
    table["channel"] = yield Text(f"{key}.channel", "Which of its relays, from 1", "1", _whole(1, 64))
    return table


def _clicked(key: str, lane: str, relay: Table) -> Generator[Question, Any, bool]:
    """Whether this relay is the one."""
    while True:
        sure = yield Yes(
            f"{key}.click",
            f"It is going to click once, which opens a turnstile: is nobody standing in lane {lane}, or any "
            "other, and shall it",
        )
        if not sure:
            return bool((yield Yes(f"{key}.unseen", "Take it without a click", False)))
        fault = yield Click(key, relay)
        if fault:
            yield Say(f"It does not click: {fault}.")
            if (yield Yes(f"{key}.again", "Try once more", False)):
                continue
            return bool((yield Yes(f"{key}.silent", "Take it all the same", False)))
        answer = yield Choice(
            f"{key}.opened", f"Did lane {lane} open", ("yes", "no, another or none did", "click again")
        )
        if answer < 2:
            return bool(answer == 0)


def _same(one: object, other: object) -> bool:
    """Whether both tables name the same contact of the same board."""
    if not isinstance(one, dict) or not isinstance(other, dict) or one.get("driver") == "memory":
        return False
    keys = ("driver", "chip", "line", "device", "board", "address", "channel")
    return all(one.get(key) == other.get(key) for key in keys)


# --- sensors ------------------------------------------------------------------------------------------


def _sensor(key: str, lane: str, known: Known, relay: Table) -> Generator[Question, Any, Table | None]:
    """The contact that tells that somebody went through: it hangs on a GPIO line, or there is none."""
    given = yield Given(key, 'the table of the passage contact, or "none"')
    if given is not None:
        if isinstance(given, dict):
            return dict(given)
        return None if given == "none" else given  # what is wrong with it, the loader says
    if not known.chips:
        return None
    labels = [label for label, _ in known.chips]
    chosen = yield Choice(
        f"{key}.chip",
        f"Is a contact wired here that tells when somebody went through lane {lane}",
        ("no", *(f"yes, to a line of {label}" for label in labels)),
    )
    if not chosen:
        return None
    label, lines = known.chips[chosen - 1]
    line = yield Text(f"{key}.line", f"Number of the line of {label}", "22", _whole(0, lines - 1))
    if isinstance(relay, dict) and (relay.get("chip"), relay.get("line")) == (label, line):
        yield Say("That line is the relay's. No passage contact was taken; put it into the file by hand.")
        return None
    closes = yield Yes(f"{key}.closes", "Does it close to ground when somebody passes (no: it opens)", True)
    return {"driver": "gpio", "chip": label, "line": line, "active_low": bool(closes), "bias": "pull_up"}


# --- reading answers ----------------------------------------------------------------------------------


def _reader(key: Key) -> Callable[[object], object]:
    """As the configuration reads it, with an example in the message."""

    def read(value: object) -> object:
        try:
            return key.read(value)
        except Wrong as wrong:
            raise Wrong(wrong.what, wrong.remedy or f"write it as in: {key.example}") from None

    return read


def _fresh(key: Key, taken: set[str]) -> Callable[[object], object]:
    read = _reader(key)

    def fresh(value: object) -> object:
        name = read(value)
        if name in taken:
            raise Wrong(f'is "{name}", which is another one\'s', "give it a name of its own")
        return name

    return fresh


def _area(value: object) -> object:
    name = _reader(POINT["to"])(value)
    if name == "outside":
        raise Wrong('is "outside", which is the street', "name the area behind the turnstile")
    return name


def _whole(low: int, high: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        text = str(value)
        if isinstance(value, bool) or not re.fullmatch(r"\d{1,6}", text) or not low <= int(text) <= high:
            raise Wrong(f"is {text[:40]!r}", f"give a whole number from {low} to {high}")
        return int(text)

    return read


def _one_of(names: tuple[str, ...]) -> Callable[[object], object]:
    def read(value: object) -> object:
        if value not in names:
            raise Wrong(f"is {str(value)[:40]!r}", f"give one of {', '.join(names)}")
        return value

    return read


def _none(value: object) -> str:
    return "" if value == "none" else str(value).strip()


def _url(value: object) -> object:
    return _reader(CENTRAL["url"])(value) if value != "none" else ""


def _ca_file(value: object) -> object:
    return _reader(CENTRAL["ca_file"])(value) if value != "none" else ""
