"""``gateway central serve`` as a process: where it listens, what it says, how it stops."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import http.client
import ipaddress
import os
import resource
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.central import run
from tests.central.server_rig import Server

ROOT = Path(__file__).parent.parent.parent


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gateway", "central", "serve", *arguments]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


@contextmanager
def serving(data: Path, *arguments: str, **more: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process and its URL, once it listens."""
    with subprocess.Popen(
        command("--data", str(data), "--listen", "127.0.0.1:0", *arguments),
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            until = time.monotonic() + 30
            while not (data / "address").exists():
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.02)
            yield process, (data / "address").read_text().strip()
        finally:
            process.kill()


def test_it_says_where_it_is_and_stops_in_order(tmp_path: Path) -> None:
    """The URL and the place of the token are told, never the token; READY goes to systemd; SIGTERM ends it
    with 0 and takes the address away."""
    data = tmp_path / "central"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(20)
        with serving(data, NOTIFY_SOCKET=str(tmp_path / "notify")) as (process, url):
            heard = b""
            while b"READY=1" not in heard:
                heard += notified.recv(200)
            host, port = url.removeprefix("http://").split(":")
            connection = http.client.HTTPConnection(host, int(port), timeout=20)
            connection.request("GET", "/health")
            assert orjson.loads(connection.getresponse().read())["ok"] is True
            connection.close()
            token = (data / "admin.token").read_text().strip()
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert url.encode() in out
    assert str(data / "admin.token").encode() in out
    assert b"plain http" in err
    assert token.encode() not in out + err
    assert not (data / "address").exists()
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert stat.S_IMODE((data / "admin.token").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"listen": "0.0.0.0:0"}, "--behind-proxy"),
        ({"listen": "[::]:0"}, "--tls-cert"),
        ({"listen": "central.example:0"}, "--behind-proxy"),
        ({"listen": "9470"}, "HOST:PORT"),
        ({"listen": "127.0.0.1:70000"}, "HOST:PORT"),
        ({"tls_cert": Path("cert.pem")}, "--tls-key"),
        ({"tls_cert": Path("cert.pem"), "tls_key": Path("key.pem")}, "cert.pem"),
    ],
)
def test_what_it_will_not_serve(asked: dict[str, Any], says: str) -> None:
    """Plain http to the outside, half of a certificate and nonsense are refused with a remedy."""
    usual = {"listen": "127.0.0.1:0", "tls_cert": None, "tls_key": None, "behind_proxy": False}
    with pytest.raises(run.Unservable, match=says):
        run.demanded(argparse.Namespace(**usual | asked))


def test_a_proxy_may_be_outside() -> None:
    """Behind a proxy it listens where the proxy finds it."""
    asked = {"listen": "[::]:9470", "tls_cert": None, "tls_key": None, "behind_proxy": True}
    assert run.demanded(argparse.Namespace(**asked)) == ("::", 9470, None)


def test_one_central_to_a_folder(tmp_path: Path) -> None:
    """A second one on the same folder says so and ends with 2; the first goes on."""
    with Server(tmp_path / "one") as server:
        done = subprocess.run(
            command("--data", str(tmp_path / "one"), "--listen", "127.0.0.1:0"),
            env=environment(),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 2
        assert "another central" in done.stderr
        assert "Traceback" not in done.stderr
        assert server.ask("GET", "/health").status == 200
        port = int(server.url.rpartition(":")[2])
        taken = Server(tmp_path / "two", port=port)
        with pytest.raises(AssertionError, match="cannot listen"):
            taken.__enter__()


def test_a_full_disk(tmp_path: Path) -> None:
    """What cannot be written is refused with 503, nothing of it stays, and the log says why without a
    traceback; what can be read is read; with room again it is written."""
    data = tmp_path / "central"
    lines = b"".join(orjson.dumps({"kind": "holder", "id": f"H{n}"}) + b"\n" for n in range(5000))
    with serving(data) as (process, url):
        host, port = url.removeprefix("http://").split(":")
        headers = {"Authorization": f"Bearer {(data / 'admin.token').read_text().strip()}"}

        def ask(method: str, path: str, body: bytes | None = None) -> tuple[int, str | None, bytes]:
            connection = http.client.HTTPConnection(host, int(port), timeout=20)
            kind = {} if body is None else {"Content-Type": "application/x-ndjson"}
            connection.request(method, f"/admin/v1/venues{path}", body, headers | kind)
            answer = connection.getresponse()
            with contextlib.closing(connection):
                return answer.status, answer.headers["Retry-After"], answer.read()

        _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (400_000, most))
        status, again, said = ask("POST", "/main/records", lines)
        assert (status, again) == (503, "10")
        assert b"disk" in said
        assert orjson.loads(ask("GET", "")[2])["venues"][0]["position"] == 0
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
        assert ask("POST", "/main/records", lines)[0] == 200
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert b"data cannot be used" in err
    assert b"line " not in err


def test_it_serves_tls(tmp_path: Path) -> None:
    """With certificate and key it is https, for whoever trusts the certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    with serving(tmp_path / "d", "--tls-cert", str(cert_file), "--tls-key", str(key_file)) as (_, url):
        assert url.startswith("https://")
        host, port = url.removeprefix("https://").split(":")
        trusting = ssl.create_default_context(cafile=str(cert_file))
        connection = http.client.HTTPSConnection(host, int(port), timeout=20, context=trusting)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        connection.close()


def test_what_is_loopback() -> None:
    """Addresses of this machine alone are; names are not, but localhost."""
    assert all(run.is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"))
    assert not any(run.is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "gate.local"))
