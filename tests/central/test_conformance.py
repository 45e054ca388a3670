"""``gateway central conformance``: the reference central is clean, whoever breaks a rule is told which."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.central.adminclient import Admin
from gateway.central.conformance.means import Means
from gateway.central.conformance.report import FAILED, NOT_TESTED, OK, Report
from gateway.central.conformance.script import examine
from gateway.central.store import Store
from gateway.cli import main
from tests.central import breaking as b
from tests.central.breaking import Central, breaking

ROOT = Path(__file__).parent.parent.parent
HEADINGS = re.findall(r"^#+ (.+)$", (ROOT / "docs/protocol.md").read_text(), re.MULTILINE)
ADDRESSES = (f"10.0.{n // 250}.{n % 250 + 1}" for n in itertools.count())

GENERAL, SNAPSHOT, CHANGES, EVENTS = ("general",), ("snapshot",), ("changes",), ("events",)
LIMITS, WAITING = ("limits",), ("waiting",)
BROKEN = [
    (b.reversed_nonce, GENERAL, {"nonce is that", "a nonce may have 16 to 64"}),
    (b.local_time, GENERAL, {"time is an instant"}),
    (b.without_have, GENERAL, {"have names the highest", "an answer in msgpack"}),
    (b.other_venue, GENERAL, {"venue is that of the enrolment"}),
    (b.unsigned_410, GENERAL, {"every 410 of /v1/changes is signed"}),
    (b.signature_of_other_bytes, GENERAL, {"every 200 of /v1/changes is signed"}),
    (b.signature_for_another_purpose, EVENTS, {"every 200 of /v1/events is signed"}),
    (b.cursor_not_honoured, CHANGES, {"a cursor stands for one place"}),
    (b.no_wait, WAITING, {"with wait an answer without news", "a request that waits is answered"}),
    (
        b.pages_too_large,
        LIMITS,
        {"600 changes", "eight large", "at most 262,144", "at most 250 records", "in their form"},
    ),
    (
        b.records_twice,
        CHANGES,
        {"a record stands at most once", "a record that changed often"},
    ),
    (b.no_deletions, CHANGES, {"a record that is gone"}),
    (b.ranges_from_the_beginning, SNAPSHOT, {"a Range gives exactly"}),
    (b.wrong_digest, SNAPSHOT, {"size and sha256"}),
    (b.packed, SNAPSHOT, {"no answer has a Content-Encoding"}),
    (b.stored_twice, EVENTS, {"what was sent twice is there once"}),
    (
        b.conflict_acknowledged,
        EVENTS,
        {"the same number with another digest", "what stands before a conflict"},
    ),
    (b.numbers_as_floats, EVENTS, {"epoch and seq are kept"}),
    (b.gaps_acknowledged, EVENTS, {"several epochs and gaps", "the same number with another digest"}),
    (b.too_many_events_taken, LIMITS, {"more than 1,000 events"}),
    (
        b.no_usage,
        ("usage",),
        {"assumed is told", "was taken is told", "an annul tells", "a grant that nobody"},
    ),
    (b.no_commands, ("commands",), {"a command comes to its gateway"}),
    (b.used_up_is_unknown, ("tokens",), {"a token that was replaced is used up"}),
    (b.revoked_unsigned, ("revoked",), {"a revoked gateway is told so", "a 403 that says revoked is signed"}),
    (b.other_machines_welcome, GENERAL, {"a token that comes from another computer"}),
    (
        b.errors_in_html,
        GENERAL,
        {"a call without a token", "an unknown token", "every error says what it is"},
    ),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A real central in a process of its own: its URL and its folder."""
    folder = tmp_path_factory.mktemp("central") / "data"
    arguments = ("serve", "--data", str(folder), "--listen", "127.0.0.1:0", "--behind-proxy")
    with subprocess.Popen(
        [sys.executable, "-m", "gateway", "central", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("central on http://127.0.0.1:")
            yield (folder / "address").read_text().strip(), folder
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()


def admin(served: tuple[str, Path]) -> Admin:
    return Admin(served[0], (served[1] / "admin.token").read_text().strip())


def outcomes(served: tuple[str, Path], url: str, only: tuple[str, ...], cursors: list[str]) -> Report:
    """A run with the admin API of the real central."""
    report = Report(lambda point: None)
    examine(url, Means(venue="main", admin=admin(served)), report, cursors, only)
    return report


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a vendor runs it."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", "central", "conformance", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# --- broken ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("breaker", "only", "expected"), BROKEN, ids=[case[0].__name__ for case in BROKEN])
def test_a_broken_rule_is_reported_at_its_point(
    served: tuple[str, Path], breaker: b.Breaker, only: tuple[str, ...], expected: set[str]
) -> None:
    """These points fail, each with what was expected and what came, and no others do."""
    with breaking(Central(*served, next(ADDRESSES)), breaker) as url:
        report = outcomes(served, url, only, [])
    failed = [point for point in report.points if point.outcome == FAILED]
    for text in expected:
        assert any(text in point.says for point in failed), (text, [point.line() for point in failed])
    for point in failed:
        assert any(text in point.says for text in expected), point.line()
        assert point.expected
        assert point.came
        assert point.section in HEADINGS


# --- whole ------------------------------------------------------------------------------------------------


HOOK = """
import sys
from gateway.central.adminclient import Admin
admin = Admin(sys.argv[1], open(sys.argv[2]).read().strip())
word, *rest = sys.argv[3:]
if word == "records":
    admin.call("POST", "venues/main/records", [sys.stdin.buffer.read()])
elif word == "open":
    admin.call("POST", f"gateways/{rest[0]}/commands", {"do": "open", "lane": rest[1], "ttl_s": int(rest[2])})
elif word == "revoke":
    admin.call("POST", f"gateways/{rest[0]}/revoke", {})
else:
    sys.exit(3)
"""


def codes(served: tuple[str, Path], tmp_path: Path, *gateways: str) -> Path:
    """A file with an enrolment code for each of these."""
    path, central = "venues/main/enrolment-codes", admin(served)
    made = [central.call("POST", path, {"gateway": gateway})["code"] for gateway in gateways]
    (tmp_path / "codes").write_text("\n".join(made))
    return tmp_path / "codes"


def by_outcome(output: str) -> dict[str, list[str]]:
    """The sentences of a report in NDJSON by what became of them."""
    points: dict[str, list[str]] = {OK: [], FAILED: [], NOT_TESTED: []}
    for line in output.splitlines():
        point = json.loads(line)
        points[point["outcome"]].append(point["point"])
    return points


def test_a_vendor_takes_part_with_codes_and_a_hook(served: tuple[str, Path], tmp_path: Path) -> None:
    """Without our admin API: what the hook can do is tested, what it cannot is reported as not tested."""
    (tmp_path / "hook.py").write_text(HOOK)
    hook = f"{sys.executable} {tmp_path / 'hook.py'} {served[0]} {served[1] / 'admin.token'}"
    file = codes(served, tmp_path, "vendor-a", "vendor-a", "vendor-b")
    only = [f"--only={part}" for part in ("changes", "commands", "tokens", "revoked")]
    with breaking(Central(*served, next(ADDRESSES)), b.nothing) as url:
        done = command(url, "--enrolment-code", str(file), "--hook", hook, "--json", *only)
    assert done.returncode == 0, done.stdout + done.stderr
    points = by_outcome(done.stdout)
    assert points[FAILED] == []
    for text in (
        "another gateway joins",
        "a lost card",
        "a record that is gone",
        "a command comes",
        "revoked gateway",
    ):
        assert any(text in says for says in points[OK]), text
    assert len([says for says in points[NOT_TESTED] if "token" in says]) == 2


def test_what_cannot_be_tested_is_never_ok(served: tuple[str, Path], tmp_path: Path) -> None:
    """With one code and a command that changes something: what needs more is listed as that."""
    where = f"--url {served[0]} --admin-token {served[1] / 'admin.token'}"
    line = f"{sys.executable} -m gateway central put {tmp_path / 'area.json'} {where}"
    (tmp_path / "area.json").write_text('{"kind":"area","id":"touched"}')
    file = codes(served, tmp_path, "vendor-c")
    only = [f"--only={part}" for part in ("waiting", "changes", "usage", "commands", "keys", "revoked")]
    with breaking(Central(*served, next(ADDRESSES)), b.nothing) as url:
        done = command(
            *(url, "--enrolment-code", str(file), "--change-command", line, "--json", *only),
            PYTHONPATH=str(ROOT),
        )
    assert done.returncode == 0, done.stdout + done.stderr
    points = by_outcome(done.stdout)
    for text in (
        *(
            "another gateway joins",
            "was put",
            "one place",
            "changed often",
            "lost card",
            "that is gone",
            "forget",
        ),
        *(
            "a command comes",
            "a command does not",
            "a command that",
            "a new key",
            "a key that ended",
            "told so",
        ),
    ):
        assert any(text in says for says in points[NOT_TESTED]), text
        assert not any(text in says for says in points[OK]), text
    assert any("a request that waits is answered" in says for says in points[OK])
    whys = {json.loads(line).get("why", "") for line in done.stdout.splitlines()}
    assert "needs --admin-token, or a --hook that can do: records" in whys
    assert "needs one more line in the file of --enrolment-code" in whys


def test_the_reference_central_is_clean(served: tuple[str, Path], tmp_path: Path) -> None:
    """Every point there is, with cursors of another history and of the future too; nothing of it stays."""
    other = Store.open(tmp_path / "other")
    here = Store.open(served[1], serve=False)
    cursors = [other.cursor("main", 0), here.cursor("main", 10**9)]
    for store in (other, here):
        store.close()
    (tmp_path / "cursors").write_text("\n".join(cursors))
    done = command(
        *(served[0], "--admin-token", str(served[1] / "admin.token")),
        *("--gone-cursors", str(tmp_path / "cursors")),
    )
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith("ok ")] == []
    assert len(lines) > 90
    assert done.returncode == 0
    assert re.fullmatch(r"gateway: \d+ ok, 0 FAILED, 0 not tested\n", done.stderr)
    left = b"".join(admin(served).pieces("venues/main/records"))
    assert b'"conformance-' not in left.replace(b'"usage"', b"") or b'"kind":"usage"' in left
    gateways = admin(served).call("GET", "gateways")["gateways"]
    assert all(row["revoked"] for row in gateways if row["gateway"].startswith("conformance-"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("http://127.0.0.1:9",), "give --admin-token FILE"),
        (("http://127.0.0.1:9", "--enrolment-code", "/nonexistent"), "take files"),
        (("http://127.0.0.1:9", "--admin-token", "s3cret-token"), "is not a file that can be read"),
        (("ftp://127.0.0.1", "--admin-token", __file__), "must hold one admin token"),
    ],
)
def test_a_run_that_cannot_begin_ends_with_2(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a sentence that says what to do, and without what may be a secret."""
    assert main(["central", "conformance", *arguments]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert "s3cret" not in said.err + said.out


def test_a_server_that_is_not_there_is_no_report(tmp_path: Path) -> None:
    """Exit status 2, and no point."""
    (tmp_path / "token").write_text("x")
    done = command("http://127.0.0.1:9", "--admin-token", str(tmp_path / "token"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "no server answers at http://127.0.0.1:9" in done.stderr
