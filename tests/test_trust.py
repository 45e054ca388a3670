"""What makes an answer of the central worth believing."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from gateway import trust
from gateway.host import write_durably
from gateway.model import HOUR, SECOND
from gateway.sync import protocol
from gateway.sync.protocol import ProtocolError, Said
from gateway.trust import Pinned, Trust, TrustError

KEYS = {name: Ed25519PrivateKey.generate() for name in ("k1", "k2", "stranger")}


def public(name: str) -> str:
    return base64.b64encode(KEYS[name].public_key().public_bytes_raw()).decode()


def trust_of(folder: Path) -> Trust:
    return Trust(folder, Pinned("https://c.example", "north", "main", {"k1": public("k1")}, "h1"))


def said(nonce: str, time: int = 0, *, gateway: str = "north", venue: str = "main") -> Said:
    return Said(gateway, venue, "h1", nonce, time, None)


def test_only_a_pinned_key_speaks_and_only_for_its_purpose(tmp_path: Path) -> None:
    """A body signed by a stranger, for another purpose, or changed by a byte is refused."""
    pinned = trust_of(tmp_path)
    header = protocol.sign({"stranger": KEYS["stranger"], "k1": KEYS["k1"]}, "changes", b"body")
    assert pinned.verify("changes", b"body", header) == "k1"
    for purpose, body, signature in (
        ("events", b"body", header),
        ("changes", b"bodY", header),
        ("changes", b"body", protocol.sign({"k1": KEYS["stranger"]}, "changes", b"body")),
        ("changes", b"body", ""),
        ("changes", b"body", "k1:AAAA"),
    ):
        with pytest.raises(ProtocolError):
            pinned.verify(purpose, body, signature)


def test_a_question_is_answered_once_in_time_and_by_name(tmp_path: Path) -> None:
    """Replayed, late, invented and misdirected answers are refused; the right one counts once."""
    pinned = trust_of(tmp_path)
    nonce = pinned.draw(1000)
    with pytest.raises(ProtocolError, match="gateway"):
        pinned.fresh(said(nonce, gateway="south"), 1001)
    with pytest.raises(ProtocolError, match="venue"):
        pinned.fresh(said(nonce, venue="annex"), 1001)
    with pytest.raises(ProtocolError, match="nonce"):
        pinned.fresh(said("x" * 24), 1001)
    assert pinned.fresh(said(nonce), 1002) == 1000
    with pytest.raises(ProtocolError, match="nonce"):
        pinned.fresh(said(nonce), 1003)
    late = pinned.draw(2000)
    with pytest.raises(ProtocolError, match="too old"):
        pinned.fresh(said(late), 2001 + protocol.NONCE_LIFE)


def test_open_questions_are_bounded(tmp_path: Path) -> None:
    """Whoever asks for questions without end makes the oldest worthless, and no memory grows."""
    pinned = trust_of(tmp_path)
    first = pinned.draw(0)
    for n in range(100):
        last = pinned.draw(n)
    with pytest.raises(ProtocolError):
        pinned.fresh(said(first), 100)
    assert pinned.fresh(said(last), 100) == 99


def test_uploads_that_fail_leave_the_question_for_news_open(tmp_path: Path) -> None:
    """A poll waits for half a minute; batches that nobody answers meanwhile, as when one bad event is looked
    for, must not make its answer worthless: there may be a revocation in it."""
    pinned = trust_of(tmp_path)
    poll = pinned.draw(1000)
    for n in range(20):
        batch = pinned.draw(1000 + n, protocol.EVENTS)
    assert pinned.fresh(said(poll), 2000) == 1000
    assert pinned.fresh(said(batch), 2000, protocol.EVENTS) == 1019


@given(
    offset=st.integers(-(10**15), 10**15),
    trips=st.lists(
        st.tuples(st.integers(0, 90 * SECOND), st.integers(0, 20 * SECOND), st.integers(0, HOUR)),
        min_size=1,
        max_size=20,
    ),
)
def test_what_time_it_is_for_the_central_is_never_underestimated(
    offset: int, trips: list[tuple[int, int, int]]
) -> None:
    """However long a courier keeps questions and answers back, the latest time it can be is no earlier than
    the time it is: so a command is never obeyed after its end."""
    pinned = trust_of(Path("/nonexistent"))
    now = 10**12
    for ask, back, pause in trips:
        now += pause
        nonce = pinned.draw(now)
        signed = now + ask + offset
        now += ask + back
        pinned.fresh(said(nonce, signed), now)
        assert pinned.latest(now) >= now + offset


def test_keys_follow_one_another(tmp_path: Path) -> None:
    """A key announces the next, the next ends it; none ends itself, none changes under its name."""
    pinned = trust_of(tmp_path)
    assert pinned.pin_key({"kind": "key", "id": "k2", "public": public("k2")}, "k1")
    assert not pinned.pin_key({"kind": "key", "id": "k2", "public": public("k2")}, "k1")
    with pytest.raises(ProtocolError, match="other bytes"):
        pinned.pin_key({"kind": "key", "id": "k2", "public": public("k1")}, "k1")
    with pytest.raises(ProtocolError, match="cannot end itself"):
        pinned.pin_key({"kind": "key", "id": "k1", "deleted": True}, "k1")
    assert pinned.pin_key({"kind": "key", "id": "k1", "deleted": True}, "k2")
    assert list(pinned.pinned.keys) == ["k2"]
    for n in range(7):
        pinned.pin_key({"id": f"n{n}", "public": public("stranger")}, "k2")
    with pytest.raises(ProtocolError, match="too many"):
        pinned.pin_key({"id": "one-more", "public": public("stranger")}, "k2")


def test_what_is_pinned_survives_and_a_damaged_file_is_said(tmp_path: Path) -> None:
    """What was pinned is read again as it was; a file that was cut or is of somebody else is refused with the
    remedy; no file is no central."""
    assert trust.load(tmp_path) is None
    keys = [{"id": "k1", "public": public("k1")}]
    trust.pin(tmp_path, url="https://c.example", gateway="north", venue="main", keys=keys, history="h1")
    found = trust.load(tmp_path)
    assert found is not None
    assert found.pinned.keys == {"k1": public("k1")}
    assert found.pinned.new_epoch
    assert found.pinned.want_snapshot
    path = tmp_path / trust.FILE
    assert path.stat().st_mode & 0o777 == 0o600
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(TrustError, match="gateway enroll"):
            trust.load(tmp_path)
    path.write_bytes(b'{"url":"x","gateway":"g","venue":"v","keys":{}}')
    with pytest.raises(TrustError, match="keys"):
        trust.load(tmp_path)
    assert json.loads(whole)["format"] == trust.FORMAT
    path.write_bytes(whole.replace(b'"format": 1', b'"format": 2'))
    with pytest.raises(TrustError, match="format 2, this program knows 1: install the newer version again"):
        trust.load(tmp_path)


def test_a_disk_that_is_full_leaves_the_file_before(tmp_path: Path) -> None:
    """Where not all of a file can be written, none of it is: of half a list commands are obeyed again."""
    path = tmp_path / trust.COMMANDS_FILE
    write_durably(path, b"[]")
    script = (
        "import resource, sys, pathlib; from gateway.host import write_durably\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"  # write(2) then takes 1000 bytes of 5000
        "try: write_durably(pathlib.Path(sys.argv[1]), b'x' * 5000)\n"
        "except OSError: print('told')\n"
    )
    run = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert (run.stdout, path.read_bytes()) == ("told\n", b"[]")


def test_the_commands_obeyed_are_kept(tmp_path: Path) -> None:
    """Ids of commands are read again, the newest thousand of them."""
    pinned = trust_of(tmp_path)
    for n in range(1500):
        pinned.remember(f"c{n}")
    path, data = pinned.save_obeyed()
    path.write_bytes(data)
    (tmp_path / trust.FILE).write_bytes(pinned.save()[1])
    again = trust.load(tmp_path)
    assert again is not None
    assert again.obeyed == [f"c{n}" for n in range(500, 1500)]


def test_another_central_gets_nothing_of_before() -> None:
    """Who joins another central, or another venue, owes it only what happens from then on. One that has moved
    to another address is known by its keys, one that was set up anew by its address: both get all."""
    one = Pinned("https://a.example", "north", "main", {"k1": public("k1")}, owed_from=3)

    def owed(url: str, venue: str, key: str, before: Pinned | None = one) -> int:
        pinned = Pinned(url, "north", venue, {"k": public(key)})
        trust.succeed(pinned, before, 70)
        return pinned.owed_from

    assert owed("https://a.example", "main", "k1") == 3
    assert owed("https://a.example", "main", "k2") == 3
    assert owed("https://b.example", "main", "k1") == 3
    assert owed("https://b.example", "main", "k2") == 71
    assert owed("https://a.example", "annex", "k1") == 71
    assert owed("https://a.example", "main", "k1", None) == 1
