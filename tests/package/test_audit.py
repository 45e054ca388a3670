"""``make audit`` against a vulnerability service on loopback that answers as OSV does."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.test_packaging import ROOT

LOCKS = ("build", "dev", "tools")
BAD = "aiohttp"


class Service:
    """It knows of one vulnerability, once it is told to; it remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: set[tuple[str, str]] = set()
        self.knows = self.breaks = False
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                name = query["package"]["name"]
                service.asked.add((name, query["version"]))
                answer: dict[str, object] = {}
                if service.knows and name == BAD:
                    affected = {"package": {"name": name, "ecosystem": "PyPI"}}
                    answer = {"vulns": [{"id": "PYSEC-0000-1", "summary": "planted", "affected": [affected]}]}
                body = json.dumps(answer).encode()
                self.send_response(500 if service.breaks else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/query"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.server.shutdown()
    service.server.server_close()


def audit(service: Service) -> subprocess.CompletedProcess[str]:
    options = f"AUDIT=--vulnerability-service osv --osv-url {service.url}"
    return subprocess.run(["make", "audit", options], cwd=ROOT, capture_output=True, text=True, check=False)


def test_everything_locked_is_asked_about(service: Service) -> None:
    """Where nothing is known against any locked version the audit passes; it has asked about each of them."""
    done = audit(service)
    assert (done.returncode, "No known vulnerabilities found" in done.stderr) == (0, True), done
    pinned = set()
    for lock in LOCKS:
        text = (ROOT / f"locks/{lock}.txt").read_text()
        pinned |= set(re.findall(r"^([a-z0-9.-]+)==(\S+) \\$", text, re.MULTILINE))
    assert len(pinned) > 80
    assert service.asked >= pinned


def test_a_known_vulnerability_fails_the_audit(service: Service) -> None:
    """The package and the vulnerability are named, and make fails."""
    service.knows = True
    done = audit(service)
    assert done.returncode != 0
    assert re.search(rf"{BAD}\s.*PYSEC-0000-1", done.stdout)


def test_a_service_that_does_not_answer_is_no_pass(service: Service) -> None:
    """Without an answer make fails, and says that it may be this."""
    service.breaks = True
    done = audit(service)
    assert done.returncode != 0
    assert "the vulnerability service did not answer" in done.stdout
