"""The pictures: a result goes in, a chart with its alternative text comes out."""

from __future__ import annotations

import calendar
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.ticker import FuncFormatter

from crmlab import drawing
from crmlab.campaign_charts import funnel, lift, moved, stayed
from crmlab.catchment_charts import decay, huff, sectors
from crmlab.churn_charts import keeping, reasons, risk_by_tenth, risk_over_time
from crmlab.customer_charts import bridge, early_warning, retention, stock
from crmlab.drawing import ACTUAL, MODEL, MUTED, STYLE, Chart
from crmlab.radar_charts import customer_radar, ring_sector, ring_sectors

if TYPE_CHECKING:
    import pandas as pd

    from crmlab import results
    from crmlab.clv import Backtest, PurchaseCounts, Season, Segments, Worth
    from crmlab.histories import Matrix, Path

__all__ = [
    "Chart",
    "bridge",
    "calibration",
    "calibration_by",
    "concentration",
    "customer_radar",
    "decay",
    "early_warning",
    "funnel",
    "huff",
    "keeping",
    "lift",
    "matrix",
    "moved",
    "path",
    "purchase_counts",
    "reasons",
    "retention",
    "ring_sector",
    "ring_sectors",
    "risk_by_tenth",
    "risk_over_time",
    "season",
    "sectors",
    "segments",
    "stayed",
    "stock",
    "tracking",
    "tracking_weekly",
]


def tracking(result: Backtest) -> Chart:
    """Draw repeat purchases, forecast against actual, from the log's start past the split."""
    from matplotlib.dates import date2num

    n, frame = result.numbers, result.tracking
    last = frame.iloc[-1]
    missed = n.percent(last["expected"] / last["actual"] - 1, signed=True)
    with matplotlib.rc_context(STYLE):
        chart, axes = drawing.draw(
            "Did the forecast hold?",
            f"Cumulative repeat purchases by {n.day(last['day'])}: {n.number(last['actual'])} "
            f"made, {n.number(last['expected'])} expected by the model ({missed}). The model "
            f"had learnt up to {n.day(result.split)} only.",
        )
        days = date2num(frame["day"].tolist())
        for name, colour, style in (("actual", ACTUAL, "-"), ("expected", MODEL, (0, (4, 2)))):
            text = f"{name} {n.number(last[name])}"
            axes.plot(days, frame[name], color=colour, linewidth=2, linestyle=style, label=text)
        axes.legend(frameon=False, labelcolor=[ACTUAL, MODEL], loc="upper left")
        top = max(last["actual"], last["expected"])
        split = float(date2num(result.split))
        axes.axvline(split, color=MUTED, linewidth=1)
        drawing.label(axes, split, 0, "forecast from here", MUTED, offset=(5, 6))
        drawing.days(axes)
        axes.set(ylabel="repeat purchases so far", ylim=(0, 1.15 * top))
        drawing.tick_numbers(axes, n)
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
        chart, axes = drawing.draw(
            "Do those who are expected to buy do so?",
            f"Purchases per customer, customers in order of their forecast. {told}."
            if told
            else "Too few customers, or one who makes half of the purchases, to say so.",
        )
        drawing.pairs(axes, frame)
        axes.set_xticks(range(1, len(frame) + 1))
        axes.set(xlabel="customers by forecast, lowest tenth first", ylabel="purchases each")
        drawing.tick_numbers(axes, n, frame)
    return chart


def tracking_weekly(result: Backtest) -> Chart:
    """Draw repeat purchases per week, forecast against actual: what each week was, not the sum."""
    from matplotlib.dates import date2num

    n, frame = result.numbers, result.tracking
    # The first step is all that came before the curve begins.
    weeks = frame["day"].map(date2num).diff() / 7
    each = frame[["actual", "expected"]].diff().div(weeks, axis=0).iloc[1:]
    after = each[frame["day"].iloc[1:] > result.split]
    title = "Which weeks were better than expected?"
    if len(each) < 2:
        few = "Too few weeks in which enough customers came back to say so."
        with matplotlib.rc_context(STYLE):
            return drawing.draw(title, few)[0]
    low, high = (each["actual"] / each["expected"]).quantile([0.1, 0.9])
    with matplotlib.rc_context(STYLE):
        chart, axes = drawing.draw(
            title,
            f"Repeat purchases per week. After {n.day(result.split)}: "
            f"{n.number(after['actual'].mean())} a week made, "
            f"{n.number(after['expected'].mean())} expected. Eight weeks in ten lie between "
            f"{n.percent(low - 1, 0, signed=True)} and {n.percent(high - 1, 0, signed=True)} of "
            "what was expected.",
        )
        days = date2num(frame["day"].iloc[1:].tolist())
        axes.plot(days, each["actual"], color=ACTUAL, linewidth=1.5, label="actual")
        dashes = (0, (4, 2))
        axes.plot(days, each["expected"], color=MODEL, linewidth=2, linestyle=dashes,
                  label="expected")  # fmt: skip
        axes.axvline(float(date2num(result.split)), color=MUTED, linewidth=1)
        drawing.days(axes)
        top = max(each.max().max(), 1)
        axes.set(ylabel="repeat purchases a week", ylim=(0, 1.25 * top))
        axes.legend(frameon=False, labelcolor=[ACTUAL, MODEL], ncols=2, loc="upper left")
        drawing.tick_numbers(axes, n)
    return chart


def calibration_by(result: Backtest, what: str) -> Chart:
    """Draw purchases per customer in the hold-out by "frequency" or by "silence" before it."""
    n = result.numbers
    frame = {"frequency": result.by_frequency, "silence": result.by_silence}[what]
    title, label = {
        "frequency": ("And by how often they had bought?", "repeat purchases before"),
        "silence": ("And by how long they were silent?", "days since the last purchase"),
    }[what]
    told = "; ".join(
        f"{row.label}: {n.number(row.expected, 2)} expected, {n.number(row.actual, 2)} made"
        for row in frame.itertuples()
    )
    with matplotlib.rc_context(STYLE):
        chart, axes = drawing.draw(
            title, f"Purchases per customer by {label}. {told or 'Too few customers to say so'}."
        )
        drawing.pairs(axes, frame)
        names = [row.replace(" or more", "+").replace(" to ", "–") for row in frame["label"]]
        axes.set_xticks(range(1, len(frame) + 1), names)
        axes.set(xlabel=label, ylabel="purchases each")
        drawing.tick_numbers(axes, n, frame)
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
        chart, axes = drawing.draw(
            "Does the model fit what it has seen?", f"Customers by repeat purchases. {told}."
        )
        drawing.pairs(axes, counts.rename(columns={"customers": "actual"}))
        labels = [label.replace(" or more", "+") for label in counts["label"]]
        axes.set_xticks(range(1, len(counts) + 1), labels)
        axes.set(xlabel="repeat purchases", ylabel="customers")
        drawing.tick_numbers(axes, numbers)
    return chart


def concentration(result: Worth) -> Chart:
    """Draw which share of the lifetime value the best customers bring."""
    n, curve = result.numbers, result.curve
    known = result.top_share == result.top_share
    fifth, share = n.percent(0.2, 0), n.percent(result.top_share, 0)
    with matplotlib.rc_context(STYLE):
        chart, axes = drawing.draw(
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
            drawing.label(axes, 20, top, text, ACTUAL, offset=(8, -14), fontweight="bold")
        drawing.label(axes, 50, 50, "if all were alike", MUTED, offset=(8, -10))
        axes.set(
            xlabel="customers, best first, %",
            ylabel="share of lifetime value, %",
            xlim=(0, 100),
            ylim=(0, 102),
        )
    return chart


def segments(result: Segments) -> Chart:
    """Draw what a customer of each segment is worth, with its range."""
    n, frame = result.numbers, result.rows[result.rows["each"].notna()]
    told = "; ".join(
        f"{row.segment}: {n.money(row.each)} ({n.money(row.each_low)} to {n.money(row.each_high)})"
        for row in frame.itertuples()
    )
    with matplotlib.rc_context(STYLE):
        chart, axes = drawing.draw(
            "Whose customers are worth most?",
            f"Lifetime value per customer by {result.by}, with its range. "
            f"{told or 'Too few customers to say so'}.",
        )
        places = range(len(frame))
        for low, high, width in (("each_low", "each_high", 1), ("own_low", "own_high", 4)):
            ends = [frame["each"] - frame[low], frame[high] - frame["each"]]
            axes.errorbar(frame["each"], places, xerr=ends, fmt="o", color=MODEL, linewidth=width)
        names = [name if len(name) < 28 else f"{name[:26]} …" for name in frame["segment"]]
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.set(xlabel=f"lifetime value per customer, {n.currency}")
        axes.set_xlim(left=0)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: n.number(value)))
    return chart


def season(result: Season) -> Chart:
    """Draw how much more or less customers buy in each month of the year than on average."""
    n, frame = result.numbers, result.months
    percent = 100 * (frame[["index", "low", "high"]] - 1)
    with matplotlib.rc_context(STYLE):
        chart, axes = drawing.draw("Is there a season?", result.verdict)
        axes.axhline(0, color=MUTED, linewidth=1)
        ends = [percent["index"] - percent["low"], percent["high"] - percent["index"]]
        axes.errorbar(frame["month"], percent["index"], yerr=ends, fmt="o", color=MODEL, capsize=3)
        axes.set_xticks(range(1, 13), [calendar.month_abbr[month] for month in range(1, 13)])
        axes.set(ylabel="against an average month, %")
        axes.grid(visible=False, axis="x")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: n.number(value)))
    return chart


def matrix(result: Matrix, what: str = "p_purchase") -> Chart:
    """Draw `p_purchase` or `expected_purchases` by number of purchases and days of silence."""
    n, cells = result.numbers, result.cells
    title, unit = {
        "p_purchase": ("Who will buy again?", "chance of a purchase"),
        "expected_purchases": ("How often will they buy?", "purchases expected"),
    }[what]
    rows, columns = (sorted(cells[side].unique()) for side in ("silent_days", "frequency"))
    best, worst = (cells.loc[cells[what].agg(end)] for end in ("idxmax", "idxmin"))

    def say(value: float) -> str:
        return n.percent(value, 0) if what == "p_purchase" else n.number(value, 1)

    def told(cell: pd.Series) -> str:
        return (
            f"{say(cell[what])} after {n.number(cell['frequency'])} repeat purchases and "
            f"{n.number(cell['silent_days'])} days of silence"
        )

    with matplotlib.rc_context(STYLE):
        chart, axes = drawing.draw(
            title,
            f"By the model, for customers first seen {n.number(result.T)} days ago: {unit} within "
            f"{n.number(result.horizon_days)} days, from {told(worst)} to {told(best)}.",
        )
        top = cells[what].max()
        for cell in cells.itertuples():
            at = columns.index(cell.frequency), rows.index(cell.silent_days)
            value = getattr(cell, what)
            axes.bar(at[0], 1, 0.98, at[1] - 0.5, color=MODEL, alpha=0.08 + 0.6 * value / top)
            axes.text(*at, say(value), ha="center", va="center", fontsize=10)
        axes.set_xticks(range(len(columns)), [n.number(one) for one in columns])
        axes.set_yticks(range(len(rows)), [n.number(one) for one in rows])
        axes.grid(visible=False)
        axes.set(
            xlabel=f"repeat purchases, of customers first seen {n.number(result.T)} days ago",
            ylabel="days since the last purchase",
        )
    return chart


def path(result: Path) -> Chart:
    """Draw one customer's purchases, and the chance of another: for a notebook, not a page."""
    from matplotlib.dates import date2num

    n, frame = result.numbers, result.days
    with matplotlib.rc_context(STYLE):
        chart, axes = drawing.draw(
            "Will this customer buy again?",
            f"{n.number(len(result.purchases))} days with a purchase; the chance of another within "
            f"{n.number(result.horizon_days)} days is now "
            f"{n.percent(frame['p_purchase'].iloc[-1], 0)}.",
        )
        axes.plot(date2num(frame["day"].tolist()), 100 * frame["p_purchase"], color=MODEL)
        axes.vlines(date2num(result.purchases), 0, 4, color=ACTUAL)
        drawing.days(axes)
        axes.set(ylabel=f"chance within {n.number(result.horizon_days)} days, %", ylim=(0, 102))
    return chart
