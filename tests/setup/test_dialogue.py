"""The questions of setup and what comes of the answers, without a terminal, a device or a disk."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.configkeys import Wrong
from gateway.configload import loads
from gateway.setup.compose import compose, toml
from gateway.setup.dialogue import (
    Choice,
    Click,
    Given,
    Known,
    Plan,
    Relay,
    Say,
    ScanFor,
    Scanner,
    Text,
    Yes,
    dialogue,
)
from gateway.setup.setupcode import Learned

TWO = (
    Scanner("serial", "/dev/serial/by-id/one", "One", "/dev/ttyACM0"),
    Scanner("keyboard", "/dev/input/by-path/two", "Two", "/dev/input/event3"),
)
PORT = Relay("CH340 adapter", {"device": "/dev/serial/by-path/board"}, "/dev/ttyUSB0")
USB = Relay("relay 2 of BITFT", {"driver": "usbrelay", "board": "BITFT", "channel": 2}, "/dev/hidraw0")
PI = (("pinctrl-rp1", 54),)


class Person:
    """Answers by key; what is not said is answered with Enter. Notes what was asked."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {key.replace("__", "."): value for key, value in answers.items()}
        self.asked: list[str] = []
        self.said: list[str] = []
        self.clicked: list[dict[str, Any]] = []

    def _next(self, key: str, default: Any) -> Any:
        self.asked.append(key)
        given = self.answers.get(key, default)
        return given.pop(0) if isinstance(given, list) else given

    def answer(self, question: Any) -> Any:
        match question:
            case Text(key=key, default=default, read=read):
                return read(self._next(key, default))
            case Yes(key=key, default=default):
                return self._next(key, bool(default))
            case Choice(key=key, default=default, options=options):
                chosen = self._next(key, default)
                assert 0 <= chosen < len(options)
                return chosen
            case ScanFor(key=key, scanners=scanners):
                found = self._next(key, None)
                return None if found is None else ([s.device for s in scanners].index(found[0]), found[1])
            case Click(key=key, relay=relay):
                self.clicked.append(relay)
                return self._next(f"{key}.fault", "")
            case Say(text=text):
                self.said.append(text)
            case Given():
                return None
        return None

    def meet(self, known: Known) -> Plan:
        asking = dialogue(known)
        answer = None
        while True:
            try:
                answer = self.answer(asking.send(answer))
            except StopIteration as end:
                plan: Plan = end.value
                return plan


def test_a_raspberry_pi() -> None:
    """GPIO relay and passage contact by the chip's label, a keyboard scanner with its layout; every question
    but those that only a person can answer is answered by Enter."""
    person = Person(
        **{
            "lane[0].in.scanner": (TWO[1].device, Learned(b"x", {"layout": "de"}, ("slow",))),
            "lane[0].exit": False,
            "lane[0].relay.which": 1,
            "lane[0].relay.line": "17",
            "lane[0].relay.active_low": True,
            "lane[0].relay.click": True,
            "lane[0].passage.chip": 1,
            "lane[0].passage.line": "22",
            "central.url": "https://central.example",
            "central.ca_file": "/etc/gateway/ca.pem",
            "central.code": "K7QM-2XPD-94HV",
        }
    )
    plan = person.meet(Known(TWO, (PORT,), PI, "pi"))
    text = compose(plan, "9.9")
    config = loads(text, "gateway.toml")
    assert (config.gateway.id, str(config.gateway.data_dir)) == ("pi", "/var/lib/gateway")
    [lane] = config.lanes
    assert (lane.name, lane.relay.chip, lane.relay.line, lane.relay.active_low) == (
        "pi",
        "pinctrl-rp1",
        17,
        True,
    )
    assert person.clicked == [{"driver": "gpio", "chip": "pinctrl-rp1", "line": 17, "active_low": True}]
    assert lane.passage is not None
    assert (lane.passage.line, lane.passage.active_low, lane.passage.bias) == (22, True, "pull_up")
    assert [(reader.driver, reader.layout) for reader in config.readers] == [("keyboard", "de")]
    assert config.central is not None
    assert (config.central.url, str(config.central.ca_file)) == (
        "https://central.example",
        "/etc/gateway/ca.pem",
    )
    assert plan.code == "K7QM-2XPD-94HV"
    assert "K7QM" not in text
    assert "  Note: slow." in person.said


def test_what_is_taken_is_offered_no_more() -> None:
    """A scanner's port is no relay's; a relay opens one lane; a name stands for one thing; a lane of two that
    has a scanner for one way only is asked about that."""
    both = Relay("One's port", {"device": TWO[0].device}, TWO[0].node)
    person = Person(
        lanes="2",
        **{
            "lane[0].exit": False,
            "lane[1].exit": False,
            "lane[0].in.scanner": (TWO[0].device, Learned(b"x")),
            "lane[1].in.scanner": (TWO[1].device, Learned(b"x", layout_known=False)),
            "lane[1].in.layout": 2,
            "lane[0].relay.which": 0,
            "lane[0].relay.click": True,
            "lane[1].relay.which": [0, 1],
        },
    )
    plan = person.meet(Known(TWO, (both, USB), (), "gate"))
    assert [lane["relay"]["driver"] for lane in plan.lanes] == ["usbrelay", "memory"]
    assert "That relay opens another lane already." in person.said
    assert plan.readers[1]["layout"] == "gb"
    config = loads(compose(plan, "9.9"), "gateway.toml")
    assert [lane.name for lane in config.lanes] == ["lane-1", "lane-2"]
    assert "nothing opens yet" in compose(plan, "9.9")


def test_when_things_go_wrong() -> None:
    """No scan: a scanner by its name, or none yet. A relay whose line is the contact's is told. A layout that
    is not known leads back to the scan."""
    known = Learned(b"x", {"layout": "fr"})
    person = Person(
        **{
            "lane[0].in.scanner": [
                (TWO[1].device, Learned(b"x", layout_known=False)),
                (TWO[1].device, known),
            ],
            "lane[0].in.layout": 0,
            "lane[0].out.scanner": None,
            "lane[0].out.which": [0, 2],
            "lane[0].relay.which": [0, 1],
            "lane[0].relay.click": True,
            "lane[0].relay.fault": ["no answer", "no answer"],
            "lane[0].relay.again": [True, False],
            "lane[0].relay.silent": False,
            "lane[0].relay.line": "22",
            "lane[0].relay.unseen": True,
            "lane[0].passage.chip": 1,
        }
    )
    person.answers["lane[0].relay.click"] = [True, True, False]
    plan = person.meet(Known(TWO, (USB,), PI, "gate"))
    assert [reader["driver"] for reader in plan.readers] == ["keyboard", "stdin"]
    assert plan.readers[0]["layout"] == "fr"
    assert plan.lanes[0]["relay"] == {"driver": "gpio", "chip": "pinctrl-rp1", "line": 22}
    assert "passage" not in plan.lanes[0]
    assert any("That line is the relay's" in said for said in person.said)
    assert len(person.clicked) == 2
    assert "no scanner yet" in compose(plan, "9.9")


WRONGS: list[tuple[str, object, str]] = [
    ("id", "no rth", "letters A to Z"),
    ("lanes", "0", "from 1 to 32"),
    ("lanes", True, "from 1 to 32"),
    ("lane[0].area", "outside", "the street"),
    ("lane[0].name", "x" * 65, "at most 64"),
    ("central.url", "http://central.example", "https://"),
    ("central.url", "https://u:secret@central.example", "leave out user"),
]


@pytest.mark.parametrize(("key", "value", "says"), WRONGS)
def test_wrong_answers(key: str, value: object, says: str) -> None:
    """A wrong answer is told with what would be right, and never with a password in it."""
    person = Person(**{key: value, "lane[0].in.which": 2, "lane[0].out.which": 1, "lane[0].relay.which": 0})
    person.answers["lane[0].exit"] = False
    with pytest.raises(Wrong) as told:
        person.meet(Known(TWO[:1], (), (), "gate"))
    assert says in f"{told.value.what}; {told.value.remedy}"
    assert "secret" not in told.value.what


def test_what_setup_does_not_ask_for_stays() -> None:
    """Other keys of [gateway] and [central], [web] and [messages] are taken over; texts with quotes, control
    characters and umlauts come back as they were."""
    before = {
        "gateway": {"id": "old", "data_dir": "/srv/g", "retain_days": 60, "on_ledger_failure": "deny"},
        "central": {"url": "https://a.example", "client_cert": "/etc/c.pem"},
        "web": {"listen": "127.0.0.1:9"},
        "messages": {"de": {"granted": 'Schön "hier"'}, "en": {"goodbye": "Bye"}},
    }
    person = Person(**{"lane[0].in.which": 2, "lane[0].exit": False})
    plan = person.meet(Known(TWO[:1], (), (), "new", "/srv/g", before))
    config = loads(compose(plan, "9.9"), "gateway.toml")
    assert (config.gateway.id, config.gateway.retain_days, config.gateway.on_ledger_failure) == (
        "old",
        60,
        "deny",
    )
    assert config.central is not None
    assert str(config.central.client_cert) == "/etc/c.pem"
    assert config.web.listen == "127.0.0.1:9"
    assert config.messages == before["messages"]
    assert toml([True, 1, 0.5, "a\x7f\n", {"b c": {}}]) == '[true, 1, 0.5, "a\\u007f\\n", { "b c" = {} }]'
