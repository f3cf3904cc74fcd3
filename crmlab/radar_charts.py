"""The round pictures: customers by ring and sector, and by occupation, sex and age."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import matplotlib

from crmlab import drawing, places, results
from crmlab.drawing import GRID, INK, MUTED, PAPER, SMALL, STYLE, Chart

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from crmlab.customer_radar import Radar

# A picture that is laid out by hand is drawn in points, as wide as every chart.
WIDTH = 374.4
MARGIN = 6
CENTRE = WIDTH / 2 - MARGIN
# The radius of the customer radar and of the hole in it, and what stands behind its words.
DISC, HOLE = 114.0, 24.0
BOX = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8}
# The measures of a cell, in the order of the panels. Those of people are hidden with the cell.
MEASURES = {
    "customers": "Customers",
    "members": "Members",
    "spend": "Spend",
    "purchasing_power": "Purchasing power",
    "points": "Points",
    "penetration": "Customers per 100 people",
}
MONEY, OF_PEOPLE = ("spend", "purchasing_power"), ("purchasing_power",)
# Fills of their own, the same on light and dark pages, with the text that is readable on them.
HIDDEN = "×"  # for its own sake or for others': no word of how many
DARK_TEXT, LIGHT_TEXT = "#000000", "#ffffff"


class Cells(Protocol):
    """What `ring_sector` draws: that of `catchment.cells` for one store."""

    @property
    def numbers(self) -> results.Numbers: ...  # noqa: D102
    @property
    def k(self) -> int: ...  # noqa: D102
    @property
    def rings_km(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def sectors(self) -> int: ...  # noqa: D102
    @property
    def store(self) -> str: ...  # noqa: D102
    @property
    def rows(self) -> pd.DataFrame: ...  # noqa: D102


def ring_sectors(result: Cells) -> list[Chart]:
    """Draw each measure of `ring_sector` in a chart of its own, to stand side by side."""
    rows = result.rows[result.rows["ring"] >= 0]
    return [ring_sector(result, only=name) for name in _known(rows)]


def ring_sector(result: Cells, *, only: str = "") -> Chart:
    """Draw customers, members, spend and what else is known by ring and sector around a store.

    The rings are equally wide in the picture; their radii are written on them. Where the
    cells are too narrow for numbers, with seven rings or five of 16 sectors, colours are left.
    With `only`, one measure, the others are left out.
    """
    n, rows = result.numbers, result.rows[result.rows["ring"] >= 0]
    measures = [only] if only else _known(rows)
    hole, width = _measured(len(result.rings_km), result.sectors)
    disc = hole + width * len(result.rings_km)
    panel, head, foot = 2 * disc + 66, 42, 50
    title = (
        f"{MEASURES[only]}{_unit(rows, only, result)}" if only else "Where do our customers live?"
    )
    told = _told(result, rows, measures)
    store = f"Around {result.store}. " if result.store else ""
    around = f"around {drawing.short(result.store, 30)}, " if result.store else ""
    reach = n.km(result.rings_km[-1])
    with matplotlib.rc_context(STYLE):
        height = head + panel * len(measures) + foot
        chart, axes = _canvas(title, f"{store}{told}", height)
        axes.text(0, height - 34, f"{around}rings to {reach} km, north at the top", color=MUTED,
                  fontsize=SMALL)  # fmt: skip
        for at, name in enumerate(measures):
            middle = CENTRE, height - head - panel * (at + 0.5) - 12
            _panel(axes, middle, result, rows, name, hole, width, titled=not only)
        seen = {_state(row, name) for row in rows.to_dict("records") for name in measures}
        _key(axes, n.number(result.k), seen)
    return chart


def _known(rows: pd.DataFrame) -> list[str]:
    """Return the measures of which something can be shown."""
    return [name for name in MEASURES if name in rows and rows[name].notna().any()]


def _measured(rings: int, sectors: int) -> tuple[float, float]:
    """Return the radius of the hole in the middle, and the width of a ring, in points.

    The first ring has a hole, so that its cells have room for a number.
    """
    width = max(25.0, 120 / rings)
    hole = max(8.0, 5.0 * sectors - width / 2)
    smaller = min(1.0, 156 / (hole + width * rings))
    return hole * smaller, width * smaller


def _told(result: Cells, rows: pd.DataFrame, measures: Sequence[str]) -> str:
    """Say in words where most is of each measure, and how many cells say nothing."""
    n, names = result.numbers, places.sector_names(result.sectors)
    ends = [n.km(radius) for radius in (0.0, *result.rings_km)]
    told = []
    for name in measures:
        known = rows[[_state(row, name) == "value" for row in rows.to_dict("records")]]
        cells = "; ".join(
            f"{names[int(row.sector)]}, {ends[int(row.ring)]} to {ends[int(row.ring) + 1]} km: "
            f"{_full(getattr(row, name), name, n)}"
            for row in known.nlargest(3, name).itertuples()
        )
        told.append(f"{MEASURES[name]}, most: {cells or 'nothing that can be shown'}.")
    counts = rows["state"].value_counts()
    for state, words in (("hidden", f"hidden: they or others have under {result.k} people"),
                         ("zero", "without customers"), ("no data", "without data")):  # fmt: skip
        if count := counts.get(state, 0):
            told.append(f"{n.number(count)} of {n.number(len(rows))} cells are {words}.")
    return " ".join(told) or "Nothing is known."


def _panel(
    axes: Axes,
    middle: tuple[float, float],
    result: Cells,
    rows: pd.DataFrame,
    name: str,
    hole: float,
    width: float,
    *,
    titled: bool,
) -> None:
    """Draw one measure around its middle."""
    n, rings, sectors = result.numbers, len(result.rings_km), result.sectors
    disc = hole + width * rings
    printed, unit = _printed(rows[name], name, n, narrow=width < 32)
    if titled:
        axes.text(0, middle[1] + disc + 28, f"{MEASURES[name]}{unit}", color=INK, fontsize=11.5,
                  fontweight="bold")  # fmt: skip
    drawn = [(row, _state(row, name)) for row in rows.to_dict("records")]
    largest = max((row[name] for row, state in drawn if state == "value"), default=0)
    for row, state in drawn:
        text = {"hidden": HIDDEN, "zero": n.number(0)}.get(state, results.NOTHING)
        share = 0.0
        if state == "value":
            text, share = printed(row[name]), row[name] / largest if largest > 0 else 0.0
        # Where rings are many there is no room for numbers.
        text = text if width >= 22 else ""
        _cell(axes, middle, hole + width * row["ring"], width, row["sector"] / sectors,
              1 / sectors, state, share, text)  # fmt: skip
    if hole >= 20:
        axes.text(*middle, "store", color=MUTED, fontsize=SMALL, ha="center", va="center_baseline")
    for turn, wind in enumerate(places.sector_names(sectors)):
        x, y = _polar(middle, disc + 9, turn / sectors)
        side = round(x - middle[0], 6)
        axes.text(x, y, wind, color=INK, fontsize=SMALL, fontweight="bold", va="center",
                  ha="left" if side > 0 else "right" if side < 0 else "center")  # fmt: skip
    for ring, radius in enumerate(result.rings_km, start=1):
        x, y = _polar(middle, hole + width * ring, 0.5 / sectors)
        words = n.km(radius) + (" km" if ring == rings else "")
        axes.text(x, y, words, color=MUTED, fontsize=SMALL, ha="center", va="center", bbox=BOX)


def _unit(rows: pd.DataFrame, name: str, result: Cells) -> str:
    """Return the unit of a measure, as it stands behind its name."""
    _, width = _measured(len(result.rings_km), result.sectors)
    return _printed(rows[name], name, result.numbers, narrow=width < 32)[1]


def _state(row: dict[str, Any], name: str) -> str:
    """Return how a cell is drawn in the panel of a measure; of people is told in hidden cells too.

    A cell that hides its customers shows nothing of them, whatever its row says.
    """
    value = row[name]
    if name not in OF_PEOPLE and row["state"] in ("hidden", "no data"):
        return str(row["state"])
    if math.isfinite(value):
        return "value" if value else "zero"
    if name in (*OF_PEOPLE, "penetration"):
        return "hidden" if row["state"] == "hidden" else "no data"
    return "zero" if row["state"] == "zero" else "hidden"


def _printed(
    values: pd.Series[float], name: str, n: results.Numbers, *, narrow: bool
) -> tuple[Callable[[float], str], str]:
    """Return how the numbers of a panel print in its cells, and their unit for its title."""
    most, money = values.abs().max(), n.currency if name in MONEY else ""
    if name == "penetration":
        return lambda share: n.number(100 * share, int(most < 0.2)), ""
    if narrow:
        return lambda value: _shortest(value, n), f", {money}" if money else ""
    unit, word = 1.0, ""
    for larger, told in ((1e3, "thousand"), (1e6, "million"), (1e9, "billion")):
        if most >= 10 * larger:
            unit, word = larger, told

    def printed(value: float) -> str:
        return n.number(value / unit, int(unit > 1 and abs(value) < 9.95 * unit))

    words = f"{word} {money}".strip()
    return printed, f", {words}" if words else ""


def _shortest(value: float, n: results.Numbers) -> str:
    """Print a number in four characters or so, such as 950, 1.2k, 88k or 3.1M."""
    for unit, letter, least in ((1e9, "B", 1e8), (1e6, "M", 1e6), (1e3, "k", 1e3)):
        if abs(value) >= 0.9995 * least:
            return n.number(value / unit, int(abs(value) < 9.95 * unit)) + letter
    return n.number(value)


def _full(value: float, name: str, n: results.Numbers) -> str:
    """Print a measure in words."""
    if name == "penetration":
        return n.number(100 * value, 1)
    return n.short_money(value) if name in MONEY else n.number(value)


def _canvas(title: str, alt: str, height: float) -> tuple[Chart, Axes]:
    """Begin a chart that is laid out by hand, in points from its lower left."""
    chart = Chart(alt=f"{title} {alt}")
    chart.set_layout_engine("none")
    chart.set_size_inches(WIDTH / 72, height / 72)
    axes = chart.add_axes((0, 0, 1, 1), xlim=(-MARGIN, WIDTH - MARGIN), ylim=(0, height))
    axes.set_axis_off()
    axes.text(0, height - 16, title, color=INK, fontsize=12, fontweight="bold")
    return chart, axes


def _polar(middle: tuple[float, float], radius: float, turn: float) -> tuple[float, float]:
    """Return the point so far from the middle, in a direction told in clockwise turns."""
    angle = 2 * math.pi * turn
    return middle[0] + radius * math.sin(angle), middle[1] + radius * math.cos(angle)


def _cell(
    axes: Axes,
    middle: tuple[float, float],
    inner: float,
    width: float,
    turn: float,
    wide: float,
    state: str,
    share: float,
    text: str,
) -> None:
    """Draw a cell, its middle at `turn` and so `wide`, both in turns, filled by a `share` of 1."""
    from matplotlib.patches import Wedge

    ends = [90 - 360 * (turn + half * wide) for half in (0.5, -0.5)]
    wedge = Wedge(middle, inner + width - 0.6, *ends, width=width - 1.2, **_look(state, share))
    axes.add_patch(wedge)
    if text:
        x, y = _polar(middle, inner + width / 2, turn)
        colour = shade(share)[1] if state == "value" else INK
        box = BOX if state == "hidden" else None
        axes.text(x, y, text, color=colour, fontsize=SMALL, ha="center", va="center_baseline",
                  bbox=box)  # fmt: skip


def _look(state: str, share: float) -> dict[str, Any]:
    """Return how a cell looks: hidden, zero and no data are told apart without colours."""
    return {
        "value": {"facecolor": shade(share)[0], "edgecolor": PAPER, "linewidth": 1.2},
        "hidden": {"facecolor": PAPER, "edgecolor": MUTED, "linewidth": 0.5, "hatch": "////",
                   "hatch_linewidth": 0.4},
        "zero": {"facecolor": PAPER, "edgecolor": GRID, "linewidth": 1},
        "no data": {"facecolor": PAPER, "edgecolor": MUTED, "linewidth": 1,
                    "linestyle": (0, (1, 2))},
    }[state]  # fmt: skip


def shade(share: float) -> tuple[str, str]:
    """Return the fill of a cell, pale to dark, and the colour of the text that is readable on it.

    Parameters
    ----------
    share : float, its value by the largest one

    Notes
    -----
    The contrast is that of the Web Content Accessibility Guidelines 2.2.
    """
    from matplotlib.colors import to_hex

    # Below the palest tenth a fill could be taken for paper.
    fill = matplotlib.colormaps["YlGnBu"](0.08 + 0.9 * min(max(share, 0.0), 1.0))
    return to_hex(fill), DARK_TEXT if luminance(to_hex(fill)) > 0.179 else LIGHT_TEXT


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour such as #0b5cad, from 0 to 1."""
    from matplotlib.colors import to_rgb

    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def _key(axes: Axes, k: str, states: Collection[str]) -> None:
    """Say below the panels what colours and patterns mean."""
    axes.text(0, 30, "low", color=MUTED, fontsize=SMALL)
    for at in range(5):
        _swatch(axes, 26 + 16 * at, 28, "value", at / 4)
    axes.text(111, 30, "high, each panel by its own scale", color=MUTED, fontsize=SMALL)
    words = {
        "hidden": f"{HIDDEN}: hidden (k = {k})",
        "zero": "0: none",
        "no data": f"{results.NOTHING}: no data",
    }
    x = 0.0
    for state, text in words.items():
        if state in states:
            _swatch(axes, x, 8, state, 0)
            axes.text(x + 20, 10, text, color=MUTED, fontsize=SMALL)
            x += 34 + 6.4 * len(text)


def _swatch(axes: Axes, x: float, y: float, state: str, share: float) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x, y), 16, 11, **_look(state, share)))


def customer_radar(result: Radar) -> Chart:
    """Draw who the customers are: occupation by direction, age by distance, sex by side.

    The area of a circle is the number of customers, its colour what they spend each.
    """
    n, rows = result.numbers, result.drawn
    by_sex = "; ".join(
        f"{side}: {_groups(rows[rows['sex'] == side].nlargest(3, 'customers'), n)}"
        for side in result.sides
    )
    said = textwrap.wrap(result.note, 60)
    foot = 90 + 14 * len(said)
    middle = CENTRE, foot + DISC + 20
    alt = f"{result.verdict} Largest groups, {by_sex or 'none'}. {result.note}".strip()
    with matplotlib.rc_context(STYLE):
        title = "Who are our customers, and what do they spend?"
        chart, axes = _canvas(title, alt, middle[1] + DISC + 54)
        _spokes(axes, middle, result)
        if len(rows):
            _circles(axes, middle, result)
            _legends(axes, result, foot)
        for at, line in enumerate(reversed(said)):
            axes.text(0, 8 + 14 * at, line, color=MUTED, fontsize=SMALL)
    return chart


def _spokes(axes: Axes, middle: tuple[float, float], result: Radar) -> None:
    """Draw the web: a spoke for each occupation and side, a ring for each age."""
    from matplotlib.patches import Circle

    for at, age in enumerate(result.ages):
        axes.add_patch(Circle(middle, _ring(at, result), fill=False, edgecolor=GRID))
        axes.text(middle[0], middle[1] + _ring(at, result), age, color=MUTED, fontsize=SMALL,
                  ha="center", va="center", zorder=5, bbox=BOX)  # fmt: skip
    ends = [(middle[0], middle[1] + side * DISC) for side in (-1, 1)]
    axes.plot(*zip(*ends, strict=True), color=MUTED, linewidth=1.2, zorder=1)
    for side, x, align in zip(result.sides, (0, 2 * CENTRE), ("left", "right"), strict=False):
        axes.text(x, middle[1] + DISC + 18, side, color=INK, fontsize=12, fontweight="bold",
                  ha=align)  # fmt: skip
        for at, name in enumerate(result.occupations):
            turn = _turn(at, side, result)
            ends = [_polar(middle, radius, turn) for radius in (HOLE, DISC)]
            axes.plot(*zip(*ends, strict=True), color=GRID, linewidth=0.8, zorder=1)
            axes.text(*_polar(middle, DISC + 5, turn), drawing.short(name, 22, 11), color=INK,
                      fontsize=SMALL, ha="right" if turn < 0 else "left", va="center",
                      linespacing=0.95)  # fmt: skip


def _ring(at: int, result: Radar) -> float:
    """Return the radius of an age."""
    return HOLE + (DISC - HOLE) / len(result.ages) * (at + 0.5)


def _turn(at: int, side: str, result: Radar) -> float:
    """Return the direction of an occupation, the first of both sides left, the second right."""
    half = 0.045 + 0.41 * (at + 0.5) / len(result.occupations)  # beside the line there are words
    return -half if side == result.sides[0] else half


def _circles(axes: Axes, middle: tuple[float, float], result: Radar) -> None:
    """Draw the groups, large ones below small ones."""
    from matplotlib.patches import Circle

    rows = result.drawn.sort_values("customers", ascending=False, kind="stable")
    least, top = rows["spend"].min(), rows["spend"].max()
    for row in rows.itertuples():
        share = (row.spend - least) / (top - least) if top > least else 0.5
        turn = _turn(result.occupations.index(row.occupation), row.sex, result)
        at = _polar(middle, _ring(result.ages.index(row.age_group), result), turn)
        size = _widest(result) * math.sqrt(row.customers / rows["customers"].max())
        axes.add_patch(Circle(at, size, zorder=3, facecolor=shade(share)[0], edgecolor=MUTED,
                              linewidth=0.6))  # fmt: skip


def _widest(result: Radar) -> float:
    """Return the radius of the largest circle, so that neighbours on a spoke hardly overlap."""
    return min(13.0, 0.6 * (DISC - HOLE) / len(result.ages))


def _legends(axes: Axes, result: Radar, top: float) -> None:
    """Say what the colours and the areas of the circles stand for."""
    from matplotlib.patches import Circle

    n, rows, widest = result.numbers, result.drawn, _widest(result)
    most = rows["customers"].max()
    words = f"spend each in {n.number(result.days)} days"
    axes.text(0, top - 28, words, color=MUTED, fontsize=SMALL)
    for at in range(7):
        _swatch(axes, 16 * at, top - 48, "value", at / 6)
    for x, end, align in ((0, "min", "left"), (112, "max", "right")):
        axes.text(x, top - 64, n.money(rows["spend"].agg(end), 0), color=INK, fontsize=SMALL,
                  ha=align)  # fmt: skip
    axes.text(222, top - 28, "customers", color=MUTED, fontsize=SMALL)
    for at, part in enumerate((1, 0.4, 0.1)):
        count = float(f"{part * most:.1g}")
        x, size = 236 + 46 * at, widest * math.sqrt(count / most)
        axes.add_patch(Circle((x, top - 44), size, facecolor=GRID, edgecolor=MUTED))
        axes.text(x, top - 70, n.number(count), color=INK, fontsize=SMALL, ha="center")


def _groups(rows: pd.DataFrame, n: results.Numbers) -> str:
    """Tell of groups of customers in words."""
    told = [
        f"{row.occupation}, {row.age_group}, {n.number(row.customers)} customers, "
        f"{n.money(row.spend, 0)} each"
        for row in rows.itertuples()
    ]
    return "; ".join(told) or "none that can be shown"
