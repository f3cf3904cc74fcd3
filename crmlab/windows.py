"""Days after a cut: what was known of the customers, what each method forecast, what they did."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crmlab import customers, scores, seasons, tables
from crmlab.fitting import fit_each
from crmlab.forecasts import KEYS, ClvModel

if TYPE_CHECKING:
    import ibis.expr.types as ir

    from crmlab.models import Array
    from crmlab.sources import Shop

SAME_RATE, SAME_COUNT, NOTHING = RULES = "same rate", "same count", "nothing"
BOOSTED = "gradient boosting"


@dataclass(frozen=True, eq=False)
class Window:
    """What was known of the customers at `cut`, and what they did in the `days` after it.

    One row per different x, t_x and T and number of purchases in the window; `ahead` is its length.
    These are in days of an average month where the `season` is taken out; `days`, `age` and
    `silent`, the days since the first and the last purchase, are the calendar's.
    """

    past: ir.Table
    cut: dt.date
    days: int
    ahead: float
    season: seasons.Season | None
    x: Array
    t_x: Array
    T: Array
    age: Array
    silent: Array
    bought: Array
    sales: Array
    weights: Array

    @property
    def buyers(self) -> int:
        """How many customers bought in the window."""
        return int(self.weights[self.bought > 0].sum())

    def rmse(self, forecast: Array) -> float:
        """Return the root mean square error of a forecast per customer."""
        return scores.rmse(forecast, self.bought, self.weights)


def window(shop: Shop, cut: dt.date, days: int, season_out: bool) -> Window:
    """Look at the customers before and after a day; fewer than no days end at it."""
    import ibis

    cut, days = (cut, days) if days >= 0 else (cut + dt.timedelta(days), -days)
    past, season = customers.summary(shop, as_of=cut), None
    if season_out:
        season = seasons.season(shop, past, as_of=cut)
        past = season.taken_out(past, as_of=cut)
    later = customers.purchase_days(shop, as_of=cut + dt.timedelta(days))
    later = later.filter(later.purchased_on > ibis.literal(cut))
    each = later.group_by("customer_id").aggregate(
        bought=later.count(), sales=later.amount.sum().cast("float64")
    )
    joined = past.left_join(shop.landed(each, "bought"), "customer_id")
    joined = joined.mutate(bought=joined.bought.fill_null(0), sales=joined.sales.fill_null(0.0))
    age, silent = (ibis.literal(cut).delta(joined[f"{name}_purchase"], unit="day")
                   for name in ("first", "last"))  # fmt: skip
    joined = joined.mutate(age=age, silent=silent)
    keys = [*KEYS, "age", "silent", "bought"]
    rows = joined.group_by(keys).aggregate(sales=joined.sales.sum(), customers=joined.count())
    frame = rows.order_by(keys).to_pandas()
    columns = (frame[name].to_numpy(float) for name in [*keys, "sales", "customers"])
    ahead = season.ahead(cut, days) if season else days
    return Window(past, cut, days, ahead, season, *columns)


def forecasts(
    window: Window, models: Sequence[str], days_per_unit: float
) -> tuple[dict[str, ClvModel], dict[str, Array]]:
    """Return the fitted models by title, and every method's purchases per row of the window."""
    import numpy as np

    each = fit_each(window.past, models, days_per_unit=days_per_unit, as_of=window.cut)
    fitted = {model.title: model for model in each}
    forecasts = {
        title: model.formulas.conditional_purchases(
            model.parameters,
            window.x,
            model.units(window.t_x),
            model.units(window.T),
            model.units(window.ahead),
        )
        for title, model in fitted.items()
    }
    forecasts[SAME_RATE] = window.x / np.maximum(window.age, 1) * window.days
    forecasts[SAME_COUNT] = window.x
    forecasts[NOTHING] = np.zeros_like(window.x)
    return fitted, forecasts


def favoured(
    earlier: Sequence[Window], models: Sequence[str], days_per_unit: float
) -> tuple[dict[str, float], int]:
    """Return every method's error over the best one's on earlier windows, and how many were used.

    The mean of the windows in which it could be fitted; windows where nothing could are left out.
    """
    import numpy as np

    ratios: dict[str, list[float]] = {}
    used = 0
    for window in earlier:
        try:
            made = forecasts(window, models, days_per_unit)[1]
        except tables.DataError:
            continue
        used += 1
        errors = {name: window.rmse(forecast) for name, forecast in made.items()}
        for name, error in errors.items():
            ratios.setdefault(name, []).append((error + 1e-9) / (min(errors.values()) + 1e-9))
    return {name: float(np.mean(some)) for name, some in ratios.items()}, used


def boosted(earlier: Window, window: Window, seed: int) -> Array:
    """Return the forecast of boosted trees that learnt from an earlier window, scaled to this."""
    import numpy as np
    from sklearn.ensemble import HistGradientBoostingRegressor

    def features(one: Window) -> Array:
        silent, gap = one.T - one.t_x, one.t_x / np.maximum(one.x, 1)
        return np.column_stack(
            [one.x, one.t_x, one.T, silent, gap, silent / np.maximum(gap, 1), one.x / (one.T + 1)]
        )

    trees = HistGradientBoostingRegressor(loss="poisson", learning_rate=0.05, random_state=seed)
    trees.fit(features(earlier), earlier.bought, sample_weight=earlier.weights)
    return np.asarray(trees.predict(features(window)) * (window.ahead / earlier.ahead))


def more_scores(model: ClvModel, window: Window) -> dict[str, float]:
    """Return what only a model has: the log score of buying at all, and the error of the sales."""
    import numpy as np

    times = (model.units(one) for one in (window.t_x, window.T, window.ahead))
    chance = model.formulas.p_purchase(model.parameters, window.x, *times)
    chance = np.clip(chance, 1e-9, 1 - 1e-9)
    said = np.where(window.bought > 0, np.log(chance), np.log1p(-chance))
    values = model.predict(window.past, horizon_days=window.ahead, margin=1.0, intervals=False)
    sales = values.expected_value.sum().to_pyarrow().as_py()
    actual = float(window.sales.sum())
    return {
        "log_score": float(window.weights @ said / window.weights.sum()),
        "sales_error": sales / actual - 1 if actual > 0 else float("nan"),
    }
