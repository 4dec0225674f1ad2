"""What MkDocs does beside its own: see ``mkdocs.yml``.

The files stay where a code host shows them, and keep the links that work there. On the site the
pages of ``PAGES`` are added, a link to any other file of the repository leads to a copy of it,
equations become MathML (so that no script is fetched), and the settings are read from their
dataclasses.
"""

import dataclasses
import os
import re
import typing
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

from synq.config.fields import settings_of
from synq.config.grid import Ablation, Accept, Grid
from synq.config.model import Model
from synq.config.plan import STAGES

ROOT = Path(__file__).parents[1]

# A file of the repository: where the site has it.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "results/README.md": "artifacts.md",
    "profiles/README.md": "profiles.md",
}
# Left out by `exclude_docs`, or no page of its own.
ELSEWHERE = ("demo/",)
LINK = re.compile(r"(?P<before>\]\(|\bsrc=\")(?P<path>[^)#:\"\s]+)(?P<after>(?:#[^)\s]*)?[)\"])")
# A block with its text as it is: no link, heading or equation is looked for in it.
FENCE = re.compile(r"^(?P<mark>```+|~~~+)(?P<language>\S*)\n(?P<text>.*?)^(?P=mark)$", re.M | re.S)
INLINE = re.compile(r"\$`([^`]+)`\$")
SECTIONS = {
    "grid": Grid,
    "models.NAME": Model,
    **STAGES,
    "ablation": Ablation,
    "accept": Accept,
}
# The sections that are a command's, too.
COMMANDS = {
    "models.NAME": "fetch",
    "synthesis": "synthesize",
    "real": "collect",
    "calibration": "finetune",
    "finetune": "finetune",
    "evaluation": "evaluate",
    "test": "evaluate",
    "export": "export",
    "accept": "tables",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The decisions join the navigation by their numbers."""
    pages = sorted((ROOT / "docs/decisions").glob("*.md"))
    for section in (entry for part in config.nav for entries in part.values() for entry in entries):
        if "Decisions" in section:
            section["Decisions"] = [f"decisions/{path.name}" for path in pages]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages from outside of ``docs/``, the settings, and every other file that is linked."""
    for path, place in PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    files.append(File.generated(config, "settings.md", content=settings_page()))
    waiting = [page for page in files.documentation_pages() if page.src_uri != "settings.md"]
    while waiting:
        page = waiting.pop()
        if page.inclusion.is_excluded():
            continue
        for path in linked(source_of(page.src_uri), page.content_string):
            place = place_of(path)
            if place in files.src_uris or not (ROOT / path).is_file():
                continue
            added = _copied(config, path, place)
            files.append(added)
            if path.endswith(".md"):
                waiting.append(added)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """The page's text with links of the site and equations as MathML."""
    return "".join(
        _block(part) if isinstance(part, re.Match) else _prose(part, page.file.src_uri)
        for part in parts(markdown)
    )


def parts(markdown: str) -> Iterator["str | re.Match[str]"]:
    """The text between fenced blocks, and the blocks."""
    end = 0
    for block in FENCE.finditer(markdown):
        yield markdown[end : block.start()]
        yield block
        end = block.end()
    yield markdown[end:]


def linked(source: str, markdown: str) -> set[str]:
    """The files of the repository that a page links to, by their paths in it."""
    prose = (part for part in parts(markdown) if isinstance(part, str))
    return {_resolved(source, link["path"]) for part in prose for link in LINK.finditer(part)}


def place_of(path: str) -> str:
    """Where the site has a file of the repository."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/") and not path.removeprefix("docs/").startswith(ELSEWHERE):
        own = path.removeprefix("docs/")
        if not own.endswith(".py"):
            return own
    # Text is shown as a page, since a browser would download it.
    plain = PurePosixPath(path).suffix in (".md", ".png", ".svg", ".ipynb", ".html")
    return f"repository/{path}" if plain else f"repository/{path}.md"


def source_of(place: str) -> str:
    """The file of the repository that a page of the site is; the reverse of `place_of`."""
    for path, page in PAGES.items():
        if page == place:
            return path
    if place.startswith("repository/"):
        return place.removeprefix("repository/")
    return f"docs/{place}"


def settings_page() -> str:
    """Every setting of every section, from the dataclasses that check them."""
    lines = [
        "# Settings",
        "",
        "Every setting, from the dataclasses in `synq/config/` that check a config. The sections "
        "from `synthesis` to `test` stand at the top of a config, for all models, or below a "
        "model's name, for this one. A method changes `calibration` and `finetune`, an image set "
        "`synthesis` or `real`, and each wins over the ones before. A command has the same "
        "settings as flags, with `-` in place of `_`. The defaults here are those of the program; "
        "[config.yaml](../config.yaml) has the values of the embedded default, and explains the "
        "sections `results`, `store`, `image_sets` and `methods`.",
    ]
    for section, cls in SECTIONS.items():
        about = (cls.__doc__ or "").splitlines()[0]
        command = COMMANDS.get(section)
        shown = f" `synq {command} --help` prints this, too." if command else ""
        lines += ["", f"## {section}", "", about + shown, ""]
        lines += ["| setting | meaning | values | default |", "| --- | --- | --- | --- |"]
        for name, (field, kind) in settings_of(cls).items():
            cells = (f"`{name}`", _cell(field.metadata["text"]), _values(field, kind))
            lines.append(f"| {' | '.join(cells)} | {_default(field)} |")
    return "\n".join(lines) + "\n"


def _values(field: "dataclasses.Field[Any]", kind: Any) -> str:
    limits, listed = field.metadata, typing.get_origin(kind) is tuple
    inner = typing.get_args(kind)[0] if listed else kind
    names = {int: "whole number", float: "number", bool: "`true`, `false`", str: "text"}
    if limits["choices"]:
        found = ", ".join(f"`{choice}`" for choice in limits["choices"])
    else:
        found = "names to values" if limits["pairs"] else names[inner]
    bounds = {"above": "above", "minimum": "at least", "maximum": "at most"}
    found += "".join(
        f", {word} {limits[key]:,}" for key, word in bounds.items() if limits[key] is not None
    )
    unit = f" [{limits['unit']}]" if limits["unit"] else ""
    return _cell(("list: " if listed and not limits["pairs"] else "") + found + unit)


def _default(field: "dataclasses.Field[Any]") -> str:
    value, least = field.default, field.metadata["minimum"]
    if value is dataclasses.MISSING:
        return "required"
    # A number below the minimum stands for one that was not given.
    if value in ("", ()) or (least is not None and not isinstance(value, tuple) and value < least):
        return ""
    if isinstance(value, tuple):
        return " ".join(f"`{entry}`" for entry in value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("*", r"\*").replace("<", "&lt;")


def _resolved(source: str, path: str) -> str:
    return os.path.normpath(PurePosixPath(source).parent / path)


def _copied(config: MkDocsConfig, path: str, place: str) -> File:
    hidden = InclusionLevel.NOT_IN_NAV
    if place.endswith(".md") and not path.endswith(".md"):
        text = (ROOT / path).read_text("utf-8")
        language = PurePosixPath(path).suffix.removeprefix(".").replace("smk", "python")
        content = f"# {path}\n\n````{language}\n{text}````\n"
        return File.generated(config, place, content=content, inclusion=hidden)
    return File.generated(config, place, abs_src_path=str(ROOT / path), inclusion=hidden)


def _block(block: "re.Match[str]") -> str:
    if block["language"] != "math":
        return block[0]
    return f'<div class="math">{convert(block["text"].strip(), display="block")}</div>'


def _prose(text: str, place: str) -> str:
    source = source_of(place)

    def link(found: "re.Match[str]") -> str:
        target = place_of(_resolved(source, found["path"]))
        relative = os.path.relpath(target, PurePosixPath(place).parent)
        return found["before"] + relative + found["after"]

    text = LINK.sub(link, text)
    return INLINE.sub(lambda found: convert(found[1]), text)
