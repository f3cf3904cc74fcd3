"""The hold-out check: what was forecast for the days after a split, against what happened."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from crmlab import customers, results, scores, tables
from crmlab.fitting import fit
from crmlab.forecasts import KEYS, ClvModel

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.models import Array
    from crmlab.sources import Shop

MODELS = ("bgnbd", "mbgnbd", "paretonbd")
SAME_RATE, SAME_COUNT, NOTHING = RULES = "same rate", "same count", "nothing"
BOOSTED = "gradient boosting"


@dataclass(frozen=True, eq=False)
class Backtest:
    """What was forecast from the log up to `split`, against what happened after it.

    `rows` has one row per method, the chosen one first: method; purchases forecast; mae and rmse
    per customer; and the rest of `score`, target: purchase days in the horizon; for models also
    log_score, of buying at all, and sales_error, of the hold-out sales.
    `choice` was made on the days before the split only; `cost` is how much larger its rmse is than
    the best one's in hindsight, with a 95 % interval by resampling customers.
    `tracking`: day, expected and actual repeat purchases, cumulative from the log's first day.
    `calibration`: a row per tenth of the customers by forecast, expected and actual purchases.
    """

    rows: pd.DataFrame
    tracking: pd.DataFrame
    calibration: pd.DataFrame
    model: ClvModel
    split: dt.date
    horizon_days: int
    customers: int
    born_after: int
    actual: int
    choice: str
    best: str
    cost: tuple[float, float, float]
    chosen_on: tuple[dt.date, int] | None
    numbers: results.Numbers

    def _of(self, name: str) -> float:
        return float(self.rows.set_index("method").loc[self.choice, name])

    @property
    def total_error(self) -> float:
        """Error of the choice's total, a share of the actual total; negative is too low."""
        return self._of("total_error")

    @property
    def decision(self) -> str:
        """One of "use this model", "use the simple rule" and "do not forecast"."""
        rmse = self.rows.set_index("method")["rmse"]
        if min(rmse[self.choice], rmse[self.best]) >= rmse[NOTHING]:
            return "do not forecast"
        return "use the simple rule" if self.choice in RULES else "use this model"

    @property
    def verdict(self) -> str:
        """Whether to use the model, and why."""
        n, rmse = self.numbers, self.rows.set_index("method")["rmse"]
        if self.decision == "do not forecast":
            return (
                "Do not forecast. On the days after "
                f"{n.day(self.split)} no method did better than to say that nobody buys."
            )
        rule = rmse[[name for name in RULES if name in rmse]].idxmin()
        name = self.choice
        tried = (
            f"On the {n.number(self.horizon_days)} days after {n.day(self.split)}, per customer, "
            f"{name} was off by {n.number(rmse[name], 2)} purchases"
        )
        low = "fewer" if self.total_error < 0 else "more"
        total = (
            f"In all it forecast {n.percent(abs(self.total_error))} {low} purchases than the "
            f"{n.number(self.actual)} that came."
        )
        if name in RULES:
            return f"Use the simple rule, not a model. {tried} (root mean square). {total}"
        against = f" and the rule of thumb “{rule}” by {n.number(rmse[rule], 2)}"
        return (
            f"Use {name} to compare customers, and its total with caution. {tried}{against} "
            f"(root mean square). {total} {self.choosing}"
        )

    @property
    def choosing(self) -> str:
        """How the method was chosen, and what that cost against the best in hindsight."""
        n = self.numbers
        if not self.chosen_on:
            return "The log before the split is too short to choose a method on it."
        day, days = self.chosen_on
        how = f"It was chosen on the {n.number(days)} days after {n.day(day)}, before the split"
        if self.best == self.choice:
            return f"{how}, and was the best there too."
        extra, low, high = (n.number(value, 3) for value in self.cost)
        return (
            f"{how}; {self.best} would have been better by {extra} per customer (95 % interval "
            f"{low} to {high}), which nobody could know."
        )

    @property
    def caution(self) -> str:
        """How far the total was off, in one sentence for the page's summary."""
        n = self.numbers
        if self.decision == "do not forecast":
            return "In the last check no forecast was of use: do not rely on these figures."
        if self.choice in RULES:
            return (
                f"In the last check the rule of thumb “{self.choice}” did better than the models: "
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
        """Return one row per method, the chosen one first."""
        return self.rows

    def _repr_html_(self) -> str:
        n = self.numbers
        return f"<p>{escape(self.verdict)}</p>" + results.html_table(
            self.rows,
            title=f"Forecast of {n.number(self.customers)} customers on {n.day(self.split)}, "
            f"{n.number(self.horizon_days)} days ahead",
            formats={
                "purchases": n.number,
                **dict.fromkeys(
                    ("mae", "rmse", "auc", "log_score"), lambda value: n.number(value, 3)
                ),
                **dict.fromkeys(
                    ("total_error", "sales_error"), lambda value: n.percent(value, signed=True)
                ),
                "capture_top10": n.percent,
            },
            headings={
                "mae": "mean error",
                "rmse": "root mean square",
                "total_error": "total",
                "capture_top10": "by top tenth",
                "auc": "AUC",
                "log_score": "log score",
                "sales_error": "sales",
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
    models: Sequence[str] = MODELS,
    challenger: bool = True,
    days_per_unit: float = 7,
    seed: int = 1,
) -> Backtest:
    """Fit on the log up to `split` and compare the forecasts with what came after.

    Customers who first bought after the split are counted in `born_after`, not forecast. The rules
    of thumb beside the models: the same rate as before, the same number as before, nothing at all;
    and gradient-boosted trees that learnt from an earlier window. Which one to use is chosen on
    an inner window that ends at the split.

    Parameters
    ----------
    split : the last day that may be learnt from
    horizon_days : int, how many days after it are compared; 0 = all up to `as_of`
    as_of : the last day that may be looked at; by default the last of the log
    models : the purchase models to try, as `fit` names them
    challenger : bool, whether to try gradient boosting too
    seed : int, of the resampling and the boosting

    Raises
    ------
    UsageError if the log ends before `split` + `horizon_days`; DataError as `fit` does, and if
    fewer customers than the shop's `privacy_k` bought after the split
    """
    import pandas as pd

    if not models:
        raise tables.UsageError(f"No model is named to try; choose some of {', '.join(MODELS)}.")
    first_day, last_day = tables.day(split, name="split"), shop.last_complete_day()
    last_day = min(last_day, tables.day(as_of)) if as_of else last_day
    horizon_days = horizon_days or (last_day - first_day).days
    until = first_day + dt.timedelta(days=horizon_days)
    if horizon_days < 1 or until > last_day:
        raise tables.UsageError(
            f"The hold-out check needs purchases after {first_day} up to {until}, but looks no "
            f"further than {last_day}. Choose an earlier split or a shorter horizon."
        )
    begins = shop.check("transactions").first or first_day
    if first_day < begins:
        raise tables.UsageError(
            f"split {first_day} is before the first purchase, {begins}. "
            "Choose a later one, or leave it empty for the middle of the log."
        )
    k = shop.policy.privacy_k
    # A third of the days before the split is the least that leaves enough to learn from.
    inner = _window(shop, first_day, -min(horizon_days, (first_day - begins).days // 3))
    window = _window(shop, first_day, horizon_days)
    buyers = int(window.weights[window.bought > 0].sum())
    if buyers < k:
        raise tables.DataError(
            f"Only {buyers} customers bought again between {first_day} and {until}; a hold-out "
            f"check needs {k}. Choose another split or a longer horizon."
        )
    fitted, forecasts = _forecasts(window, models, days_per_unit)
    earlier = _errors(inner, models, days_per_unit) if inner.buyers >= k else {}
    if challenger and inner.buyers >= k:
        forecasts[BOOSTED] = _boosted(inner, window, seed)
    errors = {name: window.rmse(forecast) for name, forecast in forecasts.items()}
    best = min(errors, key=errors.__getitem__)
    # What was not fitted then, as it is NBD now, stands behind all that was; models come first.
    order = {name: earlier.get(name, float("inf")) for name in forecasts if name != BOOSTED}
    choice = min(order, key=order.__getitem__)
    model = fitted[min(fitted, key=order.__getitem__)]
    judged = [
        {"method": name, **scores.score(forecast, window.bought, window.weights)}
        | (_more_scores(fitted[name], window) if name in fitted else {})
        for name, forecast in sorted(forecasts.items(), key=lambda item: item[0] != choice)
    ]
    rows = pd.DataFrame(judged)
    known = int(window.weights.sum())
    if known < 10 * k:
        rows["capture_top10"] = float("nan")  # a tenth would be fewer than k customers
    days = customers.purchase_days(shop, as_of=until)
    in_all = days.customer_id.nunique().to_pyarrow().as_py()
    return Backtest(
        rows=rows,
        tracking=_tracking(window.past, days, model, until, k=k),
        calibration=scores.calibration(forecasts[choice], window.bought, window.weights, k=k),
        model=model,
        split=first_day,
        horizon_days=horizon_days,
        customers=known,
        born_after=int(in_all) - known,
        actual=int(window.weights @ window.bought),
        choice=choice,
        best=best,
        cost=scores.cost(forecasts[choice], forecasts[best], window.bought, window.weights, seed),
        chosen_on=(inner.cut, inner.days) if earlier else None,
        numbers=shop.numbers,
    )


@dataclass(frozen=True, eq=False)
class _Window:
    """What was known of the customers at `cut`, and what they did in the `days` after it.

    One row per different x, t_x and T (in days) and number of purchases in the window.
    """

    past: ir.Table
    cut: dt.date
    days: int
    x: Array
    t_x: Array
    T: Array
    bought: Array
    sales: Array
    weights: Array

    @property
    def buyers(self) -> int:
        return int(self.weights[self.bought > 0].sum())

    def rmse(self, forecast: Array) -> float:
        """Return the root mean square error of a forecast per customer."""
        return scores.rmse(forecast, self.bought, self.weights)


def _window(shop: Shop, cut: dt.date, days: int) -> _Window:
    """Look at the customers before and after a day; fewer than no days end at it."""
    import ibis

    cut, days = (cut, days) if days >= 0 else (cut + dt.timedelta(days), -days)
    past = customers.summary(shop, as_of=cut)
    later = customers.purchase_days(shop, as_of=cut + dt.timedelta(days))
    later = later.filter(later.purchased_on > ibis.literal(cut))
    each = later.group_by("customer_id").aggregate(
        bought=later.count(), sales=later.amount.sum().cast("float64")
    )
    joined = past.left_join(shop.landed(each, "bought"), "customer_id")
    joined = joined.mutate(bought=joined.bought.fill_null(0), sales=joined.sales.fill_null(0.0))
    keys = [*KEYS, "bought"]
    rows = joined.group_by(keys).aggregate(sales=joined.sales.sum(), customers=joined.count())
    frame = rows.order_by(keys).to_pandas()
    columns = (frame[name].to_numpy(float) for name in [*keys, "sales", "customers"])
    return _Window(past, cut, days, *columns)


def _forecasts(
    window: _Window, models: Sequence[str], days_per_unit: float
) -> tuple[dict[str, ClvModel], dict[str, Array]]:
    """Return the fitted models by title, and every method's purchases per row of the window."""
    import numpy as np

    each = [fit(window.past, model=model, days_per_unit=days_per_unit) for model in models]
    fitted = {model.title: model for model in each}
    forecasts = {
        title: model.formulas.conditional_purchases(
            model.parameters,
            window.x,
            model.units(window.t_x),
            model.units(window.T),
            model.units(window.days),
        )
        for title, model in fitted.items()
    }
    forecasts[SAME_RATE] = window.x / np.maximum(window.T, 1) * window.days
    forecasts[SAME_COUNT] = window.x
    forecasts[NOTHING] = np.zeros_like(window.x)
    return fitted, forecasts


def _errors(window: _Window, models: Sequence[str], days_per_unit: float) -> dict[str, float]:
    """Return every method's error on an earlier window; nothing where too few had come back."""
    try:
        forecasts = _forecasts(window, models, days_per_unit)[1]
    except tables.DataError:
        return {}
    return {name: window.rmse(forecast) for name, forecast in forecasts.items()}


def _boosted(earlier: _Window, window: _Window, seed: int) -> Array:
    """Return the forecast of boosted trees that learnt from an earlier window, scaled to this."""
    import numpy as np
    from sklearn.ensemble import HistGradientBoostingRegressor

    def features(one: _Window) -> Array:
        silent, gap = one.T - one.t_x, one.t_x / np.maximum(one.x, 1)
        return np.column_stack(
            [one.x, one.t_x, one.T, silent, gap, silent / np.maximum(gap, 1), one.x / (one.T + 1)]
        )

    trees = HistGradientBoostingRegressor(loss="poisson", learning_rate=0.05, random_state=seed)
    trees.fit(features(earlier), earlier.bought, sample_weight=earlier.weights)
    return np.asarray(trees.predict(features(window)) * (window.days / earlier.days))


def _more_scores(model: ClvModel, window: _Window) -> dict[str, float]:
    """Return what only a model has: the log score of buying at all, and the error of the sales."""
    import numpy as np

    times = (model.units(one) for one in (window.t_x, window.T, window.days))
    chance = model.formulas.p_purchase(model.parameters, window.x, *times)
    chance = np.clip(chance, 1e-9, 1 - 1e-9)
    said = np.where(window.bought > 0, np.log(chance), np.log1p(-chance))
    values = model.predict(window.past, horizon_days=window.days, margin=1.0, intervals=False)
    sales = values.expected_value.sum().to_pyarrow().as_py()
    actual = float(window.sales.sum())
    return {
        "log_score": float(window.weights @ said / window.weights.sum()),
        "sales_error": sales / actual - 1 if actual > 0 else float("nan"),
    }


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
