"""``gateway central …``: every command of docs/central.md does to a real central what it says."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.central.adminclient import Admin
from gateway.central.conformance.audit import Audit
from gateway.central.conformance.client import Client, Wire, manifest_bytes
from gateway.central.conformance.enrolment import ask, joined, machine
from gateway.cli import main

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/central.md").read_text()
CARDS = """\
{"kind":"venue","timezone":"Europe/Berlin"}
{"kind":"area","id":"hall"}
{"kind":"product","id":"annual","category":"pass","rules":[{"areas":["hall"]}]}
{"kind":"product","id":"family","category":"pass","rules":[{"areas":["hall"],"guests":1}]}
{"kind":"holder","id":"H1","name":"A. Lind","state":"active"}
{"kind":"entitlement","id":"E1","product":"annual","holder":"H1","state":"active"}
{"kind":"credential","id":"C1","code":"8K2MPX4T7Q","entitlements":["E1"],"state":"active"}
"""

Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a central that serves."""
    folder = tmp_path_factory.mktemp("central") / "data"
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gateway",
            "central",
            "serve",
            "--data",
            str(folder),
            "--listen",
            "127.0.0.1:0",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"central on http://127.0.0.1:")
            yield folder
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()


@pytest.fixture
def central(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Admin:
    """It, with the cards as above, and named in the environment as the page says."""
    url = (folder / "address").read_text().strip()
    monkeypatch.setenv("GATEWAY_CENTRAL_URL", url)
    monkeypatch.setenv("GATEWAY_ADMIN_TOKEN_FILE", str(folder / "admin.token"))
    admin = Admin(url, (folder / "admin.token").read_text().strip())
    admin.call("POST", "venues/main/records", [CARDS.encode()])
    return admin


@pytest.fixture
def run(central: Admin, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; gives the objects on stdout."""

    def run_(*words: str, status: int = 0) -> list[dict[str, Any]]:
        assert main(["central", *words]) == status, capsys.readouterr().err
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run_


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


Piped = Callable[..., Done]


@pytest.fixture
def piped(central: Admin, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Piped:
    """Runs a command with something on standard input."""

    def piped_(text: str, *words: str) -> Done:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        status = main(["central", *words])
        return Done(status, *capsys.readouterr())

    return piped_


def gateway(central: Admin, name: str = "north") -> Client:
    """An enrolled gateway."""
    code = central.call("POST", "venues/main/enrolment-codes", {"gateway": name})["code"]
    wire, own = Wire(central.url, Audit()), machine()
    return joined(wire, ask(wire, code, own), own)


def record(central: Admin, kind: str, id_: str) -> dict[str, Any]:
    found: dict[str, Any] = central.call("GET", f"venues/main/records/{kind}/{id_}")
    return found


# --- the page --------------------------------------------------------------------------------------------


def lines_of_the_page() -> list[list[str]]:
    """The words behind ``gateway central`` of each row and each line of the shell blocks."""
    rows = re.findall(r"^\| [^|]*?`gateway central ([^`]+)` \|", PAGE, re.MULTILINE)
    daily = re.findall(r"`gateway central ([^`]+)`", PAGE[PAGE.index("## Every day") : PAGE.index("## All")])
    shell = [
        line.removeprefix("gateway central ").partition(" > ")[0]
        for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
        if line.startswith("gateway central ")
    ]
    return [shlex.split(text) for text in dict.fromkeys([*shell, *daily, *rows])]


def test_every_command_of_the_page_runs(
    central: Admin,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    piped: Piped,
) -> None:
    """In the order of the page, against a central with the cards and the gateway that it speaks of."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cards.ndjson").write_text(CARDS)
    (tmp_path / "holder.json").write_text('{"kind":"holder","id":"H9"}')
    ran = 0
    for words in lines_of_the_page():
        if words[0] in ("serve", "conformance"):  # those have tests of their own
            continue
        central.call("POST", "venues/main/records", [CARDS.encode()])
        if words[0] in ("gateway-token", "gateway-revoke", "open"):
            gateway(central)
        keys = {row["state"]: row["id"] for row in central.call("GET", "keys")["keys"]}
        named = {"KEY": keys.get("announced", ""), "OLD-KEY": keys.get("old", "")}
        words = [named.get(word, word) for word in words]
        if words[0] == "replace" or "-" in words:
            codes = {"revoke": "8K2MPX4T7Q\n", "put": '{"kind":"holder","id":"H9"}'}
            done = piped(codes.get(words[0], f"NEW-{ran}\n"), *words)
            assert done.returncode == 0, (words, done.stderr)
        else:
            assert main(["central", *words]) == 0, (words, capsys.readouterr().err)
        ran += 1
    assert ran > 35


# --- what they do ------------------------------------------------------------------------------------------


def test_a_revoked_card_reaches_a_gateway_that_waits(central: Admin, run: Run) -> None:
    """It is lost in the answer that comes at once, and its membership stays."""
    north = gateway(central)
    _, last, _ = north.drain(json.loads(_manifest(north))["cursor"])
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(north.changes, last["next"], wait=30)
        assert run("revoke", "C1") == [{"credential": "C1", "state": "lost"}]
        [told] = held.result(40).expect(200).value["records"]
    assert (told["id"], told["state"], told["entitlements"]) == ("C1", "lost", ["E1"])
    assert record(central, "entitlement", "E1")["state"] == "active"


def test_the_acts_change_what_they_name(central: Admin, run: Run) -> None:
    """Renewal, suspension, another product and a blocked holder; and the history says by whom."""
    run("renew", "E1", "2031-12-31")
    assert record(central, "entitlement", "E1")["valid_until"] == "2031-12-31"
    run("renew", "E1", "none")
    assert record(central, "entitlement", "E1").get("valid_until") is None
    run("suspend", "E1")
    assert record(central, "entitlement", "E1")["state"] == "suspended"
    run("resume", "E1")
    assert record(central, "entitlement", "E1")["state"] == "active"
    run("product", "E1", "family")
    assert record(central, "entitlement", "E1")["product"] == "family"
    run("block", "H1")
    assert record(central, "holder", "H1")["state"] == "blocked"
    run("unblock", "H1")
    assert run("show", "holder", "H1")[0]["state"] == "active"
    versions = run("show", "holder", "H1", "--history")
    assert {version["by"] for version in versions} == {"admin"}
    assert [version["record"]["state"] for version in versions[-2:]] == ["blocked", "active"]


def test_a_code_comes_on_standard_input_alone(central: Admin, piped: Piped) -> None:
    """The old card by its code, the new code below it; neither is in what the command says."""
    done = piped("8K2MPX4T7Q\nN3W-C0DE-77\n", "replace", "-", "C7")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"credential": "C7", "replaces": "C1"}
    assert "that is the credential C1" in done.stderr
    assert record(central, "credential", "C7")["code"] == "N3W-C0DE-77"
    assert record(central, "credential", "C1")["state"] == "replaced"
    assert not re.search("8K2M|N3W", done.stdout + done.stderr)
    unknown = piped("NOBODYS-CODE\n", "revoke", "-")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "no credential has that code" in unknown.stderr
    empty = piped("", "revoke", "-")
    assert empty.returncode == 2
    assert "standard input has no code" in empty.stderr


def test_what_was_exported_can_be_loaded(central: Admin, run: Run, tmp_path: Path, piped: Piped) -> None:
    """Into another venue, whole; a bad line refuses the file, or is left out and told of."""
    exported = piped("", "export").stdout
    assert '"8K2MPX4T7Q"' in exported
    run("venues", "create", "wing")
    (tmp_path / "all.ndjson").write_text(exported)
    [put] = run("load", str(tmp_path / "all.ndjson"), "--venue", "wing")
    assert put["count"] == len(exported.splitlines())
    (tmp_path / "bad.ndjson").write_text('{"kind":"area","id":"bar"}\n{"kind":"holder"}\n')
    refused = piped((tmp_path / "bad.ndjson").read_text(), "load", "-")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "line 2" in refused.stderr
    assert "skip_bad" not in refused.stderr
    left = piped((tmp_path / "bad.ndjson").read_text(), "load", "-", "--skip-bad")
    assert left.returncode == 0
    assert json.loads(left.stdout)["bad"] == 1
    assert "skipped line 2" in left.stderr


def test_commands_and_codes_for_gateways(central: Admin, run: Run) -> None:
    """An enrolment code joins; a command comes to the gateway; its token is renewed; then it is revoked."""
    [made] = run("enrol-code", "west", "--ttl-s", "60")
    wire, own = Wire(central.url, Audit()), machine()
    west = joined(wire, ask(wire, made["code"], own), own)
    cursor = json.loads(_manifest(west))["cursor"]
    run("close", "west", "lane-1", "--ttl-s", "60")
    records, _, _ = west.drain(cursor)
    [told] = [each for each in records if each["kind"] == "command"]
    assert (told["do"], told["lane"], told["ttl_s"]) == ("close", "lane-1", 60)
    assert [row["venue"] for row in run("gateways") if row["gateway"] == "west"] == ["main"]
    run("gateway-token", "west")
    west.changes(cursor).expect(200)
    assert west.fresh_token is not None
    [rotated] = run("gateway-token", "west", "--at-once")
    assert west.changes(cursor).status == 401
    west.token = rotated["token"]
    west.changes(cursor).expect(200)
    run("gateway-revoke", "west")
    assert json.loads(west.changes(cursor).expect(403).body)["revoked"] is True


def _manifest(client: Client) -> bytes:
    return manifest_bytes(client.snapshot().expect(200))


def test_tokens_have_roles_and_files(central: Admin, run: Run, tmp_path: Path, piped: Piped) -> None:
    """A new token goes into a file of its own that nobody else may read; its role bounds what it may do."""
    file = tmp_path / "reader.token"
    [made] = run("tokens", "create", "reader", "read", "--to", str(file))
    assert made == {"name": "reader", "role": "read", "file": str(file)}
    assert file.stat().st_mode & 0o777 == 0o600
    assert run("show", "holder", "H1", "--admin-token", str(file))
    assert "code" not in run("show", "credential", "C1", "--admin-token", str(file))[0]
    refused = piped("", "block", "H1", "--admin-token", str(file))
    assert refused.returncode == 2
    assert "needs the role operate" in refused.stderr
    again = piped("", "tokens", "create", "other", "read", "--to", str(file))
    assert again.returncode == 2
    assert "not there yet" in again.stderr
    run("tokens", "revoke", "reader")
    gone = piped("", "show", "holder", "H1", "--admin-token", str(file))
    assert gone.returncode == 2
    assert "no such admin token" in gone.stderr
    assert file.read_text().strip() not in gone.stderr


def test_events_come_as_lines_as_csv_and_by_number(central: Admin, run: Run, piped: Piped) -> None:
    """In the order of arrival, and from a number on."""
    east = gateway(central, "east")
    event = {"gateway": "east", "epoch": 7, "at": "2026-11-21T10:00:00+00:00", "kind": "open", "lane": "l"}
    east.uploaded([{**event, "seq": seq, "digest": "0" * 16} for seq in (1, 2, 3)])
    rows = run("events", "--gateway", "east")
    assert [row["seq"] for row in rows] == [1, 2, 3]
    assert [r["seq"] for r in run("events", "--gateway", "east", "--since", str(rows[0]["number"]))] == [2, 3]
    assert [r["seq"] for r in run("events", "--gateway", "east", "--limit", "1")] == [1]
    assert run("events", "--gateway", "east", "--kind", "scan") == []
    csv = piped("", "events", "--gateway", "east", "--csv").stdout.splitlines()
    assert csv[0].split(",")[:5] == ["number", "received", "gateway", "epoch", "seq"]
    assert len(csv) == 4


# --- what goes wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("show", "holder", "nobody"), "has no holder nobody"),
        (("show", "holder"), "name the record"),
        (("load", "/nonexistent/file"), "there is no such file"),
        (("load", "/"), "is a folder"),
        (("keys", "use"), "name the key"),
        (("tokens", "create", "x"), "say gateway central tokens create NAME ROLE"),
        (("venues", "create"), "name the venue"),
        (("gateway-revoke", "nobody"), "there is no gateway nobody"),
        (("gateways", "--admin-token", "s3cret-token-given-by-mistake"), "give the name of a file"),
        (("gateways", "--url", "http://127.0.0.1:9"), "start it: gateway central serve --data DIR"),
        (("gateways", "--url", "localhost"), "must be http://HOST:PORT"),
        (("gateways", "--url", "http://central.example"), "write https://"),
        (("keys", "announce", "k9"), "announce takes no key"),
        (("gateways", "--url", "http://[::1"), "is no URL"),
        (("events", "--after", "yesterday"), "must be an instant"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    central: Admin, words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, nothing on stdout, no traceback, and no secret that was given in the wrong place."""
    assert main(["central", *words]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert said.out == ""
    assert "s3cret" not in said.err


def test_no_token_at_all_says_where_the_first_one_is(
    central: Admin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For whoever has just installed it."""
    monkeypatch.delenv("GATEWAY_ADMIN_TOKEN_FILE")
    assert main(["central", "gateways"]) == 2
    assert "the first one is admin.token in the folder of gateway central serve" in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    """Where SQLAlchemy is not there: a package of that name that cannot be imported stands before it."""
    (tmp_path / "sqlalchemy.py").write_text("raise ImportError('none', name='sqlalchemy')")
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "central", "serve", "--data", str(tmp_path / "data")],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 2
    assert "pip install 'entry-scan-gateway[central]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_terminal_gets_a_table(central: Admin) -> None:
    """With the columns that matter to people; NDJSON with --json there too."""
    pid, terminal = os.forkpty()
    if pid == 0:
        os.environ |= {"PYTHONPATH": str(ROOT), "COLUMNS": "120", "TERM": "xterm"}
        os.execv(sys.executable, [sys.executable, "-m", "gateway", "central", "venues"])
    shown, until = b"", time.monotonic() + 30
    while time.monotonic() < until:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # the other side has closed
            break
        if not piece:
            break
        shown += piece
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert b"history" in shown
    assert b"main" in shown
    assert b"{" not in shown
