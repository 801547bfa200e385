"""Checks that are transcripts: commands of programs/src/bin/transcript.rs, each with the expected answer."""

import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path

from machine import Failed


@dataclass
class Command:
    text: str
    number: int
    expected: list = field(default_factory=list)

    def wrong(self, answers, earlier):
        """Returns the fault in the answers of this command, or None.

        `earlier` has the answers of the commands before it.
        """
        if self.expected and self.expected[0][0] == "^":
            other = earlier[self.expected[0][2:]]
            differing = [pair for pair in itertools.zip_longest(other, answers, fillvalue="") if pair[0] != pair[1]]
            if not differing:
                return None
            return f"{len(differing)} answers differ, at first {differing[0][1]!r} from {differing[0][0]!r}"
        rest = list(answers)
        for place, line in enumerate(self.expected):
            mark, wanted = line[0], line[2:]
            if mark == "*":
                if place + 1 == len(self.expected):
                    return None
                following = self.expected[place + 1]
                while rest and not _fits(following, rest[0]):
                    rest.pop(0)
                continue
            if not rest:
                return f"should answer {wanted!r}"
            found = rest.pop(0)
            if not _fits(line, found):
                return f"answers {found[2:]!r}, not {wanted!r}"
        return f"answers {rest[0][2:]!r}" if rest else None


def _fits(line, found):
    if line[0] == "~":
        return re.fullmatch(line[2:], found[2:]) is not None
    return found == line


def answers(lines):
    """Returns the commands of a transcript, each with its lines of output."""
    said = []
    for line in lines:
        if line.startswith("$ "):
            said.append((line[2:], []))
        elif said:
            said[-1][1].append(line)
    return said


@dataclass
class Part:
    """The programs of one boot: units of init, then the commands."""

    steps: list = field(default_factory=list)
    commands: list = field(default_factory=list)

    def script(self):
        return "".join(f"{command.text}\n" for command in self.commands)

    def compare(self, lines):
        """Returns the differences between the output of a machine and the expected one."""
        said = answers(lines)
        wrong = []
        for command, (text, printed) in zip(self.commands, said):
            if text != command.text:
                return wrong + [f"line {command.number}: {command.text} was to run, not {text}"]
            if fault := command.wrong(printed, dict(said)):
                wrong.append(f"line {command.number}: {command.text}: {fault}")
        if len(said) < len(self.commands):
            wrong.append(f"line {self.commands[len(said)].number}: {self.commands[len(said)].text} was not reached")
        return wrong


class Check:
    """A file of checks/. Its first line is a comment: the claim that the check shows."""

    def __init__(self, path: Path):
        self.name = path.stem
        self.times = 1
        self.processors = [1]
        self.timeout = 120
        self.megabytes = 64
        self.root = "file"
        self.needs = []
        self.parts = [Part()]
        lines = path.read_text().splitlines()
        self.claim = lines[0].removeprefix("# ")
        for number, line in enumerate(lines[1:], 2):
            mark, rest = line[:1], line[2:]
            if mark in ("", "#"):
                continue
            if mark == "@":
                self._directive(path, number, rest)
            elif mark in ("=", "!", "~", "*", "^") and line[1:2] in ("", " "):
                self.parts[-1].commands[-1].expected.append(line)
            else:
                self.parts[-1].commands.append(Command(line, number))

    def _directive(self, path, number, text):
        name, _, rest = text.partition(" ")
        match name:
            case "times":
                self.times = int(rest)
            case "processors":
                self.processors = [int(word) for word in rest.split()]
            case "timeout":
                self.timeout = int(rest)
            case "disk":
                self.megabytes = int(rest)
            case "ram" | "notify" | "oneshot":
                self.parts[-1].steps.append((name, rest))
            case "scheme":
                scheme, _, command = rest.partition(" ")
                self.parts[-1].steps.append((f"scheme {scheme}", command))
            case "root":
                self.root = rest
            case "needs":
                self.needs = rest.split()
            case "reboot":
                self.parts.append(Part(list(self.parts[-1].steps)))
            case "boot":
                self.parts.append(Part())
            case _:
                raise Failed(f"{path}:{number}: unknown directive {name}.")
