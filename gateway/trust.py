"""Which central this gate believes, and what makes an answer of it worth believing (docs/protocol.md).

The keys are pinned when the gateway is enrolled. From then on the courier may bring what it likes: only what
a pinned key signed counts, and of that only what was signed for this gateway, for this venue, and in answer
to a question that this gate has just asked. Nothing here waits for the disk: what is to be kept is given out
as bytes, for a thread to write.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import orjson

from gateway.cache.ledger_read import Reader
from gateway.cache.ledger_store import FILE as LEDGER
from gateway.host import lock_data_dir, write_durably
from gateway.model import HOUR
from gateway.sync import protocol
from gateway.sync.protocol import ProtocolError, Said

FILE = "central.json"
COMMANDS_FILE = "commands.json"
FORMAT = 1
"""Of both files. Fields that are only added do not make a new one."""
_OUTSTANDING = 8
"""Questions of a kind that may be open at a time: the courier's, and what a restart of it left behind."""
_REMEMBERED = 1000
"""Commands. Each is worth something for a day at most, and a central that sends more a day is none."""
LONGEST_TTL = 24 * HOUR
_REMEDY = "gateway enroll URL CODE writes it anew"
_DRIFT = 5000
"""One part in so many by which this machine's monotonic clock may differ from the central's."""


class TrustError(Exception):
    """central.json cannot be used; the message says what to do."""


@dataclass(slots=True)
class Pinned:
    """What is kept in central.json."""

    url: str
    gateway: str
    venue: str
    keys: dict[str, str]
    """Public keys by id, in BASE64."""
    history: str | None = None
    """Of the central's log, as it said last."""
    owed_from: int = 1
    """The first event that this central is to get."""
    new_epoch: bool = False
    """A new epoch is to begin at the next start of the gate."""
    want_snapshot: bool = False
    revoked: bool = False


@dataclass(slots=True)
class _Bound:
    """The central's clock is at most this far ahead of our monotonic one, as was learned at that time."""

    ahead: int
    learned: int


@dataclass(slots=True)
class Trust:
    """The pinned central, the questions that are open, and the commands that were obeyed."""

    data_dir: Path
    pinned: Pinned
    obeyed: list[str] = field(default_factory=list)
    _nonces: dict[str, tuple[int, str]] = field(default_factory=dict)
    _bound: _Bound | None = None

    # --- questions and answers -------------------------------------------------------------------------

    def draw(self, monotonic: int, purpose: str = protocol.CHANGES) -> str:
        """A new nonce for an answer to ``/v1/changes`` or ``/v1/events``; the oldest open question of its
        kind is given up where there are too many. Of its kind: batches that fail leave questions behind, and
        must not close the one that waits for news."""
        alike = [nonce for nonce, (_, of) in self._nonces.items() if of == purpose]
        if len(alike) >= _OUTSTANDING:
            del self._nonces[alike[0]]
        nonce = secrets.token_urlsafe(18)
        self._nonces[nonce] = (monotonic, purpose)
        return nonce

    def verify(self, purpose: str, body: bytes, signature: str) -> str:
        """The id of the pinned key that signed. For any thread. Raises ProtocolError."""
        keys = {id_: base64.b64decode(text) for id_, text in tuple(self.pinned.keys.items())}
        return protocol.verify(keys, purpose, body, signature)

    def fresh(self, said: Said, monotonic: int, purpose: str = protocol.CHANGES) -> int:
        """When the question was asked that this answers; it is closed by that.

        Each answer to ``/v1/changes`` follows on the one before, so it closes all other questions of the kind
        too: what was said to one of them may be older, and a courier could give it later.

        Raises ProtocolError where the answer is for somebody else, or for no open question.
        """
        if said.gateway != self.pinned.gateway:
            raise ProtocolError("gateway: the answer is for another gateway")
        if said.venue != self.pinned.venue:
            raise ProtocolError("venue: the answer is for another venue")
        asked, of = self._nonces.get(said.nonce, (0, ""))
        if of != purpose:
            raise ProtocolError("nonce: no such question is open here, or it was answered already")
        del self._nonces[said.nonce]
        if monotonic - asked > protocol.NONCE_LIFE:
            raise ProtocolError("nonce: the question is too old")
        if purpose == protocol.CHANGES:
            self._nonces = {n: known for n, known in self._nonces.items() if known[1] != purpose}
        self._learn(said.time, asked, monotonic)
        return asked

    def _learn(self, time: int, asked: int, monotonic: int) -> None:
        """It was signed after we asked, so the central's clock is at most ``time - asked`` ahead of ours."""
        ahead = time - asked
        if self._bound is None or ahead <= self._bound.ahead + self._widened(monotonic):
            self._bound = _Bound(ahead, monotonic)
        elif ahead - self._bound.ahead > 2 * protocol.NONCE_LIFE:
            self._bound = _Bound(ahead, monotonic)  # the central's clock was put forward

    def _widened(self, monotonic: int) -> int:
        return 0 if self._bound is None else (monotonic - self._bound.learned) // _DRIFT

    def latest(self, monotonic: int) -> int:
        """The latest that it can be by the central's clock. What has expired by then is not obeyed, however
        long a courier kept it back."""
        assert self._bound is not None, "nothing is obeyed before a first answer"
        return monotonic + self._bound.ahead + self._widened(monotonic)

    # --- what is kept ---------------------------------------------------------------------------------

    def pin_key(self, record: dict[str, Any], signer: str) -> bool:
        """A ``key`` record of a signed answer: announces one, or ends one. Whether anything changed.

        Raises ProtocolError for a record that is none, and for one that would leave no way to go on.
        """
        id_ = protocol.text(record, "id", 32)
        if not protocol.KEY_ID.fullmatch(id_):
            raise ProtocolError("id: not a key's id")
        if protocol.flag(record, "deleted"):
            if id_ == signer:
                raise ProtocolError("id: a key cannot end itself; sign with the one that follows it")
            return self.pinned.keys.pop(id_, None) is not None
        key = base64.b64encode(protocol.public_bytes(record.get("public"))).decode()
        if self.pinned.keys.get(id_, key) != key:
            raise ProtocolError("id: that key is known here with other bytes; give a new key a new id")
        if id_ not in self.pinned.keys and len(self.pinned.keys) >= protocol.MAX_KEYS:
            raise ProtocolError("public: too many keys; end the old ones first")
        known = id_ in self.pinned.keys
        self.pinned.keys[id_] = key
        return not known

    def remember(self, command: str) -> None:
        self.obeyed.append(command)
        del self.obeyed[:-_REMEMBERED]

    def save(self) -> tuple[Path, bytes]:
        """Where and what to write so that ``pinned`` is kept."""
        kept = {"format": FORMAT, **asdict(self.pinned)}
        return self.data_dir / FILE, orjson.dumps(kept, option=orjson.OPT_INDENT_2)

    def save_obeyed(self) -> tuple[Path, bytes]:
        return self.data_dir / COMMANDS_FILE, orjson.dumps(self.obeyed)


def load(data_dir: Path) -> Trust | None:
    """The pinned central, None where none is.

    Raises TrustError where the file is damaged or a newer program's: a gate that believes nobody
    goes on with what it has.
    """
    path = data_dir / FILE
    try:
        found = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, orjson.JSONDecodeError) as error:
        raise TrustError(f"{path} cannot be read ({error}); {_REMEDY}") from error
    try:
        if (format_ := found.get("format", 1)) > FORMAT:
            raise TrustError(
                f"{path} has format {format_}, this program knows {FORMAT}:"
                f" install the newer version again, or {_REMEDY}"
            )
        known = {each.name for each in fields(Pinned)}
        pinned = Pinned(**{name: value for name, value in found.items() if name in known})
        _check(pinned)
    except (TypeError, AttributeError, ProtocolError) as error:
        raise TrustError(f"{path} is damaged ({error}); {_REMEDY}") from error
    return Trust(data_dir, pinned, _load_obeyed(data_dir))


def _check(pinned: Pinned) -> None:
    if not all(isinstance(text, str) and text for text in (pinned.url, pinned.gateway, pinned.venue)):
        raise ProtocolError("url, gateway, venue: must be texts")
    if not isinstance(pinned.keys, dict) or not pinned.keys:
        raise ProtocolError("keys: there are none")
    for key in pinned.keys.values():
        protocol.public_bytes(key)
    if type(pinned.owed_from) is not int:
        raise ProtocolError("owed_from: must be a whole number")


def _load_obeyed(data_dir: Path) -> list[str]:
    with contextlib.suppress(OSError, orjson.JSONDecodeError):
        found = orjson.loads((data_dir / COMMANDS_FILE).read_bytes())
        if isinstance(found, list):
            return [id_ for id_ in found if isinstance(id_, str)]
    return []


def pinned_from(answer: dict[str, Any]) -> Pinned:
    """What an enrolment says. Raises ProtocolError, naming the field."""
    keys = answer.get("keys")
    if not isinstance(keys, list) or not 0 < len(keys) <= protocol.MAX_KEYS:
        raise ProtocolError(f"keys: must be a list of 1 to {protocol.MAX_KEYS}")
    found = {}
    for item in keys:
        if not isinstance(item, dict):
            raise ProtocolError("keys: must be objects with id and public")
        id_ = protocol.text(item, "id", 32)
        if not protocol.KEY_ID.fullmatch(id_):
            raise ProtocolError("keys: an id is 1 to 32 letters, digits, - or _")
        found[id_] = base64.b64encode(protocol.public_bytes(item.get("public"))).decode()
    return Pinned(
        url=protocol.text(answer, "url", 2000),
        gateway=protocol.text(answer, "gateway"),
        venue=protocol.text(answer, "venue"),
        keys=found,
        history=protocol.text(answer, "history", 64),
        want_snapshot=True,
    )


def succeed(pinned: Pinned, before: Pinned | None, last_seq: int) -> None:
    """``pinned`` follows ``before``: what happened under another central is not this one's to have. It is the
    same one where it has a key of it still, though its address is another, or its address, though it was set
    up anew."""
    if before is None:
        return
    same = pinned.url == before.url or not set(pinned.keys.values()).isdisjoint(before.keys.values())
    pinned.owed_from = before.owed_from if same and pinned.venue == before.venue else last_seq + 1


def _last_seq(data_dir: Path) -> int:
    path = data_dir / LEDGER
    if not path.exists():
        return 0
    with contextlib.closing(Reader(path)) as reader:
        return int(reader.rows("SELECT max(seq) FROM event")[0][0] or 0)


def pin(
    data_dir: Path, *, url: str, gateway: str, venue: str, keys: list[dict[str, str]], history: str
) -> None:
    """Pin a central where no gate runs; a gate that runs is asked (the call ``enrolled``).

    Raises DataDirError (a gate runs after all, or the folder cannot be used), ProtocolError, and
    sqlite3.Error where there is a ledger that cannot be read.
    """
    lock = lock_data_dir(data_dir)
    try:
        pinned = pinned_from(
            {"url": url, "gateway": gateway, "venue": venue, "keys": keys, "history": history}
        )
        try:
            before = load(data_dir)
        except TrustError:
            before = None
        succeed(pinned, None if before is None else before.pinned, _last_seq(data_dir))
        pinned.new_epoch = True
        write_durably(*Trust(data_dir, pinned).save())
    finally:
        os.close(lock)
