"""What a display says by itself, in the five languages: headings, which are read from two metres, and that
guests may follow. Pure. What to do stands in ``messages``, where the venue may have its own words."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.messages import Kind

_HEADINGS: Mapping[str, Mapping[Kind, str]] = {
    "en": {
        "idle": "Scan here",
        "closed": "Closed",
        "free": "Free passage",
        "out": "Out of service",
    },
    "de": {
        "idle": "Hier scannen",
        "closed": "Geschlossen",
        "free": "Freier Durchgang",
        "out": "Außer Betrieb",
    },
    "sv": {
        "idle": "Skanna här",
        "closed": "Stängt",
        "free": "Fri passage",
        "out": "Ur funktion",
    },
    "nb": {
        "idle": "Skann her",
        "closed": "Stengt",
        "free": "Fri passasje",
        "out": "Ute av drift",
    },
    "fr": {
        "idle": "Scannez ici",
        "closed": "Fermé",
        "free": "Passage libre",
        "out": "Hors service",
    },
}

_GUEST: Mapping[str, tuple[str, str]] = {
    "en": (
        "One guest may follow: scan the same code again.",
        "{n} guests may follow: scan the same code for each.",
    ),
    "de": (
        "Ein Gast darf mitkommen: denselben Code noch einmal scannen.",
        "{n} Gäste dürfen mitkommen: denselben Code für jeden scannen.",
    ),
    "sv": (
        "En gäst får följa med: skanna samma kod en gång till.",
        "{n} gäster får följa med: skanna samma kod för var och en.",
    ),
    "nb": (
        "Én gjest kan bli med: skann samme kode én gang til.",
        "{n} gjester kan bli med: skann samme kode for hver av dem.",
    ),
    "fr": (
        "Un invité peut vous suivre : scannez de nouveau le même code.",
        "{n} invités peuvent vous suivre : scannez le même code pour chacun.",
    ),
}


def heading(kind: Kind, language: str) -> str:
    """Of a lane that nobody is at. ``language``: one of ``messages.LANGUAGES``."""
    return _HEADINGS[language][kind]


def guests(count: int, language: str) -> str:
    """That so many guests may follow; "" where none may."""
    one, many = _GUEST[language]
    return "" if count < 1 else one if count == 1 else many.format(n=count)
