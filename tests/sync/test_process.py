"""``gateway sync`` and ``gateway enroll`` as they are run: real processes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from prometheus_client.parser import text_string_to_metric_families

from gateway.cli import main
from gateway.control import Socket
from gateway.host import machine_identity
from gateway.sync.client import tls
from gateway.sync.counts import Counts
from tests.sync.central_rig import answering, bomb, endless
from tests.sync.conftest import Courier, Rigs, carrying, until

ROOT = Path(__file__).parent.parent.parent
CONFIG = """
[gateway]
id = "north"
data_dir = "{folder}"

[web]
listen = "127.0.0.1:0"

{central}

[[lane]]
name = "north"
relay = {{ driver = "memory" }}

[[point]]
name = "north-in"
lane = "north"
from = "outside"
to = "hall"

[[reader]]
name = "scanner"
point = "north-in"
driver = "stdin"
"""
CODE = "K7QM-2XPD-94HV"


def configure(folder: Path, central: str | None, more: str = "", id_: str = "north") -> Path:
    table = f'[central]\nurl = "{central}"\n{more}' if central else ""
    path = folder / "gateway.toml"
    path.write_text(CONFIG.format(folder=folder, central=table).replace('id = "north"', f'id = "{id_}"'))
    return path


def wait_for(condition: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


class Sync:
    """A ``gateway sync``, its log, and what it told the service manager."""

    def __init__(self, folder: Path, config: Path, **env: str) -> None:
        self.notified: list[str] = []
        self._lines: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._path = folder / "notify.sock"
        self._socket.bind(str(self._path))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "sync", "--config", str(config)],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "NOTIFY_SOCKET": str(self._path), **env},
        )
        self._hearing = threading.Thread(target=self._hear, daemon=True)
        self._hearing.start()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _hear(self) -> None:
        while data := self._socket.recv(4096):
            self.notified += data.decode().splitlines()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self._lines += iter(self.process.stderr.readline, "")

    @property
    def log(self) -> str:
        return "".join(self._lines)

    def url(self, path: str) -> str:
        wait_for(lambda: '"address":' in self.log)
        found = re.search(r'"address":\["(127\.0\.0\.1:\d+)"\]', self.log)
        assert found is not None
        return f"http://{found[1]}{path}"

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url(path), timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def peak(self) -> int:
        """Bytes of memory, at most so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._hearing.join(10)
        self._socket.close()
        self._path.unlink()
        self._reading.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def stop(self) -> None:
        """As systemd does; it has to end by itself, and in order."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0, self.log
        self._reading.join(10)


@contextmanager
def syncing(folder: Path, config: Path, **env: str) -> Iterator[Sync]:
    sync = Sync(folder, config, **env)
    try:
        yield sync
    finally:
        sync.close()


def value(page: str, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return None


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """A command in this process, which is quicker: exit status, output, and what it says."""
    mask = os.umask(0)
    os.umask(mask)

    def command(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([*words])
        return status, *capsys.readouterr()

    yield command
    os.umask(mask)


# --- gateway sync ------------------------------------------------------------------------------------


def test_the_process_carries_within_its_memory_and_keeps_secrets(rigs: Rigs) -> None:
    """A snapshot of 64 MB, bombs and endless bodies cost it little memory; neither token nor code nor key is
    in its log; it is ready and feeds the watchdog; SIGTERM ends it."""
    renewed = "secret-renewed-token-0123456789"
    content = os.urandom(1 << 20) * 64
    rigs.central.faults["changes"].append(bomb("gzip"))
    rigs.central.faults["events"].append(endless)
    rigs.gate.last = 10
    config = configure(rigs.folder, rigs.central.url)
    with syncing(rigs.folder, config) as sync:
        wait_for(lambda: rigs.gate.mark == 10 and rigs.central.held, 60)
        assert sync.get("/metrics")[0] == 200
        before = sync.peak()
        rigs.central.renew_with = renewed
        rigs.central.use_snapshot(content, '"s1"')
        rigs.gate.want = {"at_least": None}
        rigs.do(
            rigs.central.change, {"kind": "credential", "id": "C1", "code": "VERYSECRETCODE", "state": "x"}
        )
        wait_for(lambda: rigs.gate.files, 60)
        assert rigs.gate.files == [content]
        assert sync.peak() - before < 16 << 20
        wait_for(lambda: any(r["headers"]["Authorization"].endswith(renewed) for r in rigs.central.requests))
        assert {"READY=1", "WATCHDOG=1"} <= set(sync.notified)
        page = sync.get("/metrics")[1]
        sync.stop()
    assert "STOPPING=1" in sync.notified
    assert (rigs.state_dir / "token").read_text() == renewed
    for secret in (renewed, "first-token", "VERYSECRETCODE", rigs.central.public, machine_identity()):
        assert secret not in sync.log
        assert secret not in page


def test_the_pages(rigs: Rigs) -> None:
    """One valid exposition of gate and sync, no family twice; the gate's part is there or not, and never an
    old one; health is the gate's."""
    config = configure(rigs.folder, rigs.central.url)
    with syncing(rigs.folder, config) as sync:
        wait_for(lambda: rigs.gate.answers or rigs.central.held)
        status, page = sync.get("/metrics")
        families = [family.name for family in text_string_to_metric_families(page)]
        assert status == 200
        assert len(families) == len(set(families))
        assert {"gateway_scans", "gateway_build_info", "process_resident_memory_bytes"} <= set(families)
        assert value(page, "gateway_gate_up") == 1
        rigs.do(rigs.central.change, {"kind": "x"})
        wait_for(lambda: value(sync.get("/metrics")[1], "gateway_sync_up") == 1)
        last = value(sync.get("/metrics")[1], "gateway_sync_last_success_timestamp_seconds")
        assert last is not None
        assert abs(last - time.time()) < 60
        status, body = sync.get("/health")
        assert (status, json.loads(body)["gate"], json.loads(body)["central"]["up"]) == (200, True, True)

        rigs.gate.mute = True
        page = sync.get("/metrics")[1]
        assert value(page, "gateway_gate_up") == 0
        assert "gateway_scans" not in page
        assert sync.get("/health")[0] == 503
        rigs.gate.mute = False
        rigs.do(rigs.gate.stop)
        assert value(sync.get("/metrics")[1], "gateway_gate_up") == 0
        rigs.on(rigs.gate.start())
        assert value(sync.get("/metrics")[1], "gateway_gate_up") == 1
        assert sync.get("/nothing")[0] == 404
        sync.stop()


def test_every_metric_of_the_sync_is_described() -> None:
    """Each own family stands in the README with its labels."""
    readme = (ROOT / "README.md").read_text()
    labels = {m._name: m._labelnames for m in vars(Counts()).values() if getattr(m, "_labelnames", None)}
    for family in Counts().registry.collect():
        if family.name.startswith("gateway_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            name += f"{{{','.join(labels[family.name])}}}" if family.name in labels else ""
            assert f"`{name}`" in readme, name


def test_without_a_central_there_are_the_pages_alone(rigs: Rigs) -> None:
    """A gate on imported files has its page for Prometheus, and nobody is asked anything."""
    with syncing(rigs.folder, configure(rigs.folder, None)) as sync:
        assert value(sync.get("/metrics")[1], "gateway_gate_up") == 1
        assert json.loads(sync.get("/health")[1]) == {"gate": True, "central": None}
        sync.stop()
    assert not rigs.central.requests


def test_a_token_from_the_service_manager(rigs: Rigs) -> None:
    """$CREDENTIALS_DIRECTORY/token serves until there is one in the state_dir."""
    (rigs.state_dir / "token").unlink()
    credentials = rigs.folder / "credentials"
    credentials.mkdir()
    (credentials / "token").write_text("given-by-systemd-0123456789\n")
    rigs.central.tokens = ["given-by-systemd-0123456789"]
    config = configure(rigs.folder, rigs.central.url)
    with syncing(rigs.folder, config, CREDENTIALS_DIRECTORY=str(credentials)) as sync:
        wait_for(lambda: rigs.central.held)
        rigs.central.renew_with = "renewed-token-0123456789"
        rigs.do(rigs.central.change, {"kind": "x"})
        wait_for(lambda: rigs.central.tokens == ["renewed-token-0123456789"])
        sync.stop()
    assert (rigs.state_dir / "token").read_text() == "renewed-token-0123456789"


def test_what_is_told_at_the_start(rigs: Rigs) -> None:
    """The machine that was noted at enrolment is another, and the pages' address is in use: both are told,
    with what to do, and stop nothing."""
    (rigs.state_dir / "machine").write_text("0" * 64)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = configure(rigs.folder, rigs.central.url)
        port = taken.getsockname()[1]
        config.write_text(config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        with syncing(rigs.folder, config) as sync:
            wait_for(lambda: rigs.central.held and "cannot be served" in sync.log)
            sync.stop()
    assert sync.log.count("another computer than the one that was enrolled") == 1


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ('ca_file = "{folder}/none.pem"', "none.pem"),
        ('client_cert = "{folder}/gateway.toml"', "no PEM file"),
        ('state_dir = "{folder}/a/b"', "install -d -m 700"),
    ],
)
def test_what_it_cannot_start_with_is_told(tmp_path: Path, command: Command, more: str, says: str) -> None:
    """A file of [central] that is not there or no certificate, and a folder that cannot be made."""
    config = configure(tmp_path, "https://central.example", more.format(folder=tmp_path))
    status, _, said = command("sync", "--config", str(config))
    assert status == 2
    assert says in said


# --- TLS ---------------------------------------------------------------------------------------------


def certificates(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder / "cert.pem", folder / "key.pem"


def test_ready_is_said_when_the_pages_answer(rigs: Rigs) -> None:
    """Whoever waits for READY=1 finds the pages there; where the address is taken, it is said too."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = configure(rigs.folder, None)
        config.write_text(config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        with syncing(rigs.folder, config) as sync:
            wait_for(lambda: "READY=1" in sync.notified)
            wait_for(lambda: "tried again every 10 s" in sync.log)
            sync.stop()
    with syncing(rigs.folder, config) as sync:
        wait_for(lambda: "READY=1" in sync.notified)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as response:
            assert response.status == 200
        sync.stop()


def test_tls_with_a_pinned_ca_and_a_client_certificate(rigs: Rigs, logged: Callable[[], str]) -> None:
    """Nobody is believed whom the system's CAs do not know; with ca_file that one is, and is shown ours. When
    each certificate ends is a metric."""
    cert, key = certificates(rigs.folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.load_verify_locations(cert)
    context.verify_mode = ssl.CERT_REQUIRED
    rigs.on(rigs.central.stop())
    rigs.on(rigs.central.start(context=context))
    rigs.gate.last = 1

    async def main() -> None:
        for wrong in (tls(None, cert, key), tls(cert, None, None)):
            async with carrying(rigs, context=wrong) as courier:
                await until(lambda: _failures(courier) > 1)
        assert not rigs.central.requests
        async with carrying(rigs, context=tls(cert, cert, key)):
            await until(lambda: rigs.gate.mark == 1)

    asyncio.run(main())
    assert "no trust in the central's certificate" in logged()

    more = f'ca_file = "{cert}"\nclient_cert = "{cert}"\nclient_key = "{key}"'
    with syncing(rigs.folder, configure(rigs.folder, rigs.central.url, more)) as sync:
        wait_for(lambda: 'expiry_timestamp_seconds{certificate="central"}' in sync.get("/metrics")[1])
        page = sync.get("/metrics")[1]
        sync.stop()
    ends = x509.load_pem_x509_certificate(cert.read_bytes()).not_valid_after_utc.timestamp()
    for which in ("authority", "client", "central"):
        name = "gateway_sync_certificate_expiry_timestamp_seconds"
        assert value(page, name, certificate=which) == ends, which


def _failures(courier: Courier) -> float:
    return sum(
        courier.count("gateway_sync_requests_total", call="changes", result=kind)
        for kind in ("tls", "connection")
    )


# --- gateway enroll ------------------------------------------------------------------------------------


def words(config: Path, url: str, code: str = CODE) -> list[str]:
    return ["enroll", url, code, "--config", str(config)]


def test_a_gateway_is_joined_without_a_gate(rigs: Rigs, command: Command) -> None:
    """The central is pinned in the data_dir, token and machine are kept with mode 0600; the same command
    again does the same; the code, which may come from standard input, is in no output."""
    rigs.central.codes[CODE] = ""
    (rigs.state_dir / "token").unlink()
    config = configure(rigs.folder, rigs.central.url)
    first = subprocess.run(
        [sys.executable, "-m", "gateway", *words(config, rigs.central.url, "-")],
        input=f"{CODE}\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=50,
        check=True,
    )
    again = command(*words(config, rigs.central.url))
    for status, out, err in ((0, first.stdout, first.stderr), again):
        assert status == 0, err
        assert json.loads(out) == {
            "gateway": "north", "venue": "main", "url": rigs.central.url, "keys": ["k1"]
        }  # fmt: skip
        assert CODE not in out + err
        assert rigs.central.tokens[0] not in out + err
    pinned = json.loads((rigs.folder / "central.json").read_text())
    assert pinned["keys"] == {"k1": rigs.central.public}
    assert (pinned["url"], pinned["gateway"], pinned["venue"]) == (rigs.central.url, "north", "main")
    for name, content in (("token", rigs.central.tokens[0]), ("machine", machine_identity())):
        assert (rigs.state_dir / name).read_text() == content
        assert (rigs.state_dir / name).stat().st_mode & 0o777 == 0o600
    assert rigs.central.codes[CODE] == machine_identity()


def test_a_running_gate_is_told(rigs: Rigs, command: Command) -> None:
    """Through its socket for administrators; where it refuses, the command may be repeated."""
    rigs.central.codes[CODE] = ""
    config = configure(rigs.folder, rigs.central.url)
    told: list[dict[str, Any]] = []

    def enrolled(arguments: Any) -> Any:
        told.append(dict(arguments))
        return {"epoch": 1}

    admin = Socket("admin", {"enrolled": enrolled}, {"gateway": "north"}, print)
    rigs.on(admin.listen(rigs.folder / "admin.sock"))
    try:
        assert command(*words(config, rigs.central.url))[0] == 0
        admin.calls = {}
        (rigs.state_dir / "token").unlink()
        status, _, said = command(*words(config, rigs.central.url))
    finally:
        rigs.do(admin.close)
    assert status == 2
    assert "give the same command again" in said
    assert not (rigs.state_dir / "token").exists()
    [call] = told
    assert call["keys"] == [{"id": "k1", "public": rigs.central.public}]
    assert (call["url"], call["gateway"], call["venue"], call["history"]) == (
        rigs.central.url, "north", "main", "h1"
    )  # fmt: skip
    assert not (rigs.folder / "central.json").exists()


def test_the_lines_for_the_configuration_are_told(rigs: Rigs, command: Command) -> None:
    """Without [central] the gateway is joined and the lines are printed; with another url nobody is asked."""
    rigs.central.codes[CODE] = ""
    lines = f'[central]\nurl = "{rigs.central.url}"\n'
    status, _, said = command(*words(configure(rigs.folder, None), rigs.central.url))
    assert status == 0
    assert lines in said
    before = len(rigs.central.requests)
    status, _, said = command(*words(configure(rigs.folder, "https://other.example"), rigs.central.url))
    assert status == 2
    assert lines in said
    assert "https://other.example" in said
    assert len(rigs.central.requests) == before


@pytest.mark.parametrize("text", ["[1]", "{}", '{"token":5}', "<html>"])
def test_an_answer_that_is_none_pins_nothing(rigs: Rigs, command: Command, text: str) -> None:
    """What is no enrolment is told, and nothing is written."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(text=text, content_type="text/html" if "<" in text else "application/json")

    rigs.central.faults["enroll"].append(answer)
    (rigs.state_dir / "token").unlink()
    status, _, said = command(*words(configure(rigs.folder, rigs.central.url), rigs.central.url))
    assert status == 2
    assert "no central" in said
    assert not (rigs.folder / "central.json").exists()
    assert not (rigs.state_dir / "token").exists()


def test_refusals_say_what_to_do(rigs: Rigs, command: Command) -> None:
    """A wrong code, too many tries, another gateway's code, an address that is none or has nobody."""

    def refused(config: Path, url: str, code: str = CODE) -> str:
        status, _, said = command(*words(config, url, code))
        assert status == 2
        return said

    config, url = configure(rigs.folder, rigs.central.url), rigs.central.url
    assert "have a new one made" in refused(config, url, "XXXX-XXXX-XXXX")
    rigs.central.faults["enroll"].extend([answering(429, "slow_down", Retry_After="90"), answering(500)])
    assert "wait 90 s" in refused(config, url)
    assert "the central answers 500" in refused(config, url)
    rigs.central.codes[CODE] = ""
    assert 'set id = "north"' in refused(configure(rigs.folder, url, id_="south"), url)
    assert "CODE is empty" in refused(config, url, "")
    alone = configure(rigs.folder, None)
    assert "write https://" in refused(alone, "http://central.example")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    nobody = refused(alone, f"http://127.0.0.1:{port}")
    assert "no connection to the central" in nobody
    assert "give the same command again" in nobody
    assert not (rigs.folder / "central.json").exists()


# --- the machine -----------------------------------------------------------------------------------------


def test_what_names_the_machine(tmp_path: Path) -> None:
    """Installation and board: another of either is another machine, and what cannot be read does not fail."""
    empty = machine_identity(tmp_path)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text("a" * 32 + "\n")
    installed = machine_identity(tmp_path)
    board = tmp_path / "sys/firmware/devicetree/base"
    board.mkdir(parents=True)
    (board / "serial-number").write_bytes(b"10000000abcdef\0")
    first = machine_identity(tmp_path)
    (board / "serial-number").write_bytes(b"10000000abcdee\0")
    second = machine_identity(tmp_path)
    assert len({empty, installed, first, second}) == 4
    assert all(re.fullmatch(r"[0-9a-f]{64}", name) for name in (empty, first))
