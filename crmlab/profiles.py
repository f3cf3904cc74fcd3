"""What the questions about the base ask of each customer: stages, value, the last purchase."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from crmlab import customers, purchases, tables
from crmlab.stocks import too_few

if TYPE_CHECKING:
    import ibis.expr.types as ir

    from crmlab.sources import Shop

YEAR = 365


@dataclass(frozen=True, eq=False)
class Base:
    """The customers at the end of `as_of`, and what became of them since the end of `since`.

    `rows`, a local ibis table with one row per customer: customer_id; stage and before, the stage
    at either day, null before the first purchase; silent, days; purchases, days with one;
    last_purchase; returned_on, the first purchase after `since`; total, net spend in the whole log,
    and value, in the 365 days up to the last purchase with what was taken back since, both in shop
    currency; store_id of the last purchase; last_was_return, whether the last line of all was one;
    known, whether the customer was active at either day; place and of, how many of those known
    have more value, and how many there are.
    """

    shop: Shop
    as_of: dt.date
    since: dt.date
    rows: ir.Table

    @cached_property
    def closed(self) -> bool:
        """Whether too few moved since to tell how many did, in whatever table of the page."""
        rows = self.rows
        moves = rows.group_by("before", now="stage").aggregate(customers=rows.count())
        return too_few(moves.to_pandas(), self.k)

    @property
    def k(self) -> int:
        """The fewest customers of whom may be told."""
        return self.shop.policy.privacy_k


def base(shop: Shop, *, as_of: str | dt.date, since: str | dt.date) -> Base:
    """Bring together what the questions below ask of each customer, one pass over the receipts.

    Value ends with the last purchase, not with `as_of`: else who slips away would seem to be worth
    less for it.

    Raises
    ------
    DataError as `customers.stages` does; UsageError if `since` is not before `as_of`
    """
    import ibis

    now, then = tables.day(as_of), tables.day(since, name="since")
    if then >= now:
        raise tables.UsageError(f"since {then} must lie before as_of {now}.")
    stages = customers.stages(shop, as_of=now)
    earlier = customers.stages(shop, as_of=then).select("customer_id", before="stage")
    rows = shop.landed(_profile(shop, now, then), "profile")
    rows = stages.left_join(rows, "customer_id").drop("customer_id_right")
    rows = rows.left_join(earlier, "customer_id").drop("customer_id_right")
    # Those lost for longer are no part of the base that can be kept; nor are those who came and
    # went in between, so that the sums are those of the bridge.
    known = (rows.stage != "lost") | (rows.before != "lost").fill_null(False)
    rows = rows.mutate(known=known)
    rows = rows.mutate(
        place=ibis.rank().over(group_by="known", order_by=rows.value.desc()),
        of=rows.count().over(group_by="known"),
    )
    return Base(shop, now, then, shop.landed(rows, "base"))


def _profile(shop: Shop, day: dt.date, since: dt.date) -> ir.Table:
    """Return what the receipts say of each customer, as an expression on the shop's engine."""
    import ibis

    rows = purchases.lines(shop, as_of=day)
    keys = [n for n in ("customer_id", "purchased_on", "store_id") if n in rows.columns]
    sold = purchases.is_purchase(shop, rows.amount)
    visits = rows.group_by(keys).aggregate(
        amount=rows.amount.sum(),
        sold_at=rows.purchased_at.max(where=sold),
        back_at=rows.purchased_at.max(where=rows.amount < 0),
        at=rows.purchased_at.max(),
    )
    own = {"group_by": "customer_id"}
    net = visits.amount.sum().over(group_by=["customer_id", "purchased_on"])
    visits = visits.select(
        *keys, "amount", "sold_at", "back_at",
        bought=purchases.is_purchase(shop, net).ifelse(visits.purchased_on, ibis.null("date")),
        latest=visits["at"].max().over(**own),
    )  # fmt: skip
    visits = visits.select(*visits.columns, last=visits.bought.max().over(**own))
    visits = visits.filter(visits["last"].notnull())
    on_last = visits.purchased_on == visits["last"]
    sold_at = on_last.ifelse(visits.sold_at, ibis.null("timestamp")).max().over(**own)
    visits = visits.select(*visits.columns, last_sold=sold_at)
    recent = visits["last"].delta(visits.purchased_on, unit="day") < YEAR
    there = visits.sold_at == visits.last_sold
    stores = "store_id" in keys
    found = visits.group_by("customer_id").aggregate(
        last_purchase=visits["last"].max(),
        returned_on=visits.bought.min(where=visits.bought > ibis.literal(since)),
        total=visits.amount.sum().cast("float64"),
        value=visits.amount.sum(where=recent).cast("float64"),
        returns=visits.count(where=(visits.back_at == visits.latest).fill_null(False)),
        # The smallest of several at the same moment: the order of lines means nothing.
        **({"store_id": visits.store_id.min(where=there)} if stores else {}),
    )
    return found.select(
        *(name for name in found.columns if name not in ("returns", "store_id")),
        last_was_return=found.returns > 0,
        store_id=found.store_id if stores else ibis.null("string"),
    )
