"""The pictures: a result goes in, a chart with its alternative text comes out."""

from __future__ import annotations

import re
from io import StringIO
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from crmlab import results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from crmlab.clv import Backtest, PurchaseCounts, Worth

# Colours are written as variables of the page, with these for where there is no page around.
INK, MUTED, GRID, PAPER = "#1c2733", "#56616d", "#d9dee4", "#fefefe"
ACTUAL, MODEL = "#a8480a", "#0b5cad"
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
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": self.alt}):
            self.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        svg = text.getvalue()[text.getvalue().index("<svg") :]
        used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
        svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", svg)
        for colour, name in VARIABLES.items():
            svg = svg.replace(colour, f"var({name}, {colour})")
        return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        return {"image/svg+xml": self.svg()}, {"image/svg+xml": {"alt": self.alt}}


def _draw(title: str, alt: str) -> tuple[Chart, Axes]:
    chart = Chart(alt=f"{title} {alt}")
    axes = chart.subplots()
    axes.set_title(title)
    return chart, axes


def _label(axes: Axes, x: float, y: float, text: str, colour: str, **options: Any) -> None:
    axes.annotate(
        text,
        (x, y),
        xytext=options.pop("offset", (4, 0)),
        textcoords="offset points",
        color=colour,
        **options,
    )


def tracking(result: Backtest) -> Chart:
    """Draw repeat purchases, forecast against actual, from the log's start past the split."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num

    n, frame = result.numbers, result.tracking
    last = frame.iloc[-1]
    missed = n.percent(last["expected"] / last["actual"] - 1, signed=True)
    with matplotlib.rc_context(STYLE):
        chart, axes = _draw(
            "Did the forecast hold?",
            f"Cumulative repeat purchases by {n.day(last['day'])}: {n.number(last['actual'])} "
            f"made, {n.number(last['expected'])} expected by the model ({missed}). The model "
            f"had learnt up to {n.day(result.split)} only.",
        )
        days = date2num(frame["day"].tolist())
        axes.plot(days, frame["actual"], color=ACTUAL, linewidth=2)
        axes.plot(days, frame["expected"], color=MODEL, linewidth=2, linestyle=(0, (4, 2)))
        top = max(last["actual"], last["expected"])
        above, below = ("actual", "expected") if last["actual"] == top else ("expected", "actual")
        for name, lift in ((above, 8), (below, -50)):
            text, colour = f"{name} {n.number(last[name])}", ACTUAL if name == "actual" else MODEL
            _label(axes, days[-1], last[name], text, colour, offset=(0, lift), ha="right")
        split = float(date2num(result.split))
        axes.axvline(split, color=MUTED, linewidth=1)
        _label(axes, split, 0, "forecast from here", MUTED, offset=(5, 6))
        locator = AutoDateLocator(minticks=3, maxticks=6)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.set(ylabel="repeat purchases so far", ylim=(0, 1.15 * top))
        _tick_numbers(axes, n)
    return chart


def calibration(result: Backtest) -> Chart:
    """Draw purchases per customer in the hold-out, by tenth of the customers by forecast."""
    n, frame = result.numbers, result.calibration
    told = "; ".join(
        f"part {part} of {len(frame)}: {n.number(row.expected, 2)} expected, "
        f"{n.number(row.actual, 2)} made"
        for part, row in enumerate(frame.itertuples(), start=1)
    )
    with matplotlib.rc_context(STYLE):
        chart, axes = _draw(
            "Do those buy of whom it is expected?",
            f"Purchases per customer, customers in order of their forecast. {told}."
            if told
            else "Too few customers, or one who makes half of the purchases, to say so.",
        )
        places = range(1, len(frame) + 1)
        axes.bar([p - 0.2 for p in places], frame["actual"], 0.4, color=ACTUAL, label="actual")
        axes.bar([p + 0.2 for p in places], frame["expected"], 0.4, color=MODEL, label="expected")
        axes.set_xticks(list(places))
        axes.grid(visible=False, axis="x")
        axes.set(xlabel="customers by forecast, lowest tenth first", ylabel="purchases each")
        axes.legend(frameon=False, labelcolor=[ACTUAL, MODEL])
        digits = 1 if len(frame) and frame[["actual", "expected"]].to_numpy().max() < 5 else 0
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: n.number(value, digits)))
    return chart


def purchase_counts(result: PurchaseCounts, numbers: results.Numbers) -> Chart:
    """Draw how many customers made so many repeat purchases, seen and expected by the model."""
    counts = result.counts
    told = "; ".join(
        f"{row.label}: {numbers.number(row.customers)} seen, "
        f"{numbers.number(row.expected)} expected"
        for row in counts.itertuples()
    )
    with matplotlib.rc_context(STYLE):
        chart, axes = _draw(
            "Does the model fit what it has seen?", f"Customers by repeat purchases. {told}."
        )
        places = range(len(counts))
        axes.bar([p - 0.2 for p in places], counts["customers"], 0.4, color=ACTUAL, label="actual")
        axes.bar([p + 0.2 for p in places], counts["expected"], 0.4, color=MODEL, label="expected")
        axes.set_xticks(list(places), [label.replace(" or more", "+") for label in counts["label"]])
        axes.grid(visible=False, axis="x")
        axes.set(xlabel="repeat purchases", ylabel="customers")
        axes.legend(frameon=False, labelcolor=[ACTUAL, MODEL])
        _tick_numbers(axes, numbers)
    return chart


def concentration(result: Worth) -> Chart:
    """Draw which share of the lifetime value the best customers bring."""
    n, curve = result.numbers, result.curve
    known = result.top_share == result.top_share
    fifth, share = n.percent(0.2, 0), n.percent(result.top_share, 0)
    with matplotlib.rc_context(STYLE):
        chart, axes = _draw(
            "Who brings the value?",
            f"The best {fifth} of the customers bring {share} of the lifetime value; were all "
            f"customers alike, it would be {fifth}."
            if known
            else "Too few customers, or one who brings half, to say what the best fifth bring.",
        )
        axes.plot(
            100 * curve["share_of_customers"],
            100 * curve["share_of_clv"],
            color=MODEL,
            linewidth=2,
        )
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        if known:
            top = 100 * result.top_share
            axes.plot([20, 20, 0], [0, top, top], color=ACTUAL, linewidth=1)
            axes.plot([20], [top], "o", color=ACTUAL)
            text = f"{fifth} bring {share}"
            _label(axes, 20, top, text, ACTUAL, offset=(8, -14), fontweight="bold")
        _label(axes, 50, 50, "if all were alike", MUTED, offset=(8, -10))
        axes.set(
            xlabel="customers, best first, %",
            ylabel="share of lifetime value, %",
            xlim=(0, 100),
            ylim=(0, 102),
        )
    return chart


def _tick_numbers(axes: Axes, numbers: results.Numbers) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: numbers.number(value)))
