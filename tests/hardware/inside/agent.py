"""The host's hands in the guest: commands, and the virtual devices. As root, on Debian's own Python alone.

Asked ``{"id":1,"run":["sh","-c","…"],"input":null,"timeout":60}`` it runs a program; asked
``{"id":2,"call":"keyboard.type","args":{…}}`` it calls a function of a module beside this file,
which keeps its devices for as long as the guest is on. Each request has a thread of its own.
"""

import importlib
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import wire


def run(request: dict[str, Any]) -> dict[str, Any]:
    given = request.get("input")
    try:
        done = subprocess.run(
            request["run"],
            input=None if given is None else given.encode(),
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            timeout=request.get("timeout", 60),
        )
    except subprocess.TimeoutExpired as late:
        out, err = late.stdout or b"", late.stderr or b""
        return {"code": None, "out": out.decode(errors="replace"), "err": err.decode(errors="replace")}
    return {
        "code": done.returncode,
        "out": done.stdout.decode(errors="replace"),
        "err": done.stderr.decode(errors="replace"),
    }


def answer(request: dict[str, Any]) -> None:
    try:
        if "run" in request:
            result: Any = run(request)
        else:
            module, _, name = request["call"].partition(".")
            result = getattr(importlib.import_module(module), name)(**request.get("args", {}))
        wire.say({"id": request["id"], "result": result})
    except BaseException:
        wire.say({"id": request["id"], "fault": traceback.format_exc()})


wire.say({"stream": "agent", "up": True})
for asked in wire.lines():
    threading.Thread(target=answer, args=(asked,), daemon=True).start()
