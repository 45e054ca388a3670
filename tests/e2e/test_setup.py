"""``gateway setup`` as a process on a terminal, with scanners and relay boards on ptys."""

from __future__ import annotations

import json
import os
import re
import signal
import termios
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.configload import load
from gateway.setup.setupcode import TEXT
from tests.e2e.rig import ROOT, Board, Fork, Json, Scanner, Site, Zygote, card, ndjson, product, until, venue

pytestmark = pytest.mark.timeout(180)

CODE = TEXT.encode()


class Desk:
    """A technician at a terminal, before a machine with two scanners and a board with two relays."""

    def __init__(self, folder: Path, zygote: Zygote) -> None:
        self.folder, self.zygote = folder, zygote
        self.config = folder / "etc" / "gateway.toml"
        self.config.parent.mkdir()
        # Two alike without a serial number: only the sockets that they are plugged into tell them apart.
        ports = folder / "by-path"
        ports.mkdir()
        self.scanners = [Scanner(ports / f"usb-0:1.{port}:1.0") for port in (1, 2)]
        self.board = Board(folder / "board")
        self.master, self._slave = os.openpty()
        self.fork: Fork | None = None
        self._forks: list[Fork] = []
        self._read = 0

    def start(self, *more: str, stdin: str | None = None) -> Fork:
        devices = [f"--scanner=serial:{self.folder}/by-path/usb-0:1.{port}:1.0" for port in (1, 2)]
        arguments = ["setup", "--config", str(self.config), f"--board={self.folder}/board", *devices, *more]
        if not self.config.is_file() or "data_dir" not in self.config.read_text():
            arguments.append(f"--data-dir={self.folder}/data")
        name = f"setup-{len(self._forks)}"
        self.fork = Fork(self.zygote, self.folder, name, arguments, stdin or os.ttyname(self._slave))
        self._forks.append(self.fork)
        self._read = 0
        return self.fork

    def expect(self, text: str) -> str:
        """Wait until this is said, and give what stands before it."""
        assert self.fork is not None
        fork = self.fork

        def found() -> int:
            assert not (fork.ends() and text not in fork.errors()[self._read :]), fork.errors()
            return fork.errors().find(text, self._read) + 1

        at = until(found, f"{text!r} in:\n{fork.errors()}") - 1
        said = fork.errors()[self._read : at]
        self._read = at + len(text)
        return said

    def type(self, line: str) -> None:
        os.write(self.master, line.encode() + b"\n")

    def close(self) -> None:
        for fork in self._forks:
            fork.kill()
        for device in (*self.scanners, self.board):
            device.unplug()
        os.close(self.master)
        os.close(self._slave)


@pytest.fixture
def desk(tmp_path: Path, zygote: Zygote) -> Iterator[Desk]:
    made = Desk(tmp_path, zygote)
    yield made
    made.close()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


Step = tuple[str, str | int]
"""What is said, and what is answered: a line, or the scanner at which the set-up code is scanned."""
STEPS: list[Step] = [
    ("Name of this gateway", "north"),
    ("How many turnstiles", ""),
    ("Name of lane 1", ""),
    ("Name of the area", "pool"),
    ("scanner for the way out too", ""),
    ("Name of the way in", ""),
    ("at the way in of lane north now", 1),
    ("Name of the way out", ""),
    ("at the way out of lane north now", 0),
    ("Which relay opens lane north", "1"),
    ("Which board is that", "1"),
    ("Which of its relays", "2"),
    ("shall it? [y/N]", "y"),
    ("Did lane north open", "1"),
    ("Address of the central", "none"),
    ("Write this to", "y"),
]
UNTRIED: Step = ("Test a scanner now (there are no cards yet", "n")


def follow(desk: Desk, steps: list[Step]) -> None:
    for said, answer in steps:
        desk.expect(said)
        if isinstance(answer, int):
            desk.expect("go on without a scan)")
            desk.scanners[answer].send(b"]C0" + CODE + b"\r")
        else:
            desk.type(answer)


def test_from_nothing_to_a_configuration(desk: Desk) -> None:
    """Two scanners alike are told apart by scanning, their settings are learned, the relay clicks once and
    only after a yes, and what is written is what was found; a scan in the end comes from the scanner that was
    meant; without systemd it says how to start the gate."""
    fork = desk.start()
    follow(desk, STEPS[:12])
    desk.expect("shall it? [y/N]")
    assert desk.board.pulses(2) == 0
    desk.type("y")
    follow(desk, STEPS[13:])
    desk.expect("Test a scanner now")
    desk.type("")
    desk.expect("go on without a scan)")
    desk.scanners[1].send(b"]C0SECRETCARD\r")
    desk.expect("north-in: unknown_credential; the visitor is told: ")
    desk.expect("Open lane north once")
    desk.type("")
    assert fork.wait() == 0, fork.errors()
    assert "SECRETCARD" not in fork.errors()
    assert (desk.board.pulses(1), desk.board.pulses(2), desk.board.last(2)) == (0, 1, False)
    config = load(desk.config)
    assert config.gateway.id == "north"
    [lane] = config.lanes
    assert (lane.name, lane.relay.driver, lane.relay.board, lane.relay.channel) == (
        "north",
        "serial",
        "lcus",
        2,
    )
    assert lane.relay.device == f"{desk.folder}/board"
    assert [(p.point.name, p.point.from_, p.point.to) for p in config.points] == [
        ("north-in", "outside", "pool"),
        ("north-out", "pool", "outside"),
    ]
    assert [(r.point, Path(r.device).name, r.strip_aim) for r in config.readers] == [
        ("north-in", "usb-0:1.2:1.0", True),
        ("north-out", "usb-0:1.1:1.0", True),
    ]
    assert "# A scanner, by a name that stays the same." in desk.config.read_text()
    assert "No unit of the gateway is installed here" in fork.errors()
    assert "gateway doctor has" in fork.errors()
    assert TEXT not in fork.errors()
    assert [path.name for path in desk.config.parent.iterdir()] == ["gateway.toml"]


def test_the_session_in_the_docs(desk: Desk) -> None:
    """Each line of the session in docs/setup.md is said, in that order."""
    desk.start()
    follow(desk, STEPS)
    desk.expect("Test a scanner now")
    desk.type("")
    desk.expect("go on without a scan)")
    desk.scanners[1].send(b"]C0SECRETCARD\r")
    desk.expect("Open lane north once")
    desk.type("")
    assert desk.fork is not None
    assert desk.fork.wait() == 0
    said = desk.fork.errors().replace(f"{desk.folder}/etc", "/etc/gateway")
    for path, name in (("by-path/usb-0:1.1:1.0", 1), ("by-path/usb-0:1.2:1.0", 2), ("board", 3)):
        said = said.replace(f"{desk.folder}/{path}", f"/dev/ttyAMA{name}")
    page = (ROOT / "docs/setup.md").read_text()
    session = page[page.index("$ sudo gateway setup --scanner") :].split("```")[0]
    at = 0
    for line in session.splitlines()[1:]:
        line = line.removeprefix("  ").replace("[gatepc]", f"[{os.uname().nodename.partition('.')[0]}]")
        question = re.match(r".*(?:\]:?|\])(?= |$)", line)
        text = question[0] if question else line
        if text.strip() != "…":
            assert text in said[at:], text
            at = said.index(text, at) + len(text)


@pytest.mark.parametrize("old", [False, True], ids=["fresh", "replacing"])
@pytest.mark.parametrize("at", range(len(STEPS)), ids=[said for said, _ in STEPS])
def test_interrupted_at_each_question(desk: Desk, at: int, old: bool) -> None:
    """Ctrl-C, the end of the input and SIGTERM, at any question before the configuration is written: nothing
    is changed, nothing is left behind, and it says so."""
    if old:
        desk.config.write_text("# mine\n[gateway]\nid = 'old'\n")
    before = files(desk.config.parent)
    fork = desk.start()
    if old:
        desk.expect("Replace it (it is kept as .bak)")
        desk.type("y")
    follow(desk, STEPS[:at])
    desk.expect(STEPS[at][0])
    way = (at + old) % 3
    if way == 0:
        fork.signal(signal.SIGINT)
    elif way == 1:
        os.write(desk.master, b"\x04")  # Ctrl-D
    else:
        fork.signal(signal.SIGTERM)
    assert fork.wait() == (130 if way == 0 else 2), fork.errors()
    assert "nothing was changed" in fork.errors()
    assert "Traceback" not in fork.errors()
    assert files(desk.config.parent) == before
    assert not (desk.folder / "data").exists()
    assert desk.board.last(2) is not True


def test_a_configuration_is_kept(desk: Desk) -> None:
    """No replaces nothing. Yes keeps the one before as .bak, and takes over what setup does not ask for."""
    old = """
        gateway = { id = "old", data_dir = "DIR/data", retain_days = 60 }
        web.listen = "127.0.0.1:9999"
        messages.de.granted = "Schön, dass Sie da sind."
    """.replace("DIR", str(desk.folder))
    desk.config.write_text(old)
    desk.config.chmod(0o640)
    fork = desk.start()
    desk.expect("Replace it")
    desk.type("")
    assert fork.wait() == 0
    assert desk.config.read_text() == old
    fork = desk.start()
    desk.expect("Replace it")
    desk.type("y")
    desk.expect("Name of this gateway (no other gateway of the venue may have it) [old]")
    desk.type("")
    follow(desk, STEPS[1:2])
    desk.expect("Name of lane 1 [old]")
    desk.type("north")
    follow(desk, [*STEPS[3:], UNTRIED])
    assert fork.wait() == 0, fork.errors()
    config = load(desk.config)
    assert (config.gateway.id, config.gateway.retain_days) == ("old", 60)
    assert config.web.listen == "127.0.0.1:9999"
    assert config.messages["de"]["granted"].startswith("Schön")
    assert desk.config.with_name("gateway.toml.bak").read_text() == old
    assert desk.config.stat().st_mode & 0o777 == 0o640
    assert (desk.folder / "data").stat().st_mode & 0o777 == 0o700


def test_a_relay_that_does_not_answer(desk: Desk) -> None:
    """It says so, gives no second pulse by itself, and goes on: another make, another relay, or this one all
    the same."""
    fork = desk.start()
    follow(desk, [*STEPS[:10], ("Which board is that", "2"), ("Which of its relays", "1")])
    desk.expect("shall it? [y/N]")
    # A board that takes whatever comes and says nothing: the firmware that answers has other frames.
    desk.type("y")
    desk.expect("It does not click: ")
    desk.expect("Try once more? [y/N]")
    heard = os.read(desk.board.fileno(), 100)
    assert heard.count(b"\xa0\x01\x03") == 0, "it was not up, so no pulse was given"
    desk.type("")
    desk.expect("Take it all the same? [y/N]")
    desk.type("n")
    desk.expect("Which relay opens lane north")
    desk.type("2")  # none yet
    follow(desk, [*STEPS[14:], UNTRIED])
    assert fork.wait() == 0, fork.errors()
    assert load(desk.config).lanes[0].relay.driver == "memory"


def test_relays_that_are_gone_or_opened_another_lane(desk: Desk) -> None:
    """A board that was pulled out is told with its reason. Where another lane opened, the question comes
    again; a relay that opens one lane cannot open a second."""
    fork = desk.start()
    follow(desk, [STEPS[0], ("How many turnstiles", "2"), *STEPS[2:3]])
    follow(
        desk, [("Name of the area", ""), ("way out too", "n"), ("Name of the way in", ""), ("Scan the", 0)]
    )
    board = [("Which relay", "1"), ("Which board", "1"), ("Which of its relays", "1"), ("shall it?", "y")]
    desk.board.unplug()
    follow(desk, [*board, ("It does not click: ", ""), ("Take it all the same", "")])
    desk.board.plug()
    follow(desk, [*board, ("Did lane lane-1 open", "2")])
    follow(desk, [*board, ("Did lane lane-1 open", "3"), ("shall it?", "y"), ("Did lane lane-1 open", "1")])
    assert desk.board.pulses(1) == 3
    follow(desk, [("Name of lane 2", "lane-1"), ("another one's", "south"), ("Name of the area", "")])
    follow(desk, [("way out too", "n"), ("Name of the way in", ""), ("Scan the", 1), *board[:3]])
    follow(desk, [("opens another lane already", ""), ("Which board", "")])
    follow(
        desk,
        [("Which of its relays", "2"), ("shall it?", ""), ("without a click", "y"), *STEPS[14:], UNTRIED],
    )
    assert fork.wait() == 0, fork.errors()
    config = load(desk.config)
    assert [(lane.name, lane.relay.channel) for lane in config.lanes] == [("lane-1", 1), ("south", 2)]
    assert {point.point.to for point in config.points} == {"hall"}


def test_scanners_that_are_hard_to_hear(desk: Desk) -> None:
    """Noise makes setup try the next speed of that port; without a scan a scanner can be chosen by its name;
    one that was unplugged is told."""
    fork = desk.start()
    follow(desk, STEPS[:6])
    desk.expect("go on without a scan)")
    desk.scanners[0].send(b"\xf8\x80\x00\xfe")
    desk.expect("Scan again, now at 115200 Bd.")
    assert termios.tcgetattr(desk.scanners[0].fileno())[5] == termios.B115200
    desk.scanners[0].send(CODE + b"\r\n")
    follow(desk, [STEPS[7]])
    desk.expect("go on without a scan)")
    desk.type("")
    follow(desk, [("Nothing was scanned. What now", "1")])
    desk.expect("go on without a scan)")
    desk.scanners[1].plug()
    desk.expect("was unplugged")
    desk.type("")
    follow(desk, [("Nothing was scanned. What now", "2"), *STEPS[9:12]])
    follow(desk, [("shall it?", "n"), ("Take it without a click", "y"), *STEPS[14:], UNTRIED])
    assert fork.wait() == 0, fork.errors()
    assert [(Path(r.device).name, r.baudrate) for r in load(desk.config).readers] == [
        ("usb-0:1.1:1.0", 115200),
        ("usb-0:1.2:1.0", 9600),
    ]
    assert desk.board.pulses(2) == 0


def test_a_test_scan_is_judged_and_opens_only_after_a_yes(desk: Desk) -> None:
    """Where there are cards, one can be tried before the gate starts: its verdict is told, its code is not,
    nothing is recorded, and the lane opens only if that is wanted."""
    from gateway.cache.build import build

    data = desk.folder / "data"
    data.mkdir(mode=0o700)
    records = ndjson(
        [*venue(), {"kind": "area", "id": "pool"}, product("open"), *card(1, "SECRETCARD", "open")]
    )
    build(data, records.splitlines(), source="test", pace=0)
    desk.config.write_text(f'[gateway]\nid = "north"\ndata_dir = "{data}"\n')
    fork = desk.start()
    desk.expect("Replace it")
    desk.type("y")
    steps = [step if step[0] != "Name of the area" else ("Name of the area", "hall") for step in STEPS]
    follow(desk, steps)
    desk.expect("Test a card now")
    desk.type("")
    desk.expect("go on without a scan)")
    desk.scanners[1].send(b"]C0SECRETCARD\r")
    desk.expect("north-in: granted")
    desk.expect("Open lane north once")
    assert desk.board.pulses(2) == 1
    desk.type("y")
    assert fork.wait() == 0, fork.errors()
    assert desk.board.pulses(2) == 2
    assert "SECRETCARD" not in fork.errors()
    assert not (data / "ledger.db").exists()


# --- answers from a file ------------------------------------------------------------------------------


def answers(desk: Desk) -> Json:
    """A whole file of answers."""
    return {
        "id": "north",
        "lane": [
            {
                "name": "north",
                "area": "pool",
                "exit": True,
                "in": {"scanner": f"{desk.folder}/by-path/usb-0:1.1:1.0"},
                "out": {
                    "scanner": {"driver": "keyboard", "device": "/dev/input/by-path/not-yet", "layout": "de"},
                    "point": "pool-out",
                },
                "relay": {"driver": "gpio", "chip": "pinctrl-rp1", "line": 17},
                "passage": {"driver": "gpio", "chip": "pinctrl-rp1", "line": 22},
            }
        ],
    }


def answered(desk: Desk, given: Json) -> tuple[int, str]:
    path = desk.folder / "answers.json"
    path.write_text(json.dumps(given))
    fork = desk.start("--answers", str(path), stdin="/dev/null")
    status = fork.wait()
    said = fork.errors()
    assert "Traceback" not in said
    return status, said


def test_answers_from_a_file(desk: Desk) -> None:
    """A file answers everything without a terminal; nothing clicks."""
    status, said = answered(desk, answers(desk))
    assert status == 0, said
    config = load(desk.config)
    assert [(r.driver, r.device, r.layout) for r in config.readers] == [
        ("serial", f"{desk.folder}/by-path/usb-0:1.1:1.0", "us"),
        ("keyboard", "/dev/input/by-path/not-yet", "de"),
    ]
    assert [point.point.name for point in config.points] == ["north-in", "pool-out"]
    assert config.lanes[0].passage is not None
    assert desk.board.frames() == []

    status, said = answered(desk, answers(desk))
    assert status == 2
    assert "answers.json: replace: is missing" in said
    status, said = answered(desk, {**answers(desk), "replace": True})
    assert status == 0, said
    assert desk.config.with_name("gateway.toml.bak").exists()


def _without(given: Json, *path: str | int) -> Json:
    inner = given
    for name in path[:-1]:
        inner = inner[name]  # type: ignore[index]
    del inner[path[-1]]  # type: ignore[arg-type]
    return given


def test_answers_that_are_missing_or_wrong(desk: Desk) -> None:
    """An answer that is missing, wrong or superfluous is told with its key, and nothing is written."""
    wrongs: list[tuple[Callable[[Json], Json], str]] = [
        (lambda a: _without(a, "lane", 0, "in", "scanner"), "lane[0].in.scanner: is missing"),
        (lambda a: _without(a, "lane", 0, "relay"), "lane[0].relay: is missing"),
        (lambda a: {**a, "lanes": 2}, "lane[1].in.scanner: is missing"),
        (lambda a: {**a, "lanes": "many"}, "lanes: is 'many'"),
        (lambda a: {**a, "id": "no rth"}, 'id: is "no rth"'),
        (lambda a: {**a, "pulse": 7}, "pulse: nothing asks for that here"),
        (lambda a: {**a, "write": "perhaps"}, "write: must be true or false"),
        (lambda a: {**a, "central": {"url": "http://central.example"}}, "central.url: "),
        (lambda a: {**a, "central": {"code": "K7QM-2XPD-94HV"}}, "central.code: nothing asks for that here"),
        (lambda a: {**a, "lane": [{**a["lane"][0], "relay": {"driver": "gpio"}}]}, "lane[0].relay.chip"),
        (lambda a: {**a, "lane": [{**a["lane"][0], "in": {"scanner": "/dev/none"}}]}, "lane[0].in.scanner"),
    ]
    for change, says in wrongs:
        status, said = answered(desk, change(answers(desk)))
        assert status == 2, said
        assert says in said
        assert "nothing was" in said
        assert "K7QM" not in said
        assert not desk.config.exists()
        assert not list(desk.config.parent.iterdir())
    path = desk.folder / "answers.toml"
    for text, says in (("id = ", "is not valid TOML"), (None, "cannot be read")):
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        fork = desk.start("--answers", str(path), stdin="/dev/null")
        assert fork.wait() == 2
        assert says in fork.errors()


def test_print_code_and_usage(desk: Desk) -> None:
    """The set-up code goes to a file, or to standard output; a folder that cannot be written and a scanner
    that is none are told before anything is asked."""
    path = desk.folder / "code.svg"
    assert desk.start("--print-code", str(path)).wait() == 0
    fork = desk.start("--print-code", "-")
    assert fork.wait() == 0
    assert path.read_text() == fork.output()
    assert path.read_text().startswith("<svg ")
    fork = desk.start("--scanner", "mouse:/dev/null")
    assert fork.wait() == 2
    assert "must be serial:, keyboard: or hidpos:" in fork.errors()
    desk.config = path / "gateway.toml"
    fork = desk.start()
    assert fork.wait() == 2
    assert "run it as root: sudo gateway setup" in fork.errors()


def test_a_gate_that_runs_without_systemd(desk: Desk, site: Callable[..., Site]) -> None:
    """It has the devices and nobody would start it again: setup says so and leaves everything."""
    here = site()
    here.start()
    desk.config = here.config
    before = here.config.read_text()
    fork = desk.start()
    desk.expect("Replace it")
    desk.type("y")
    assert fork.wait() == 2
    assert "stop it, then run setup again" in fork.errors()
    assert here.config.read_text() == before
    assert tomllib.loads(before)
    assert here.call("status")["readers"][0]["up"]
