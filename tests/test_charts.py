import re
import xml.etree.ElementTree as ET  # noqa: S405, N817

import pytest

from crmlab import charts, clv, customers


@pytest.fixture
def drawn(sample):
    shop = sample()
    summary = customers.summary(shop, as_of="1997-09-30")
    model = clv.fit(summary)
    terms = {"horizon_days": 365, "margin": 0.3, "annual_discount_rate": 0.1}
    worth = clv.worth(model.predict(summary, **terms), **terms, numbers=shop.numbers, k=10)
    test = clv.backtest(shop, split="1997-09-30", horizon_days=273, models=["bgnbd"])
    counts = clv.purchase_counts(model, summary, k=10)
    return {
        "tracking": lambda: charts.tracking(test),
        "calibration": lambda: charts.calibration(test),
        "purchase_counts": lambda: charts.purchase_counts(counts, shop.numbers),
        "concentration": lambda: charts.concentration(worth),
    }


def test_every_chart_says_its_numbers_in_words(drawn):
    alts = {name: draw().alt for name, draw in drawn.items()}
    assert "4,339 made, 4,166 expected by the model (−4.0%)" in alts["tracking"]
    assert re.search(r"part 10 of 10: \d\.\d\d expected, \d\.\d\d made", alts["calibration"])
    assert "0: 1,411 seen, 1,408 expected" in alts["purchase_counts"]
    assert "The best 20% of the customers bring" in alts["concentration"]


def test_the_same_numbers_give_the_same_svg(drawn):
    for draw in drawn.values():
        assert draw().svg() == draw().svg()


def test_an_svg_is_well_formed_and_asks_for_nothing_outside_it(drawn):
    for draw in drawn.values():
        svg = draw().svg()
        ET.fromstring(svg)
        assert set(re.findall(r'(?:xlink:)?href="([^"]{1})', svg)) <= {"#"}
        assert "url(http" not in svg


def test_ids_of_two_charts_do_not_clash(drawn):
    ids = [set(re.findall(r' id="([^"]+)"', draw().svg())) for draw in drawn.values()]
    assert not ids[0] & ids[1]
    assert not ids[1] & ids[2]


def test_every_colour_follows_the_page(drawn):
    for draw in drawn.values():
        colours = set(re.findall(r"#[0-9a-f]{6}(?!\))", draw().svg()))
        assert not colours, f"fixed colours would vanish in the dark: {colours}"


def test_a_chart_shows_itself_with_its_alternative_text(drawn):
    chart = drawn["concentration"]()
    data, metadata = chart._repr_mimebundle_()
    assert data["image/svg+xml"].startswith("<svg")
    assert metadata["image/svg+xml"]["alt"] == chart.alt
