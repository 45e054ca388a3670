"""The command line (DESIGN.md 5): arguments in, one function a command, exit status out.

Results for programs are NDJSON on stdout, everything for people goes to stderr. Exit 0: success or
granted, 1: denied, 2: a usage, configuration or data error, with a message that says what to do.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import orjson

from gateway import __version__, control, log
from gateway.cache.build import BuildReport, DataError, build, yield_to_gate
from gateway.cache.codekey import CodeKeyError
from gateway.cache.generations import BusyError, SnapshotError
from gateway.cache.ledger import LedgerTooNew, event_json, read_events, read_refused
from gateway.cache.ledger_store import FILE as LEDGER_FILE
from gateway.cache.snapshot import Snapshot
from gateway.config import Config
from gateway.configload import ConfigError, load
from gateway.replay import ScansError
from gateway.replay import run as run_replay

DEFAULT_CONFIG = Path("/etc/gateway/gateway.toml")
GRANTED, DENIED, WRONG = 0, 1, 2


class UsageError(Exception):
    """What was asked cannot be done; the message says why and what to do instead."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = _parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help(sys.stderr)
        return WRONG
    options = parser.parse_args(arguments)
    os.umask(0o077)  # what this program writes is nobody else's to read
    try:
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except (
        UsageError,
        ConfigError,
        DataError,
        SnapshotError,
        CodeKeyError,
        BusyError,
        LedgerTooNew,
        ScansError,
    ) as error:
        return _wrong(str(error))
    except control.CallError as error:
        return _wrong(str(error))
    except control.NoGate as error:
        return _wrong(
            f"no gate is running here ({error}); start it: systemctl start gateway, or gateway gate"
        )
    except PermissionError as error:
        return _wrong(
            f"{error.filename or 'permission'}: {error.strerror}; run it as root or as the gate's user"
        )
    except TimeoutError:
        return _wrong("the gate does not answer; see the journal: journalctl -u gateway")
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return GRANTED
    except KeyboardInterrupt:
        return 130


def entry() -> None:
    """The console script."""
    sys.exit(main())


def _wrong(message: str) -> int:
    print(f"gateway: {message}", file=sys.stderr)
    return WRONG


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _put(result: Any) -> None:
    sys.stdout.write(orjson.dumps(result).decode() + "\n")


# --- arguments --------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gateway",
        description="The gate beside a turnstile: reads scanners, judges, records, opens the lane.",
    )
    parser.add_argument("--version", action="version", version=f"gateway {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], help_: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_, description=help_)
        sub.set_defaults(run=run)
        sub.add_argument(
            "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help=f"default: {DEFAULT_CONFIG}"
        )
        return sub

    command("demo", _demo, "the whole system on this machine, without hardware or configuration")
    for name, run, help_ in (
        ("run", _run, "gate and sync, each in a process of its own, for containers and trying out"),
        ("gate", _gate, "the gate: readers, judgement, ledger, lanes (the unit gateway.service)"),
    ):
        sub = command(name, run, help_)
        sub.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    sub = command("sync", _sync, "the courier between gate and central, and the page for Prometheus")
    sub.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    sub = command("enroll", _enroll, "join this gateway to a central, with a one-time code of its operator")
    sub.add_argument("url", metavar="URL", help="the central's address, as in https://central.example")
    sub.add_argument(
        "code",
        metavar="CODE",
        help="the one-time code, or - to read it from standard input: others on this machine can see a "
        "command line while it runs",
    )
    sub = command(
        "import", _import, "an NDJSON file of cards becomes the new generation, whole or not at all"
    )
    sub.add_argument("file", metavar="FILE", help="the file, or - for standard input")
    sub.add_argument("--skip-bad", action="store_true", help="load the rest where records are bad")
    sub = command("check", _check, "the verdict on a code, changing nothing")
    sub.add_argument("code", metavar="CODE", help="the code, or - to read it from standard input")
    sub.add_argument("--point", required=True, metavar="P", help="the access point, as [[point]] names it")
    sub.add_argument("--at", metavar="TIME", help="an instant like 2026-11-21T10:00:00+01:00; default: now")
    sub = command("replay", _replay, "judge a file of scans against a file of records, in memory")
    sub.add_argument("feed", metavar="FEED", help="records, NDJSON")
    sub.add_argument("scans", metavar="SCANS", help="scans, NDJSON, or - for standard input")
    sub.add_argument("--skip-bad", action="store_true", help="load the rest where records are bad")
    sub = command("ledger", _ledger, "the access events")
    sub.add_argument("--since", type=int, default=0, metavar="SEQ", help="only those after this number")
    sub.add_argument("--follow", action="store_true", help="go on with what happens")
    sub.add_argument("--refused", action="store_true", help="only those that the central refused")
    sub = command(
        "devices", _devices, "every scanner and relay board found, with lines for the configuration"
    )
    sub.add_argument("--json", action="store_true", help="NDJSON instead of text")
    sub = command(
        "setup",
        _setup,
        "finds scanners and relays, asks the rest, writes the configuration, starts the gate",
    )
    sub.add_argument(
        "--answers", type=Path, metavar="FILE", help="answers in TOML or JSON, instead of asking"
    )
    sub.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where cards and entries lie (default: as before, or /var/lib/gateway)",
    )
    sub.add_argument(
        "--scanner",
        action="append",
        default=[],
        type=_scanner_named,
        metavar="DRIVER:PATH",
        help="the scanners, as serial:/dev/ttyAMA0, where they are not to be looked for; may be repeated",
    )
    sub.add_argument(
        "--board",
        action="append",
        default=[],
        metavar="PATH",
        help="the ports of relay boards, where they are not to be looked for; may be repeated",
    )
    sub.add_argument(
        "--print-code",
        nargs="?",
        const="",
        metavar="FILE",
        help="only draw the set-up code: on a terminal, or as SVG into FILE (- is standard output)",
    )
    sub = command("doctor", _doctor, "check rights, devices, clock, disk and stores; say what to do")
    sub.add_argument("--json", action="store_true", help="NDJSON instead of text")
    sub = command(
        "support-bundle",
        _support_bundle,
        "one file for whoever helps from afar; no code and no name is in it",
    )
    sub.add_argument("--output", type=Path, metavar="FILE", help="default: support-ID-TIME.tar.gz, here")
    sub = command("open", _open, "open a lane once")
    sub.add_argument("lane", metavar="LANE", help="as [[lane]] names it")
    sub = command("lane", _lane, "set the state of a lane")
    sub.add_argument("lane", metavar="LANE", help="as [[lane]] names it")
    sub.add_argument("state", choices=("normal", "closed", "free"), help="free: nobody is refused")
    sub = command("clear", _clear, "everybody in that area is outside")
    sub.add_argument("area", metavar="AREA", help="as the records name it")
    sub = command("annul", _annul, "the person of that event did not go through after all")
    sub.add_argument("seq", type=int, metavar="SEQ", help="the event's number, seq in gateway ledger")
    sub = command("operator", _operator, "who may open and close lanes from the status page")
    sub.add_argument("do", choices=("add", "list", "remove"), help="add prints the operator's token, once")
    sub.add_argument("name", nargs="?", metavar="NAME", help="of add and remove: letters, digits, - and _")
    from gateway.central.cli import add

    help_ = "the reference central: serve it, and ask it things"
    add(commands.add_parser("central", help=help_, description=help_))
    return parser


# --- the gate -----------------------------------------------------------------------------------------


def _gate(options: argparse.Namespace) -> int:
    from gateway.daemon import serve
    from gateway.host import DataDirError

    config = load(options.config)
    writer = log.start(options.log_level)
    try:
        return asyncio.run(serve(config))
    except DataDirError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"the gate cannot start: {error}") from error
    finally:
        writer.close()


def _run(options: argparse.Namespace) -> int:
    from gateway.supervise import Part, run

    load(options.config)  # what is wrong with it is said once, and nothing is started
    more = ("--config", options.config, "--log-level", options.log_level)
    writer = log.start(options.log_level)
    try:
        command = (sys.executable, "-m", "gateway")
        gate = Part("gate", [*command, "gate", *more], terminal=True)  # a reader of it may be standard input
        return asyncio.run(run((gate, Part("sync", [*command, "sync", *more]))))
    finally:
        writer.close()


def _sync(options: argparse.Namespace) -> int:
    from gateway.courier import serve

    config = load(options.config)
    writer = log.start(options.log_level)
    try:
        return asyncio.run(serve(config))
    except OSError as error:
        raise UsageError(f"the sync cannot start: {error}") from error
    finally:
        writer.close()


def _enroll(options: argparse.Namespace) -> int:
    from gateway.enrolment import EnrolError, enroll

    config = load(options.config)
    code = _first_line().strip() if options.code == "-" else options.code
    try:
        said, todo = enroll(config, options.config, options.url, code)
    except EnrolError as error:
        raise UsageError(str(error)) from None
    _say(f"gateway: {said['gateway']} is joined to {said['url']}")
    if todo is not None:
        _say(f"gateway: {todo}")
    _put(said)
    return GRANTED


def _demo(_: argparse.Namespace) -> int:
    from gateway.demo.terminal import demo

    return demo()


# --- stores -------------------------------------------------------------------------------------------


def _as_owner(data_dir: Path) -> None:
    """Become the gate's user before touching its stores, or root leaves files that the gate cannot open."""
    if os.geteuid() == 0 and data_dir.exists():
        owner = data_dir.stat()
        if owner.st_uid != 0:
            os.setegid(owner.st_gid)
            os.seteuid(owner.st_uid)


def _admin(config: Config) -> control.Client:
    return control.Client(config.gateway.admin_socket or config.gateway.data_dir / "admin.sock")


def _import(options: argparse.Namespace) -> int:
    config = load(options.config)
    data_dir = config.gateway.data_dir
    with _lines(options.file) as (lines, size):
        _as_owner(data_dir)
        yield_to_gate()
        report = _build(data_dir, lines, size, options)
    try:
        with closing(_admin(config)) as gate:
            taken = gate.call("generation")["generation"]
        used = "in use" if taken == report.generation else f"not in use: the gate keeps generation {taken}"
    except control.NoGate:
        used = "ready for when a gate starts"
    _say(f"gateway: generation {report.generation} is {used}; credentials: {report.credentials:,}")
    _put(
        {
            "generation": report.generation,
            "records": report.records,
            "credentials": report.credentials,
            "entitlements": report.entitlements,
            "holders": report.holders,
            "skipped_bad": report.skipped_bad,
            "unknown_kinds": report.unknown_kinds,
        }
    )
    return GRANTED


def _build(
    data_dir: Path, lines: Iterable[bytes], size: int | None, options: argparse.Namespace
) -> BuildReport:
    with _progress(size) as progress:
        source = _called(options.file)
        report = build(data_dir, lines, source=source, skip_bad=options.skip_bad, progress=progress)
    for fault in report.faults:
        _say(f"gateway: skipped {source}:{fault}")
    if report.skipped_bad > len(report.faults):
        _say(f"gateway: skipped {report.skipped_bad - len(report.faults)} more bad records")
    for kind, count in report.unknown_kinds.items():
        _say(f"gateway: skipped {count} of the kind {kind!r}, which this version does not know")
    return report


@contextmanager
def _progress(size: int | None) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal, gone when its work is done; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description:<8}"),
        BarColumn(),
        TextColumn("{task.fields[share]:>5}  {task.fields[records]:,} records"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("reading", total=size, records=0, share="")

        def show(records: int, read: int) -> None:
            if size is None:
                bar.update(task, records=records)
            elif read < size:
                bar.update(task, completed=read, records=records, share=f"{read / size:.0%}")
            else:  # how long sorting and writing take cannot be known: the bar runs to and fro
                bar.update(task, description="building", total=None, records=records, share="")

        yield show


def _called(file: str) -> str:
    return "standard input" if file == "-" else file


@contextmanager
def _lines(name: str) -> Iterator[tuple[IO[bytes], int | None]]:
    """A file's lines and its size in bytes (None where it cannot be known)."""
    if name == "-":
        yield sys.stdin.buffer, None
        return
    try:
        with open(name, "rb") as file:
            yield file, os.fstat(file.fileno()).st_size or None
    except FileNotFoundError:
        raise UsageError(f"{name}: there is no such file") from None
    except IsADirectoryError:
        raise UsageError(f"{name}: is a folder; name the NDJSON file in it") from None


def _check(options: argparse.Namespace) -> int:
    config = load(options.config)
    code = _first_line() if options.code == "-" else options.code
    if not code.isprintable() and any("\ud800" <= c <= "\udfff" for c in code):
        raise UsageError("CODE is not UTF-8; such a payload is always malformed")
    try:
        with closing(_admin(config)) as gate:
            answer = gate.call("check", code=code, point=options.point, at=options.at)
    except control.NoGate:
        answer = _check_alone(config, code, options.point, options.at)
    _put(answer)
    return GRANTED if answer["verdict"] == "granted" else DENIED


def _first_line() -> str:
    """Of standard input; what is not UTF-8 comes as it does in arguments."""
    return sys.stdin.buffer.readline().decode(errors="surrogateescape").rstrip("\r\n")


def _check_alone(config: Config, code: str, point: str, at: str | None) -> dict[str, Any]:
    """No gate runs: read its stores ourselves."""
    from gateway.alone import check_alone
    from gateway.host import DataDirError

    _as_owner(config.gateway.data_dir)
    try:
        return check_alone(config, {"code": code, "point": point, "at": at})
    except DataDirError as error:
        raise UsageError(str(error)) from None
    except sqlite3.Error as error:
        raise UsageError(
            f"the ledger cannot be read: {error}; a gate that starts sets a damaged one aside"
        ) from error


def _replay(options: argparse.Namespace) -> int:
    config = load(options.config, replay=True)
    with tempfile.TemporaryDirectory(prefix="gateway-replay-") as folder:
        options.file = options.feed
        with _lines(options.feed) as (lines, size):
            _build(Path(folder), lines, size, options)
        snapshot = Snapshot.open(Path(folder))
        assert snapshot is not None
        with closing(snapshot), _lines(options.scans) as (scans, _):
            for answer in run_replay(config, snapshot, scans, _called(options.scans)):
                _put(answer)
    return GRANTED


def _ledger(options: argparse.Namespace) -> int:
    config = load(options.config)
    since, gone = options.since, False
    while True:
        try:
            with closing(_admin(config)) as gate:
                gone = False
                for event in _from_gate(gate, since, options):
                    _put(event)
                    since = max(since, event.get("seq", since))
        except control.NoGate:
            if options.follow and since > options.since:
                if not gone:
                    _say("gateway: the gate is gone; waiting for it")
                gone = True
            else:
                for event in _from_file(config, since, options):
                    _put(event)
                    since = max(since, event["seq"])
        if not options.follow:
            return GRANTED
        sys.stdout.flush()
        time.sleep(1)


def _from_gate(gate: control.Client, since: int, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    if options.refused:
        yield from gate.call("refused")["events"]
        return
    while True:
        page = gate.call("events", since=since)
        yield from page["events"]
        if page["last"] > since:
            since = page["last"]
        elif options.follow:
            sys.stdout.flush()
            time.sleep(0.2)
        else:
            return


def _from_file(config: Config, since: int, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """No gate runs: read its file ourselves."""
    _as_owner(config.gateway.data_dir)
    path = config.gateway.data_dir / LEDGER_FILE
    try:
        if options.refused:
            yield from read_refused(path)
            return
        while page := read_events(path, since, 1000):
            for row in page:
                yield event_json(row, row["gateway"], row["epoch"])
            since = page[-1]["seq"]
    except FileNotFoundError as error:
        raise UsageError(str(error)) from None
    except sqlite3.Error as error:
        raise UsageError(
            f"{path} cannot be read: {error}; a gate that starts sets a damaged ledger aside"
        ) from error


# --- by hand ------------------------------------------------------------------------------------------


def _ask(options: argparse.Namespace, call: str, **arguments: Any) -> int:
    with closing(_admin(load(options.config))) as gate:
        _put(gate.call(call, **arguments))
    return GRANTED


def _open(options: argparse.Namespace) -> int:
    return _ask(options, "open", lane=options.lane)


def _lane(options: argparse.Namespace) -> int:
    return _ask(options, "lane", lane=options.lane, state=options.state)


def _clear(options: argparse.Namespace) -> int:
    return _ask(options, "clear", area=options.area)


def _annul(options: argparse.Namespace) -> int:
    return _ask(options, "annul", seq=options.seq)


def _operator(options: argparse.Namespace) -> int:
    from gateway import operators

    data_dir = load(options.config).gateway.data_dir
    if (options.name is None) is not (options.do == "list"):
        raise UsageError("a name belongs to add and to remove, as in: gateway operator add anna")
    _as_owner(data_dir)
    try:
        if options.do == "add":
            _put({"operator": options.name, "token": operators.add(data_dir, options.name)})
            _say("gateway: the token is shown this once; who has it may open and close lanes here")
        elif options.do == "remove":
            operators.remove(data_dir, options.name)
            _put({"operator": options.name, "removed": True})
        else:
            for each in operators.load(data_dir):
                added = datetime.fromtimestamp(each.added, UTC).isoformat()
                _put({"operator": each.name, "added": added})
    except operators.OperatorsError as error:
        raise UsageError(str(error)) from None
    except FileNotFoundError:
        raise UsageError(f"{data_dir} is not there; create it: install -d -m 700 {data_dir}") from None
    return GRANTED


# --- looking around -------------------------------------------------------------------------------------


def _devices(options: argparse.Namespace) -> int:
    from gateway.doctor import devices

    return devices(as_json=options.json)


def _scanner_named(text: str) -> str:
    driver, _, path = text.partition(":")
    if driver not in ("serial", "keyboard", "hidpos") or not path.startswith("/"):
        raise argparse.ArgumentTypeError(
            "must be serial:, keyboard: or hidpos: and an absolute path, as serial:/dev/ttyAMA0"
        )
    return text


def _setup(options: argparse.Namespace) -> int:
    from gateway.setup import run

    try:
        if options.print_code is not None:
            return run.print_code(options.print_code or None)
        return run.setup(
            run.Options(
                options.config.absolute(), options.answers, options.data_dir, options.scanner, options.board
            )
        )
    except (run.SetupError, run.AnswersError) as error:
        raise UsageError(str(error)) from None


def _doctor(options: argparse.Namespace) -> int:
    from gateway.doctor import doctor

    return doctor(options.config, as_json=options.json)


def _support_bundle(options: argparse.Namespace) -> int:
    from gateway.support.bundle import BundleError, support_bundle

    try:
        return support_bundle(options.config, options.output)
    except BundleError as error:
        raise UsageError(str(error)) from None


if __name__ == "__main__":
    entry()
