"""What a display says by itself, in the five languages; what it says of a verdict comes with the verdict.

Pure. Each is a heading, which is read from two metres, and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Kind = Literal["idle", "closed", "free", "out"]

_STANDING: Mapping[str, Mapping[Kind, tuple[str, str]]] = {
    "en": {
        "idle": ("Scan here", "Hold your card or code to the scanner."),
        "closed": ("Closed", "Please use another lane."),
        "free": ("Free passage", "Please go through."),
        "out": ("Out of service", "Please use another lane, or ask at the desk."),
    },
    "de": {
        "idle": ("Hier scannen", "Karte oder Code an den Leser halten."),
        "closed": ("Geschlossen", "Bitte einen anderen Durchgang benutzen."),
        "free": ("Freier Durchgang", "Bitte durchgehen."),
        "out": ("Außer Betrieb", "Bitte einen anderen Durchgang benutzen oder an der Kasse melden."),
    },
    "sv": {
        "idle": ("Skanna här", "Håll kortet eller koden mot läsaren."),
        "closed": ("Stängt", "Använd en annan passage."),
        "free": ("Fri passage", "Gå igenom."),
        "out": ("Ur funktion", "Använd en annan passage eller fråga i kassan."),
    },
    "nb": {
        "idle": ("Skann her", "Hold kortet eller koden mot leseren."),
        "closed": ("Stengt", "Bruk en annen passasje."),
        "free": ("Fri passasje", "Gå gjennom."),
        "out": ("Ute av drift", "Bruk en annen passasje, eller spør i skranken."),
    },
    "fr": {
        "idle": ("Scannez ici", "Présentez votre carte ou votre code au lecteur."),
        "closed": ("Fermé", "Prenez un autre passage."),
        "free": ("Passage libre", "Vous pouvez passer."),
        "out": ("Hors service", "Prenez un autre passage ou adressez-vous à l'accueil."),
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


def standing(kind: Kind, language: str) -> tuple[str, str]:
    """Heading and text of a lane that nobody is at. ``language``: one of ``messages.LANGUAGES``."""
    return _STANDING[language][kind]


def guests(count: int, language: str) -> str:
    """That so many guests may follow; "" where none may."""
    one, many = _GUEST[language]
    return "" if count < 1 else one if count == 1 else many.format(n=count)
