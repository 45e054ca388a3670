"""What the visitor is told: one short text for each decision, in English, German, Swedish, Norwegian
(bokmål) and French. Pure: time comes in as two local datetimes, nothing is looked up anywhere.

A text never names the holder. ``{when}`` stands for an instant in words ("today at 10:00"); the texts
are built so that such an adverb fits, which is why none says "from {when}".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from gateway.model import Decision, Text, Verdict

LANGUAGES = ("en", "de", "sv", "nb", "fr")

Kind = Literal["idle", "closed", "free", "out"]
"""How a lane stands, for a visitor; ``out`` is out of service."""

_WHEN = frozenset({"when"})
_NONE: frozenset[str] = frozenset()

MESSAGE_KEYS: Mapping[str, frozenset[str]] = {
    "granted": _NONE,
    "granted_left": frozenset({"left"}),
    "granted_grace": _NONE,
    "granted_guest": frozenset({"guest"}),
    "goodbye": _NONE,
    "malformed": _NONE,
    "unknown_credential": _NONE,
    "revoked": _NONE,
    "revoked_lost": _NONE,
    "revoked_replaced": _NONE,
    "snapshot_stale": _NONE,
    "suspended": _NONE,
    "suspended_blocked": _NONE,
    "suspended_cancelled": _NONE,
    "not_yet_valid": _WHEN,
    "not_yet_valid_undated": _NONE,
    "expired": _NONE,
    "no_right": _NONE,
    "not_at_this_time": _WHEN,
    "not_at_this_time_undated": _NONE,
    "lane_closed": _NONE,
    "lane_busy": _NONE,
    "too_soon": _WHEN,
    "too_soon_undated": _NONE,
    "limit_reached": _WHEN,
    "limit_reached_undated": _NONE,
    "passback": _NONE,
    "area_full": _NONE,
    "display_idle": _NONE,
    "display_closed": _NONE,
    "display_free": _NONE,
    "display_out": _NONE,
}
"""The keys that a venue may give its own texts for (``[messages.de]``), each with its placeholders.
``_undated`` is said where there is no instant from which it would work."""

_TEXTS: Mapping[str, Mapping[str, str]] = {
    "en": {
        "granted": "Welcome.",
        "granted_left": "Welcome. Entries left: {left}.",
        "granted_grace": "Welcome. Your card has run out: please renew it soon.",
        "granted_guest": "Welcome, guest {guest}.",
        "goodbye": "Goodbye.",
        "malformed": "This code could not be read. Please hold it to the scanner once more.",
        "unknown_credential": "This code is not known here. Please ask at the desk.",
        "revoked": "This card no longer works. Please ask at the desk.",
        "revoked_lost": "This card was reported lost. Please ask at the desk.",
        "revoked_replaced": "This card was replaced. Please use the new one.",
        "snapshot_stale": "This gate cannot check cards just now. Please ask at the desk.",
        "suspended": "Your membership or ticket is paused. Please ask at the desk.",
        "suspended_blocked": "Your account is blocked. Please ask at the desk.",
        "suspended_cancelled": "Your membership or ticket was cancelled. Please ask at the desk.",
        "not_yet_valid": "This card is not valid yet. It starts to work {when}.",
        "not_yet_valid_undated": "This card is not valid yet. Please ask at the desk.",
        "expired": "This card has run out. Please renew it at the desk.",
        "no_right": "This card does not admit you here. Please ask at the desk.",
        "not_at_this_time": "This card does not admit you at this time. Please come back {when}.",
        "not_at_this_time_undated": "This card does not admit you at this time. Please ask at the desk.",
        "lane_closed": "This lane is closed. Please use another one.",
        "lane_busy": "Please wait until the lane is free, then scan again.",
        "too_soon": "You came in only recently. You can come in again {when}.",
        "too_soon_undated": "You came in only recently. Please ask at the desk.",
        "limit_reached": "Your entries are used up. You can come in again {when}.",
        "limit_reached_undated": "Your entries are used up. Please ask at the desk.",
        "passback": "This card is already inside. Please ask at the desk.",
        "area_full": "It is full inside. Please wait until somebody leaves.",
        "display_idle": "Hold your card or code to the scanner.",
        "display_closed": "Please use another lane.",
        "display_free": "Please go through.",
        "display_out": "Please use another lane, or ask at the desk.",
    },
    "de": {
        "granted": "Willkommen.",
        "granted_left": "Willkommen. Verbleibende Eintritte: {left}.",
        "granted_grace": "Willkommen. Ihre Karte ist abgelaufen: bitte bald verlängern.",
        "granted_guest": "Willkommen, Gast {guest}.",
        "goodbye": "Auf Wiedersehen.",
        "malformed": "Der Code war nicht lesbar. Bitte noch einmal an den Leser halten.",
        "unknown_credential": "Dieser Code ist hier nicht bekannt. Bitte an der Kasse melden.",
        "revoked": "Diese Karte gilt nicht mehr. Bitte an der Kasse melden.",
        "revoked_lost": "Diese Karte wurde als verloren gemeldet. Bitte an der Kasse melden.",
        "revoked_replaced": "Diese Karte wurde ersetzt. Bitte die neue benutzen.",
        "snapshot_stale": "Dieses Tor kann gerade keine Karten prüfen. Bitte an der Kasse melden.",
        "suspended": "Mitgliedschaft oder Ticket ruht. Bitte an der Kasse melden.",
        "suspended_blocked": "Ihr Konto ist gesperrt. Bitte an der Kasse melden.",
        "suspended_cancelled": "Mitgliedschaft oder Ticket wurde beendet. Bitte an der Kasse melden.",
        "not_yet_valid": "Diese Karte gilt noch nicht. Der Einlass beginnt {when}.",
        "not_yet_valid_undated": "Diese Karte gilt noch nicht. Bitte an der Kasse melden.",
        "expired": "Diese Karte ist abgelaufen. Bitte an der Kasse verlängern.",
        "no_right": "Diese Karte gilt hier nicht. Bitte an der Kasse melden.",
        "not_at_this_time": "Diese Karte gilt nicht um diese Zeit. Bitte kommen Sie {when} wieder.",
        "not_at_this_time_undated": "Diese Karte gilt nicht um diese Zeit. Bitte an der Kasse melden.",
        "lane_closed": "Dieser Durchgang ist geschlossen. Bitte einen anderen benutzen.",
        "lane_busy": "Bitte warten, bis der Durchgang frei ist, und dann noch einmal scannen.",
        "too_soon": "Ihr letzter Eintritt war erst vor Kurzem. Der nächste ist {when} möglich.",
        "too_soon_undated": "Ihr letzter Eintritt war erst vor Kurzem. Bitte an der Kasse melden.",
        "limit_reached": "Ihre Eintritte sind verbraucht. Der nächste ist {when} möglich.",
        "limit_reached_undated": "Ihre Eintritte sind verbraucht. Bitte an der Kasse melden.",
        "passback": "Mit dieser Karte ist schon jemand drinnen. Bitte an der Kasse melden.",
        "area_full": "Es ist gerade voll. Bitte warten, bis jemand herauskommt.",
        "display_idle": "Karte oder Code an den Leser halten.",
        "display_closed": "Bitte einen anderen Durchgang benutzen.",
        "display_free": "Bitte durchgehen.",
        "display_out": "Bitte einen anderen Durchgang benutzen oder an der Kasse melden.",
    },
    "sv": {
        "granted": "Välkommen.",
        "granted_left": "Välkommen. Inträden kvar: {left}.",
        "granted_grace": "Välkommen. Kortet har gått ut: förnya det snart.",
        "granted_guest": "Välkommen, gäst {guest}.",
        "goodbye": "Hej då.",
        "malformed": "Koden gick inte att läsa. Håll den mot läsaren en gång till.",
        "unknown_credential": "Koden är inte känd här. Fråga i kassan.",
        "revoked": "Kortet gäller inte längre. Fråga i kassan.",
        "revoked_lost": "Kortet är anmält som förlorat. Fråga i kassan.",
        "revoked_replaced": "Kortet är ersatt. Använd det nya.",
        "snapshot_stale": "Grinden kan inte kontrollera kort just nu. Fråga i kassan.",
        "suspended": "Medlemskapet eller biljetten är pausad. Fråga i kassan.",
        "suspended_blocked": "Kontot är spärrat. Fråga i kassan.",
        "suspended_cancelled": "Medlemskapet eller biljetten är avslutad. Fråga i kassan.",
        "not_yet_valid": "Kortet gäller inte än. Det börjar gälla {when}.",
        "not_yet_valid_undated": "Kortet gäller inte än. Fråga i kassan.",
        "expired": "Kortet har gått ut. Förnya det i kassan.",
        "no_right": "Kortet gäller inte här. Fråga i kassan.",
        "not_at_this_time": "Kortet gäller inte vid den här tiden. Kom tillbaka {when}.",
        "not_at_this_time_undated": "Kortet gäller inte vid den här tiden. Fråga i kassan.",
        "lane_closed": "Passagen är stängd. Använd en annan.",
        "lane_busy": "Vänta tills passagen är fri och skanna igen.",
        "too_soon": "Du kom in för en kort stund sedan. Du kan komma in igen {when}.",
        "too_soon_undated": "Du kom in för en kort stund sedan. Fråga i kassan.",
        "limit_reached": "Dina inträden är förbrukade. Du kan komma in igen {when}.",
        "limit_reached_undated": "Dina inträden är förbrukade. Fråga i kassan.",
        "passback": "Kortet är redan inne. Fråga i kassan.",
        "area_full": "Det är fullt just nu. Vänta tills någon går ut.",
        "display_idle": "Håll kortet eller koden mot läsaren.",
        "display_closed": "Använd en annan passage.",
        "display_free": "Gå igenom.",
        "display_out": "Använd en annan passage eller fråga i kassan.",
    },
    "nb": {
        "granted": "Velkommen.",
        "granted_left": "Velkommen. Besøk igjen: {left}.",
        "granted_grace": "Velkommen. Kortet er utløpt: forny det snart.",
        "granted_guest": "Velkommen, gjest {guest}.",
        "goodbye": "Ha det bra.",
        "malformed": "Koden kunne ikke leses. Hold den mot leseren en gang til.",
        "unknown_credential": "Koden er ikke kjent her. Spør i skranken.",
        "revoked": "Kortet gjelder ikke lenger. Spør i skranken.",
        "revoked_lost": "Kortet er meldt mistet. Spør i skranken.",
        "revoked_replaced": "Kortet er erstattet. Bruk det nye.",
        "snapshot_stale": "Porten kan ikke kontrollere kort akkurat nå. Spør i skranken.",
        "suspended": "Medlemskapet eller billetten er satt på pause. Spør i skranken.",
        "suspended_blocked": "Kontoen er sperret. Spør i skranken.",
        "suspended_cancelled": "Medlemskapet eller billetten er avsluttet. Spør i skranken.",
        "not_yet_valid": "Kortet gjelder ikke ennå. Det begynner å gjelde {when}.",
        "not_yet_valid_undated": "Kortet gjelder ikke ennå. Spør i skranken.",
        "expired": "Kortet er utløpt. Forny det i skranken.",
        "no_right": "Kortet gjelder ikke her. Spør i skranken.",
        "not_at_this_time": "Kortet gjelder ikke på denne tiden. Kom tilbake {when}.",
        "not_at_this_time_undated": "Kortet gjelder ikke på denne tiden. Spør i skranken.",
        "lane_closed": "Denne passasjen er stengt. Bruk en annen.",
        "lane_busy": "Vent til passasjen er ledig, og skann på nytt.",
        "too_soon": "Du kom inn for kort tid siden. Du kan komme inn igjen {when}.",
        "too_soon_undated": "Du kom inn for kort tid siden. Spør i skranken.",
        "limit_reached": "Besøkene dine er brukt opp. Du kan komme inn igjen {when}.",
        "limit_reached_undated": "Besøkene dine er brukt opp. Spør i skranken.",
        "passback": "Kortet er allerede inne. Spør i skranken.",
        "area_full": "Det er fullt akkurat nå. Vent til noen går ut.",
        "display_idle": "Hold kortet eller koden mot leseren.",
        "display_closed": "Bruk en annen passasje.",
        "display_free": "Gå gjennom.",
        "display_out": "Bruk en annen passasje, eller spør i skranken.",
    },
    "fr": {
        "granted": "Bienvenue.",
        "granted_left": "Bienvenue. Entrées restantes : {left}.",
        "granted_grace": "Bienvenue. Votre carte a expiré : pensez à la renouveler.",
        "granted_guest": "Bienvenue, invité {guest}.",
        "goodbye": "Au revoir.",
        "malformed": "Ce code n'a pas pu être lu. Présentez-le encore une fois au lecteur.",
        "unknown_credential": "Ce code n'est pas connu ici. Adressez-vous à l'accueil.",
        "revoked": "Cette carte n'est plus valable. Adressez-vous à l'accueil.",
        "revoked_lost": "Cette carte a été déclarée perdue. Adressez-vous à l'accueil.",
        "revoked_replaced": "Cette carte a été remplacée. Utilisez la nouvelle.",
        "snapshot_stale": "Les cartes ne peuvent pas être vérifiées ici. Adressez-vous à l'accueil.",
        "suspended": "Votre adhésion ou billet est suspendu. Adressez-vous à l'accueil.",
        "suspended_blocked": "Votre compte est bloqué. Adressez-vous à l'accueil.",
        "suspended_cancelled": "Votre adhésion ou billet a été annulé. Adressez-vous à l'accueil.",
        "not_yet_valid": "Cette carte n'est pas encore valable. Elle le sera {when}.",
        "not_yet_valid_undated": "Cette carte n'est pas encore valable. Adressez-vous à l'accueil.",
        "expired": "Cette carte a expiré. Renouvelez-la à l'accueil.",
        "no_right": "Cette carte n'est pas valable ici. Adressez-vous à l'accueil.",
        "not_at_this_time": "Cette carte n'est pas valable à cette heure. Revenez {when}.",
        "not_at_this_time_undated": "Cette carte n'est pas valable à cette heure. Adressez-vous à l'accueil.",
        "lane_closed": "Ce passage est fermé. Prenez-en un autre.",
        "lane_busy": "Attendez que le passage soit libre, puis scannez de nouveau.",
        "too_soon": "Votre dernière entrée est toute récente. La prochaine sera possible {when}.",
        "too_soon_undated": "Votre dernière entrée est toute récente. Adressez-vous à l'accueil.",
        "limit_reached": "Vos entrées sont épuisées. La prochaine sera possible {when}.",
        "limit_reached_undated": "Vos entrées sont épuisées. Adressez-vous à l'accueil.",
        "passback": "Cette carte est déjà à l'intérieur. Adressez-vous à l'accueil.",
        "area_full": "C'est complet. Attendez que quelqu'un sorte.",
        "display_idle": "Présentez votre carte ou votre code au lecteur.",
        "display_closed": "Prenez un autre passage.",
        "display_free": "Vous pouvez passer.",
        "display_out": "Prenez un autre passage ou adressez-vous à l'accueil.",
    },
}


class _Calendar(NamedTuple):
    """How one language says an instant. Weekdays begin with Monday."""

    today: str
    tomorrow: str
    date: str
    weekdays: tuple[str, ...]
    months: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_CALENDARS: Mapping[str, _Calendar] = {
    "en": _Calendar(
        "today at {time}",
        "tomorrow at {time}",
        "on {weekday} {day} {month}{year} at {time}",
        _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
        _words(
            "January February March April May June July August September October November December",
        ),
    ),
    "de": _Calendar(
        "heute um {time} Uhr",
        "morgen um {time} Uhr",
        "am {weekday}, {day}. {month}{year}, um {time} Uhr",
        _words("Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag"),
        _words("Januar Februar März April Mai Juni Juli August September Oktober November Dezember"),
    ),
    "sv": _Calendar(
        "i dag kl. {time}",
        "i morgon kl. {time}",
        "{weekday} den {day} {month}{year} kl. {time}",
        _words("måndagen tisdagen onsdagen torsdagen fredagen lördagen söndagen"),
        _words("januari februari mars april maj juni juli augusti september oktober november december"),
    ),
    "nb": _Calendar(
        "i dag kl. {time}",
        "i morgen kl. {time}",
        "{weekday} {day}. {month}{year} kl. {time}",
        _words("mandag tirsdag onsdag torsdag fredag lørdag søndag"),
        _words("januar februar mars april mai juni juli august september oktober november desember"),
    ),
    "fr": _Calendar(
        "aujourd'hui à {time}",
        "demain à {time}",
        "le {weekday} {day} {month}{year} à {time}",
        _words("lundi mardi mercredi jeudi vendredi samedi dimanche"),
        _words("janvier février mars avril mai juin juillet août septembre octobre novembre décembre"),
    ),
}

_KEY_OF_DETAIL: Mapping[tuple[Verdict, str], str] = {
    (Verdict.REVOKED, "lost"): "revoked_lost",
    (Verdict.REVOKED, "replaced"): "revoked_replaced",
    (Verdict.SUSPENDED, "blocked"): "suspended_blocked",
    (Verdict.SUSPENDED, "cancelled"): "suspended_cancelled",
    (Verdict.LANE_CLOSED, "busy"): "lane_busy",
}


def _primary(tag: str) -> str:
    """The language of a BCP 47 tag without its region; ``no`` and ``nn`` are read as ``nb``."""
    primary = tag.replace("_", "-").partition("-")[0].strip().lower()
    return "nb" if primary in ("no", "nn") else primary


def language_of(tag: str) -> str | None:
    """The language with built-in texts that a BCP 47 tag asks for; None where there is none."""
    primary = _primary(tag)
    return primary if primary in LANGUAGES else None


def spoken(languages: Sequence[str]) -> str:
    """The language of the text that ``message`` gives for these tags, one of LANGUAGES."""
    return next((known for tag in languages if (known := language_of(tag))), "en")


def pick(text: Text, languages: Sequence[str]) -> str:
    """One text out of a language map, by preference.

    Each language in turn is sought as the exact tag, then without region; then English, then whatever
    stands first. A plain string is for every language; an empty map gives "".
    """
    if isinstance(text, str):
        return text
    exact = {tag.lower(): value for tag, value in text.items()}
    primary: dict[str, str] = {}
    for tag, value in text.items():
        if "-" not in tag:  # "de" says German before "de-CH" does, wherever it stands
            primary[_primary(tag)] = value
    for tag, value in text.items():
        primary.setdefault(_primary(tag), value)
    for wanted in (*languages, "en"):
        if (found := exact.get(wanted.lower())) is not None:
            return found
        if (found := primary.get(_primary(wanted))) is not None:
            return found
    return next(iter(text.values()), "")


def when_in_words(language: str, now: datetime, at: datetime) -> str:
    """An instant as people say it: "today at 10:00", "on Friday 27 November at 18:00".

    ``now`` and ``at`` are local to the venue; ``language`` is one of LANGUAGES. The year is said where
    it is not this one.
    """
    calendar = _CALENDARS[language]
    time = f"{at.hour:02}:{at.minute:02}"
    if at.date() == now.date():
        return calendar.today.format(time=time)
    if at.date() - now.date() == timedelta(days=1):
        return calendar.tomorrow.format(time=time)
    return calendar.date.format(
        weekday=calendar.weekdays[at.weekday()],
        day="1er" if language == "fr" and at.day == 1 else at.day,
        month=calendar.months[at.month - 1],
        year="" if at.year == now.year else f" {at.year}",
        time=time,
    )


def _key(decision: Decision, leaving: bool) -> str:
    if decision.verdict is not Verdict.GRANTED:
        return _KEY_OF_DETAIL.get((decision.verdict, decision.detail or ""), decision.verdict.value)
    if leaving:
        return "goodbye"
    if decision.guest:
        return "granted_guest"
    if "grace" in decision.flags:
        return "granted_grace"
    # Nothing is said of 0: where a card admits once a day, that would be said at every entry.
    return "granted_left" if decision.left else "granted"


def _template(key: str, own: Mapping[str, str], built_in: Mapping[str, str], dated: bool) -> str:
    if dated or MESSAGE_KEYS[key] != _WHEN:
        return own.get(key, built_in[key])
    undated = f"{key}_undated"
    text = own.get(undated) or own.get(key, "")
    return text if text and "{when}" not in text else built_in[undated]


def message(
    decision: Decision,
    languages: Sequence[str],
    own: Mapping[str, Mapping[str, str]],
    *,
    leaving: bool,
    now: datetime,
    works_at: datetime | None,
) -> str:
    """The text for the visitor (DESIGN.md 4.3).

    ``languages`` are tags in order of preference (the holder's, the venue's); English follows by
    itself. ``own`` are the venue's texts as the configuration loader checked them. ``leaving`` says that
    the point is an exit. ``now`` and ``works_at`` are local to the venue; ``works_at`` is the instant of
    the decision's detail, None where there is none.
    """
    language = spoken(languages)
    key = _key(decision, leaving)
    text = _template(key, own.get(language, {}), _TEXTS[language], works_at is not None)
    if works_at is not None and "{when}" in text:
        text = text.replace("{when}", when_in_words(language, now, works_at))
    return text.replace("{guest}", str(decision.guest)).replace("{left}", str(decision.left))


def standing(kind: Kind, language: str, own: Mapping[str, Mapping[str, str]]) -> str:
    """What a lane's display says while nobody is there. ``language``: one of LANGUAGES; ``own`` as in
    ``message``."""
    key = f"display_{kind}"
    return own.get(language, {}).get(key, _TEXTS[language][key])


def placeholder_fault(key: str, text: str) -> str | None:
    """What is wrong with the braces in a venue's own text for ``key``, one of MESSAGE_KEYS, or None."""
    allowed = MESSAGE_KEYS[key]
    known = " and ".join(f"{{{name}}}" for name in sorted(allowed)) or "none"
    for name in re.findall(r"\{([^{}]*)\}", text):
        if name not in allowed:
            return f"has the placeholder {{{name}}}; the placeholders of {key} are: {known}"
    if re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", text)):
        return f"has a brace too many; the placeholders of {key} are: {known}"
    return None
