"""The keys of the configuration as data: what is accepted, and how each value is read.

What the loader accepts, asks for and suggests, and what the reference (docs/configuration.md) must
describe, is this one list. Each ``read`` takes a value as tomllib gives it and gives the value of the
field (durations in microseconds), or raises ``Wrong``.
"""

from __future__ import annotations

import json
import os.path
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import get_args
from urllib.parse import urlsplit

from gateway import config
from gateway.messages import MESSAGE_KEYS
from gateway.model import MINUTE, SECOND, AntiPassback

# --- values ---------------------------------------------------------------------------------------


class Wrong(Exception):
    """What is wrong with one value and, where the key's example is not the answer, the remedy."""

    def __init__(self, what: str, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


def _quoted(text: str) -> str:
    """In quotes, and what a terminal would not print or would obey is escaped."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def shown(value: object) -> str:
    """A value as it is written in TOML, cut short."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value if len(value) <= 40 else value[:40] + "...")
    if isinstance(value, int) and abs(value) >= 10**18:  # str() refuses thousands of digits
        return "a very large number"
    if isinstance(value, int | float):
        return str(value)
    return "a date or time"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Wrong(f'is {shown(value)}, and must be a text in "quotes"')
    if not value or value != value.strip() or not value.isprintable():
        raise Wrong(f"is {shown(value)}, and must be a text without control characters or outer spaces")
    return value


def _name(value: object) -> str:
    text = _text(value)
    if len(text) > 64:
        raise Wrong(f"has {len(text)} characters", "use at most 64")
    return text


def _id(value: object) -> str:
    text = _name(value)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
        raise Wrong(f"is {shown(text)}", "use the letters A to Z, digits, - and _ alone")
    return text


def _path(value: object) -> str:
    text = _text(value)
    if not os.path.isabs(text):
        raise Wrong(f"is {shown(text)}, which is no absolute path", "write the whole path, from / on")
    return text


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise Wrong(f"is {shown(value)}", "write true or false, without quotes")
    return value


def _integer(low: int, high: int, unit: int = 1, why_not_more: str = "") -> Callable[[object], int]:
    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise Wrong(f"is {shown(value)}, and must be a whole number", f"give {low} to {high}")
        if not low <= value <= high:
            why = f": {why_not_more}" if why_not_more and value > high else ""
            raise Wrong(f"is {shown(value)}, which is out of range{why}", f"give {low} to {high}")
        return value * unit

    return read


def _number(low: float, high: float) -> Callable[[object], float]:
    def read(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise Wrong(f"is {shown(value)}, and must be a number", f"give {low:g} to {high:g}")
        if not low <= value <= high:  # also false for nan
            raise Wrong(f"is {shown(value)}, which is out of range", f"give {low:g} to {high:g}")
        return float(value)

    return read


def _duration(low: float, high: float, unit: int) -> Callable[[object], int]:
    number = _number(low, high)
    return lambda value: round(number(value) * unit)


def _choice(*allowed: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise Wrong(f"is {shown(value)}", "use " + one_of(allowed))
        return value

    return read


def _baudrate(value: object) -> int:
    rates = (1200, 2400, 4800, 9600, 19200, 38400, 57600, 115200, 230400, 460800, 921600)
    if not isinstance(value, int) or value not in rates:
        raise Wrong(f"is {shown(value)}", "use one of " + ", ".join(map(str, rates)))
    return value


def _gpio_line(value: object) -> int | str:
    if isinstance(value, str):
        return _name(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 1023:
        raise Wrong(
            f"is {shown(value)}", 'give the line\'s number on the chip (0 to 1023) or its name, as "GPIO17"'
        )
    return value


def _board_id(value: object) -> str:
    text = _text(value)
    if len(text) != 5 or not text.isascii():
        raise Wrong(f"is {shown(text)}", "give the board's id of five characters; gateway devices shows it")
    return text


def _url(value: object) -> str:
    text = _text(value)
    try:
        parts = urlsplit(text)
        host = parts.hostname
        if parts.port == 0:
            host = None
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or " " in text:
        raise Wrong("is no web address")
    if parts.username is not None or parts.query or parts.fragment:
        # Not shown: it may hold a password.
        raise Wrong("has more than host, port and path", "leave out user, password, ? and #")
    if parts.scheme == "http" and host not in ("localhost", "127.0.0.1", "::1"):
        raise Wrong(
            f"would speak to {host} without encryption",
            "write https://; http:// is for localhost, 127.0.0.1 and [::1] alone",
        )
    return text.rstrip("/")


def _listen(value: object) -> str:
    text = _text(value)
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not bare or (":" in bare) != host.startswith("[") or not re.fullmatch(r"[A-Za-z0-9._:%-]+", bare):
        raise Wrong(f"is {shown(text)}, which is no host:port")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise Wrong(f"is {shown(text)}, which has no port", "end it with : and 1 to 65535")
    return text


def _as_it_is(value: object) -> object:
    """For tables, which are checked by their own keys."""
    return value


def one_of(names: Iterable[str]) -> str:
    """Names to choose from, in words."""
    quoted = [f'"{name}"' for name in names]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def join(where: str, name: str) -> str:
    """The path of a key: ``lane[0]`` and ``relay`` give ``lane[0].relay``."""
    bare = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted(name)
    return f"{where}.{bare}" if where else bare


# --- keys -----------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Key:
    """One key of a table."""

    read: Callable[[object], object]
    example: str
    """A right value, as written in TOML."""
    field: str = ""
    """The field of the dataclass, where it is not the key itself."""
    required: bool = False


_ADMIT_OR_DENY = _choice(*get_args(config.OnFailure))

GATEWAY = {
    "id": Key(_id, '"north"', required=True),
    "data_dir": Key(_text, '"/var/lib/gateway"', required=True),
    "max_snapshot_age_h": Key(_number(0.01, 8784), "72"),
    "on_stale": Key(_ADMIT_OR_DENY, '"admit"'),
    "on_ledger_failure": Key(_ADMIT_OR_DENY, '"admit"'),
    "commit_deadline_ms": Key(_integer(10, 5000), "150"),
    "retain_days": Key(_integer(1, 3650), "30"),
    "admin_socket": Key(_path, '"/run/gateway/admin.sock"'),
    "sync_socket": Key(_path, '"/run/gateway/sync.sock"'),
    "ledger_memory_events": Key(_integer(1, 1_000_000), "10000"),
    "unknown_codes_per_minute": Key(_integer(1, 100_000), "60"),
}

CENTRAL = {
    "url": Key(_url, '"https://central.example"', required=True),
    "state_dir": Key(_path, '"/var/lib/gateway-sync"'),
    "ca_file": Key(_path, '"/etc/gateway/ca.pem"'),
    "client_cert": Key(_path, '"/etc/gateway/client.pem"'),
    "client_key": Key(_path, '"/etc/gateway/client.key"'),
}

WEB = {"listen": Key(_listen, '"127.0.0.1:9480"')}

# hardware.md 4.6: a TiSO Speedblade or Jetpan takes a request held longer than 6.5 s as free mode.
_FREE_MODE = "some turnstiles take a contact held for longer than 6 s as free mode and admit everybody"

LANE = {
    "name": Key(_name, '"north"', required=True),
    "relay": Key(_as_it_is, '{ driver = "gpio", chip = "gpiochip0", line = 17 }', required=True),
    "pulse_ms": Key(_integer(50, 6000, unit=1000, why_not_more=_FREE_MODE), "300", "pulse"),
    "passage": Key(_as_it_is, '{ driver = "gpio", chip = "gpiochip0", line = 22, timeout_s = 5 }'),
    "second_grant": Key(_choice(*get_args(config.SecondGrant)), '"queue"'),
    "fail": Key(_choice(*get_args(config.FailMode)), '"secure"'),
    "emergency": Key(_as_it_is, '{ driver = "gpio", chip = "gpiochip0", line = 27 }'),
}

_CHIP = Key(_name, '"gpiochip0"', required=True)
_LINE = Key(_gpio_line, "17", required=True)
_ACTIVE_LOW = Key(_flag, "true")
_PORT = Key(_path, '"/dev/serial/by-path/..."', required=True)

RELAY: Mapping[str, Mapping[str, Key]] = {
    "gpio": {"chip": _CHIP, "line": _LINE, "active_low": _ACTIVE_LOW},
    "usbrelay": {
        "device": Key(_path, '"/dev/hidraw0"'),
        "board": Key(_board_id, '"BITFT"'),
        "channel": Key(_integer(1, 8), "1"),
    },
    "serial": {
        "device": _PORT,
        "board": Key(_choice(*get_args(config.SerialBoard)), '"lcus"', required=True),
        "channel": Key(_integer(1, 64), "1"),
        "baudrate": Key(_baudrate, "9600"),
    },
    "modbus": {
        "device": _PORT,
        "board": Key(_choice(*get_args(config.ModbusBoard)), '"waveshare"', required=True),
        "channel": Key(_integer(1, 64), "1"),
        # Beyond 247 is reserved in Modbus, and LCTech boards answer to 255 all the same.
        "address": Key(_integer(1, 255), "1"),
        "baudrate": Key(_baudrate, "9600"),
    },
    "memory": {},
}

INPUT: Mapping[str, Mapping[str, Key]] = {
    "gpio": {
        "chip": _CHIP,
        "line": _LINE,
        "active_low": _ACTIVE_LOW,
        "bias": Key(_choice(*get_args(config.Bias)), '"pull_up"'),
        "debounce_ms": Key(_integer(0, 1000), "10"),
    },
    "memory": {},
}

_TIMEOUT = {"timeout_s": Key(_duration(0.1, 120, SECOND), "5", "timeout")}
LANE_PASSAGE = {driver: {**keys, **_TIMEOUT} for driver, keys in INPUT.items()}

POINT = {
    "name": Key(_name, '"north-in"', required=True),
    "lane": Key(_name, '"north"', required=True),
    "from": Key(_text, '"outside"', "from_", required=True),
    "to": Key(_text, '"hall"', required=True),
    "anti_passback": Key(_choice(*AntiPassback), '"hard"'),
    "anti_passback_minutes": Key(_duration(0.1, 10_080, MINUTE), "10", "anti_passback_time"),
    "guest_window_s": Key(_duration(0, 3600, SECOND), "30", "guest_window"),
    "unknown_at_exit": Key(_choice("open", "deny"), '"open"'),
    "passage": Key(_as_it_is, '{ driver = "gpio", chip = "gpiochip0", line = 23 }'),
}

READER_COMMON = {
    "name": Key(_name, '"north-in-scanner"', required=True),
    "point": Key(_name, '"north-in"', required=True),
    "repeat_delay_s": Key(_duration(0, 60, SECOND), "1.5", "repeat_delay"),
}
_IDLE = Key(_integer(1, 5000, unit=1000), "50", "idle")
_STRIP_AIM = Key(_flag, "true")

READER: Mapping[str, Mapping[str, Key]] = {
    "serial": {
        **READER_COMMON,
        "device": Key(_path, '"/dev/serial/by-id/usb-..."', required=True),
        "baudrate": Key(_baudrate, "9600"),
        "framing": Key(_choice(*get_args(config.Framing)), '"suffix"'),
        "idle_ms": _IDLE,
        "strip_aim": _STRIP_AIM,
    },
    "keyboard": {
        **READER_COMMON,
        "device": Key(_path, '"/dev/input/by-id/usb-...-event-kbd"', required=True),
        "layout": Key(_choice(*get_args(config.Layout)), '"us"'),
        "idle_ms": _IDLE,
        "strip_aim": _STRIP_AIM,
    },
    "hidpos": {**READER_COMMON, "device": Key(_path, '"/dev/hidraw0"', required=True)},
    "stdin": {**READER_COMMON, "device": Key(_choice("-"), '"-"'), "strip_aim": _STRIP_AIM},
}


def whatever_the_driver(drivers: Mapping[str, Mapping[str, Key]]) -> dict[str, Key]:
    """The keys of a table whose driver is not known: checked as far as the drivers agree on them."""
    union: dict[str, Key] = {}
    for keys in drivers.values():
        for name, key in keys.items():
            agreed = union.get(name, key) == key
            needed = key.required and all(name in others for others in drivers.values())
            union[name] = replace(key if agreed else Key(_as_it_is, ""), required=needed)
    return union


def known_keys() -> dict[str, set[str]]:
    """Every key that is accepted, by table; what the reference must describe."""

    def of(drivers: Mapping[str, Mapping[str, Key]]) -> set[str]:
        return {"driver"}.union(*drivers.values())

    return {
        "gateway": set(GATEWAY),
        "central": set(CENTRAL),
        "web": set(WEB),
        "lane": set(LANE),
        "lane.relay": of(RELAY),
        "lane.passage": of(LANE_PASSAGE),
        "lane.emergency": of(INPUT),
        "point": set(POINT),
        "point.passage": of(INPUT),
        "reader": of(READER),
        "messages": set(MESSAGE_KEYS),
    }
