"""The pages over HTTP, of real processes: what is shown and to whom, and clients that are hostile."""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import select
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.sync.display import lane_kind
from gateway.sync.streams import MOST
from tests.e2e.rig import WAIT, Json, Site, until
from tests.pages_rig import CLOSED, NAMES, SECRET, Pages

JSON = {"Content-Type": "application/json"}
SAFE = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "server": "gateway",
}


@pytest.fixture
def pages(site: Callable[..., Site]) -> Pages:
    """A gate and a sync that run."""
    return Pages(site)


class Answer:
    def __init__(self, status: int, headers: dict[str, str], text: str) -> None:
        self.status, self.headers, self.text = status, headers, text

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def ask(pages: Pages, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    """One request, and all of its answer."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", pages.port, timeout=WAIT)) as there:
        data = body if body is None or isinstance(body, bytes | str) else json.dumps(body)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        there.request(method, path, data, named)
        answer = there.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, found, answer.read().decode())


def raw(pages: Pages, request: bytes) -> bytes:
    """What comes back for these bytes, until the connection is closed or silent after an answer."""
    with socket.create_connection(("127.0.0.1", pages.port), timeout=WAIT) as sock:
        sock.sendall(request)
        said = b""
        while True:
            if said and not select.select([sock], [], [], 0.2)[0]:
                return said
            try:
                data = sock.recv(65536)
            except ConnectionError:
                return said
            if not data:
                return said
            said += data


class Listener:
    """An open stream, as a browser has it."""

    def __init__(self, pages: Pages, path: str, **headers: str) -> None:
        self.sock = socket.create_connection(("127.0.0.1", pages.port), timeout=WAIT)
        more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        self.sock.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{pages.port}\r\n{more}\r\n".encode())
        self.text = ""

    def fileno(self) -> int:
        return self.sock.fileno()

    def events(self) -> list[Json]:
        """All whole events that were told so far."""
        told = [part.rpartition("data: ")[2] for part in self.text.split("\n\n")[:-1]]
        return [json.loads(line) for line in told if line.startswith("{")]

    def until(self, holds: Callable[[list[Json]], Any]) -> Any:
        """Read until something holds of the events."""
        while not (found := holds(self.events())):
            data = self.sock.recv(65536)
            assert data, f"the stream ended: {self.text}"
            self.text += data.decode()
        return found

    def close(self) -> None:
        self.sock.close()


@pytest.fixture
def listen(pages: Pages) -> Iterator[Callable[..., Listener]]:
    made: list[Listener] = []

    def make(path: str, **headers: str) -> Listener:
        made.append(Listener(pages, path, **headers))
        return made[-1]

    yield make
    for each in made:
        each.close()


def kinds(events: list[Json]) -> list[str]:
    return [event["kind"] for event in events]


# --- what is shown ------------------------------------------------------------------------------------


def test_a_display_tells_what_a_passer_by_may_see(pages: Pages, listen: Callable[..., Listener]) -> None:
    """Welcome with product and guests, and refusals with what to do, each in the holder's language; no name,
    no code, no id, no notice. A display of one point hears of that one alone."""
    both, way_out = listen("/display/north/events"), listen("/display/north/events?point=north-out")
    assert both.until(kinds) == way_out.until(kinds) == ["idle"]
    texts = both.events()[0]["texts"]
    assert [text["language"] for text in texts] == ["de", "en"]
    seen = 1
    for language in NAMES:
        for code in (f"FAM-{language}", f"FAM-{language}", f"DAY-{language}", f"DAY-{language}"):
            verdict = pages.scan("in", code)
            seen += 1
            told = both.until(lambda events, n=seen: events[n - 1 :])[0]
            assert (told["language"], told["text"]) == (language, verdict["message"])
            assert told["kind"] == ("welcome" if verdict["verdict"] == "granted" else "refused")
            if code.startswith("FAM"):
                assert told["name"] == NAMES[language]
                assert str(verdict["guests"]) in told["hint"] or verdict["guests"] == 1
                assert told["hint"]
            else:
                assert told["hint"] == ""
    pages.scan("in", "LOST")
    pages.scan("in", "NEVER-SEEN-7H2K")
    pages.scan("out", "FAM-de")
    assert way_out.until(lambda events: events[1:])[0]["text"] == "Auf Wiedersehen."
    both.until(lambda events: len(events) == seen + 3)
    assert kinds(both.events()[-3:]) == ["refused", "refused", "welcome"]
    for hidden in (*SECRET, "NEVER", "FAM-", "DAY-", "LOST", "Cfamily", "Hfamily", "Efamily", "Clost"):
        assert hidden not in both.text
    assert len(way_out.events()) == 2


def test_a_display_follows_its_lane(pages: Pages, listen: Callable[..., Listener]) -> None:
    """Closed, free, out of service: as it happens, in the languages that it was asked for and the venue's own
    words, and to who comes later. Nothing is told of another lane; on a free lane no scans are."""
    shown = listen("/display/north/events?languages=nb-NO,xx,fr,nb")
    other = listen("/display/south/events")
    assert other.until(kinds) == ["idle"]
    assert shown.until(kinds) == ["idle"]
    texts = shown.events()[0]["texts"]
    assert [text["heading"] for text in texts] == ["Skann her", "Scannez ici"]
    pages.site.call("lane", lane="north", state="closed")
    closed = shown.until(lambda events: [event for event in events if event["kind"] == "closed"])[0]
    assert [text["text"] for text in closed["texts"]] == ["Bruk en annen passasje.", CLOSED]
    pages.site.call("lane", lane="north", state="free")
    shown.until(lambda events: kinds(events)[-1] == "free")
    pages.scan("in", "FAM-de")
    assert listen("/display/north/events").until(kinds) == ["free"]
    pages.site.boards["north"].unplug()
    shown.until(lambda events: kinds(events)[-1] == "out")
    pages.site.boards["north"].plug()
    shown.until(lambda events: kinds(events)[-1] == "free")
    pages.site.call("lane", lane="north", state="normal")
    shown.until(lambda events: kinds(events)[-1] == "idle")
    for scanner in ("in", "out"):
        pages.site.scanners[scanner].unplug()
    shown.until(lambda events: kinds(events)[-1] == "out")
    assert kinds(shown.events()) == ["idle", "closed", "free", "out", "free", "idle", "out"]
    assert kinds(other.events()) == ["idle"]


def test_a_display_survives_the_gate(pages: Pages, listen: Callable[..., Listener]) -> None:
    """Killed, it is out of service; stopped in its tracks, too; each time it comes back by itself. A display
    that is opened meanwhile says it in every language, and one that is opened during a verdict shows that."""
    # The lane in memory: a board's port that is opened anew stays busy on a pty.
    shown = listen("/display/south/events")
    assert shown.until(kinds) == ["idle"]
    pages.site.kill()
    shown.until(lambda events: kinds(events)[-1] == "out")
    pages.site.start()
    shown.until(lambda events: kinds(events)[-1] == "idle")
    assert pages.site.gate is not None
    pages.site.gate.signal(signal.SIGSTOP)
    shown.until(lambda events: kinds(events)[-1] == "out")
    pages.site.gate.signal(signal.SIGCONT)
    shown.until(lambda events: kinds(events)[-1] == "idle")
    pages.scan("south", "FAM-sv")
    shown.until(lambda events: kinds(events)[-1] == "welcome")
    late = listen("/display/south/events")
    assert late.until(lambda events: events[1:])[0]["text"] == "Välkommen."
    assert 0 < late.events()[1]["for_ms"] < shown.events()[-1]["for_ms"]
    pages.site.kill()
    pages.sync.kill()
    pages.start_sync()
    alone = listen("/display/south/events")
    assert alone.until(kinds) == ["out"]
    assert [text["language"] for text in alone.events()[0]["texts"]] == list(NAMES)


def test_how_a_lane_stands() -> None:
    """Out of service is a lane where nobody can be let in; a free lane is free whatever its readers do."""

    def status(**more: Any) -> Json:
        lane = {
            "lane": "north",
            "state": "normal",
            "fault": None,
            "points": ["in", "out"],
            **more.pop("lane", {}),
        }
        found = {
            "lanes": [lane],
            "readers": [{"point": "in", "up": True}, {"point": "else", "up": False}],
            "snapshot": {"stale": False},
            "ledger": {"fault": None},
        }
        return {**found, **more}

    def kind(found: Json | None, lane: str = "north", *, shuts: bool = False) -> str:
        return lane_kind(found, lane, shuts=shuts)

    assert kind(status()) == "idle"
    assert kind(status(snapshot=None)) == "idle"
    assert kind(None) == kind(status(), "south") == "out"
    assert kind(status(lane={"state": "closed"})) == "closed"
    assert kind(status(lane={"state": "free"})) == "free"
    assert kind(status(lane={"state": "free", "fault": "gone"})) == "out"
    down = [{"point": "in", "up": False}, {"point": "out", "up": False}, {"point": "else", "up": True}]
    assert kind(status(readers=down)) == kind(status(readers=down, lane={"state": "closed"})) == "out"
    assert kind(status(readers=down, lane={"state": "free"})) == "free"
    assert kind(status(readers=[])) == "idle"
    assert kind(status(snapshot={"stale": True})) == "out"
    broken = status(ledger={"fault": "disk full"})
    assert kind(broken) == "idle"
    assert kind(broken, shuts=True) == "out"


def test_the_status_page_shows_how_everything_is(pages: Pages, listen: Callable[..., Listener]) -> None:
    """Everything in one event, scans from before it was opened too, each new verdict at once; no code, no
    name and no id of a card, entitlement or holder."""
    pages.scan("in", "FAM-de")
    pages.scan("in", "LOST")
    shown = listen("/events")
    shown.until(lambda events: any(len(event.get("verdicts", ())) == 2 for event in events))
    whole = shown.events()[-1]
    assert [each["verdict"] for each in whole["verdicts"]] == ["revoked", "granted"]
    assert set(whole["verdicts"][0]) == {"at", "point", "lane", "verdict", "detail", "guest"}
    gate = whole["gate"]
    assert [each["lane"] for each in gate["lanes"]] == ["north", "south"]
    assert [each["up"] for each in gate["readers"]] == [True] * 3
    assert gate["areas"]["hall"] == 1
    assert whole["sync"]["central"] is False
    pages.scan("in", "DAY-de")
    told = shown.until(lambda events: [e["verdict"] for e in events if "verdict" in e])
    assert (told[0]["verdict"], told[0]["point"]) == ("granted", "north-in")
    pages.site.call("lane", lane="south", state="closed")
    shown.until(lambda events: "gate" in events[-1] and events[-1]["gate"]["lanes"][1]["state"] == "closed")
    pages.site.kill()
    shown.until(lambda events: events[-1].get("gate", 1) is None)
    for hidden in (*SECRET, "FAM-", "LOST", "DAY-", "Cfamily", "Efamily", "Hfamily", "Clost", '"Cday'):
        assert hidden not in shown.text


def test_nobody_looks_nothing_is_asked(pages: Pages, listen: Callable[..., Listener]) -> None:
    """Without a display or a page the sync has no connection on which the gate tells verdicts; then it has
    one, however many there are."""

    def connections() -> int:
        """The gate's ends of them, besides the one that listens."""
        table = Path(f"/proc/{pages.sync.pid}/net/unix").read_text()
        return table.count(str(pages.site.gateway["sync_socket"])) - 1

    assert ask(pages, "GET", "/display/north").status == ask(pages, "GET", "/").status == 200
    assert connections() == 0
    for path in ("/display/north/events", "/display/south/events", "/events"):
        listen(path).until(len)
    assert connections() == 1


# --- who may act --------------------------------------------------------------------------------------


def login(pages: Pages, token: str, **headers: str) -> Answer:
    return ask(pages, "POST", "/login", {"token": token}, **{**JSON, **headers})


def cookie(answer: Answer) -> str:
    return answer.headers["set-cookie"].partition(";")[0]


def test_an_operator_opens_and_closes(pages: Pages) -> None:
    """After a login with the token a lane is opened and set, recorded with the name; the cookie is for this
    site and no script; it ends with the logout, and with the operator."""
    token = pages.token("anna")
    entered = login(pages, token)
    assert entered.status == 200
    attributes = entered.headers["set-cookie"].lower()
    assert "httponly" in attributes
    assert "samesite=strict" in attributes
    assert "secure" not in attributes
    assert token not in entered.text + attributes
    proxied = login(pages, token, X_Forwarded_Proto="https")
    assert "secure" in proxied.headers["set-cookie"].lower()
    said = entered.json
    assert said["operator"] == "anna"
    mine = {**JSON, "Cookie": cookie(entered)}
    assert ask(pages, "GET", "/session", **mine).json == said
    assert ask(pages, "GET", "/session").json == {"operator": None, "csrf": None}

    def act(**body: Any) -> Answer:
        return ask(pages, "POST", "/act", {"csrf": said["csrf"], **body}, **mine)

    assert act(act="open", lane="north").json == {"operator": "anna", "lane": "north", "opened": True}
    pages.site.pulses(1)
    assert act(act="lane", lane="north", state="closed").json["state"] == "closed"
    assert act(act="lane", lane="north", state="open").status == 400
    assert act(act="open", lane="nroth").status == act(act="clear", area="hall").status == 400
    assert act(act="open", lane={"north": 1}).status == act(act=None).status == 400
    pages.site.written()
    by = [(event["kind"], event["by"]) for event in pages.site.events()]
    assert by == [("open", "operator:anna"), ("lane", "operator:anna")]
    assert ask(pages, "POST", "/logout", {}, **mine).json == {"operator": None, "csrf": None}
    assert act(act="open", lane="north").status == 401
    mine["Cookie"] = cookie(login(pages, token))
    said = ask(pages, "GET", "/session", **mine).json
    assert pages.site.run("operator", "remove", "anna").status == 0
    gone = act(act="open", lane="north")
    assert (gone.status, gone.json["code"]) == (401, "wrong_token")
    assert ask(pages, "GET", "/session", **mine).json["operator"] is None
    pages.site.pulses(1)
    assert token not in pages.sync.errors()


def test_who_is_not_logged_in_cannot_act(pages: Pages) -> None:
    """Wrong tokens, none, made-up sessions, a session without its secret: each is refused and counted, in a
    line, and no lane moves."""
    token = pages.token()
    mine = {**JSON, "Cookie": cookie(login(pages, token))}
    opening = {"act": "open", "lane": "north"}
    assert ask(pages, "POST", "/act", opening, **JSON).status == 401
    assert ask(pages, "POST", "/act", {**opening, "token": token}, **JSON).status == 401
    for made_up in (
        "gateway_session=",
        "gateway_session=x",
        "gateway_session=" + "A" * 43,
        "gateway_session",
    ):
        assert ask(pages, "POST", "/act", opening, **{**JSON, "Cookie": made_up}).status == 401
    for csrf in (None, "", "x", 1, ["x"], "ü"):
        refused = ask(pages, "POST", "/act", {**opening, "csrf": csrf}, **mine)
        assert (refused.status, refused.json["code"]) == (403, "csrf")
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"):
        for path in ("/act", "/login", "/logout"):
            assert ask(pages, method, path, **mine).status == 405
    for body in (b"", b"{", b"[]", b"1", b"\xff", b'"x"', b"{" * 900):
        assert ask(pages, "POST", "/login", body, **JSON).status == 400
    assert ask(pages, "POST", "/login", {"token": "x" * 2000}, **JSON).status == 413
    statuses = [login(pages, f"wrong-{n}").status for n in range(8)]
    assert statuses[:4] == [401] * 4
    assert statuses[-1] == 429
    metrics = pages.metrics()
    for reason in ("wrong_token", "busy", "csrf", "no_session"):
        [line] = [
            x for x in metrics.splitlines() if x.startswith(f'gateway_web_refused_total{{reason="{reason}"}}')
        ]
        assert float(line.rsplit(" ", 1)[1]) >= 1
    pages.site.pulses(0)
    pages.site.kill()
    assert login(pages, token).status == 503


def test_other_sites_are_refused(pages: Pages, listen: Callable[..., Listener]) -> None:
    """What a browser sends for a page of another site, or as a form, neither logs in nor acts nor listens."""
    token = pages.token()
    entered = login(pages, token)
    mine = {"Cookie": cookie(entered)}
    act = {"act": "open", "lane": "north", "csrf": entered.json["csrf"]}
    own = {"Origin": pages.url, "Sec_Fetch_Site": "same-origin"}
    others: tuple[dict[str, str], ...] = (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://localhost:{pages.port}"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": f"{pages.url}.evil.example"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "none"},
        {"Origin": pages.url, "Sec_Fetch_Site": "cross-site"},
    )
    for other in others:
        for path, body in (("/login", {"token": token}), ("/act", act), ("/logout", {})):
            refused = ask(pages, "POST", path, body, **JSON, **mine, **other)
            assert (refused.status, refused.json["code"]) == (403, "cross_site"), other
            assert "access-control-allow-origin" not in refused.headers
        for path in ("/events", "/display/north/events"):
            assert ask(pages, "GET", path, **other).status == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert ask(pages, "POST", "/act", act, **{**mine, "Content-Type": kind}).status == 415
    pages.site.pulses(0)
    assert ask(pages, "POST", "/act", act, **JSON, **mine, **own).json["opened"]
    pages.site.pulses(1)
    assert listen("/display/north/events", **own).until(kinds) == ["idle"]


# --- hostile clients ----------------------------------------------------------------------------------


def test_every_answer_is_safe(pages: Pages) -> None:
    """Whatever is asked, the headers are there, and no answer tells of the program's insides."""
    asked = [
        ("GET", "/"),
        ("GET", "/display/north"),
        ("GET", "/static/display.js"),
        ("GET", "/static/status.css"),
        ("GET", "/metrics"),
        ("GET", "/health"),
        ("GET", "/session"),
        ("HEAD", "/"),
        ("GET", "/nothing"),
        ("GET", "/display/nroth"),
        ("GET", "/display/nroth/events"),
        ("GET", "/display/"),
        ("POST", "/"),
        ("DELETE", "/metrics"),
        ("POST", "/login"),
        ("POST", "/act"),
        ("BREW", "/"),
        ("GET", "/?" + "x" * 5000),
    ]
    for method, path in asked:
        answer = ask(pages, method, path)
        expected = {200, 404, 405, 415} if method != "BREW" else {405, 400}
        assert answer.status in expected, (method, path)
        for name, value in SAFE.items():
            assert answer.headers.get(name) == value, (method, path, name)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert not any(word in answer.text for word in ("Traceback", 'File "', "aiohttp"))
    for name, kind in (
        ("display.html", None),
        ("display.css", "text/css"),
        ("display.js", "text/javascript"),
    ):
        answer = ask(pages, "GET", f"/static/{name}")
        assert answer.headers["content-type"].partition(";")[0] == kind or answer.status == 404
    for page in ("/", "/display/north"):
        text = ask(pages, "GET", page).text
        assert "<script src=" in text
        assert "<style" not in text
        assert "style=" not in text
        assert "//" not in text.replace("<!doctype html>", "")  # nothing from elsewhere
    malformed = (
        b"\r\n\r\n\r\n\r\nx\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /login HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 20_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(1000)) + b"\r\n",
        b"GET /%00%ff%zz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n"
        b"Content-Length: 3\r\n\r\nxyz",
        b"POST /login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\nx\r\n",
    )
    for request in malformed:
        said = raw(pages, request)
        assert b"Traceback" not in said, request
        assert b"aiohttp" not in said
        assert not said or (
            said[:10] in (b"HTTP/1.0 4", b"HTTP/1.1 4") and b"frame-ancestors 'none'" in said
        ), (
            request,
            said,
        )
    assert ask(pages, "GET", "/health").status == 200
    assert "internal error" not in pages.sync.errors()
    assert "Traceback" not in pages.sync.errors()


def test_no_path_leads_out(pages: Pages) -> None:
    """No path, however it is written, gives a file that is not one of the pages' own."""
    climbs = ("../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%5c", "..\\", "....//", "..;/", "%252e%252e%252f")
    starts = ("/static/", "/", "/display/", "/display/north/", "/static/display.js/", "//", "/static//")
    ends = ("etc/passwd", "data/code.key", "gateway.toml", "web.py", "__init__.py")
    for start in starts:
        for climb in climbs:
            for end in ends:
                path = start + climb * 9 + end
                said = raw(pages, f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
                assert said.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400")), (path, said[:80])
                assert b"root:" not in said
                assert b"data_dir" not in said
    for path in ("/static/", "/static", "/static/display.html", "/static/./", "/static/display.js%00.css"):
        said = raw(pages, f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        assert said.startswith(b"HTTP/1.1 40"), path


@pytest.fixture
def many_files() -> Iterator[None]:
    """Room for the other ends of all streams in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_a_thousand_streams(pages: Pages, listen: Callable[..., Listener]) -> None:
    """As many displays as may be are told of a verdict, each; metrics and scans go on; one more is told to
    come later; those that leave make room."""
    listeners = [listen("/display/north/events") for _ in range(MOST)]
    for each in listeners:
        each.until(kinds)
    assert f"gateway_web_streams {MOST:.1f}" in pages.metrics()
    full = ask(pages, "GET", "/display/north/events")
    assert (full.status, full.headers["retry-after"]) == (503, "5")
    assert ask(pages, "GET", "/").status == ask(pages, "GET", "/display/north").status == 200
    pages.scan("in", "FAM-de")
    for each in listeners:
        assert each.until(lambda events: events[1:])[0]["text"] == "Willkommen."
    metrics = pages.metrics()
    assert "gateway_gate_up 1.0" in metrics
    assert "gateway_web_streams_cut_total 0.0" in metrics
    for each in listeners[:500]:
        each.close()
    until(lambda: f"gateway_web_streams {MOST - 500:.1f}" in pages.metrics(), "the room is free again")
    assert listen("/display/north/events").until(kinds)[0] == "idle"
    pages.sync.signal(signal.SIGTERM)
    assert pages.sync.wait() == 0


def test_half_requests_hold_up_nobody(pages: Pages) -> None:
    """Hundreds of connections that say nothing, or half of something: pages and scans go on."""
    there = http.client.HTTPConnection("127.0.0.1", pages.port, timeout=WAIT)
    with contextlib.closing(there), contextlib.ExitStack() as held:
        there.request("GET", "/health")
        assert there.getresponse().read()
        for n in range(400):
            sock = held.enter_context(socket.create_connection(("127.0.0.1", pages.port), timeout=WAIT))
            sock.sendall(b"" if n % 2 else b"POST /login HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
        there.request("GET", "/metrics")
        assert b"gateway_gate_up 1.0" in there.getresponse().read()
        assert pages.scan("in", "DAY-en")["verdict"] == "granted"
    assert ask(pages, "GET", "/health").status == 200
