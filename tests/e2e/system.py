"""A whole system as processes: one real central, any number of real gateways, each a gate and its sync.

Each part can be killed, stopped and started by itself. ``System.agree`` is what all of it is for: after
whatever has happened, the central and each gateway hold the same records and the same events, each once.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import ssl
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway import control
from gateway.cache.build import build
from gateway.cache.ledger import event_json, read_events
from gateway.cache.snapshot import Snapshot
from gateway.configload import load
from gateway.replay import run as replay
from tests.e2e.rig import WAIT, Done, Fork, Json, Site, Zygote, ndjson, until

SETTLE = 120.0
"""Seconds within which all that waits must have arrived: the sync's longest pause between two tries is 30."""
_PAGE = 1000
_SAMPLE = 200
_NUDGE = 3.0


class Refused(Exception):
    """The central's admin API has refused a call."""

    def __init__(self, status: int, said: Json) -> None:
        super().__init__(f"{status} {said}")
        self.status, self.said = status, said


# --- certificates -------------------------------------------------------------------------------------


class Authority:
    """A certificate authority, made for a test."""

    def __init__(
        self, folder: Path, name: str = "test authority", lasts: timedelta = timedelta(days=1)
    ) -> None:
        """``lasts``: how long its own certificate is good, and those that it makes if not said otherwise."""
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._made = 0
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
        )
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=True, path_length=0), True),
            (
                x509.KeyUsage(
                    digital_signature=True,
                    key_cert_sign=True,
                    crl_sign=True,
                    encipher_only=False,
                    decipher_only=False,
                    **usage,
                ),
                True,
            ),
        ]
        self._lasts = lasts
        own = self._sign(self._name, self._key, extensions, lasts)
        self.file = self._write("authority", own.public_bytes(serialization.Encoding.PEM))

    def certificate(self, name: str, lasts: timedelta | None = None) -> tuple[Path, Path]:
        """Files with a certificate for a host, and its key. ``lasts`` may be negative."""
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            host: x509.GeneralName = x509.IPAddress(ip_address(name))
        except ValueError:
            host = x509.DNSName(name)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (x509.SubjectAlternativeName([host]), False),
        ]
        made = self._sign(subject, key, extensions, self._lasts if lasts is None else lasts)
        self._made += 1
        return (
            self._write(f"{self._made}-certificate", made.public_bytes(serialization.Encoding.PEM)),
            self._write(
                f"{self._made}-key",
                key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                ),
            ),
        )

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        extensions: Iterable[tuple[x509.ExtensionType, bool]],
        lasts: timedelta,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(now + lasts)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self._key, hashes.SHA256())

    def _write(self, name: str, data: bytes) -> Path:
        path = self._folder / f"{name}.pem"
        path.write_bytes(data)
        path.chmod(0o600)
        return path


# --- the central --------------------------------------------------------------------------------------


def free_port() -> int:
    """A port that nobody gets by chance while its server is down: below those that the kernel gives out."""
    draw = random.Random(os.urandom(8))
    while True:
        port = draw.randrange(20_000, 32_000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


class Central:
    """``gateway central serve`` on a folder, and its admin API."""

    def __init__(
        self, folder: Path, zygote: Zygote, *, host: str = "127.0.0.1", authority: Authority | None = None
    ) -> None:
        self.folder, self.data = folder, folder / "central"
        self.host, self.port = host, free_port()
        self._zygote = zygote
        self._context: ssl.SSLContext | None = None
        self.tls: tuple[Path, Path] | None = None
        if authority is not None:
            self._context = ssl.create_default_context(cafile=str(authority.file))
            self.tls = authority.certificate(host)
        self.fork: Fork | None = None
        self.forks: list[Fork] = []

    @property
    def url(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://{self.host}:{self.port}"

    def start(self, *, wait: bool = True) -> None:
        arguments = ["central", "serve", "--data", str(self.data), "--listen", f"{self.host}:{self.port}"]
        if self.tls is not None:
            arguments += ["--tls-cert", str(self.tls[0]), "--tls-key", str(self.tls[1])]
        self.fork = Fork(self._zygote, self.folder, f"central-{len(self.forks)}", arguments)
        self.forks.append(self.fork)
        if wait:
            self.fork.ready()

    def kill(self) -> None:
        assert self.fork is not None
        self.fork.kill()

    def stop(self) -> None:
        assert self.fork is not None
        self.fork.signal(signal.SIGTERM)
        assert self.fork.wait() == 0, self.fork.errors()

    def call(self, method: str, path: str, body: Json | list[Json] | None = None, **query: Any) -> Any:
        """A call of the admin API; a list goes as NDJSON. Raises Refused, and OSError or HTTPException where
        the central is away."""
        raw = self._ask(method, path, body, query)
        return json.loads(raw) if raw else None

    def _ask(self, method: str, path: str, body: Json | list[Json] | None, query: Json) -> bytes:
        given = "&".join(f"{name}={value}" for name, value in query.items())
        headers = {"Authorization": "Bearer " + (self.data / "admin.token").read_text().strip()}
        content = None
        if body is not None:
            lines = isinstance(body, list)
            content = ndjson(body) if isinstance(body, list) else json.dumps(body).encode()
            headers["Content-Type"] = "application/x-ndjson" if lines else "application/json"
        connection = http.client.HTTPConnection(self.host, self.port, timeout=WAIT)
        sock = self._zygote.connect(self.host, self.port)
        connection.sock = sock
        with contextlib.closing(connection):
            if self._context is not None:
                connection.sock = self._context.wrap_socket(sock, server_hostname=self.host)
            connection.request(method, f"/admin/v1/{path}" + (f"?{given}" if given else ""), content, headers)
            response = connection.getresponse()
            raw = response.read()
        if response.status >= 300:
            raise Refused(response.status, json.loads(raw))
        return raw

    def load(self, records: list[Json]) -> None:
        self.call("POST", "venues/main/records", records)

    def export(self) -> list[Json]:
        """Every record, without those that come from events."""
        lines = self._ask("GET", "venues/main/records", None, {}).splitlines()
        return [record for record in map(json.loads, lines) if record["kind"] != "usage"]

    def position(self) -> int:
        [main] = [each for each in self.call("GET", "venues")["venues"] if each["id"] == "main"]
        position: int = main["position"]
        return position

    def events(self, gateway: str) -> Iterator[Json]:
        """All that it has of a gateway, in the order of their arrival."""
        since = "0"
        while True:
            page = self.call("GET", "events", gateway=gateway, since=since, limit=_PAGE)
            yield from page["events"]
            if not page["events"]:
                return
            since = page["next"]

    def code(self, gateway: str) -> str:
        """A one-time enrolment code."""
        made = self.call("POST", "venues/main/enrolment-codes", {"gateway": gateway})
        return str(made["code"])


# --- gateways -----------------------------------------------------------------------------------------


class Gateway:
    """A gate on its site, and the sync beside it."""

    def __init__(self, site: Site, central: Central, zygote: Zygote, ca_file: Path | None = None) -> None:
        """``zygote``: what its sync and its enrolment are forked from."""
        self.site, self.central = site, central
        self._zygote = zygote
        self.sync: Fork | None = None
        site.sections["central"] = {"url": central.url}
        if ca_file is not None:
            site.sections["central"]["ca_file"] = ca_file
        site.sections["web"] = {"listen": f"127.0.0.1:{free_port()}"}
        site.write()

    @property
    def name(self) -> str:
        return str(self.site.gateway["id"])

    def fork(self, *arguments: str, stdin: bytes | None = None) -> Fork:
        """Begin a command where its sync runs."""
        zygote, self.site.zygote = self.site.zygote, self._zygote
        try:
            return self.site.fork(*arguments, stdin=stdin)
        finally:
            self.site.zygote = zygote

    def enroll(self, code: str) -> Done:
        """``gateway enroll``, with the code on standard input."""
        fork = self.fork("enroll", self.central.url, "-", stdin=code.encode() + b"\n")
        status = fork.wait()
        assert "Traceback" not in fork.errors(), fork.errors()
        return Done(status, fork.output(), fork.errors())

    def join(self) -> None:
        done = self.enroll(self.central.code(self.name))
        assert done.status == 0, done.err

    def start_sync(self, *, wait: bool = True) -> None:
        self.sync = self.fork("sync")
        if wait:
            self.sync.ready()

    def kill_sync(self) -> None:
        assert self.sync is not None
        self.sync.kill()

    def stop_sync(self) -> None:
        assert self.sync is not None
        self.sync.signal(signal.SIGTERM)
        assert self.sync.wait() == 0, self.sync.errors()

    @property
    def status(self) -> Json:
        found: Json = self.site.call("status")
        return found

    def requests(self, call: str) -> dict[str, int]:
        """How often its sync has made a call of the protocol, by what came of it."""
        host, _, port = str(self.site.sections["web"]["listen"]).rpartition(":")
        connection = http.client.HTTPConnection(host, timeout=WAIT)
        connection.sock = self._zygote.connect(host, int(port))
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        line = re.compile(rf'gateway_sync_requests_total{{call="{call}",result="(\w+)"}} ([0-9.]+)')
        return {result: int(float(count)) for result, count in line.findall(text)}

    def cards(self) -> int:
        """How many credentials it has; 0 without a snapshot."""
        snapshot = self.status["snapshot"]
        return 0 if snapshot is None else int(snapshot["counts"]["credentials"])

    def has_sent(self) -> bool:
        """Whether nothing waits to be written or sent."""
        ledger = self.status["ledger"]
        return ledger["pending"] == 0 and ledger["acknowledged"] == ledger["last_seq"]

    def settled(self, position: int) -> bool:
        """Whether nothing waits, no grant is open, and it has heard all up to there."""
        status = self.status
        snapshot = status["snapshot"]
        heard = snapshot is not None and snapshot["position"] == position
        return heard and not any(lane["pending"] for lane in status["lanes"]) and self.has_sent()

    def events(self) -> Iterator[Json]:
        """Its ledger as it lies on disk, each event as the central must have it."""
        since = 0
        while page := read_events(self.site.data_dir / "ledger.db", since, _PAGE):
            for row in page:
                yield event_json(row, self.name, row["epoch"]) | {"digest": row.get("digest")}
            since = page[-1]["seq"]

    def check(self, codes: Iterable[str]) -> Iterator[Json]:
        """What the gate would say to each at its first point."""
        point = str(self.site.points[0]["name"])
        with contextlib.closing(control.Client(Path(str(self.site.gateway["admin_socket"])), WAIT)) as gate:
            for code in codes:
                yield gate.call("check", code=code, point=point)

    def judged(self, codes: list[str], data_dir: Path | None = None) -> dict[str, Json]:
        """What is to be said to each code at the first point by the cards in a data_dir, its own or another.
        Nothing is asked of the gate, which gives those who ask a tenth of its time."""
        point, now = str(self.site.points[0]["name"]), datetime.now(UTC).isoformat()
        snapshot = Snapshot.open(data_dir or self.site.data_dir)
        assert snapshot is not None
        with contextlib.closing(snapshot):
            scans = ndjson({"at": now, "point": point, "code": code} for code in codes).splitlines()
            answers = replay(load(self.site.config, replay=True), snapshot, scans, "codes")
            return {code: _told(answer) for code, answer in zip(codes, answers, strict=True)}


class System:
    """One central and its gateways."""

    def __init__(
        self,
        folder: Path,
        zygote: Zygote,
        *,
        there: Zygote | None = None,
        here: Zygote | None = None,
        host: str = "127.0.0.1",
        authority: Authority | None = None,
    ) -> None:
        """``there``: what the central is forked from, ``here``: the syncs, if their networks are others."""
        self.folder = folder
        self._zygote, self._here = zygote, here or zygote
        self.authority = authority
        self.central = Central(folder, there or zygote, host=host, authority=authority)
        self.gateways: list[Gateway] = []
        self._nudges = 0

    def gateway(self, make: Callable[..., Site], *tables: Any, **gateway: Any) -> Gateway:
        """One more. It is not enrolled, and nothing of it runs."""
        ca_file = None if self.authority is None else self.authority.file
        made = Gateway(make(*tables, **gateway), self.central, self._here, ca_file)
        self.gateways.append(made)
        return made

    def close(self) -> None:
        """End the central; the sites end themselves. Nobody may have had an accident."""
        for gateway in self.gateways:
            if gateway.sync is not None:
                gateway.kill_sync()
        for fork in self.central.forks:
            fork.kill()
            assert "Traceback (most" not in fork.errors(), fork.errors()
            for line in fork.log():
                assert line["level"] not in ("error", "critical"), line

    # --- agreement ---

    def settle(self, timeout: float = SETTLE) -> None:
        """Wait until everything that was on its way has arrived. Everything must be running."""
        for gateway in self.gateways:
            until(gateway.has_sent, f"the events of {gateway.name} are at the central", timeout)
        nudged = 0.0

        def quiet() -> bool:
            nonlocal nudged
            # A gate is not woken for what it told itself; this wakes them all, where each would take 25 s.
            if time.monotonic() - nudged > _NUDGE:
                nudged = time.monotonic()
                self._nudges += 1
                self.central.load([{"kind": "holder", "id": "nudge", "notice": f"{self._nudges}"}])
            position = self.central.position()
            return all(each.settled(position) for each in self.gateways)

        until(quiet, "each gateway has heard everything", timeout)

    def agree(self, codes: Iterable[str] = (), timeout: float = SETTLE) -> list[Json]:
        """Wait until all is quiet, and compare everything: every record, every event. ``codes``: further ones
        to be asked about, which the central may not have any more. Gives the central's records."""
        self.settle(timeout)
        records = self.central.export()
        for gateway in self.gateways:
            self._same_records(gateway, records, codes)
            self._same_events(gateway)
        return records

    def _same_records(self, gateway: Gateway, records: list[Json], codes: Iterable[str]) -> None:
        """The gateway has as many of each kind, its store says of every code what a store says that was made
        of nothing but the central's export, and its gate says the same of some of them."""
        kinds = Counter(record["kind"] for record in records)
        counts = gateway.status["snapshot"]["counts"]
        for kind in ("credential", "entitlement", "holder"):
            assert counts[f"{kind}s"] == kinds[kind], f"{gateway.name} has another number of {kind}s"
        known = [record["code"] for record in records if record["kind"] == "credential"]
        asked = list(dict.fromkeys([*known, *codes]))
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            build(Path(folder), ndjson(records).splitlines(), source="the central's export", pace=0)
            theirs = gateway.judged(asked, Path(folder))
        ours = gateway.judged(asked)
        for code in asked:
            assert ours[code] == theirs[code], f"{gateway.name} on {code}"
        sample = random.Random(len(asked)).sample(asked, min(_SAMPLE, len(asked)))
        for code, answer in zip(sample, gateway.check(sample), strict=True):
            assert _told(answer) == theirs[code], f"the gate of {gateway.name} on {code}"

    def _same_events(self, gateway: Gateway) -> None:
        """One by one: each once, with the same digest and the same content."""
        theirs: dict[tuple[int, int], Json] = {}
        for event in self.central.events(gateway.name):
            key = event["epoch"], event["seq"]
            assert key not in theirs, f"the central has {key} of {gateway.name} twice"
            del event["number"], event["received"]
            theirs[key] = event
        count = 0
        for event in gateway.events():
            key = event["epoch"], event["seq"]
            assert theirs.get(key) == event, f"{key} of {gateway.name}: {theirs.get(key)} instead of {event}"
            count += 1
        assert count == len(theirs), f"the central has events that {gateway.name} has not"


def _told(answer: Json) -> Json:
    """What of a verdict does not depend on the moment, and on how many have come before."""
    return {name: answer[name] for name in ("verdict", "credential", "holder", "entitlement", "product")}
