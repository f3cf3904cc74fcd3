"""What the customers are worth: the forecast added up, and who brings it."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crmlab import results, tables
from crmlab.backtests import Backtest, backtest, halfway
from crmlab.bases import Change, Known, Newcomers, change, known, newcomers
from crmlab.fitting import fit, to_lifetimes
from crmlab.forecasts import ClvModel
from crmlab.histories import matrix, path
from crmlab.seasons import Season, season
from crmlab.segments import Segments, by_segment, segments_of
from crmlab.totals import Checks, Range, checks, total_range

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

__all__ = [
    "Backtest",
    "Change",
    "Checks",
    "ClvModel",
    "Known",
    "Newcomers",
    "PurchaseCounts",
    "Range",
    "Season",
    "Segments",
    "Worth",
    "backtest",
    "by_segment",
    "change",
    "checks",
    "fit",
    "halfway",
    "known",
    "matrix",
    "newcomers",
    "path",
    "purchase_counts",
    "season",
    "segments_of",
    "to_lifetimes",
    "total_range",
    "worth",
]


@dataclass(frozen=True, eq=False)
class Worth:
    """What the customer base is worth over a horizon, and who brings it.

    Money is in shop currency. `fifths` has one row per fifth of the customers by clv;
    `curve` the share of clv that the best `share_of_customers` bring.
    """

    customers: int
    expected_buyers: float
    expected_value: float
    clv: float
    horizon_days: int
    margin: float
    annual_discount_rate: float
    fifths: pd.DataFrame
    curve: pd.DataFrame
    numbers: results.Numbers
    between: Range | None = None

    @property
    def top_share(self) -> float:
        """Share of the clv that the best fifth of the customers brings; nan where not shown."""
        if len(self.fifths) < 2:
            return float("nan")
        return float(self.fifths["clv"].iloc[0] / self.clv)

    @property
    def kpis(self) -> list[results.Kpi]:
        """The tiles of the page."""
        n = self.numbers
        return [
            results.Kpi("Customers", self.customers, "count", "up"),
            results.Kpi(f"Lifetime value, {self.horizon_days} days", self.clv, "money", "up",
                        self._range or f"{n.percent(self.margin, 0)} margin, discounted"),
            results.Kpi("Customers expected to buy", self.expected_buyers, "count", "up",
                        f"within {self.horizon_days} days"),
            results.Kpi("Brought by the best fifth", self.top_share, "share"),
        ]  # fmt: skip

    @property
    def _range(self) -> str:
        """Between what the value lies, in a few words."""
        if not self.between or self.clv != self.clv:
            return ""
        low, high = (self.numbers.short_money(end) for end in (self.between.low, self.between.high))
        return f"{low} to {high}{f', {self.between.caveat}' if self.between.caveat else ''}"

    @property
    def verdict(self) -> str:
        """The answer in two sentences."""
        n = self.numbers
        if self.clv != self.clv:
            return (
                f"Of our {n.number(self.customers)} customers one brings half of the value or "
                "more, so no sums are shown here."
            )
        worth = (
            f"Our {n.number(self.customers)} customers are expected to spend "
            f"{n.short_money(self.expected_value)} in the next {n.number(self.horizon_days)} days, "
            f"worth {n.short_money(self.clv)} today at a margin of {n.percent(self.margin, 0)}"
            f"{f' ({self._range})' if self._range else ''}."
        )
        if self.top_share != self.top_share:
            return worth
        best = n.percent(self.top_share, 0)
        return f"{worth} The best fifth of the customers brings {best} of this worth."

    def to_frame(self) -> pd.DataFrame:
        """Return one row per fifth of the customers, best first."""
        return self.fifths

    def _repr_html_(self) -> str:
        n = self.numbers
        return results.html_table(
            self.fifths,
            title="Value by fifth of the customers",
            formats={
                "customers": n.number,
                "expected_buyers": n.number,
                "expected_value": lambda value: n.money(value, 0),
                "clv": lambda value: n.money(value, 0),
                "clv_each": n.money,
            },
            headings={
                "fifth": "customers by value",
                "expected_buyers": "expected to buy",
                "expected_value": "expected sales",
                "clv": "lifetime value",
                "clv_each": "each",
            },
        )


def worth(
    values: ir.Table,
    *,
    horizon_days: int,
    margin: float,
    annual_discount_rate: float,
    numbers: results.Numbers,
    k: int,
    between: Range | None = None,
) -> Worth:
    """Add up a forecast: what the base is worth, and how much of it the best customers bring.

    Parameters
    ----------
    values : ibis table as `ClvModel.predict` gives it, made with the same horizon and margin
    k : int, the fewest customers a figure may stand for
    between : as `total_range` gives it
    """
    import ibis
    import pandas as pd

    customers_in_all = int(values.count().to_pyarrow().as_py())
    if customers_in_all < k:
        raise tables.DataError(
            f"The log has {customers_in_all} customers; no figure may stand for fewer than {k}."
        )
    order = ibis.window(order_by=[values.clv.desc(), values.customer_id])
    # Points of k customers each, and fifths where each has as many.
    groups = _by_value(values, ibis.ntile(min(50, customers_in_all // k)).over(order))
    fifths = _by_value(values, ibis.ntile(5 if customers_in_all >= 5 * k else 1).over(order))
    names = (
        ["best fifth", "second", "third", "fourth", "last fifth"] if len(fifths) > 1 else ["all"]
    )
    # A sum of which one customer brings half is not shown, and the curve starts further right.
    shown = groups[groups["largest"].cummax() * 2 < groups["clv"].cumsum()].index
    totals = {
        total: groups[total].sum() if groups[total].sum() > 2 * groups[part].max() else float("nan")
        for total, part in {"clv": "largest", "expected_value": "largest_value"}.items()
    }
    curve = pd.DataFrame(
        {
            "share_of_customers": groups["customers"].cumsum() / customers_in_all,
            "share_of_clv": groups["clv"].cumsum() / groups["clv"].sum(),
        }
    ).loc[shown]
    start = pd.DataFrame({"share_of_customers": [0.0], "share_of_clv": [0.0]})
    fifths = results.merge_small_cells(
        fifths.drop(columns="step").assign(fifth=names),
        label="fifth",
        customers="customers",
        k=k,
        largest={"clv": "largest", "expected_value": "largest_value"},
    )
    fifths["clv_each"] = fifths["clv"] / fifths["customers"]
    return Worth(
        customers=customers_in_all,
        expected_buyers=float(groups["expected_buyers"].sum()),
        expected_value=float(totals["expected_value"]),
        clv=float(totals["clv"]),
        horizon_days=horizon_days,
        margin=margin,
        annual_discount_rate=annual_discount_rate,
        fifths=fifths[
            ["fifth", "clv", "clv_each", "customers", "expected_buyers", "expected_value"]
        ],
        curve=pd.concat([start, curve], ignore_index=True),
        numbers=numbers,
        between=between,
    )


def _by_value(values: ir.Table, step: ir.Value) -> pd.DataFrame:
    """Add up a forecast by step of the customers, best first."""
    ranked = values.mutate(step=step)
    return (
        ranked.group_by("step")
        .aggregate(
            customers=ranked.count(),
            expected_buyers=ranked.p_purchase.sum(),
            expected_value=ranked.expected_value.sum(),
            clv=ranked.clv.sum(),
            largest=ranked.clv.max(),
            largest_value=ranked.expected_value.max(),
        )
        .order_by("step")
        .to_pandas()
    )


@dataclass(frozen=True, eq=False)
class PurchaseCounts:
    """How many customers made so many repeat purchases: seen, and expected by the model.

    `counts`: label, customers, expected; labels run 0, 1, ... and end in "n or more".
    """

    counts: pd.DataFrame
    as_of: dt.date

    def to_frame(self) -> pd.DataFrame:
        """Return one row per number of repeat purchases."""
        return self.counts

    def _repr_html_(self) -> str:
        numbers = results.Numbers()
        return results.html_table(
            self.counts,
            title="Repeat purchases per customer",
            formats=dict.fromkeys(("customers", "expected"), numbers.number),
            headings={"label": "repeat purchases"},
        )


def purchase_counts(model: ClvModel, summary: ir.Table, *, most: int = 7, k: int) -> PurchaseCounts:
    """Compare the number of customers by repeat purchases with what the model expects.

    Parameters
    ----------
    summary : ibis table as `customers.summary` gives it, the one the model was fitted on
    most : int, the last bar is "so many or more"; it starts earlier where customers are few
    k : int, the fewest customers a bar may stand for
    """
    import numpy as np
    import pandas as pd

    capped = summary.mutate(bar=summary.frequency.clip(upper=most))
    seen = capped.group_by("bar").aggregate(customers=capped.count()).to_pandas()
    counts = np.zeros(most + 1)
    counts[seen["bar"].to_numpy(int)] = seen["customers"]
    ages = summary.group_by("T").aggregate(customers=summary.count()).order_by("T").to_pandas()
    probabilities = model.formulas.p_count(
        model.parameters, most - 1, model.units(ages["T"].to_numpy(float))
    )
    expected = probabilities @ ages["customers"].to_numpy(float)
    expected = np.append(expected, counts.sum() - expected.sum())
    # Bars of too few customers join the last one.
    while most > 0 and (counts[: most + 1] < k).any():
        most -= 1
        counts[most], expected[most] = counts[most:].sum(), expected[most:].sum()
        counts, expected = counts[: most + 1], expected[: most + 1]
    labels = [str(n) for n in range(most)] + [f"{most} or more"]
    frame = pd.DataFrame({"label": labels, "customers": counts.astype(int), "expected": expected})
    return PurchaseCounts(frame, model.as_of)
