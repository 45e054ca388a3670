"""``gateway setup``, put together: who asks, what looks and clicks, what is written and started."""

from __future__ import annotations

import select
import signal
import sqlite3
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway import __version__, control
from gateway.alone import check_alone
from gateway.cache import generations
from gateway.cache.codekey import CodeKeyError
from gateway.config import Config, ReaderConfig
from gateway.configkeys import Wrong
from gateway.configload import ConfigError, loads
from gateway.doctor import findings
from gateway.enrolment import EnrolError, as_owner, enroll
from gateway.host import DataDirError
from gateway.readers.opening import OpenDevice, open_device
from gateway.setup.asking import Abandoned, Answers, AnswersError, Terminal
from gateway.setup.clicking import click
from gateway.setup.compose import compose
from gateway.setup.dialogue import Click, Known, Plan, Say, ScanFor, Scanner, Yes, dialogue
from gateway.setup.finding import find, shown
from gateway.setup.scanning import PATIENCE, listen
from gateway.setup.setupcode import TEXT
from gateway.setup.writing import cannot_write, make_data_dir, write
from gateway.units import Units

DONE, NOT_ALL, WRONG = 0, 1, 2


class SetupError(Exception):
    """It cannot begin, or cannot go on; nothing was changed. The message says what to do."""


@dataclass(slots=True, frozen=True)
class Options:
    """What the command line says, and what stands in for the machine in tests."""

    config: Path
    answers: Path | None = None
    data_dir: Path | None = None
    scanners: Sequence[str] = ()
    boards: Sequence[str] = ()
    units: Units = field(default_factory=Units)
    open_device: Callable[[ReaderConfig], OpenDevice] = open_device


def setup(options: Options) -> int:
    """Runs it; the exit status. Raises SetupError, AnswersError."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _abandon)
    session = _Session(options)
    try:
        return session.run()
    except Wrong as wrong:
        raise AnswersError(f"{options.answers}: {wrong.what}; {wrong.remedy}; nothing was changed") from None
    except (Abandoned, KeyboardInterrupt) as end:
        why = str(end) or "interrupted"
        sys.stderr.write(f"\ngateway: setup ends: {why}; {session.left()}\n")
        return 130 if isinstance(end, KeyboardInterrupt) else WRONG


def _abandon(number: int, _: object) -> None:
    raise Abandoned(f"signal {signal.Signals(number).name}")


class _Session:
    """One run, from the first look to doctor's summary."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._path = options.config
        self._asker = Terminal() if options.answers is None else Answers(options.answers)
        self._written: Path | None = None
        self._stopped: list[str] = []
        """The units to start again."""
        self._joined = False
        self._whole = True
        """Everything that was to be done was done."""

    def left(self) -> str:
        """How things are if it ends now."""
        if self._written is None:
            return "nothing was changed"
        return f"{self._written} is written and whole; gateway doctor says what is still to be done"

    def run(self) -> int:
        if why := cannot_write(self._path):
            raise SetupError(f"{why}; run it as root: sudo gateway setup")
        before = self._before()
        if self._path.exists() and not self._asker.ask(
            Yes("replace", f"There is a configuration, {self._path}. Replace it (it is kept as .bak)")
        ):
            return self._no("the configuration stays as it is")
        with ExitStack() as ending:
            ending.callback(self._start_again)
            if not self._free_devices(before):
                return self._no("the gate goes on")
            known = find(before, self._options.data_dir, self._options.scanners, self._options.boards)
            for line in shown(known):
                self._say(line)
            plan = self._drive(known)
            text = compose(plan, __version__)
            config = self._checked(text)
            self._say(f"\n{text}")
            if not self._asker.ask(Yes("write", f"Write this to {self._path}", True)):
                return self._no("nothing was written")
            self._asker.finish()
            self._write(config, text)
            self._enrol(plan, config)
            tested = self._test_scan(config)
            started = self._start()
        if started and not tested:
            self._test_at_the_gate(config)
        return self._summary(config)

    # --- before the first question --------------------------------------------------------------------

    def _before(self) -> dict[str, Any]:
        try:
            found = tomllib.loads(self._path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            self._say(f"{self._path} cannot be read; nothing is taken over from it.")
            return {}
        return {name: table for name, table in found.items() if isinstance(table, dict)}

    def _free_devices(self, before: dict[str, Any]) -> bool:
        """A running gate has the scanners to itself."""
        active = self._options.units.active()
        if not active:
            if _gate_runs(before):
                raise SetupError(
                    "a gate runs on this machine, and systemd did not start it: stop it, then run setup again"
                )
            return True
        if not self._asker.ask(
            Yes("stop", f"{', '.join(active)}: is running and has the devices. Stop it while setup runs")
        ):
            return False
        self._stopped = active
        if fault := self._options.units.stop(active):
            raise SetupError(f"the gate does not stop: {fault}")
        self._say("The gate is stopped; it is started again when setup ends, however it ends.")
        return True

    def _start_again(self) -> None:
        """Nothing may come between: a venue without its gate is worse than a late answer to a signal."""
        if not self._stopped:
            return
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        fault = self._options.units.start(self._stopped)
        self._say(f"The gate could not be started again: {fault}" if fault else "The gate is started again.")

    # --- asking ---------------------------------------------------------------------------------------

    def _drive(self, known: Known) -> Plan:
        asking = dialogue(known)
        answer: Any = None
        while True:
            try:
                question = asking.send(answer)
            except StopIteration as end:
                plan: Plan = end.value
                return plan
            match question:
                case Say(text=text):
                    self._say(text)
                    answer = None
                case ScanFor(prompt=prompt, scanners=scanners):
                    answer = self._scan(prompt, scanners)
                case Click(relay=relay):
                    self._say("click …")
                    answer = click(relay)
                case _:
                    answer = self._asker.ask(question)

    def _scan(self, prompt: str, scanners: Sequence[Scanner]) -> Any:
        assert isinstance(self._asker, Terminal), "a file answers what would be scanned"
        if not scanners:
            self._say(f"{prompt}: but no scanner is left.")
            return None
        self._say(f"{prompt}.")
        return listen(scanners, self._asker, self._options.open_device)

    def _checked(self, text: str) -> Config:
        """As the gate will read it; nothing is written that it would refuse."""
        try:
            return loads(text, str(self._path))
        except ConfigError as error:
            raise SetupError(f"these answers make no configuration; nothing was written:\n{error}") from None

    # --- doing ----------------------------------------------------------------------------------------

    def _write(self, config: Config, text: str) -> None:
        try:
            make_data_dir(config.gateway.data_dir)
            kept = write(self._path, text)
        except OSError as error:
            raise SetupError(
                f"{error.filename or self._path}: {error.strerror}; nothing was written"
            ) from None
        self._written = self._path
        self._say(f"Written: {self._path}" + (f"; the one before is {kept}" if kept else ""))

    def _test_scan(self, config: Config) -> bool:
        """While the devices are still ours: judged, opened for only after a yes. Whether that was asked."""
        if not isinstance(self._asker, Terminal):
            return False
        offer = "Test a card now (nothing opens)"
        if not _has_cards(config):
            if self._joined:  # they are on their way
                return False
            offer = "Test a scanner now (there are no cards yet: any code is unknown, and nothing opens)"
        readers = [reader for reader in config.readers if reader.driver != "stdin"]
        if not readers or not self._asker.ask(Yes("test", offer, True)):
            return True
        scanners = [Scanner(r.driver, r.device, r.name, r.device) for r in readers]
        self._say("Scan a card at any of the scanners.")
        known = [{"baudrate": reader.baudrate} for reader in readers]
        found = listen(scanners, self._asker, self._options.open_device, settings=known)
        if found is None:
            return True
        reader, code = readers[found[0]], found[1].code
        try:
            with as_owner(config.gateway.data_dir):
                said = check_alone(config, {"code": code.decode(errors="replace"), "point": reader.point})
        except (DataDirError, CodeKeyError, sqlite3.Error, control.CallError) as error:
            self._say(f"It cannot be judged: {error}")
            return True
        detail = f", {said['detail']}" if isinstance(said["detail"], str) else ""
        self._say(f"{reader.point}: {said['verdict']}{detail}; the visitor is told: {said['message']}")
        lane = next(p.point.lane for p in config.points if p.point.name == reader.point)
        relay = _relay_of(config, lane)
        if relay and self._asker.ask(
            Yes("open", f"Open lane {lane} once (nobody is standing in it; this is not recorded)", False)
        ):
            fault = click(relay)
            self._say(f"It does not click: {fault}." if fault else "click …")
        return True

    def _test_at_the_gate(self, config: Config) -> None:
        """Where the cards came only now, with the central: the gate has the scanners and opens for them."""
        if not isinstance(self._asker, Terminal) or not self._joined:
            return
        path = config.gateway.admin_socket or config.gateway.data_dir / "admin.sock"
        try:
            with as_owner(config.gateway.data_dir), closing(control.Client(path)) as gate:
                self._say("Waiting for the cards. (Enter: go on without them)")
                if self._wait(lambda: _cards_of(gate)) is None:
                    self._say("They have not come yet; gateway doctor says when something is in the way.")
                    return
                if not self._asker.ask(
                    Yes(
                        "test",
                        "Test a card at the gate now. If it is good, its lane opens: is nobody standing in "
                        "one, and shall it",
                        False,
                    )
                ):
                    return
                since = gate.call("status")["ledger"]["last_seq"]
                self._say("Scan a card. (Enter: go on without a scan)")
                event = self._wait(lambda: _scan_since(gate, since))
        except (control.NoGate, control.CallError, OSError) as error:
            self._say(f"The gate cannot be asked: {error}")
            return
        if event is None:
            self._say("Nothing was scanned.")
        else:
            detail = f", {event['detail']}" if isinstance(event.get("detail"), str) else ""
            self._say(f"{event['point']}: {event['verdict']}{detail}")

    def _wait(self, find: Callable[[], Any]) -> Any:
        """What is found within two minutes; None if it is not, or if Enter was pressed."""
        assert isinstance(self._asker, Terminal)
        until = time.monotonic() + PATIENCE
        while (found := find()) is None and time.monotonic() < until:
            if select.select([self._asker.fd], [], [], 0.3)[0] and self._asker.take() is not None:
                return None
        return found

    def _enrol(self, plan: Plan, config: Config) -> None:
        if not plan.central or not plan.code:
            return
        try:
            said, _ = enroll(config, self._path, plan.central["url"], plan.code)
        except (EnrolError, control.CallError, TimeoutError, OSError) as error:
            self._whole = False
            self._say(f"Not joined: {error}")
        else:
            self._joined = True
            self._say(f"Joined: {said['gateway']} to {said['url']}")

    def _start(self) -> bool:
        units = self._options.units
        installed = units.installed()
        if not installed:
            self._say(
                "No unit of the gateway is installed here, so nothing was started. Start it as its user: "
                f"gateway run --config {self._path}"
            )
            return False
        self._say(f"Starting {', '.join(installed)} …")
        if fault := units.enable(installed):
            self._whole = False
            self._say(f"Not started: {fault}")
        else:
            self._stopped = []
            self._say(f"Started, now and at each boot: {', '.join(installed)}")
            return True
        return False

    def _summary(self, config: Config) -> int:
        told = [
            finding for finding in findings(config, self._path, self._options.units) if finding.state != "ok"
        ]
        self._say(f"\ngateway doctor has {len(told)} thing(s) to say" + (":" if told else ": all is well."))
        for finding in told:
            self._say(f"  {finding.state}: {finding.about}: {finding.found}")
            if finding.remedy:
                self._say(f"    → {finding.remedy}")
        return DONE if self._whole else NOT_ALL

    def _no(self, why: str) -> int:
        self._say(f"Then not: {why}.")
        return DONE

    def _say(self, text: str) -> None:
        self._asker.say(text)


def _gate_runs(before: dict[str, Any]) -> bool:
    """Whether somebody listens on the admin socket of the configuration before."""
    gateway = before.get("gateway", {})
    data_dir, own = gateway.get("data_dir"), gateway.get("admin_socket")
    if not isinstance(data_dir, str):
        return False
    try:
        with closing(control.Client(Path(own) if isinstance(own, str) else Path(data_dir) / "admin.sock")):
            return True
    except (control.NoGate, OSError):
        return False


def _scan_since(gate: control.Client, since: int) -> dict[str, Any] | None:
    events = gate.call("events", since=since)["events"]
    return next((event for event in events if event["kind"] == "scan"), None)


def _cards_of(gate: control.Client) -> int | None:
    """How many cards the gate judges by; None before there are any. A central's first snapshot may be older
    than its cards, which come with the changes after it."""
    snapshot = gate.call("status")["snapshot"]
    return None if snapshot is None else snapshot["counts"]["credentials"] or None


def _has_cards(config: Config) -> bool:
    data_dir = config.gateway.data_dir
    try:
        return any(
            generations.passes(generations.path_of(data_dir, n)) for n in generations.numbers(data_dir)
        )
    except OSError:
        return False


def _relay_of(config: Config, lane: str) -> dict[str, Any]:
    """The relay's table again, for a click; empty where nothing opens."""
    relay = next(each.relay for each in config.lanes if each.name == lane)
    if relay.driver == "memory":
        return {}
    keys = {
        "gpio": ("chip", "line", "active_low"),
        "usbrelay": ("device", "board", "channel"),
        "serial": ("device", "board", "channel", "baudrate"),
        "modbus": ("device", "board", "channel", "address", "baudrate"),
    }[relay.driver]
    values = {key: getattr(relay, key) for key in keys}
    return {"driver": relay.driver, **{key: value for key, value in values.items() if value is not None}}


def print_code(path: str | None) -> int:
    """The set-up code: as SVG into a file (``-``: standard output), or drawn on this terminal."""
    from gateway.setup.code128 import blocks, svg

    if path is None and sys.stdout.isatty():
        sys.stdout.write(blocks(TEXT) + f"{TEXT}\n")
    elif path in (None, "-"):
        sys.stdout.write(svg(TEXT, TITLE))
    else:
        try:
            Path(str(path)).write_text(svg(TEXT, TITLE), encoding="utf-8")
        except OSError as error:
            raise SetupError(f"{path}: {error.strerror}") from None
    return DONE


TITLE = "Set-up code of the entry-scan gateway (Code 128)"

__all__ = ["AnswersError", "Options", "SetupError", "print_code", "setup"]
