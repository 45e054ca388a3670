"""A proxy before a real central that breaks one rule of the protocol, and signs what it changes.

It has the central's keys, so that what it breaks is that rule and not the signature.
"""

from __future__ import annotations

import base64
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from gateway.sync import protocol as p


@dataclass
class Asked:
    """A request on its way."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def value(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.body)
        return value


@dataclass
class Answer:
    """An answer on its way back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def value(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.body)
        return value


@dataclass
class Central:
    """The real one behind the proxy."""

    url: str
    folder: Path
    address: str
    """What the proxy says of who asks, so that a run's wrong codes and tokens are counted for it alone."""
    memory: dict[Any, Any] = field(default_factory=dict)
    """What a breaker keeps from one request to the next."""

    def answer(self, asked: Asked) -> Answer:
        """As it is."""
        split = urlsplit(self.url)
        connection = http.client.HTTPConnection(str(split.hostname), split.port, timeout=60)
        try:
            target = asked.path + ("?" + urlencode(asked.query) if asked.query else "")
            headers = {**asked.headers, "X-Forwarded-For": self.address}
            connection.request(asked.method, target, asked.body or None, headers)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def sign(self, purpose: str, body: bytes) -> str:
        """By the key that the central has had from the start."""
        [file] = (self.folder / "keys").glob("k1*.pem")
        key = load_pem_private_key(file.read_bytes(), None)
        assert isinstance(key, Ed25519PrivateKey)
        return p.sign({file.stem: key}, purpose, body)

    def signed(self, answer: Answer, value: dict[str, Any], purpose: str = p.CHANGES) -> Answer:
        """The answer with another body, and a good signature."""
        body = orjson.dumps(value)
        return Answer(answer.status, {**answer.headers, "Gateway-Signature": self.sign(purpose, body)}, body)


Breaker = Callable[[Central, Asked], Answer]


@contextmanager
def breaking(central: Central, breaker: Breaker) -> Iterator[str]:
    """The URL of the proxy."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            split = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            asked = Asked(self.command, split.path, dict(parse_qsl(split.query)), headers, body)
            answer = breaker(central, asked)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in (
                    "content-length",
                    "transfer-encoding",
                    "connection",
                    "date",
                    "server",
                ):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# --- what is broken ---------------------------------------------------------------------------------------


def nothing(central: Central, asked: Asked) -> Answer:
    return central.answer(asked)


def _news(change: Callable[[dict[str, Any]], None]) -> Breaker:
    """A 200 of /v1/changes that is changed and signed again."""

    def breaker(central: Central, asked: Asked) -> Answer:
        answer = central.answer(asked)
        if (
            asked.path != "/v1/changes"
            or answer.status != 200
            or "json" not in answer.headers["Content-Type"]
        ):
            return answer
        value = answer.value
        change(value)
        return central.signed(answer, value)

    breaker.__name__ = change.__name__.strip("_")
    return breaker


def _uploads(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Breaker:
    """A 200 of /v1/events that is changed and signed again; gets request and answer."""

    def breaker(central: Central, asked: Asked) -> Answer:
        answer = central.answer(asked)
        if asked.path != "/v1/events" or answer.status != 200 or "json" not in answer.headers["Content-Type"]:
            return answer
        value = answer.value
        change(asked.value, value)
        return central.signed(answer, value, p.EVENTS)

    breaker.__name__ = change.__name__.strip("_")
    return breaker


def _reversed_nonce(value: dict[str, Any]) -> None:
    value["nonce"] = value["nonce"][::-1]


def _local_time(value: dict[str, Any]) -> None:
    value["time"] = value["time"][:19]


def _without_have(value: dict[str, Any]) -> None:
    del value["have"]


def _other_venue(value: dict[str, Any]) -> None:
    value["venue"] = "annex"


def _no_deletions(value: dict[str, Any]) -> None:
    value["records"] = [record for record in value["records"] if not record.get("deleted")]


def _twice(value: dict[str, Any]) -> None:
    value["records"] *= 2


def _no_usage(value: dict[str, Any]) -> None:
    value["records"] = [record for record in value["records"] if record["kind"] != "usage"]


def _no_commands(value: dict[str, Any]) -> None:
    value["records"] = [record for record in value["records"] if record["kind"] != "command"]


def _conflict_acknowledged(asked: dict[str, Any], value: dict[str, Any]) -> None:
    if value["conflict"] is not None:
        value["acknowledged"] = [[e["epoch"], e["seq"], e["seq"]] for e in asked["events"]]
        value["conflict"] = None


def _as_floats(asked: dict[str, Any], value: dict[str, Any]) -> None:
    value["acknowledged"] = [
        [epoch, *(min(int(float(seq)), (1 << 63) - 1) for seq in seqs)]
        for epoch, *seqs in value["acknowledged"]
    ]


def _one_range(asked: dict[str, Any], value: dict[str, Any]) -> None:
    if len(value["acknowledged"]) > 1 and value["acknowledged"][-1][2] < 1000:
        epoch = value["acknowledged"][0][0]
        same = [item for item in value["acknowledged"] if item[0] == epoch]
        others = [item for item in value["acknowledged"] if item[0] != epoch]
        value["acknowledged"] = [[epoch, min(i[1] for i in same), max(i[2] for i in same)], *others]


def unsigned_410(central: Central, asked: Asked) -> Answer:
    answer = central.answer(asked)
    if answer.status == 410:
        del answer.headers["Gateway-Signature"]
    return answer


def signature_of_other_bytes(central: Central, asked: Asked) -> Answer:
    """Of the same structure with a line feed at its end."""
    answer = central.answer(asked)
    if asked.path == "/v1/changes" and answer.status == 200:
        answer.headers["Gateway-Signature"] = central.sign(p.CHANGES, answer.body + b"\n")
    return answer


def signature_for_another_purpose(central: Central, asked: Asked) -> Answer:
    answer = central.answer(asked)
    if asked.path == "/v1/events" and answer.status == 200:
        answer.headers["Gateway-Signature"] = central.sign(p.CHANGES, answer.body)
    return answer


def cursor_not_honoured(central: Central, asked: Asked) -> Answer:
    """Always from the first one on that was ever given."""
    wanted = asked.query.get("cursor")
    if asked.path != "/v1/changes" or wanted is None or wanted.startswith("conformance-"):
        return central.answer(asked)
    if "wait" in asked.query and asked.query["wait"] == "0":
        asked.query["cursor"] = central.memory.setdefault("cursor", wanted)
    answer = central.answer(asked)
    if answer.status != 200:
        return answer
    return central.signed(answer, {**answer.value, "cursor": wanted})


def no_wait(central: Central, asked: Asked) -> Answer:
    asked.query.pop("wait", None)
    return central.answer(asked)


def pages_too_large(central: Central, asked: Asked) -> Answer:
    """Everything in one answer."""
    answer = central.answer(asked)
    if asked.path != "/v1/changes" or answer.status != 200 or "json" not in answer.headers["Content-Type"]:
        return answer
    value = answer.value
    while value["more"]:
        following = Asked("GET", asked.path, {**asked.query, "cursor": value["next"]}, asked.headers, b"")
        page = central.answer(following).value
        value = {**page, "cursor": value["cursor"], "records": value["records"] + page["records"]}
    return central.signed(answer, value)


def ranges_from_the_beginning(central: Central, asked: Asked) -> Answer:
    """A 206 that begins at the first byte, whatever was asked for."""
    answer = central.answer(asked)
    if answer.status == 206:
        asked.headers.pop("Range", None)
        answer.body = central.answer(asked).body[: len(answer.body)]
    return answer


def packed(central: Central, asked: Asked) -> Answer:
    answer = central.answer(asked)
    if asked.path == "/v1/snapshot" and answer.status == 200:
        answer.headers["Content-Encoding"] = "gzip"
    return answer


def wrong_digest(central: Central, asked: Asked) -> Answer:
    """In a manifest that is signed well."""
    answer = central.answer(asked)
    if asked.path == "/v1/snapshot" and answer.status == 200:
        manifest = json.loads(base64.urlsafe_b64decode(answer.headers["Gateway-Manifest"]))
        raw = json.dumps({**manifest, "sha256": "0" * 64}).encode()
        answer.headers["Gateway-Manifest"] = base64.urlsafe_b64encode(raw).decode()
        answer.headers["Gateway-Signature"] = central.sign(p.SNAPSHOT_FILE, raw)
    return answer


def stored_twice(central: Central, asked: Asked) -> Answer:
    """An event that comes again is kept again, under another number, and acknowledged."""
    if asked.path != "/v1/events" or not asked.body.startswith(b"{"):
        return central.answer(asked)
    seen = central.memory.setdefault("seen", set())
    value = asked.value if isinstance(asked.value, dict) else {}
    events = value.get("events", [])
    again = [event for event in events if event.get("digest") in seen]
    seen.update(event.get("digest") for event in events if event.get("digest"))
    answer = central.answer(asked)
    if again and answer.status == 200:
        value["events"] = [{**event, "seq": event["seq"] + 500} for event in again]
        asked.body = json.dumps(value).encode()
        asked.headers["Content-Length"] = str(len(asked.body))
        central.answer(asked)
    return answer


def too_many_events_taken(central: Central, asked: Asked) -> Answer:
    """More than 1,000, in two halves."""
    answer = central.answer(asked)
    if answer.status != 413 or len(asked.body) > p.MAX_UPLOAD:
        return answer
    value = asked.value
    events, ranges = value["events"], []
    for half in (events[:600], events[600:]):
        asked.body = json.dumps({**value, "events": half}).encode()
        asked.headers["Content-Length"] = str(len(asked.body))
        answer = central.answer(asked)
        ranges += answer.value["acknowledged"]
    return central.signed(answer, {**answer.value, "acknowledged": ranges}, p.EVENTS)


def used_up_is_unknown(central: Central, asked: Asked) -> Answer:
    answer = central.answer(asked)
    if answer.status == 401:
        answer.body = answer.body.replace(b"token_used_up", b"bad_token")
    return answer


def revoked_unsigned(central: Central, asked: Asked) -> Answer:
    answer = central.answer(asked)
    if answer.status == 403 and asked.path == "/v1/changes":
        answer.headers.pop("Gateway-Signature", None)
    return answer


def other_machines_welcome(central: Central, asked: Asked) -> Answer:
    """The machine that enrolled is put in the place of whatever comes."""
    if asked.path == "/v1/enroll":
        answer = central.answer(asked)
        if answer.status == 200:
            central.memory[answer.value["token"]] = asked.value["machine"]
        return answer
    token = asked.headers.get("Authorization", "").removeprefix("Bearer ")
    if token in central.memory:
        asked.headers["Gateway-Machine"] = central.memory[token]
    return central.answer(asked)


def errors_in_html(central: Central, asked: Asked) -> Answer:
    answer = central.answer(asked)
    if answer.status == 401:
        return Answer(401, {"Content-Type": "text/html"}, b"<h1>Unauthorized</h1>")
    return answer


reversed_nonce = _news(_reversed_nonce)
local_time = _news(_local_time)
without_have = _news(_without_have)
other_venue = _news(_other_venue)
no_deletions = _news(_no_deletions)
records_twice = _news(_twice)
no_usage = _news(_no_usage)
no_commands = _news(_no_commands)
conflict_acknowledged = _uploads(_conflict_acknowledged)
numbers_as_floats = _uploads(_as_floats)
gaps_acknowledged = _uploads(_one_range)
