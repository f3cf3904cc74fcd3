"""Sums of the forecast: how far earlier ones were off, and between what this one lies."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from crmlab import results, tables
from crmlab.backtests import MODELS, backtest

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.forecasts import ClvModel
    from crmlab.sources import Shop

SHARED_DRAWS = 40  # of the parameters, for the range of a total
ENOUGH_SPLITS = 3
NOT_TESTED = "model only, not tested"


@dataclass(frozen=True, eq=False)
class Checks:
    """Hold-out checks at several splits: how far totals were off, each time.

    `rows` has one row per split: split; horizon_days; method, the model that the days before it
    favour where several are tried; total_error, of purchases; sales_error; rmse; best, of models
    and rules in hindsight, and its rmse.
    `horizon_days` is the horizon that was asked for, `log_days` how long the log is.
    """

    rows: pd.DataFrame
    horizon_days: int
    log_days: int
    numbers: results.Numbers

    @property
    def tested_days(self) -> int:
        """How many days ahead totals were held against what happened; 0 = not often enough."""
        return int(self.rows["horizon_days"].min()) if len(self.rows) >= ENOUGH_SPLITS else 0

    @property
    def far_enough(self) -> bool:
        """Whether they looked as far ahead as the horizon, but for a few days."""
        return self.tested_days >= 0.95 * self.horizon_days

    @property
    def spread(self) -> float:
        """The largest error of a total, of purchases or sales, as a logarithm; nan if too few.

        Where the horizon is longer than what could be tested, the error is taken to grow with the
        square root of the time, as the sum of what nobody foresaw does.
        """
        import numpy as np

        if not self.tested_days:
            return float("nan")
        errors = self.rows[["total_error", "sales_error"]].to_numpy(float)
        largest = np.nanmax(np.abs(np.log(np.maximum(1 + errors, 0.01))))
        return float(largest * np.sqrt(max(self.horizon_days / self.tested_days, 1)))

    @property
    def verdict(self) -> str:
        """How far off the totals were."""
        n, errors = self.numbers, self.rows["total_error"]
        if errors.empty:
            return "The log is too short to test a forecast on it: these figures are not tested."
        listed, sales = (
            ", ".join(n.percent(error, signed=True) for error in self.rows[name])
            for name in ("total_error", "sales_error")
        )
        days = n.number(self.rows["horizon_days"][0])
        told = (
            f"At {n.number(len(errors))} dates a forecast of {days} days was off by {listed} in "
            f"all purchases, and by {sales} in all sales."
        )
        if len(errors) > 1 and (errors.gt(0).all() or errors.lt(0).all()):
            told += f" All of them were too {'high' if errors[0] > 0 else 'low'}."
        if not self.tested_days:
            return f"{told} That is too few to go by."
        if self.far_enough:
            return told
        return (
            f"{told} The log is long enough to test {n.number(self.tested_days)} days ahead, not "
            f"{n.number(self.horizon_days)}: the range is widened for the rest."
        )

    @property
    def kpis(self) -> list[results.Kpi]:
        """The tile of the page: how far off the last forecast was."""
        if self.rows.empty:
            return []
        n, last = self.numbers, self.rows.iloc[0]
        note = f"{n.number(last['horizon_days'])} days after {n.day(last['split'])}"
        error = float(last["total_error"])
        return [results.Kpi("Last forecast of purchases, off by", error, "signed_share", "", note)]

    @property
    def caution(self) -> str:
        """What the page's summary says: the last forecast, and a horizon longer than the log."""
        n, told = self.numbers, ""
        if not self.rows.empty:
            last = self.rows.iloc[0]
            high = "high" if last["total_error"] > 0 else "low"
            told = (
                f"The last forecast that can be checked, of the {n.number(last['horizon_days'])} "
                f"days after {n.day(last['split'])}, was {n.percent(abs(last['total_error']))} too "
                f"{high}: use the total as a rough guide, and rely on who ranks above whom. "
            )
        if self.horizon_days <= self.log_days:
            return told.strip()
        return told + (
            f"The horizon of {n.number(self.horizon_days)} days is longer than the log "
            f"({n.number(self.log_days)} days): nothing in it shows what customers do for so long."
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row per split, the latest first."""
        return self.rows

    def _repr_html_(self) -> str:
        n = self.numbers
        if self.rows.empty:
            return f"<p>{escape(self.verdict)}</p>"
        return f"<p>{escape(self.verdict)}</p>" + results.html_table(
            self.rows,
            title="Forecasts from earlier dates",
            formats={
                "split": n.day,
                "horizon_days": n.number,
                **dict.fromkeys(
                    ("total_error", "sales_error"), lambda value: n.percent(value, signed=True)
                ),
                **dict.fromkeys(("rmse", "best_rmse"), lambda value: n.number(value, 3)),
            },
            headings={
                "horizon_days": "days ahead",
                "method": "model",
                "total_error": "purchases",
                "sales_error": "sales",
                "rmse": "error per customer",
                "best": "best in hindsight",
                "best_rmse": "its error",
            },
        )


def checks(
    shop: Shop,
    *,
    as_of: str | dt.date,
    horizon_days: int,
    models: Sequence[str] = MODELS,
    splits: int = ENOUGH_SPLITS,
    season_out: bool = False,
    days_per_unit: float = 7,
) -> Checks:
    """Make the hold-out check at several splits, each half a horizon before the last.

    Where the log is shorter than three horizons, they look a third of the log ahead.

    Parameters
    ----------
    as_of : the last day that may be looked at
    models, season_out : as `backtest` takes them
    splits : int, how many to try; those that the log is too short for are left out
    """
    import pandas as pd

    last_day = min(tables.day(as_of), shop.last_complete_day())
    log_days = (last_day - (shop.check("transactions").first or last_day)).days
    days = max(min(horizon_days, log_days // 3), 1)
    rows = []
    for number in range(splits):
        split = last_day - dt.timedelta(days + max(number * days // 2, number))
        try:
            test = backtest(
                shop,
                split=split,
                horizon_days=days,
                as_of=last_day,
                models=models,
                challenger=False,
                season_out=season_out,
                days_per_unit=days_per_unit,
            )
        except (tables.DataError, tables.UsageError):
            continue  # too few customers had come back by then
        by_method, name = test.rows.set_index("method"), test.model.title
        errors = by_method["rmse"]
        rows.append(
            {
                "split": split,
                "horizon_days": days,
                "method": name,
                "total_error": by_method.loc[name, "total_error"],
                "sales_error": by_method.loc[name, "sales_error"],
                "rmse": errors[name],
                "best": test.best,
                "best_rmse": errors[test.best],
            }
        )
    columns = ["split", "horizon_days", "method", "total_error", "sales_error", "rmse", "best",
               "best_rmse"]  # fmt: skip
    return Checks(pd.DataFrame(rows, columns=columns), horizon_days, log_days, shop.numbers)


@dataclass(frozen=True)
class Range:
    """Between what a total lies: 95 % by the model, and at least as far as earlier ones were off.

    `caveat` says how far ahead earlier forecasts could be held against what happened; it is empty
    where that is the whole horizon.
    """

    low: float
    high: float
    caveat: str = ""


def total_range(
    model: ClvModel,
    summary: ir.Table,
    values: ir.Table,
    *,
    horizon_days: float,
    margin: float,
    annual_discount_rate: float,
    checks: Checks,
    seed: int = 1,
) -> Range:
    """Return between what the value of all customers lies.

    The parameters are drawn once for all customers, who therefore err together; each one's own
    chance adds its variance; and where earlier forecasts were off by more, that holds.

    Parameters
    ----------
    values : ibis table as `ClvModel.predict` gives it with intervals, on the same terms
    """
    import ibis

    terms = terms_of(horizon_days, margin, annual_discount_rate)
    labels = summary.select("customer_id", segment=ibis.literal("all"))
    one = ranges(model, summary, values, labels, terms, checks, seed).iloc[0]
    days = checks.tested_days
    caveat = f"tested {checks.numbers.number(days)} days ahead only" if days else NOT_TESTED
    return Range(one["low"], one["high"], "" if checks.far_enough else caveat)


def terms_of(horizon_days: float, margin: float, rate: float) -> dict[str, float]:
    """Return the terms of a forecast as `ClvModel.predict` and `clv_of` take them."""
    return {"horizon_days": horizon_days, "margin": margin, "annual_discount_rate": rate}


def ranges(
    model: ClvModel,
    summary: ir.Table,
    values: ir.Table,
    labels: ir.Table,
    terms: dict[str, float],
    checks: Checks,
    seed: int,
) -> pd.DataFrame:
    """Return per label the customers, the clv, and between what it lies, the most valuable first.

    `labels`: customer_id and segment, one row per customer of the summary.
    """
    import numpy as np
    from scipy.special import gammaincinv

    rng = np.random.default_rng(seed)
    rows = model.alike(summary.inner_join(labels, "customer_id"), by="segment")
    place, names = rows["segment"].factorize(sort=True)
    totals = [
        np.bincount(place, model.drawn(rng).clv_of(rows, **terms), len(names))
        for _ in range(SHARED_DRAWS)
    ]
    each = values.inner_join(labels, "customer_id").group_by("segment")
    sums = each.aggregate(
        customers=lambda rows: rows.count(),
        clv=lambda rows: rows.clv.sum(),
        largest=lambda rows: rows.clv.max(),
        own=lambda rows: (rows.clv_sd * rows.clv_sd).sum(),
    )
    found = sums.order_by("segment").to_pandas()
    # A sum of what nobody has less of than nothing: gamma, which is normal where it is sure.
    shape = 1 / (np.var(np.log(totals), axis=0, ddof=1) + found["own"] / found["clv"] ** 2)
    least, most = (gammaincinv(shape, p) / shape for p in (0.025, 0.975))
    found["own_low"], found["own_high"] = found["clv"] * least, found["clv"] * most
    widest = np.exp(checks.spread) if checks.tested_days else 1.0
    found["low"] = found["clv"] * np.minimum(least, 1 / widest)
    found["high"] = found["clv"] * np.maximum(most, widest)
    found = found.drop(columns="own")
    return found.sort_values(["clv", "segment"], ascending=[False, True], ignore_index=True)
