"""Taking stock of the customers: who is active, who slips away, who came back, who is gone.

Nothing that these results show is made of fewer than `privacy_k` customers, nor can it be found
by taking one shown number from another of the same answer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from crmlab import effects, purchases, results, tables
from crmlab.departures import PARTS, by_value, lost_valuable, reactivated, to_ring
from crmlab.profiles import Base, base
from crmlab.stocks import LeftOut, Stock, Table, attempt, month_before, stock, was_lost

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

__all__ = [
    "Base",
    "LeftOut",
    "Stock",
    "Table",
    "attempt",
    "base",
    "demographics",
    "early_warning",
    "lost_valuable",
    "month_before",
    "reactivated",
    "rfm",
    "stock",
    "to_ring",
    "was_lost",
]


def early_warning(base: Base) -> Table:
    """Tell how many valuable customers slip away now, by value.

    Returns
    -------
    Table, one row per fifth of the known base by value, or fewer groups where customers are few:
    group; customers; declining; share of them; at stake, the value of those declining, in shop
    currency, missing where one of them has half of it; became lost since `since`.

    Raises
    ------
    DataError if even all together are too few to tell
    """
    parts, found = by_value(base)
    n = base.shop.numbers
    found["group"] = [PARTS[parts][part] for part in found["part"]]
    found["share"] = found["declining"] / found["customers"]
    if ((2 * found["largest"] >= found["at_stake"]) & (found["declining"] > 0)).any():
        found["at_stake"] = math.nan
    top = found.iloc[0]
    of = f"the {n.number(top.customers)} customers who spend most ({top.group})"
    spent = (
        f", who spent {n.money(top.at_stake, 0)} in the year up to their last purchase"
        if top.declining and top.at_stake == top.at_stake
        else ""
    )
    verdict = f"Of {of}, {n.number(top.declining)} are slipping away now{spent}."
    shown = found[["group", "customers", "declining", "share", "at_stake", "lost"]]
    shown = shown.rename(columns={"at_stake": "at stake", "lost": "became lost"})
    if base.closed:
        shown = shown.drop(columns="became lost")
    return Table("Customers who slip away, by what they spend", shown, verdict, n,
                 ("at stake",), ("share",), note=EARLY_NOTE)  # fmt: skip


EARLY_NOTE = (
    "Of the customers who were active on either day. Value is what one spent in the 365 days up to "
    "the last purchase, less what was brought back since. At stake is that of those who are "
    "declining: a year's spend that is lost if all of them go."
)

# Where fifths by recency, and by frequency and money together, meet; the first that holds.
RFM = (
    ("champions", 4, 8, "bought lately, often and much"),
    ("promising", 4, 5, "bought lately, neither little nor most"),
    ("fresh", 4, 2, "bought lately, seldom and little"),
    ("loyal", 3, 8, "often and much, not quite lately"),
    ("need attention", 3, 2, "the middle: not lately, not most"),
    ("at risk", 1, 8, "often and much, but long ago"),
    ("hibernating", 1, 2, "long ago, and not much"),
)


def rfm(base: Base) -> Table:
    """Sort all customers by recency, frequency and monetary value.

    Returns
    -------
    Table, one row per segment: segment; customers; share of them; value, and its share

    Raises
    ------
    DataError if fewer than `privacy_k` customers are lost or active: the sum would give them away

    Notes
    -----
    Hughes (1994), Strategic Database Marketing. Each score is 1 plus the whole fifths of the
    customers who do strictly worse, so that equals score the same in whatever order they come:
    R by days since the last purchase, F by days with a purchase, M by net spend, both in the whole
    log. The segments are cut by R and by F + M.
    """
    import ibis

    rows, k, n = base.rows, base.k, base.shop.numbers
    _refuse_few_lost(base)
    scored = rows.select(
        "value",
        *(
            (5 * ibis.rank().over(order_by=by) // rows.count().over() + 1).name(name)
            for name, by in (
                ("r", rows.silent.desc()), ("f", rows.purchases.asc()), ("m", rows.total.asc()),
            )
        ),
    )  # fmt: skip
    r, both = scored.r, scored.f + scored.m
    named = ibis.cases(*(((r >= a) & (both >= b), name) for name, a, b, _ in RFM))
    counted = scored.group_by(segment=named).aggregate(
        customers=scored.count(), value=scored.value.sum(), largest=scored.value.max()
    )
    order = {name: place for place, (name, *_) in enumerate(RFM)}
    found = counted.to_pandas().sort_values("segment", key=lambda names: names.map(order))
    found = results.merge_small_cells(
        found, label="segment", customers="customers", k=k, largest={"value": "largest"}
    )
    if found.empty:
        raise tables.DataError(f"Fewer than {k} customers: too few for segments.")
    found["share"] = found["customers"] / found["customers"].sum()
    found["share of value"] = found["value"] / found["value"].sum(skipna=False)
    best = found.sort_values(["share of value", "segment"], ascending=[False, True]).iloc[0]
    verdict = (
        f"{n.percent(best['share'], 0)} of the customers, the {best['segment']}, bring "
        f"{n.percent(best['share of value'], 0)} of the spend."
        if best["share of value"] == best["share of value"]
        else "One customer has so much of a segment's spend that it cannot be shown."
    )
    columns = ["segment", "customers", "share", "value", "share of value"]
    meant = "; ".join(f"{name}: {text}" for name, *_, text in RFM if name in set(found["segment"]))
    return Table("Customers by recency, frequency and spend", found[columns], verdict, n,
                 ("value",), ("share", "share of value"), note=f"{meant}.")  # fmt: skip


def _refuse_few_lost(base: Base) -> None:
    """Raise where the sum of all customers would tell the few who are lost, or who are not."""
    rows = base.rows.aggregate(
        lost=base.rows.count(where=base.rows.stage == "lost"), customers=base.rows.count()
    )
    [found] = rows.to_pyarrow().to_pylist()
    if any(results.few(one, base.k) for one in (found["lost"], found["customers"] - found["lost"])):
        raise tables.DataError(
            f"Fewer than {base.k} customers of shop '{base.shop.id}' are lost, or are not: a table "
            "of all customers would give them away."
        )


# What a table of customers may say of them; of the most frequent values only.
TRAITS = {
    "sex": "sex",
    "age": "age",
    "occupation": "occupation",
    "region": "region",
    "preferred_channel": "preferred channel",
    "acquired_by": "acquired by",
}
MOST_VALUES = 8
AGES = ((65, "65 and older"), (55, "55 to 64"), (45, "45 to 54"), (35, "35 to 44"),
        (25, "25 to 34"), (0, "under 25"))  # fmt: skip


def demographics(base: Base) -> Table:
    """Tell who the customers are, as far as the table customers says, and whose leave.

    Returns
    -------
    Table, one row per value of sex, age in years at `as_of`, occupation, region, preferred channel
    and the channel that brought the customer: what; value, where few or nothing is known "other"
    or "unknown"; customers; active, declining and lost, shares of them; declining is part of
    active.

    Raises
    ------
    DataError without the table customers or any of its columns, or where customers are too few
    """
    import pandas as pd

    shop, n = base.shop, base.shop.numbers
    if not shop.has("customers"):
        raise tables.DataError(f"Shop '{shop.id}' has no table customers.")
    members = shop.table("customers")
    has = [name for name in TRAITS if ("birth_date" if name == "age" else name) in members.columns]
    if not has:
        raise tables.DataError(f"The table customers of shop '{shop.id}' says nothing of them.")
    _refuse_few_lost(base)
    known = [name for name in has if name != "age"] + (["birth_date"] if "age" in has else [])
    members = shop.landed(members.select("customer_id", *known), "traits")
    rows = base.rows.select("customer_id", "stage").left_join(members, "customer_id")
    if "age" in has:
        rows = rows.mutate(age=_age(rows.birth_date, base))
    parts = [_by_trait(rows, name, base.k) for name in has]
    found = pd.concat(parts, ignore_index=True)
    if found.empty:
        raise tables.DataError(f"Each group needs {base.k} active and lost customers, or none.")
    verdict = _whose_differ(found, n)
    for name in ("declining", "lost"):
        found[name] = found[name] / found["customers"]
    found["active"] = 1 - found["lost"]
    columns = ["what", "value", "customers", "active", "declining", "lost"]
    shares = ("active", "declining", "lost")
    return Table("Who the customers are", found[columns], verdict, n, (), shares)


def _whose_differ(found: pd.DataFrame, n: results.Numbers) -> str:
    """Name the groups that are lost more or less often than the others, beyond chance.

    Of many groups some differ by chance: 95% is the confidence of all of them together.
    """
    groups = found.groupby("what")
    rest = groups[["lost", "customers"]].transform("sum") - found[["lost", "customers"]]
    clear = []
    for row, others in zip(found.itertuples(), rest.itertuples(), strict=True):
        if others.customers == 0 or row.value in ("unknown", "other"):
            continue
        ends = effects.newcombe(row.lost, row.customers, others.lost, others.customers,
                                alpha=0.05 / len(found))  # fmt: skip
        if ends[1] > 0 or ends[2] < 0:
            clear.append((-abs(ends[0]), f"{row.what} {row.value}", ends[0], row))
    if not clear:
        return "No group is lost clearly more or less often than the others: chance explains it."
    told = [
        f"{name} {'more' if by > 0 else 'less'} ({n.percent(row.lost / row.customers, 0)})"
        for _, name, by, row in sorted(clear, key=lambda one: one[:2])[:3]
    ]
    return f"Lost more or less often than the others, beyond chance: {', '.join(told)}."


def _age(birth: ir.DateValue, base: Base) -> ir.StringValue:
    """Return the group of the age in whole years; who is not born yet is unknown."""
    import ibis

    age = purchases.age(birth, base.as_of)
    return ibis.cases(*((age >= least, text) for least, text in AGES), else_=ibis.null("string"))


def _by_trait(rows: ir.Table, name: str, k: int) -> pd.DataFrame:
    """Count the customers of each value, those of the most frequent ones in their order."""
    rows = rows.select("stage", value=rows[name].fill_null("unknown"))
    found = rows.group_by("value").aggregate(
        customers=rows.count(),
        declining=rows.count(where=rows.stage == "declining"),
        lost=rows.count(where=rows.stage == "lost"),
    )
    counts = found.to_pandas().sort_values(["customers", "value"], ascending=[False, True])
    counts.loc[counts.index[MOST_VALUES:], "value"] = "other"
    counts = counts.groupby("value", as_index=False).sum()
    counts["rest"] = counts["customers"] - counts["declining"] - counts["lost"]
    kept = results.merge_small_cells(
        counts, label="value", customers="customers", k=k, parts=["declining", "lost", "rest"]
    )
    last = {"other": 1, "unknown": 2}
    kept["last"] = kept["value"].map(last).fillna(0)
    place = {text: -number for number, (_, text) in enumerate(AGES)}
    kept["place"] = kept["value"].map(place) if name == "age" else -kept["customers"]
    kept = kept.sort_values(["last", "place", "value"])
    kept.insert(0, "what", TRAITS[name])
    return kept.drop(columns=["last", "place", "rest"])
