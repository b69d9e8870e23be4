"""The documents as their readers use them: blocks of code to copy, commands to type."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
README: Final = "README.md"
TASK_DEVELOPERS: Final = "docs/task-developers.md"
CLIENT_AUTHORS: Final = "docs/client-authors.md"
OPERATORS: Final = "docs/operators.md"
PERFORMANCE: Final = "docs/performance.md"

_FENCED: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE: Final = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Block:
    """A block of code in a document."""

    document: str
    language: str
    text: str

    @property
    def first_line(self) -> str:
        return self.text.strip().splitlines()[0]


def text_of(document: str) -> str:
    return (ROOT / document).read_text()


def blocks(document: str) -> list[Block]:
    return [Block(document, *found) for found in _FENCED.findall(text_of(document))]


def block(document: str, text: str) -> str:
    """The one block of a document in which this text stands."""
    (found,) = [one.text for one in blocks(document) if text in one.text]
    return found


def inline(document: str) -> list[str]:
    """What stands between single backticks."""
    return _INLINE.findall(_FENCED.sub("", text_of(document)))


def commands(shell: str) -> Iterator[list[str]]:
    """The words of each command in a piece of shell, without comments; quotes may span lines."""
    so_far = ""
    for line in shell.splitlines():
        so_far += line + "\n"
        try:
            words = shlex.split(so_far, comments=True)
        except ValueError:
            continue  # an open quote: the command goes on in the next line
        if words:
            yield words
        so_far = ""


def dane_commands(document: str) -> list[list[str]]:
    """Every `dane …` of a document, in blocks and between backticks, from its verb on."""
    shell = [one.text for one in blocks(document) if one.language == "sh"]
    found = [words for text in (*shell, *inline(document)) for words in commands(text)]
    return [words[1:] for words in found if Path(words[0]).name == "dane" and len(words) > 1]


def table(document: str, under: str) -> list[list[str]]:
    """The cells of the first table below a line, row by row, without its head."""
    lines = text_of(document).splitlines()
    lines = lines[lines.index(under) :]
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
