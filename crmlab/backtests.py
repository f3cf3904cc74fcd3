"""The hold-out check: what a model said of the days after a split, against what happened."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from crmlab import customers, results, tables
from crmlab.fitting import fit
from crmlab.forecasts import ClvModel

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.models import Array
    from crmlab.sources import Shop


@dataclass(frozen=True, eq=False)
class Backtest:
    """What a model fitted up to `split` said of the days after it, against what happened.

    `rows` has one row per method: method; purchases forecast; mae and rmse per customer;
    and the rest of `score`, target: purchase days in the horizon.
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
        n, name = self.numbers, self.model.title
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
        if self.choice != self.model.title:
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
        fitted.title: fitted.formulas.conditional_purchases(
            fitted.parameters, x, fitted.units(t_x), fitted.units(T), fitted.units(horizon_days)
        ),
        "same rate": x / np.maximum(T, 1) * horizon_days,
        "same count": x,
        "nothing": np.zeros_like(x),
    }
    scores = pd.DataFrame(
        [
            {"method": name, **score(forecast, actual, weights)}
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
    expected = (
        model.formulas.expected_purchases(model.parameters, model.units(ages))
        @ cohorts["customers"]
    )
    return pd.DataFrame(
        {
            "day": [start + dt.timedelta(days=int(end)) for end in ends],
            "expected": expected,
            "actual": actual.loc[shown].astype(int),
        }
    )


def score(forecast: Array, actual: Array, weights: Array) -> dict[str, float]:
    """Compare a forecast per customer with what happened.

    Parameters
    ----------
    forecast, actual : numbers of purchases; `weights`: how many customers have this row's numbers

    Returns
    -------
    purchases, the forecast total; mae and rmse per customer; total_error, a share of the actual
    total; capture_top10, the share of the actual purchases that the tenth of the customers with
    the highest forecast made; auc of the forecast for buying at all. Customers with equal
    forecasts share their places, so the order of the rows changes nothing.
    """
    import numpy as np

    total, customers_in_all = weights @ actual, weights.sum()
    levels, level = np.unique(-forecast, return_inverse=True)
    size = np.bincount(level, weights, len(levels))
    made = np.bincount(level, weights * actual, len(levels))
    place, share = (np.concatenate([[0], np.cumsum(v) / v.sum()]) for v in (size, made))
    buyers = np.bincount(level, weights * (actual > 0), len(levels))
    others = size - buyers
    # Mann-Whitney: pairs of a buyer and another in the right order, ties count half.
    behind = others.sum() - np.cumsum(others)
    pairs = buyers.sum() * others.sum()
    return {
        "purchases": float(weights @ forecast),
        "mae": float(weights @ np.abs(forecast - actual) / customers_in_all),
        "rmse": float(np.sqrt(weights @ (forecast - actual) ** 2 / customers_in_all)),
        "total_error": float(weights @ forecast / total - 1) if total else float("nan"),
        "capture_top10": float(np.interp(0.1, place, share)) if total else float("nan"),
        "auc": float(buyers @ (behind + others / 2) / pairs) if pairs else float("nan"),
    }
