"""docs/protocol.md is enough by itself: its bytes, limits, examples and words are true."""

from __future__ import annotations

import argparse
import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.cache import records
from gateway.central import conformance
from gateway.central.conformance.means import CANNOT
from gateway.sync import protocol as p
from gateway.sync.protocol import ProtocolError

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/protocol.md").read_text()
HEADINGS = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
SOURCES = "\n".join(path.read_text() for path in (ROOT / "gateway/central/conformance").glob("*.py"))
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def section(heading: str) -> str:
    """The text below a heading, up to the next one."""
    return re.split(r"^#+ ", PAGE[PAGE.index(f" {heading}\n") + len(heading) :], flags=re.MULTILINE)[0]


def objects(heading: str) -> list[dict[str, Any]]:
    """The JSON objects in the blocks of a section, their dots filled in."""
    found: list[dict[str, Any]] = []
    for block in re.findall(r"^```json\n(.*?)^```", section(heading), re.MULTILINE | re.DOTALL):
        lines = block.splitlines()
        for text in lines if all(line.startswith("{") and line.endswith("}") for line in lines) else [block]:
            text = re.sub(r'"(time|published|at)":"…"', r'"\1":"2026-11-21T10:00:00+00:00"', text)
            found.append(json.loads(text.replace('"hex, of the file as sent"', f'"{"ab" * 32}"')))
    return found


# --- the worked example ---------------------------------------------------------------------------------


def test_the_program_of_the_page_prints_what_stands_below_it() -> None:
    """Run as it is, with nothing but the library that it names."""
    [program] = [text for language, text in BLOCKS if language == "python"]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ("", done.stdout) in BLOCKS


def test_the_bytes_of_the_page_are_what_a_gateway_believes() -> None:
    """The signature there is good for that body and purpose by this module, and for nothing else."""
    [program] = [text for language, text in BLOCKS if language == "python"]
    body = "".join(re.findall(r"^    b'(.*)'$", program, re.MULTILINE)).encode()
    public = re.findall(r"^public key: (.+)$", PAGE, re.MULTILINE)
    [header] = re.findall(r"^Gateway-Signature: (k1:\S{80,})$", PAGE, re.MULTILINE)
    keys = {"k1": p.public_bytes(public[0])}
    assert p.verify(keys, p.CHANGES, body, header) == "k1"
    assert p.sign({"k1": Ed25519PrivateKey.from_private_bytes(bytes(range(32)))}, p.CHANGES, body) == header
    for purpose, other in ((p.EVENTS, body), (p.CHANGES, body + b"\n")):
        with pytest.raises(ProtocolError):
            p.verify(keys, purpose, other, header)
    said = p.changes_of(p.decode(body, p.JSON))
    assert (said.next, said.position, said.said.have) == ("h7.4711", 4711, {731: 991})
    assert f"message: {len(p.signed_bytes(p.CHANGES, body))} bytes" in PAGE


# --- examples ---------------------------------------------------------------------------------------------


def test_the_answers_of_the_page_are_read_as_they_stand() -> None:
    """Every body shown is one that the gateway's own reader takes."""
    [changes] = objects("`GET /v1/changes`")
    assert [record["id"] for record in p.changes_of(changes).records] == ["C1", "H9"]
    sent, answered = objects("`POST /v1/events`")
    said = p.uploaded_of(answered)
    assert said.acknowledged == [(731, 992, 993)]
    assert {event["seq"] for event in sent["events"]} == {992, 993}
    [manifest] = objects("`GET /v1/snapshot`")
    assert p.manifest_of(manifest).count == 250_000
    asked, enrolled = objects("`POST /v1/enroll`")
    assert {"code", "machine", "hostname", "version"} == set(asked)
    assert {"gateway", "venue", "token", "history", "time", "keys"} == set(enrolled)


def test_the_usage_of_the_page_is_what_the_events_say() -> None:
    """It is a record that a gate takes, of the scan's time and people."""
    scan, went, annul, usage = objects("Other gates' entries")
    assert (went["of"], went["passage"], annul["of"]) == (scan["seq"], usage["passage"], scan["seq"])
    assert all(usage[name] == scan[name] for name in usage if name not in ("kind", "passage"))
    assert records.parse(usage) is not None


def test_a_condition_of_the_page_can_be_read() -> None:
    """The header in the exchange that is shown whole."""
    [text] = re.findall(r"^Gateway-Condition: (\S+)$", PAGE, re.MULTILINE)
    assert json.loads(base64.urlsafe_b64decode(text)) == {"version": "0.1.0"}


# --- numbers and words --------------------------------------------------------------------------------------


def test_the_limits_of_the_page_are_those_of_the_program() -> None:
    """And the purposes, the acts, and the longest cursor and nonce."""
    general = " ".join(section("In general").split())
    assert f"is at most {p.MAX_ANSWER:,} bytes and {p.MAX_RECORDS} records" in general
    assert f"a record at most {p.MAX_RECORD:,} bytes" in general
    assert f"at most {p.MAX_EVENTS:,} events and {p.MAX_UPLOAD:,} bytes" in general
    assert f"(at most {p.MAX_WAIT})" in section("`GET /v1/changes`")
    assert p.NONCE_LIFE == 2 * 60 * 1_000_000
    assert "two minutes ago" in section("Every signed answer says")
    assert p.CURSOR.fullmatch("x" * 128)
    assert not p.CURSOR.fullmatch("x" * 129)
    assert all(f"`{purpose}`" in section("Signatures") for purpose in (p.CHANGES, p.EVENTS, p.SNAPSHOT_FILE))
    assert all(f"`{act}`" in section("Commands") for act in p.ACTS)


def test_every_point_of_a_report_names_a_section_of_the_page() -> None:
    """What the conformance run gives as the section is a heading there; no part of the page is left out."""
    found = re.compile(r"\"(`(?:GET|POST) /v1/\w+`|[A-Z][a-z' ]+)\"")
    named = set(found.findall(SOURCES)) & set(HEADINGS)
    parts = set(HEADINGS) - {
        "The sync protocol",
        "Where to begin",
        "An example with real bytes",
        "Conformance",
    }
    assert named == parts


def test_the_options_and_words_of_the_conformance_run_are_described() -> None:
    """Each option stands on the page, and each word that a hook may be told, with its exit status."""
    parser = argparse.ArgumentParser(add_help=False)
    conformance.add_arguments(parser)
    options = {option for action in parser._actions for option in action.option_strings}
    text = section("Conformance")
    assert {option for option in options if option not in text} == set()
    told = set(re.findall(r'_told\(\s*"([a-z-]+)"', SOURCES))
    described = {word for word in re.findall(r"`([a-z-]+)(?: [A-Z_ ]+)?`", text) if word in told}
    assert told == described
    assert len(told) >= 7
    assert f"with {CANNOT} when it cannot" in text
