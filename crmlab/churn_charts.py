"""The pictures of risk: did the probabilities hold, at every date, and what keeping would earn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib
from matplotlib.ticker import FuncFormatter

from crmlab import drawing
from crmlab.drawing import ACTUAL, MODEL, MUTED, STYLE, Chart

if TYPE_CHECKING:
    from crmlab.churn import AtRisk, Backtest, Keeping


def risk_by_tenth(result: Backtest) -> Chart:
    """Draw the share of silent customers, said and come, by tenth of the customers."""
    n, frame, newest = result.numbers, result.tenths, result.drift.iloc[-1]
    base, cut = float(newest["came"]), newest["cut"]
    told = "; ".join(
        f"{row.part}: {n.percent(row.said, 0)} said, {n.percent(row.came, 0)} were silent"
        for row in frame.itertuples()
    )
    with matplotlib.rc_context(STYLE):
        chart, axes = drawing.draw(
            "Did those at risk fall silent?",
            f"Share of customers silent for {n.number(result.horizon_days)} days "
            f"after {n.day(cut)}: {n.percent(base, 0)} of all; by tenth of the customers, highest "
            "risk first: "
            f"{told or 'too few customers to say so'}.",
        )
        pairs = frame.assign(actual=100 * frame["came"], expected=100 * frame["said"])
        drawing.pairs(axes, pairs)
        if len(frame):
            axes.axhline(100 * base, color=MUTED, linewidth=1, linestyle=(0, (4, 2)))
            text, end = f"all: {n.percent(base, 0)}", len(frame) + 0.4
            drawing.label(axes, end, 100 * base, text, MUTED, ha="right", offset=(0, 4))
        axes.set_xticks(range(1, len(frame) + 1), frame["part"])
        axes.set(
            xlabel=f"tenths of the customers on {n.day(cut)}, highest risk first",
            ylabel=f"silent for {n.number(result.horizon_days)} days, %",
            ylim=(0, 105),
        )
    return chart


def risk_over_time(result: Backtest) -> Chart:
    """Draw how many were expected to be silent, and how many were, at each cut-off."""
    n, frame = result.numbers, result.drift
    told = "; ".join(
        f"after {n.day(row.cut)} {n.percent(row.said, 0)} said, {n.percent(row.came, 0)} were"
        for row in frame.itertuples()
    )
    with matplotlib.rc_context(STYLE):
        chart, axes = drawing.draw(
            "Did it hold at earlier dates?",
            f"Share of customers silent for {n.number(result.horizon_days)} days by cut-off: "
            f"{told}.",
        )
        pairs = frame.assign(actual=100 * frame["came"], expected=100 * frame["said"])
        drawing.pairs(axes, pairs)
        axes.set_xticks(range(1, len(frame) + 1), [n.day(cut) for cut in frame["cut"]])
        axes.set(ylabel=f"silent for {n.number(result.horizon_days)} days, %", ylim=(0, 105))
    return chart


def reasons(result: AtRisk) -> Chart:
    """Draw of how many customers above the average risk each kind of reason is the weightiest."""
    n, frame = result.numbers, result.reasons
    told = "; ".join(f"{row.what}: {n.percent(row.share, 0)}" for row in frame.itertuples())
    with matplotlib.rc_context(STYLE):
        chart, axes = drawing.draw(
            "What does the risk rest on?",
            "The weightiest reason of the customers whose risk is above the average. "
            f"{told or 'The score gives no reasons, or to too few customers'}.",
        )
        axes.barh(range(len(frame)), 100 * frame["share"], 0.7, color=MODEL)
        axes.set_yticks(range(len(frame)), frame["what"])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set(xlabel="% of those above the average risk")
    return chart


def keeping(result: Keeping) -> Chart:
    """Draw what contacting the most profitable customers would earn, by how many are contacted."""
    n, frame = result.numbers, result.curve
    with matplotlib.rc_context(STYLE):
        chart, axes = drawing.draw("How many does it pay to contact?", result.verdict)
        share = 100 * frame["share"]
        axes.fill_between(share, frame["low"], frame["high"], color=MODEL, alpha=0.15, linewidth=0)
        axes.plot(share, frame["profit"], color=MODEL, linewidth=2)
        axes.axhline(0, color=MUTED, linewidth=1)
        if result.share > 0:
            axes.axvspan(100 * result.least, 100 * result.most, color=ACTUAL, alpha=0.08)
            axes.axvline(100 * result.share, color=ACTUAL, linewidth=1)
            at = 100 * result.share, float(frame["high"].max())
            text, far = f"most at {n.percent(result.share, 0)}", result.share > 0.6
            side = "right" if far else "left"
            drawing.label(axes, *at, text, ACTUAL, ha=side, offset=(-5 if far else 5, -4))
        axes.set(
            xlabel="customers contacted, most profitable first, %",
            ylabel=f"planned profit, {n.currency}",
            xlim=(0, 100),
        )
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: n.number(value)))
    return chart
