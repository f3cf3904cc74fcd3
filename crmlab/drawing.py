"""How every picture is made: colours, the chart as SVG with its words, axes as the shop writes."""

from __future__ import annotations

import re
import textwrap
import warnings
from io import StringIO
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from crmlab import results

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Colours are written as variables of the page, with these for where there is no page around.
INK, MUTED, GRID, PAPER = "#1c2733", "#56616d", "#d9dee4", "#fefefe"
ACTUAL, MODEL = "#a8480a", "#0b5cad"
# On a telephone a chart shrinks to four fifths or so: the smallest text that stays readable there.
SMALL = 10.5
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    PAPER: "--card",
    ACTUAL: "--chart-actual",
    MODEL: "--chart-model",
}
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "svg.fonttype": "none",  # text stays text: it can be read aloud, found and copied
    "text.parse_math": False,  # a $ is a dollar
}


class Chart(Figure):
    """A figure that shows itself as SVG, with `alt`, what it says in words."""

    def __init__(self, *, alt: str) -> None:
        super().__init__(figsize=(5.2, 3.2), layout="constrained")
        self.alt = alt

    def svg(self) -> str:
        """Return the chart as SVG without ids of its own, the same for the same numbers."""
        text = StringIO()
        with (
            matplotlib.rc_context({**STYLE, "svg.hashsalt": self.alt}),
            warnings.catch_warnings(),
        ):
            # The page's own fonts write the text: it matters not which letters ours lack.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            self.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        svg = text.getvalue()[text.getvalue().index("<svg") :]
        used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
        svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", svg)
        for colour, name in VARIABLES.items():
            svg = svg.replace(colour, f"var({name}, {colour})")
        # What is said with every text or to the millionth of a point makes half of a page.
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        svg = re.sub(r"font-family: [^;\"]+;? ?| transform=\"rotate\(-0 [^)]+\)\"", "", svg)
        svg = re.sub(r">\s+<", "><", re.sub(r"(\.\d\d)\d+", r"\1", svg))
        return svg.replace("<svg ", "<svg font-family=\"'DejaVu Sans', Verdana, sans-serif\" ", 1)

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        return {"image/svg+xml": self.svg()}, {"image/svg+xml": {"alt": self.alt}}


def draw(title: str, alt: str) -> tuple[Chart, Axes]:
    """Begin a chart whose title is the question, and `alt` the answer in words."""
    chart = Chart(alt=f"{title} {alt}")
    axes = chart.subplots()
    axes.set_title(title)
    return chart, axes


def label(axes: Axes, x: float, y: float, text: str, colour: str, **options: Any) -> None:
    """Write beside a point."""
    axes.annotate(
        text,
        (x, y),
        xytext=options.pop("offset", (4, 0)),
        textcoords="offset points",
        color=colour,
        **options,
    )


def pairs(axes: Axes, frame: pd.DataFrame) -> None:
    """Draw what was actual and what was expected side by side."""
    places = range(1, len(frame) + 1)
    axes.bar([p - 0.2 for p in places], frame["actual"], 0.4, color=ACTUAL, label="actual")
    axes.bar([p + 0.2 for p in places], frame["expected"], 0.4, color=MODEL, label="expected")
    axes.grid(visible=False, axis="x")
    axes.legend(frameon=False, labelcolor=[ACTUAL, MODEL])


def days(axes: Axes) -> None:
    """Print the days of the x axis, as few as can be read."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=3, maxticks=6)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def tick_numbers(axes: Axes, numbers: results.Numbers, pairs: pd.DataFrame | None = None) -> None:
    """Print the numbers of the y axis as the shop writes them; small ones of pairs in tenths."""
    some = pairs is not None and len(pairs) and pairs[["actual", "expected"]].to_numpy().max() < 5
    digits = 1 if some else 0
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: numbers.number(value, digits)))


def short(words: str, most: int, width: int = 99) -> str:
    """Cut what is too long for its place, and break it into lines of some width."""
    words = words if len(words) <= most else f"{words[: most - 2].rstrip()} …"
    return "\n".join(textwrap.wrap(words, width))
