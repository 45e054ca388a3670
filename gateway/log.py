"""Structured logs, off the hot path: whoever logs appends to a bounded queue, one thread writes.

JSON lines where the output is not a terminal (systemd's journal), readable lines where it is. A pipe
that nobody reads may hold up the thread, never the gate: what does not fit the queue is counted and the
count is logged when there is room again.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import orjson
import structlog

_ROOM = 2000
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}


class LogWriter:
    """The thread that renders and writes. Use ``logger()`` for the logger that feeds it."""

    def __init__(self, stream: TextIO, *, json: bool) -> None:
        self._stream = stream
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._dropped = 0
        self._render = _json if json else _console(stream)
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def __call__(self, _logger: object, level: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        """The last structlog processor on the caller's side: hand over and forget."""
        if self._queue.qsize() >= _ROOM:
            self._dropped += 1
        else:
            self._queue.put({**event, "level": level})
        raise structlog.DropEvent

    def _run(self) -> None:
        while (event := self._queue.get()) is not None:
            if self._dropped and not self._queue.qsize():
                event["log_lines_dropped"], self._dropped = self._dropped, 0
            try:
                self._stream.write(self._render(event) + "\n")
                if not self._queue.qsize():
                    self._stream.flush()
            except (OSError, ValueError):
                # The reader of our log is gone (EPIPE) or the stream is closed: the gate goes on.
                self._dropped += 1

    def close(self) -> None:
        """Write what is queued, for at most a second."""
        self._queue.put(None)
        self._thread.join(timeout=1)


def _json(event: dict[str, Any]) -> str:
    return orjson.dumps(event, default=str).decode()


def _console(stream: TextIO) -> Any:
    renderer = structlog.dev.ConsoleRenderer(colors=stream.isatty() and "NO_COLOR" not in os.environ)
    return lambda event: str(renderer(None, event.get("level", "info"), event))


def start(level: str = "info", stream: TextIO | None = None) -> LogWriter:
    """Set structlog up for this process; returns the writer, to be closed at the end."""
    stream = stream or sys.stderr
    writer = LogWriter(stream, json=not stream.isatty())
    structlog.configure(
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(),
            writer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        cache_logger_on_first_use=False,
    )
    return writer


def logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger for one part of the gateway."""
    log: structlog.typing.FilteringBoundLogger = structlog.get_logger(part=name)
    return log
