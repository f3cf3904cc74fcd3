"""Sums of the forecast: between what they lie, of all customers and by segment."""

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

    from crmlab.customers import LogStart
    from crmlab.forecasts import ClvModel
    from crmlab.sources import Shop

SHARED_DRAWS = 40  # of the parameters, for the range of a total
ENOUGH_SPLITS = 3
NOT_TESTED = "model only, not tested"
MOST_SEGMENTS = 12  # what is left joins "other": more can neither be read nor drawn
FIRST, OLDER = "first purchase", "perhaps older than the log"


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
        told = (
            f"At {n.number(len(errors))} earlier dates the forecast of all purchases was off by "
            f"{listed}, that of all sales by {sales}."
        )
        if not self.tested_days:
            return f"{told} That is too few to go by."
        if self.far_enough:
            return told
        return (
            f"{told} The log is long enough to test {n.number(self.tested_days)} days ahead, not "
            f"{n.number(self.horizon_days)}: the range is widened for the rest."
        )

    @property
    def caution(self) -> str:
        """One sentence for the page where the horizon is longer than the log, else nothing."""
        n = self.numbers
        if self.horizon_days <= self.log_days:
            return ""
        return (
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
            title="The forecast at earlier dates",
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
                "rmse": "its error",
                "best": "best in hindsight",
                "best_rmse": "error",
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

    terms = {
        "horizon_days": horizon_days,
        "margin": margin,
        "annual_discount_rate": annual_discount_rate,
    }
    labels = summary.select("customer_id", segment=ibis.literal("all"))
    one = _ranges(model, summary, values, labels, terms, checks, seed).iloc[0]
    days = checks.tested_days
    caveat = f"tested {checks.numbers.number(days)} days ahead only" if days else NOT_TESTED
    return Range(one["low"], one["high"], "" if checks.far_enough else caveat)


def _ranges(
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


@dataclass(frozen=True, eq=False)
class Segments:
    """What the customers of each segment are worth, with ranges.

    `rows`: segment, customers, clv and its low and high, and the same per customer: each, each_low
    and each_high; own_low and own_high hold the model's own part, without what earlier totals were
    off by, which moves all segments together. The most valuable customers first, or cohorts in
    their order; "other" last. Money is in shop currency.
    """

    rows: pd.DataFrame
    by: str
    numbers: results.Numbers

    def to_frame(self) -> pd.DataFrame:
        """Return one row per segment."""
        return self.rows

    def _repr_html_(self) -> str:
        n = self.numbers
        if self.rows.empty:
            return f"<p>Too few customers to compare them by {escape(self.by)}.</p>"
        shown = self.rows.assign(
            range=[f"{n.money(a, 0)} to {n.money(b, 0)}" if a == a else results.NOTHING
                   for a, b in zip(self.rows["low"], self.rows["high"], strict=True)],
        )  # fmt: skip
        return results.html_table(
            shown[["segment", "customers", "each", "clv", "range"]],
            title=f"Lifetime value by {self.by}",
            formats={
                "customers": n.number,
                "each": n.money,
                "clv": lambda value: n.money(value, 0),
                "range": str,
            },
            headings={"segment": self.by, "each": "each", "clv": "lifetime value"},
        )


def by_segment(
    model: ClvModel,
    summary: ir.Table,
    values: ir.Table,
    segments: ir.Table,
    *,
    by: str,
    horizon_days: float,
    margin: float,
    annual_discount_rate: float,
    checks: Checks,
    numbers: results.Numbers,
    k: int,
    seed: int = 1,
) -> Segments:
    """Add up the forecast by segment, each with its range as `total_range` makes it.

    Parameters
    ----------
    segments : local ibis table: customer_id and segment, text; who has none is "unknown"
    by : what the segments are, in words
    k : int, the fewest customers a segment may have; smaller ones, and all after the twelve
        largest, are "other"
    """
    import numpy as np

    labels = summary.select("customer_id").left_join(segments, "customer_id")
    labels = labels.select("customer_id", segment=labels.segment.fill_null("unknown"))
    sizes = labels.group_by("segment").aggregate(customers=labels.count()).to_pandas()
    sizes = sizes.sort_values(["customers", "segment"], ascending=[False, True])
    largest = np.arange(len(sizes)) < MOST_SEGMENTS
    sizes["segment"] = sizes["segment"].where(largest, "other")
    sizes = sizes.groupby("segment", as_index=False)["customers"].sum()
    kept = results.merge_small_cells(sizes, label="segment", customers="customers", k=k)
    shown = labels.segment.isin(kept["segment"].tolist())
    labels = labels.mutate(segment=shown.ifelse(labels.segment, "other"))
    terms = {
        "horizon_days": horizon_days,
        "margin": margin,
        "annual_discount_rate": annual_discount_rate,
    }
    rows = _ranges(model, summary, values, labels, terms, checks, seed)
    rows = results.merge_small_cells(
        rows, label="segment", customers="customers", k=k,
        largest={"clv": "largest"},
    )  # fmt: skip
    hidden = rows["clv"].isna()
    rows.loc[hidden, ["low", "high", "own_low", "own_high"]] = float("nan")
    for name, total in (("each", "clv"), ("each_low", "low"), ("each_high", "high")):
        rows[name] = rows[total] / rows["customers"]
    rows[["own_low", "own_high"]] = rows[["own_low", "own_high"]].div(rows["customers"], axis=0)
    rows = rows.sort_values("each", ascending=False) if by != FIRST else rows.sort_values("segment")
    rows = rows.sort_values("segment", key=lambda names: names == "other", kind="stable")
    return Segments(rows.reset_index(drop=True), by, numbers)


def segments_of(
    shop: Shop, summary: ir.Table, history: LogStart, column: str = ""
) -> tuple[ir.Table, str]:
    """Return each customer's segment, and what the segments are in words.

    Parameters
    ----------
    column : a text column of the table customers, such as region; empty = the month of the
        first purchase, or its quarter or year; those apart who may be older than the log
    """
    import ibis

    if not column:
        rest = summary.anti_join(history.older, "customer_id")
        year = rest.first_purchase.year().cast("string")
        quarter = year + " Q" + rest.first_purchase.quarter().cast("string")
        month = year + "-" + rest.first_purchase.month().cast("string").lpad(2, "0")
        label = next(
            (
                one
                for one in (month, quarter)
                if rest.select(one=one).one.nunique().to_pyarrow().as_py() < MOST_SEGMENTS
            ),
            year,
        )
        older = history.older.select("customer_id", segment=ibis.literal(OLDER))
        return older.union(rest.select("customer_id", segment=label)), FIRST
    if not shop.has("customers"):
        raise tables.DataError(
            f"Segments by {column} need the table customers, which shop '{shop.id}' has not. Leave "
            "the segment empty to compare customers by their first purchase."
        )
    members = shop.table("customers")
    texts = [name for name, kind in members.schema().items()
             if kind.is_string() and name not in ("customer_id", "household_id")]  # fmt: skip
    if column not in texts:
        raise tables.UsageError(
            f"The customers of shop '{shop.id}' have no segment {column!r}; "
            f"they have {', '.join(texts) or 'no column of words'}."
            + tables.did_you_mean(column, texts)
        )
    return shop.landed(members.select("customer_id", segment=column), "segments"), column
