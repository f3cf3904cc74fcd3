"""What the customers are worth: the forecast added up, and who brings it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crmlab import results, tables
from crmlab.backtests import Backtest, backtest, halfway
from crmlab.fitting import PurchaseCounts, fit, purchase_counts, to_lifetimes
from crmlab.forecasts import ClvModel

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

__all__ = [
    "Backtest",
    "ClvModel",
    "PurchaseCounts",
    "Worth",
    "backtest",
    "fit",
    "halfway",
    "purchase_counts",
    "to_lifetimes",
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

    @property
    def top_share(self) -> float:
        """Share of the clv that the best fifth of the customers brings; nan where not shown."""
        if len(self.fifths) < 2:
            return float("nan")
        return float(self.fifths["clv"].iloc[0] / self.clv)

    @property
    def kpis(self) -> list[results.Kpi]:
        """The tiles of the page."""
        return [
            results.Kpi("Customers", self.customers, "count", "up"),
            results.Kpi(f"Lifetime value, {self.horizon_days} days", self.clv, "money", "up",
                        f"{self.numbers.percent(self.margin, 0)} margin, discounted"),
            results.Kpi("Customers expected to buy", self.expected_buyers, "count", "up",
                        f"within {self.horizon_days} days"),
            results.Kpi("Brought by the best fifth", self.top_share, "share"),
        ]  # fmt: skip

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
            f"worth {n.short_money(self.clv)} today at a margin of {n.percent(self.margin, 0)}."
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
) -> Worth:
    """Add up a forecast: what the base is worth, and how much of it the best customers bring.

    Parameters
    ----------
    values : ibis table as `ClvModel.predict` gives it, made with the same horizon and margin
    k : int, the fewest customers a figure may stand for
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
