"""Who the customers are and what they spend: groups by occupation, sex and age."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from crmlab import purchases, results, tables

if TYPE_CHECKING:
    import pandas as pd

    from crmlab.sources import Shop

TRAITS = ("occupation", "sex", "birth_date")
AGES = (
    (70, "70+"), (60, "60s"), (50, "50s"), (40, "40s"), (30, "30s"), (20, "20s"), (0, "under 20"),
)  # fmt: skip
MOST_OCCUPATIONS = 8
OTHER, UNKNOWN = "other", "unknown"
GROUP = ["occupation", "sex", "age_group"]
LARGEST = 12  # groups in a table; the picture has all


@dataclass(frozen=True, eq=False)
class Radar(results.Answer):
    """The customers who bought in the last `days` up to `as_of`, as far as a page may tell of them.

    `rows`, one per group that may be shown: occupation, sex, age_group; customers; spend per
    customer, net in these days in shop currency. Groups of fewer than `k` customers, or where one
    customer brings half of the spend or more, are hidden: `hidden_groups` of them hold together
    `hidden_customers`, who spent `hidden_spend` each. `sides` are the two most frequent words for
    the sex; `occupations` and `ages` are in the order in which they are drawn.
    """

    rows: pd.DataFrame
    hidden_groups: int
    hidden_customers: int
    hidden_spend: float
    sides: tuple[str, ...]
    occupations: tuple[str, ...]
    ages: tuple[str, ...]
    verdict: str
    as_of: dt.date
    days: int
    k: int
    numbers: results.Numbers

    @property
    def drawn(self) -> pd.DataFrame:
        """The rows that have a place in the radar: of one of both sides and of known age."""
        rows = self.rows
        return rows[rows["sex"].isin(self.sides) & rows["age_group"].isin(self.ages)]

    @property
    def note(self) -> str:
        """Say who is not in the picture."""
        n, told = self.numbers, []
        if self.hidden_groups:
            told.append(
                f"Not shown are {n.number(self.hidden_groups)} small groups, together about "
                f"{n.number(self.k * round(self.hidden_customers / self.k))} customers."
            )
        if gone := self.rows["customers"].sum() - self.drawn["customers"].sum():
            told.append(f"Of other sex, or of unknown sex or age: {n.number(gone)}.")
        return " ".join(told)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per group, and below them the hidden ones as one."""
        import pandas as pd

        hidden = {"occupation": "hidden groups", "sex": "", "age_group": "",
                  "customers": self.hidden_customers, "spend": self.hidden_spend}  # fmt: skip
        last = pd.DataFrame([hidden] if self.hidden_groups else [], columns=self.rows.columns)
        return pd.concat([self.rows, last], ignore_index=True) if len(last) else self.rows.copy()

    def _repr_html_(self) -> str:
        n, largest = self.numbers, self.rows.nlargest(LARGEST, "customers")
        which = "" if len(largest) == len(self.rows) else f"the {LARGEST} largest groups "
        table = results.html_table(
            largest,
            title=f"Customers by occupation, sex and age, {which}of {n.number(self.days)} days to "
            f"{n.day(self.as_of)}",
            formats={"customers": n.number, "spend": n.money},
            headings={"age_group": "age", "spend": "spend per customer"},
        )
        return f"<p>{escape(self.verdict)}</p>{table}<p>{escape(self.note)}</p>"


def radar(shop: Shop, *, as_of: str | dt.date, days: int = 365) -> Radar:
    """Count the customers by occupation, sex and age, and what they spend.

    Parameters
    ----------
    as_of : date, the last day that counts; the age is that of this day
    days : int, customers are those with a purchase in so many days up to `as_of`

    Returns
    -------
    Radar; of the occupations the eight most frequent, the others are "other"

    Raises
    ------
    DataError without occupation, sex and birth_date of customers, or where they are too few
    """
    day = tables.day(as_of)
    if isinstance(days, bool) or not isinstance(days, int) or not 1 <= days <= 3_660:
        raise tables.UsageError(f"days is {days!r}; it must be a whole number from 1 to 3660.")
    groups = _groups(shop, day, days)
    if groups.empty:
        raise tables.DataError(
            f"Nobody of the table customers of shop '{shop.id}' bought in the {days} days to {day}."
        )
    sizes = _sizes(groups, "sex").drop(UNKNOWN, errors="ignore")
    # By their names, women first in most languages: a side is not left when one outnumbers it.
    sides = tuple(sorted(sizes.index[:2], key=lambda sex: (not sex.lower().startswith("w"), sex)))
    k, n = shop.policy.privacy_k, shop.numbers
    hidden = results.hidden(groups, counts=["customers"], k=k, largest={"spend": "largest"})
    if hidden.all():
        raise tables.DataError(
            f"The groups of customers of shop '{shop.id}' by occupation, sex and age are too small "
            f"to be shown: privacy_k is {k}."
        )
    shown, rest = groups[~hidden], groups[hidden]
    rows = shown.assign(spend=shown["spend"] / shown["customers"])
    occupations = _in_order(rows["occupation"].unique(), _sizes(groups, "occupation"))
    ages = [text for _, text in reversed(AGES) if (rows["age_group"] == text).any()]
    rows = rows.assign(
        spoke=rows["occupation"].map(occupations.index),
        ring=rows["age_group"].map([*ages, UNKNOWN].index),
    ).sort_values(["spoke", "sex", "ring"])
    count = int(rest["customers"].sum())
    return Radar(
        rows=rows[[*GROUP, "customers", "spend"]].reset_index(drop=True),
        hidden_groups=int(hidden.sum()), hidden_customers=count,
        hidden_spend=rest["spend"].sum() / count if count else float("nan"),
        sides=sides, occupations=tuple(occupations), ages=tuple(ages),
        verdict=_verdict(groups, rows, n), as_of=day, days=days, k=k, numbers=n,
    )  # fmt: skip


def _groups(shop: Shop, day: dt.date, days: int) -> pd.DataFrame:
    """Return per group the customers, their spend, its sum of squares and its largest part."""
    import ibis

    has = {*shop.table("customers").columns} if shop.has("customers") else set()
    if missing := [name for name in TRAITS if name not in has]:
        raise tables.DataError(
            f"The customer radar of shop '{shop.id}' needs occupation, sex and birth_date in the "
            f"table customers; there is no {', no '.join(missing)}. Add what is missing, or "
            "rename yours in shop.toml."
        )
    purchases.check_date(shop, day)
    bought = shop.landed(purchases.recent(shop, as_of=day, days=days), "recent")
    people = shop.landed(shop.table("customers").select("customer_id", *TRAITS), "radar_traits")
    rows = bought.filter(bought.visits > 0).inner_join(people, "customer_id")
    age = purchases.age(rows.birth_date, day)
    known = ibis.cases(*((age >= least, text) for least, text in AGES), else_=UNKNOWN)
    rows = rows.select("spend", occupation=rows.occupation.fill_null(UNKNOWN),
                       sex=rows.sex.fill_null(UNKNOWN), age_group=known)  # fmt: skip
    found = rows.group_by(*GROUP).aggregate(
        customers=rows.count(), spend=rows.spend.sum(), squares=(rows.spend**2).sum(),
        largest=rows.spend.abs().max(),
    ).to_pandas()  # fmt: skip
    sizes = _sizes(found, "occupation").drop([OTHER, UNKNOWN], errors="ignore")
    rare = found["occupation"].isin(sizes.index[MOST_OCCUPATIONS:])
    found.loc[rare, "occupation"] = OTHER
    sums = {"customers": "sum", "spend": "sum", "squares": "sum", "largest": "max"}
    merged: pd.DataFrame = found.groupby(GROUP, as_index=False).agg(sums)
    return merged


def _sizes(groups: pd.DataFrame, trait: str) -> pd.Series[int]:
    """Return the customers by value of a trait, the most frequent first, equals by their names."""
    counts = groups.groupby(trait)["customers"].sum().sort_index()
    return counts.sort_values(ascending=False, kind="stable")


def _in_order(names: list[str], sizes: pd.Series[int]) -> list[str]:
    """Return the names by size, what is no name of its own last."""
    ordered = [name for name in sizes.index if name in names]
    return sorted(ordered, key=lambda name: (name == UNKNOWN, name == OTHER))


def _verdict(groups: pd.DataFrame, rows: pd.DataFrame, n: results.Numbers) -> str:
    """Name the largest group, and the spend of the groups where it differs beyond chance.

    One-way analysis of variance over all groups: of many averages some are high by chance.
    """
    from scipy.stats import f

    def words(row: pd.Series[Any]) -> str:
        return ", ".join(str(row[name]) for name in GROUP)

    named = rows[(rows[GROUP] != UNKNOWN).all(axis=1)]
    top = rows.loc[(named if len(named) else rows)["customers"].idxmax()]
    told = f"The largest group, with {n.number(top['customers'])} customers, is {words(top)}."
    customers, spend = groups["customers"].sum(), groups["spend"].sum()
    between = (groups["spend"] ** 2 / groups["customers"]).sum() - spend**2 / customers
    within = groups["squares"].sum() - (groups["spend"] ** 2 / groups["customers"]).sum()
    free = len(groups) - 1, customers - len(groups)
    if len(rows) < 2 or min(*free, within) <= 0:
        return told
    if f.sf(between / free[0] / (within / free[1]), *free) >= 0.05:
        return f"{told} What the groups spend each differs by no more than chance explains."
    least, most = (rows.loc[getattr(rows["spend"], end)()] for end in ("idxmin", "idxmax"))
    return (
        f"{told} Spend per customer differs between the groups beyond chance, from "
        f"{n.money(least['spend'], 0)} ({words(least)}) to {n.money(most['spend'], 0)} "
        f"({words(most)})."
    )
