"""The page of all results in Chromium: from a file, without a network; skipped where none is."""

import shutil

import pytest
from browsers import browser, playwright
from small_results import RUN, another, planned, tabulated

from synq import cli

__all__ = ["browser"]  # a fixture

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("small results")]

ROWS = "#runs tbody tr:not([hidden])"
SIZES = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


@pytest.fixture(scope="module")
def address(made, tmp_path_factory):
    """The page of four runs, one of which was not evaluated."""
    root = tmp_path_factory.mktemp("page") / "results"
    shutil.copytree(made, root)
    runs = [RUN, another(root, "w2a2", top1=9.5), another(root, "w2a2", seed=1, top1=10.5)]
    tabulated(root, 5.0, runs)
    planned(root, *runs, "runs/net/w3a3/synq/seed0")
    assert cli.main(["page", str(root)]) == 0
    return f"file://{root}/index.html"


@pytest.fixture
def page(browser, address, request):
    """The page; it asks for nothing but itself, and its console stays empty."""
    width, scheme = getattr(request, "param", SIZES[0])
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    )
    opened, said, asked = context.new_page(), [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda asking: asked.append(asking.url))
    opened.goto(address)
    yield opened
    assert said == []
    assert all(url.startswith((address, "data:")) for url in asked)
    context.close()


def column(page, number):
    cells = page.locator(f"{ROWS} > :nth-child({number})").all_inner_texts()
    return [cell.strip() for cell in cells]


def test_the_verdict_comes_first_and_what_is_missing_before_it(page):
    headings = page.locator("main h2").all_inner_texts()
    assert headings[:3] == ["Not complete", "Verdict", "All runs"]
    assert "net w3a3 synq seed 0" in page.locator("#missing").inner_text()
    assert page.locator(".card").count() == 2


def test_a_heading_sorts_numbers_as_numbers_both_ways_and_by_the_keyboard(page):
    names = page.locator("#runs thead button").all_inner_texts()
    place = names.index("shipped") + 1
    heading = page.locator("#runs thead button", has_text="shipped")
    heading.click()
    values = [float(text) for text in column(page, place)]
    assert len(values) == 3
    assert values == sorted(values)
    heading.focus()
    page.keyboard.press("Enter")
    assert [float(text) for text in column(page, place)] == values[::-1]
    assert page.locator("#runs [aria-sort=descending]").count() == 1


def test_words_filter_the_rows_and_the_count_is_told(page):
    page.get_by_label("Show runs with").fill("W2A2 synq")
    assert set(column(page, 2)) == {"w2a2"}
    assert page.locator("#shown").inner_text() == "2 of 3 runs"
    page.get_by_label("Show runs with").fill("nothing of this")
    assert column(page, 2) == []
    page.get_by_label("Show runs with").fill("")
    assert page.locator("#shown").inner_text() == "3 of 3 runs"


def test_a_link_to_a_run_opens_it_at_once_and_from_the_table(page, address):
    run = page.locator("#run-net-w2a2-synq-seed1")
    assert not run.evaluate("element => element.open")
    page.locator("#runs a[href='#run-net-w2a2-synq-seed1']").click()
    assert run.evaluate("element => element.open")
    page.goto("about:blank")
    page.goto(f"{address}#run-net-w2a2-synq-seed0")
    first = page.locator("#run-net-w2a2-synq-seed0")
    assert first.evaluate("element => element.open")
    playwright.expect(first.locator("summary").first).to_be_in_viewport()


def test_two_runs_are_compared_and_the_comparison_has_an_address(page, address):
    page.get_by_label("Second", exact=True).select_option("run-net-w2a2-synq-seed1")
    page.get_by_label("First", exact=True).select_option("run-net-w2a2-synq-seed0")
    shown = dict(
        zip(
            page.locator("#compared tbody th").all_inner_texts(),
            page.locator("#compared tbody tr").all_inner_texts(),
            strict=True,
        )
    )
    assert "9.50 %" in shown["shipped"]
    assert "10.50 %" in shown["shipped"]
    assert "finetune.epochs" not in shown  # the same in both
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    assert page.get_by_label("Second", exact=True).input_value() == "run-net-w2a2-synq-seed1"
    page.get_by_label("differences alone").uncheck()
    assert "finetune.epochs" in page.locator("#compared tbody th").all_inner_texts()


def test_the_command_is_copied(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    run = page.locator("#run-net-w4a4-synq-seed0")
    run.locator("summary").first.click()
    run.locator(".copy").click()
    playwright.expect(run.locator(".copy")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == run.locator("pre code").inner_text()
    assert copied.startswith("snakemake --cores all --configfile mine.yaml -- ")


def test_the_button_changes_the_colours(page):
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    button = page.locator("#theme")
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    assert page.evaluate(colour) != light
    assert button.get_attribute("aria-pressed") == "true"
    page.reload()
    assert page.evaluate(colour) != light


@pytest.mark.parametrize("page", SIZES, indirect=True)
def test_nothing_is_wider_than_the_window_and_axe_finds_no_serious_fault(page):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe is not installed"
    )
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    found = axe.Axe().run(page).response
    assert "color-contrast" in {rule["id"] for rule in found["passes"]}
    serious = [
        (fault["id"], [node["html"][:200] for node in fault["nodes"]][:3])
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
    ]
    assert serious == []
