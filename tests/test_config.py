"""The configuration loader: what is right loads, what is wrong is told with key, line and remedy."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import config
from gateway.configkeys import known_keys
from gateway.configload import ConfigError, key_lines, load, loads
from gateway.messages import MESSAGE_KEYS
from gateway.model import MINUTE, SECOND, AntiPassback, Point

DESIGN = """
[gateway]
id = "north"
data_dir = "/var/lib/gateway"
# max_snapshot_age_h, on_stale = "admit" | "deny", on_ledger_failure = "admit" | "deny", commit_deadline_ms = 150, retain_days = 30

[central]
url = "https://central.example"        # leave the table out to run on imported files

[[lane]]
name = "north"
relay = { driver = "gpio", chip = "gpiochip0", line = 17 }    # gpio | usbrelay | serial | modbus | memory
pulse_ms = 300
passage = { driver = "gpio", chip = "gpiochip0", line = 22, timeout_s = 5 }   # gpio | memory; leave out: passages are assumed

[[point]]
name = "north-in"
lane = "north"
from = "outside"
to = "hall"
anti_passback = "hard"                 # off (default) | soft | hard | timed; anti_passback_minutes = 10
guest_window_s = 30
# unknown_at_exit = "open"             # open | deny

[[reader]]
name = "north-in-scanner"
point = "north-in"
driver = "serial"                      # serial | keyboard | hidpos
device = "/dev/serial/by-id/usb-…"
repeat_delay_s = 1.5
"""  # noqa: E501

SMALL = """\
[gateway]
id = "north"
data_dir = "/var/lib/gateway"

[[lane]]
name = "north"
relay = { driver = "memory" }

[[point]]
name = "north-in"
lane = "north"
from = "outside"
to = "hall"

[[reader]]
name = "scanner"
point = "north-in"
driver = "serial"
device = "/dev/ttyACM0"
"""


def edited(*changes, add=""):
    """SMALL with texts replaced, each of which must be there, and something added at the end."""
    text = SMALL
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return text + add


def faults(text, **options):
    with pytest.raises(ConfigError) as caught:
        loads(text, "gateway.toml", **options)
    return caught.value.faults


SECOND_LANE = '[[lane]]\nname = "south"\nrelay = { driver = "memory" }\n'
SECOND_POINT = '[[point]]\nname = "north-out"\nlane = "north"\nfrom = "hall"\nto = "outside"\n'
SOUTH_POINT = '[[point]]\nname = "south-in"\nlane = "south"\nfrom = "outside"\nto = "hall"\n'
RELAY = 'relay = { driver = "memory" }'
READER = 'driver = "serial"\ndevice = "/dev/ttyACM0"\n'
TO = 'to = "hall"\n'
ID = 'id = "north"\n'


def lane_with(line):
    return edited((RELAY, f"{RELAY}\n{line}"))


def relay_as(relay):
    return edited((RELAY, f"relay = {{ {relay} }}"))


def point_with(line):
    return edited((TO, f"{TO}{line}\n"))


def gateway_with(line):
    return edited((ID, f"{ID}{line}\n"))


def reader_as(lines):
    return edited((READER, lines))


def two_lanes(first, second, *, more=""):
    return edited(
        (RELAY, f"relay = {{ {first} }}"),
        add=SECOND_LANE.replace(RELAY, f"relay = {{ {second} }}") + more + SOUTH_POINT,
    )


def test_the_example_of_the_design():
    """The documented example loads as it is, and gives these values."""
    loaded = loads(DESIGN, "gateway.toml")
    assert loaded == config.Config(
        gateway=config.GatewayConfig(id="north", data_dir=Path("/var/lib/gateway")),
        central=config.CentralConfig("https://central.example"),
        lanes=(
            config.LaneConfig(
                name="north",
                relay=config.RelayConfig(driver="gpio", chip="gpiochip0", line=17),
                pulse=300_000,
                passage=config.InputConfig(driver="gpio", chip="gpiochip0", line=22),
                timeout=5 * SECOND,
            ),
        ),
        points=(
            config.PointConfig(
                Point(
                    name="north-in",
                    lane="north",
                    from_="outside",
                    to="hall",
                    anti_passback=AntiPassback.HARD,
                    guest_window=30 * SECOND,
                )
            ),
        ),
        readers=(
            config.ReaderConfig(
                name="north-in-scanner",
                point="north-in",
                driver="serial",
                device="/dev/serial/by-id/usb-…",
                repeat_delay=1_500_000,
            ),
        ),
    )


def test_defaults():
    """What is left out has the default of the dataclass."""
    loaded = loads(SMALL, "gateway.toml")
    assert loaded.central is None
    assert loaded.messages == {}
    assert loaded.gateway == config.GatewayConfig("north", Path("/var/lib/gateway"))
    assert loaded.lanes == (config.LaneConfig("north", config.RelayConfig("memory")),)
    assert loaded.points[0].point == Point("north-in", "north", "outside", "hall")
    assert loaded.readers == (config.ReaderConfig("scanner", "north-in", "serial", "/dev/ttyACM0"),)


def test_every_gateway_key():
    """Each key of [gateway] reaches its field."""
    lines = """
max_snapshot_age_h = 1.5
on_stale = "deny"
on_ledger_failure = "deny"
commit_deadline_ms = 10
retain_days = 1
admin_socket = "/run/a.sock"
sync_socket = "/run/s.sock"
ledger_memory_events = 5
unknown_codes_per_minute = 7"""
    gateway = loads(gateway_with(lines), "x").gateway
    assert gateway == config.GatewayConfig(
        id="north",
        data_dir=Path("/var/lib/gateway"),
        max_snapshot_age_h=1.5,
        on_stale="deny",
        on_ledger_failure="deny",
        commit_deadline_ms=10,
        retain_days=1,
        admin_socket=Path("/run/a.sock"),
        sync_socket=Path("/run/s.sock"),
        ledger_memory_events=5,
        unknown_codes_per_minute=7,
    )


@pytest.mark.parametrize(
    ("table", "wanted"),
    [
        (
            'driver = "gpio", chip = "pinctrl-rp1", line = "GPIO17", active_low = true',
            config.RelayConfig("gpio", chip="pinctrl-rp1", line="GPIO17", active_low=True),
        ),
        ('driver = "usbrelay"', config.RelayConfig("usbrelay")),
        (
            'driver = "usbrelay", board = "BITFT", channel = 2',
            config.RelayConfig("usbrelay", board="BITFT", channel=2),
        ),
        (
            'driver = "usbrelay", device = "/dev/hidraw3"',
            config.RelayConfig("usbrelay", device="/dev/hidraw3"),
        ),
        (
            'driver = "serial", device = "/dev/ttyUSB0", board = "kmtronic", channel = 4, baudrate = 19200',
            config.RelayConfig("serial", device="/dev/ttyUSB0", board="kmtronic", channel=4, baudrate=19200),
        ),
        (
            'driver = "modbus", device = "/dev/ttyUSB0", board = "lctech", channel = 8, address = 255',
            config.RelayConfig("modbus", device="/dev/ttyUSB0", board="lctech", channel=8, address=255),
        ),
    ],
)
def test_every_relay(table, wanted):
    """Each relay driver takes its keys, in an inline table or one of its own."""
    assert loads(relay_as(table), "x").lanes[0].relay == wanted
    own = "[lane.relay]\n" + table.replace(", ", "\n")
    assert loads(edited((RELAY, own)), "x").lanes[0].relay == wanted


@pytest.mark.parametrize("board", config.SerialBoard.__args__)
def test_every_serial_board(board):
    """Each make of serial board is taken."""
    relay = loads(relay_as(f'driver = "serial", device = "/dev/t", board = "{board}"'), "x").lanes[0].relay
    assert relay.board == board


@pytest.mark.parametrize("board", config.ModbusBoard.__args__)
def test_every_modbus_board(board):
    """Each make of Modbus board is taken."""
    relay = loads(relay_as(f'driver = "modbus", device = "/dev/t", board = "{board}"'), "x").lanes[0].relay
    assert relay.board == board


def test_every_lane_key():
    """Pulse, time-out, second grant, failure, and both contacts reach their fields."""
    gpio = 'driver = "gpio", chip = "c", line = {}, active_low = true, bias = "pull_down", debounce_ms = 3'
    text = lane_with(
        f"pulse_ms = 6000\npassage = {{ {gpio.format(1)}, timeout_s = 7.25 }}\nsecond_grant = 'extend'\n"
        f"fail = 'safe'\nemergency = {{ {gpio.format(2)} }}"
    )
    contact = config.InputConfig("gpio", "c", 1, True, "pull_down", 3)
    assert loads(text, "x").lanes[0] == config.LaneConfig(
        name="north",
        relay=config.RelayConfig("memory"),
        pulse=6_000_000,
        passage=contact,
        timeout=7_250_000,
        second_grant="extend",
        fail="safe",
        emergency=config.InputConfig("gpio", "c", 2, True, "pull_down", 3),
    )


def test_memory_contacts():
    """The contact in memory needs nothing, and its passages have a time-out all the same."""
    lane = loads(lane_with('passage = { driver = "memory", timeout_s = 0.5 }'), "x").lanes[0]
    assert lane.passage == config.InputConfig("memory")
    assert lane.timeout == 500_000


def test_every_point_key():
    """Each key of [[point]] reaches its field, the sensor of one direction among them."""
    text = point_with(
        "anti_passback = 'timed'\nanti_passback_minutes = 2.5\nguest_window_s = 0\n"
        "unknown_at_exit = 'deny'\npassage = { driver = 'memory' }"
    )
    assert loads(text, "x").points[0] == config.PointConfig(
        Point(
            "north-in",
            "north",
            "outside",
            "hall",
            AntiPassback.TIMED,
            anti_passback_time=5 * MINUTE // 2,
            guest_window=0,
            unknown_at_exit_open=False,
        ),
        config.InputConfig("memory"),
    )


def test_two_points_of_a_lane():
    """A lane has an entry and an exit."""
    loaded = loads(edited(add=SECOND_POINT), "x")
    assert [point.point.to for point in loaded.points] == ["hall", "outside"]


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (
            "driver = 'serial'\ndevice = '/dev/t'\nbaudrate = 115200\nframing = 'idle'\nidle_ms = 20\n"
            "strip_aim = true\nrepeat_delay_s = 0\n",
            config.ReaderConfig(
                "scanner", "north-in", "serial", "/dev/t", 0, 115200, "idle", idle=20_000, strip_aim=True
            ),
        ),
        (
            "driver = 'keyboard'\ndevice = '/dev/k'\nlayout = 'de'\nidle_ms = 80\nstrip_aim = true\n",
            config.ReaderConfig(
                "scanner", "north-in", "keyboard", "/dev/k", idle=80_000, strip_aim=True, layout="de"
            ),
        ),
        (
            "driver = 'hidpos'\ndevice = '/dev/hidraw0'\n",
            config.ReaderConfig("scanner", "north-in", "hidpos", "/dev/hidraw0"),
        ),
        ("driver = 'stdin'\n", config.ReaderConfig("scanner", "north-in", "stdin", "-")),
        ("driver = 'stdin'\ndevice = '-'\n", config.ReaderConfig("scanner", "north-in", "stdin", "-")),
    ],
)
def test_every_reader(lines, wanted):
    """Each reader driver takes its keys."""
    assert loads(reader_as(lines), "x").readers == (wanted,)


@pytest.mark.parametrize("layout", config.Layout.__args__)
def test_every_layout(layout):
    """Each of the ten layouts is taken."""
    lines = f"driver = 'keyboard'\ndevice = '/dev/k'\nlayout = '{layout}'\n"
    assert loads(reader_as(lines), "x").readers[0].layout == layout
    assert len(config.Layout.__args__) == 10


def test_own_messages():
    """The venue's texts are kept by language, without region; no and nn are nb."""
    text = edited(add="[messages.de-AT]\ntoo_soon = 'Ab {when}'\n[messages.nn]\ngranted = 'Hei'\n")
    assert loads(text, "x").messages == {"de": {"too_soon": "Ab {when}"}, "nb": {"granted": "Hei"}}


@pytest.mark.parametrize(
    "url",
    ["https://c.example:8443/gates/", "http://localhost:8080", "http://127.0.0.1", "http://[::1]:9"],
)
def test_central_urls(url):
    """TLS anywhere, plain HTTP on loopback; a slash at the end goes."""
    assert loads(edited(add=f"[central]\nurl = '{url}'\n"), "x").central.url == url.rstrip("/")


def test_every_central_key():
    """Each key of [central] reaches its field; without state_dir the sync's folder is in the data_dir."""
    lines = """
[central]
url = "https://c.example"
state_dir = "/var/lib/sync"
ca_file = "/etc/ca.pem"
client_cert = "/etc/client.pem"
client_key = "/etc/client.key"
"""
    loaded = loads(edited(add=lines), "x")
    assert loaded.central == config.CentralConfig(
        "https://c.example",
        state_dir=Path("/var/lib/sync"),
        ca_file=Path("/etc/ca.pem"),
        client_cert=Path("/etc/client.pem"),
        client_key=Path("/etc/client.key"),
    )
    assert loaded.state_dir == Path("/var/lib/sync")
    assert loads(SMALL, "x").state_dir == Path("/var/lib/gateway/sync")


def test_a_sync_with_a_user_of_its_own_has_its_folder_beside(tmp_path):
    """Once the installation made a folder for the sync beside the data_dir, that is its state_dir."""
    here = loads(SMALL.replace("/var/lib/gateway", str(tmp_path / "gateway")), "x")
    assert here.state_dir == tmp_path / "gateway/sync"
    (tmp_path / "gateway-sync").mkdir()
    assert here.state_dir == tmp_path / "gateway-sync"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:9480", ("::1", 9480)),
        ("gate-1.example:0", ("gate-1.example", 0)),
    ],
)
def test_where_the_pages_are(text, address):
    """[web] listen is a host and a port; without it, loopback."""
    assert loads(edited(add=f"[web]\nlisten = '{text}'\n"), "x").web.address == address
    assert loads(SMALL, "x").web.address == ("127.0.0.1", 9480)


def test_lanes_share_a_board_a_bus_and_an_alarm():
    """Two channels of a board, two boards of a bus, and one emergency contact for all lanes are right."""
    serial = 'driver = "serial", device = "/dev/t", board = "lcus", channel = {}'
    assert len(loads(two_lanes(serial.format(1), serial.format(2)), "x").lanes) == 2
    modbus = 'driver = "modbus", device = "/dev/t", board = "{}", address = {}'
    assert len(loads(two_lanes(modbus.format("plain", 1), modbus.format("lctech", 255)), "x").lanes) == 2
    contact = 'emergency = { driver = "gpio", chip = "c", line = 27 }\n'
    memory = 'driver = "memory"'
    text = two_lanes(memory, memory, more=contact).replace(SECOND_POINT, "")
    assert len(loads(text.replace(RELAY, f"{RELAY}\n{contact}", 1), "x").lanes) == 2


# Each: what is wrong, the key that the message names, and a part of the remedy.
WRONG = {
    "no gateway": (edited(("[gateway]\n" + ID, "[x]\n")), "gateway", "add a table [gateway]"),
    "gateway twice in brackets": (edited(("[gateway]", "[[gateway]]")), "gateway", "write [gateway]"),
    "no id": (edited((ID, "")), "gateway.id", 'id = "north"'),
    "id with a space": (edited((ID, 'id = "north gate"\n')), "gateway.id", "letters A to Z, digits"),
    "id too long": (edited((ID, f'id = "{"n" * 65}"\n')), "gateway.id", "at most 64"),
    "id a number": (edited((ID, "id = 7\n")), "gateway.id", 'id = "north"'),
    "relative data_dir": (edited(('"/var/lib', '"var/lib')), "gateway.data_dir", "from / on"),
    "data_dir too long": (
        edited(("/var/lib", "/v" + "a" * 100)),
        "gateway.data_dir",
        "use a shorter path",
    ),
    "socket too long": (
        gateway_with(f'sync_socket = "/{"s" * 107}"'),
        "gateway.sync_socket",
        "use a shorter path",
    ),
    "one socket for both": (
        gateway_with('admin_socket = "/run/a"\nsync_socket = "/run/a"'),
        "gateway.admin_socket",
        "a path of its own",
    ),
    "unknown key": (gateway_with("retain_day = 3"), "gateway.retain_day", "did you mean retain_days?"),
    "unknown key far from any": (gateway_with("zzz = 3"), "gateway.zzz", "remove it; the keys here are: id"),
    "unknown table": (edited(add="[[laen]]\n"), "laen", "did you mean lane?"),
    "on_stale": (gateway_with('on_stale = "refuse"'), "gateway.on_stale", 'use "admit" or "deny"'),
    "on_stale without age": (
        gateway_with('on_stale = "deny"'),
        "gateway.on_stale",
        "max_snapshot_age_h = 72",
    ),
    "age below 0": (gateway_with("max_snapshot_age_h = -1"), "gateway.max_snapshot_age_h", "give 0.01 to"),
    "age not a number": (gateway_with("max_snapshot_age_h = nan"), "gateway.max_snapshot_age_h", "give 0.01"),
    "deadline too short": (
        gateway_with("commit_deadline_ms = 9"),
        "gateway.commit_deadline_ms",
        "10 to 5000",
    ),
    "deadline too long": (
        gateway_with("commit_deadline_ms = 5001"),
        "gateway.commit_deadline_ms",
        "10 to 5000",
    ),
    "deadline a fraction": (
        gateway_with("commit_deadline_ms = 1.5"),
        "gateway.commit_deadline_ms",
        "give 10 to 5000",
    ),
    "retain_days 0": (gateway_with("retain_days = 0"), "gateway.retain_days", "give 1 to"),
    "retain_days true": (gateway_with("retain_days = true"), "gateway.retain_days", "give 1 to"),
    "a huge number": (gateway_with("retain_days = 0x" + "f" * 9999), "gateway.retain_days", "give 1 to"),
    "central without url": (edited(add="[central]\n"), "central.url", "https://central.example"),
    "central without TLS": (
        edited(add="[central]\nurl = 'http://c.example'"),
        "central.url",
        "write https://",
    ),
    "central no url": (edited(add="[central]\nurl = 'c.example'"), "central.url", "https://central.example"),
    "central with ftp": (edited(add="[central]\nurl = 'ftp://c'"), "central.url", "https://central.example"),
    "central with password": (
        edited(add="[central]\nurl = 'https://u:p@c.example'"),
        "central.url",
        "leave out user, password",
    ),
    "central broken bracket": (edited(add="[central]\nurl = 'http://[::1'"), "central.url", "https://"),
    "client key alone": (
        edited(add="[central]\nurl = 'https://c.example'\nclient_key = '/k'"),
        "central.client_key",
        "client_cert = ",
    ),
    "relative ca_file": (
        edited(add="[central]\nurl = 'https://c.example'\nca_file = 'ca.pem'"),
        "central.ca_file",
        "from / on",
    ),
    "relative state_dir": (
        edited(add="[central]\nurl = 'https://c.example'\nstate_dir = 'sync'"),
        "central.state_dir",
        "from / on",
    ),
    "listen without port": (edited(add="[web]\nlisten = 'localhost'"), "web.listen", "127.0.0.1:9480"),
    "listen without host": (edited(add="[web]\nlisten = ':80'"), "web.listen", "127.0.0.1:9480"),
    "listen IPv6 bare": (edited(add="[web]\nlisten = '::1:80'"), "web.listen", "127.0.0.1:9480"),
    "listen port too high": (edited(add="[web]\nlisten = '[::1]:65536'"), "web.listen", "1 to 65535"),
    "listen port no number": (edited(add="[web]\nlisten = 'localhost:http'"), "web.listen", "1 to 65535"),
    "web a list": (edited(add="[[web]]\n"), "web", "write [web]"),
    "no lane": (
        edited(("[[lane]]\n", "[messages.en]\n"), ('name = "north"\n' + RELAY, "")),
        "lane",
        "add a table [[lane]]",
    ),
    "one bracket": (edited(("[[lane]]", "[lane]")), "lane", "two brackets"),
    "a lane that is no table": (
        "lane = [3]\n" + re.sub(r"\[\[lane\]\][^[]*", "", SMALL),
        "lane[0]",
        "write [[lane]] above its keys",
    ),
    "lane without name": (edited(('name = "north"\nrelay', "relay")), "lane[0].name", 'name = "north"'),
    "lane without relay": (edited((RELAY, "")), "lane[0].relay", 'relay = { driver = "gpio"'),
    "relay a text": (edited((RELAY, 'relay = "gpio"')), "lane[0].relay", "write a table, as in: { driver ="),
    "relay without driver": (relay_as("line = 3"), "lane[0].relay.driver", 'use "gpio", "usbrelay"'),
    "relay of an unknown driver": (relay_as('driver = "gpoi"'), "lane[0].relay.driver", 'use "gpio"'),
    "gpio without chip": (relay_as('driver = "gpio", line = 1'), "lane[0].relay.chip", 'chip = "gpiochip0"'),
    "gpio without line": (relay_as('driver = "gpio", chip = "c"'), "lane[0].relay.line", "line = 17"),
    "gpio line below 0": (
        relay_as('driver = "gpio", chip = "c", line = -1'),
        "lane[0].relay.line",
        "0 to 1023",
    ),
    "gpio with another's key": (
        relay_as('driver = "gpio", chip = "c", line = 1, channel = 1'),
        "lane[0].relay.channel",
        "remove it, or change the driver",
    ),
    "active_low a number": (
        relay_as('driver = "gpio", chip = "c", line = 1, active_low = 1'),
        "lane[0].relay.active_low",
        "write true or false",
    ),
    "serial without board": (
        relay_as('driver = "serial", device = "/dev/t"'),
        "lane[0].relay.board",
        'board = "lcus"',
    ),
    "serial without device": (
        relay_as('driver = "serial", board = "lcus"'),
        "lane[0].relay.device",
        "device = ",
    ),
    "modbus board unknown": (
        relay_as('driver = "modbus", device = "/dev/t", board = "lcus"'),
        "lane[0].relay.board",
        '"waveshare"',
    ),
    "modbus address 0": (
        relay_as('driver = "modbus", device = "/dev/t", board = "plain", address = 0'),
        "lane[0].relay.address",
        "give 1 to 255",
    ),
    "baudrate": (
        relay_as('driver = "serial", device = "/dev/t", board = "lcus", baudrate = 9601'),
        "lane[0].relay.baudrate",
        "use one of 1200",
    ),
    "baudrate a float": (
        relay_as('driver = "serial", device = "/dev/t", board = "lcus", baudrate = 9600.0'),
        "lane[0].relay.baudrate",
        "use one of 1200",
    ),
    "channel 0": (relay_as('driver = "usbrelay", channel = 0'), "lane[0].relay.channel", "give 1 to 8"),
    "board id": (relay_as('driver = "usbrelay", board = "AB"'), "lane[0].relay.board", "five characters"),
    "board and device": (
        relay_as('driver = "usbrelay", board = "BITFT", device = "/dev/hidraw0"'),
        "lane[0].relay.board",
        "keep one of the two",
    ),
    "relay device relative": (
        relay_as('driver = "usbrelay", device = "hidraw0"'),
        "lane[0].relay.device",
        "from / on",
    ),
    "pulse too short": (lane_with("pulse_ms = 49"), "lane[0].pulse_ms", "give 50 to 6000"),
    "pulse too long": (lane_with("pulse_ms = 6001"), "lane[0].pulse_ms", "give 50 to 6000"),
    "pulse with another unit": (lane_with("pulse_s = 1"), "lane[0].pulse_s", "did you mean pulse_ms?"),
    "second_grant": (lane_with("second_grant = 'wait'"), "lane[0].second_grant", '"queue", "extend" or'),
    "fail": (lane_with("fail = true"), "lane[0].fail", 'use "secure" or "safe"'),
    "passage through usbrelay": (
        lane_with('passage = { driver = "usbrelay" }'),
        "lane[0].passage.driver",
        'use "gpio" or "memory"',
    ),
    "time-out 0": (
        lane_with('passage = { driver = "memory", timeout_s = 0 }'),
        "lane[0].passage.timeout_s",
        "give 0.1 to 120",
    ),
    "time-out of an emergency": (
        lane_with('emergency = { driver = "memory", timeout_s = 1 }'),
        "lane[0].emergency.timeout_s",
        "remove it",
    ),
    "bias": (
        lane_with('passage = { driver = "gpio", chip = "c", line = 1, bias = "up" }'),
        "lane[0].passage.bias",
        '"pull_up"',
    ),
    "debounce": (
        lane_with('passage = { driver = "gpio", chip = "c", line = 1, debounce_ms = -1 }'),
        "lane[0].passage.debounce_ms",
        "give 0 to 1000",
    ),
    "lanes of one name": (
        edited(add=SECOND_LANE.replace("south", "north")),
        "lane[1].name",
        "a name of its own",
    ),
    "lane without point": (edited(add=SECOND_LANE), "lane[1].name", "add a table [[point]]"),
    "points of one name": (
        edited(add=SECOND_POINT.replace("north-out", "north-in")),
        "point[1].name",
        "a name of its own",
    ),
    "readers of one name": (
        edited(add='[[reader]]\nname = "scanner"\npoint = "north-in"\ndriver = "stdin"\n'),
        "reader[1].name",
        "a name of its own",
    ),
    "no point": (
        re.sub(r"\[\[point\]\][^[]*", "", SMALL),
        "point",
        "add a table [[point]]",
    ),
    "unknown lane": (edited(('lane = "north"', 'lane = "nroth"')), "point[0].lane", 'did you mean "north"?'),
    "unknown lane far off": (edited(('lane = "north"', 'lane = "x"')), "point[0].lane", 'lanes are: "north"'),
    "from and to alike": (
        edited((TO, 'to = "outside"\n')),
        "point[0].to",
        "the area that the point leads into",
    ),
    "point without to": (edited((TO, "")), "point[0].to", 'to = "hall"'),
    "third point": (
        edited(add=SECOND_POINT + SECOND_POINT.replace("-out", "-3")),
        "point[2].lane",
        "a lane of its own",
    ),
    "anti_passback": (point_with("anti_passback = 'on'"), "point[0].anti_passback", '"soft", "hard" or'),
    "guest window": (point_with("guest_window_s = -1"), "point[0].guest_window_s", "give 0 to 3600"),
    "guest window true": (point_with("guest_window_s = true"), "point[0].guest_window_s", "give 0 to 3600"),
    "unknown_at_exit": (
        point_with("unknown_at_exit = 1"),
        "point[0].unknown_at_exit",
        'use "open" or "deny"',
    ),
    "no reader": (SMALL[: SMALL.index("[[reader]]")], "reader", "add a table [[reader]]"),
    "reader of an unknown point": (
        edited(('point = "north-in"', 'point = "north-inn"')),
        "reader[0].point",
        'did you mean "north-in"?',
    ),
    "reader without driver": (
        reader_as("device = '/dev/t'\n"),
        "reader[0].driver",
        'use "serial", "keyboard"',
    ),
    "reader of an unknown driver": (reader_as("driver = 'usb'\n"), "reader[0].driver", '"hidpos" or "stdin"'),
    "reader without device": (reader_as("driver = 'hidpos'\n"), "reader[0].device", "add it, as in: device"),
    "reader device relative": (
        reader_as("driver = 'serial'\ndevice = 'ttyACM0'\n"),
        "reader[0].device",
        "from / on",
    ),
    "stdin with a device": (
        reader_as("driver = 'stdin'\ndevice = '/dev/t'\n"),
        "reader[0].device",
        'use "-"',
    ),
    "layout": (
        reader_as("driver = 'keyboard'\ndevice = '/dev/k'\nlayout = 'ch'\n"),
        "reader[0].layout",
        '"us", "gb", "de"',
    ),
    "layout of a serial reader": (
        reader_as("driver = 'serial'\ndevice = '/dev/k'\nlayout = 'de'\n"),
        "reader[0].layout",
        "remove it, or change the driver",
    ),
    "framing": (
        reader_as("driver = 'serial'\ndevice = '/dev/k'\nframing = 'cr'\n"),
        "reader[0].framing",
        'use "suffix", "stx_etx" or "idle"',
    ),
    "idle_ms": (
        reader_as("driver = 'serial'\ndevice = '/dev/k'\nidle_ms = 0\n"),
        "reader[0].idle_ms",
        "give 1 to 5000",
    ),
    "repeat delay below 0": (
        reader_as(READER + "repeat_delay_s = -0.1\n"),
        "reader[0].repeat_delay_s",
        "give 0 to 60",
    ),
    "one device for two readers": (
        edited(add='[[reader]]\nname = "b"\npoint = "north-in"\n' + READER.replace("/dev/", "/dev/./")),
        "reader[1].device",
        "a device of its own",
    ),
    "one device for reader and relay": (
        relay_as('driver = "serial", device = "/dev/ttyACM0", board = "lcus"'),
        "reader[0].device",
        "a device of its own",
    ),
    "one line for relay and passage": (
        edited(
            (
                RELAY,
                'relay = { driver = "gpio", chip = "gpiochip0", line = 4 }\n'
                'passage = { driver = "gpio", chip = "/dev/gpiochip0", line = 4 }',
            )
        ),
        "lane[0].passage.line",
        "a line of its own",
    ),
    "one line for lane and point": (
        edited(
            (RELAY, 'relay = { driver = "gpio", chip = "c", line = 4 }'),
            (TO, TO + 'passage = { driver = "gpio", chip = "c", line = 4 }\n'),
        ),
        "point[0].passage.line",
        "a line of its own",
    ),
    "one emergency, other settings": (
        two_lanes(
            'driver = "memory" }\nemergency = { driver = "gpio", chip = "c", line = 2',
            'driver = "memory" }\nemergency = { driver = "gpio", chip = "c", line = 2, active_low = true',
        ),
        "lane[1].emergency",
        "write the same in both places",
    ),
    "one relay for two lanes": (
        two_lanes('driver = "usbrelay"', 'driver = "usbrelay", channel = 1'),
        "lane[1].relay.channel",
        "a relay of its own",
    ),
    "two makes on one port": (
        two_lanes(
            'driver = "serial", device = "/dev/t", board = "lcus"',
            'driver = "serial", device = "/dev/t", board = "numato", channel = 2',
        ),
        "lane[1].relay.board",
        "write the same in both places",
    ),
    "two speeds on one bus": (
        two_lanes(
            'driver = "modbus", device = "/dev/t", board = "plain"',
            'driver = "modbus", device = "/dev/t", board = "plain", address = 2, baudrate = 19200',
        ),
        "lane[1].relay.baudrate",
        "write the same in both places",
    ),
    "messages a text": (edited((ID, ID), add="[messages]\nde = 'x'\n"), "messages.de", "write [messages.de]"),
    "messages of an unknown language": (
        edited(add="[messages.it]\ngranted = 'x'\n"),
        "messages.it",
        '"nb" or "fr"',
    ),
    "messages twice": (
        edited(add="[messages.no]\ngranted = 'x'\n[messages.nb]\ngranted = 'y'\n"),
        "messages.nb",
        "into one table",
    ),
    "unknown message": (
        edited(add="[messages.de]\ngrant = 'x'\n"),
        "messages.de.grant",
        "did you mean granted?",
    ),
    "message a number": (edited(add="[messages.de]\ngranted = 1\n"), "messages.de.granted", 'in "quotes"'),
    "unknown placeholder": (
        edited(add="[messages.de]\ntoo_soon = 'Ab {wann}'\n"),
        "messages.de.too_soon",
        "are: {when}",
    ),
    "lone brace": (
        edited(add="[messages.de]\ntoo_soon = 'Ab {when'\n"),
        "messages.de.too_soon",
        "are: {when}",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_configurations(case):
    """Each wrong configuration is refused with its key, and after the semicolon the remedy."""
    text, key, remedy = WRONG[case]
    found = faults(text)
    messages = [fault.message for fault in found if fault.key == key]
    assert messages, found
    assert any(remedy in message.partition("; ")[2] for message in messages), messages


@pytest.mark.parametrize("case", WRONG)
def test_every_fault_is_one_line_with_file_and_key(case):
    """As text each fault is one line that begins with the file and, with its line number, the key."""
    text, key, _ = WRONG[case]
    with pytest.raises(ConfigError) as caught:
        loads(text, "gateway.toml")
    lines = str(caught.value).split("\n")
    assert len(lines) == len(caught.value.faults)
    assert any(re.match(rf"gateway\.toml: {re.escape(key)}( \(line \d+\))?: [a-z]+ ", s) for s in lines)


def test_a_fault_brings_no_others():
    """One slip is one fault, so that nobody looks for a second."""
    for case in (
        "third point",
        "unknown lane",
        "pulse too long",
        "gpio without chip",
        "anti_passback",
        "no lane",
    ):
        text, key, _ = WRONG[case]
        assert [fault.key for fault in faults(text)] == [key], case


def test_all_faults_at_once_in_the_order_of_the_file():
    """Faults of every table are told together, with their lines."""
    text = edited(
        (ID, "id = 1\n"),
        (RELAY, 'relay = { driver = "gpio", line = -2 }\npulse_ms = 10'),
        ('lane = "north"', 'lane = "nort"'),
        ('driver = "serial"', 'driver = "seriel"\nbaud = 3'),
    )
    assert [(fault.key, fault.line) for fault in faults(text)] == [
        ("gateway.id", 2),
        ("lane[0].relay.line", 7),
        ("lane[0].relay.chip", 7),
        ("lane[0].pulse_ms", 8),
        ("point[0].lane", 12),
        ("reader[0].driver", 19),
        ("reader[0].baud", 20),
    ]


def test_the_form_of_a_fault():
    """A fault reads: file, key, line, what is wrong, remedy."""
    with pytest.raises(ConfigError) as caught:
        loads(lane_with("pulse_ms = 7000"), "/etc/gateway/gateway.toml")
    assert str(caught.value) == (
        "/etc/gateway/gateway.toml: lane[0].pulse_ms (line 8): is 7000, which is out of range: "
        "some turnstiles take a contact held for longer than 6 s as free mode and admit everybody; "
        "give 50 to 6000"
    )


def test_secrets_stay_out_of_messages():
    """A password in the central's address is not repeated."""
    text = edited(add="[central]\nurl = 'https://gate:hunter2@c.example'\n")
    with pytest.raises(ConfigError) as caught:
        loads(text, "x")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[gateway]\nid = north\n", "line 2, column 6: "),
        ("[gateway]\nid = 'north\n", "line 2, column 12: "),
        ("a = 1\n[gateway]\nid = [1,\n", "line 3, column 9: "),
        ("a = 1\na = 2\n", "line 2, column 6: "),
    ],
)
def test_syntax(text, place):
    """What is not TOML is told with line and column, and what to look for."""
    (fault,) = faults(text)
    assert fault.key == ""
    assert fault.message.startswith(place)
    assert '; correct it there or just before: texts stand in "quotes"' in fault.message


def test_a_number_beyond_all_bounds_and_deep_nesting():
    """What tomllib itself gives up on is a fault of the file."""
    assert "not valid TOML" in faults("a = " + "9" * 5000)[0].message
    assert faults("a = " + "[" * 100_000)[0].key == ""


def test_replay_needs_no_reader_and_no_data_dir():
    """For a replay a point counts as one reader, and the data_dir may be anything."""
    text = SMALL[: SMALL.index("[[reader]]")].replace("/var/lib/gateway", "nowhere")
    loaded = loads(text, "x", replay=True)
    assert loaded.readers == ()
    assert {fault.key for fault in faults(text)} == {"reader", "gateway.data_dir"}
    assert loads(SMALL, "x", replay=True) == loads(SMALL, "x")
    assert faults(text.replace("outside", "hall"), replay=True)[0].key == "point[0].to"


def test_load_reads_a_file(tmp_path):
    """A file loads like its text, also with a byte order mark and CRLF in it."""
    path = tmp_path / "gateway.toml"
    path.write_bytes(b"\xef\xbb\xbf" + DESIGN.replace("\n", "\r\n").encode())
    assert load(path) == loads(DESIGN, "x")
    path.write_text(SMALL[: SMALL.index("[[reader]]")], "utf-8")
    assert load(path, replay=True).readers == ()


def test_load_tells_what_cannot_be_read(tmp_path):
    """A missing file, a folder and a wrong encoding are told with path and remedy."""
    missing = tmp_path / "none.toml"
    with pytest.raises(ConfigError, match=re.escape(str(missing)) + r".*gateway setup writes one.*--config"):
        load(missing)
    with pytest.raises(ConfigError, match=r"directory.*--config"):
        load(tmp_path)
    latin = tmp_path / "latin.toml"
    latin.write_bytes("[gateway]\nid = 'süd'\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"line 2: is not UTF-8; save"):
        load(latin)


def test_key_lines():
    """Keys are found in tables, sub-tables, inline tables, lists over lines, after texts over lines."""
    text = '''\
top = """
[[lane]]
name = 1
"""
[[lane]]  # first
"odd key" = { b = 1, c = [
  { d = 2 },
] }

[lane.relay]
driver.x = 1
[[lane]]
list = [
  "name = 3",
  [1], # ]
]
name = "b"
[lane.relay]
driver = 1
[[lane.sub]]
[[lane.sub]]
y = 1
'''
    assert tomllib.loads(text)
    lines = key_lines(text)
    assert lines == key_lines(text.replace("\n", "\r\n"))
    wanted = {
        "top": 1,
        "lane": 5,
        "lane[0]": 5,
        'lane[0]."odd key"': 6,
        'lane[0]."odd key".b': 6,
        'lane[0]."odd key".c[0].d': 6,
        "lane[0].relay": 10,
        "lane[0].relay.driver.x": 11,
        "lane[1]": 12,
        "lane[1].list": 13,
        "lane[1].list[1][0]": 13,
        "lane[1].name": 17,
        "lane[1].relay": 18,
        "lane[1].relay.driver": 19,
        "lane[1].sub[0]": 20,
        "lane[1].sub[1]": 21,
        "lane[1].sub[1].y": 22,
    }
    assert {key: lines.get(key) for key in wanted} == wanted
    assert "lane[0].name" not in lines


def test_key_lines_gives_up_on_endless_statements():
    """A statement over hundreds of lines leaves the keys from there on without a line."""
    text = "a = 1\nb = [\n" + "1,\n" * 300 + "]\nc = 1\n"
    assert tomllib.loads(text)
    assert key_lines(text) == {"a": 1}


# --- the reference ----------------------------------------------------------------------------------

REFERENCE = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text("utf-8")
HEADINGS = {
    "gateway": "## `[gateway]`",
    "central": "## `[central]`",
    "web": "## `[web]`",
    "lane": "## `[[lane]]`",
    "lane.relay": "### `relay` of a lane",
    "lane.passage": "### `passage` of a lane",
    "lane.emergency": "### `emergency` of a lane",
    "point": "## `[[point]]`",
    "point.passage": "### `passage` of a point",
    "reader": "## `[[reader]]`",
    "messages": "## `[messages.xx]`",
}


@pytest.mark.parametrize("table", known_keys())
def test_the_reference_has_every_key_and_no_other(table):
    """Each table of the reference describes the keys that the loader knows, with an example that it takes."""
    section = re.split(r"\n#{2,3} ", REFERENCE.split(HEADINGS[table] + "\n", 1)[1])[0]
    rows = [
        [cell.strip() for cell in row.split(" | ")] for row in re.findall(r"^\| (`.*) \|$", section, re.M)
    ]
    assert {row[0].strip("`") for row in rows} == known_keys()[table]
    if table != "messages":
        for row in rows:
            assert tomllib.loads(row[-1].strip("`")).keys() == {row[0].strip("`")}
            assert all(row[-3:]), row
    else:
        for row in rows:
            named = set(re.findall(r"\{(\w+)\}", row[1]))
            assert named == MESSAGE_KEYS[row[0].strip("`")]


def test_the_reference_has_the_defaults():
    """The defaults of the reference are those of the dataclasses."""
    section = REFERENCE.split(HEADINGS["gateway"], 1)[1].split("\n## ", 1)[0]
    for field in fields(config.GatewayConfig):
        if isinstance(field.default, int | str):
            row = next(line for line in section.splitlines() if line.startswith(f"| `{field.name}` |"))
            assert row.split(" | ")[2].strip("`\"'") == str(field.default)
    assert f'| `"{config.WebConfig().listen}"` |' in REFERENCE


def test_the_reference_example_loads():
    """The smallest file of the reference is right, and so are its texts."""
    blocks = re.findall(r"```toml\n(.*?)```", REFERENCE, re.S)
    assert len(blocks) == 2
    loaded = loads("\n".join(blocks), "configuration.md")
    assert loaded.messages["de"]["not_at_this_time"] == "Bitte kommen Sie {when} wieder."


# --- anything ---------------------------------------------------------------------------------------

NAMES = sorted({"driver", "x", "", "a b"}.union(*known_keys().values()) - set(MESSAGE_KEYS))
WORDS = [
    "",
    "north",
    "gpio",
    "serial",
    "memory",
    "stdin",
    "modbus",
    "usbrelay",
    "/dev/t",
    "outside",
    "timed",
    "{",
]


def toml(value):
    """A value as an inline TOML text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(name)} = {toml(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(letter):08x}" for letter in value) + '"'
    return str(value)


SCALARS = st.one_of(
    st.sampled_from(WORDS),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, 5, 17, 300, 9600]),
    st.floats(),
    st.text(st.characters(codec="utf-8"), max_size=6),
    st.sampled_from(["1979-05-27", "07:32:00"]).map(
        lambda word: type("Raw", (), {"__str__": lambda _: word})()
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(NAMES), inner, max_size=5)
    ),
    max_leaves=12,
)


def check_outcome(text, *, replay=False):
    """It loads, or it is refused with faults of one line each that have a remedy. Nothing else is raised."""
    error = None
    try:
        loads(text, "x", replay=replay)
    except ConfigError as refused:
        error = refused
    if error:
        assert error.faults
        assert all("; " in fault.message for fault in error.faults)
        assert len(str(error).splitlines()) == len(error.faults)


TABLES = ["gateway", "central", "web", "lane", "point", "reader", "messages", "laen"]


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(TABLES),
        st.one_of(
            st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6),
            st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6), max_size=3),
            VALUES,
        ),
    ),
    st.booleans(),
)
def test_anything_loads_or_is_refused(data, replay):
    """Whatever valid TOML holds, there is a configuration or a ConfigError with faults, nothing else."""
    text = "\n".join(f"{name} = {toml(value)}" for name, value in data.items())
    tomllib.loads(text)
    check_outcome(text, replay=replay)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_one_value_exchanged(data):
    """A right file with any one value exchanged for anything loads or is refused."""
    lines = DESIGN.splitlines()
    places = [number for number, line in enumerate(lines) if re.match(r"\w+ = ", line)]
    place = data.draw(st.sampled_from(places))
    lines[place] = lines[place].split(" = ")[0] + " = " + toml(data.draw(VALUES))
    check_outcome("\n".join(lines))


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60))
def test_any_text(text):
    """What is not TOML at all is refused like the rest."""
    with pytest.raises(ConfigError):
        loads(text, "x")
