"""The pictures of the customers: their stock, how it moved, who slips away, who comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib
from matplotlib.ticker import FuncFormatter, MaxNLocator

from crmlab import drawing
from crmlab.drawing import ACTUAL, INK, MODEL, MUTED, STYLE, Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from crmlab import results
    from crmlab.cohorts import Cohorts
    from crmlab.stocks import Stock, Table


def stock(result: Stock) -> Chart:
    """Draw how many customers are in each stage before and now."""
    n, rows = result.numbers, result.rows
    sides = [("before", result.before, MUTED, -0.2), ("now", result.now, MODEL, 0.2)]
    sides = [side for side in sides if side[0] in rows]
    told = "; ".join(
        f"{row.stage}: " + ", ".join(f"{n.number(getattr(row, s))} {s}" for s, *_ in sides)
        for row in rows.itertuples()
    )
    with matplotlib.rc_context(STYLE):
        chart, axes = drawing.draw(
            "Where do our customers stand?",
            f"Customers by stage on {' and '.join(day for _, day, *_ in sides)}. {told}.",
        )
        for side, day, colour, shift in sides:
            places = [place + shift for place in range(len(rows))]
            axes.barh(places, rows[side].fillna(0), 0.38, color=colour, label=day)
        for place, row in enumerate(rows.itertuples()):
            drawing.label(axes, _known(row.now), place + 0.2, n.number(row.now), INK, va="center",
                          fontsize=10)  # fmt: skip
        axes.set_yticks(range(len(rows)), rows["stage"])
        axes.invert_yaxis()
        axes.set_xlim(right=1.14 * max(1, rows.max(numeric_only=True).max()))
        axes.set(xlabel="customers")
        axes.grid(visible=False, axis="y")
        # Between the shortest bars there is room on the right.
        axes.legend(frameon=False, labelcolor=[colour for *_, colour, _ in sides])
        _counts(axes, n)
    return chart


def bridge(result: Stock) -> Chart:
    """Draw the steps from the active customers before to those now."""
    n, steps = result.numbers, result.bridge
    if steps is None:
        raise ValueError("Too few customers moved: this stock has no bridge.")
    rows = list(steps.itertuples(index=False))
    told = "; ".join(f"{row.what}: {n.number(row.customers)}" for row in rows[1:-1])
    was, now = rows[0].customers, rows[-1].customers
    with matplotlib.rc_context(STYLE):
        chart, axes = drawing.draw(
            "How did the active customers change?",
            f"{n.number(was)} on {result.before}, {n.number(now)} on {result.now}. {told}.",
        )
        level, ends = was, [was, now]
        for place, row in enumerate(rows[1:-1], start=1):
            by = -row.customers if row.what == "became lost" else row.customers
            colour = MODEL if by >= 0 else ACTUAL
            axes.barh(place, by, 0.6, left=level, color=colour)
            axes.plot([level, level], [place - 1, place], color=MUTED, linewidth=1)
            sign = "+" if by > 0 else "−" if by < 0 else ""
            drawing.label(axes, max(level, level + by), place, sign + n.number(abs(by)), colour,
                          va="center", fontweight="bold")  # fmt: skip
            level += by
            ends.append(level)
        axes.plot([now, now], [len(rows) - 2, len(rows) - 1], color=MUTED, linewidth=1)
        for place, count in ((0, was), (len(rows) - 1, now)):
            axes.plot([count], [place], "o", color=INK, markersize=8)
            drawing.label(axes, count, place, n.number(count), INK, offset=(8, 0), va="center",
                          fontweight="bold")  # fmt: skip
        names = [f"active {row.what}" if row.what in ("before", "now") else row.what
                 for row in rows]  # fmt: skip
        axes.set_yticks(range(len(rows)), names)
        axes.invert_yaxis()
        room = max(max(ends) - min(ends), 1)
        # The steps are small beside the whole: the axis begins near them, so points, not bars.
        axes.set_xlim(min(ends) - 0.15 * room, max(ends) + 0.35 * room)
        axes.set(xlabel="active customers; the axis does not begin at 0")
        axes.grid(visible=False, axis="y")
        _counts(axes, n)
    return chart


def early_warning(result: Table) -> Chart:
    """Draw which share of the customers of each value slip away."""
    n, rows = result.numbers, result.rows
    told = "; ".join(
        f"{row.group}: {n.number(row.declining)} of {n.number(row.customers)} "
        f"({n.percent(row.share)})"
        for row in rows.itertuples()
    )
    with matplotlib.rc_context(STYLE):
        chart, axes = drawing.draw(
            "Who slips away now?", f"Declining customers by what they spend in a year. {told}."
        )
        axes.barh(range(len(rows)), 100 * rows["share"], 0.65, color=ACTUAL)
        for place, (share, count, money) in enumerate(
            zip(rows["share"], rows["declining"], rows["at stake"], strict=True)
        ):
            spent = f", {n.short_money(money)} a year" if money == money else ""
            drawing.label(axes, 100 * share, place, n.number(count) + spent, INK, va="center",
                          fontsize=10)  # fmt: skip
        axes.set_yticks(range(len(rows)), rows["group"])
        axes.invert_yaxis()
        # Room for the words at the end of the bars.
        axes.set_xlim(0, 165 * max(rows["share"].max(), 0.01))
        axes.set(xlabel="share that is declining, %; their number and yearly spend")
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(5))
    return chart


def retention(result: Cohorts) -> Chart:
    """Draw which share of each cohort bought again in each month after the first purchase.

    `result` is that of `cohorts.retention`.
    """
    n, rows = result.numbers, result.shown()
    rows = rows[rows["cohort"] != "other"]
    months = [name for name in rows.columns if name not in ("cohort", "customers")]
    told = "; ".join(
        f"{row['cohort']}: {n.percent(row[month], 0)} of {n.number(row['customers'])} in month "
        f"{n.number(month)}"
        for _, row in rows.iterrows()
        for month in row[months].dropna().index[:1]
    )
    title = "Who comes back, month by month?"
    with matplotlib.rc_context(STYLE):
        if not told:
            return drawing.draw(title, "Too few new customers to say so.")[0]
        chart, axes = drawing.draw(title, f"Bought again in a month after the first: {told}.")
        top = rows[months].max().max() or 1
        for place, (_, row) in enumerate(rows.iterrows()):
            for month in months:
                if row[month] == row[month]:
                    shade = 0.08 + 0.6 * row[month] / top
                    axes.bar(month, 1, 0.96, place - 0.5, color=MODEL, alpha=round(shade, 2),
                             clip_on=False)  # fmt: skip
                    axes.text(month, place, n.number(100 * row[month]), ha="center",
                              va="center", fontsize=9.5)  # fmt: skip
        axes.set_xticks(months, [n.number(month) for month in months])
        names = [f"{row.cohort}  ({n.number(row.customers)})" for row in rows.itertuples()]
        axes.set_yticks(range(len(rows)), names)
        axes.set(xlim=(min(months) - 0.5, max(months) + 0.5), ylim=(len(rows) - 0.5, -0.5))
        axes.grid(visible=False)
        axes.set(xlabel="months after the first purchase; % who bought")
    return chart


def _known(value: float) -> float:
    return value if value == value else 0


def _counts(axes: Axes, numbers: results.Numbers) -> None:
    """Print the counts of the x axis as the shop writes them, as few as can be read."""
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: numbers.number(value)))
