"""``gateway support-bundle``: what helps is in it, and nothing that names a card or a person."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.cache import codekey
from gateway.support.scrub import GONE, Scrub, vocabulary
from tests.e2e.rig import ROOT, Json, Site, Zygote, card, product, until, venue
from tests.e2e.system import Gateway, System

pytestmark = pytest.mark.timeout(180)

CODES = ("8K2MPX4T7Q", "4006381333931", "KARL-OTTO-77", "żółw-9X")
NAMES = ("Annabella", "Grzegorzewska", "annabella@example.org", "+49 171 5550199")
IDS = ("CARD-0815-A", "HOLD-0815-A", "ENT-0815-A")
OTHERS = ("MISTYPED-CODE-31", "K7QM-2XPD-94HV", "tok_5f2a9c81d0e64b7788aa", "ghp_0123456789abcdef")
PLANTED = (*CODES, *NAMES, *IDS, *OTHERS)


def plant(folder: Path, here: Site) -> list[str]:
    """Put them everywhere. Gives the lines of the journal."""
    text = here.config.read_text()
    here.config.write_text(
        f"# {' '.join(PLANTED)}\n{text}\n[messages.en]\ngranted = {json.dumps(PLANTED[4])}\n"
    )
    for number, word in enumerate(PLANTED):
        (here.data_dir / f"{word} {number}".replace("/", "")).write_text(" ".join(PLANTED))
        (here.data_dir / f"ledger-broken-{word}.db").write_text("x")
    lines = []
    for word in PLANTED:
        lines += [
            f"plain {word} text",
            json.dumps({"event": f"code {word} was read", "reason": word, "credential": word, "code": word}),
            json.dumps(
                {"event": "scan", word: 1, "holder": word, "count": word, "file": [word, {"a": word}]}
            ),
            json.dumps({"event": "internal error", "exception": _traceback(word)}),
            json.dumps([word]),
        ]
    return lines


def _traceback(word: str) -> str:
    return (
        "Traceback (most recent call last):\n"
        f'  File "/home/{word}/gateway/gate.py", line 12, in judge\n    find({word!r})\n'
        f"ValueError: {word} is none\n{word}\n"
    )


def commands(folder: Path, messages: list[str]) -> Path:
    """A folder with stand-ins for the commands of the system. The journal has these messages."""
    found = folder / "bin"
    found.mkdir(exist_ok=True)
    entries = [
        {"MESSAGE": line, "_SYSTEMD_UNIT": "gateway.service", "__REALTIME_TIMESTAMP": "1795255200123456"}
        for line in messages
    ]
    said = {
        "journalctl": "".join(
            json.dumps({**entry, "_CMDLINE": " ".join(PLANTED), "_HOSTNAME": NAMES[0]}) + "\n"
            for entry in entries
        ),
        "systemctl": f"ActiveState=active\nNRestarts=3\nEnvironment=TOKEN={OTHERS[2]}\n",
        "dmesg": f"[1.0] usb 1-1.3: new full-speed USB device\n[2.0] input: {NAMES[0]}s Keyboard as x\n",
    }
    for name, text in said.items():
        (found / f"{name}.said").write_text(text)
        (found / name).write_text(f'#!/bin/sh\nexec /bin/cat "{found}/{name}.said"\n')
        (found / name).chmod(0o755)
    return found


def make(here: Site, *, path: Path | None, output: str = "bundle.tar.gz") -> tuple[Json, dict[str, str]]:
    """Run the command. Gives what it printed, and the members as text."""
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "support-bundle", "--config", here.config, "--output", output],
        cwd=here.folder,
        env={
            "PYTHONPATH": str(ROOT),
            "PATH": str(path or here.folder / "no-commands"),
            "GATEWAY_TOKEN": OTHERS[2],
            "USER": NAMES[0],
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    bundle = here.folder / output
    assert bundle.stat().st_mode & 0o777 == 0o600
    with tarfile.open(bundle) as tar:
        members = {}
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            assert member.name.startswith("support-")
            members[member.name.partition("/")[2]] = file.read().decode()
    assert not list(here.folder.glob(".*.part"))
    for member_name, text in [*members.items(), ("stdout", done.stdout), ("stderr", done.stderr)]:
        for word in PLANTED:
            assert word.lower() not in text.lower(), (member_name, word)
    return json.loads(done.stdout), members


@pytest.fixture
def system(tmp_path: Path, zygote: Zygote) -> Iterator[System]:
    """A central with cards whose codes, ids and holders are to be looked for."""
    made = System(tmp_path, zygote)
    made.central.start()
    records = [*venue(), product("open")]
    for number, code in enumerate(CODES):
        holder = {"kind": "holder", "id": f"{IDS[1]}{number}", "name": " ".join(NAMES), "language": "en"}
        records += [
            holder,
            {"kind": "entitlement", "id": f"{IDS[2]}{number}", "product": "open", "holder": holder["id"]},
            {
                "kind": "credential",
                "id": f"{IDS[0]}{number}",
                "code": code,
                "entitlements": [f"{IDS[2]}{number}"],
            },
        ]
    made.central.load(records)
    yield made
    made.close()


def test_what_is_planted_is_not_in_it(system: System, site: Callable[..., Site]) -> None:
    """Codes, names, ids, tokens, keys and one-time codes, on cards, in comments, log lines, file names,
    central.json and the environment: none is in any member, plain, as hex, in BASE64 or as a digest; what
    helps is there. With gate and sync running, and after both have stopped."""
    north: Gateway = system.gateway(
        site,
        ({"name": "north", "relay": {"driver": "memory"}},),
        ({"name": "north-in", "lane": "north"},),
        ({"name": "in", "point": "north-in"},),
    )
    here = north.site
    here.start()
    one_time = system.central.code("north")
    assert north.enroll(one_time).status == 0
    north.start_sync()
    until(lambda: north.cards() == len(CODES))
    for code in (*CODES, OTHERS[0], CODES[0]):
        here.scan("in", code)
    here.written()
    token = (here.data_dir / "sync/token").read_text()
    key = (here.data_dir / "code.key").read_bytes()
    central = here.data_dir / "central.json"
    pinned = json.loads(central.read_text())
    central.write_text(json.dumps({**pinned, "note": " ".join(PLANTED)}))
    assert here.gate is not None
    journal = plant(here.folder, here) + here.gate.errors().splitlines()
    assert IDS[0] in here.gate.errors()
    operator = here.run("operator", "add", NAMES[0]).json[0]["token"]
    bare = codekey.CodeKey(key)
    secrets = [one_time, token, operator, key.hex(), base64.b64encode(key).decode(), *pinned["keys"].values()]
    secrets += [bare.code(code.encode()).hex() for code in CODES]

    for running in (True, False):
        if not running:
            north.stop_sync()
            here.stop()
        path = commands(here.folder, [*journal, f"the token {token}", f"key {key.hex()} {one_time}"])
        printed, members = make(here, path=path, output=f"{running}.tar.gz")
        for name, text in members.items():
            for secret in secrets:
                assert secret not in text, (name, secret)
        gone = {"status.json", "metrics-gate.txt", "metrics-sync.txt"}
        assert set(printed["failed"]) == (set() if running else gone), members["failures.json"]
        assert set(json.loads(members["failures.json"])) == set(printed["failed"])

        config = json.loads(members["configuration.json"])
        assert config["readers"][0]["device"].endswith("scanner-in")
        assert config["messages"] == {"en": ["granted"]}
        versions = json.loads(members["versions.json"])
        assert versions["packages"]["orjson"]
        assert json.loads(members["units.json"])["gateway.service"] == {
            "ActiveState": "active",
            "NRestarts": "3",
        }
        assert members["kernel.txt"] == "[1.0] usb 1-1.3: new full-speed USB device\n"
        assert json.loads(members["ledger.json"])["events"]["scan"] == 6
        about = {found["about"]: found["state"] for found in json.loads(members["doctor.json"])}
        assert about["gate"] == ("ok" if running else "warning")
        assert json.loads(members["central.json"])["venue"] == "main"
        kept = {file["name"] for file in json.loads(members["files.json"])["data_dir"]}
        assert {"ledger.db", "code.key", "(another file)"} <= kept
        if running:
            assert "gateway_scans_total" in members["metrics-gate.txt"]
            assert "gateway_sync_up 1.0" in members["metrics-sync.txt"]
            assert json.loads(members["status.json"])["snapshot"]["counts"]["credentials"] == len(CODES)
        else:
            assert json.loads(members["snapshots.json"])["in_use"]["credentials"] == len(CODES)

        lines = [json.loads(line) for line in members["journal.ndjson"].splitlines()]
        scans = [line for line in lines if line.get("event") == "scan" and "verdict" in line]
        assert [scan["verdict"] for scan in scans] == ["granted"] * 4 + ["unknown_credential", "granted"]
        # The first and the last are one card; that one sees, and not which.
        assert scans[0]["credential"] == scans[-1]["credential"] != scans[1]["credential"]
        assert scans[0]["credential"].startswith("p-")
        assert any(
            line.get("exception") == ["gate.py:12 judge", f"ValueError: {GONE} is none"] for line in lines
        )
        assert any(line.get("text") == f"plain {GONE} text" for line in lines)
    assert len({scan["credential"] for scan in scans} & set(members["journal.ndjson"].split('"'))) == 4


def test_pseudonyms_change_with_each_bundle(site: Callable[..., Site]) -> None:
    """The same card has another pseudonym in the next bundle."""
    here = site()
    path = commands(here.folder, [json.dumps({"event": "scan", "credential": IDS[0]})])
    _, one = make(here, path=path, output="1.tar.gz")
    _, other = make(here, path=path, output="2.tar.gz")
    pseudonyms = {json.loads(members["journal.ndjson"])["credential"] for members in (one, other)}
    assert len(pseudonyms) == 2


def test_parts_that_fail(site: Callable[..., Site]) -> None:
    """Without systemd, with a damaged ledger, a damaged central.json and no key, the rest is there, and each
    failure is noted; a configuration that cannot be used is told by its keys, without what stands there."""
    here = site()
    here.imports([*venue(), product("open"), *card(1, CODES[0], "open")])
    (here.data_dir / "ledger.db").write_bytes(b"nonsense " * 1000)
    (here.data_dir / "central.json").write_text(f'{{"url": "{NAMES[0]}"')
    (here.data_dir / "code.key").unlink()
    printed, members = make(here, path=None)
    failures = json.loads(members["failures.json"])
    expected = {"units.json", "journal.ndjson", "kernel.txt", "ledger.json", "snapshots.json", "central.json"}
    assert expected <= set(failures)
    assert failures["units.json"] == "CommandFailed: there is no systemctl here"
    assert "DatabaseError" in failures["ledger.json"]
    assert {"doctor.json", "files.json", "configuration.json", "versions.json"} <= set(members)
    assert set(printed["failed"]) == set(failures)

    here.config.write_text(here.config.read_text() + f'\n[{NAMES[0]}]\nx = "{CODES[0]}"\n[web]\nlisten = 7\n')
    _, members = make(here, path=None, output="broken.tar.gz")
    wrong = json.loads(members["configuration.json"])["cannot_be_used"]
    assert {fault["key"] for fault in wrong} == {"(an unknown key)", "web.listen"}
    here.config.write_text(f"{CODES[0]} = ")
    _, members = make(here, path=None, output="syntax.tar.gz")
    assert "journal.ndjson" in json.loads(members["failures.json"])


def test_where_it_goes(site: Callable[..., Site]) -> None:
    """Without --output it has a name with id and time, here; a file that is there stays as it is; a folder
    that is not there is told."""
    here = site()
    done = here.run("support-bundle")
    assert done.status == 0, done.err
    path = here.folder / done.json[0]["bundle"]
    assert path.name.startswith("support-north-")
    before = path.read_bytes()
    done = here.run("support-bundle", "--output", str(path))
    assert (done.status, done.out) == (2, "")
    assert "is there already" in done.err
    assert path.read_bytes() == before
    done = here.run("support-bundle", "--output", str(here.folder / "none/b.tar.gz"))
    assert done.status == 2
    assert "give another place with --output" in done.err


def test_what_is_left_of_a_text() -> None:
    """The program's words, the configuration's names, short numbers and times stay; all else goes. The
    vocabulary has no word with a digit, so that no code of an example is in it."""
    scrub = Scrub(["north-in", "/dev/ttyUSB7"], ["hunter2secret"], b"k" * 32)
    kept = "reader is down: /dev/ttyUSB7 north-in 2026-11-21T10:00:00.123456Z after 17 s"
    assert scrub.words(kept) == kept
    assert scrub.words("card 40063813 of Grzegorz unknown") == f"card {GONE} of {GONE} unknown"
    assert scrub.sweep("a hunter2secret b") == f"a {GONE} b"
    assert scrub.pseudonym(None) is None
    assert not [word for word in vocabulary() if any(char.isdigit() for char in word)]


def test_an_entry_of_the_journal_goes_by_its_fields() -> None:
    """What the log gives the journal is kept as far as the same line in JSON would be; the message that
    says it all again is not looked at."""
    scrub = Scrub(["north-in"], [], b"k" * 32)
    entry = {"MESSAGE": "scan point=north-in credential=C77", "_PID": "12", "GATEWAY_EVENT": "scan"}
    entry |= {"GATEWAY_POINT": "north-in", "GATEWAY_CREDENTIAL": "C77", "GATEWAY_NOT_LOGGED": "3"}
    kept = scrub.journal_entry({**entry, "GATEWAY_WHOSE": "Grzegorz"})
    assert {key: kept[key] for key in ("event", "point", "not_logged")} == {
        "event": "scan",
        "point": "north-in",
        "not_logged": 3,
    }
    assert kept["credential"] == scrub.pseudonym("C77")
    assert kept["fields_left_out"] == 1
    assert "Grzegorz" not in str(kept)
    assert scrub.journal_entry({"MESSAGE": "Started", "_PID": "1"}) == {}
