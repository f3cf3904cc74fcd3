"""The audience of a campaign: all that a rule may ask of a customer, one row for each."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from functools import reduce
from operator import and_
from typing import TYPE_CHECKING, Any

from crmlab import customers, features, purchases, tables
from crmlab.conditions import Rule, read
from crmlab.rules import NEVER_BOUGHT, SEASONS, Given, frequent, unknown_value

if TYPE_CHECKING:
    import ibis.expr.types as ir

    from crmlab.sources import Shop

YEAR = 365
# What the table customers says as it is; where somebody lives exactly is not among it.
TRAITS = (
    "household_id", "sex", "occupation", "city", "region", "preferred_channel", "acquired_by",
)  # fmt: skip
OF_PRODUCTS = ("brand", "category", "subcategory")
# The tables that list what a receipt only names.
LISTED_IN = {"product_id": "products", "store_id": "stores"}


def audience(
    shop: Shop,
    *,
    as_of: str | dt.date,
    rules: Given = (),
    values: ir.Table | None = None,
    scores: ir.Table | None = None,
) -> ir.Table:
    """Bring together what rules may ask of each customer at the end of a day.

    Parameters
    ----------
    rules : as `rules.read` takes them; those that measure receipts add a column each, all in one
        pass over the receipts
    values : ibis table keyed by customer_id, as `ClvModel.predict` gives it: clv, p_purchase, ...
    scores : ibis table keyed by customer_id, as `churn.score` gives it: p_stop, ...
        Columns of either that the audience has already are left out.

    Returns
    -------
    local ibis table, private, one row per customer who had bought by `as_of`, or whom the table
    customers has and who had not joined later: customer_id.
    Always: frequency, recency, T, monetary_value, first_purchase, last_purchase as in
    `customers.summary`; stage, usual_gap, silent, own_rhythm as in `customers.stages`, the stage
    "never bought" for who has not, and usual_gap null where nobody came back; purchases, days with
    one, 0 for none; days_since_first; overdue, silent / usual_gap; spend_year, net spend in the
    365 days up to `as_of`, in shop currency, 0 for none; season, the one with most of the
    customer's purchases (of the north: winter is December to February), null between equals.
    Where the shop has the columns: household_id, sex, occupation, city, region, preferred_channel,
    acquired_by, as they are known now; joined_on and birth_date, null if after `as_of`; age, in
    whole years; days_to_birthday, 0 on the day itself, which of 29 February is 1 March in other
    years; distance_km to the store of the last purchase as in `features.features`;
    days_since_case_closed and case_kind of the case that was closed last by `as_of`.
    For each rule that measures receipts, `Rule.column_name`: purchases, the days on which the
    lines that it means net to a purchase; spend, their net amount, 0 for none; days_since, days
    since the last such purchase, null for none.

    Raises
    ------
    UsageError as `rules.read` does, or if values or scores are no table keyed by customer_id;
    DataError as `customers.summary` does, if values or scores have a customer twice, or if a rule
    asks for a brand, store or the like that the shop does not have
    """
    day = tables.day(as_of)
    wanted = {rule.column_name: rule for rule in read(rules) if rule.bought is not None}
    _check_traits(shop, day, list(wanted.values()))
    given = [
        _keyed(shop, what, table)
        for what, table in (("values", values), ("scores", scores))
        if table is not None
    ]
    summary = customers.summary(shop, as_of=day)
    receipts = shop.landed(_receipts(shop, day, wanted), "receipts")
    members, everyone = _members(shop, day), summary.select("customer_id")
    if members is not None:
        everyone = everyone.union(members.filter("is_member").select("customer_id"), distinct=True)
        members = members.drop("is_member")
    stages = customers.stages(shop, as_of=day)
    # The distance that the risk's features have, without the other passes that those take.
    distances = features.distances(shop, day, receipts)
    parts = [members, summary, stages, receipts, distances, _cases(shop, day)]
    rows = everyone
    for part in [*parts, *given]:
        if part is not None:
            names = [name for name in part.columns if name not in rows.columns]
            rows = rows.left_join(part, "customer_id").select(*rows.columns, *names)
    made = shop.landed(_completed(rows, wanted), "audience")
    [found] = (
        made.aggregate(rows=made.count(), ids=made.customer_id.nunique()).to_pyarrow().to_pylist()
    )
    assert found["rows"] == found["ids"] == everyone.count().to_pyarrow().as_py()
    return made


def _completed(rows: ir.Table, wanted: dict[str, Rule]) -> ir.Table:
    """Add what follows from the joined parts, and what is true of who has not bought."""
    import ibis

    usual = rows.usual_gap.isinf().ifelse(ibis.null("float64"), rows.usual_gap)
    measured = [name for name, rule in wanted.items() if rule.column != "days_since"]
    rows = rows.mutate(
        stage=rows.stage.fill_null(NEVER_BOUGHT),
        usual_gap=usual,
        overdue=rows.silent.cast("float64") / usual.nullif(0),
        purchases=rows.purchases.fill_null(0),
        days_since_first=rows["T"],
        spend_year=rows.spend_year.fill_null(0.0),
        season=_season(rows),
        **{name: rows[name].fill_null(0) for name in measured},
    )
    # Selected and not dropped: ibis 11 keeps what is dropped after it was changed.
    return rows.select(*(name for name in rows.columns if name not in ("store", *SEASONS)))


def _season(rows: ir.Table) -> ir.StringValue:
    """Name the season with more purchases than any other."""
    import ibis

    def most(name: str) -> ir.BooleanValue:
        return reduce(and_, [rows[name] > rows[other] for other in SEASONS if other != name])

    return ibis.cases(*((most(name), name) for name in SEASONS), else_=ibis.null("string"))


def _keyed(shop: Shop, what: str, table: Any) -> ir.Table:
    """Return a table that the caller gave, in the shop's local engine, one row per customer."""
    has = list(getattr(table, "columns", []))
    if not hasattr(table, "to_pyarrow") or "customer_id" not in has:
        raise tables.UsageError(
            f"{what} must be an ibis table with customer_id; it is a {type(table).__name__} with "
            f"{', '.join(map(str, has)) or 'no columns'}. ibis.memtable makes one of a DataFrame."
        )
    if not table.customer_id.type().is_string():
        raise tables.UsageError(f"customer_id in {what} must be a text, as in the shop's tables.")
    table = shop.landed(table, what)
    table = table.filter(table.customer_id.notnull())
    counts = table.aggregate(rows=table.count(), ids=table.customer_id.nunique())
    [found] = counts.to_pyarrow().to_pylist()
    if found["rows"] != found["ids"]:
        raise tables.DataError(
            f"{what} has {found['rows']} rows of {found['ids']} customers; each may have one only."
        )
    return table


def _members(shop: Shop, day: dt.date) -> ir.Table | None:
    """Return what the table customers says, as far as it was so by the day.

    With is_member: whether the customer had not joined later only.
    """
    import ibis

    if not shop.has("customers"):
        return None
    rows = shop.table("customers")
    dates = [name for name in ("joined_on", "birth_date") if name in rows.columns]
    rows = rows.select("customer_id", *(name for name in TRAITS if name in rows.columns), *dates)
    rows = shop.landed(rows, "traits")
    at, is_member = ibis.literal(day), ibis.literal(True)
    if "joined_on" in dates:
        is_member = (rows.joined_on <= at).fill_null(True)
    rows = rows.mutate(is_member=is_member)
    rows = rows.mutate(
        **{name: (rows[name] <= at).ifelse(rows[name], ibis.null("date")) for name in dates}
    )
    if "birth_date" not in dates:
        return rows
    birth = rows.birth_date
    # Counted from the first of the month: 29 February is 1 March in a year without it.
    this_year, next_year = (
        ibis.date(ibis.literal(year), birth.month(), ibis.literal(1)).delta(at, unit="day")
        + birth.day()
        - 1
        for year in (day.year, day.year + 1)
    )
    return rows.mutate(
        age=purchases.age(birth, day),
        days_to_birthday=(this_year >= 0).ifelse(this_year, next_year),
    )


def _receipts(shop: Shop, day: dt.date, wanted: dict[str, Rule]) -> ir.Table:
    """Return what the receipts tell, one row per customer with a line, in one pass over them."""
    import ibis

    rows = _lines(shop, day, {trait for rule in wanted.values() for trait, _ in _traits(rule)})
    meant = {name: _meant(rows, rule, day) for name, rule in wanted.items()}
    sums = {name: rows.amount.sum(where=lines) for name, lines in meant.items()}
    if "store_id" in rows.columns:
        sums["store"] = rows.store_id.max()
    days = rows.group_by("customer_id", "purchased_on").aggregate(amount=rows.amount.sum(), **sums)
    on, bought = days.purchased_on, purchases.is_purchase(shop, days.amount)
    year = on > ibis.literal(day - dt.timedelta(YEAR))
    found: dict[str, Any] = {"spend_year": days.amount.sum(where=year).cast("float64")}
    if "store" in sums:
        # As in `features`: the greatest of the last day's, on every engine.
        found["store"] = days.store.argmax(bought.ifelse(on, ibis.null("date")))
    for season, months in SEASONS.items():
        found[season] = days.count(where=bought & on.month().isin(months))
    for name, rule in wanted.items():
        is_one = purchases.is_purchase(shop, days[name])
        if rule.column == "purchases":
            found[name] = days.count(where=is_one)
        elif rule.column == "spend":
            found[name] = days[name].sum().cast("float64")
        else:
            found[name] = ibis.literal(day).delta(on.max(where=is_one), unit="day")
    return days.group_by("customer_id").aggregate(**found)


def _lines(shop: Shop, day: dt.date, asked: set[str]) -> ir.Table:
    """Return the lines of receipts with the traits asked for."""
    rows = purchases.lines(shop, as_of=day)
    of_products = sorted(asked & {*OF_PRODUCTS})
    own = sorted((asked | {"store_id"}) & {*rows.columns})
    more = ["product_id"] if of_products and "product_id" not in own else []
    rows = rows.select("customer_id", "purchased_on", "amount", *own, *more)
    if not of_products:
        return rows
    products = shop.table("products").select("product_id", *of_products)
    if products.get_backend() is not rows.get_backend():
        rows, products = shop.landed(rows, "lines"), shop.landed(products, "products")
    return rows.left_join(products, "product_id").select(*rows.columns, *of_products)


def _traits(rule: Rule) -> Sequence[tuple[str, tuple[str, ...]]]:
    return rule.bought.traits if rule.bought else ()


def _meant(rows: ir.Table, rule: Rule, day: dt.date) -> ir.BooleanValue:
    """Tell which lines a rule measures."""
    import ibis

    assert rule.bought
    meant = [rows[trait].isin(values) for trait, values in rule.bought.traits]
    if rule.bought.months:
        meant.append(rows.purchased_on.month().isin(rule.bought.months))
    if rule.bought.days is not None:
        since = ibis.literal(day - dt.timedelta(rule.bought.days))
        meant.append(rows.purchased_on > since)
    return reduce(and_, meant)


def _check_traits(shop: Shop, day: dt.date, rules: Sequence[Rule]) -> None:
    """Raise `DataError` where a rule asks for a brand, store or the like that there is not."""
    asked: dict[str, dict[str, Rule]] = {}
    for rule in rules:
        for trait, words in _traits(rule):
            for value in words:
                asked.setdefault(trait, {}).setdefault(value, rule)
    for trait, values in asked.items():
        places = _places(shop, day, trait, next(iter(values.values())))
        left = dict(values)
        for place in places:
            # Receipts are looked through only for what no list of the shop's has.
            if left:
                found = place.filter(place[trait].isin(list(left))).select(trait).distinct()
                left = {
                    value: rule
                    for value, rule in left.items()
                    if value not in set(found.to_pyarrow()[trait].to_pylist())
                }
        for value, rule in left.items():
            raise unknown_value(rule, trait, value, frequent(places[-1], trait))


def _places(shop: Shop, day: dt.date, trait: str, rule: Rule) -> list[ir.Table]:
    """Return the tables that have the values of a trait, the receipts last."""
    lines = purchases.lines(shop, as_of=day)
    needed = "product_id" if trait in OF_PRODUCTS else trait
    if needed not in lines.columns:
        raise tables.DataError(
            f"{rule}: the table transactions of shop '{shop.id}' has no column {needed}."
        )
    listed = "products" if trait in OF_PRODUCTS else LISTED_IN.get(trait, "")
    places = [shop.table(listed)] if listed and shop.has(listed) else []
    if trait not in OF_PRODUCTS:
        return [*places, lines]
    if not places or trait not in places[0].columns:
        raise tables.DataError(
            f"{rule}: shop '{shop.id}' has no table products with a column {trait}."
        )
    return places


def _cases(shop: Shop, day: dt.date) -> ir.Table | None:
    """Return how long ago each customer's last closed case was closed, and of what kind it was."""
    import ibis

    if not shop.has("cases") or "closed_at" not in shop.table("cases").columns:
        return None
    rows, at = shop.table("cases"), ibis.literal(day)
    kinds = ["kind"] if "kind" in rows.columns else []
    rows = rows.filter(rows.opened_at.date() <= at, rows.closed_at.date() <= at)
    rows = shop.landed(rows.select("customer_id", "case_id", "closed_at", *kinds), "closed")
    order = [rows.closed_at.desc(), rows.case_id]
    rows = rows.mutate(nth=ibis.row_number().over(group_by="customer_id", order_by=order))
    rows = rows.filter(rows.nth == 0)
    return rows.select(
        "customer_id",
        days_since_case_closed=at.delta(rows.closed_at.date(), unit="day"),
        **({"case_kind": rows.kind} if kinds else {}),
    )
