"""The pictures of campaigns: who is left, what changed, what stayed, whom a message moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib
from matplotlib.ticker import FuncFormatter

from crmlab import drawing
from crmlab.drawing import ACTUAL, MODEL, MUTED, STYLE, Chart

if TYPE_CHECKING:
    from crmlab.campaigns import Plan
    from crmlab.learning import Target
    from crmlab.verdicts import Lift

# What stands for an outcome on an axis.
WORDS = {"response": "share of buyers", "spend per purchase": "spend per\npurchase"}


def funnel(plan: Plan) -> Chart:
    """Draw how many customers are left after each rule, and who is contacted of them."""
    n, steps = plan.numbers, plan.funnel.shown
    rows = [("all customers", plan.funnel.customers), *zip(steps["rule"], steps["left"],
                                                           strict=True)]  # fmt: skip
    if plan.tellable:
        may = plan.contacted + plan.held_out
        rows += [("may be contacted", may), ("are contacted", plan.contacted)]
    rows = [(name, count) for name, count in rows if count == count]
    told = "; ".join(f"{name}: {n.number(count)}" for name, count in rows)
    with matplotlib.rc_context(STYLE):
        chart, axes = drawing.draw("Who is left?", f"Customers left after each rule. {told}.")
        axes.barh(range(len(rows)), [count for _, count in rows], 0.7, color=MODEL)
        axes.set_yticks(range(len(rows)), [_short(name) for name, _ in rows])
        for place, (_, count) in enumerate(rows):
            drawing.label(axes, count, place, n.number(count), MUTED, va="center")
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.grid(visible=False, axis="y")
        axes.set(xlabel="customers")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: n.number(value)))
    return chart


def _short(words: str) -> str:
    """Break what is too long for an axis."""
    import textwrap

    return "\n".join(textwrap.wrap(words, 26)[:3])


def lift(result: Lift) -> Chart | None:
    """Draw how much more each arm did than those held out, in percent; None where it is too early.

    An interval that does not touch zero is no chance finding.
    """
    n, rows = result.numbers, result.shown()
    rows = rows[rows["relative_low"].notna()].reset_index(drop=True)
    if not len(rows) or (not result.trial.complete and result.trial.looks is None):
        return None
    many = rows["arm"].nunique() > 1
    names = [
        f"{WORDS.get(row.outcome, row.outcome)}{f', {row.arm}' if many else ''}"
        for row in rows.itertuples()
    ]
    told = "; ".join(
        f"{name}: {n.percent(row.relative, 0, signed=True)} "
        f"({n.percent(row.relative_low, 0, signed=True)} to "
        f"{n.percent(row.relative_high, 0, signed=True)})"
        for name, row in zip(names, rows.itertuples(), strict=True)
    )
    with matplotlib.rc_context(STYLE):
        chart, axes = drawing.draw(
            "Did it change anything?", f"Difference to those held out, 95% intervals. {told}."
        )
        for place, row in enumerate(rows.itertuples()):
            colour = ACTUAL if row.primary else MODEL
            ends = [[100 * (row.relative - row.relative_low)],
                    [100 * (row.relative_high - row.relative)]]  # fmt: skip
            axes.errorbar(
                [100 * row.relative], [place], xerr=ends, fmt="o", color=colour, capsize=4
            )
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set(xlabel="more than those held out, % (primary: orange)")
    return chart


def stayed(result: Lift) -> Chart | None:
    """Draw the effect per customer after the window, after twice and four times as long."""
    n, rows = result.numbers, result.longer
    if rows["what"].nunique() < 2 or not result.tellable or result.dominated:
        return None
    told = "; ".join(
        f"{row.what} days, {row.arm}: {n.money(row.difference)} ({n.money(row.low)} to "
        f"{n.money(row.high)})"
        for row in rows.itertuples()
    )
    with matplotlib.rc_context(STYLE):
        chart, axes = drawing.draw(
            "Did it last, or only come earlier?",
            f"Difference per customer to those held out, by days counted. {told}.",
        )
        arms = sorted(rows["arm"].unique())
        days = sorted({int(what) for what in rows["what"]})
        for nth, arm in enumerate(arms):
            some = rows[rows["arm"] == arm]
            at = [days.index(int(what)) + 0.12 * (nth - (len(arms) - 1) / 2)
                  for what in some["what"]]  # fmt: skip
            ends = [some["difference"] - some["low"], some["high"] - some["difference"]]
            axes.errorbar(at, some["difference"], yerr=ends, fmt="o", capsize=4,
                          color=(MODEL, ACTUAL, MUTED)[nth % 3], label=arm)  # fmt: skip
        axes.axhline(0, color=MUTED, linewidth=1)
        axes.set_xticks(range(len(days)), [n.number(day) for day in days])
        axes.set_xlim(-0.5, len(days) - 0.5)
        axes.set(xlabel="days counted", ylabel=f"more per customer, {n.currency}")
        if len(arms) > 1:
            axes.legend(frameon=False)
    return chart


def moved(result: Target) -> Chart:
    """Draw what the message did to each tenth of the customers, most expected first."""
    n, frame = result.numbers, result.deciles
    told = "; ".join(
        f"{int(row.group)}: {n.number(row.effect, 2)} ({n.number(row.low, 2)} to "
        f"{n.number(row.high, 2)})"
        for row in frame.itertuples()
    )
    with matplotlib.rc_context(STYLE):
        chart, axes = drawing.draw(
            "Whom does the message move?",
            "Effect per customer by expected effect, 95% intervals, "
            f"groups of the same size. {told}.",
        )
        ends = [frame["effect"] - frame["low"], frame["high"] - frame["effect"]]
        axes.errorbar(frame["group"], frame["effect"], yerr=ends, fmt="o", color=MODEL, capsize=4)
        axes.axhline(0, color=MUTED, linewidth=1)
        axes.set_xticks(range(1, len(frame) + 1))
        axes.set(
            xlabel="groups of customers, largest expected effect first",
            ylabel=f"effect per customer, {n.currency if result.in_money else result.outcome}",
        )
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: n.number(value, 1)))
    return chart
