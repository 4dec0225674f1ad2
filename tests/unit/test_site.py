"""The documentation as a site: ``make site`` builds it strictly; it asks nobody for anything."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import documents
import pytest
from documents import ROOT
from latex2mathml.converter import convert
from mkdocs.commands.build import build
from mkdocs.config import load_config

from synq.config.fields import settings_of
from synq.config.plan import STAGES


class Targets(HTMLParser):
    """What a page loads, links to, and can be linked to."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded, self.linked, self.names = [], [], set()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.names.add(found.get("id"))
        if tag == "a":
            self.linked.append(found.get("href") or "")
        elif tag in ("script", "img", "iframe"):
            self.loaded.append(found.get("src") or "")
        elif tag == "link" and found.get("rel") != "canonical":
            self.loaded.append(found.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def parsed(path):
    targets = Targets()
    targets.feed(path.read_text("utf-8"))
    return targets


def test_every_link_and_file_of_every_page_is_there_and_none_is_elsewhere(site):
    pages = {path: parsed(path) for path in sorted(site.rglob("*.html"))}
    assert len(pages) > len(documents.PAGES)
    for path, targets in pages.items():
        if path.name == "404.html":
            continue  # its paths are those of the site's root
        for loaded in filter(None, targets.loaded):
            assert not re.match(r"(https?:)?//", loaded), (path.name, loaded)
        for link in [*targets.loaded, *targets.linked]:
            place, name = urldefrag(unquote(link))
            if re.match(r"[a-z]+:", place):
                continue
            target = (path.parent / place).resolve() if place else path
            if target.is_dir():
                target /= "index.html"
            assert target.exists(), (path.name, link)
            if name and target in pages:
                assert name in pages[target].names, (path.name, link)


def test_every_document_has_its_page(site):
    texts = {path.stem for path in site.rglob("*.html")}
    for page in documents.PAGES:
        if page.startswith("docs/") and not page.startswith("docs/demo/"):
            assert Path(page).stem in texts


def test_every_setting_is_on_the_page_of_settings(site):
    text = (site / "settings.html").read_text("utf-8")
    for cls in STAGES.values():
        for name in settings_of(cls):
            assert f"<code>{name}</code>" in text


def test_the_equations_are_mathml_without_leftovers(site):
    texts = [block.text for block in documents.everywhere() if block.language == "math"]
    for page in documents.PAGES:
        texts += re.findall(r"\$`([^`]+)`\$", (ROOT / page).read_text("utf-8"))
    assert texts
    for text in texts:
        assert not re.search(r"<mi>(&(?!#)|\\)", convert(text)), text
    drawn = sum(page.read_text("utf-8").count("<math ") for page in site.rglob("*.html"))
    assert drawn == len(texts)
