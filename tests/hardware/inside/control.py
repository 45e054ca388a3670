"""The gate's control socket, spoken raw as docs/control.md says: a command takes seconds to start in here."""

import json
import socket
from typing import Any


def ask(call: str, path: str = "/var/lib/gateway/admin.sock", patience: float = 20, **args: Any) -> Any:
    """The result of one call. Raises what the gate answered instead, or OSError where none listens."""
    with socket.socket(socket.AF_UNIX) as gate:
        gate.settimeout(patience)
        gate.connect(path)
        lines = gate.makefile("rw")
        lines.readline()
        lines.write(json.dumps({"id": 1, "call": call, **args}) + "\n")
        lines.flush()
        answer = json.loads(lines.readline())
    if not answer["ok"]:
        raise RuntimeError(f"{answer['code']}: {answer['error']}")
    return answer["result"]


def up(path: str = "/var/lib/gateway/admin.sock") -> bool:
    """Whether a gate answers there."""
    try:
        ask("status", path)
    except (OSError, ValueError):
        return False
    return True
