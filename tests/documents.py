"""The project's pages as what a reader can type: blocks, commands, links and headings."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md")
PAGES = [
    *OUTSIDE,
    *("profiles/README.md", "tests/reference/README.md"),
    *sorted(
        str(path.relative_to(ROOT))
        for path in ROOT.glob("docs/**/*.md")
        if "node_modules" not in path.parts
    ),
]
PROGRAMS = ("synq", "snakemake", "pytest", "python", "pip", "make", "echo")
# A page says so in the paragraph above a block, with the reason.
NOT_RUN = re.compile(r"\bnot run here\b", re.IGNORECASE)


@dataclass(frozen=True)
class Block:
    """A block of a page: its text, the language behind its fence, and the paragraph above it."""

    page: str
    line: int
    text: str
    language: str
    above: str

    @property
    def first(self) -> str:
        return self.text.strip().partition("\n")[0].strip()

    @property
    def not_run(self) -> bool:
        return bool(NOT_RUN.search(self.above))

    @property
    def commands(self) -> list[str]:
        """Its commands, or none where it is something else."""
        lines = re.sub(r" *\\\n *", " ", self.text).splitlines()
        kept = [re.sub(r"(^|\s)#\s.*", "", line).strip() for line in lines]
        commands = [part.strip() for line in kept for part in line.split("&&") if part.strip()]
        return commands if all(_is_command(command) for command in commands) else []


def _is_command(text: str) -> bool:
    return text.split(maxsplit=1)[0] in PROGRAMS and not re.match(r"\w+ ?[:=]", text)


@cache
def tokens(page: str) -> list[Token]:
    parser = MarkdownIt("commonmark").enable("table")
    return parser.parse((ROOT / page).read_text("utf-8"))


@cache
def blocks(page: str) -> list[Block]:
    """The fenced and the indented blocks of a page, in order."""
    found, above = [], ""
    for token in tokens(page):
        if token.type == "inline":
            above = token.content
        elif token.type in ("fence", "code_block"):
            found.append(Block(page, token.map[0] + 1, token.content, token.info.strip(), above))
    return found


def everywhere() -> list[Block]:
    return [block for page in PAGES for block in blocks(page)]


def spans() -> Iterator[tuple[str, str]]:
    """Page and text of each piece of code within a line."""
    for page in PAGES:
        for token in tokens(page):
            for child in token.children or []:
                if child.type == "code_inline":
                    yield page, child.content


def links() -> Iterator[tuple[str, str]]:
    """Page and target of each link and image."""
    for page in PAGES:
        for token in tokens(page):
            for child in token.children or []:
                target = child.attrGet("href") or child.attrGet("src")
                if target:
                    yield page, str(target)


def anchors(page: str) -> set[str]:
    """The names of a page's headings in links, as code hosts make them."""
    headings = [
        after.content
        for token, after in zip(tokens(page), tokens(page)[1:], strict=False)
        if token.type == "heading_open"
    ]
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


def written(commands: list[str]) -> dict[str, str]:
    """The files that ``echo 'text' > file`` writes: name and text."""
    found = {}
    for command in commands:
        words = shlex.split(command)
        if words[0] == "echo":
            assert words[-2] == ">", command
            found[words[-1]] = " ".join(words[1:-2])
    return found
