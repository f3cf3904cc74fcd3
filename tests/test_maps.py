"""Maps: what they say, that nothing runs or leaks in them, and how they look in real Chromium."""

import json
import math
import re

import nbformat
import pytest
from bs4 import BeautifulSoup

from crmlab import city, maps, results, tables
from crmlab.reports import page
from tests.projects import go, goes, last_manifest, write_notebook

NUMBERS = results.Numbers("en_GB", "EUR")
EVIL = "</script><script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">`${document.title='ran'}`\u2028'\\"  # noqa: E501
PLACES = [
    maps.Place("Centre", city.LATITUDE, city.LONGITUDE, text="1,200 customers"),
    maps.Place("Competitor", city.LATITUDE + 0.05, city.LONGITUDE + 0.05, own=False),
    maps.Place(EVIL, city.LATITUDE - 0.05, city.LONGITUDE),
]


def square(east, north, km=2):
    """A square of the generated city, its south-west corner so many km from the centre."""
    corners = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]
    ring = [
        [
            city.LONGITUDE + (east + a * km) / city.KM_EAST,
            city.LATITUDE + (north + b * km) / city.KM,
        ]
        for a, b in corners
    ]
    return {"type": "Polygon", "coordinates": [ring]}


def cells(width=8):
    """Squares around the centre with fewer and fewer customers; the outer ones are hidden."""
    found = []
    for east in range(-width, width, 2):
        for north in range(-width, width, 2):
            value = round(900 * math.exp(-math.hypot(east + 1, north + 1) / 2))
            hidden = value < 10
            text = "too few" if hidden else f"{value} customers"
            state = "hidden" if hidden else "value"
            found.append(maps.Shape(square(east, north), text, value, state))
    found.append(maps.Shape(square(width, 0), "nobody lives here", state="zero"))
    found.append(maps.Shape(square(width, 2), EVIL, state="no data"))
    return found


def layers():
    half = [maps.Shape(s.geometry, s.text, s.value and s.value / 2, s.state) for s in cells()]
    ring = {"type": "LineString", "coordinates": square(-5, -5, 10)["coordinates"][0]}
    word = {"type": "Point", "coordinates": [city.LONGITUDE, city.LATITUDE + 5 / city.KM]}
    return [
        maps.Layer("Customers", cells(), "Customers per square of 2 km"),
        maps.Layer("Half", half, "Half of them"),
        maps.Layer(EVIL, [maps.Shape(ring), maps.Shape(word, "5 km")], colour="red", dashed=True),
    ]


def draw(*some, places=PLACES, **options):
    return maps.draw("Where from?", "Near the centre.", layers=some, places=places,
                     numbers=NUMBERS, **options)  # fmt: skip


def legend(chart):
    return re.findall(r'<i class="swatch (.*?)"></i>(.*?)</li>', chart.html)


def valued(*values):
    return maps.Layer("n", [maps.Shape(square(i, 0), value=v) for i, v in enumerate(values)], "n")


def test_counts_are_shaded_in_classes_that_do_not_overlap():
    chart = draw(valued(*range(10, 70), 1234), places=[])
    assert [text for _, text in legend(chart)] == [
        "10 – 19", "20 – 29", "30 – 39", "40 – 49", "50 – 59", "60 – 1,234",
    ]  # fmt: skip
    assert [sign for sign, _ in legend(chart)] == [f"shade-{n}" for n in range(6)]
    # Those without words of their own are one shape for each shade, and lose nothing.
    data = json.loads(re.search(r'_add\((\{"features".*?\})\);', chart.script)[1])
    drawn = {one["properties"]["shade"]: one["geometry"]["coordinates"] for one in data["features"]}
    assert [len(drawn[str(n)]) for n in range(6)] == [10, 10, 10, 10, 10, 11]
    shapes = [maps.Shape(square(n, 0), f"{n}", n) for n in range(1, 4)]
    told = draw(maps.Layer("n", shapes, "n"), places=[]).script
    assert told.count('"Polygon"') == 3


def test_the_classes_of_skewed_values_are_all_used():
    for values in ([1] * 500 + list(range(2, 40)), [0.001 * 1.1**n for n in range(300)], [5, 5.5]):
        limits = maps._limits(values)
        assert limits == sorted(set(limits))
        assert limits[0] == min(values)
        assert 2 <= len(limits) <= 6
        for low, high in zip(limits, [*limits[1:], math.inf], strict=True):
            assert any(low <= value < high for value in values)


def test_few_values_have_a_class_each_and_money_prints_as_money():
    money = maps.Layer("m", valued(5, 20).shapes, "Spend", printed=NUMBERS.money)
    assert legend(draw(money, places=[])) == [("shade-0", "€5.00"), ("shade-5", "€20.00")]


def test_hidden_zero_and_no_data_have_signs_of_their_own_only_where_they_occur():
    signs = dict(legend(draw(layers()[0], places=[])))
    states = ["hidden for privacy", "none", "no data"]
    assert [signs[f"shade-{s}"] for s in ("hidden", "zero", "unknown")] == states
    assert not set(dict(legend(draw(valued(10, 20))))) & {"shade-hidden", "shade-zero"}


def test_no_value_is_written_on_the_map_and_nothing_of_what_is_hidden():
    shown, secret = maps.Shape(square(0, 0), value=4711), maps.Shape(square(2, 0), "", 8, "hidden")
    one, other = (
        draw(maps.Layer("n", [shown, maps.Shape(secret.geometry, "", value, "hidden")], "n"))
        for value in (8, 3)
    )
    assert one == other
    assert "4711" not in one.script
    assert [text for _, text in legend(one)][:1] == ["4,711"]


def test_degrees_are_rounded_to_a_metre():
    script = draw(valued(10), places=[maps.Place("a", 1 / 3, 2 / 3)]).script
    numbers = re.findall(r"\d+\.(\d+)", script.partition('{"features"')[2])
    assert len(numbers) > 10
    assert max(map(len, numbers)) == 5


def test_the_same_map_is_the_same_page():
    assert draw(*layers()) == draw(*layers())
    assert draw(valued(10)).key != draw(valued(11)).key


def bounds(chart):
    [reach] = re.findall(r'"reach": ([^:]*),\n"', chart.script)
    return [float(number) for number in re.findall(r"[-\d.]+", reach)]


def test_one_place_alone_is_shown_with_its_surroundings():
    assert bounds(draw(places=[maps.Place("a", 50, 30)])) == [49.99, 29.99, 50.01, 30.01]


@pytest.mark.parametrize("beyond", [-179.9, 180.1])
def test_a_map_across_the_date_line_does_not_span_the_globe(beyond):
    places = [maps.Place("Taveuni", -16.9, 179.9), maps.Place("Rabi", -16.5, beyond)]
    assert bounds(draw(places=places)) == [-16.9, 179.9, -16.5, 180.1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"places": []}, "nothing to draw"),
        ({"some": [maps.Layer("a", [], "b")], "places": []}, "nothing to draw"),
        ({"some": [valued(1), valued(2)]}, "different names"),
        ({"some": [valued(math.nan)]}, "shape without a value: its state must be"),
        ({"some": [maps.Layer("a", valued(1).shapes)]}, "has values and needs a `legend`"),
        ({"places": [maps.Place("a", 100, 20)]}, "latitude 100: a shape gives its degrees of long"),
        ({"places": [maps.Place("a", math.nan, 20)]}, "Nothing can be drawn at"),
        ({"some": [maps.Layer("a", [maps.Shape({"type": "Feature"})])]}, "geometries"),
        ({"tiles": "http://a/{z}/{x}/{y}", "attribution": "b"}, "begins with https"),
        ({"tiles": "https://a/{z}/{x}", "attribution": "b"}, "{y}"),
        ({"tiles": "https://a/{z}/{x}/{y}"}, "name them in `attribution`"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_sentence(change, said):
    with pytest.raises(tables.UsageError, match=said):
        draw(*change.pop("some", []), **change)


def test_a_map_needs_words():
    with pytest.raises(tables.UsageError, match="what it shows in words"):
        maps.draw("Where?", " ", places=PLACES, numbers=NUMBERS)


def test_tiles_are_for_the_notebook_and_left_out_of_a_page(monkeypatch):
    tiles = {"tiles": "https://{s}.tiles.example/{z}/{x}/{y}.png", "attribution": "<Somebody>"}
    chart = draw(**tiles)
    assert "img-src data: https://*.tiles.example&quot;" not in chart.standalone()
    assert 'img-src data: https://*.tiles.example">' in chart.standalone()
    assert "\\u0026lt;Somebody" in chart.script
    monkeypatch.setenv("CRMLAB_RUN_DIR", ".")
    chart = draw(**tiles)
    assert "tiles.example" not in chart.standalone()
    assert "opens without a network" in chart.html


def test_what_folium_would_load_and_is_not_known_is_refused(monkeypatch):
    import folium

    more = [*folium.Map.default_js, ("news", "https://example.org/news.js")]
    monkeypatch.setattr(folium.Map, "default_js", more)
    with pytest.raises(RuntimeError, match="folium would load news, which crmlab does not know"):
        draw()


def test_a_map_asks_for_nothing_and_brings_leaflet_alone():
    html = draw(*layers()).standalone()
    assert not re.search(r"jquery|bootstrap|sourceMappingURL", html)
    tags = BeautifulSoup(html, "html.parser")
    assert tags.select("link, [src], [href], [onclick], img, iframe") == []
    assert not re.search(r"url\((?!#hatch)", maps.style())
    assert "Leaflet 1.9" in html


def notebook(*outputs):
    cells = [
        nbformat.v4.new_markdown_cell("# Where do they come from?"),
        nbformat.v4.new_markdown_cell("## On the map"),
        nbformat.v4.new_code_cell("maps", outputs=[
            nbformat.v4.new_output("display_data", data) for data in outputs
        ]),
        nbformat.v4.new_code_cell("publish", outputs=[
            nbformat.v4.new_output("display_data", {results.MIME_TYPE: {"summary": "x"}})
        ]),
    ]  # fmt: skip
    return nbformat.v4.new_notebook(cells=cells)


def page_of(*outputs):
    """A page with these outputs, and the scripts that it may hold."""
    made = notebook(*(o if isinstance(o, dict) else o._repr_mimebundle_() for o in outputs))
    empty = {name: "" for name in ("shop", "as_of", "summary", "left_out")}
    lists = {name: [] for name in ("notices", "tiles", "facts")}
    css = (page.TEMPLATES / "house.css").read_text()
    html = page.export(made, {"css": css, "index": "index.html", **empty, **lists})
    return html, page.scripts(page.sections(made)[1])


def test_three_maps_share_leaflet_and_have_names_of_their_own():
    chart = draw(*layers())
    html, scripts = page_of(chart, chart, draw(valued(10)))
    page.check(html, scripts=scripts)
    assert html.count("Leaflet 1.9") == 1
    ids = re.findall(r'id="(map_\w+)"', html)
    assert len(set(ids)) == len(ids) == 3
    assert "<iframe" not in html
    assert len(html.encode()) < 450_000


def test_a_page_without_maps_has_no_script_but_the_houses():
    html, scripts = page_of({"text/html": "<p>nothing</p>"})
    assert scripts == []
    assert html.count("<script") == 1
    assert page.policy() in html.replace("&#39;", "'")
    page.check(html)


def test_a_script_beside_the_maps_is_still_refused():
    html, scripts = page_of(draw(), {"text/html": "<script>document.title='x'</script>"})
    with pytest.raises(page.PageError, match="it holds a script or a frame"):
        page.check(html, scripts=scripts)
    html, _ = page_of(draw())
    with pytest.raises(page.PageError, match="it holds a script or a frame"):
        page.check(html)


def test_a_map_without_words_is_refused():
    html, scripts = page_of(draw())
    with pytest.raises(page.PageError, match="no alternative text"):
        page.check(html.replace('aria-label="Where from? Near the centre."', ""), scripts=scripts)


def test_an_id_is_found_wherever_a_map_says_it():
    shapes = [maps.Shape(square(0, 0), "Lives here: card-00017")]
    ring = maps.Layer("Ring of card & 00018", shapes)
    html, _ = page_of(draw(ring, places=[maps.Place("a", 48, 23, text='x\n"card-00019')]))
    said = page.phrases(html, longer_than=4)
    assert {"card-00017", "card & 00018", "card-00019"} <= said


DRAW = """
from crmlab import maps
place = maps.Place("Centre", 48.6, 23.1, text={text!r})
maps.draw("Where?", "Here.", places=[place], numbers=shop.numbers)
"""


@pytest.mark.slow
def test_a_report_with_a_map_is_published_unless_the_map_says_an_id(project):
    write_notebook(project, DRAW.format(text="card 17"))
    html = goes(project).page.read_text(encoding="utf-8")
    assert html.count("Leaflet 1.9") == html.count("folium-map") - html.count(".folium-map") == 1
    write_notebook(project, DRAW.format(text="card-00017"))
    assert go(project).state == "failed"
    assert "names 1 customers by their id" in last_manifest(project)["details"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A page with two maps whose words would like to run."""
    folder = tmp_path_factory.mktemp("maps")
    html, scripts = page_of(draw(*layers(), note="6 squares are hidden."), draw(layers()[2]))
    page.check(html, scripts=scripts)
    path = folder / "page.html"
    path.write_text(html, encoding="utf-8")
    return path


@pytest.fixture
def open_tab(browser):
    contexts = []

    def show(path, width=1200, scheme="light", **options):
        context = browser.new_context(viewport={"width": width, "height": 800},
                                      color_scheme=scheme, **options)  # fmt: skip
        contexts.append(context)
        tab = context.new_page()
        heard = []
        tab.on("request", lambda request: heard.append(request.url))
        tab.on("console", lambda message: heard.append(message.text))
        tab.on("pageerror", lambda error: heard.append(str(error)))
        tab.goto(path.as_uri())
        return tab, heard

    yield show
    for context in contexts:
        context.close()


def test_maps_are_drawn_under_the_policy_without_a_request_or_a_word_of_error(open_tab, made):
    tab, heard = open_tab(made)
    assert heard == [made.as_uri()]
    first, second = tab.locator(".folium-map").all()
    assert first.locator("path.shade").count() == len(cells())
    assert first.locator("path.shade-hidden").count() == 4
    assert first.locator("path.edge-red").count() == second.locator("path.edge-red").count() == 1
    assert tab.title().startswith("Where do they")
    assert tab.locator(".instead").count() == 0


def test_words_that_look_like_code_are_shown_as_words(open_tab, made):
    tab, _ = open_tab(made)
    names = tab.locator(".folium-map").first.locator(".own .name").all_text_contents()
    assert EVIL in names
    assert EVIL.split("\u2028")[0] in tab.locator(".switches label").nth(2).text_content()
    tab.locator("path.shade-unknown").first.hover()
    assert tab.locator(".leaflet-tooltip").text_content() == EVIL
    tab.evaluate("document.body.insertAdjacentHTML('beforeend', '<a id=e onclick=\"x()\">x</a>')")
    assert tab.title().startswith("Where do they")
    tab.locator(".own .dot").first.hover()
    assert tab.locator(".leaflet-tooltip").last.text_content() == "Centre\n1,200 customers"


def test_of_several_shadings_one_is_seen_with_its_legend(open_tab, made):
    tab, _ = open_tab(made)
    seen = [tab.locator(f"[data-legend='{n}']").is_visible() for n in (0, 1)]
    assert seen == [True, False]
    tab.get_by_label("Half").check()
    assert [tab.locator(f"[data-legend='{n}']").is_visible() for n in (0, 1)] == [False, True]
    assert tab.locator("path.shade").count() == len(cells())
    # The lines still lie on the shades.
    order = "p => getComputedStyle(p.closest('.leaflet-pane')).zIndex"
    assert int(tab.locator("path.edge").first.evaluate(order)) > int(
        tab.locator("path.shade").first.evaluate(order)
    )


def test_the_degrees_are_those_of_the_place_on_both_sides_of_the_date_line(open_tab, tmp_path):
    path = tmp_path / "map.html"
    places = [maps.Place("a", -16.9, 179.5), maps.Place("b", -16.4, -179.5)]
    german = results.Numbers("de_DE", "EUR")
    path.write_text(maps.draw("a", "b", places=places, numbers=german).standalone())
    tab, _ = open_tab(path)
    degrees = tab.locator(".longitude").all_text_contents()
    assert {"179,8° E", "180°", "179,8° W"} <= {text.replace("180° W", "180°") for text in degrees}
    assert set(tab.locator(".latitude").all_text_contents()) <= {"16,8° S", "16,6° S", "16,4° S"}
    # A line stands where a shop of those degrees would: between the two shops, in the middle.
    [own, other] = [dot.bounding_box()["x"] + 7 for dot in tab.locator(".place .dot").all()]
    words = tab.locator(".longitude span", has_text="180°").bounding_box()
    assert words["x"] - 3.2 == pytest.approx((own + other) / 2, abs=2)
    assert 4 <= len(degrees) <= tab.locator("path.grid").count() <= 20


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_axe_finds_nothing_wrong(open_tab, made, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    tab, _ = open_tab(made, width, scheme)
    found = Axe().run(tab)
    assert found.violations_count == 0, found.generate_report()


def test_shades_and_lines_differ_between_light_and_dark(open_tab, made):
    fills = {}
    for scheme in ("light", "dark"):
        tab, _ = open_tab(made, scheme=scheme)
        fills[scheme] = [
            tab.locator(f"path.{name}").first.evaluate("p => getComputedStyle(p).fill")
            for name in ("shade-0", "shade-5", "shade-zero", "shade-unknown")
        ]
        assert len(set(fills[scheme])) == 4
    assert all(a != b for a, b in zip(*fills.values(), strict=True))


def test_a_phone_shows_the_whole_width_and_scrolls_past_the_map(open_tab, made):
    tab, _ = open_tab(made, 390, has_touch=True, is_mobile=True)
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    chart = tab.locator(".folium-map").first
    box, words = chart.bounding_box(), tab.locator(".legend").first.bounding_box()
    assert box["width"] > 300
    assert box["height"] <= 460
    assert words["y"] >= box["y"] + box["height"]
    assert chart.evaluate("m => getComputedStyle(m).touchAction") == "pan-x pan-y"


def test_in_print_the_whole_map_stands_there_without_its_controls(open_tab, made):
    tab, _ = open_tab(made)
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    tab.emulate_media(media="print")
    assert tab.locator(".leaflet-control-zoom:visible, .switches input:visible").count() == 0
    frame = tab.locator(".folium-map").first.bounding_box()
    assert frame["width"] < 640
    for shape in tab.locator(".folium-map").first.locator("path.shade").all()[::20]:
        box = shape.bounding_box()
        assert frame["x"] < box["x"]
        assert box["x"] + box["width"] < frame["x"] + frame["width"]
    pdf = tab.pdf(prefer_css_page_size=True)
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 3


def test_in_a_notebook_a_map_stands_alone_in_its_frame(open_tab, tmp_path):
    path = tmp_path / "cell.html"
    html = draw(*layers())._repr_mimebundle_()["text/html"]
    path.write_text(f"<!DOCTYPE html><meta charset=utf-8><title>n</title>{html}", encoding="utf-8")
    tab, heard = open_tab(path)
    frame = tab.frame_locator("iframe")
    frame.locator("path.shade").first.wait_for()
    frame.locator(".latitude span").first.wait_for()
    assert frame.locator("path.edge").count() == 1
    assert [one for one in heard if one not in (path.as_uri(), "about:srcdoc")] == []


def test_three_thousand_squares_are_all_drawn_and_weigh_little(open_tab, tmp_path):
    values = [(square(n // 55 / 2, n % 55 / 2, 0.5), 10 + n // 55) for n in range(55 * 55)]
    told = [maps.Shape(shape, f"{value} customers", value) for shape, value in values]
    plain = [maps.Shape(shape, "", value) for shape, value in values]
    for shapes, paths, kilobytes in ((told, 55 * 55, 800), (plain, 6, 450)):
        chart = draw(maps.Layer("n", shapes, "Customers"))
        path = tmp_path / "map.html"
        path.write_text(chart.standalone(), encoding="utf-8")
        tab, _ = open_tab(path)
        assert tab.locator("path.shade").count() == paths
        corners = tab.eval_on_selector_all(
            "path.shade", "all => all.map(p => (p.getAttribute('d').match(/M/g) || []).length)"
        )
        assert sum(corners) == 55 * 55
        assert len(chart.script) < 1_000 * kilobytes
