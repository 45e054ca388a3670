"""The visitor's texts: every verdict in every language, instants in words, and picking a language."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import messages
from gateway.messages import LANGUAGES, MESSAGE_KEYS, language_of, message, pick, placeholder_fault
from gateway.model import Decision, Verdict

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 11, 26, 9, 30, tzinfo=BERLIN)
FRIDAY = datetime(2026, 11, 27, 18, 0, tzinfo=BERLIN)
SATURDAY = datetime(2026, 11, 28, 18, 0, tzinfo=BERLIN)
TODAY = datetime(2026, 11, 26, 10, 0, tzinfo=BERLIN)

DETAILS = {
    Verdict.REVOKED: ("lost", "revoked", "replaced"),
    Verdict.SUSPENDED: ("blocked", "suspended", "cancelled"),
    Verdict.LANE_CLOSED: (None, "busy"),
}
DATED = (Verdict.NOT_YET_VALID, Verdict.NOT_AT_THIS_TIME, Verdict.TOO_SOON, Verdict.LIMIT_REACHED)


def say(decision, *languages, own=None, leaving=False, now=NOW, works_at=None):
    return message(decision, languages, own or {}, leaving=leaving, now=now, works_at=works_at)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("verdict", Verdict)
def test_every_verdict_has_a_text(verdict, language):
    """Each verdict and detail says something in each language, with no placeholder left in it."""
    for detail in DETAILS.get(verdict, (None,)):
        for works_at in (None, TODAY, FRIDAY, SATURDAY):
            decision = Decision(verdict, detail, holder="H1-holder", credential="C1-card")
            text = say(decision, language, works_at=works_at)
            assert text.strip()
            assert "{" not in text
            assert "}" not in text
            assert "H1" not in text
            assert "C1" not in text


def test_languages_have_the_same_keys_and_placeholders():
    """Each language has each key, with the placeholders that a venue's own text may use."""
    for language in LANGUAGES:
        texts = messages._TEXTS[language]
        assert texts.keys() == MESSAGE_KEYS.keys()
        for key, text in texts.items():
            assert placeholder_fault(key, text) is None
            assert all(f"{{{name}}}" in text for name in MESSAGE_KEYS[key])


def test_languages_differ():
    """No text was left in another language."""
    for key in MESSAGE_KEYS:
        texts = [messages._TEXTS[language][key] for language in LANGUAGES]
        assert len(set(texts)) == len(LANGUAGES), key


@pytest.mark.parametrize(
    ("language", "today", "tomorrow", "friday", "first"),
    [
        (
            "en",
            "today at 10:00",
            "tomorrow at 18:00",
            "on Saturday 28 November at 18:00",
            "on Friday 1 January 2027 at 00:05",
        ),
        (
            "de",
            "heute um 10:00 Uhr",
            "morgen um 18:00 Uhr",
            "am Samstag, 28. November, um 18:00 Uhr",
            "am Freitag, 1. Januar 2027, um 00:05 Uhr",
        ),
        (
            "sv",
            "i dag kl. 10:00",
            "i morgon kl. 18:00",
            "lördagen den 28 november kl. 18:00",
            "fredagen den 1 januari 2027 kl. 00:05",
        ),
        (
            "nb",
            "i dag kl. 10:00",
            "i morgen kl. 18:00",
            "lørdag 28. november kl. 18:00",
            "fredag 1. januar 2027 kl. 00:05",
        ),
        (
            "fr",
            "aujourd'hui à 10:00",
            "demain à 18:00",
            "le samedi 28 novembre à 18:00",
            "le vendredi 1er janvier 2027 à 00:05",
        ),
    ],
)
def test_instants_in_words(language, today, tomorrow, friday, first):
    """Today, tomorrow, another day, and another year are said as people say them."""
    new_year = datetime(2027, 1, 1, 0, 5, tzinfo=BERLIN)
    for at, words in ((TODAY, today), (FRIDAY, tomorrow), (SATURDAY, friday), (new_year, first)):
        for verdict in DATED:
            assert words in say(Decision(verdict, at.isoformat()), language, works_at=at)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_month_and_weekday(language):
    """Twelve different months, seven different weekdays, none empty."""
    months = {
        messages.when_in_words(language, NOW, datetime(2028, m, 15, tzinfo=BERLIN)) for m in range(1, 13)
    }
    assert len(months) == 12
    calendar = messages._CALENDARS[language]
    assert len(set(calendar.months)) == 12
    assert len(set(calendar.weekdays)) == 7


def test_granted_has_its_shades():
    """Guest before grace before what is left; at an exit it is goodbye; nothing is said of none left."""
    granted = Verdict.GRANTED
    assert say(Decision(granted)) == "Welcome."
    assert say(Decision(granted, guest=2, flags=("grace",), left=3)) == "Welcome, guest 2."
    assert "renew" in say(Decision(granted, flags=("grace",), left=3))
    assert say(Decision(granted, left=3)) == "Welcome. Entries left: 3."
    assert say(Decision(granted, left=0)) == "Welcome."
    assert say(Decision(granted, guest=1), leaving=True) == "Goodbye."
    assert say(Decision(granted), "fr", leaving=True) == "Au revoir."


def test_details_have_their_own_text():
    """Lost, revoked and replaced differ, and so do blocked, suspended and cancelled, closed and busy."""
    for verdict, details in DETAILS.items():
        assert len({say(Decision(verdict, detail)) for detail in details}) == len(details)
    assert "new one" in say(Decision(Verdict.REVOKED, "replaced"))


def test_a_refusal_at_an_exit_is_no_goodbye():
    """An unknown code that the exit refuses is told so."""
    assert "not known" in say(Decision(Verdict.UNKNOWN_CREDENTIAL), leaving=True)


def test_preferred_language_first_that_has_texts():
    """The holder's language, else the venue's, else English; a language without texts is passed over."""
    passback = Decision(Verdict.PASSBACK)
    assert say(passback, "de-AT", "fr") == say(passback, "de")
    assert say(passback, "it", "fr") == say(passback, "fr")
    assert say(passback, "it") == say(passback, "en") == say(passback)
    assert say(passback, "nn") == say(passback, "no") == say(passback, "nb")


def test_language_of():
    """Region, script and case are ignored; no and nn are Norwegian; others are None."""
    assert [language_of(tag) for tag in ("EN-us", "de_CH", "sv-FI", "nn-NO", "no", "fr")] == [
        "en",
        "de",
        "sv",
        "nb",
        "nb",
        "fr",
    ]
    assert language_of("it") is None
    assert language_of("") is None
    assert language_of("deu") is None


def test_own_texts():
    """The venue's own text replaces that of its language and key, and nothing else."""
    own = {"de": {"not_at_this_time": "Bis {when}!", "granted_guest": "Gast {guest} bitte"}}
    early = Decision(Verdict.NOT_AT_THIS_TIME)
    assert say(early, "de", own=own, works_at=TODAY) == "Bis heute um 10:00 Uhr!"
    assert say(early, "en", own=own, works_at=TODAY) == say(early, "en", works_at=TODAY)
    assert say(Decision(Verdict.GRANTED, guest=1), "de", own=own) == "Gast 1 bitte"
    assert say(Decision(Verdict.GRANTED), "de", own=own) == "Willkommen."


def test_own_text_without_an_instant():
    """Without an instant a text with {when} gives way to the undated one, own or built in."""
    early = Decision(Verdict.TOO_SOON)
    built_in = say(early, "en")
    assert say(early, "en", own={"en": {"too_soon": "Back {when}"}}) == built_in
    assert say(early, "en", own={"en": {"too_soon": "Not so fast"}}) == "Not so fast"
    both = {"en": {"too_soon": "Back {when}", "too_soon_undated": "Wait"}}
    assert say(early, "en", own=both) == "Wait"


def test_placeholder_fault():
    """An unknown placeholder and a lone brace are named, with those that are known."""
    assert placeholder_fault("not_yet_valid", "Ab {when}") is None
    assert placeholder_fault("granted", "Hello") is None
    assert "{wann}" in (placeholder_fault("too_soon", "Ab {wann}") or "")
    assert "{when}" in (placeholder_fault("too_soon", "Ab {wann}") or "")
    assert "none" in (placeholder_fault("granted", "Hello {name}") or "")
    assert "brace" in (placeholder_fault("granted", "Hello }") or "")
    assert "brace" in (placeholder_fault("too_soon", "{{when}") or "")


def test_pick():
    """Exact tag, then primary language, then the next preference, then English, then any."""
    text = {"de-CH": "Grüezi", "de": "Hallo", "en": "Hello", "nb": "Hei"}
    assert pick(text, ["de-CH"]) == "Grüezi"
    assert pick(text, ["DE-at"]) == "Hallo"
    assert pick({"de-CH": "Grüezi", "en": "Hello"}, ["de"]) == "Grüezi"
    assert pick(text, ["no"]) == pick(text, ["nn-NO"]) == "Hei"
    assert pick({"no": "Hei", "en": "Hello"}, ["nb"]) == "Hei"
    assert pick(text, ["it", "de"]) == "Hallo"
    assert pick(text, ["it"]) == pick(text, []) == "Hello"
    assert pick({"it": "Ciao", "es": "Hola"}, ["fr"]) == "Ciao"
    assert pick("Halle", ["en"]) == "Halle"
    assert pick({}, ["en"]) == ""


@given(
    st.one_of(st.text(max_size=12), st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4)),
    st.lists(st.text(max_size=8), max_size=4),
)
def test_pick_takes_what_there_is(text, languages):
    """Whatever the tags look like, the answer is one of the texts."""
    assert pick(text, languages) in ([text] if isinstance(text, str) else [*text.values()] or [""])
