"""The season: repeat purchases, actual against expected, by the week and by the month."""

from __future__ import annotations

import calendar
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from crmlab import customers, results, tables
from crmlab.fitting import fit

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.forecasts import ClvModel
    from crmlab.models import Array
    from crmlab.sources import Shop

TWO_YEARS = 24  # months: fewer show no month twice
CERTAIN = 0.01  # the chance, without a season, of months that differ so much


@dataclass(frozen=True, eq=False)
class Season:
    """How much more or less customers buy by month of the year than they would without a season.

    `months` has one row per month of the year: month, 1 = January; index, 1 = a day of an average
    month; low and high, its 95 % interval, all twelve at once. It is empty where the log is
    shorter than two years, or a month has too few buyers. `p_value`: the chance that months would
    differ so much without a season. `seen_months`: how many whole months the log has.
    """

    months: pd.DataFrame
    p_value: float
    seen_months: int
    numbers: results.Numbers

    @property
    def found(self) -> bool:
        """Whether there is a season."""
        return self.p_value < CERTAIN

    @property
    def verdict(self) -> str:
        """What the log says of a season."""
        n = self.numbers
        if self.months.empty and self.seen_months < TWO_YEARS:
            return (
                f"A season cannot be seen in {n.number(self.seen_months)} whole months: it takes "
                "two full years to tell one from a single good or bad month."
            )
        if self.months.empty:
            return "A season cannot be seen: in some months too few customers came back."
        if not self.found:
            return (
                f"No season shows in {n.number(self.seen_months)} whole months: the months of the "
                "year differ no more than chance makes them."
            )
        rows = self.months.set_index("month")
        told = (
            f"The shop is seasonal: against an average month, customers buy "
            f"{self._against(rows['index'].idxmax())}, and {self._against(rows['index'].idxmin())}."
        )
        clear = {
            "More": rows.index[rows["low"] > 1],
            "Less": rows.index[rows["high"] < 1],
        }
        some = [
            f"{how} than usual they surely buy in {_listed(months)}."
            for how, months in clear.items()
            if len(months) > 1
        ]
        return " ".join([told, *some])

    def caution(self, day: dt.date, days: int) -> str:
        """Warn of a forecast of so many days that does not know the season.

        Nothing where there is none, or the days are worth as many average ones but for a few.
        """
        n, share = self.numbers, self.ahead(day, days) / days if days else 1.0
        if not self.found or abs(share - 1) < 0.03:
            return ""
        return (
            f"The shop is seasonal, and these {n.number(days)} days are worth "
            f"{n.number(share * days)} average ones, which this forecast does not know: set "
            "season_out to take the season out."
        )

    def _against(self, month: int) -> str:
        """Say how a month differs from an average one."""
        n = self.numbers
        row = self.months.set_index("month").loc[month]
        low, high = sorted((abs(row["low"] - 1), abs(row["high"] - 1)))
        between = f"{n.percent(low, 0)} to {n.percent(high, 0)}"
        if row["low"] < 1 < row["high"]:
            ends = (n.percent(row[end] - 1, 0, signed=True) for end in ("low", "high"))
            between = " to ".join(ends)
        more = "more" if row["index"] > 1 else "less"
        return (
            f"{n.percent(abs(row['index'] - 1), 0)} {more} in {calendar.month_name[month]} "
            f"(95 % interval {between})"
        )

    def clock(self, first: dt.date, last: dt.date) -> Array:
        """Return the days of an average month from the end of `first` to that of each day after.

        Zero for `first` itself; where no season was found, plain days.
        """
        import numpy as np

        days = np.arange((last - first).days + 1)
        if not self.found:
            return days.astype(float)
        month = (np.datetime64(first) + days).astype("M8[M]").astype(int) % 12
        passed = np.cumsum(self.months["index"].to_numpy()[month])
        return np.asarray(passed - passed[0])

    def ahead(self, day: dt.date, days: int) -> float:
        """Return how many days of an average month the `days` after a day are."""
        return float(self.clock(day, day + dt.timedelta(days))[-1])

    def taken_out(self, summary: ir.Table, *, as_of: str | dt.date) -> ir.Table:
        """Return a summary whose recency and T are in days of an average month.

        A model fitted on it, with `as_of`, forecasts what `ahead` makes of a horizon.
        """
        import ibis
        import pandas as pd

        if not self.found:
            return summary
        first, last = summary.first_purchase.min().to_pyarrow().as_py(), tables.day(as_of)
        passed = self.clock(first, last)
        days = [first + dt.timedelta(n) for n in range(len(passed))]
        calendar = ibis.memtable(pd.DataFrame({"day": days, "passed": passed}))
        rows = summary
        for name in ("first", "last"):
            ends = calendar.select(**{f"{name}_purchase": "day", f"{name}_passed": "passed"})
            columns = [*rows.columns, f"{name}_passed"]
            rows = rows.left_join(ends, f"{name}_purchase").select(columns)
        # In tenths of a day, so that customers alike stay alike.
        return rows.mutate(
            recency=(rows.last_passed - rows.first_passed).round(1),
            T=(float(passed[-1]) - rows.first_passed).round(1),
        ).select(summary.columns)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per month of the year."""
        return self.months

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.verdict)}</p>"


def _listed(months: Sequence[int]) -> str:
    *most, last = [calendar.month_name[month] for month in months]
    return f"{', '.join(most)} and {last}" if most else last


def season(
    shop: Shop, summary: ir.Table, model: ClvModel | None = None, *, as_of: str | dt.date
) -> Season:
    """Look for a season: months of the year that run above the model's curve, or below it.

    The logarithms of actual over expected repeat purchases per whole calendar month are explained
    by the month of the year beside a quadratic trend, with the expected number as weight; an F
    test says whether the months add to the trend. Their intervals are Bonferroni's for twelve.

    Parameters
    ----------
    summary, model : of the same shop and `as_of`, in calendar days; without a model, BG/NBD
    """
    import ibis
    import numpy as np
    import pandas as pd
    from scipy.special import fdtrc, stdtrit

    last_day = tables.day(as_of)
    start, in_all = _cohorts(summary)
    nothing = pd.DataFrame({"month": [], "index": [], "low": [], "high": []})
    # Whole months: the first begins with the log or after it, the last ends by `as_of`.
    first_month = np.datetime64(start - dt.timedelta(1), "M").astype(int) + 1
    months = np.arange(first_month, np.datetime64(last_day + dt.timedelta(1), "M").astype(int))
    unseen = Season(nothing, float("nan"), len(months), shop.numbers)
    if len(months) < TWO_YEARS:
        return unseen
    try:
        model = model or fit(summary)
    except tables.DataError:  # too few came back
        return unseen
    edges = np.append(months, months[-1] + 1).astype("M8[M]").astype("M8[D]").astype(int)
    ends = edges - np.datetime64(start).astype(int)  # days from the log's first day
    expected = np.diff(_expected(model, np.maximum(ends[:, None] - in_all["born"].to_numpy(), 0),
                                 in_all["customers"].to_numpy()))  # fmt: skip
    days = customers.purchase_days(shop, as_of=last_day)
    days = days.mutate(first=days.purchased_on.min().over(group_by="customer_id"))
    repeat = days.filter(days.purchased_on > days["first"])
    of = (repeat.purchased_on.year() - 1970) * 12 + repeat.purchased_on.month() - 1
    by_month = repeat.mutate(month=of.cast("int64")).group_by("month")
    seen = by_month.aggregate(n=ibis._.count(), buyers=ibis._.customer_id.nunique()).to_pandas()
    seen = seen.set_index("month").reindex(months, fill_value=0)
    # A young shop begins with months in which hardly anyone could have come back.
    shown = (seen["buyers"] >= shop.policy.privacy_k).cummax()
    seen, expected, months = seen[shown], expected[shown], months[shown]
    if len(months) < TWO_YEARS or seen["buyers"].min() < shop.policy.privacy_k:
        return unseen
    time = np.linspace(-1, 1, len(months))
    trend, of_year = np.column_stack([time, time**2]), np.eye(12)[months % 12]
    ratio, weight = np.log(seen["n"].to_numpy() / expected), np.sqrt(expected)

    def left(columns: Array) -> tuple[Array, float, Array]:
        columns = columns * weight[:, None]
        found, *_ = np.linalg.lstsq(columns, ratio * weight, rcond=None)
        return found, float(((ratio * weight - columns @ found) ** 2).sum()), columns

    _, without, _ = left(np.column_stack([np.ones(len(months)), trend]))
    found, rest, columns = left(np.column_stack([of_year, trend]))
    free = len(months) - 14
    p_value = float(fdtrc(11, free, (without - rest) / 11 / (rest / free)))
    against = np.eye(12, 14) - np.append(np.full(12, 1 / 12), [0, 0])
    variance = rest / free * np.diag(against @ np.linalg.inv(columns.T @ columns) @ against.T)
    index = np.exp(found[:12]) / np.exp(found[:12]).mean()
    factor = np.exp(stdtrit(free, 1 - 0.025 / 12) * np.sqrt(variance))
    rows = {"month": range(1, 13), "index": index, "low": index / factor, "high": index * factor}
    return Season(pd.DataFrame(rows), p_value, len(months), shop.numbers)


def _cohorts(summary: ir.Table) -> tuple[dt.date, pd.DataFrame]:
    """Return the first day, and customers by the days from it to their first purchase."""
    rows = summary.group_by("first_purchase").aggregate(customers=summary.count())
    frame = rows.order_by("first_purchase").to_pandas()
    start = tables.day(frame["first_purchase"].iloc[0])
    frame["born"] = [(tables.day(day) - start).days for day in frame["first_purchase"]]
    return start, frame


def _expected(model: ClvModel, ages: Array, customers_each: Array) -> Array:
    """Return the repeat purchases that a model expects of cohorts up to ages in days."""
    import numpy as np

    each = model.formulas.expected_purchases(model.parameters, model.units(ages))
    return np.asarray(each @ customers_each)


def tracking(
    past: ir.Table,
    days: ir.Table,
    model: ClvModel,
    until: dt.date,
    *,
    k: int,
    season: Season | None = None,
) -> pd.DataFrame:
    """Return cumulative repeat purchases, expected and actual, of the customers in `past`.

    By week back from `until`, or by longer steps where a week has fewer than `k` buyers; the curve
    begins where a step first has that many.

    Parameters
    ----------
    past : summary that `model` was fitted on, in calendar days
    days : as `customers.purchase_days` gives them, up to `until`
    season : in whose days the model counts
    """
    import ibis
    import numpy as np
    import pandas as pd

    start, cohorts = _cohorts(past)
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
            .to_pandas()
            .set_index("step")
        )
        seen = seen.reindex(range(span // step, -1, -1), fill_value=0).reset_index()
        actual = seen["purchases"].cumsum()
        enough = (seen["customers"] >= k) | (seen["customers"] == 0)
        shown = seen[(seen["customers"] >= k).cummax()].index
        if enough.loc[shown].all():
            break
    ends = span - seen["step"].loc[shown].to_numpy(int) * step
    born = cohorts["born"].to_numpy()
    passed = season.clock(start, until) if season else np.arange(span + 1.0)
    # To the end of that day, so that the 78th week of CDNOW is 546 days.
    ages = np.where(ends[:, None] >= born, passed[ends][:, None] + 1 - passed[born], 0)
    return pd.DataFrame(
        {
            "day": [start + dt.timedelta(days=int(end)) for end in ends],
            "expected": _expected(model, ages, cohorts["customers"].to_numpy()),
            "actual": actual.loc[shown].astype(int),
        }
    )
