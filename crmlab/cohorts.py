"""Cohorts: customers by the month in which they were first seen, and what they did next."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from crmlab import customers, results, tables

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.sources import Shop

# Days within which a second purchase makes a new customer an active one.
WITHIN = (3, 7, 30, 90)
# So many cohorts and columns can be read; `to_frame` has them all.
MOST_SHOWN = 12


@dataclass(frozen=True, eq=False)
class Cohorts:
    """A share for each cohort, as a table.

    `table` has one row per cohort: cohort, its first month; customers; and shares between 0 and 1,
    missing where the log does not reach that far. `counts` has how many customers each share is
    made of, missing where not all of the cohort have been seen for so long. `left_out` counts the
    customers of no cohort: they may be older than the log, or came in a month that is cut short.
    `nested`: who counts in one column counts in the next.
    """

    title: str
    as_of: dt.date
    table: pd.DataFrame
    counts: pd.DataFrame
    left_out: int
    numbers: results.Numbers
    k: int
    nested: bool = False

    def to_frame(self) -> pd.DataFrame:
        """Return the table."""
        return self.table.copy()

    def shown(self) -> pd.DataFrame:
        """Return what a page may show: the latest cohorts first, and the columns after them.

        Cohorts of fewer than `k` customers are one, "other". A share is missing too where not all
        of the cohort have been seen for so long, where it or its rest is made of fewer than `k`,
        and where the next one, taken off, would tell of so few.
        """
        import pandas as pd

        sizes = self.table[["cohort", "customers"]]
        kept = results.merge_small_cells(sizes, label="cohort", customers="customers", k=self.k)
        names = list(self.counts.columns[1:])
        label = self.counts["cohort"].where(self.counts["cohort"].isin(kept["cohort"]), "other")
        counts = self.counts[names].groupby(label).agg(lambda one: one.sum(skipna=False))
        rows = []
        for cohort, size in kept.itertuples(index=False):
            rows.append({"cohort": cohort, "customers": size})
            shares = self._shares(counts.loc[cohort], size)
            rows[-1] |= {name: shares[name] for name in names[:MOST_SHOWN]}
        found = pd.DataFrame(rows, columns=["cohort", "customers", *names[:MOST_SHOWN]])
        other = found["cohort"] == "other"
        latest = found[~other].sort_values("cohort", ascending=False).head(MOST_SHOWN)
        found = pd.concat([latest, found[other]], ignore_index=True)
        empty = [name for name in names[:MOST_SHOWN] if found[name].isna().all()]
        return found.drop(columns=empty)

    def _shares(self, counts: pd.Series[float], size: int) -> dict[Any, float]:
        """Return the shares of one cohort that may be shown; the others are missing."""
        found, wider = {}, float(size)
        for name, count in reversed(list(counts.items())):
            shown = count == count and not any(
                results.few(one, self.k) for one in (count, wider - count)
            )
            found[name] = count / size if shown else math.nan
            if shown and self.nested:
                wider = count
        return found

    def _repr_html_(self) -> str:
        n, shown = self.numbers, self.shown()
        if shown.empty:
            return f"<p>{escape(self.title)}: no cohort has {self.k} customers or more.</p>"
        shares = [name for name in shown.columns if name not in ("cohort", "customers")]
        formats = {"customers": n.number, **{name: n.percent for name in shares}}
        headings: dict[Any, str] = {name: str(name).removeprefix("within ") for name in shares}
        return results.html_table(shown, title=self.title, formats=formats, headings=headings)


def activation(
    shop: Shop, *, as_of: str | dt.date, within: Sequence[int] | str = WITHIN
) -> Cohorts:
    """Tell how many new customers bought a second time within so many days of the first.

    Returns
    -------
    Cohorts with a column `within 3 days` and so on: the share among those of the cohort who have
    been seen for so long; missing where none has

    Raises
    ------
    DataError as `customers.summary` does; UsageError for a number of days below 1
    """
    day, asked = tables.day(as_of), within
    if isinstance(within, str):
        parts = [part.strip() for part in within.split(",")]
        within = [int(part) if part.isdecimal() else 0 for part in parts]
    if not within or not all(type(days) is int and 0 < days < 10_000 for days in within):
        raise tables.UsageError(f"within = {asked!r} must be whole numbers of days, 1 or more.")
    within = sorted(set(within))
    rows, left_out = _newcomers(shop, day)
    waited = rows.second.delta(rows.first_purchase, unit="day")
    found = {"customers": rows.count()}
    for days in within:
        seen = rows["T"] >= days
        found[f"seen {days}"] = rows.count(where=seen)
        found[f"back {days}"] = rows.count(where=seen & (waited <= days))
    table = rows.group_by("cohort").aggregate(**found).order_by("cohort").to_pandas()
    counts = table[["cohort"]].copy()
    for days in within:
        seen, back = table.pop(f"seen {days}"), table.pop(f"back {days}")
        table[f"within {days} days"] = back / seen.where(seen > 0)
        counts[f"within {days} days"] = back.where(seen == table["customers"])
    title, k = "Second purchases of new customers within", shop.policy.privacy_k
    return Cohorts(title, day, table, counts, left_out, shop.numbers, k, nested=True)


def _newcomers(shop: Shop, day: dt.date) -> tuple[ir.Table, int]:
    """Return the customers who are surely new in the log, one local row each; and how many not.

    Columns of `customers.summary`, and `second`, the day of the second purchase or null; `cohort`,
    the month of the first as 2024-01.
    """
    summary = customers.summary(shop, as_of=day)
    start = customers.log_start(shop, summary, as_of=day)
    days = customers.purchase_days(shop, as_of=day)
    earlier = days.purchased_on.lag().over(group_by="customer_id", order_by="purchased_on")
    earliest = days.purchased_on.min().over(group_by="customer_id")
    days = days.select("customer_id", "purchased_on", earlier=earlier, earliest=earliest)
    seconds = days.filter(days.earlier == days.earliest)
    seconds = shop.landed(seconds.select("customer_id", second="purchased_on"), "seconds")
    rows = summary.anti_join(start.older, "customer_id").left_join(seconds, "customer_id")
    rows = rows.drop("customer_id_right")
    return rows.mutate(cohort=rows.first_purchase.strftime("%Y-%m")), start.maybe_older


def retention(shop: Shop, *, as_of: str | dt.date) -> Cohorts:
    """Tell which share of each month's new customers bought again in each month after it.

    Returns
    -------
    Cohorts with columns 1, 2, 3, ...: months after that of the first purchase. Only whole months
    count: the one that `as_of` cuts short is left out, and so are those up to the last in which
    somebody was first seen who may be older than the log.

    Raises
    ------
    DataError as `customers.summary` does
    """
    import pandas as pd

    day = tables.day(as_of)
    summary = customers.summary(shop, as_of=day)
    start = customers.log_start(shop, summary, as_of=day)
    older = summary.semi_join(start.older, "customer_id").first_purchase.max()
    seen = older.to_pyarrow().as_py()
    begin = seen.replace(day=1) + dt.timedelta(32) if seen else start.starts_on
    first = 12 * begin.year + begin.month
    end = day + dt.timedelta(1)
    last = 12 * end.year + end.month - 1
    days = customers.purchase_days(shop, as_of=day)
    earliest = days.purchased_on.min().over(group_by="customer_id")
    days = days.select("customer_id", "purchased_on", earliest=earliest)
    cohort = 12 * days.earliest.year() + days.earliest.month()
    month = 12 * days.purchased_on.year() + days.purchased_on.month()
    counted = days.group_by(cohort=cohort, after=month - cohort).aggregate(
        customers=days.customer_id.nunique()
    )
    counts = counted.to_pandas()
    counts = counts[(counts.cohort >= first) & (counts.cohort + counts.after <= last)]
    wide = counts.pivot_table("customers", "cohort", "after", aggfunc="sum", fill_value=0)
    wide = wide.reindex(columns=range(max(0, last - first) + 1), fill_value=0)
    table = pd.DataFrame(
        {"cohort": [f"{(m - 1) // 12}-{(m - 1) % 12 + 1:02d}" for m in wide.index]}
    )
    counts = table.copy()
    table["customers"] = wide[0].to_numpy(dtype=int)
    for after in wide.columns[1:]:
        known = wide.index + after <= last
        table[after] = (wide[after] / wide[0]).where(known).to_numpy()
        counts[after] = wide[after].where(known).to_numpy()
    left_out = int(summary.count().to_pyarrow().as_py()) - int(table["customers"].sum())
    title = "New customers who bought again, by months after"
    k = shop.policy.privacy_k
    return Cohorts(title, day, table, counts, left_out, shop.numbers, k)
