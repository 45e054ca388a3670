"""README.md and docs/ are true: what exists stands in them, and what stands in them works."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.exposition import generate_latest

from gateway import __version__, calls, control, news
from gateway.cli import _parser
from gateway.configkeys import known_keys
from gateway.configload import loads
from gateway.metrics import Metrics, Tally
from gateway.model import (
    AntiPassback,
    Bypass,
    CredentialState,
    EntitlementState,
    EventKind,
    LaneMode,
    Passage,
    Per,
    Verdict,
)
from gateway.sync.counts import Counts

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
README = PAGES["README.md"]
ALL = "\n".join(PAGES.values())
SOURCES = "\n".join(path.read_text() for path in sorted((ROOT / "gateway").rglob("*.py")))

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")


def blocks(page: str, *languages: str) -> list[str]:
    """The code blocks in one of these languages."""
    return [m[3] for m in _FENCE.finditer(page) if m[2] in languages]


def prose(page: str) -> str:
    """The page without its code blocks."""
    return _FENCE.sub("", page)


def spans(page: str) -> set[str]:
    """What stands in backticks in the text."""
    return set(_SPAN.findall(prose(page)))


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its head."""
    rows = []
    for line in page[page.index(f"\n{heading}\n") :].splitlines()[2:]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))])
        elif rows:
            break
    return rows[2:]


def commands() -> dict[str, argparse.ArgumentParser]:
    """Every command with its parser."""
    [choices] = [
        action.choices for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)
    ]
    return dict(choices)


# --- what exists stands in the pages -------------------------------------------------------------------


def test_every_command_has_its_row() -> None:
    """The table of commands has each command of the parser, and no other."""
    rows = {shlex.split(row[0].strip("`"))[1] for row in table(README, "## Commands")}
    assert rows == set(commands())


def test_every_command_of_the_central_has_its_row() -> None:
    """The table in docs/central.md has each command behind ``gateway central``, and no other, and the page
    has each option; those of ``conformance`` stand in docs/protocol.md."""
    [inner] = [a for a in commands()["central"]._actions if isinstance(a, argparse._SubParsersAction)]
    page = PAGES["central.md"]
    assert {shlex.split(row[0].strip("`"))[2] for row in table(page, "## All commands")} == set(inner.choices)
    for name, parser in inner.choices.items():
        where = PAGES["protocol.md"] if name == "conformance" else page
        options = {option for action in parser._actions for option in action.option_strings}
        assert {option for option in options if option.startswith("--") and option not in where} <= {"--help"}


def test_every_option_is_described() -> None:
    """Each option of each command stands in the README."""
    options = {
        option
        for parser in commands().values()
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    }
    assert not {option for option in options if option not in README}


def test_every_configuration_key_is_described() -> None:
    """Each key that the loader accepts stands in backticks in the reference."""
    described = spans(PAGES["configuration.md"])
    missing = {
        f"{where}.{key}" for where, keys in known_keys().items() for key in keys if key not in described
    }
    assert not missing


def test_every_metric_is_described() -> None:
    """The table of metrics has each metric of the registry with its labels, and no other."""
    metrics = Metrics()
    labels = {m._name: m._labelnames for m in vars(metrics).values() if getattr(m, "_labelnames", None)}
    labels |= {m._name: m._labels for m in vars(metrics).values() if isinstance(m, Tally)}
    labels["gateway_build_info"] = ("version",)
    exist = set()
    for family in metrics.registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        exist.add(name + (f"{{{','.join(labels[family.name])}}}" if family.name in labels else ""))
    assert {row[0].strip("`") for row in table(README, "## Metrics")} == exist


def test_every_call_is_described() -> None:
    """The tables of calls have each call of each role, and no other."""
    page, all_calls = PAGES["control.md"], calls.Calls(None, news.News(None, None), None)  # type: ignore[arg-type]

    def described(heading: str) -> set[str]:
        return {span for row in table(page, heading) for span in _SPAN.findall(row[0])}

    both = described("### Both roles")
    assert both == {*all_calls.both(), "watch"}
    assert both | described("### `admin` alone") == {*all_calls.admin(), "watch"}
    assert both | described("### `sync` alone") == {*all_calls.sync(), "watch"}


def test_every_refusal_and_limit_of_the_sockets_is_described() -> None:
    """Each code that a client can get, and each limit, stands in docs/control.md with its true value."""
    page = PAGES["control.md"]
    raised = set(re.findall(r'CallError\(\s*"(\w+)"', SOURCES)) | {"busy"}
    assert {row[0].strip("`") for row in table(page, "### Refusals")} == raised
    assert f"{control.MAX_CLIENTS} clients a socket" in page
    assert f"{control.MAX_LINE >> 20} MiB a line" in page
    assert f"{control._UNREAD >> 10} KiB of them wait" in page
    assert f"leaves {control._LAG >> 20} MiB unread" in page
    assert f"at most {calls.MAX_EVENTS} [records]" in page
    assert f"protocol version {control.PROTOCOL}" in page


@pytest.mark.parametrize(
    "enum",
    [Verdict, Passage, LaneMode, AntiPassback, Bypass, Per, EventKind, CredentialState, EntitlementState],
    ids=lambda enum: enum.__name__,
)
def test_every_value_that_users_meet_is_described(enum: Any) -> None:
    """Each word that a verdict, an event, a record or the configuration may hold stands in the pages."""
    words = {member.name.lower() if isinstance(member.value, int) else member.value for member in enum}
    assert words <= spans(ALL)


def test_the_verdicts_stand_in_the_order_of_the_checks() -> None:
    """docs/admission.md has a row for each verdict."""
    rows = [row[0].strip("`") for row in table(PAGES["admission.md"], "## The verdicts")]
    assert sorted(rows) == sorted(Verdict)


def test_every_column_of_an_event_is_described() -> None:
    """The fields of an access event are those that ``gateway ledger`` writes."""
    from gateway.cache.ledger_rows import EVENT_COLUMNS

    renamed = {"from_area": "from", "to_area": "to", "of_seq": "of"}
    described = {s for row in table(PAGES["control.md"], "## An access event") for s in _SPAN.findall(row[0])}
    assert described == {renamed.get(c, c) for c in EVENT_COLUMNS} | {"gateway", "epoch"}
    kinds = PAGES["control.md"][PAGES["control.md"].index("| kind | is |") :]
    assert re.findall(r"^\| `(\w+)` \|", kinds, re.MULTILINE) == list(EventKind)


def test_the_changelog_has_this_version() -> None:
    """The newest version of the changelog is the program's, below what is not released."""
    heads = re.findall(r"^## \[(.+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[:2] == ["Unreleased", __version__]
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__


# --- what stands in the pages exists -------------------------------------------------------------------


def test_what_the_failure_table_quotes_is_said() -> None:
    """Log lines and messages quoted in docs/failures.md are in the program's text; its metrics exist."""
    joined = re.sub(r'"\s*\n\s*f?"', "", SOURCES)
    metrics = Metrics().text().decode() + generate_latest(Counts().registry).decode()
    for span in spans(PAGES["failures.md"]):
        if span.startswith("gateway_"):
            assert f"# TYPE {span.partition('{')[0].removesuffix('_total')}" in metrics, span
        elif " " in span and not re.match(r"gateway |journalctl |kill |\w+ = ", span):
            assert span in joined, span


def command_lines(page: str) -> Iterator[list[str]]:
    """The words of each ``gateway`` command line in the page's shell blocks, without sudo and pipes."""
    for block in blocks(page, "sh", "console"):
        for line in block.splitlines():
            if line.startswith(("{", "  ", "scan>")):
                continue  # output
            words = shlex.split(line.removeprefix("$ "), comments=True)
            words = words[1:] if words[:1] == ["sudo"] else words
            words = words[2:] if words[:1] == ["-u"] else words
            if words[:1] == ["gateway"]:
                ends = [i for i, word in enumerate(words) if word in ("|", ">", "&&")]
                yield words[1 : min(ends, default=None)]


@pytest.mark.parametrize("name", sorted(PAGES))
def test_every_command_line_parses(name: str) -> None:
    """The command lines in shell blocks, and those of the table of commands, are taken by the real parser."""
    lines = list(command_lines(PAGES[name]))
    if name == "README.md":
        lines += [shlex.split(row[0].strip("`"))[1:] for row in table(README, "## Commands")]
        assert len(lines) > len(commands())
    if name == "central.md":
        lines += [shlex.split(span)[1:] for span in spans(PAGES[name]) if span.startswith("gateway central ")]
        assert len(lines) > 50
    for line in lines:
        assert callable(_parser().parse_args(line).run), line


@pytest.mark.parametrize("name", sorted(PAGES))
def test_every_toml_block_loads(name: str) -> None:
    """A TOML block is a whole file, or tables that may be added to the smallest one."""
    smallest = blocks(PAGES["configuration.md"], "toml")[0]
    for block in blocks(PAGES[name], "toml"):
        whole = block if "[gateway]" in block else f"{smallest}\n{block}"
        assert loads(whole, name).gateway.id == "north"


def anchor(heading: str) -> str:
    """A heading as GitHub names it in a link."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", [*sorted(PAGES), "CHANGELOG.md"])
def test_every_relative_link_leads_somewhere(name: str) -> None:
    """Links to files and headings of the project are not broken."""
    path = ROOT / name if (ROOT / name).exists() else ROOT / "docs" / name
    for target in re.findall(r"\]\(([^)]+)\)", prose(path.read_text())):
        if target.startswith("https://"):
            continue
        file, _, heading = target.partition("#")
        there = (path.parent / file) if file else path
        assert there.exists(), target
        if heading:
            heads = re.findall(r"^#+ (.+)$", prose(there.read_text()), re.MULTILINE)
            assert heading in {anchor(head) for head in heads}, target


def test_nothing_tells_of_the_machine_it_was_made_on() -> None:
    """No tracked file names a path of a developer's machine, a package index, or something like a secret."""
    slash = "/"
    told = re.compile(
        "|".join(
            (
                rf"(?<![\w.]){slash}(work|root|tmp){slash}\w",
                "index" + "-url",
                r"https?://\S*" + "pypi",
                "python" + r"hosted\.org",
                "PRIVATE" + " KEY-----",
                r"""(?i:\b(password|passwd|api_?key|token)\s*[=:]\s*["'][^"'\s]{8,}["'])""",
            )
        )
    )
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    files = [ROOT / name for name in listed.decode().split("\0") if name]
    assert ROOT / "pyproject.toml" in files
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in files
        if path.is_file()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if told.search(line)
    ]
    assert not found


def test_every_figure_says_what_measured_it() -> None:
    """A figure of time or size in the README names the command that measured it, or is a setting's."""
    for paragraph in re.split(r"\n(?=\n|[-|] |\|)", prose(README)):
        if re.search(r"\d\s?(ms|µs|ns|[kMG]i?B)\b", paragraph):
            named = "make bench" in paragraph or "timeit" in paragraph
            assert named or re.search(r"`\w+_(ms|s)`", paragraph), paragraph


# --- what stands in the pages works --------------------------------------------------------------------


def gateway(
    *arguments: str, cwd: Path, text: str | None = None, ok: tuple[int, ...] = (0,)
) -> subprocess.CompletedProcess[str]:
    """Run a command as a reader would."""
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input=text,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode in ok, done.stderr
    return done


def site(folder: Path) -> Path:
    """A venue to try things at: a lane in memory with a way in and a way out. The configuration's path."""
    (folder / "data").mkdir(mode=0o700)
    toml = f'''
        gateway.id = "north"
        gateway.data_dir = "{folder / "data"}"
        lane = [{{ name = "north", relay = {{ driver = "memory" }} }}]
        point = [
            {{ name = "north-in", lane = "north", from = "outside", to = "hall" }},
            {{ name = "north-out", lane = "north", from = "hall", to = "outside" }},
        ]
        reader = [{{ name = "scanner", point = "north-in", driver = "stdin" }}]
    '''
    (folder / "gateway.toml").write_text(toml)
    return folder / "gateway.toml"


def test_the_demo_says_what_the_readme_shows(tmp_path: Path) -> None:
    """Each line of the transcript on the first screen is printed by the demo, in that order."""
    [shown] = [block for block in blocks(README, "console") if "make run" in block]
    lines = [line for line in shown.splitlines() if line.strip() not in ("", "…")][2:]
    typed = [line.removeprefix("scan> ") for line in lines if line.startswith("scan> ")]
    assert len(typed) >= 3
    printed = iter(gateway("demo", cwd=tmp_path, text="\n".join(typed) + "\n").stdout.splitlines())
    for line in lines:
        assert line in printed, line


def test_the_cards_of_the_readme_admit(tmp_path: Path) -> None:
    """The six records are enough: imported and asked for without a gate, the code is granted."""
    site(tmp_path)
    (tmp_path / "cards.ndjson").write_text(blocks(README, "json")[0])
    config = ("--config", "gateway.toml")
    report = json.loads(gateway("import", "cards.ndjson", *config, cwd=tmp_path).stdout)
    assert (report["records"], report["credentials"]) == (6, 1)
    at = ("--at", "2026-11-21T10:00:00+01:00")
    good = gateway("check", "8K2MPX4T7Q", "--point", "north-in", *at, *config, cwd=tmp_path)
    assert json.loads(good.stdout)["verdict"] == "granted"
    bad = gateway("check", "-", "--point", "north-in", *config, cwd=tmp_path, text="OTHER\n", ok=(1,))
    assert json.loads(bad.stdout)["verdict"] == "unknown_credential"


def test_the_key_may_be_a_link(tmp_path: Path) -> None:
    """As the README says of a key in a TPM: it may lie elsewhere, and none is drawn while it is away."""
    site(tmp_path)
    (tmp_path / "code.key").write_bytes(bytes(range(32)))
    (tmp_path / "data/code.key").symlink_to("../code.key")
    (tmp_path / "cards.ndjson").write_text(blocks(README, "json")[0])
    config = ("--config", "gateway.toml")
    gateway("import", "cards.ndjson", *config, cwd=tmp_path)
    gateway("check", "8K2MPX4T7Q", "--point", "north-in", *config, cwd=tmp_path)
    (tmp_path / "code.key").rename(tmp_path / "away.key")
    away = gateway("check", "8K2MPX4T7Q", "--point", "north-in", *config, cwd=tmp_path, ok=(2,))
    assert "code.key cannot be read" in away.stderr
    assert not (tmp_path / "code.key").exists()


def test_the_scans_of_the_admission_page_are_judged_as_it_says(tmp_path: Path) -> None:
    """The records, the scans and the table of docs/admission.md belong together."""
    page = PAGES["admission.md"]
    site(tmp_path)
    records, scans = blocks(page, "json")
    (tmp_path / "records.ndjson").write_text(records)
    (tmp_path / "scans.ndjson").write_text(scans)
    replay = ("replay", "records.ndjson", "scans.ndjson", "--config", "gateway.toml")
    answers = [json.loads(line) for line in gateway(*replay, cwd=tmp_path).stdout.splitlines()]
    told = re.findall(
        r"^\| ([\w :]+) \| `(\w+)`(?:, guest (\d))? \|", page[page.index("answers:") :], re.MULTILINE
    )
    assert len(told) >= len(answers) > 10
    for answer, (when, verdict, guest) in zip(answers, told, strict=False):
        assert (answer["verdict"], answer["guest"]) == (verdict, int(guest or 0)), when
        assert answer["at"][11:16] in when


def _listens(path: Path) -> bool:
    """Whether there is somebody at the socket; its file is there a little earlier."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


@contextmanager
def running(folder: Path) -> Iterator[control.Client]:
    """A real gate at that site, and somebody connected to its socket for administrators."""
    with subprocess.Popen(
        [sys.executable, "-m", "gateway", "gate", "--config", "gateway.toml"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            path = folder / "data/admin.sock"
            until = time.monotonic() + 20
            while not _listens(path) and process.poll() is None and time.monotonic() < until:
                time.sleep(0.02)
            with control.Client(path) as client:
                yield client
                assert process.poll() is None
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0
        finally:
            process.kill()


def test_every_call_of_an_administrator_answers_as_described(tmp_path: Path) -> None:
    """Each call in docs/control.md, made to a real gate with the arguments it names, gives what it says."""
    site(tmp_path)
    (tmp_path / "cards.ndjson").write_text(blocks(README, "json")[0])
    gateway("import", "cards.ndjson", "--config", "gateway.toml", cwd=tmp_path)
    gateway("import", "cards.ndjson", "--config", "gateway.toml", cwd=tmp_path)
    lost = {"kind": "credential", "id": "C1", "code": "8K2MPX4T7Q", "state": "lost", "entitlements": ["E1"]}
    with running(tmp_path) as gate:
        assert set(gate.hello) == {"gateway", "version", "epoch", "protocol", "role"}
        described = {
            "gateway",
            "version",
            "clock",
            "venue",
            "lanes",
            "readers",
            "inputs",
            "areas",
            "snapshot",
            "ledger",
            "central",
        }
        assert set(gate.call("status")) == described
        assert "gateway_build_info" in gate.call("metrics")["text"]
        check = {"code": "8K2MPX4T7Q", "point": "north-in", "at": "2026-11-21T10:00:00+01:00"}
        assert gate.call("check", **check)["verdict"] == "granted"
        assert gate.call("open", lane="north") == {"lane": "north", "opened": True}
        assert gate.call("lane", lane="north", state="closed") == {"lane": "north", "state": "closed"}
        assert gate.call("lane", lane="north", state="normal") == {"lane": "north", "state": "normal"}
        assert gate.call("clear", area="hall") == {"area": "hall", "cleared": True}
        until = time.monotonic() + 20
        while len((page := gate.call("events", since=0, limit=10))["events"]) < 4:
            assert time.monotonic() < until
        assert [event["kind"] for event in page["events"]] == ["open", "lane", "lane", "clear"]
        assert (page["last"], page["last_seq"]) == (4, 4)
        with pytest.raises(control.CallError, match="no grant"):
            gate.call("annul", seq=2)
        assert gate.call("refused") == {"events": []}
        assert gate.call("generation") == {"generation": 2}
        changed = gate.call("apply", records=[lost, {"kind": "credential", "id": "C2"}])
        bad = {"position": 1, "kind": "credential", "id": "C2", "field": "code", "message": "is missing"}
        assert changed == {"changed": 1, "set_aside": [bad], "cursor": None}
        assert gate.call("check", **check)["detail"] == "lost"
        assert gate.call("generation") == {"generation": 2}
        assert gate.call("watch") == {"watching": True}


def test_programs_of_the_pages_run_and_half_a_connection_does_not(tmp_path: Path) -> None:
    """The program in docs/control.md and the README's line for Prometheus, with the socket's path put in;
    and the connection of a client that closes its side is closed."""
    site(tmp_path)
    [program] = blocks(PAGES["control.md"], "python")
    [line] = re.findall(r"python -c '(.+)'", README)
    with running(tmp_path):
        for text, says in ((program, "north"), (line, "# TYPE gateway_scans_total counter")):
            there = text.replace("/var/lib/gateway", str(tmp_path / "data"))
            assert there != text
            done = subprocess.run(
                [sys.executable, "-c", there],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=20,
                check=True,
            )
            assert says in done.stdout
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(tmp_path / "data/admin.sock"))
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as lines:
                assert b"protocol" in lines.readline()
                assert lines.readline() == b""
