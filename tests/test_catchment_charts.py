import math
import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from crmlab import charts, customer_radar, places, radar_charts, results
from crmlab.catchment_charts import LINES
from tests.conftest import ROOT

EURO = results.Numbers("en_GB", "EUR")


@dataclass
class Cells:
    rows: pd.DataFrame
    rings_km: tuple
    sectors: int = 8
    k: int = 10
    store: str = "Lindenmarkt 河东"
    numbers: results.Numbers = EURO


@dataclass
class Answer:
    rows: pd.DataFrame
    what: str = "visits in a year"
    verdict: str = "As the test says."
    numbers: results.Numbers = EURO

    def drawn(self):
        return self.rows


def cells(rings_km=(5.0, 10.0, 20.0), sectors=8, most=1_435, **more):
    """Every cell has customers, more of them in the outer rings and clockwise from north."""
    rows = pd.DataFrame([
        {"ring": ring, "sector": sector, "state": "value",
         "customers": float(round(most * (ring * sectors + sector + 1) / len(rings_km) / sectors))}
        for ring in range(len(rings_km)) for sector in range(sectors)])  # fmt: skip
    rows["members"] = (rows["customers"] * 0.6).round()
    rows["spend"] = rows["customers"] * 123.4
    rows["purchasing_power"] = rows["customers"] * 9_000
    rows["penetration"] = 0.05 + rows["sector"] / 100
    outside = {"ring": -1, "sector": -1, "state": "value", "customers": 777.0}
    return Cells(pd.concat([rows, pd.DataFrame([outside])], ignore_index=True), rings_km, sectors,
                 **more)  # fmt: skip


def texts(chart):
    """Return the words of a chart with their places, top down as they are drawn."""
    [axes] = chart.axes
    return [(text.get_text(), text.get_position()) for text in axes.texts]


def words(chart):
    return [text for text, _ in texts(chart)]


def boxes(chart):
    """Return the words and where they stand, in points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(chart).get_renderer()
    scale = 72 / chart.dpi
    shown = [text for text in chart.axes[0].texts if text.get_text()]
    found = []
    for text in shown:
        text.set_bbox(None)
        box = text.get_window_extent(renderer)
        found.append((text.get_text(), *(scale * edge for edge in box.extents)))
    return found


def test_the_rings_say_where_most_customers_live_in_words():
    alt = charts.ring_sector(cells()).alt
    assert alt.startswith("Where do our customers live? Around Lindenmarkt 河东. Customers, most: ")
    assert "NW, 10 to 20 km: 1,435; W, 10 to 20 km: 1,375; SW, 10 to 20 km: 1,315." in alt
    assert "Spend, most: NW, 10 to 20 km: €177K" in alt
    assert "777" not in alt  # outside the rings


def test_north_is_at_the_top_and_sectors_go_clockwise():
    one = cells((5.0,), 4, most=40)
    one.rows = one.rows[["ring", "sector", "state", "customers"]]
    at = dict(texts(charts.ring_sector(one)))
    (x, y), right, below, left = at["10"], at["20"], at["30"], at["40"]
    assert y > right[1] > below[1]
    assert left[0] < x < right[0]
    assert (right[1], x) == pytest.approx((left[1], below[0]))
    assert at["N"][1] > y
    assert at["E"][0] > right[0]


def test_a_cell_is_a_value_or_hidden_or_zero_or_no_data_and_each_looks_different():
    one = cells()
    assert "hatch" not in charts.ring_sector(one).svg().lower()
    for at, state in ((0, "hidden"), (1, "zero"), (2, "no data")):
        one.rows.loc[at, "state"] = state
        one.rows.loc[at, "customers":"penetration"] = math.nan
    one.rows.loc[1, "customers":"spend"] = 0.0
    chart = charts.ring_sector(one)
    said = words(chart)
    assert said.count(radar_charts.HIDDEN) == 5
    # Of the zero cell the people's purchasing power and share are not known.
    assert (said.count("0"), said.count("–")) == (3, 7)
    fills = [patch for patch in chart.axes[0].patches if patch.get_hatch()]
    assert len(fills) == 5 + 1  # and in the key
    dotted = [p for p in chart.axes[0].patches if p.get_linestyle() not in ("solid", "-")]
    assert len(dotted) == 7 + 1
    assert "1 of 24 cells are hidden: they or others have under 10 people" in chart.alt


def test_what_a_hidden_cell_holds_is_shown_nowhere_but_the_purchasing_power_of_its_people_is():
    one = cells()
    one.rows.loc[5, "state"] = "hidden"  # and a mistake: its figures were left in the table
    one.rows.loc[5, ["customers", "members", "spend", "penetration"]] = [3.0, 4.0, 5e9, 6.0]
    one.rows.loc[5, "purchasing_power"] = 2_345_678_901.0
    chart = charts.ring_sector(one)
    said = words(chart)
    assert said.count(radar_charts.HIDDEN) == 4
    assert "2,346" in said
    assert not {"3", "4", "5,000", "600", "600.0"} & {*said}
    assert "€5B" not in chart.alt
    assert "Purchasing power, most: SW, 0 to 5 km: €2.35B" in chart.alt


def test_large_numbers_are_short_and_their_unit_stands_above():
    said = words(charts.ring_sector(cells(most=1_435_000)))
    assert {"Customers, thousand", "Spend, million EUR", "1,435", "177"} <= {*said}
    assert {"Customers", "Spend, thousand EUR", "Customers per 100 people"} <= {
        *words(charts.ring_sector(cells()))
    }
    narrow = cells((1.0, 2.0, 4.0, 8.0), 16, 88_888)
    assert {"Spend, EUR", "11M", "89k", "9.7k"} <= {*words(charts.ring_sector(narrow))}


@pytest.mark.parametrize(
    ("rings_km", "sectors"),
    [((5.0, 10.0, 20.0), 8), ((1.0, 2.5, 5.0, 10.0), 8), ((1.0, 2.0, 4.0, 8.0), 16), ((5.0,), 4)],
)
@pytest.mark.parametrize("most", [8_888, 88_888_888])
def test_numbers_in_cells_do_not_run_into_each_other(rings_km, sectors, most):
    found = boxes(charts.ring_sector(cells(rings_km, sectors, most, store="Market")))
    for at, (text, left, low, right, high) in enumerate(found):
        assert left >= 0, text
        assert right <= radar_charts.WIDTH, text
        for other, left2, low2, right2, high2 in found[:at]:
            # A page's letters are an eighth narrower than those measured here.
            wide, tall = min(right, right2) - max(left, left2), min(high, high2) - max(low, low2)
            assert wide < (right - left) / 8 or tall < 3, f"{text} runs into {other}"


def test_numbers_are_readable_on_their_fill():
    for share in np.linspace(-0.1, 1, 200):
        fill, text = radar_charts.shade(share)
        light, dark = sorted(map(radar_charts.luminance, (fill, text)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5
    assert radar_charts.luminance("#ffffff") == pytest.approx(1)
    # The Guidelines' own example: pure red is .2126.
    assert radar_charts.luminance("#ff0000") == pytest.approx(0.2126)


def test_lines_are_seen_on_light_and_on_dark_pages():
    light, dark = re.findall(r":root {[^}]*--card: (#\w+)", (
        ROOT / "crmlab" / "templates" / "house.css").read_text())[:2]  # fmt: skip
    for line in LINES[2:]:  # the first two follow the page
        lights = [radar_charts.luminance(colour) + 0.05 for colour in (light, line, dark)]
        assert lights[0] / lights[1] >= 3, line
        assert lights[1] / lights[2] >= 3, line


def radar(groups, **more):
    rows = pd.DataFrame(groups, columns=["occupation", "sex", "age_group", "customers", "spend"])
    given = {
        "rows": rows, "hidden_groups": 0, "hidden_customers": 0, "hidden_spend": math.nan,
        "sides": ("f", "m"), "occupations": tuple(rows["occupation"].unique()),
        "ages": ("20s", "30s", "70+"), "verdict": "As the test says.", "as_of": None, "days": 365,
        "k": 10, "numbers": EURO,
    }  # fmt: skip
    return customer_radar.Radar(**{**given, **more})


GROUPS = [("baker", "f", "20s", 400, 50.0), ("baker", "m", "70+", 100, 250.0),
          ("学生", "f", "30s", 25, 150.0), ("学生", "unknown", "30s", 60, 90.0)]  # fmt: skip


def test_the_customer_radar_draws_areas_by_customers_left_and_right_and_says_who_is_not_in_it():
    result = radar(GROUPS, hidden_groups=3, hidden_customers=17)
    chart = charts.customer_radar(result)
    circles = [p for p in chart.axes[0].patches if getattr(p, "zorder", 0) == 3]
    assert len(circles) == 3
    large, middle, small = sorted(circles, key=lambda circle: -circle.radius)
    assert large.radius / small.radius == pytest.approx(math.sqrt(400 / 25))
    assert large.center[0] < radar_charts.CENTRE < middle.center[0]
    assert small.center[0] < radar_charts.CENTRE
    centre = dict(texts(chart))["20s"][0]
    assert centre == radar_charts.CENTRE
    assert "f: baker, 20s, 400 customers, €50 each; 学生, 30s, 25 customers, €150 each" in chart.alt
    note = "Not shown are 3 small groups, together about 20 customers."
    note = f"{note} Of other sex, or of unknown sex or age: 60."
    assert note in chart.alt
    assert " ".join(words(chart)[-2:][::-1]) == note
    assert {"€50", "€250"} <= {*words(chart)}


def test_the_customer_radar_stays_within_its_picture_with_long_names_of_ten_occupations():
    names = ["Housewife or -husband", "self-employed", "Specialist", "вчителька", "Angestellte",
             "Manager", "Office", "Student", "other", "unknown"]  # fmt: skip
    ages = ("under 20", "20s", "30s", "40s", "50s", "60s", "70+")
    groups = [(name, sex, age, 50, 9.0) for name in names for sex in "fm" for age in ages]
    chart = charts.customer_radar(radar(groups, ages=ages))
    for text, left, low, right, high in boxes(chart):
        assert left >= 0, text
        assert right <= radar_charts.WIDTH, text
        assert 0 <= low < high <= 72 * chart.get_figheight(), text


def reach(stores=7):
    rows = [
        {"name": f"Store {s}", "from_km": km, "to_km": km + 2.5, "customers": 100.0,
         "bought": 90 - 10.0 * s, "share": 0.9 - s / 10 - km / 50, "low": 0.0, "high": 0.95}
        for s in range(stores) for km in (0.0, 2.5, 5.0)]  # fmt: skip
    rows += [{**rows[2], "from_km": 7.5, "to_km": 10.0, **dict.fromkeys(
        ("bought", "share", "low", "high"), math.nan)}]  # fmt: skip
    return Answer(pd.DataFrame(rows))


def test_five_stores_have_names_at_their_lines_and_hidden_bands_are_not_drawn():
    chart = charts.decay(reach())
    assert words(chart) == [f"Store {s}" for s in (4, 3, 2, 1, 0)]  # upwards, as the lines end
    assert "Store 0: 90.0% of those within 2.5 km, 80.0% at 5 to 7.5 km" in chart.alt
    assert "Store 5" not in chart.alt
    assert max(line.get_xdata().max() for line in chart.axes[0].lines) < 7.5
    heights = [y for _, _, y, *_ in boxes(chart)]
    assert min(np.diff(heights)) > 10
    empty = reach(1)
    empty.rows["share"] = math.nan
    assert charts.decay(empty).alt.endswith("Too few customers live near any store to say so.")


def directions():
    return Answer(pd.DataFrame({
        "sector": places.sector_names(4), "value": [2.0, 8.0, math.nan, 5.0],
        "low": [1.0, 6.0, math.nan, 4.0], "high": [3.0, 9.0, math.nan, 6.0],
        "customers": [20, 80, math.nan, 50], "state": ["value", "value", "hidden", "value"]}),
        what="new customers per 1,000 people")  # fmt: skip


def test_sectors_are_ranked_with_intervals_and_else_stand_as_on_a_compass():
    result = directions()
    chart = charts.sectors(result)
    names = [tick.get_text() for tick in chart.axes[0].get_yticklabels()]
    assert names == ["E", "W", "N", "S"]
    told = "new customers per 1,000 people: E: 8.00 (6.00 to 9.00); W: 5.00"
    assert f"As the test says. {told}" in chart.alt
    assert "hidden for privacy" in words(chart)
    result.rows = result.rows.drop(columns=["low", "high"])
    chart = charts.sectors(result)
    assert [tick.get_text() for tick in chart.axes[0].get_yticklabels()] == ["N", "E", "S", "W"]
    assert chart.alt.endswith("N: 2.00; E: 8.00; W: 5.00.")


def test_a_what_if_says_what_each_store_gains_or_loses():
    rows = pd.DataFrame({
        "store": ["Old", "New", "Small"], "before": [9_000.0, 0.0, math.nan],
        "after": [7_500.0, 4_000.0, math.nan], "difference": [-1_500.0, 4_000.0, math.nan],
        "low": [-1_800.0, 3_100.0, math.nan], "high": [-1_100.0, 5_000.0, math.nan]})  # fmt: skip
    chart = charts.huff(Answer(rows))
    told = "visits in a year: New: 0 before, 4,000 after, +4,000 (+3,100 to +5,000); Old: 9,000"
    assert told in chart.alt
    assert "Small" not in chart.alt
    assert words(chart) == ["+4,000", "−1,500"]


def all_drawn():
    spoilt = cells()
    spoilt.rows.loc[3, "state"] = "hidden"
    return [charts.ring_sector(spoilt), charts.customer_radar(radar(GROUPS)),
            charts.decay(reach()), charts.sectors(directions())]  # fmt: skip


@pytest.fixture(scope="module")
def drawn():
    return [chart.svg() for chart in all_drawn()]


def test_colours_follow_the_page_or_are_fills_with_text_of_their_own(drawn):
    own = {radar_charts.LIGHT_TEXT, *LINES[2:]}
    own |= {radar_charts.shade(share)[0] for share in np.linspace(0, 1, 2_000)}
    for svg in drawn:
        fixed = set(re.findall(r"#[0-9a-f]{6}(?!\))", svg)) - own
        assert not fixed, f"fixed colours would vanish in the dark: {fixed}"


def test_the_smallest_text_is_nine_pixels_in_a_picture_of_320(drawn):
    for svg in drawn:
        sizes = [float(size) for size in re.findall(r"([\d.]+)px", svg)]
        assert min(sizes) * 320 / radar_charts.WIDTH >= 8.97


def test_the_same_numbers_give_the_same_picture(drawn):
    assert [chart.svg() for chart in all_drawn()] == drawn
