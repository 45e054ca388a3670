"""Who answers: a person at a terminal, or a file. Both take the dialogue's questions, one at a time."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import sys
import termios
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway.configkeys import Wrong
from gateway.setup.dialogue import Choice, Given, Text, Yes


class Abandoned(Exception):
    """Nobody answers any more; ``str()`` says what happened."""


class AnswersError(Exception):
    """The file of answers cannot be used; the message names file and key."""


def _put(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


class Terminal:
    """Asks a person, in plain lines: over ssh, on a serial console, from a pipe.

    Lines are read from the descriptor itself, so that nothing of what is typed ahead is lost to a buffer
    when somebody else waits for the same descriptor.
    """

    def __init__(self, fd: int = 0) -> None:
        self.fd = fd
        self._typed = b""

    def say(self, text: str) -> None:
        _put(f"{text}\n")

    def finish(self) -> None:
        """All questions were asked."""

    def ask(self, question: Text | Yes | Choice | Given) -> Any:
        """Asks until the answer can be used. Raises Abandoned at the end of the input."""
        match question:
            case Given():
                return None
            case Yes(prompt=prompt, default=default):
                return self._yes(prompt, bool(default))
            case Choice(prompt=prompt, options=options, default=default):
                return self._choice(prompt, options, default)
            case Text():
                return self._text(question)

    def _yes(self, prompt: str, default: bool) -> bool:
        while True:
            line = self._line(f"{prompt}? [{'Y/n' if default else 'y/N'}] ").strip().lower()
            if not line:
                return default
            if line in ("y", "yes", "n", "no"):
                return line[0] == "y"
            self.say("Please answer y or n.")

    def _choice(self, prompt: str, options: tuple[str, ...], default: int) -> int:
        self.say(f"{prompt}?")
        for number, option in enumerate(options, 1):
            self.say(f"  {number}  {option}")
        while True:
            line = self._line(f"Number [{default + 1}] ").strip()
            if not line:
                return default
            if re.fullmatch(r"\d{1,3}", line) and 1 <= int(line) <= len(options):
                return int(line) - 1
            self.say(f"Please give a number from 1 to {len(options)}.")

    def _text(self, question: Text) -> object:
        default = f" [{question.default}]" if question.default is not None else ""
        while True:
            line = self._line(f"{question.prompt}{default}: ", secret=question.secret).strip()
            if not line and question.default is not None:
                line = question.default
            try:
                return question.read(line)
            except Wrong as wrong:
                self.say(f"That {wrong.what}" + (f"; {wrong.remedy}." if wrong.remedy else "."))

    def _line(self, prompt: str, secret: bool = False) -> str:
        _put(prompt)
        with self._hidden() if secret else contextlib.nullcontext():
            while (line := self.take()) is None:
                select.select([self.fd], [], [])
        if secret:
            self.say("")
        return line

    def take(self) -> str | None:
        """A line, if one is there; otherwise waits for the next bytes and takes them. Raises Abandoned."""
        if b"\n" not in self._typed:
            if not select.select([self.fd], [], [], 0)[0]:
                return None
            data = os.read(self.fd, 4096)
            if not data:
                raise Abandoned("the input has ended")
            self._typed += data
        line, newline, rest = self._typed.partition(b"\n")
        if not newline:
            return None
        self._typed = rest
        return line.decode(errors="replace")

    @contextlib.contextmanager
    def _hidden(self) -> Iterator[None]:
        """No echo, where the input is a terminal."""
        try:
            before = termios.tcgetattr(self.fd)
        except termios.error:
            yield
            return
        without = before.copy()
        without[3] &= ~termios.ECHO
        termios.tcsetattr(self.fd, termios.TCSAFLUSH, without)
        try:
            yield
        finally:
            termios.tcsetattr(self.fd, termios.TCSADRAIN, before)


class Answers:
    """Answers from a file (TOML, or JSON by its name), by the keys of the questions.

    What has a default may be left out; what has none must be there. What nobody asked for is a fault too:
    a slip of the pen never leaves a default in force.
    """

    def __init__(self, path: Path) -> None:
        self._source = str(path)
        try:
            text = path.read_text(encoding="utf-8")
            found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except OSError as error:
            raise AnswersError(f"{path}: cannot be read ({error.strerror})") from None
        except ValueError as error:
            kind = "JSON" if path.suffix == ".json" else "TOML"
            raise AnswersError(f"{path}: is not valid {kind} ({error})") from None
        if not isinstance(found, dict):
            raise AnswersError(f"{path}: must hold a table of answers")
        self._answers: dict[str, Any] = found
        lanes = found.get("lane")
        if isinstance(lanes, list) and lanes:
            found.setdefault("lanes", len(lanes))
        # These are leave for what may not be the case at every gate.
        self._used = {"replace", "stop"}

    def say(self, text: str) -> None:
        _put(f"{text}\n")

    def ask(self, question: Text | Yes | Choice | Given) -> Any:
        """Raises AnswersError, which names the key."""
        key = question.key
        found, value = self._look(key)
        if not found:
            return self._default(question)
        self._used.add(key)
        match question:
            case Given():
                return value
            case Yes():
                if not isinstance(value, bool):
                    raise self._wrong(key, "must be true or false")
                return value
            case Choice(options=options):
                if value not in options:
                    raise self._wrong(key, f"must be one of: {'; '.join(options)}")
                return options.index(value)
            case Text(read=read):
                try:
                    return read(value)
                except Wrong as wrong:
                    shown = "cannot be used" if question.secret else wrong.what
                    raise self._wrong(key, f"{shown}; {wrong.remedy}" if wrong.remedy else shown) from None

    def finish(self) -> None:
        """Raises AnswersError for answers that nobody asked for."""
        unused = sorted(key for key in self._leaves("", self._answers) if not self._was_used(key))
        if unused:
            raise AnswersError(
                f"{self._source}: {', '.join(unused)}: nothing asks for that here; remove it, or correct its "
                "name; nothing was changed"
            )

    def _default(self, question: Text | Yes | Choice | Given) -> Any:
        match question:
            case Text(default=str(default), read=read):
                try:
                    return read(default)
                except Wrong as wrong:
                    raise self._wrong(question.key, f"is missing, and its default {wrong.what}") from None
            case Yes(default=bool(default)):
                return default
            case Given(what=what):
                raise self._wrong(question.key, f"is missing; it must be {what}")
        raise self._wrong(question.key, f"is missing; it answers: {question.prompt}?")

    def _wrong(self, key: str, what: str) -> AnswersError:
        return AnswersError(f"{self._source}: {key}: {what}; nothing was changed")

    def _look(self, key: str) -> tuple[bool, Any]:
        value: Any = self._answers
        for name, number in re.findall(r"(\w+)|\[(\d+)\]", key):
            try:
                value = value[name] if name else value[int(number)]
            except (KeyError, IndexError, TypeError):
                return False, None
        return True, value

    def _leaves(self, where: str, value: Any) -> Iterator[str]:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                yield from self._leaves(f"{where}.{name}" if where else name, inner)
        elif isinstance(value, list) and value:
            for number, inner in enumerate(value):
                yield from self._leaves(f"{where}[{number}]", inner)
        else:
            yield where

    def _was_used(self, leaf: str) -> bool:
        return any(leaf == key or leaf.startswith((f"{key}.", f"{key}[")) for key in self._used)
