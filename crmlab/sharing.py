"""Which customers the shop's own stores share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from crmlab import results, tables

if TYPE_CHECKING:
    import pandas as pd

    from crmlab.homes import Homes


@dataclass(frozen=True, eq=False)
class Shared(results.Answer):
    """Which customers the shop's own stores share.

    `rows`, one per pair of stores that each have at least k customers: store and other; customers
    and customers_of_other who bought there in the homes' days; both, who bought at both; share and
    share_of_other, of each store's customers; visits_share, which part of the visits of those who
    buy at both goes to the first; state, "value", "zero", or "hidden" where fewer than k bought at
    both, or at one alone. The first of a pair shares the larger part of its customers.
    """

    rows: pd.DataFrame
    k: int
    days: int
    numbers: results.Numbers

    @property
    def verdict(self) -> str:
        """Which two stores share most."""
        n, told = self.numbers, self.rows[self.rows["state"] == "value"]
        if told.empty:
            return "No two stores share enough customers to tell."
        top = told.sort_values("share", ascending=False, kind="stable").iloc[0]
        return (
            f"Of the customers of “{top['store']}” {n.percent(top['share'], 0)} also buy at "
            f"“{top['other']}”, more than at any other pair; of those of “{top['other']}” "
            f"{n.percent(top['share_of_other'], 0)} also buy at “{top['store']}”. Those who buy at "
            f"both go to “{top['store']}” with {n.percent(top['visits_share'], 0)} of these visits."
        )

    def _repr_html_(self) -> str:
        n = self.numbers
        both = [
            results.NOTHING if row.state == "hidden" else n.number(row.both)
            for row in self.rows.itertuples()
        ]  # fmt: skip
        table = results.html_table(
            self.rows.assign(both=both).drop(columns="state"),
            title=f"Customers with a place who bought at two of our stores in {self.days} days",
            formats={
                "both": str, "customers": n.number, "customers_of_other": n.number,
                "share": n.percent, "share_of_other": n.percent, "visits_share": n.percent,
            },
            headings={
                "customers_of_other": "of the other", "share": "also buy there",
                "share_of_other": "and here", "visits_share": "visits here",
            },
        )  # fmt: skip
        return f"<p>{escape(self.verdict)}</p>{table}"


def shared(homes: Homes) -> Shared:
    """Count the customers who bought at each pair of the shop's own stores.

    Those whose home is not known are left out, as in the trade areas: else the difference of both
    would tell how many they are.

    Raises
    ------
    DataError where receipts name no store, or fewer than two stores have k customers
    """
    import pandas as pd

    if homes.visits is None:
        raise tables.DataError(f"Receipts of shop '{homes.shop.id}' name no store (store_id).")
    own, k = homes.own.set_index("store_id")["name"], homes.k
    located = homes.rows.filter(homes.rows.x.notnull())
    visits = homes.visits.semi_join(located, "customer_id")
    visits = visits.filter(visits.store_id.isin(list(own.index)))
    sizes = visits.group_by("store_id").aggregate(n=visits.count()).to_pandas()
    count = sizes.set_index("store_id")["n"].sort_index()
    count = count[count >= k]
    if len(count) < 2:
        raise tables.DataError(
            f"Shop '{homes.shop.id}' has {len(count)} own store with at least {k} customers in "
            f"{homes.days} days: there is no pair to compare."
        )
    here = visits.select("customer_id", "store_id", "visits")
    there = here.rename(other="store_id", visits_there="visits")
    pairs = here.inner_join(there, "customer_id").filter(lambda t: t.store_id < t.other)
    found = pairs.group_by("store_id", "other").aggregate(
        both=pairs.count(), visits=pairs.visits.sum(), visits_there=pairs.visits_there.sum()
    )
    known = {tuple(row[:2]): row[2:] for row in found.to_pandas().itertuples(index=False)}
    ids = list(count.index)
    rows = [
        _pair(count[[first, second]], *known.get((first, second), (0, 0, 0)), k=k)
        for nth, first in enumerate(ids)
        for second in ids[nth + 1 :]
    ]
    frame = pd.DataFrame(rows)
    frame[["store", "other"]] = frame[["store", "other"]].map(own.get)
    frame = frame.sort_values(
        ["share", "store", "other"], ascending=[False, True, True], kind="stable",
        ignore_index=True,
    )  # fmt: skip
    return Shared(frame, k, homes.days, homes.numbers)


def _pair(
    count: pd.Series[int], both: int, visits: int, visits_there: int, *, k: int
) -> dict[str, Any]:
    """Return a row of `Shared`, the store with fewer customers first; `count` by store_id."""
    one, other = count.index
    if count[other] < count[one]:
        one, other, visits, visits_there = other, one, visits_there, visits
    few = any(results.few(n, k) for n in (both, count[one] - both, count[other] - both))

    def told(value: float) -> float:
        return math.nan if few else float(value)

    return {
        "store": one, "other": other, "customers": count[one], "customers_of_other": count[other],
        "both": told(both), "share": told(both / count[one]),
        "share_of_other": told(both / count[other]),
        "visits_share": told(visits / (visits + visits_there)) if both else math.nan,
        "state": "hidden" if few else "value" if both else "zero",
    }  # fmt: skip
