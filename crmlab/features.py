"""What is known of each customer at the end of a day, of which a risk can be learnt."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from crmlab import places, purchases, tables
from crmlab.customers import SHOP_GAPS

if TYPE_CHECKING:
    import ibis.expr.types as ir

    from crmlab.sources import Shop

# A quarter and a year in whole weeks, so that every weekday counts as often.
QUARTER, YEAR = 91, 364
# What a customer may be beside their numbers: the words of which each is one.
WORDS = ("store", "channel", "case_kind")
# Which features speak of the same thing, and are therefore one reason.
GROUPS = {
    "silence": ("silent", "overdue"),
    "frequency": ("frequency", "purchases_a_year"),
    "trend": ("recent", "earlier", "trend"),
    "tenure": ("T",),
    "spend": ("mean_spend",),
    "spend_trend": ("spend_slope",),
    "variety": ("categories",),
    "returns": ("returned_share",),
    "discounts": ("discount_share",),
    "channel": ("channel",),
    "store": ("store",),
    "distance": ("distance_km",),
    "cases": ("cases", "case_kind", "case_open_days"),
    "points": ("points",),
    "contacts": ("contacts",),
}


def features(shop: Shop, *, as_of: str | dt.date) -> ir.Table:
    """Describe each customer at the end of a day; nothing later is read.

    Returns
    -------
    local ibis table, one row per customer with a purchase up to `as_of`. Always: customer_id;
    frequency, recency and T as in `customers.summary`; silent, days since the last purchase;
    usual_gap, in days as in `customers.stages`, null where nobody came back; overdue, silent /
    usual_gap; purchases_a_year; recent and earlier, purchases in the last 91 days and in the 91
    before; trend, their difference over their sum; mean_spend, net amount of a purchase;
    spend_slope, that of the last 364 days over that of all, less 1; returned_share, returned
    over bought money.
    Where the shop has the columns: discount_share, discount over the full price; store and
    channel of the last purchase; categories, how many in 364 days; distance_km, to that store;
    cases, how many in 364 days; case_kind, of the newest since the last purchase, and
    case_open_days, how long it has been open, null where it is not; points, the balance;
    contacts, how many were sent in 91 days.

    Raises
    ------
    DataError as `customers.summary` does
    """
    day = tables.day(as_of)
    purchases.check_date(shop, day)
    rows = shop.landed(_bought(shop, day), "bought")
    if rows.count().to_pyarrow().as_py() == 0:
        raise purchases.nobody(shop, day)
    for more in (_categories, _cases, _points, _contacts, distances):
        columns = list(rows.columns)
        if (found := more(shop, day, rows)) is not None:
            names = [name for name in found.columns if name != "customer_id"]
            rows = rows.left_join(found, "customer_id").select(*columns, *names)
    # Who has had none has had zero of them; a table that is missing leaves no column.
    counts = [
        name for name in ("categories", "cases", "points", "contacts") if name in rows.columns
    ]
    rows = rows.mutate(**{name: rows[name].fill_null(0) for name in sorted(counts)})
    numbers = [name for name, kind in rows.schema().items() if kind.is_numeric()]
    rows = rows.mutate(**{name: rows[name].cast("float64") for name in numbers})
    repeaters = rows.filter(rows.frequency > 0)
    shops = (repeaters.recency / repeaters.frequency).median().to_pyarrow().as_py()
    usual = (SHOP_GAPS * shops + rows.recency) / (SHOP_GAPS + rows.frequency) if shops else None
    rows = rows.mutate(usual_gap=usual if usual is not None else _nothing())
    both = rows.recent + rows.earlier
    kept = [name for name in rows.columns if name != "last_purchase"]
    return rows.select(
        *kept,
        overdue=rows.silent / rows.usual_gap,
        trend=((rows.recent - rows.earlier) / both.nullif(0)).fill_null(0.0),
        # Who came yesterday for the first time has no rate yet: at least a quarter is taken.
        purchases_a_year=rows.frequency * YEAR / rows["T"].clip(lower=QUARTER),
    )


def bought_after(shop: Shop, *, after: dt.date, days: int) -> ir.Table:
    """Return the `customer_id` of those who bought in the `days` after a day: they did not stop."""
    import ibis

    later = purchases.purchase_days(shop, as_of=after + dt.timedelta(days))
    later = later.filter(later.purchased_on > ibis.literal(after))
    return shop.landed(later.select("customer_id").distinct(), "bought_later")


def _nothing() -> Any:
    import ibis

    return ibis.null("float64")


def _bought(shop: Shop, day: dt.date) -> ir.Table:
    """Return what the receipts tell, one row per customer, as one expression on the engine."""
    import ibis

    rows = purchases.lines(shop, as_of=day)
    sums = {
        "amount": rows.amount.sum(),
        "returned": -rows.amount.sum(where=rows.amount < 0),
        "gross": rows.amount.sum(where=rows.amount > 0),
    }
    if "discount" in rows.columns:
        sums["discount"] = rows.discount.sum(where=rows.amount > 0)
    words = {"store": "store_id", "channel": "channel"}
    words = {name: column for name, column in words.items() if column in rows.columns}
    sums |= {name: rows[column].max() for name, column in words.items()}
    days = rows.group_by("customer_id", "purchased_on").aggregate(**sums)
    bought = purchases.is_purchase(shop, days.amount)
    since = {n: ibis.literal(day - dt.timedelta(n)) for n in (QUARTER, 2 * QUARTER, YEAR)}
    quarter, half, year = (bought & (days.purchased_on > one) for one in since.values())
    each = days.group_by("customer_id").aggregate(
        frequency=days.count(where=bought) - 1,
        first=days.purchased_on.min(where=bought),
        last_purchase=days.purchased_on.max(where=bought),
        recent=days.count(where=quarter),
        half=days.count(where=half),
        of_year=days.count(where=year),
        total=days.amount.sum(where=bought).cast("float64"),
        of_year_total=days.amount.sum(where=year).cast("float64"),
        returned=days.returned.sum().cast("float64"),
        gross=days.gross.sum().cast("float64"),
        **({"discount": days.discount.sum().cast("float64")} if "discount" in sums else {}),
        # The day, then the word: the greatest of the last day's, on every engine.
        **{
            name: days[name].argmax(bought.ifelse(days.purchased_on, ibis.null("date")))
            for name in words
        },
    )
    each = each.filter(each.frequency >= 0)
    mean = each.total / (each.frequency + 1)
    found = {
        "recency": each.last_purchase.delta(each["first"], unit="day"),
        "T": ibis.literal(day).delta(each["first"], unit="day"),
        "silent": ibis.literal(day).delta(each.last_purchase, unit="day"),
        "earlier": each.half - each.recent,
        "mean_spend": mean,
        "spend_slope": each.of_year_total / each.of_year.nullif(0) / mean.nullif(0) - 1,
        "returned_share": each.returned.fill_null(0.0) / each.gross.nullif(0),
    }
    if "discount" in sums:
        full = (each.gross + each.discount.fill_null(0.0)).nullif(0)
        found["discount_share"] = each.discount.fill_null(0.0) / full
    kept = ["customer_id", "frequency", "recent", "last_purchase", *words]
    return each.select(*kept, **found)


def _categories(shop: Shop, day: dt.date, _: ir.Table) -> ir.Table | None:
    """Count the categories that each customer bought of, if one engine holds both tables."""
    import ibis

    lines = purchases.lines(shop, as_of=day)
    if "product_id" not in lines.columns or not shop.has("products"):
        return None
    products = shop.table("products")
    if "category" not in products.columns or products.get_backend() is not lines.get_backend():
        return None
    recent = lines.purchased_on > ibis.literal(day - dt.timedelta(YEAR))
    lines = lines.filter(recent, lines.amount > 0).select("customer_id", "product_id")
    lines = lines.left_join(products.select("product_id", "category"), "product_id")
    found = lines.group_by("customer_id").aggregate(categories=lines.category.nunique())
    return shop.landed(found, "categories")


def _cases(shop: Shop, day: dt.date, rows: ir.Table) -> ir.Table | None:
    """Count the cases of a year, and name the newest since the last purchase."""
    import ibis

    if not shop.has("cases"):
        return None
    cases = shop.table("cases")
    opened, closed = cases.opened_at.date(), ibis.null("date")
    if "closed_at" in cases.columns:
        closed = cases.closed_at.date()
    kind = cases.kind if "kind" in cases.columns else ibis.literal("case")
    seen = cases.select("customer_id", "case_id", opened=opened, closed=closed, kind=kind)
    seen = seen.filter(seen.opened <= ibis.literal(day))
    seen = shop.landed(seen.filter(seen.opened > ibis.literal(day - dt.timedelta(YEAR))), "cases")
    seen = seen.inner_join(rows.select("customer_id", "last_purchase"), "customer_id")
    seen = seen.mutate(
        # On the day of the purchase it may have come before it or after: after is likelier.
        since=seen.opened >= seen.last_purchase,
        # A case that is closed later is still open at the end of the day.
        open=seen.closed.isnull() | (seen.closed > ibis.literal(day)),
        nth=ibis.row_number().over(
            group_by="customer_id", order_by=[seen.opened.desc(), seen.case_id]
        ),
    )
    newest = (seen.nth == 0) & seen.since
    open_days = ibis.literal(day).delta(seen.opened, unit="day")
    return seen.group_by("customer_id").aggregate(
        cases=seen.count(),
        case_kind=seen.kind.max(where=newest),
        case_open_days=open_days.max(where=newest & seen.open),
    )


def _points(shop: Shop, day: dt.date, _: ir.Table) -> ir.Table | None:
    """Return each customer's balance of points."""
    import ibis

    if not shop.has("points"):
        return None
    posted = shop.table("points")
    posted = posted.filter(posted.posted_at.date() <= ibis.literal(day))
    found = posted.group_by("customer_id").aggregate(points=posted.points.sum().cast("float64"))
    return shop.landed(found, "points")


def _contacts(shop: Shop, day: dt.date, _: ir.Table) -> ir.Table | None:
    """Count the messages sent to each customer."""
    import ibis

    if not shop.has("contacts") or "sent_at" not in shop.table("contacts").columns:
        return None
    sent = shop.table("contacts")
    on = sent.sent_at.date()
    since = ibis.literal(day - dt.timedelta(QUARTER))
    sent = sent.filter(on <= ibis.literal(day), on > since)
    found = sent.group_by("customer_id").aggregate(contacts=sent.count())
    return shop.landed(found, "contacts")


def distances(shop: Shop, day: dt.date, rows: ir.Table) -> ir.Table | None:
    """Return how far each customer lives from the store of the last purchase, as the crow flies."""
    if not (shop.has("customers") and shop.has("stores") and "store" in rows.columns):
        return None
    members, stores = shop.table("customers"), shop.table("stores")
    if not {"latitude", "longitude"} <= {*members.columns} & {*stores.columns}:
        return None
    homes = shop.landed(members.select("customer_id", "latitude", "longitude"), "homes")
    homes = places.on_sphere(homes).select("customer_id", "x", "y", "z")
    there = shop.landed(stores.select("store_id", "latitude", "longitude"), "places")
    both = rows.select("customer_id", "store").left_join(homes, "customer_id")
    both = both.select("customer_id", "store", "x", "y", "z")
    there = places.compass(there, "store_id")
    both = both.left_join(there, both.store == there.store_id)
    return both.select("customer_id", distance_km=places.kilometres(both))
