"""What each customer is worth: the forecast added up, checked on a hold-out, and who brings it."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from crmlab import customers, results, tables
from crmlab.fitting import MODELS, ClvModel, PurchaseCounts, fit, purchase_counts

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.sources import Shop

__all__ = [
    "Backtest",
    "ClvModel",
    "PurchaseCounts",
    "Worth",
    "backtest",
    "fit",
    "halfway",
    "purchase_counts",
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


@dataclass(frozen=True, eq=False)
class Backtest:
    """What a model fitted up to `split` said of the days after it, against what happened.

    `rows` has one row per method: method; purchases forecast; mae and rmse per customer;
    and the rest of `models.score`, target: purchase days in the horizon.
    `tracking`: day, expected and actual repeat purchases, cumulative from the log's first day.
    """

    rows: pd.DataFrame
    tracking: pd.DataFrame
    model: ClvModel
    split: dt.date
    horizon_days: int
    customers: int
    born_after: int
    actual: int
    choice: str
    numbers: results.Numbers

    @property
    def total_error(self) -> float:
        """Error of the model's total, a share of the actual total; negative is too low."""
        return float(self.rows.set_index("method")["total_error"].iloc[0])

    @property
    def verdict(self) -> str:
        """Whether to use the model, and why."""
        n, name = self.numbers, MODELS[self.model.model]
        rmse = self.rows.set_index("method")["rmse"]
        rule = rmse.drop(name).idxmin()
        tried = (
            f"On the {n.number(self.horizon_days)} days after {n.day(self.split)}, per customer, "
            f"{name} was off by {n.number(rmse[name], 2)} purchases and the rule of thumb "
            f"“{rule}” by {n.number(rmse[rule], 2)} (root mean square)."
        )
        low = "fewer" if self.total_error < 0 else "more"
        total = (
            f"In all it forecast {n.percent(abs(self.total_error))} {low} purchases than the "
            f"{n.number(self.actual)} that came."
        )
        if self.choice != name:
            return f"Use the rule of thumb, not the model. {tried}"
        return f"Use this model to compare customers, and its total with caution. {tried} {total}"

    @property
    def caution(self) -> str:
        """How far the total was off, in one sentence for the page's summary."""
        n = self.numbers
        if self.choice != MODELS[self.model.model]:
            return (
                f"In the last check the rule of thumb “{self.choice}” did better than the model: "
                "do not rely on these figures."
            )
        low = "too low" if self.total_error < 0 else "too high"
        return (
            f"In the last check the model's total was {n.percent(abs(self.total_error))} {low}: "
            "use the total as a rough guide, and rely on who ranks above whom."
        )

    @property
    def kpis(self) -> list[results.Kpi]:
        """The tile of the page."""
        note = f"{self.numbers.number(self.horizon_days)} days after {self.numbers.day(self.split)}"
        return [
            results.Kpi(
                "Last forecast of purchases, off by", self.total_error, "signed_share", "", note
            )
        ]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per method, the model first."""
        return self.rows

    def _repr_html_(self) -> str:
        n = self.numbers
        return f"<p>{escape(self.verdict)}</p>" + results.html_table(
            self.rows,
            title=f"Forecast of {n.number(self.customers)} customers on {n.day(self.split)}, "
            f"{n.number(self.horizon_days)} days ahead",
            formats={
                "purchases": n.number,
                "mae": lambda value: n.number(value, 3),
                "rmse": lambda value: n.number(value, 3),
                "total_error": lambda value: n.percent(value, signed=True),
                "capture_top10": n.percent,
                "auc": lambda value: n.number(value, 3),
            },
            headings={
                "mae": "mean error",
                "rmse": "root mean square",
                "total_error": "total",
                "capture_top10": "by top tenth",
                "auc": "AUC",
            },
        )


def halfway(shop: Shop, *, as_of: str | dt.date) -> dt.date:
    """Return the middle day of the log up to `as_of`, where a hold-out check may split it."""
    last_day = tables.day(as_of)
    first = shop.check("transactions").first or last_day
    return first + (last_day - first) // 2


def backtest(
    shop: Shop,
    *,
    split: str | dt.date,
    horizon_days: int,
    as_of: str | dt.date | None = None,
    model: str = "bgnbd",
    days_per_unit: float = 7,
) -> Backtest:
    """Fit on the log up to `split` and compare the forecast with what came after.

    Customers who first bought after the split are counted in `born_after`, not forecast. The rules
    of thumb beside the model: the same rate as before, the same number as before, nothing at all.

    Parameters
    ----------
    split : the last day that the model learns from
    horizon_days : int, how many days after it are compared; 0 = all up to `as_of`
    as_of : the last day that may be looked at; by default the last of the log

    Raises
    ------
    UsageError if the log ends before `split` + `horizon_days`; DataError as `fit` does, and if
    fewer customers than the shop's `privacy_k` bought after the split
    """
    import ibis
    import numpy as np
    import pandas as pd

    from crmlab import models

    first_day, last_day = tables.day(split, name="split"), shop.last_complete_day()
    last_day = min(last_day, tables.day(as_of)) if as_of else last_day
    horizon_days = horizon_days or (last_day - first_day).days
    until = first_day + dt.timedelta(days=horizon_days)
    if horizon_days < 1 or until > last_day:
        raise tables.UsageError(
            f"The hold-out check needs purchases after {first_day} up to {until}, but looks no "
            f"further than {last_day}. Choose an earlier split or a shorter horizon."
        )
    if first_day < (shop.check("transactions").first or first_day):
        raise tables.UsageError(
            f"split {first_day} is before the first purchase, {shop.check('transactions').first}. "
            "Choose a later one, or leave it empty for the middle of the log."
        )
    past = customers.summary(shop, as_of=first_day)
    fitted = fit(past, model=model, days_per_unit=days_per_unit)
    days = customers.purchase_days(shop, as_of=until)
    later = days.filter(days.purchased_on > ibis.literal(first_day))
    bought = later.group_by("customer_id").aggregate(bought=later.count())
    bought = shop.landed(bought, "bought")
    joined = past.left_join(bought, "customer_id")
    joined = joined.mutate(bought=joined.bought.fill_null(0))
    keys = ["frequency", "recency", "T", "bought"]
    rows = joined.group_by(keys).aggregate(customers=joined.count()).order_by(keys).to_pandas()
    x, t_x, T, actual, weights = (rows[name].to_numpy(float) for name in [*keys, "customers"])
    buyers, k = int(weights[actual > 0].sum()), shop.policy.privacy_k
    if buyers < k:
        raise tables.DataError(
            f"Only {buyers} customers bought again between {first_day} and {until}; a hold-out "
            f"check needs {k}. Choose another split or a longer horizon."
        )
    forecasts = {
        MODELS[model]: models.conditional_purchases(
            fitted.parameters, x, fitted.units(t_x), fitted.units(T), fitted.units(horizon_days)
        ),
        "same rate": x / np.maximum(T, 1) * horizon_days,
        "same count": x,
        "nothing": np.zeros_like(x),
    }
    scores = pd.DataFrame(
        [
            {"method": name, **models.score(forecast, actual, weights)}
            for name, forecast in forecasts.items()
        ]
    )
    known = int(weights.sum())
    if known < 10 * k:
        scores["capture_top10"] = float("nan")  # a tenth would be fewer than k customers
    in_all = days.customer_id.nunique().to_pyarrow().as_py()
    return Backtest(
        rows=scores,
        tracking=_tracking(past, days, fitted, until, k=k),
        model=fitted,
        split=first_day,
        horizon_days=horizon_days,
        customers=known,
        born_after=int(in_all) - known,
        actual=int(weights @ actual),
        choice=str(scores.loc[scores["rmse"].idxmin(), "method"]),
        numbers=shop.numbers,
    )


def _tracking(
    past: ir.Table, days: ir.Table, model: ClvModel, until: dt.date, *, k: int
) -> pd.DataFrame:
    """Return cumulative repeat purchases, expected and actual, of the customers in `past`.

    By week back from `until`, or by longer steps where a week has fewer than `k` buyers; the curve
    begins where a step first has that many.
    """
    import ibis
    import numpy as np
    import pandas as pd

    from crmlab import models

    cohorts = (
        past.group_by("first_purchase")
        .aggregate(customers=past.count())
        .order_by("first_purchase")
        .to_pandas()
    )
    start = tables.day(cohorts["first_purchase"].iloc[0])
    born = np.array([(tables.day(day) - start).days for day in cohorts["first_purchase"]])
    # `past` is local and `days` may not be; who is in `past` is known by the first purchase.
    repeat = days.mutate(first=days.purchased_on.min().over(group_by="customer_id"))
    repeat = repeat.filter(repeat["first"] <= model.as_of, repeat.purchased_on > repeat["first"])
    ago = ibis.literal(until).delta(repeat.purchased_on, unit="day").cast("float64")
    span = (until - start).days
    for step in (7, 14, 28, 91, span + 1):
        stepped = repeat.mutate(step=(ago / step).floor().cast("int64"))
        seen = (
            stepped.group_by("step")
            .aggregate(purchases=stepped.count(), customers=stepped.customer_id.nunique())
            .order_by(ibis.desc("step"))
            .to_pandas()
        )
        actual = seen["purchases"].cumsum()
        enough = seen["customers"] >= k
        shown = seen[enough.cummax()].index
        if enough.loc[shown].all():
            break
    ends = span - seen["step"].loc[shown].to_numpy(int) * step
    # To the end of that day, so that the 78th week of CDNOW is 546 days.
    ages = np.maximum(ends[:, None] + 1 - born, 0)
    expected = models.expected_purchases(model.parameters, model.units(ages)) @ cohorts["customers"]
    return pd.DataFrame(
        {
            "day": [start + dt.timedelta(days=int(end)) for end in ends],
            "expected": expected,
            "actual": actual.loc[shown].astype(int),
        }
    )
