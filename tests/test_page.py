"""The CDNOW page as a manager gets it, in real Chromium with no network."""

import re

import pytest

from crmlab import reports


@pytest.fixture(scope="module")
def published(home):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRMLAB_HOME", str(home))
        return reports.run(home, reports.load(home)["cdnow-clv"], progress=False)


@pytest.fixture
def pages(published, home):
    return [published.page, home / "reports" / "site" / "index.html"]


@pytest.fixture
def open_page(browser):
    contexts = []

    def show(path, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        tab = context.new_page()
        asked, said = [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: said.append(message.text))
        tab.goto(path.as_uri())
        return tab, asked, said

    yield show
    for context in contexts:
        context.close()


def test_the_page_asks_nothing_of_any_network_and_reports_no_error(open_page, pages):
    for path in pages:
        _, asked, said = open_page(path)
        assert asked == [path.as_uri()]
        assert said == []


def test_the_policy_of_the_page_stops_what_would_ask_or_run(open_page, pages):
    for path in pages:
        tab, _, said = open_page(path)
        tab.evaluate(
            "document.body.insertAdjacentHTML('beforeend', '<img src=\"https://example.org/x\">"
            "<p onclick=\"document.title=\\'ran\\'\" id=evil>x</p>')"
        )
        tab.click("#evil")
        assert tab.title() != "ran"
        assert len([text for text in said if "Content Security Policy" in text]) == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_wrong(open_page, pages, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    for path in pages:
        tab, _, _ = open_page(path, width, scheme)
        tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        found = Axe().run(tab)
        assert found.violations_count == 0, found.generate_report()


def test_nothing_is_wider_than_a_phone_and_text_in_charts_can_be_read(open_page, pages):
    for path in pages:
        tab, _, _ = open_page(path, 390)
        assert tab.evaluate("document.documentElement.scrollWidth") == 390
    tab, _, _ = open_page(pages[0], 390)
    heights = tab.evaluate(
        "[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)"
    )
    assert len(heights) > 30
    assert min(heights) >= 9


def test_the_page_begins_with_the_answer_and_its_figures(open_page, pages):
    tab, _, _ = open_page(pages[0])
    assert tab.inner_text("h1") == "What are our customers worth?"
    assert tab.inner_text(".summary").startswith("Our 23,570 customers are expected to spend")
    assert tab.locator(".lead .tile").count() == 5
    tops = tab.evaluate(
        "['.summary', '.tile', '.rest h2'].map(s => document.querySelector(s)"
        ".getBoundingClientRect().top)"
    )
    assert tops == sorted(tops)
    assert tab.locator("figure[role=img] svg").count() == 10
    links = tab.eval_on_selector_all(".contents a", "all => all.map(a => a.getAttribute('href'))")
    assert all(tab.locator(link).count() == 1 for link in links)


def test_code_is_folded_away(open_page, pages):
    tab, _, _ = open_page(pages[0])
    assert tab.locator("pre").count() > 4
    assert tab.locator("pre:visible").count() == 0


def test_the_footer_says_where_the_numbers_came_from(open_page, pages):
    tab, _, _ = open_page(pages[0])
    about = tab.inner_text("#about")
    for fact in (
        "Jan 1, 1997 to Jun 30, 1998",
        "Parameter horizon_days\t365",
        "Parameter margin\t0.3",
        "crmlab 0.1.0",
        "rows read\t69,659",
        "used\t69,659\t$2,500,316",
        "noted: line equal to an earlier one in every column\t255",
    ):
        assert fact in about, fact


def test_charts_can_be_seen_in_the_dark(open_page, pages):
    colours = {}
    for scheme in ("light", "dark"):
        tab, _, _ = open_page(pages[0], 1280, scheme)
        colours[scheme] = tab.evaluate(
            "[...document.querySelectorAll('svg text')].map(t => getComputedStyle(t).fill)[0]"
        )
    assert colours["light"] != colours["dark"]


def test_the_page_prints_on_a4_with_its_charts(open_page, pages):
    tab, _, _ = open_page(pages[0])
    tab.emulate_media(media="print")
    assert tab.locator(".contents:visible").count() == 0
    pdf = tab.pdf(prefer_css_page_size=True)
    sheets = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert 4 <= sheets <= 12


def test_no_page_holds_a_customer(pages, published, home):
    import pandas as pd

    ids = set(pd.read_parquet(home / "data" / "cdnow" / "transactions.parquet")["customer_id"])
    values = pd.read_parquet(published.folder / "values.parquet")
    assert set(values["customer_id"]) == ids
    for path in pages:
        words = set(re.findall(r">\s*(\d{5})\s*<", path.read_text()))
        assert not words & ids


def test_the_page_is_light(pages):
    whole = pages[0].read_text()
    assert len(re.sub(r"<svg.*?</svg>", "", whole, flags=re.DOTALL)) < 80_000
    assert len(whole) < 180_000  # with ten pictures
