"""``python -m tests.screenshots FOLDER``: the pictures in docs/, taken of real pages in a real browser."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.browser import Browser
from tests.e2e.rig import Site, Zygote
from tests.pages_rig import Pages


def take(folder: Path, work: Path) -> None:
    """Take them all, into the folder."""
    zygote, sites = Zygote(), []

    def make(*tables: Any) -> Site:
        sites.append(Site(work, zygote, *tables))
        return sites[-1]

    pages, browser = Pages(make), Browser(work)
    try:
        display = browser.tab(800, 480)

        def shot(name: str) -> None:
            time.sleep(0.5)  # the animation of a new verdict
            display.screenshot(folder / f"display-{name}.png")

        def show(languages: str, kind: str, text: str) -> None:
            display.go(f"{pages.url}/display/north?languages={languages}")
            display.until(pages.shows(kind, text))

        show("sv,en", "idle", "Skanna")
        shot("idle")
        pages.scan("in", "FAM-de")
        display.until(pages.shows("welcome", "Willkommen"))
        shot("welcome")
        pages.scan("in", "DAY-fr")
        pages.scan("in", "DAY-fr")
        display.until(pages.shows("refused", "entrées"))
        shot("refused")
        pages.scan("in", "LOST")
        pages.site.call("lane", lane="north", state="closed")
        show("nb,en", "refused", "")
        display.until(pages.shows("closed", "Stengt"))
        shot("closed")
        pages.site.call("lane", lane="north", state="free")
        show("fr,en", "free", "Passage")
        shot("free")
        pages.site.call("lane", lane="north", state="normal")
        pages.site.call("lane", lane="south", state="closed")
        phone = browser.tab(390, 844, phone=True)
        phone.go(pages.url)
        phone.until("document.querySelector('#verdicts tr')")
        token = pages.token()
        phone.js(f"document.getElementById('token').value = '{token}'")
        phone.js("document.querySelector('#login button').click()")
        phone.until("document.querySelector('.acts')")
        phone.screenshot(folder / "status.png", whole=True)
        phone.close()
        pages.site.kill()
        show("en,de", "out", "Out of service")
        shot("out")
    finally:
        browser.close()
        for site in sites:
            site.close()
        zygote.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        take(Path(sys.argv[1]), Path(made))
