"""A courier that is hostile: what it forges, mixes, replays, withholds or stuffs moves nothing.

Through all of it known cards are scanned at a serial scanner, and each is answered as it must be.
"""

from __future__ import annotations

import base64
import contextlib
import os
import random
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.control import MAX_CLIENTS, MAX_LINE, CallError, NoGate
from gateway.model import MINUTE
from gateway.sync import protocol
from gateway.trust import COMMANDS_FILE
from gateway.trust import FILE as CENTRAL_FILE
from tests.e2e.joined import Joined, join, records, revoked
from tests.e2e.rig import WAIT, Json, Site, Watch, product, until
from tests.hand import Courier, Hand

SEED = 20261123
CORRUPTIONS = 1000
PAUSE = 0.005
"""Seconds between two rounds of scans, for everybody else on this machine."""
Make = Callable[..., Site]
EXPECTED = {"OPEN1": "granted", "OPEN0": "revoked", "OPEN2": "granted"}


class Scanning:
    """Scans the cards one after the other, and holds each verdict against what it must be."""

    def __init__(self, gate: Joined) -> None:
        self.count = 0
        self._gate = gate
        self._stop = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            with contextlib.closing(Watch(Path(str(self._gate.site.gateway["admin_socket"])))) as watch:
                while not self._stop.wait(PAUSE):
                    for code, verdict in EXPECTED.items():
                        self._gate.site.scanners["in"].scan(code)
                        told = watch.next()
                        found = (told["reader"], told["verdict"], told["credential"])
                        assert found == ("in", verdict, f"C{code[-1]}"), (code, told)
                        self.count += 1
        except BaseException as error:
            self._failed = error

    def more(self, scans: int = 20) -> None:
        """Wait for so many more."""
        wanted = self.count + scans
        until(lambda: self.count >= wanted or self._failed, "scans are answered")
        if self._failed is not None:
            raise self._failed

    def __enter__(self) -> Scanning:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(WAIT)
        assert not self._thread.is_alive()
        if self._failed is not None:
            raise self._failed


@pytest.fixture
def gate(site: Make) -> Iterator[Joined]:
    """A gate in use, with OPEN0 revoked, that has heard its central; scanned at all the while."""
    made = join(site)
    made.courier.tell(revoked(0))
    with Scanning(made) as scanning:
        made.scanning = scanning  # type: ignore[attr-defined]
        yield made
        scanning.more()
        assert made.courier.tell()["changed"] == 0, "the central is still heard"
    assert made.site.gate is not None
    assert not made.site.gate.ends()


def moved(gate: Joined) -> Json:
    """All that only the central may move."""
    status, poll = gate.status, gate.courier.poll()
    folder = gate.site.data_dir
    return {
        "central": (folder / CENTRAL_FILE).read_bytes(),
        "commands": (folder / COMMANDS_FILE).exists() and (folder / COMMANDS_FILE).read_bytes(),
        "files": gate.files(),
        "generation": status["snapshot"]["generation"],
        "cards": status["snapshot"]["counts"],
        "lanes": [lane["state"] for lane in status["lanes"]],
        "ledger": {name: status["ledger"][name] for name in ("epoch", "acknowledged", "fault", "lost")},
        "refused": gate.site.call("refused"),
        "asked": {name: poll[name] for name in ("cursor", "keys", "revoked", "snapshot", "url", "venue")},
    }


def refusals(gate: Joined) -> float:
    return gate.site.metric("gateway_answers_refused_total")


def twisted(sealed: Json, body: bytes) -> Json:
    """Other bytes under the same signature."""
    return {**sealed, "body": base64.b64encode(body).decode()}


# --- answers ------------------------------------------------------------------------------------------


def test_forged_answers(gate: Joined) -> None:
    """Other keys, other bytes, another gateway's or venue's answers, those for another purpose or question:
    each is refused and counted, and moves nothing."""
    hand = gate.hand
    stranger = Hand()
    south, annex = Hand(gateway="south"), Hand(venue="annex")
    south.keys = annex.keys = hand.keys
    for other in (stranger, south, annex):
        other.position = hand.position
    news = [revoked(1), hand.command("free", lane="north")]
    before, count = moved(gate), refusals(gate)

    def changes() -> Json:
        sealed = hand.changes(gate.courier.poll(), news, next="h1.9", position=9)
        hand.position -= len(news)
        return sealed

    def body(**other: Any) -> Json:
        poll = gate.courier.poll()
        known = {"cursor": poll["cursor"], "next": "h1.9", "position": 9, "more": False, "records": news}
        return {**hand.said(poll["nonce"]), **known, **other}

    def outbox() -> Json:
        return gate.courier.outbox(limit=3)

    genuine = changes()
    raw = base64.b64decode(genuine["body"])
    forged: list[tuple[str, Json]] = [
        ("answer", {**genuine, "signature": ""}),
        ("answer", {**genuine, "signature": "k1"}),
        ("answer", {**genuine, "signature": "k1:" + "A" * 88}),
        ("answer", {**genuine, "signature": genuine["signature"].replace("k1:", "k2:")}),
        ("answer", {**genuine, "signature": ", ".join(["k1:AAAA"] * 5000)}),
        ("answer", {**genuine, "body": "!" * 100}),
        ("answer", twisted(genuine, raw.replace(b"revoked", b"blocked"))),
        ("answer", twisted(genuine, raw + b" ")),
        ("answer", {**genuine, "type": protocol.MSGPACK}),
        ("answer", {**genuine, "type": "text/html"}),
        ("uploaded", genuine),
        ("answer", hand.changes(gate.courier.poll(), news, signer=stranger)),
        ("answer", stranger.gone(gate.courier.poll())),
        ("answer", stranger.revoked(gate.courier.poll())),
        ("uploaded", stranger.took(outbox())),
    ]
    hand.position -= len(news)
    for other in (south, annex):
        forged += [
            ("answer", other.changes(gate.courier.poll(), news)),
            ("answer", other.gone(gate.courier.poll())),
            ("answer", other.revoked(gate.courier.poll())),
            ("uploaded", other.took(outbox())),
        ]
    for purpose in (protocol.EVENTS, protocol.SNAPSHOT_FILE, "", "enroll"):
        forged.append(("answer", hand.sealed(purpose, body())))
    forged += [
        ("uploaded", hand.sealed(protocol.EVENTS, body())),
        ("answer", hand.sealed(protocol.CHANGES, body(nonce="n" * 24))),
        ("answer", hand.sealed(protocol.CHANGES, body(nonce=outbox()["nonce"]))),
        ("answer", hand.sealed(protocol.CHANGES, body(cursor="h1.0"))),
        ("answer", hand.sealed(protocol.CHANGES, body(history="h0"))),
        ("answer", hand.sealed(protocol.CHANGES, body(position=0))),
        ("answer", hand.sealed(protocol.CHANGES, body(records=[product("x")] * 251))),
        ("uploaded", hand.took({**outbox(), "nonce": gate.courier.poll()["nonce"]})),
        (
            "uploaded",
            hand.sealed(protocol.CHANGES, hand.said(outbox()["nonce"], acknowledged=[], refused=[])),
        ),
    ]
    hand.have = {}
    for name, arguments in forged:
        gate.refused(name, **arguments)
    assert refusals(gate) == count + len(forged)
    assert moved(gate) == before


def test_replayed_and_reordered_answers(gate: Joined) -> None:
    """An answer counts once and in its turn: not again, not after the answer to a later question, and not
    where so many questions followed that it was given up."""
    hand, courier = gate.hand, gate.courier
    early, late = courier.poll(), courier.poll()
    kept = hand.gone(early), hand.revoked(early), hand.changes(early, [revoked(1)], next="h1.2", position=2)
    hand.position = 1
    sealed = hand.changes(late, [product("p1")])
    courier.client.call("answer", **sealed)
    before = moved(gate)
    for answer in (sealed, *kept):
        assert "nonce" in gate.refused("answer", **answer)
    withheld = hand.changes(courier.poll(), [revoked(1)], next="h1.3", position=3)
    hand.position = 2
    for _ in range(8):
        courier.poll()
    assert "nonce" in gate.refused("answer", **withheld)
    outbox = courier.outbox(limit=2)
    other = hand.took(outbox, acknowledged=[])
    hand.have = {}
    courier.client.call("uploaded", **hand.took(outbox, acknowledged=[]))
    assert "nonce" in gate.refused("uploaded", **other)
    hand.have = {}
    assert moved(gate) == before


def test_withheld_commands(gate: Joined) -> None:
    """A command that was kept back is worth nothing once it has expired by the central's clock, as a later
    answer shows it, and nothing a second time in any answer."""
    hand, courier = gate.hand, gate.courier
    command = hand.command("free", lane="north")
    poll = courier.poll()
    withheld = hand.changes(poll, [command])
    hand.position -= 1
    hand.ahead = 10 * MINUTE
    assert courier.tell()["commands"] == 0
    assert "nonce" in gate.refused("answer", **withheld)
    assert courier.tell(command)["commands"] == 0
    hand.ahead = 0
    courier.tell()
    again = hand.command("close", lane="south")
    assert courier.tell(again)["commands"] == 1
    gate.site.call("lane", lane="south", state="normal")
    assert courier.tell(again, again)["commands"] == 0
    assert [lane["state"] for lane in gate.status["lanes"]] == ["normal", "normal"]


def test_random_corruptions(gate: Joined) -> None:
    """A thousand answers and manifests with a few bytes changed, lost, doubled or swapped: all are refused
    and counted, and what is in use stays."""
    rng = random.Random(SEED)
    hand = gate.hand
    _, arguments = hand.snapshot(gate.site.folder, records())
    before, count = moved(gate), refusals(gate)
    genuine = hand.changes(gate.courier.poll(), [revoked(1), hand.command("free", lane="north")])
    hand.position -= 2
    for n in range(CORRUPTIONS):
        name, whole, part = ("answer", genuine, "body") if n % 2 else ("generation", arguments, "manifest")
        changed = base64.b64encode(corrupted(rng, base64.b64decode(whole[part]))).decode()
        if n % 5 == 0:
            key, _, signature = whole["signature"].partition(":")
            signature = base64.b64encode(corrupted(rng, base64.b64decode(signature))).decode()
            gate.refused(name, **{**whole, "signature": f"{key}:{signature}"})
        else:
            gate.refused(name, **{**whole, part: changed})
    assert refusals(gate) == count + CORRUPTIONS
    assert moved(gate) == before


def corrupted(rng: random.Random, data: bytes) -> bytes:
    """Not what it was."""
    at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    found = rng.choice(
        (
            data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :],
            data[:at] + data[end:],
            data[:at] + data[at:end] * 2 + data[end:],
            data[:at] + data[at:end][::-1] + data[end:],
            data[:at] + rng.randbytes(3) + data[at:],
        )
    )
    return found if found != data else data + b"\n"


# --- snapshot files -----------------------------------------------------------------------------------


def test_files_that_are_not_what_was_signed(gate: Joined) -> None:
    """Corrupted, cut, longer, another's, another venue's, or no file at all: refused, and the cards in use
    serve on."""
    rng = random.Random(SEED)
    hand, courier, folder = gate.hand, gate.courier, gate.site.folder
    path, arguments = hand.snapshot(folder, records())
    other, _ = hand.snapshot(folder, [*records(), revoked(1)])
    annex = Hand(venue="annex")
    annex.keys = hand.keys
    stranger = Hand()
    whole = path.read_bytes()
    before, count = moved(gate), refusals(gate)
    bad = [corrupted(rng, whole) for _ in range(6)]
    bad += [b"", whole[:-1], whole + b"x", whole + whole, other.read_bytes()]
    for data in bad:
        twist = folder / "twisted.gz"
        twist.write_bytes(data)
        with pytest.raises(CallError) as told:
            courier.hand_over(twist, arguments)
        assert told.value.code == "refused"
    for hostile, words in ((annex, "venue"), (stranger, "signature")):
        with pytest.raises(CallError, match=words):
            courier.hand_over(*hostile.snapshot(folder, records()))
    with pytest.raises(CallError, match="history"):
        courier.hand_over(*hand.snapshot(folder, records(), history="h0"))
    assert refusals(gate) == count + len(bad) + 3
    assert unasked(moved(gate)) == unasked(before)


def unasked(state: Json) -> Json:
    """Without whether a snapshot is asked for: after one that failed that waits a while."""
    return {**state, "asked": {**state["asked"], "snapshot": None}}


def test_descriptors_that_are_no_files(gate: Joined) -> None:
    """A pipe, a folder, a socket, a device without end, a sparse file of a terabyte, none, and two: nothing
    hangs and nothing is built of them but of the first of two, if that is what was signed."""
    hand, courier, folder = gate.hand, gate.courier, gate.site.folder
    path, arguments = hand.snapshot(folder, [*records(), revoked(0)])
    before = moved(gate)
    os.mkfifo(folder / "fifo")
    sparse = os.memfd_create("sparse")
    os.truncate(sparse, 1 << 40)
    left, right = socket.socketpair()
    with left, right:
        fds = [
            os.open(folder / "fifo", os.O_RDWR),
            os.open(folder, os.O_RDONLY),
            os.open("/dev/zero", os.O_RDONLY),
            os.open(path, os.O_WRONLY),
            sparse,
            os.dup(left.fileno()),
        ]
        for fd in fds:
            with pytest.raises(CallError) as told:
                courier.client.call_with_fd("generation", fd, **arguments)
            assert told.value.code == "refused", told.value
            os.close(fd)
    for answer in (b"\n", b"xx", b'{"call":"status"}\n'):
        with asking(gate, arguments) as sock:
            sock.sendall(answer)
            assert b"did not come" in sock.recv(1 << 16)
    with asking(gate, arguments):  # waits, and sends none
        with pytest.raises(CallError) as told:
            courier.hand_over(path, arguments)
        assert told.value.code == "busy"
    assert unasked(moved(gate)) == unasked(before)
    with asking(gate, arguments) as sock, path.open("rb") as first, open("/dev/zero", "rb") as second:
        socket.send_fds(sock, [b"\n"], [first.fileno(), second.fileno()])
        until(lambda: gate.status["snapshot"]["generation"] == 2)


@contextlib.contextmanager
def asking(gate: Joined, arguments: Json) -> Iterator[socket.socket]:
    """A connection that has been asked for a descriptor."""
    until(lambda: not gate.status["central"]["building"])
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(WAIT)
        sock.connect(str(gate.site.gateway["sync_socket"]))
        lines = sock.makefile("rb")
        lines.readline()

        def asked() -> bool:
            sock.sendall(orjson.dumps({"id": 1, "call": "generation", **arguments}) + b"\n")
            answer = orjson.loads(lines.readline())
            assert answer.get("send_fd") or answer["code"] == "busy", answer
            return bool(answer.get("send_fd"))

        until(asked)
        yield sock


def test_a_file_that_changes_while_it_is_read(gate: Joined) -> None:
    """Whatever is written into a file meanwhile, cut off it or added to it: what comes into use is what was
    signed, or nothing."""
    hand, courier = gate.hand, gate.courier
    known = [*records(2000), revoked(0)]
    path, arguments = hand.snapshot(gate.site.folder, known)
    whole = path.read_bytes()
    before = gate.status["snapshot"]
    evil, _ = hand.snapshot(gate.site.folder, [*known, revoked(1), revoked(2)])
    other = evil.read_bytes()

    def rewrite() -> None:
        path.write_bytes(other)
        path.write_bytes(whole)

    def flip() -> None:
        for byte in (whole[100] ^ 1, whole[100]):
            os.pwrite(fd, bytes([byte]), 100)

    def cut() -> None:
        os.truncate(path, len(whole) // 2)
        os.pwrite(fd, whole, 0)

    def grow() -> None:
        os.truncate(path, len(whole) + 4096)
        os.truncate(path, len(whole))

    done = []
    for change in (rewrite, flip, cut, grow):
        path.write_bytes(whole)
        stop = threading.Event()
        fd = os.open(path, os.O_RDWR)

        def go_on(change: Callable[[], None] = change, stop: threading.Event = stop) -> None:
            while not stop.is_set():
                change()

        writing = threading.Thread(target=go_on)
        writing.start()
        try:
            done.append(courier.hand_over(path, arguments)["generation"])
        except CallError as error:
            assert error.code == "refused", error  # noqa: PT017
        finally:
            stop.set()
            writing.join()
            os.close(fd)
    after = gate.status["snapshot"]
    assert after["generation"] == (done[-1] if done else before["generation"])
    assert after["counts"]["credentials"] == (2000 if done else before["counts"]["credentials"])


def test_an_old_snapshot_again(gate: Joined) -> None:
    """A snapshot from before the revocation, well signed, comes again and again: the revoked card stays
    revoked, also over kills in between, and the same file with another's manifest is refused."""
    hand = gate.hand
    hand.position = 0
    old = hand.snapshot(gate.site.folder, records())
    hand.position = 1
    new = hand.snapshot(gate.site.folder, [*records(), revoked(0)])
    with pytest.raises(CallError):
        gate.courier.hand_over(old[0], new[1])
    with pytest.raises(CallError):
        gate.courier.hand_over(new[0], old[1])
    assert gate.courier.hand_over(*old)["state"] == "catching_up"
    for _ in range(3):
        with pytest.raises(CallError) as told:
            gate.courier.hand_over(*old)
        assert told.value.code == "busy"
        assert gate.courier.poll()["cursor"] == "h1.0"
    hand.position = 0
    assert gate.courier.tell(revoked(0))["changed"] == 1
    assert gate.status["snapshot"]["generation"] == 2


# --- stuffing -----------------------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    return b'{"records":' + b"[" * depth + b"]" * depth + b"}"


def test_bombs(gate: Joined) -> None:
    """Bodies that nest, swell or lie about their lengths, signed and not, and lines at the limit: refused,
    whoever made them."""
    hand, client = gate.hand, gate.courier.client
    before = moved(gate)
    room = (MAX_LINE - 1000) * 3 // 4
    bombs = [
        (protocol.JSON, nested(300_000)),
        (protocol.JSON, b"[" * room),
        (protocol.JSON, orjson.dumps({f"f{n}": n for n in range(40_000)})),
        (protocol.JSON, b'{"gateway":"' + b"n" * (room - 20) + b'"}'),
        (protocol.JSON, b'{"time":1e999999,"have":' + b"9" * 700_000 + b"}"),
        (protocol.MSGPACK, b"\x91" * room),
        (protocol.MSGPACK, b"\x81\xa1a" * (room // 3)),
        (protocol.MSGPACK, b"\xdf\xff\xff\xff\xff" + b"\xa1a\x00" * 1000),
        (protocol.MSGPACK, b"\xdd\xff\xff\xff\xff"),
        (protocol.MSGPACK, b"\xdb\xff\xff\xff\xff" + b"a" * 1000),
        (protocol.MSGPACK, b"\x81\xa4have\xc9\x7f\xff\xff\xff\x00"),
    ]
    for type_, raw in bombs:
        for purpose, call in ((protocol.CHANGES, "answer"), (protocol.EVENTS, "uploaded")):
            sealed = {
                "type": type_,
                "body": base64.b64encode(raw).decode(),
                "signature": protocol.sign(hand.keys, purpose, raw),
            }
            gate.refused(call, **sealed)
            gate.refused(call, **{**sealed, "signature": "k1:AAAA"})
    raw = nested(100_000)
    manifest = base64.b64encode(raw).decode()
    signature = protocol.sign(hand.keys, protocol.SNAPSHOT_FILE, raw)
    gate.refused("generation", manifest=manifest, signature=signature)
    for odd in (
        {"have": {str(n): n for n in range(2000)}},
        {"have": {"9" * 19: 1}},
        {"records": [nested(5).decode()] * 200},
    ):
        poll = gate.courier.poll()
        body = hand.said(poll["nonce"], cursor=poll["cursor"], next="h1.1", position=1, records=[])
        with contextlib.suppress(CallError):
            client.call("answer", **hand.sealed(protocol.CHANGES, {**body, **odd}))
    assert moved(gate) == before


def test_a_central_that_has_lost_its_senses(gate: Joined) -> None:
    """Well signed, but of another age, or with numbers at their ends: the gate goes on."""
    hand, courier = gate.hand, gate.courier
    for time in (
        "9999-12-31T23:59:59.999999+00:00",
        "0001-01-01T00:00:00+00:00",
        "1970-01-01T00:00:00+23:59",
    ):
        with contextlib.suppress(CallError):
            courier.tell(time=time)
        gate.scanning.more(8)  # type: ignore[attr-defined]
        with contextlib.suppress(CallError):
            courier.tell(time=time, forget={"position": (1 << 63) - 1, "at": time})
        courier.poll()
        gate.scanning.more(8)  # type: ignore[attr-defined]
    most = (1 << 63) - 1
    outbox = courier.outbox(limit=1)
    epoch = gate.status["ledger"]["epoch"]
    odd = {
        "acknowledged": [[epoch, 0, 0], [epoch, most, most], [most, 1, most], [0, 0, 0]],
        "refused": [{"epoch": epoch, "seq": most, "reason": "x"}, {"epoch": most, "seq": 1, "reason": "x"}],
        "conflict": {"epoch": epoch, "seq": 0},
        "have": {},
    }
    assert courier.client.call("uploaded", **hand.took(outbox, **odd))["acknowledged"] == 0
    hand.have = {}
    late = (
        hand.command("annul", seq=most),
        hand.command("clear", area="outside"),
        hand.command("open", lane=["x"]),
    )
    courier.tell(*late)
    courier.tell()


# --- clients ------------------------------------------------------------------------------------------


def test_clients_that_flood_and_do_not_read(gate: Joined) -> None:
    """All the connections that there may be ask without end, read nothing, or stop in the middle of a line:
    the scans go on, and afterwards the honest courier is heard."""
    before = moved(gate)
    path, arguments = gate.hand.snapshot(gate.site.folder, records())
    sealed = gate.hand.changes(gate.courier.poll(), [revoked(1)], signer=Hand())
    gate.hand.position -= 1
    asked: list[Json] = [
        {"call": "poll"},
        {"call": "outbox", "limit": 1000},
        {"call": "generation", **arguments},
        {"call": "answer", **sealed},
        {"call": "events"},
        {"call": "metrics"},
        {"call": "watch"},
        {"call": "refuse", "seq": 1 << 62, "reason": "x" * 1000},
    ]
    lines = [orjson.dumps({"id": 1, **each}) + b"\n" for each in asked]
    lines.append(b'{"call":"answer","body":"' + b"A" * 5000)
    lines.append(b"\n" * 1000)
    gate.courier.client.close()
    with contextlib.ExitStack() as stack:
        clients = []
        for n in range(MAX_CLIENTS + 3):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(str(gate.site.gateway["sync_socket"]))
            sock.setblocking(False)
            clients.append((sock, lines[n % len(lines)]))
        scanning: Scanning = gate.scanning  # type: ignore[attr-defined]
        wanted = scanning.count + 200
        cut = 0
        while scanning.count < wanted and clients:
            _, writable, _ = select.select([], [sock for sock, _ in clients], [], 0.01)
            for client in tuple(clients):
                sock, line = client
                if sock not in writable:
                    continue
                try:
                    sock.send(line)
                except BlockingIOError:
                    continue
                except ConnectionError:
                    cut += 1
                    clients.remove(client)
        scanning.more(50)
        assert cut >= 3, "one too many is not taken in, and lines without an end are cut off"
    gate.courier = until(lambda: _courier(gate))
    assert path.exists()
    until(lambda: unasked(moved(gate)) == unasked(before))


def _courier(gate: Joined) -> Courier | None:
    with contextlib.suppress(CallError, NoGate):
        return Courier(gate.site.client("sync"), gate.hand, gate.site.folder)
    return None


def test_what_is_thrown_and_left(gate: Joined) -> None:
    """Requests of every kind whose sender is gone at once: nothing is left half done, and nothing unsigned is
    done at all."""
    rng = random.Random(SEED)
    hand = gate.hand
    path, arguments = hand.snapshot(gate.site.folder, [*records(), revoked(0)])
    before = moved(gate)
    for n in range(60):
        forged = hand.changes(gate.courier.poll(), [revoked(1)], signer=Hand())
        hand.position -= 1
        name, given = (
            ("answer", forged),
            ("generation", arguments),
            ("outbox", {"limit": 1000}),
            ("uploaded", forged),
            ("poll", {}),
        )[n % 5]
        gate.throw(name, rng.random() * 0.004, **given)
    with path.open("rb") as file, asking(gate, arguments) as sock:
        socket.send_fds(sock, [b"\n"], [file.fileno()])
        until(lambda: gate.status["central"]["building"])
    until(lambda: gate.status["snapshot"]["generation"] == 2)
    assert moved(gate)["asked"]["cursor"] == before["asked"]["cursor"]
