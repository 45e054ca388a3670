"""What ``gateway doctor`` says of the central: each thing that can stand between, with what mends it."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from tests.e2e.rig import Json, Site, Zygote, card, product, until, venue
from tests.e2e.system import Authority, Gateway, System, free_port

TABLES = (
    ({"name": "north", "relay": {"driver": "memory"}},),
    ({"name": "north-in", "lane": "north"},),
    ({"name": "in", "point": "north-in"},),
)


@pytest.fixture
def system(tmp_path: Path, zygote: Zygote) -> Iterator[System]:
    """A central with one card."""
    made = System(tmp_path, zygote)
    made.central.start()
    made.central.load([*venue(), product("open"), *card(1, "OPEN", "open")])
    yield made
    made.close()


def ask(gateway: Gateway, status: int) -> dict[str, Json]:
    """The findings by what they are about; each that is not well has a remedy."""
    done = gateway.fork("doctor", "--json")
    assert done.wait() == status, done.output() + done.errors()
    assert "Traceback" not in done.errors()
    found = {}
    for line in done.output().splitlines():
        finding = json.loads(line)
        assert finding["state"] == "ok" or finding["remedy"], finding
        found[finding["about"]] = finding
    return found


def says(finding: Json, state: str, *words: str) -> None:
    assert finding["state"] == state, finding
    for word in words:
        assert word in f"{finding['found']} → {finding['remedy']}", finding


def test_from_the_first_day_to_the_last(system: System, site: Callable[..., Site]) -> None:
    """Not joined, joined, the sync stopped, the central away, the gateway revoked, and the lines taken out of
    the configuration: each is told with the command that mends it."""
    north = system.gateway(site, *TABLES)
    north.site.start()
    found = ask(north, 1)
    says(
        found["central"], "fault", "not joined", f"gateway enroll {system.central.url} -", "enrol-code north"
    )
    says(found["way to the central"], "ok", system.central.url)
    says(found["sync"], "fault", "nobody answers", "gateway sync")

    north.join()
    north.start_sync()
    until(lambda: north.cards() == 1)
    found = ask(north, 0)
    for about in ("central", "way to the central", "sync", "token", "news", "entries"):
        says(found[about], "ok")

    system.central.kill()
    until(lambda: ask(north, 1)["sync, changes"], "the sync says what ails it")
    found = ask(north, 1)
    says(found["way to the central"], "fault", system.central.url, "no connection", "curl -v")
    says(found["sync, changes"], "fault", "connection to the central")  # none, or it broke
    says(found["news"], "ok", "last heard")

    system.central.start()
    system.central.call("POST", "gateways/north/revoke")
    north.stop_sync()
    north.start_sync()
    until(lambda: north.status["central"]["revoked"])
    found = ask(north, 1)
    says(found["central"], "fault", "revoked", "gateway enroll")
    says(found["sync, changes"], "fault", "revoked")

    url = north.site.sections.pop("central")["url"]
    north.site.write()
    says(ask(north, 1)["central"], "fault", f"joined to {url}", f'url = "{url}"')


def test_token_and_names(system: System, site: Callable[..., Site]) -> None:
    """A token that others may read, that is empty, that is gone, that the central does not know; another id,
    another url, another computer."""
    north = system.gateway(site, *TABLES)
    north.site.start()
    north.join()
    folder = north.site.data_dir / "sync"
    token = folder / "token"
    right = token.read_bytes()
    token.chmod(0o644)
    says(ask(north, 1)["token"], "fault", f"chmod 600 {token}")
    token.chmod(0o600)
    token.write_bytes(b"")
    says(ask(north, 1)["token"], "fault", "empty", "gateway enroll")
    token.unlink()
    says(ask(north, 1)["token"], "fault", "is not there", "gateway enroll")
    token.write_bytes(b"0" * 64)
    token.chmod(0o600)
    north.start_sync()
    until(lambda: "sync, changes" in ask(north, 1), "the sync has asked")
    found = ask(north, 1)
    says(found["sync, changes"], "fault", "does not accept this gateway's token", "gateway enroll")
    says(found["news"], "warning", "none since the gate was started")
    assert "0" * 64 not in str(found)
    north.stop_sync()
    token.write_bytes(right)

    (folder / "machine").write_text("0" * 64)
    says(ask(north, 1)["token"], "warning", "another computer")
    north.site.sections["central"]["url"] = system.central.url.replace("127.0.0.1", "localhost")
    north.site.write()
    says(ask(north, 1)["central"], "warning", "joined at", "localhost")
    north.site.gateway["id"] = "south"
    north.site.write()
    says(ask(north, 1)["central"], "fault", 'joined as "north"', 'set id = "north"')
    (north.site.data_dir / "central.json").write_text("{")
    says(ask(north, 1)["central"], "fault", "central.json", "gateway enroll")


@contextmanager
def another(port: int) -> Iterator[None]:
    """A web server that is nobody's central."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_somebody_else_answers(system: System, site: Callable[..., Site]) -> None:
    """Another web server where the central should be, and where the sync's pages should be; a central
    without TLS where it is asked for; a name that nobody knows."""
    north = system.gateway(site, *TABLES)
    port, pages = free_port(), free_port()
    north.site.sections["central"]["url"] = f"http://127.0.0.1:{port}"
    north.site.sections["web"]["listen"] = f"127.0.0.1:{pages}"
    north.site.write()
    with another(port), another(pages):
        found = ask(north, 1)
    says(found["way to the central"], "fault", "answers 200, as no central does", "url in [central]")
    says(found["sync"], "fault", "is not the sync", "[web] listen")
    north.site.sections["central"]["url"] = system.central.url.replace("http:", "https:")
    north.site.write()
    says(ask(north, 1)["way to the central"], "fault", "speaks no TLS", "ca_file")
    north.site.sections["central"]["url"] = "https://central.invalid"
    north.site.write()
    says(ask(north, 1)["way to the central"], "fault", "name is not known", "url in [central]")


def test_tls(tmp_path: Path, zygote: Zygote, site: Callable[..., Site]) -> None:
    """A central with a certificate of a CA of its own: believed with ca_file, and without it told so; a
    ca_file that is none, and one that is not there."""
    system = System(tmp_path, zygote, authority=Authority(tmp_path))
    system.central.start()
    north = system.gateway(site, *TABLES)
    found = ask(north, 1)
    says(found["way to the central"], "ok", "over TLS")
    says(found["central's certificate"], "warning", "ends in 0 days", "have the central's operator renew it")
    says(found["ca_file"], "warning", "ends in 0 days", "put a newer one into")
    section = north.site.sections["central"]
    right = section.pop("ca_file")
    north.site.write()
    says(ask(north, 1)["way to the central"], "fault", "no trust in the central's certificate", "ca_file")
    for wrong in (north.site.config, tmp_path / "missing.pem"):
        section["ca_file"] = wrong
        north.site.write()
        says(ask(north, 1)["way to the central"], "fault", str(wrong), "[central]")
    key = tmp_path / "key.pem"
    key.write_bytes(b"none")
    key.chmod(0o644)
    section |= {"ca_file": right, "client_cert": system.central.tls[0], "client_key": key}  # type: ignore[index]
    north.site.write()
    found = ask(north, 1)
    says(found["client_key"], "fault", f"chmod 640 {key}")
    says(found["way to the central"], "fault", "client")
    (tmp_path / "other").mkdir()
    authority = Authority(tmp_path / "other")
    section["client_cert"], section["client_key"] = authority.certificate("north", timedelta(hours=-1))
    north.site.write()
    says(ask(north, 1)["client_cert"], "fault", "ended on", "put a newer one into")
    system.close()
