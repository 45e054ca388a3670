"""The pages in a real Chromium: they can be read, follow the gate, come back, and keep other sites out."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gateway.messages import _TEXTS, LANGUAGES, standing
from gateway.sync import words
from tests.browser import Browser
from tests.e2e.rig import Site, until
from tests.pages_rig import SECRET, Pages

SCREENS = ((800, 480), (480, 800), (1280, 720))
"""The small screen for a Pi, the same upright, and a larger one."""
FITS = """(() => {
  const inside = (b) => b.left >= 0 && b.top >= 0 && b.right <= innerWidth && b.bottom <= innerHeight;
  const parts = [...document.querySelectorAll('#words p')];
  const drawn = (svg) => svg.getBoundingClientRect().width;
  const symbols = [...document.querySelectorAll('#symbol svg')].filter(drawn);
  const size = (p) => parseFloat(getComputedStyle(p).fontSize) * 100 / Math.min(innerWidth, innerHeight);
  return {
    out: parts.filter((p) => !inside(p.getBoundingClientRect()) || p.scrollWidth > p.clientWidth + 1)
      .map((p) => p.textContent),
    symbols: symbols.map((svg) => svg.classList[0]),
    symbol: symbols.every((svg) => inside(svg.getBoundingClientRect())),
    heading: Math.min(...parts.filter((p) => p.className === 'heading' && !p.closest('.other')).map(size)),
    least: Math.min(...parts.map(size)),
  };
})()"""
"""What of the display is not to be seen whole, and how high letters are, in hundredths of the screen."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One for all tests of this file."""
    made = Browser(tmp_path_factory.mktemp("chromium"))
    yield made
    made.close()


@pytest.fixture
def pages(site: Callable[..., Site]) -> Pages:
    return Pages(site)


def test_everything_that_is_said_fits_the_screen(pages: Pages, browser: Browser) -> None:
    """Each message in each language with name and hint, and each standing of a lane, is seen whole on each
    screen, with its own shape, in letters that can be read from two metres."""
    for width, height in SCREENS:
        tab = browser.tab(width, height)
        tab.go(f"{pages.url}/display/north")
        tab.until(pages.shows("idle"))
        told = []
        for language in LANGUAGES:
            for key, text in _TEXTS[language].items():
                if key.startswith("display_"):
                    continue
                # The longest that can stand for the placeholders, in French.
                when = "le mercredi 23 septembre 2027 à 10:00" if "{when}" in text else ""
                text = text.replace("{when}", when).replace("{guest}", "12").replace("{left}", "120")
                welcome = key.startswith(("granted", "goodbye"))
                hint = words.guests(2, language) if key in ("granted", "granted_guest") else ""
                name = "Fördermitgliedschaft für Familien" if hint else None
                kind = "welcome" if welcome else "refused"
                told.append(
                    {
                        "kind": kind,
                        "language": language,
                        "text": text,
                        "name": name,
                        "hint": hint,
                        "for_ms": 1e6,
                    }
                )
            for kind in ("idle", "closed", "free", "out"):
                texts = [
                    {"language": each, "heading": words.heading(kind, each), "text": standing(kind, each, {})}
                    for each in dict.fromkeys((language, "en"))
                ]
                told.append({"kind": kind, "texts": texts})
        show = "verdict = null; take({ ...each, version: standing.version });"
        found = tab.js(f"{json.dumps(told)}.map((each) => {{ {show} return {FITS} }})")
        assert len(found) == len(told) > 100
        for each, seen in zip(told, found, strict=True):
            assert not seen["out"], (width, height, each)
            assert seen["symbols"] == [each["kind"]]
            assert seen["symbol"], (width, height, each)
            assert seen["heading"] >= 8, (width, height, each, seen)
            assert seen["least"] >= 4, (width, height, each, seen)
        assert tab.complaints() == []
        tab.close()


def test_the_display_follows_the_gate(pages: Pages, browser: Browser) -> None:
    """Welcome with the product's name, refused, back to the lane as it is after some seconds; closed and
    free; a gate that is gone, and a sync that is gone, whose displays come back by themselves."""
    tab = browser.tab(800, 480)
    tab.go(f"{pages.url}/display/north")
    tab.until(pages.shows("idle", "Hier scannen"))
    pages.scan("in", "FAM-fr")
    tab.until(pages.shows("welcome", "Famille"))
    tab.until(pages.shows("welcome", "2 invités peuvent vous suivre"))
    pages.scan("in", "FAM-fr")
    tab.until(pages.shows("welcome", "Un invité peut vous suivre"))
    assert tab.js("document.querySelector('#words p').lang") == "fr"
    pages.scan("in", "LOST")
    tab.until(pages.shows("refused", "als verloren gemeldet"))
    pages.scan("in", "DAY-sv")
    tab.until(pages.shows("welcome", "Välkommen."))
    assert not any(
        secret in tab.js("document.documentElement.outerHTML") for secret in (*SECRET, "DAY-", "Cday")
    )
    tab.until(pages.shows("idle", "Hier scannen"))
    pages.site.call("lane", lane="north", state="closed")
    tab.until(pages.shows("closed", "Geschlossen"))
    pages.site.call("lane", lane="north", state="free")
    tab.until(pages.shows("free", "Bitte durchgehen"))
    pages.site.call("lane", lane="north", state="normal")
    tab.until(pages.shows("idle"))
    pages.sync.kill()
    tab.until("!document.getElementById('alone').hidden")
    assert tab.js(pages.shows("idle"))
    pages.start_sync()
    tab.until("document.getElementById('alone').hidden")
    pages.site.kill()
    tab.until(pages.shows("out", "Außer Betrieb"))
    pages.site.start()
    tab.until(pages.shows("idle"))
    pages.scan("in", "DAY-nb")
    tab.until(pages.shows("welcome", "Velkommen"))
    assert tab.complaints() == []
    tab.close()


def test_the_status_page_on_a_phone(pages: Pages, browser: Browser) -> None:
    """Everything is on it and fits the width; a wrong token does nothing; after the login a lane is opened
    with one press and set free with two; the session survives a reload and ends with the logout."""
    token = pages.token("anna")
    tab = browser.tab(390, 844, phone=True)
    tab.go(f"{pages.url}/")
    tab.until("document.getElementById('live').textContent === '✓ live'")
    pages.scan("in", "FAM-de")
    pages.scan("in", "LOST")
    tab.until("document.querySelectorAll('#verdicts tr').length === 2")
    text = tab.text()
    for shown in (
        "north",
        "south",
        "✓ normal",
        "scanner-in",
        "✗ revoked",
        "lost",
        "✓ granted",
        "hall",
        "none configured",
    ):
        assert shown in text, text
    for hidden in (*SECRET, "FAM-", "LOST", "Cfamily", "Hfamily", "Efamily", "Clost"):
        assert hidden not in tab.js("document.documentElement.outerHTML")
    assert tab.js("document.documentElement.scrollWidth <= innerWidth")
    assert not tab.js("document.querySelector('.acts')")

    def log_in(with_: str) -> None:
        tab.js(f"document.getElementById('token').value = {json.dumps(with_)}")
        tab.js("document.querySelector('#login button').click()")

    def press(lane: str, start: str) -> None:
        tab.js(
            f"[...document.querySelectorAll('[data-lane={lane}] button')]"
            f".find((each) => each.textContent.startsWith('{start}')).click()"
        )

    log_in("wrong")
    tab.until("document.getElementById('refused').textContent.includes('no operator has this token')")
    log_in(token)
    tab.until("document.querySelectorAll('.acts').length === 2")
    assert "Logged in as anna" in tab.text()
    assert token not in tab.js(
        "document.documentElement.outerHTML + document.cookie + JSON.stringify(localStorage)"
    )
    press("north", "Open once")
    tab.until("document.getElementById('did').textContent === '✓ north is opened'")
    pages.site.pulses(1 + 1)  # and the family's
    tab.js("document.querySelector('#lanes').dataset.old = 'page'")
    press("south", "Set free")
    tab.until("document.querySelector('[data-lane=south]').textContent.includes('sure?')")
    assert pages.site.call("status")["lanes"][1]["state"] == "normal"
    press("south", "Set free")
    tab.until("document.querySelector('[data-lane=south] b').textContent === '▪ free'")
    assert pages.site.call("status")["lanes"][1]["state"] == "free"
    tab.call("Page.reload")
    tab.until(
        "!document.querySelector('#lanes').dataset.old && document.querySelectorAll('.acts').length === 2"
    )
    pages.site.boards["north"].unplug()
    tab.until("document.querySelector('[data-lane=north] b').textContent === '✗ fault'")
    tab.js("document.getElementById('logout').click()")
    tab.until("!document.querySelector('.acts')")
    pages.site.written()
    by = [(event["kind"], event.get("by")) for event in pages.site.events() if "by" in event]
    assert by == [("open", "operator:anna"), ("lane", "operator:anna")]
    pages.site.kill()
    tab.until("document.getElementById('live').textContent.includes('does not answer')")
    assert tab.complaints() == []
    tab.close()


class _Evil(BaseHTTPRequestHandler):
    """A site of somebody else, whose page tries everything at once."""

    target = ""

    def do_GET(self) -> None:
        page = f"""<!doctype html><title>evil</title><body><script>
        const tried = {{}};
        const json = {{ "Content-Type": "application/json" }};
        const body = JSON.stringify({{ act: "open", lane: "north", token: "x", csrf: "x" }});
        const note = (name, promise) => promise.then(
          async (answer) => {{ tried[name] = answer.type; }}, () => {{ tried[name] = "failed"; }});
        const all = {{ method: "POST", body, credentials: "include" }};
        for (const path of ["/act", "/login", "/logout"]) {{
          note("json" + path, fetch("{self.target}" + path, {{ ...all, headers: json }}));
          note("text" + path, fetch("{self.target}" + path, {{ ...all, mode: "no-cors" }}));
        }}
        note("session", fetch("{self.target}/session", {{ credentials: "include" }}));
        note("opaque", fetch("{self.target}/session", {{ credentials: "include", mode: "no-cors" }}));
        const stream = new EventSource("{self.target}/events", {{ withCredentials: true }});
        stream.onmessage = () => {{ tried.stream = "heard"; }};
        stream.onerror = () => {{ tried.stream = "failed"; }};
        const script = document.createElement("script");
        script.src = "{self.target}/static/display.js";
        script.onload = () => {{ tried.script = "loaded"; }};
        script.onerror = () => {{ tried.script = "failed"; }};
        const frame = document.createElement("iframe");
        frame.onload = () => {{ tried.frame = "something"; }};
        frame.src = "{self.target}/";
        document.body.append(script, frame);
        </script>""".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def evil(pages: Pages) -> Iterator[str]:
    """That site. For a browser localhost is another one than 127.0.0.1."""
    _Evil.target = pages.url
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Evil)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://localhost:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_page_of_another_site_can_do_nothing(pages: Pages, browser: Browser, evil: str) -> None:
    """With an operator logged in, in the same browser: a page from elsewhere opens nothing, reads nothing,
    ends no session, and can neither use our scripts nor put our page into a frame."""
    token = pages.token()
    own = browser.tab(800, 600)
    own.go(f"{pages.url}/")
    own.until("document.getElementById('live').textContent === '✓ live'")
    own.js(f"document.getElementById('token').value = '{token}'")
    own.js("document.querySelector('#login button').click()")
    own.until("document.querySelector('.acts')")
    other = browser.tab(800, 600)
    other.go(evil)
    other.until("document.title === 'evil' && Object.keys(tried).length === 11")
    tried = other.js("tried")
    assert {tried.pop(f"json{path}") for path in ("/act", "/login", "/logout")} == {"failed"}
    for path in ("/act", "/login", "/logout"):
        assert tried.pop(f"text{path}") in ("opaque", "failed")  # sent, and refused: see below
    assert tried == {
        "session": "failed",
        "opaque": "failed",
        "stream": "failed",
        "script": "failed",
        "frame": "something",
    }
    [frame] = browser.frames()
    assert frame.js("location.href").startswith("chrome-error:")
    assert not frame.js("document.getElementById('lanes')")
    assert own.js("fetch('/session').then((answer) => answer.json())")["operator"] == "anna"
    until(lambda: 'gateway_web_refused_total{reason="cross_site"} 0.0' not in pages.metrics())
    pages.site.pulses(0)
    assert [event["kind"] for event in pages.site.events()] == []
    own.close()
    other.close()
