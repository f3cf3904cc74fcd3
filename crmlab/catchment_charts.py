"""The pictures of the catchment: how far stores reach, where to advertise, what a store changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import matplotlib
from matplotlib.ticker import FuncFormatter, MaxNLocator

from crmlab import drawing
from crmlab.drawing import ACTUAL, INK, MODEL, MUTED, SMALL, STYLE, Chart

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from crmlab import results

LINES = (MODEL, ACTUAL, "#2c8a5f", "#a45fc0", "#8f7a1e")  # seen on light and dark pages


class Answer(Protocol):
    """What the other charts draw: rows, and how their figures print."""

    @property
    def numbers(self) -> results.Numbers: ...  # noqa: D102
    @property
    def rows(self) -> pd.DataFrame: ...  # noqa: D102


class Reach(Protocol):
    """What `decay` draws: what may be shown of each store and distance."""

    numbers: results.Numbers

    def drawn(self) -> pd.DataFrame: ...  # noqa: D102


class Ranking(Answer, Protocol):
    """What `sectors` draws: rows, what their value is, and what it says."""

    @property
    def what(self) -> str: ...  # noqa: D102
    @property
    def verdict(self) -> str: ...  # noqa: D102


def decay(result: Reach) -> Chart:
    """Draw which share of those who live so far away buy at each store, with intervals.

    Five stores have names and colours, those with most buyers; the others are grey.
    """
    n, rows = result.numbers, result.drawn()
    # Who lives farther than the last band has no place on the axis.
    rows = rows[rows["share"].notna() & (rows["to_km"] < math.inf)].rename(
        columns={"name": "store"}
    )
    by_buyers = rows.groupby("store")["bought"].sum().sort_index()
    named = list(by_buyers.sort_values(ascending=False, kind="stable").index[:5])
    told = []
    for store in named:
        near, far = (rows[rows["store"] == store].iloc[end] for end in (0, -1))
        told.append(
            f"{store}: {n.percent(near['share'])} of those within "
            f"{n.km(near['to_km'])} km, {n.percent(far['share'])} at "
            f"{n.km(far['from_km'])} to {n.km(far['to_km'])} km"
        )
    title = "How far does a store reach?"
    with matplotlib.rc_context(STYLE):
        if not told:
            return drawing.draw(title, "Too few customers live near any store to say so.")[0]
        chart, axes = drawing.draw(
            title, f"Customers who buy at a store, of all who live so far away. {'; '.join(told)}."
        )
        for _, one in rows[~rows["store"].isin(named)].groupby("store"):
            axes.plot((one["from_km"] + one["to_km"]) / 2, 100 * one["share"], color=MUTED,
                      linewidth=1, alpha=0.5)  # fmt: skip
        ends = []
        for store, colour in zip(named, LINES, strict=False):
            one = rows[rows["store"] == store]
            at = (one["from_km"] + one["to_km"]) / 2
            axes.fill_between(at, 100 * one["low"], 100 * one["high"], color=colour, alpha=0.15,
                              linewidth=0)  # fmt: skip
            axes.plot(at, 100 * one["share"], "o-", color=colour, linewidth=1.8, markersize=3.5)
            ends.append((100 * one["share"].iloc[-1], at.iloc[-1], store, colour))
        top = 100 * rows["high"].max()
        _names_at_ends(axes, ends, top)
        axes.set(ylim=(0, 1.05 * top), xlabel="km from the store", ylabel="who buy there, %")
        axes.set_xlim(0, 1.6 * rows["to_km"].max())
        axes.set_xticks([km for km in MaxNLocator(5).tick_values(0, rows["to_km"].max())
                         if km <= rows["to_km"].max()])  # fmt: skip
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: n.km(value)))
    return chart


def _names_at_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], top: float) -> None:
    """Write each name beside the end of its line, one above the other where lines meet."""
    last, right = -math.inf, max(x for _, x, *_ in ends)
    for y, x, name, colour in sorted(ends):
        last = max(y, last + 0.085 * top)
        axes.plot([x, right * 1.05], [y, last], color=colour, linewidth=0.6, linestyle=(0, (1, 1)))
        axes.plot([right * 1.05], [last], "o", color=colour, markersize=5)
        drawing.label(axes, right * 1.05, last, drawing.short(name, 22), INK, offset=(6, 0),
                      va="center", fontsize=SMALL)  # fmt: skip


def sectors(result: Ranking) -> Chart:
    """Draw where to advertise: the sectors, best first, with the interval of each.

    Without intervals there is no order that could be chance: bars, clockwise from north.
    """
    n, rows = result.numbers, result.rows
    ranked = {"low", "high"} <= {*rows.columns} and bool(rows["low"].notna().any())
    if ranked:
        rows = rows.sort_values("value", ascending=False, na_position="last", kind="stable")
    printed = _rounded(rows["value"], n)
    told = "; ".join(
        f"{row.sector}: {printed(row.value)}"
        + (f" ({printed(row.low)} to {printed(row.high)})" if ranked else "")
        for row in rows[rows["value"].notna()].itertuples()
    )
    with matplotlib.rc_context(STYLE):
        chart, axes = drawing.draw(
            "In which direction is advertising worth most?",
            f"{result.verdict} {result.what}: {told or 'nothing that can be shown'}.",
        )
        chart.set_size_inches(5.2, 1.3 + 0.27 * len(rows))
        known = rows["value"].notna()
        places_of = [place for place, there in enumerate(known) if there]
        some = rows[known]
        if ranked:
            ends = [(some["value"] - some["low"]).clip(0), (some["high"] - some["value"]).clip(0)]
            axes.errorbar(some["value"], places_of, xerr=ends, fmt="o", color=MODEL, capsize=4)
        else:
            axes.barh(places_of, some["value"], 0.65, color=MODEL)
            for place, value in zip(places_of, some["value"], strict=True):
                drawing.label(axes, value, place, printed(value), INK, va="center", fontsize=SMALL)
            axes.margins(x=0.15)
        empty = {"hidden": "hidden for privacy", "zero": "none", "no data": "no data"}
        for place, row in enumerate(rows.itertuples()):
            if row.value != row.value:
                axes.text(0.01, place, empty.get(row.state, "not known"), color=MUTED, va="center",
                          fontsize=SMALL, transform=axes.get_yaxis_transform())  # fmt: skip
        axes.set_yticks(range(len(rows)), rows["sector"])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set(xlabel=result.what)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: printed(value)))
    return chart


def _rounded(values: pd.Series[float], n: results.Numbers) -> Callable[[float], str]:
    """Return how values of any size print, with three digits or so."""
    most = values.abs().max()
    digits = 0 if not most > 0 else min(4, max(0, 2 - math.floor(math.log10(most))))
    return lambda value: n.number(value, digits)


def huff(result: Ranking) -> Chart:
    """Draw what each store would gain or lose in a what-if, with intervals."""
    n, rows = result.numbers, result.rows[result.rows["difference"].notna()]
    # What a closed store loses is all that it has: no need to see it, and a scale of its own.
    rows = rows[rows["after"] > 0]
    rows = rows.sort_values("difference", ascending=False, kind="stable")
    printed = _rounded(rows[["before", "after"]].max(), n)

    def signed(value: float) -> str:
        return ("+" if value > 0 else "") + printed(value)

    told = "; ".join(
        f"{row.store}: {printed(row.before)} before, {printed(row.after)} after, "
        f"{signed(row.difference)} ({signed(row.low)} to {signed(row.high)})"
        for row in rows.itertuples()
    )
    with matplotlib.rc_context(STYLE):
        chart, axes = drawing.draw(
            "What would change at each store?",
            f"{result.verdict} {result.what}: {told or 'nothing that can be shown'}.",
        )
        chart.set_size_inches(5.2, 1.3 + 0.42 * len(rows))
        for place, row in enumerate(rows.itertuples()):
            colour = MODEL if row.difference > 0 else ACTUAL
            ends = [[max(0, row.difference - row.low)], [max(0, row.high - row.difference)]]
            axes.errorbar([row.difference], [place], xerr=ends, fmt="o", color=colour, capsize=4)
            drawing.label(axes, row.difference, place, signed(row.difference), colour,
                          offset=(0, 6), ha="center", fontsize=SMALL)  # fmt: skip
        axes.axvline(0, color=MUTED, linewidth=1)
        names = [f"{drawing.short(row.store, 20)}\n{printed(row.before)} → {printed(row.after)}"
                 for row in rows.itertuples()]  # fmt: skip
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.5, -0.7)
        axes.margins(x=0.12)
        axes.grid(visible=False, axis="y")
        axes.set(xlabel=f"change: {result.what}")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(value)))
    return chart
