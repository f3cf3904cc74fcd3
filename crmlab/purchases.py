"""What a purchase is, and each customer's purchases in one row, as of a date."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crmlab import results, tables

if TYPE_CHECKING:
    import ibis.expr.types as ir

    from crmlab.sources import Shop


def lines(shop: Shop, *, as_of: str | dt.date) -> ir.Table:
    """Return the lines of receipts that count for customers, up to and with `as_of`.

    Anonymous sales have no customer and are left out, and so are the products that the shop's
    policy calls `not_goods`.
    """
    import ibis

    rows = shop.table("transactions")
    rows = rows.filter(
        rows.customer_id.notnull(), rows.purchased_on <= ibis.literal(tables.day(as_of))
    )
    if shop.policy.not_goods and "product_id" in rows.columns:
        rows = rows.filter(~rows.product_id.isin(shop.policy.not_goods).fill_null(False))
    return rows


def is_purchase(shop: Shop, amount: ir.NumericValue) -> ir.BooleanValue:
    """Tell whether a day of that net amount is a purchase, by the shop's policy."""
    return amount >= 0 if shop.policy.zero_value_purchases == "count" else amount > 0


def purchase_days(shop: Shop, *, as_of: str | dt.date) -> ir.Table:
    """Return one row per customer and calendar day with a purchase, up to and with `as_of`.

    Columns `customer_id`, `purchased_on`, `amount` (the day's net amount). A day that nets to
    less than nothing is no purchase; one that nets to zero is only if the shop's policy
    `zero_value_purchases` is "count". The lines are those of `lines`.
    """
    rows = lines(shop, as_of=as_of)
    days = rows.group_by("customer_id", "purchased_on").aggregate(amount=rows.amount.sum())
    return days.filter(is_purchase(shop, days.amount))


def recent(shop: Shop, *, as_of: str | dt.date, days: int) -> ir.Table:
    """Return what each customer bought in the last `days` days up to the end of `as_of`.

    Returns
    -------
    table, one row per customer with a line in these days: customer_id; visits, days with a
    purchase; spend, net in shop currency, returns without a purchase too
    """
    import ibis

    rows = lines(shop, as_of=as_of)
    rows = rows.filter(rows.purchased_on > ibis.literal(tables.day(as_of) - dt.timedelta(days)))
    daily = rows.group_by("customer_id", "purchased_on").aggregate(amount=rows.amount.sum())
    return daily.group_by("customer_id").aggregate(
        visits=daily.count(where=is_purchase(shop, daily.amount)),
        spend=daily.amount.sum().cast("float64"),
    )


def age(birth: ir.DateValue, day: dt.date) -> ir.IntegerValue:
    """Return the whole years from a date of birth to a day; negative for who is not born yet."""
    not_yet = birth.month() * 100 + birth.day() > day.month * 100 + day.day
    years: ir.IntegerValue = day.year - birth.year() - not_yet.ifelse(1, 0)
    return years


def summary(shop: Shop, *, as_of: str | dt.date) -> ir.Table:
    """Summarise each customer's purchases as of the end of a day.

    Returns
    -------
    local ibis table, computed once in the shop's engine, one row per customer with a purchase up
    to `as_of`:
    customer_id; frequency, purchase days after the first; recency, days from the first purchase
    to the last; T, days from the first purchase to `as_of`; monetary_value, mean net amount of
    the repeat purchase days, null at frequency 0; first_purchase, last_purchase.

    Raises
    ------
    DataError if nobody had bought anything by `as_of`, or the log ends more than the policy's
    `stale_after_days` before it

    Notes
    -----
    The definitions of Fader, Hardie and Lee (2005), Marketing Science 24, and for the value
    Fader and Hardie (2013), note 025, in whole days.
    """
    rows = shop.landed(_summary(shop, tables.day(as_of)), "summary")
    if rows.count().to_pyarrow().as_py() == 0:
        raise nobody(shop, tables.day(as_of))
    return rows


def nobody(shop: Shop, last_day: dt.date) -> tables.DataError:
    """Return the error of a day by which there are sales, but none of a customer."""
    return tables.DataError(
        f"No customer of shop '{shop.id}' has bought anything by {last_day}: all "
        "lines up to then are returns, of no value, of no customer, or no goods."
    )


def check_date(shop: Shop, last_day: dt.date) -> None:
    """Raise `DataError` for a day before the log or long after it."""
    first_sale, last_sale = shop.check("transactions").first, shop.check("transactions").last
    if last_sale and (last_day - last_sale).days > shop.policy.stale_after_days:
        raise tables.DataError(
            f"as_of {last_day} is after the last purchase of shop '{shop.id}' ({last_sale}): the "
            "days between would count as if nobody had bought. Choose a date of the log."
        )
    if first_sale is None or first_sale > last_day:
        raise tables.DataError(
            f"as_of {last_day} is before the first purchase of shop '{shop.id}' ({first_sale}). "
            "Choose a later date."
        )


def _summary(shop: Shop, last_day: dt.date) -> ir.Table:
    """Return the summary as an expression on the shop's engine."""
    import ibis

    check_date(shop, last_day)
    days = purchase_days(shop, as_of=last_day)
    each = days.group_by("customer_id").aggregate(
        frequency=days.count() - 1,
        first_purchase=days.purchased_on.min(),
        last_purchase=days.purchased_on.max(),
        total=days.amount.sum().cast("float64"),
        first_amount=days.amount.argmin(days.purchased_on).cast("float64"),
    )
    return each.select(
        "customer_id",
        "frequency",
        recency=each.last_purchase.delta(each.first_purchase, unit="day"),
        T=ibis.literal(last_day).delta(each.first_purchase, unit="day"),
        monetary_value=(each.total - each.first_amount) / each.frequency.nullif(0),
        first_purchase=each.first_purchase,
        last_purchase=each.last_purchase,
    )


@dataclass(frozen=True, eq=False)
class LogStart:
    """How many customers may be older than the log: first seen soon after it began.

    `burn_in_days` is twice the median gap between purchase days, at least 60. `older` holds their
    `customer_id`, as a local ibis table.
    """

    starts_on: dt.date
    burn_in_days: int
    customers: int
    maybe_older: int
    numbers: results.Numbers
    older: ir.Table

    @property
    def share(self) -> float:
        """Share of the customers who may be older than the log."""
        return self.maybe_older / self.customers

    @property
    def cut_off(self) -> bool:
        """Whether so many may be older that the log is a piece cut out of a longer history."""
        return self.share > 0.2

    @property
    def caution(self) -> str:
        """One sentence for the page where the history is cut off, else nothing."""
        if not self.cut_off:
            return ""
        return (
            f"The history is cut off: {self.numbers.percent(self.share, 0)} of the customers are "
            f"first seen within {self.burn_in_days} days of the log's start and may have bought "
            "before it. What is said of their rhythm and of new customers is approximate."
        )


def log_start(shop: Shop, summary: ir.Table, *, as_of: str | dt.date) -> LogStart:
    """Count the customers who may be older than the log.

    Those first seen within the burn-in, unless `joined_on` says that they joined since the log
    began. Other customers are new when they are first seen.

    Parameters
    ----------
    summary : local ibis table as `customers.summary` gives it for the same shop and `as_of`
    """
    import ibis

    days = purchase_days(shop, as_of=as_of)
    before = days.purchased_on.lag().over(group_by="customer_id", order_by="purchased_on")
    gaps = days.select(gap=days.purchased_on.delta(before, unit="day"))
    median = gaps.gap.cast("float64").median().to_pyarrow().as_py()
    burn_in = burn_in_days_of(median)
    first = summary.first_purchase.min().to_pyarrow().as_py()
    early = summary.filter(summary.first_purchase < ibis.literal(first + dt.timedelta(burn_in)))
    if (members := joined_since(shop, first)) is not None:
        early = early.anti_join(members, "customer_id")
    in_all, maybe_older = (int(rows.count().to_pyarrow().as_py()) for rows in (summary, early))
    older = early.select("customer_id")
    return LogStart(first, burn_in, in_all, maybe_older, shop.numbers, older)


def burn_in_days_of(gap: float | None) -> int:
    """Return how many days after the log's start a customer may be older than it."""
    return max(60, math.ceil(2 * (gap or 0)))


def joined_since(shop: Shop, first: dt.date) -> ir.Table | None:
    """Return the `customer_id` of those who joined since the log began, if the shop knows."""
    import ibis

    if not (shop.has("customers") and "joined_on" in shop.table("customers").columns):
        return None
    members = shop.table("customers")
    members = members.filter(members.joined_on >= ibis.literal(first)).select("customer_id")
    return shop.landed(members, "members")
