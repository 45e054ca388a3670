"""A process that has imported the gateway and has no threads; every command is a fork of it.

Starting Python with all imports takes half a second here, a fork a few milliseconds, and what runs is the
same ``gateway.cli.main``. Requests are JSON lines on stdin, answers JSON lines on stdout. A child dies with
this process, so that no gate outlives its test.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from typing import Any

import gateway.central.run
import gateway.cli
import gateway.courier
import gateway.daemon
import gateway.demo
import gateway.doctor
import gateway.enrolment
import gateway.turnstile.serialrelay

_PR_SET_PDEATHSIG = 1


def _child(arguments: list[str], files: list[str], environment: dict[str, str], folder: str) -> int:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.chdir(folder)
    os.environ.update(environment)
    flags = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_APPEND, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for fd, (path, flag) in enumerate(zip(files, flags, strict=True)):
        opened = os.open(path, flag, 0o600)
        os.dup2(opened, fd)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    status = 70
    try:
        status = gateway.cli.main(arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    return status


def _connect(way: socket.socket, host: str, port: int) -> str | None:
    """Connect from where this process is, and hand the connection over; what went wrong."""
    try:
        with socket.create_connection((host, port), 10) as made:
            socket.send_fds(way, [b"c"], [made.fileno()])
    except OSError as error:
        return str(error)
    return None


def main() -> None:
    """Serve until the end of input. The argument: the fd of a socket to hand connections over by."""
    way = socket.socket(fileno=int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork of a process with threads may hang"
    gc.collect()
    gc.freeze()
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    while line := requests.readline():
        request: dict[str, Any] = json.loads(line)
        answer: Any = None
        match request.pop("do"):
            case "start":
                answer = os.fork()
                if answer == 0:
                    os._exit(_child(**request))
            case "reap":
                answer = os.waitstatus_to_exitcode(os.waitpid(request["pid"], 0)[1])
            case "run":
                done = subprocess.run(request["command"], capture_output=True, text=True, check=False)
                answer = [done.returncode, done.stdout + done.stderr]
            case "connect":
                answer = _connect(way, **request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
