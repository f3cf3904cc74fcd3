"""The customers beside their forecast: who came back, what changed, who is surely new."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from crmlab import customers, results, tables
from crmlab.fitting import fit

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.forecasts import ClvModel
    from crmlab.seasons import Season
    from crmlab.sources import Shop


@dataclass(frozen=True)
class Known:
    """What can be said of customers without a forecast.

    `repeaters` came back at least once; half of them `usually` bought so often more, or oftener.
    """

    customers: int
    repeaters: int
    usually: float
    k: int
    numbers: results.Numbers

    @property
    def kpis(self) -> list[results.Kpi]:
        """The tiles of a page that has no forecast."""
        shown = self.k <= self.repeaters <= self.customers - self.k
        share = self.repeaters / self.customers if shown else float("nan")
        return [
            results.Kpi("Customers", self.customers, "count", "up"),
            results.Kpi("Came back at least once", share, "share", "up"),
        ]

    @property
    def verdict(self) -> str:
        """What is known, in a sentence."""
        n = self.numbers
        some = f"fewer than {self.k}" if self.repeaters < self.k else n.number(self.repeaters)
        some = "nearly all" if self.customers - self.repeaters < self.k <= self.repeaters else some
        told = f"Of {n.number(self.customers)} customers {some} came back at least once"
        if self.repeaters < self.k:
            return f"{told}."
        return f"{told}; half of them bought {n.number(self.usually)} times more, or oftener."


def known(summary: ir.Table, *, numbers: results.Numbers, k: int) -> Known:
    """Count who came back, for the page that can say no more.

    Parameters
    ----------
    summary : ibis table as `customers.summary` gives it
    k : int, the fewest customers a figure may stand for
    """
    found = summary.aggregate(
        customers=summary.count(),
        repeaters=(summary.frequency > 0).sum(),
        usually=(summary.frequency > 0).ifelse(summary.frequency, None).median(),
    )
    return Known(**found.to_pyarrow().to_pylist()[0], k=k, numbers=numbers)


@dataclass(frozen=True, eq=False)
class Change:
    """Why the value of the base is another than it was on an earlier day.

    `rows`: group, customers, before, now and change, in shop currency, valued by the same model
    on both days, so that only what customers did moves it. The last row is all of them.
    """

    rows: pd.DataFrame
    since: dt.date
    numbers: results.Numbers

    @property
    def verdict(self) -> str:
        """What changed, in a sentence."""
        n = self.numbers
        if self.rows.empty or self.rows["change"].isna().any():
            return "Too few customers, or too short a log, to say what changed."
        total = self.rows.iloc[-1]
        more = "up" if total["change"] >= 0 else "down"
        return (
            f"Since {n.day(self.since)} the value of the base went {more} by "
            f"{n.short_money(abs(total['change']))}, from {n.short_money(total['before'])} to "
            f"{n.short_money(total['now'])}."
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row per group of customers, and all of them last."""
        return self.rows

    def _repr_html_(self) -> str:
        n, text = self.numbers, f"<p>{escape(self.verdict)}</p>"
        if self.rows.empty:
            return text
        money = dict.fromkeys(("before", "now", "change"), lambda value: n.money(value, 0))
        return text + results.html_table(
            self.rows,
            title=f"Lifetime value on {n.day(self.since)} and now, by the same model",
            formats={"customers": n.number, **money},
            headings={"group": "customers who", "customers": "number"},
        )


def change(
    shop: Shop,
    model: ClvModel,
    summary: ir.Table,
    *,
    since: str | dt.date,
    horizon_days: float,
    margin: float,
    annual_discount_rate: float,
    k: int,
    season: Season | None = None,
) -> Change:
    """Split the change of the base's value since an earlier day by what customers did.

    Parameters
    ----------
    summary : of today, in the days that the model counts in
    since : the end of that day; before the log there is nothing to compare
    k : int, the fewest customers a figure may stand for
    season : the one that was taken out of the summary, if one was

    Raises
    ------
    UsageError if `since` is after the model's as_of
    """
    import pandas as pd

    day = tables.day(since, name="since")
    if day > model.as_of:
        raise tables.UsageError(f"since {day} is after as_of {model.as_of}. Choose an earlier day.")
    rows = pd.DataFrame(columns=["group", "customers", "before", "now", "change"])
    if day <= (summary.first_purchase.min().to_pyarrow().as_py()):
        return Change(rows, day, shop.numbers)

    def valued(rows: ir.Table, name: str) -> ir.Table:
        values = model.predict(
            rows,
            horizon_days=horizon_days,
            margin=margin,
            annual_discount_rate=annual_discount_rate,
            intervals=False,
        )
        return values.select("customer_id", **{name: "clv"})

    days = summary.select("customer_id", "first_purchase", "last_purchase")
    both = days.inner_join(valued(summary, "now"), "customer_id")
    earlier = customers.summary(shop, as_of=day)
    earlier = season.taken_out(earlier, as_of=day) if season else earlier
    both = both.left_join(valued(earlier, "before"), "customer_id")
    both = both.mutate(
        known=both.before.notnull().cast("int64"),
        before=both.before.fill_null(0.0),
        group=(both.first_purchase > day).ifelse(
            "are new since then",
            (both.last_purchase > day).ifelse("bought again since", "have not bought since"),
        ),
    )
    found = both.group_by("group").aggregate(
        customers=both.count(),
        known=both.known.sum(),
        before=both.before.sum(),
        now=both.now.sum(),
        # Null for new ones, who by their name had no value then: nobody can be told from that.
        largest_before=both.before.nullif(0).max(),
        largest_now=both.now.max(),
    )
    rows = results.merge_small_cells(
        found.order_by("group").to_pandas(),
        label="group",
        customers="customers",
        k=k,
        largest={"before": "largest_before", "now": "largest_now"},
    )
    # What was before stands for those who were there then.
    if rows["known"].between(1, k - 1).any():
        rows["before"] = float("nan")
    rows = rows.drop(columns="known")
    everyone = rows.drop(columns="group").sum(skipna=False).to_frame().T.assign(group="all")
    rows = pd.concat([rows, everyone], ignore_index=True) if len(rows) else rows
    return Change(rows.assign(change=rows["now"] - rows["before"]), day, shop.numbers)


@dataclass(frozen=True)
class Newcomers:
    """What the model says of customers who are surely new, beside one fitted on them alone.

    Purchases expected of the `customers` within `horizon_days`; nan where they are too few to fit.
    """

    customers: int
    by_all: float
    by_their_own: float
    horizon_days: int
    reason: str
    numbers: results.Numbers

    @property
    def verdict(self) -> str:
        """The comparison in a sentence."""
        n = self.numbers
        if self.reason:
            return f"The fit is approximate, and cannot be held against a better one: {self.reason}"
        difference = n.percent(self.by_all / self.by_their_own - 1, signed=True)
        return (
            f"The fit is approximate. Of the {n.number(self.customers)} customers who are surely "
            f"new it expects {n.number(self.by_all)} purchases in {n.number(self.horizon_days)} "
            f"days; a model fitted on them alone expects {n.number(self.by_their_own)} "
            f"({difference} against it)."
        )

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.verdict)}</p>"


def newcomers(
    model: ClvModel,
    summary: ir.Table,
    history: customers.LogStart,
    *,
    horizon_days: int,
    k: int,
) -> Newcomers | None:
    """Hold the model against one fitted on customers who are surely new, if history is cut off.

    Who was a customer before the log began is taken to be newer, and to have bought less, than is
    true; where one in five may be, the fit is approximate. None where they are fewer.

    Parameters
    ----------
    history : as `customers.log_start` gives it for the same summary
    """
    if not history.cut_off:
        return None
    rows = summary.anti_join(history.older, "customer_id")
    new = int(rows.count().to_pyarrow().as_py())

    def expected(by: ClvModel) -> float:
        values = by.predict(rows, horizon_days=horizon_days, margin=1.0, intervals=False)
        return float(values.expected_purchases.sum().to_pyarrow().as_py())

    try:
        if new < k:
            raise tables.DataError(f"fewer than {k} customers are surely new.")
        own = expected(fit(rows, model=model.model, as_of=model.as_of))
    except tables.DataError as error:
        nothing = float("nan")
        return Newcomers(new, nothing, nothing, horizon_days, str(error), history.numbers)
    return Newcomers(new, expected(model), own, horizon_days, "", history.numbers)
