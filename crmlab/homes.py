"""Where the customers live, what they spent, and at which store: the base of the catchment."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crmlab import places, purchases, results, tables

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.sources import Shop

YEAR = 365


@dataclass(frozen=True, eq=False)
class Homes:
    """The customers and stores of a shop at the end of `as_of`.

    `rows`, a local ibis table with one row per customer who has bought: customer_id; latitude and
    longitude in degrees, null where unknown, and x, y, z, their unit vector; bought, whether within
    the last `days`; spend, net in these days in shop currency; new, whether the first purchase lies
    in them and history is long enough to say so; member, whether in the programme; points, the
    balance. `visits`, local: customer_id, store_id, visits, days with a purchase at that store, and
    spend there, in the last `days`; None where receipts name no store.
    `stores`: store_id, name, own, latitude, longitude, area_m2, opened_on; those with coordinates.
    `lost` counts the stores without. `has` names what the shop's tables could say: member, points.
    """

    shop: Shop
    as_of: dt.date
    days: int
    rows: ir.Table
    visits: ir.Table | None
    stores: pd.DataFrame
    lost: int
    has: tuple[str, ...]

    def __repr__(self) -> str:
        """Say of what shop and day these are: everything in it would be a page of tables."""
        return f"Homes of shop '{self.shop.id}' as of {self.as_of}, {len(self.own)} own stores"

    @property
    def k(self) -> int:
        """The fewest customers of whom may be told."""
        return self.shop.policy.privacy_k

    @property
    def numbers(self) -> results.Numbers:
        """How figures print."""
        return self.shop.numbers

    @property
    def busiest(self) -> str:
        """The own store with most visits, the first by id among equals, or where none is known."""
        ids = self.own["store_id"]
        if self.visits is None:
            return str(ids.iloc[0])
        seen = self.visits.group_by("store_id").aggregate(visits=self.visits.visits.sum())
        counts = seen.to_pandas().set_index("store_id")["visits"].reindex(ids).fillna(0)
        return str(counts.idxmax())

    @property
    def own(self) -> pd.DataFrame:
        """The shop's own stores."""
        return self.stores[self.stores["own"]].reset_index(drop=True)


def of_customers(shop: Shop, *, as_of: str | dt.date, days: int = YEAR) -> Homes:
    """Bring together where customers live and what they did, one pass over the receipts.

    Raises
    ------
    DataError without customers or stores with coordinates, or where nobody has bought
    """
    day = tables.day(as_of)
    if isinstance(days, bool) or not isinstance(days, int) or not 1 <= days <= 3_660:
        raise tables.UsageError(f"days is {days!r}; it must be a whole number from 1 to 3660.")
    for name in ("customers", "stores"):
        if not shop.has(name):
            raise tables.DataError(
                f"Shop '{shop.id}' has no table {name}: a catchment needs customers and stores "
                "with latitude and longitude."
            )
        if not {"latitude", "longitude"} <= {*shop.table(name).columns}:
            raise tables.DataError(
                f"The table {name} of shop '{shop.id}' has no columns latitude and longitude, in "
                "degrees. Add them, or rename yours in shop.toml."
            )
    stores, lost = _stores(shop)
    rows, has = _rows(shop, day, days)
    return Homes(shop, day, days, rows, _visits(shop, day, days), stores, lost, has)


def _stores(shop: Shop) -> tuple[pd.DataFrame, int]:
    """Return the stores with coordinates in the order of their ids, and how many have none."""
    table = shop.table("stores")
    wanted = ("store_id", "name", "own", "latitude", "longitude", "area_m2", "opened_on")
    frame = table.select(*(name for name in wanted if name in table.columns)).to_pandas()
    frame = frame.reindex(columns=list(wanted)).sort_values("store_id", ignore_index=True)
    # A store is one's own until something else is said.
    frame["own"] = frame["own"].astype("boolean").fillna(True).astype(bool)
    frame["name"] = frame["name"].astype(object).where(frame["name"].notna(), frame["store_id"])
    located = frame["latitude"].notna() & frame["longitude"].notna()
    if not (located & frame["own"]).any():
        raise tables.DataError(
            f"None of the {len(frame)} stores of shop '{shop.id}' is its own and has a latitude "
            "and a longitude: a catchment needs at least one."
        )
    return frame[located].reset_index(drop=True), int((~located).sum())


def _rows(shop: Shop, day: dt.date, days: int) -> tuple[ir.Table, tuple[str, ...]]:
    """Return one row per customer who has bought, and which columns the shop's tables allow."""
    import ibis

    since = ibis.literal(day - dt.timedelta(days))
    summary = purchases.summary(shop, as_of=day)
    recent = purchases.recent(shop, as_of=day, days=days)
    recent = shop.landed(recent, "recent")
    members = shop.table("customers")
    joined = "joined_on" in members.columns
    known = ["customer_id", "latitude", "longitude", *(["joined_on"] if joined else [])]
    people = shop.landed(members.select(*known), "homes")
    rows = summary.select("customer_id", "first_purchase").left_join(people, "customer_id")
    rows = rows.left_join(recent, "customer_id")
    rows = rows.select(
        "customer_id", "latitude", "longitude", "first_purchase",
        *(["joined_on"] if joined else []),
        bought=(rows.visits > 0).fill_null(False), spend=rows.spend.fill_null(0.0),
    )  # fmt: skip
    # First seen soon after the log begins, a customer may be older than the log.
    older = purchases.log_start(shop, summary, as_of=day).older.mutate(older=True)
    rows = rows.left_join(older, "customer_id").drop("customer_id_right")
    has: tuple[str, ...] = ()
    if shop.has("points"):
        posted = shop.table("points")
        posted = posted.filter(posted.posted_at.date() <= ibis.literal(day))
        balance = posted.group_by("customer_id").aggregate(
            balance=posted.points.sum().cast("float64")
        )
        rows = rows.left_join(shop.landed(balance, "balances"), "customer_id")
        rows = rows.drop("customer_id_right")
        member, points, has = (
            rows.balance.notnull(),
            rows.balance.fill_null(0),
            ("member", "points"),
        )
    else:
        member, points = ibis.null("boolean"), ibis.null("float64")
        if joined:
            member, has = (rows.joined_on <= ibis.literal(day)).fill_null(False), ("member",)
    new = (rows.first_purchase > since) & rows.older.isnull()
    rows = rows.mutate(new=new, member=member, points=points)
    rows = places.on_sphere(
        rows.select(
            "customer_id", "latitude", "longitude", "bought", "spend", "new", "member", "points"
        )
    )
    return shop.landed(rows, "catchment"), has


def _visits(shop: Shop, day: dt.date, days: int) -> ir.Table | None:
    """Return the days on which each customer bought at each store, and the spend there."""
    import ibis

    lines = purchases.lines(shop, as_of=day)
    if "store_id" not in lines.columns:
        return None
    since = ibis.literal(day - dt.timedelta(days))
    lines = lines.filter(lines.purchased_on > since, lines.store_id.notnull())
    daily = lines.group_by("customer_id", "store_id", "purchased_on").aggregate(
        amount=lines.amount.sum()
    )
    sold = purchases.is_purchase(shop, daily.amount)
    found = daily.group_by("customer_id", "store_id").aggregate(
        visits=daily.count(where=sold), spend=daily.amount.sum().cast("float64")
    )
    return shop.landed(found.filter(found.visits > 0), "visits")
