"""Maps that open without a network: shaded areas, outlines and shops, drawn by folium and Leaflet.

Nothing is computed here of any customer: callers hand in what may be shown, and a value is written
as the colour of its class only. Leaflet comes with its package, so that a map asks for nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from crmlab import results, tables

if TYPE_CHECKING:
    import folium

MIME_TYPE = "application/vnd.crmlab.map+json"
TEMPLATES = Path(__file__).parent / "templates"
CLASSES = 6  # as many shades as an eye can tell apart
DECIMALS = 5  # of a degree: one metre
LEAST_EXTENT = 0.02  # degrees that a map shows at least, about 2 km
LARGEST_LATITUDE = 85.0511  # where Leaflet's map of the world ends
# What folium would load from the network, and Leaflet does not need.
LOADED_BY_FOLIUM = {
    *("leaflet", "jquery", "bootstrap", "awesome_markers", "leaflet_css", "bootstrap_css"),
    *("glyphicons_css", "awesome_markers_font_css", "awesome_markers_css", "awesome_rotate_css"),
}
# The sign of each, and its words in the legend.
STATES = {
    "hidden": ("hidden", "hidden for privacy"),
    "zero": ("zero", "none"),
    "no data": ("unknown", "no data"),
}

State = Literal["value", "hidden", "zero", "no data"]
# Those that can be seen on all shades.
Colour = Literal["ink", "red", "orange", "violet"]


@dataclass(frozen=True)
class Shape:
    """A GeoJSON geometry: longitude before latitude, in degrees; it may go on past 180.

    `text` is said where somebody points at it, in lines of plain text; of a point it is written
    there. Of a `value` nothing but its class is written on the map, and nothing where the state
    says that it is hidden.
    """

    geometry: Mapping[str, Any]
    text: str = ""
    value: float | None = None
    state: State = "value"


@dataclass(frozen=True)
class Layer:
    """What can be switched on and off together.

    With a `legend`, what the values are and their unit, the shapes are shaded by them, `printed`
    as one number of the shop by default; of several such layers one is seen at a time. Without it
    the shapes are outlines in `colour`.
    """

    name: str
    shapes: Sequence[Shape]
    legend: str = ""
    printed: Callable[[float], str] | None = None
    colour: Colour = "ink"
    dashed: bool = False
    shown: bool = True


@dataclass(frozen=True)
class Place:
    """A shop, at degrees; `text` is said under its name where somebody points at it."""

    name: str
    latitude: float
    longitude: float
    own: bool = True
    text: str = ""


@dataclass(frozen=True)
class Map:
    """A map that shows itself in a notebook, and on a page beside others.

    `html` is its frame and legend, `script` what draws it once the page has `code()` and `style()`;
    both name it by `key`. `alt` says in words what is to be seen.
    """

    alt: str
    key: str
    html: str
    script: str
    images: str = ""

    def standalone(self) -> str:
        """Return a page with this map alone; it may ask for nothing but its tiles, if any."""
        policy = (
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
            f"img-src data: {self.images}"
        )
        css = (TEMPLATES / "house.css").read_text(encoding="utf-8") + style()
        return (
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.alt)}</title><style>{css}</style></head><body><main>{self.html}"
            f"</main><script>{code()}</script><script>{self.script}</script></body></html>"
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        # The frame keeps a notebook's own styles out, and what is in the map inside.
        frame = (
            f'<iframe srcdoc="{escape(self.standalone())}" title="{escape(self.alt)}" '
            'sandbox="allow-scripts" style="width:100%;height:570px;border:0"></iframe>'
        )
        parts = {"key": self.key, "html": self.html, "script": self.script}
        return {MIME_TYPE: parts, "text/html": frame}


@cache
def code() -> str:
    """Return the script that every map needs, once on a page: Leaflet, and what is ours."""
    # Where the lines of Leaflet's own source lie would be asked of the network.
    leaflet = _leaflet("leaflet.js").partition("//# sourceMappingURL")[0]
    return leaflet + (TEMPLATES / "map.js").read_text(encoding="utf-8")


@cache
def style() -> str:
    """Return the style that every map needs, once on a page; Leaflet's pictures are not used."""
    kept = [line for line in _leaflet("leaflet.css").splitlines() if "url(" not in line]
    return "\n".join(kept) + (TEMPLATES / "map.css").read_text(encoding="utf-8")


def _leaflet(name: str) -> str:
    path = distribution("XStatic-Leaflet").locate_file(f"xstatic/pkg/leaflet/data/{name}")
    return Path(str(path)).read_text(encoding="utf-8")


def draw(
    title: str,
    alt: str,
    *,
    layers: Sequence[Layer] = (),
    places: Sequence[Place] = (),
    numbers: results.Numbers,
    note: str = "",
    tiles: str | None = None,
    attribution: str | None = None,
) -> Map:
    """Draw layers, the first lowest, and shops on one map.

    Parameters
    ----------
    title : str, the question
    alt : str, the answer in words, for who cannot see the map
    layers, places : what to draw
    numbers : Numbers, how the legend writes
    note : str, said under the legend, such as how many cells are hidden
    tiles : str, a background from the network for the notebook, https with {z}, {x} and {y}; on a
        page, which must open without a network, it is left out
    attribution : str, whom the tiles are of

    Raises
    ------
    UsageError if there is nothing to draw, or something cannot be drawn
    """
    if not title.strip() or not alt.strip():
        raise tables.UsageError("A map needs a title and, in `alt`, what it shows in words.")
    _check(layers)
    tiled = tiles is not None and not results.on_page()
    _check_tiles(tiles, attribution)
    if tiles is not None and not tiled:
        note = f"{note} Without its background: a page opens without a network.".strip()
    data, bounds = _data(layers, places)
    legends: list[dict[str, Any]] = []
    for number, (layer, collection) in enumerate(zip(layers, data, strict=False)):
        if layer.legend:
            entries, shades = _shades(layer, numbers)
            legends.append({"number": number, "title": layer.legend, "entries": entries})
            for feature, shade in zip(collection["features"], shades, strict=True):
                feature["properties"]["shade"] = shade
            collection["features"] = _together(collection["features"])
    chart, drawn = _folium(layers, data, bounds, tiles if tiled else None, attribution)
    shaded = ", ".join(f"[{one['number']}, {drawn[one['number']]}]" for one in legends)
    how = json.dumps([numbers.locale.replace("_", "-"), not tiled])[1:-1]
    script = _script(chart, f"crmlab.finish({chart.get_name()}, {how}, [{shaded}]);")
    own = {place.own for place in places}
    html = _template().render(
        title=title, alt=alt, key=chart.get_name(), tiled=tiled, legends=legends, note=note,
        own=True in own, other=False in own,
    )  # fmt: skip
    # folium draws its names by lot; the same map is to be the same page.
    lot = chart.get_name()
    digest = hashlib.sha256((html + script).replace(lot, "").encode()).hexdigest()
    key = f"map_{digest[:16]}"
    host = "/".join((tiles or "").split("/")[:3]).replace("{s}", "*") if tiled else ""
    return Map(f"{title} {alt}", key, html.replace(lot, key), script.replace(lot, key), host)


def _together(features: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return polygons that say nothing as one for each shade, the lightest lowest; others after."""
    parts: dict[str, list[Any]] = {}
    others = []
    for one in features:
        if one["properties"]["text"] or one["geometry"]["type"] != "Polygon":
            others.append(one)
            continue
        shade, shape = one["properties"]["shade"], one["geometry"]["coordinates"]
        parts.setdefault(shade, []).append(shape)
    found = [
        {"type": "Feature", "properties": {"shade": shade, "text": ""},
         "geometry": {"type": "MultiPolygon", "coordinates": shapes}}
        for shade, shapes in sorted(parts.items())
    ]  # fmt: skip
    return found + others


@cache
def _template() -> Any:
    import jinja2

    text = (TEMPLATES / "map.html.j2").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(text)


def _check(layers: Sequence[Layer]) -> None:
    """Raise UsageError for layers that would be drawn wrong."""
    names = [layer.name for layer in layers]
    if len({*names, "Shops"}) <= len(names):
        raise tables.UsageError(f"The layers of a map need different names, and none 'Shops'; they "
                                f"have {names}.")  # fmt: skip
    for layer in layers:
        for shape in layer.shapes:
            known = shape.value is not None and math.isfinite(shape.value)
            if layer.legend and shape.state == "value" and not known:
                raise tables.UsageError(f"Layer {layer.name!r} has a shape without a value: its "
                                        "state must be 'hidden', 'zero' or 'no data'.")  # fmt: skip
            if not layer.legend and (known or shape.state != "value"):
                raise tables.UsageError(f"Layer {layer.name!r} has values and needs a `legend`: "
                                        "what they are, with the unit.")  # fmt: skip


def _check_tiles(tiles: str | None, attribution: str | None) -> None:
    parts = ("{z}", "{x}", "{y}")
    if tiles is not None and not (
        tiles.startswith("https://") and all(part in tiles for part in parts)
    ):
        raise tables.UsageError(f"Tiles are asked for at an address that begins with https:// and "
                                f"holds {{z}}, {{x}} and {{y}}, not {tiles!r}.")  # fmt: skip
    if tiles is not None and not (attribution or "").strip():
        raise tables.UsageError("Tiles belong to somebody: name them in `attribution`.")


def _data(
    layers: Sequence[Layer], places: Sequence[Place]
) -> tuple[list[dict[str, Any]], list[list[float]]]:
    """Return one GeoJSON collection per layer and one of the places, and what they cover.

    All longitudes are turned to lie within half a world of the first: what lies beyond 180 degrees
    stays beside what does not. The bounds are [[south, west], [north, east]].
    """
    points: list[tuple[float, float]] = []

    def place(position: Sequence[float]) -> list[float]:
        longitude, latitude = (float(value) for value in position[:2])
        if not (math.isfinite(longitude) and abs(latitude) <= 90):
            raise tables.UsageError(
                f"Nothing can be drawn at longitude {longitude:g}, latitude {latitude:g}: a shape "
                "gives its degrees of longitude first, then those of latitude."
            )
        latitude = max(-LARGEST_LATITUDE, min(LARGEST_LATITUDE, latitude))
        if points:
            longitude -= 360 * round((longitude - points[0][0]) / 360)
        points.append((longitude, latitude))
        return [round(longitude, DECIMALS), round(latitude, DECIMALS)]

    def turn(coordinates: Any) -> list[Any]:
        if not coordinates or isinstance(coordinates[0], (int, float)):
            return place(coordinates) if coordinates else []
        return [turn(inner) for inner in coordinates]

    def feature(geometry: Mapping[str, Any], **properties: Any) -> dict[str, Any]:
        if not {"type", "coordinates"} <= set(geometry):
            raise tables.UsageError(f"A map draws geometries with coordinates, not {geometry!r}.")
        shape = {"type": geometry["type"], "coordinates": turn(geometry["coordinates"])}
        return {"type": "Feature", "geometry": shape, "properties": properties}

    shops = [
        feature(
            {"type": "Point", "coordinates": [one.longitude, one.latitude]},
            kind="own" if one.own else "other",
            name=one.name,
            text=f"{one.name}\n{one.text}".strip(),
        )
        # What is drawn last lies on top.
        for one in sorted(places, key=lambda one: one.own)
    ]
    drawn = [
        [
            feature(shape.geometry, kind="word", name=shape.text)
            if shape.geometry.get("type") in ("Point", "MultiPoint")
            else feature(shape.geometry, text=shape.text)
            for shape in layer.shapes
        ]
        for layer in layers
    ]
    if not points:
        raise tables.UsageError("There is nothing to draw: neither a shape nor a place was given.")
    sides = []
    for values in zip(*points, strict=True):
        middle, half = (min(values) + max(values)) / 2, (max(values) - min(values)) / 2
        half = max(half, LEAST_EXTENT / 2)
        sides.append((round(middle - half, DECIMALS), round(middle + half, DECIMALS)))
    (west, east), (south, north) = sides
    collections = [{"type": "FeatureCollection", "features": one} for one in [*drawn, shops]]
    return collections, [[south, west], [north, east]]


def _limits(values: Sequence[float]) -> list[float]:
    """Return where each class of values begins: as many in each, at numbers as round as they go.

    >>> _limits([10, 11, 12, 16, 22, 29, 40, 59, 80, 131, 300, 1147])
    [10, 20, 40, 80, 300]
    """
    ordered, distinct = sorted(values), sorted(set(values))
    if len(distinct) <= CLASSES:
        return distinct
    found: list[float] = []
    # Where most values are the same, shares of the different ones part them.
    for some, digits in ((some, digits) for some in (ordered, distinct) for digits in range(1, 16)):
        wanted = {float(f"{some[len(some) * n // CLASSES]:.{digits}g}") for n in range(1, CLASSES)}
        inner = sorted(limit for limit in wanted if ordered[0] < limit <= ordered[-1])
        found = [ordered[0], *(int(limit) if limit.is_integer() else limit for limit in inner)]
        filled = {bisect_right(found, value) - 1 for value in distinct}
        found = [limit for number, limit in enumerate(found) if number in filled]
        if len(found) >= CLASSES - 1:
            break
    return found


def _shades(layer: Layer, numbers: results.Numbers) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the legend of a shaded layer, (shade, words), and the shade of each of its shapes."""
    values = [s.value for s in layer.shapes if s.state == "value" and s.value is not None]
    limits, last = _limits(values), max(values, default=0.0)
    printed = layer.printed or numbers.number
    # Of things counted the next class begins one later.
    step = 1 if layer.printed is None and all(float(v).is_integer() for v in values) else 0
    uppers = [*(limit - step for limit in limits[1:]), last][: len(limits)]
    apart = (CLASSES - 1) / max(len(limits) - 1, 1)
    shades = [str(round(place * apart)) for place in range(len(limits))]
    alone = len(set(values)) <= CLASSES
    entries = []
    for shade, low, high in zip(shades, limits, uppers, strict=True):
        said, to = printed(low), printed(high)
        entries.append((shade, said if alone or said == to else f"{said} – {to}"))
    found = [
        shades[bisect_right(limits, shape.value) - 1]
        if shape.state == "value" and shape.value is not None
        else STATES[shape.state][0]
        for shape in layer.shapes
    ]
    entries += [sign for sign in STATES.values() if sign[0] in found]
    return entries, found


def _folium(
    layers: Sequence[Layer],
    data: Sequence[dict[str, Any]],
    bounds: list[list[float]],
    tiles: str | None,
    attribution: str | None,
) -> tuple[folium.Map, list[str]]:
    """Return folium's map with the layers, the shops and the switches; and the layers' names."""
    import folium
    from folium.utilities import JsCode

    chart = folium.Map(
        location=bounds[0],
        tiles=None,
        reach=bounds,
        scroll_wheel_zoom=False,  # or a page could not be scrolled past its map
        attribution_control=tiles is not None,
        zoom_snap=0 if tiles is None else 1,
    )
    if tiles:
        folium.TileLayer(tiles, attr=escape(attribution or ""), control=False).add_to(chart)
    # Shades lie below all lines, in whatever order they are switched on.
    folium.map.CustomPane("shades", z_index=390, pointer_events=True).add_to(chart)
    common: dict[str, Any] = {
        "on_each_feature": JsCode("crmlab.each"),
        "point_to_layer": JsCode("crmlab.point"),
        "smooth_factor": 0,
    }
    shaded = [layer for layer in layers if layer.legend]
    first = next((layer for layer in shaded if layer.shown), None) or next(iter(shaded), None)
    drawn = []
    for layer, collection in zip(layers, data, strict=False):
        name, looks = escape(layer.name), dict(common)
        if layer.legend:
            looks |= {"style": JsCode("crmlab.style"), "pane": "shades"}
        else:
            edges = f"edge edge-{layer.colour}{' dashed' if layer.dashed else ''}"
            looks |= {"class_name": edges, "fill": False}
            name = f'<i class="stroke {edges}"></i> {name}'
        one_of_several = bool(layer.legend) and len(shaded) > 1
        show = layer is first if one_of_several else layer.shown
        drawn.append(folium.GeoJson(
            collection, name=name, overlay=not one_of_several, show=show, **looks
        ))  # fmt: skip
    if data[-1]["features"]:
        drawn.append(folium.GeoJson(data[-1], name="Shops", **common))
    for one in drawn:
        one.add_to(chart)
    if len(drawn) > 1:
        folium.LayerControl(collapsed=False).add_to(chart)
    return chart, [one.get_name() for one in drawn]


def _script(chart: folium.Map, end: str) -> str:
    """Return what draws the map and ends so, without names that differ from one time to the next.

    It stands alone in a function: several maps on a page do not see each other's names.
    """
    figure: Any = chart.get_root()
    figure.render()
    known = {*LOADED_BY_FOLIUM, "meta_http", chart.get_name()}
    if unknown := sorted(set(figure.header._children) - known):
        raise RuntimeError(
            f"folium would load {', '.join(unknown)}, which crmlab does not know: a map would not "
            "open without a network. Install the version of folium that crmlab was made with."
        )
    script = f"(() => {{{figure.script.render()}{end}}})();"
    for number, child in enumerate(chart._children.values()):
        script = script.replace(child.get_name(), f"{chart.get_name()}_{number}")
    return "\n".join(line.strip() for line in script.splitlines() if line.strip())
