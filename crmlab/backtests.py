"""The hold-out check: what was forecast for the days after a split, against what happened."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING

from crmlab import customers, results, scores, seasons, tables, windows
from crmlab.forecasts import ClvModel
from crmlab.windows import BOOSTED, NOTHING, RULES

if TYPE_CHECKING:
    import pandas as pd

    from crmlab.models import Array
    from crmlab.sources import Shop

MODELS = ("bgnbd", "mbgnbd", "paretonbd")
INNER_SPLITS = 3  # before the split, each half a window before the next
MOST_OFTEN = 7  # repeat purchases, "or more"
SILENCES = (30, 60, 90, 180, 365, 730)  # days without a purchase, where a group ends


@dataclass(frozen=True, eq=False)
class Backtest:
    """What was forecast from the log up to `split`, against what happened after it.

    `rows` has one row per method, the chosen one first: method; purchases forecast; mae and rmse
    per customer; and the rest of `score`, target: purchase days in the horizon; for models also
    log_score, of buying at all, and sales_error, of the hold-out sales.
    `choice` was made on the days before the split only, `chosen_on` so many forecasts of so many
    days, the last from that day; `cost` is how much larger its rmse is than the best one's in
    hindsight, with a 95 % interval by resampling customers.
    `tracking`: day, expected and actual repeat purchases, cumulative from the log's first day.
    `calibration`: a row per tenth of the customers by forecast, expected and actual purchases;
    `by_frequency` and `by_silence`: the same by repeat purchases before the split, and by days from
    the last purchase to it.
    """

    rows: pd.DataFrame
    tracking: pd.DataFrame
    calibration: pd.DataFrame
    by_frequency: pd.DataFrame
    by_silence: pd.DataFrame
    model: ClvModel
    split: dt.date
    horizon_days: int
    customers: int
    born_after: int
    actual: int
    choice: str
    best: str
    cost: tuple[float, float, float]
    chosen_on: tuple[int, int, dt.date] | None
    k: int
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
        times, days, day = self.chosen_on
        often = f" at {times} dates" if times > 1 else ""
        how = (
            f"It was chosen before the split, by forecasts of {n.number(days)} days{often} up to "
            f"{n.day(day)}"
        )
        if self.best == self.choice:
            return f"{how}, and was the best after the split too."
        extra, low, high = (n.number(value, 3) for value in self.cost)
        return (
            f"{how}; {self.best} would have been better by {extra} per customer (95 % interval "
            f"{low} to {high}), which nobody could know."
        )

    @property
    def caution(self) -> str:
        """One sentence for the page's summary where no model was of use, else nothing."""
        if self.decision == "do not forecast":
            return "In the last check no forecast was of use: do not rely on these figures."
        if self.choice in RULES:
            return (
                f"In the last check the rule of thumb “{self.choice}” did better than the models: "
                "do not rely on these figures."
            )
        return ""

    def to_frame(self) -> pd.DataFrame:
        """Return one row per method, the chosen one first."""
        return self.rows

    def _repr_html_(self) -> str:
        n, others = self.numbers, ""
        if self.born_after:
            few = self.born_after < self.k
            some = f"Fewer than {self.k}" if few else n.number(self.born_after)
            others = (
                f"<p>{some} customers who first bought after "
                f"{n.day(self.split)} could not be forecast and are left out of it.</p>"
            )
        return f"<p>{escape(self.verdict)}</p>{others}" + results.html_table(
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
    """Return the middle day of the log up to `as_of`; `DataError` where that has one day only."""
    last_day = tables.day(as_of)
    first = shop.check("transactions").first or last_day
    if first >= last_day:
        raise tables.DataError(f"The log has one day only, {first}: nothing can be tested on it.")
    return first + (last_day - first) // 2


def backtest(
    shop: Shop,
    *,
    split: str | dt.date,
    horizon_days: int,
    as_of: str | dt.date | None = None,
    models: Sequence[str] = MODELS,
    challenger: bool = True,
    season_out: bool = False,
    days_per_unit: float = 7,
    seed: int = 1,
) -> Backtest:
    """Fit on the log up to `split` and compare the forecasts with what came after.

    Customers who first bought after the split are counted in `born_after`, not forecast. The rules
    of thumb beside the models: the same rate as before, the same number as before, nothing at all;
    and gradient-boosted trees that learnt from an earlier window. Which one to use is chosen on
    windows before the split, the last of which ends at it; one model alone is not chosen.

    Parameters
    ----------
    split : the last day that may be learnt from
    horizon_days : int, how many days after it are compared; 0 = all up to `as_of`
    as_of : the last day that may be looked at; by default the last of the log
    models : the purchase models to try, as `fit` names them
    challenger : bool, whether to try gradient boosting too
    season_out : bool, whether the models count in days of an average month, as far as the log
        before each day shows a season
    seed : int, of the resampling and the boosting

    Raises
    ------
    UsageError if the log ends before `split` + `horizon_days`; DataError as `fit` does, and if
    fewer customers than the shop's `privacy_k` bought after the split
    """
    import pandas as pd

    if not models:
        raise tables.UsageError(f"No model is named to try; choose some of {', '.join(MODELS)}.")
    begins, first_day, until = _days(shop, split, horizon_days, as_of)
    horizon_days = (until - first_day).days
    k = shop.policy.privacy_k
    window = windows.window(shop, first_day, horizon_days, season_out)
    if window.buyers < k:
        raise tables.DataError(
            f"Fewer than {k} customers bought again between {first_day} and {until}; a hold-out "
            "check needs as many. Choose another split or a longer horizon."
        )
    fitted, forecasts = windows.forecasts(window, models, days_per_unit)
    inner: list[windows.Window] = []
    if challenger or len(models) > 1:
        # A third of the days before the split is the most that leaves enough to learn from.
        length = min(horizon_days, (first_day - begins).days // 3)
        ends = [first_day - dt.timedelta(max(n * length // 2, n)) for n in range(INNER_SPLITS)]
        inner = [windows.window(shop, end, -length, season_out) for end in ends]
        inner = [one for one in inner if one.buyers >= k]
    places, used = windows.favoured(inner, models, days_per_unit)
    order = sorted(forecasts, key=lambda name: places.get(name, float("inf")))
    if challenger and used:
        forecasts[BOOSTED] = windows.boosted(inner[0], window, seed)
    errors = {name: window.rmse(forecast) for name, forecast in forecasts.items()}
    best, choice = min(errors, key=errors.__getitem__), order[0]
    model = fitted[min(fitted, key=order.index)]
    judged = [
        {"method": name, **scores.score(forecast, window.bought, window.weights)}
        | (windows.more_scores(fitted[name], window) if name in fitted else {})
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
        tracking=seasons.tracking(window.past, days, model, until, k=k, season=window.season),
        calibration=scores.calibration(forecasts[choice], window.bought, window.weights, k=k),
        **_by_history(window, forecasts[choice], k),
        model=model,
        split=first_day,
        horizon_days=horizon_days,
        customers=known,
        born_after=int(in_all) - known,
        actual=int(window.weights @ window.bought),
        choice=choice,
        best=best,
        cost=scores.cost(forecasts[choice], forecasts[best], window.bought, window.weights, seed),
        chosen_on=(used, inner[0].days, inner[0].cut) if used else None,
        k=k,
        numbers=shop.numbers,
    )


def _days(
    shop: Shop, split: str | dt.date, horizon_days: int, as_of: str | dt.date | None
) -> tuple[dt.date, dt.date, dt.date]:
    """Return the log's first day, the split and the last day of the hold-out, once they fit."""
    first_day, last_day = tables.day(split, name="split"), shop.last_complete_day()
    last_day = min(last_day, tables.day(as_of)) if as_of else last_day
    until = first_day + dt.timedelta(days=horizon_days) if horizon_days else last_day
    if until <= first_day or until > last_day:
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
    return begins, first_day, until


def _by_history(window: windows.Window, forecast: Array, k: int) -> dict[str, pd.DataFrame]:
    """Return expected and actual purchases by frequency, and by days of silence."""
    import numpy as np

    often = [str(n) for n in range(MOST_OFTEN)] + [f"{MOST_OFTEN} or more"]
    quiet = [f"{low}–{high - 1}" for low, high in pairwise((0, *SILENCES))]
    quiet.append(f"{SILENCES[-1]} or more")
    rest = forecast, window.bought, window.weights
    return {
        "by_frequency": scores.by_group(
            np.minimum(window.x, MOST_OFTEN).astype(int), often, *rest, k=k
        ),
        "by_silence": scores.by_group(
            np.searchsorted(SILENCES, window.silent, side="right"), quiet, *rest, k=k
        ),
    }
