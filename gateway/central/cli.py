"""``gateway central COMMAND``: the reference central from the command line, over its admin API.

Only ``serve`` needs the packages of the extra ``central``; the other commands speak HTTP, so they run on
any machine, also one with a gate. Results are NDJSON on stdout (tables on a terminal, where there is much
to see), words for people go to stderr.
"""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import orjson

from gateway.central.adminclient import Admin, CentralError, default_url, name, read_token

DONE, WRONG = 0, 2
VENUE = "main"
_EVENT_FIELDS = ("kind", "verdict", "point", "credential", "holder", "after", "before")
ROLES = ("read", "operate", "admin")

Run = Callable[[argparse.Namespace], int]


def add(parser: argparse.ArgumentParser) -> None:
    """Give ``gateway central`` its commands; each sets ``run``."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(word: str, run: Run, help_: str, *, table: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(word, help=help_, description=help_)
        sub.set_defaults(run=_guarded(run))
        sub.add_argument(
            "--url",
            default=None,
            metavar="URL",
            help="the central; default: GATEWAY_CENTRAL_URL, else this machine",
        )
        sub.add_argument(
            "--admin-token",
            default=None,
            metavar="FILE",
            help="the file with the admin token; default: GATEWAY_ADMIN_TOKEN_FILE",
        )
        if table:
            sub.add_argument("--json", action="store_true", help="NDJSON also on a terminal")
        return sub

    def at_venue(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub.add_argument("--venue", default=VENUE, metavar="VENUE", help=f"default: {VENUE}")
        return sub

    _serving(commands)
    _records(command, at_venue)
    _acts(command)
    _gateways(command, at_venue)
    _office(command)
    _conforming(commands)


def _guarded(run: Run) -> Run:
    def guarded(options: argparse.Namespace) -> int:
        try:
            return run(options)
        except CentralError as error:
            _say(f"gateway: {error}")
            return WRONG

    return guarded


def _admin(options: argparse.Namespace) -> Admin:
    token = read_token(options.admin_token or os.environ.get("GATEWAY_ADMIN_TOKEN_FILE"))
    return Admin(options.url or default_url(), token)


def _put(result: Any) -> int:
    sys.stdout.write(orjson.dumps(result).decode() + "\n")
    return DONE


def _say(message: str) -> None:
    sys.stderr.write(message + "\n")


def _ask(options: argparse.Namespace, method: str, path: str, body: dict[str, Any] | None = None) -> int:
    """One call whose answer is the result."""
    answer = _admin(options).call(method, path, body)
    return DONE if answer is None else _put(answer)


def _list(options: argparse.Namespace, rows: list[dict[str, Any]], *columns: str) -> int:
    """A table of these columns on a terminal, every field as NDJSON elsewhere."""
    if options.json or not sys.stdout.isatty():
        for row in rows:
            _put(row)
        return DONE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, header_style="bold")
    for row in rows:
        table.add_row(*(Text(_cell(row.get(column))) for column in columns))
    Console().print(table)
    return DONE


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


# --- serve and conformance: the two that need no admin API -----------------------------------------------


def _serving(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    help_ = "runs the reference central"
    sub = commands.add_parser("serve", help=help_, description=help_)
    sub.set_defaults(run=_guarded(_serve))
    sub.add_argument("--data", type=Path, required=True, metavar="DIR", help="its folder; made when missing")
    sub.add_argument(
        "--listen", default="127.0.0.1:9470", metavar="HOST:PORT", help="default: 127.0.0.1:9470"
    )
    sub.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate with its chain, PEM")
    sub.add_argument("--tls-key", type=Path, metavar="FILE", help="the certificate's key, PEM")
    sub.add_argument(
        "--behind-proxy",
        action="store_true",
        help="a proxy with TLS is before it; believe what it says of who asks",
    )
    sub.add_argument("--database", metavar="URL", help="another database than central.db in the folder")
    sub.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")


def _serve(options: argparse.Namespace) -> int:
    try:
        import alembic  # noqa: F401
        import sqlalchemy  # noqa: F401
    except ImportError as error:
        raise CentralError(
            f"the central needs {error.name}, which is not installed here; install the extra:"
            " pip install 'entry-scan-gateway[central]' (in a checkout: pip install '.[central]')"
        ) from None
    from gateway.central.run import serve

    status: int = serve(options)
    return status


def _conforming(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from gateway.central.conformance import add_arguments, run

    help_ = "tests any central against docs/protocol.md and reports point by point"
    sub = commands.add_parser("conformance", help=help_, description=help_)
    sub.set_defaults(run=_guarded(run))
    add_arguments(sub)


# --- records -------------------------------------------------------------------------------------------


def _records(
    command: Callable[..., argparse.ArgumentParser],
    at_venue: Callable[[argparse.ArgumentParser], argparse.ArgumentParser],
) -> None:
    sub = at_venue(command("load", _load, "puts the records of an NDJSON file into a venue, all or none"))
    sub.add_argument("file", metavar="FILE", help="the file, or - for standard input")
    sub.add_argument("--skip-bad", action="store_true", help="load the rest where records are bad")
    at_venue(command("export", _export, "every record of a venue, as NDJSON that load takes"))
    sub = at_venue(command("put", _put_record, "puts one record into a venue"))
    sub.add_argument("file", metavar="FILE", help="one JSON object, or - for standard input")
    for word, run, help_ in (
        ("delete", _delete, "takes a record out of a venue"),
        ("show", _show, "a record as it is"),
    ):
        sub = at_venue(command(word, run, help_))
        sub.add_argument(
            "kind", metavar="KIND", help="area, event, product, holder, entitlement, credential …"
        )
        sub.add_argument("id", metavar="ID", nargs="?", help="none for the kind venue")
        if word == "show":
            sub.add_argument("--history", action="store_true", help="every version, with when and by whom")


def _load(options: argparse.Namespace) -> int:
    admin = _admin(options)
    query = {"skip_bad": 1 if options.skip_bad else None}
    with _opened(options.file) as file, _pieces(file, options.file) as pieces:
        try:
            result = admin.call("POST", f"venues/{name(options.venue)}/records", pieces, query=query)
        except CentralError as error:  # it speaks of the API's parameter
            raise CentralError(str(error).replace("skip_bad=1", "--skip-bad")) from None
    for fault in result["faults"]:
        named = " ".join(filter(None, (fault["kind"], fault["id"], fault["field"])))
        _say(f"gateway: skipped line {fault['line']}: {named} {fault['message']}")
    if result["bad"] > len(result["faults"]):
        _say(f"gateway: skipped {result['bad'] - len(result['faults'])} more bad records")
    return _put(result)


@contextmanager
def _opened(file: str) -> Iterator[IO[bytes]]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = open(file, "rb")  # noqa: SIM115
    except FileNotFoundError:
        raise CentralError(f"{file}: there is no such file") from None
    except IsADirectoryError:
        raise CentralError(f"{file}: is a folder; name the NDJSON file in it") from None
    except PermissionError:
        raise CentralError(f"{file}: may not be read by you") from None
    with stream:
        yield stream


@contextmanager
def _pieces(file: IO[bytes], called: str) -> Iterator[Iterable[bytes]]:
    """The file piece by piece, with a bar on a terminal."""

    def read() -> Iterator[bytes]:
        while piece := file.read(1 << 16):
            yield piece

    if not sys.stderr.isatty():
        yield read()
        return
    from rich.console import Console
    from rich.progress import Progress

    size = None if called == "-" else os.fstat(file.fileno()).st_size
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=size)

        def shown() -> Iterator[bytes]:
            for piece in read():
                bar.advance(task, len(piece))
                yield piece
            bar.update(task, description="storing", total=None)

        yield shown()


def _export(options: argparse.Namespace) -> int:
    written, told = 0, sys.stderr.isatty() and not sys.stdout.isatty()
    for piece in _admin(options).pieces(f"venues/{name(options.venue)}/records"):
        sys.stdout.buffer.write(piece)
        written += len(piece)
        if told:
            sys.stderr.write(f"\r{written >> 10:,} KiB")
    if told:
        sys.stderr.write("\n")
    return DONE


def _put_record(options: argparse.Namespace) -> int:
    with _opened(options.file) as file:
        raw = file.read(1 << 20)
    try:
        record = orjson.loads(raw)
    except ValueError:
        record = None
    if not isinstance(record, dict) or "kind" not in record:
        raise CentralError(
            f'{options.file}: must be one record like {{"kind":"area","id":"hall"}}; load takes many'
        )
    line = orjson.dumps(record) + b"\n"
    return _put(_admin(options).call("POST", f"venues/{name(options.venue)}/records", [line]))


def _record_path(options: argparse.Namespace) -> str:
    if options.id is None and options.kind != "venue":
        raise CentralError(f"name the record: gateway central show {options.kind} ID")
    return f"venues/{name(options.venue)}/records/{name(options.kind)}/{name(options.id or options.venue)}"


def _delete(options: argparse.Namespace) -> int:
    return _ask(options, "DELETE", _record_path(options))


def _show(options: argparse.Namespace) -> int:
    if not options.history:
        return _ask(options, "GET", _record_path(options))
    for version in _rows(_admin(options).call("GET", _record_path(options) + "/history")):
        _put(version)
    return DONE


def _rows(answer: Any) -> list[dict[str, Any]]:
    """The list in an answer, whatever its one field is called."""
    if isinstance(answer, dict):
        lists = [value for value in answer.values() if isinstance(value, list)]
        answer = lists[0] if len(lists) == 1 else None
    if not isinstance(answer, list):
        raise CentralError("the central's answer has no list; is it of another version than this command?")
    return answer


# --- acts on memberships -------------------------------------------------------------------------------


def _acts(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command("revoke", _revoke, "a card is lost: refused everywhere, its membership stays")
    _card(sub)
    sub.add_argument("--state", choices=("lost", "revoked"), default="lost", help="default: lost")
    sub = command(
        "replace",
        _replace,
        "a new card for an old one; the new code comes on standard input, the old is refused",
    )
    _card(sub)
    sub.add_argument("new", metavar="NEW-ID", help="the id of the new credential")
    sub = command("renew", _renew, "an entitlement holds longer; the card in the pocket stays")
    sub.add_argument("entitlement", metavar="ENTITLEMENT")
    sub.add_argument(
        "until", metavar="UNTIL", help="the last day like 2027-12-31, an instant, or none for ever"
    )
    for word, kind, help_ in (
        ("suspend", "entitlement", "an entitlement admits nobody until it is resumed"),
        ("resume", "entitlement", "a suspended entitlement admits again"),
        ("block", "holder", "a holder is admitted by nothing"),
        ("unblock", "holder", "a blocked holder is admitted again"),
    ):
        sub = command(word, _act(word, kind), help_)
        sub.add_argument("id", metavar=kind.upper())
    sub = command("product", _product, "an entitlement becomes one of another product; the card stays")
    sub.add_argument("entitlement", metavar="ENTITLEMENT")
    sub.add_argument("product", metavar="PRODUCT")


def _card(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "credential", metavar="CREDENTIAL", help="its id, or - to read the card's code from standard input"
    )


def _credential(options: argparse.Namespace, admin: Admin) -> str:
    """The id of the credential that is meant."""
    if options.credential != "-":
        return str(options.credential)
    found = admin.call("POST", "codes/find", {"code": _secret("code of the card: ")})["credential"]
    if found is None:
        raise CentralError("no credential has that code")
    _say(f"gateway: that is the credential {found}")
    return str(found)


def _secret(prompt: str) -> str:
    """A line of standard input that should stand nowhere else."""
    if sys.stdin.isatty():
        return getpass.getpass(prompt, sys.stderr)
    line = sys.stdin.buffer.readline()
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise CentralError("the code on standard input is not UTF-8") from None
    if not text:
        raise CentralError(
            "standard input has no code; give it like: printf '%s\\n' CODE | gateway central …"
        )
    return text


def _revoke(options: argparse.Namespace) -> int:
    admin = _admin(options)
    id_ = _credential(options, admin)
    return _put(admin.call("POST", f"credentials/{name(id_)}/revoke", {"state": options.state}))


def _replace(options: argparse.Namespace) -> int:
    admin = _admin(options)
    id_ = _credential(options, admin)
    body = {"id": options.new, "code": _secret("code of the new card: ")}
    return _put(admin.call("POST", f"credentials/{name(id_)}/replace", body))


def _renew(options: argparse.Namespace) -> int:
    until = None if options.until == "none" else options.until
    return _ask(options, "POST", f"entitlements/{name(options.entitlement)}/renew", {"valid_until": until})


def _act(word: str, kind: str) -> Run:
    def run(options: argparse.Namespace) -> int:
        return _ask(options, "POST", f"{kind}s/{name(options.id)}/{word}", {})

    return run


def _product(options: argparse.Namespace) -> int:
    path = f"entitlements/{name(options.entitlement)}/product"
    return _ask(options, "POST", path, {"product": options.product})


# --- gateways ------------------------------------------------------------------------------------------


def _gateways(
    command: Callable[..., argparse.ArgumentParser],
    at_venue: Callable[[argparse.ArgumentParser], argparse.ArgumentParser],
) -> None:
    sub = at_venue(command("enrol-code", _enrol_code, "a one-time code with which a gateway joins"))
    sub.add_argument("gateway", metavar="GATEWAY", help="its id, as its own configuration has it")
    sub.add_argument(
        "--ttl-s", type=int, default=86_400, metavar="S", help="how long it holds; default: a day"
    )
    command("gateways", _gateway_list, "every gateway with what it last said of itself", table=True)
    sub = command("gateway-token", _gateway_token, "has a gateway's token renewed at its next call")
    sub.add_argument("gateway", metavar="GATEWAY")
    sub.add_argument("--at-once", action="store_true", help="void the present token; carry the new one there")
    sub = command("gateway-revoke", _gateway_revoke, "a gateway is refused from now on, and wipes its cards")
    sub.add_argument("gateway", metavar="GATEWAY")
    for word, what, help_ in (
        ("open", "lane", "opens a lane once"),
        ("close", "lane", "closes a lane: nobody comes in"),
        ("free", "lane", "sets a lane free: nobody is refused"),
        ("normal", "lane", "a lane is as usual again"),
        ("clear", "area", "everybody in an area is outside"),
        ("annul", "seq", "the person of an event did not go through after all"),
    ):
        sub = command(word, _order(word, what), help_)
        sub.add_argument("gateway", metavar="GATEWAY")
        sub.add_argument(what, metavar=what.upper(), type=int if what == "seq" else str)
        sub.add_argument(
            "--ttl-s", type=int, default=30, metavar="S", help="not obeyed after that; default: 30"
        )


def _enrol_code(options: argparse.Namespace) -> int:
    body = {"gateway": options.gateway, "ttl_s": options.ttl_s}
    return _ask(options, "POST", f"venues/{name(options.venue)}/enrolment-codes", body)


def _gateway_list(options: argparse.Namespace) -> int:
    return _list(
        options,
        _rows(_admin(options).call("GET", "gateways")),
        *("gateway", "venue", "hostname", "version", "seen", "revoked", "condition"),
    )


def _gateway_token(options: argparse.Namespace) -> int:
    return _ask(options, "POST", f"gateways/{name(options.gateway)}/token", {"at_once": options.at_once})


def _gateway_revoke(options: argparse.Namespace) -> int:
    return _ask(options, "POST", f"gateways/{name(options.gateway)}/revoke", {})


def _order(word: str, what: str) -> Run:
    def run(options: argparse.Namespace) -> int:
        body = {"do": word, what: getattr(options, what), "ttl_s": options.ttl_s}
        return _ask(options, "POST", f"gateways/{name(options.gateway)}/commands", body)

    return run


# --- the office: keys, tokens, venues, events ------------------------------------------------------------


def _office(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command("keys", _keys, "the keys that sign; announce, use and retire rotate them", table=True)
    sub.add_argument("act", nargs="?", choices=("announce", "use", "retire"))
    sub.add_argument("id", nargs="?", metavar="KEY", help="for use and retire")
    sub = command("tokens", _tokens, "the admin tokens; create and revoke", table=True)
    sub.add_argument("act", nargs="?", choices=("create", "revoke"))
    sub.add_argument("name", nargs="?", metavar="NAME")
    sub.add_argument("role", nargs="?", choices=ROLES, metavar="ROLE", help="read, operate or admin")
    sub.add_argument(
        "--to", type=Path, metavar="FILE", help="write a new token into this new file, not to stdout"
    )
    sub = command("venues", _venues, "the venues; create makes one", table=True)
    sub.add_argument("act", nargs="?", choices=("create",))
    sub.add_argument("id", nargs="?", metavar="VENUE")
    sub.add_argument("--names", action="store_true", help="its gates are told the holders' names")
    sub = command("events", _events, "the access events of all gateways", table=True)
    sub.add_argument("--since", metavar="CURSOR", help="only those after this cursor")
    for field in ("gateway", *_EVENT_FIELDS):
        sub.add_argument(f"--{field}", metavar="TIME" if field in ("after", "before") else field.upper())
    sub.add_argument("--limit", type=int, metavar="N", help="at most so many")
    sub.add_argument("--csv", action="store_true", help="CSV instead")
    sub = command("conflicts", _conflicts, "events that contradict each other", table=True)
    sub.add_argument("--since", metavar="CURSOR", help="only those after this cursor")
    sub.add_argument("--limit", type=int, metavar="N", help="at most so many")


def _keys(options: argparse.Namespace) -> int:
    if options.act is None:
        rows = _rows(_admin(options).call("GET", "keys"))
        return _list(options, rows, *(rows[0] if rows else ("id",)))
    if options.act == "announce":
        if options.id is not None:
            raise CentralError("announce takes no key: it draws one")
        return _ask(options, "POST", "keys", {})
    if options.id is None:
        raise CentralError(f"name the key: gateway central keys {options.act} KEY")
    return _ask(options, "POST", f"keys/{name(options.id)}/{options.act}", {})


def _tokens(options: argparse.Namespace) -> int:
    if options.act is None:
        rows = _rows(_admin(options).call("GET", "tokens"))
        return _list(options, rows, *(rows[0] if rows else ("name",)))
    if options.name is None or (options.role is None) == (options.act == "create"):
        raise CentralError("say gateway central tokens create NAME ROLE, or tokens revoke NAME")
    if options.act == "revoke":
        return _ask(options, "DELETE", f"tokens/{name(options.name)}")
    admin = _admin(options)
    if options.to is None:
        return _put(admin.call("POST", "tokens", {"name": options.name, "role": options.role}))
    try:
        descriptor = os.open(options.to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise CentralError(f"{options.to}: {error.strerror}; name a file that is not there yet") from None
    with open(descriptor, "w") as file:
        try:
            made = admin.call("POST", "tokens", {"name": options.name, "role": options.role})
        except CentralError:
            options.to.unlink()
            raise
        file.write(made.pop("token") + "\n")
    return _put({**made, "file": str(options.to)})


def _venues(options: argparse.Namespace) -> int:
    if options.act is None:
        rows = _rows(_admin(options).call("GET", "venues"))
        return _list(options, rows, *(rows[0] if rows else ("id",)))
    if options.id is None:
        raise CentralError("name the venue: gateway central venues create VENUE")
    return _ask(options, "POST", "venues", {"id": options.id, "names": options.names})


def _events(options: argparse.Namespace) -> int:
    fields = ("since", "gateway", *_EVENT_FIELDS, "limit")
    query = {field: getattr(options, field) for field in fields}
    admin = _admin(options)
    if options.csv:
        for piece in admin.pieces("events", query=query, accept="text/csv"):
            sys.stdout.buffer.write(piece)
        return DONE
    columns = ("at", "gateway", "seq", "kind", "point", "verdict", "credential", "holder", "passage")
    return _list(options, _rows(admin.call("GET", "events", query=query)), *columns)


def _conflicts(options: argparse.Namespace) -> int:
    query = {"since": options.since, "limit": options.limit}
    rows = _rows(_admin(options).call("GET", "conflicts", query=query))
    return _list(options, rows, *(rows[0] if rows else ("at",)))
