"""How a conformance run has things done at the central that no gateway can do: by admin API or by a hook.

A vendor's server has no admin API of ours. It takes part with files and programs of its own: enrolment codes
in a file, and a program that does what it is told in words. What it cannot do is reported as not tested.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.central.adminclient import Admin, CentralError, name
from gateway.central.conformance.report import Untested

PREFIX = "conformance-"
CANNOT = 3
"""Exit status of a hook for what it cannot do."""
_HOOK_S = 120


@dataclass(slots=True)
class Means:
    """What can be done at the central in this run."""

    venue: str
    admin: Admin | None = None
    codes: list[str] = field(default_factory=list)
    """Enrolment codes that were made beforehand."""
    change_command: list[str] = field(default_factory=list)
    """Makes any change to any record."""
    hook: list[str] = field(default_factory=list)
    """Does what it is told in words; see docs/protocol.md."""
    _put: dict[tuple[str, str], None] = field(default_factory=dict)

    def code(self, gateway: str) -> str:
        """An enrolment code: for this gateway with the admin API, else the next of the file."""
        if self.admin is not None:
            path = f"venues/{name(self.venue)}/enrolment-codes"
            return str(self.admin.call("POST", path, {"gateway": gateway, "ttl_s": 3600})["code"])
        if not self.codes:
            raise Untested("needs one more line in the file of --enrolment-code")
        return self.codes.pop(0)

    def records(self, *records: dict[str, Any]) -> None:
        """Put these into the venue, as an NDJSON load does."""
        self._load(records)
        for record in records:
            self._put[record["kind"], record["id"]] = None

    def _load(self, records: Sequence[dict[str, Any]]) -> None:
        lines = b"".join(orjson.dumps(record) + b"\n" for record in records)
        if self.admin is not None:
            self.admin.call("POST", f"venues/{name(self.venue)}/records", [lines])
        else:
            self._told("records", standard_input=lines)

    def delete(self, *names: tuple[str, str]) -> None:
        """Take these records out of the venue."""
        self._load([{"kind": kind, "id": id_, "deleted": True} for kind, id_ in names])
        for kind, id_ in names:
            self._put.pop((kind, id_), None)

    def has_put(self, kind: str, id_: str) -> bool:
        return (kind, id_) in self._put

    def change(self, count: int) -> None:
        """Any change that the venue's gateways are told of."""
        if self.admin is None and self.change_command:
            _run(self.change_command, b"")
        else:
            self.records({"kind": "holder", "id": f"{PREFIX}change", "notice": f"change {count}"})

    def open(self, gateway: str, lane: str, ttl_s: int) -> None:
        """The command ``open`` for a gateway."""
        if self.admin is not None:
            body = {"do": "open", "lane": lane, "ttl_s": ttl_s}
            self.admin.call("POST", f"gateways/{name(gateway)}/commands", body)
        else:
            self._told("open", gateway, lane, str(ttl_s))

    def renew_token(self, gateway: str) -> None:
        """Have the next answer to this gateway carry a new token."""
        if self.admin is not None:
            self.admin.call("POST", f"gateways/{name(gateway)}/token", {})
        else:
            self._told("token", gateway)

    def revoke(self, gateway: str) -> None:
        if self.admin is not None:
            self.admin.call("POST", f"gateways/{name(gateway)}/revoke", {})
        else:
            self._told("revoke", gateway)

    def announce_key(self) -> None:
        """A new key that is not used yet."""
        if self.admin is not None:
            self.admin.call("POST", "keys", {})
        else:
            self._told("announce-key")

    def use_key(self, id_: str) -> None:
        """Sign with this key for whoever knows it."""
        if self.admin is not None:
            self.admin.call("POST", f"keys/{name(id_)}/use", {})
        else:
            self._told("use-key", id_)

    def retire_key(self, id_: str) -> None:
        if self.admin is not None:
            self.admin.call("POST", f"keys/{name(id_)}/retire", {})
        else:
            self._told("retire-key", id_)

    def condition(self, gateway: str) -> Any:
        """What the operator is shown of a gateway."""
        if self.admin is None:
            raise Untested("needs --admin-token: only an operator sees it")
        rows = self.admin.call("GET", "gateways")["gateways"]
        return next((row["condition"] for row in rows if row["gateway"] == gateway), None)

    def kept_events(self, gateway: str, epoch: int) -> list[dict[str, Any]]:
        """What the central has of an epoch."""
        if self.admin is None:
            raise Untested("needs --admin-token: only an operator sees it")
        since = "0"
        found: list[dict[str, Any]] = []
        while True:
            query = {"gateway": gateway, "since": since, "limit": 1000}
            page = self.admin.call("GET", "events", query=query)
            if not page["events"]:
                return found
            found += [row for row in page["events"] if row.get("epoch") == epoch]
            since = page["next"]

    def clean(self) -> None:
        """Take out every record that is still there."""
        if self._put:
            self.delete(*self._put)

    def _told(self, *words: str, standard_input: bytes = b"") -> None:
        if not self.hook:
            raise Untested(f"needs --admin-token, or a --hook that can do: {words[0]}")
        if _run([*self.hook, *words], standard_input, cannot=CANNOT) == CANNOT:
            raise Untested(f"the hook cannot do: {words[0]}")


def command_of(text: str | None) -> list[str]:
    try:
        return shlex.split(text or "")
    except ValueError as error:
        raise CentralError(f"{text}: is no command line: {error}") from None


def _run(command: list[str], standard_input: bytes, *, cannot: int = 0) -> int:
    try:
        done = subprocess.run(
            command,
            input=standard_input,
            stdout=subprocess.DEVNULL,
            timeout=_HOOK_S,
            check=False,
            env=os.environ,
        )
    except OSError as error:
        raise CentralError(f"{command[0]}: {error.strerror}; name a program that can be run") from None
    except subprocess.TimeoutExpired:
        raise CentralError(f"{command[0]} was not done after {_HOOK_S} s") from None
    if done.returncode not in (0, cannot):
        raise CentralError(
            f"{' '.join(command)} ended with status {done.returncode}; what it said stands above"
        )
    return done.returncode
