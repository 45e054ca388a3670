"""The control sockets: rights, changes, watching, and clients that behave badly."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.control import CallError, Client
from tests.e2e.rig import ROOT, WAIT, Json, Site, Watch, card, product, until, venue

LANES = ({"name": "north", "second_grant": "extend"},)
SCANS = 50
ANSWER = 5.0
"""Seconds within which a scan must be answered; a thousand times what it takes."""


def records() -> list[Json]:
    found = [*venue(), product("open"), product("closed", until="2020-01-01")]
    for n in range(SCANS):
        found += card(n, f"OPEN{n}", "open")
    return found


@pytest.fixture
def here(site: Callable[..., Site]) -> Site:
    """A gate that runs."""
    made = site(LANES)
    made.imports(records())
    made.start()
    return made


def refused(client: Client, name: str, **arguments: Any) -> str:
    """The code with which a call is refused."""
    with pytest.raises(CallError) as told:
        client.call(name, **arguments)
    return told.value.code


# --- rights -------------------------------------------------------------------------------------------


def test_rights_of_the_sync(here: Site) -> None:
    """The sync may look and carry; it may not act, and where no central is pinned nothing counts."""
    assert here.scan("in", "OPEN0")["verdict"] == "granted"
    here.written()
    sync = here.client("sync")
    assert sync.hello["role"] == "sync"
    for act in (
        {"name": "open", "lane": "north"},
        {"name": "lane", "lane": "north", "state": "free"},
        {"name": "clear", "area": "hall"},
        {"name": "annul", "seq": 1},
        {"name": "check", "code": "OPEN0", "point": "north-in"},
        {"name": "stop"},
        {"name": "both"},
        {"name": "apply", "records": []},
        {"name": "command", "do": "open"},
        {"name": "acknowledge", "epoch": 1, "seq": 1},
        {"name": "enrolled"},
        {"name": "__init__"},
    ):
        assert refused(sync, **act) == "not_allowed"  # type: ignore[arg-type]
    sealed = {"type": "application/json", "body": "e30=", "signature": "k1:AAAA"}
    for order in (
        {"name": "answer", **sealed},
        {"name": "uploaded", **sealed},
        {"name": "generation", "manifest": "e30=", "signature": "k1:AAAA"},
    ):
        assert refused(sync, **order) == "not_enrolled"  # type: ignore[arg-type]
    assert sync.call("status")["gateway"] == "north"
    assert "gateway_scans_total" in sync.call("metrics")["text"]
    page = sync.call("events", since=0)
    (event,) = page["events"]
    assert sync.call("poll") == sync.call("outbox") == {"enrolled": False}
    assert event["verdict"] == "granted"
    assert refused(sync, "refuse", seq=1, reason="why not") == "not_enrolled"
    assert sync.call("refused") == {"events": []}
    here.pulses(1)
    assert here.call("status")["areas"]["hall"] == 1


def test_rights_of_an_administrator(here: Site) -> None:
    """An administrator may act; setting events aside is the sync's."""
    admin = here.client()
    assert admin.hello["role"] == "admin"
    assert admin.call("open", lane="north")["opened"]
    assert refused(admin, "refuse", seq=1, reason="") == "not_allowed"
    here.pulses(1)


def test_socket_files(here: Site) -> None:
    """Only owner and group may connect; a file left by a killed gate is replaced, and gone after a stop."""
    for path in (here.folder / "a", here.folder / "s"):
        assert path.stat().st_mode & 0o777 == 0o660
    here.kill()
    assert (here.folder / "a").exists()
    here.start()
    assert here.call("status")["gateway"] == "north"
    here.stop()
    assert not (here.folder / "a").exists()


# --- changes and watching -----------------------------------------------------------------------------


def test_changes_of_single_records(here: Site) -> None:
    """A change counts at the next scan: a card revoked, a new one, a product with other rules, a holder
    blocked; a bad record is set aside and the rest applied; it outlives a restart."""
    assert here.scan("in", "OPEN0")["verdict"] == "granted"

    def apply(*changed: Json, **more: Any) -> Json:
        done: Json = here.call("apply", records=list(changed), **more)
        return done

    revoked = {"kind": "credential", "id": "C0", "code": "OPEN0", "state": "revoked", "entitlements": ["E0"]}
    assert apply(revoked, cursor="c7") == {"changed": 1, "set_aside": [], "cursor": "c7"}
    assert here.scan("in", "OPEN0")["verdict"] == "revoked"
    apply(*card("new", "NEWCARD", "closed"))
    assert here.scan("in", "NEWCARD")["verdict"] == "not_at_this_time"
    apply(product("closed"))
    assert here.scan("in", "NEWCARD")["verdict"] == "granted"
    apply({"kind": "holder", "id": "H1", "state": "blocked"})
    assert here.scan("in", "OPEN1")["detail"] == "blocked"
    apply({"kind": "area", "id": "hall", "capacity": 2})
    assert here.scan("in", "OPEN2")["verdict"] == "area_full"
    usage = {
        **{"kind": "usage", "gateway": "south", "epoch": 3, "seq": 9, "at": "2026-01-01T00:00:00Z"},
        **{"from": "hall", "to": "outside", "holder": "H0", "passage": "taken"},
    }
    usage["at"] = here.call("events")["events"][-1]["at"]
    apply(usage)
    assert here.call("status")["areas"]["hall"] == 1
    done = apply(
        {"kind": "credential", "id": "C3", "code": 7}, {"kind": "holder", "id": "H4", "state": "blocked"}
    )
    assert done["changed"] == 1
    assert len(done["set_aside"]) == 1
    assert here.scan("in", "OPEN3")["verdict"] == "revoked", "the old version of a bad one is inactive"
    assert here.scan("in", "OPEN4")["verdict"] == "suspended"
    apply({"kind": "credential", "id": "C5", "deleted": True})
    assert here.scan("in", "OPEN5")["verdict"] == "unknown_credential"
    here.kill()
    here.start()
    assert here.scan("in", "OPEN0")["verdict"] == "revoked"
    assert here.scan("in", "OPEN5")["verdict"] == "unknown_credential"
    assert here.scan("in", "OPEN2")["verdict"] == "granted"
    assert here.call("status")["snapshot"]["cursor"] == "c7"


def test_watch_tells_verdicts(here: Site) -> None:
    """Who watches gets each verdict with its message, over either socket, between answers, and no holder."""
    for role in ("admin", "sync"):
        with contextlib.closing(Watch(Path(str(here.gateway[f"{role}_socket"])))) as watcher:
            assert watcher.call("status")["gateway"] == "north"
            for code, verdict, message in (
                ("OPEN0", "granted", "Welcome."),
                ("NOBODY", "unknown_credential", "This code is not known here. Please ask at the desk."),
            ):
                here.scanners["in"].scan(code)
                told = watcher.next()
                assert (told["verdict"], told["message"]) == (verdict, message)
                assert (told["reader"], told["point"], told["lane"]) == ("in", "north-in", "north")
                assert code not in json.dumps(told)
                assert "holder" not in told


def test_a_long_line_is_answered(here: Site) -> None:
    """A request of almost a megabyte, which comes in many pieces, is a request like any other."""
    client = here.client()
    reason = "x" * 900_000
    assert refused(client, "check", code=reason, point="west") == "bad_request"
    holders = [{"kind": "holder", "id": f"H{n}", "name": "x" * 900} for n in range(1000)]
    assert client.call("apply", records=holders)["changed"] == 1000
    assert client.call("status")["gateway"] == "north"


# --- bad clients --------------------------------------------------------------------------------------


def connect(here: Site, role: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(WAIT)
    sock.connect(str(here.gateway[f"{role}_socket"]))
    return sock


def call(name: str, **arguments: Any) -> bytes:
    return json.dumps({"id": 1, "call": name, **arguments}).encode() + b"\n"


@contextlib.contextmanager
def never_reads(here: Site, role: str) -> Iterator[None]:
    """Asks and asks, and reads nothing."""
    with connect(here, role) as sock:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.send(call("metrics") * 100)
        yield


@contextlib.contextmanager
def watches_and_never_reads(here: Site, role: str) -> Iterator[None]:
    """Wants to be told, and does not listen."""
    with connect(here, role) as sock:
        sock.sendall(call("watch"))
        yield


@contextlib.contextmanager
def garbage(here: Site, role: str) -> Iterator[None]:
    """Sends what is no request, with and without line ends."""
    rng = random.Random(1)
    lines = [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'"x"',
        b'{"call":7}',
        b'{"call":["status"]}',
        b"{" * 1000,
        b"\xff\xfe",
    ]
    with connect(here, role) as sock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(200):
            sock.sendall(rng.choice(lines) + b"\n")
        reader = sock.makefile("rb")
        assert json.loads(reader.readline())["protocol"] == 1
        for _ in range(200):
            assert json.loads(reader.readline())["code"] in ("bad_request", "not_allowed")
        sock.sendall(rng.randbytes(300_000))
        yield


@contextlib.contextmanager
def endless_line(here: Site, role: str) -> Iterator[None]:
    """Sends a line of 10 MB: the connection is cut off, and that is counted."""
    with connect(here, role) as sock:
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            sock.sendall(b"x" * 10_000_000)
        other = "admin" if role == "sync" else "sync"
        with contextlib.closing(Client(Path(str(here.gateway[f"{other}_socket"])))) as client:
            assert f'gateway_control_dropped_total{{role="{role}"}} 1.0' in client.call("metrics")["text"]
        yield


@contextlib.contextmanager
def many(here: Site, role: str) -> Iterator[None]:
    """Takes a hundred connections: those beyond the bound are told so and closed."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(here, role)) for _ in range(100)]
        greetings = [json.loads(sock.makefile("rb").readline()) for sock in socks]
        assert sum("protocol" in greeting for greeting in greetings) <= 32
        assert {greeting.get("code") for greeting in greetings} == {None, "busy"}
        done = here.run("ledger")
        if role == "admin":
            assert done.status == 2
            assert "too many clients" in done.err
        yield


@contextlib.contextmanager
def flood(here: Site, role: str) -> Iterator[None]:
    """Four connections that ask for metrics and events as fast as they are answered, and faster."""
    stop = threading.Event()

    def ask(name: str) -> None:
        with connect(here, role) as sock:
            sock.settimeout(0.05)
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    sock.send(call(name) * 50)
                with contextlib.suppress(TimeoutError):
                    sock.recv(1 << 16)

    threads = [
        threading.Thread(target=ask, args=(name,)) for name in ("metrics", "events", "status", "events")
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


BAD = (never_reads, watches_and_never_reads, garbage, endless_line, many, flood)


@pytest.mark.parametrize("role", ["admin", "sync"])
@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.__name__)
def test_scans_go_on_beside_a_bad_client(
    site: Callable[..., Site], bad: Callable[..., Any], role: str
) -> None:
    """Whatever a client does, each scan is judged, recorded and opens; and afterwards others are served."""
    names = [f"lane{n}" for n in range(5)]
    here = site(
        [{"name": name, "second_grant": "extend"} for name in names],
        [{"name": name, "lane": name} for name in names],
        [{"name": name, "point": name} for name in names],
    )
    here.imports(records())
    here.start()
    here.watch()
    with bad(here, role):
        for n in range(SCANS):
            began = time.monotonic()
            assert here.scan(names[n % 5], f"OPEN{n}")["verdict"] == "granted"
            assert time.monotonic() - began < ANSWER
        for name in names:
            here.pulses(SCANS // 5, name)
    with contextlib.suppress(CallError, ConnectionError):  # slots are free a moment after they were left
        until(lambda: here.client(role).call("status"))
    assert until(lambda: here.call("status"))["areas"]["hall"] == SCANS
    here.written()
    assert len(here.events()) == SCANS


def test_all_arguments_that_are_wrong(here: Site) -> None:
    """Every call with every kind of wrong argument is answered, and the gate goes on."""
    odd: tuple[Any, ...] = (
        *(None, True, -1, 0, 1.5, 1e308, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
        *(
            "",
            "x",
            "\x00",
            "é" * 1000,
            "2026-01-01",
            "0001-01-01T00:00:00+14:00",
            "9999-12-31T23:59:59-14:00",
        ),
        *([], [1], ["x"], [None], [[]], [{}], [{"kind": 1}], [{"kind": "usage"}], [{"kind": "product"}], {}),
    )
    calls = {
        "admin": {
            **{"status": "since", "metrics": "since", "events": "since limit", "refused": "since"},
            **{
                "check": "code point at",
                "open": "lane",
                "lane": "lane state",
                "clear": "area",
                "annul": "seq",
            },
            "apply": "records cursor",
        },
        "sync": {
            **{"events": "since limit", "outbox": "limit since", "refuse": "seq reason", "watch": "since"},
            **{"generation": "since", "apply": "records", "command": "lane"},
        },
    }
    good = {"code": "OPEN0", "point": "north-in", "records": [], "epoch": 1, "seq": 1, "lane": "north"}
    for role, arguments in calls.items():
        client = here.client(role)
        for name, takes in arguments.items():
            for argument in takes.split():
                for value in odd:
                    with contextlib.suppress(CallError):
                        client.call(name, **{**good, argument: value})
    here.call("lane", lane="north", state="normal")
    assert here.scan("in", "OPEN0")["verdict"] == "granted"


# --- systemd ------------------------------------------------------------------------------------------


LAUNCHER = """
import os, sys
for want, have in ((3, int(sys.argv[1])), (4, int(sys.argv[2]))):
    os.dup2(have, want)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = "2"
os.environ["LISTEN_FDNAMES"] = "sync:admin"
os.execv(sys.executable, [sys.executable, "-m", "gateway", "gate", "--config", sys.argv[3]])
"""


def test_sockets_handed_over_by_systemd(site: Callable[..., Site]) -> None:
    """Listening sockets that systemd opened are used by their names, a link stands where the file says, and
    are left to it at the end; children get none of it."""
    here = site(LANES)
    here.imports(records())
    with contextlib.ExitStack() as stack:
        fds = []
        for role in ("sync", "admin"):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.bind(str(here.folder / f"systemd-{role}"))
            sock.listen()
            # Beyond 4, so that putting one in its place cannot overwrite the other.
            fds.append(fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD, 10))
            stack.callback(os.close, fds[-1])
        gate = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, *map(str, fds), str(here.config)],
            pass_fds=fds,
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )
        try:
            for role in ("sync", "admin"):
                here.gateway[f"{role}_socket"] = here.folder / f"systemd-{role}"
                assert here.client(role).hello["role"] == role
            assert here.scan("in", "OPEN0")["verdict"] == "granted"
            assert (here.folder / "a").readlink() == here.folder / "systemd-admin"
        finally:
            gate.terminate()
            assert gate.wait(WAIT) == 0
        assert (here.folder / "systemd-admin").exists()


def test_service_manager_that_does_not_read(here: Site) -> None:
    """Nobody reads the notifications: their queue is full, and scans go on all the same."""
    assert here.gate is not None
    here.gate.fill_notifications()
    until(lambda: here.metric("gateway_ledger_up") == 1)
    began = time.monotonic()
    while time.monotonic() - began < 1.5:  # a watchdog message is due every second
        assert here.scan("in", "OPEN0")["verdict"] == "granted"
