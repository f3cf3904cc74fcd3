"""Where to advertise: in which direction from a store people are, and customers are missing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from crmlab import places, results, tables
from crmlab.catchment import Cells

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    Array = np.ndarray[Any, np.dtype[Any]]

DRAWS = 2_000


@dataclass(frozen=True, eq=False)
class Directions(results.Answer):
    """The sectors around a store, ranked where it is known how many people live in them.

    `rows`: sector, the wind; customers; spend; new, first seen in the last `days`; distance_km and
    bearing, in degrees from north, of the middle of the customers by spend; hidden, how many of
    its cells are hidden and left out here; state, "value", "hidden" or "zero". With the people in
    each sector: population; reachable, those of them who are no customers; penetration; value, the
    customers missing against the average share of customers in the same rings, low and high, its
    95 % interval. The first row is that with the largest value; without people the value is the
    customers, and the sectors stand in the order of the compass.
    `ranked` tells which; `winner` is the sector that lacks more customers than any other, or "".
    """

    store: str
    rows: pd.DataFrame
    numbers: results.Numbers
    k: int
    ranked: bool
    winner: str
    verdict: str
    what: str

    def _repr_html_(self) -> str:
        n = self.numbers
        rows = self.rows[["sector"]].copy()
        if self.ranked:
            rows["missing"] = self.rows["value"]
            rows["95 %"] = [
                f"{n.number(low)}\xa0to\xa0{n.number(high)}" if low == low else results.NOTHING
                for low, high in zip(self.rows["low"], self.rows["high"], strict=True)
            ]
            rows["no customers yet"] = self.rows["reachable"]
            rows["are customers"] = self.rows["penetration"]
        rows[["customers", "new", "spend"]] = self.rows[["customers", "new", "spend"]]
        rows["middle"] = [
            f"{n.number(km, 1)}\xa0km, {n.number(turn)}°" if km == km else results.NOTHING
            for km, turn in zip(self.rows["distance_km"], self.rows["bearing"], strict=True)
        ]
        formats: dict[str, Any] = {
            name: n.number for name in ("missing", "no customers yet", "customers", "new")
            if name in rows
        }  # fmt: skip
        formats |= {"are customers": n.percent} if self.ranked else {}
        formats["spend"] = lambda x: n.money(x, 0)
        table = results.html_table(rows, title=f"Directions from {self.store}", formats=formats)
        left = int((self.rows["hidden"] > 0).sum())
        note = (
            f"<p>In {n.number(left)} directions cells are hidden; they are left out here with the "
            "people who live in them.</p>"
        )  # fmt: skip
        return f"<p>{escape(self.verdict)}</p>{table}{note if left else ''}"


def directions(area: Cells, store_id: str, *, seed: int = 1) -> Directions:
    """Compare the directions around a store as places to advertise.

    A sector lacks customers where fewer of its people buy than around the store on average, ring
    by ring, so that a far sector is not blamed for it. The interval is the bootstrap's: the
    customers of each cell drawn again 2,000 times, by Poisson. Cells that `Cells` hides are not in
    it, neither their people nor their customers, so that no sum gives one away; nor are
    competitors: a sector may lack customers because another shop has them.

    Raises
    ------
    DataError where fewer than `privacy_k` customers live within the rings
    """
    one = area.of(store_id)
    k, n, name = area.k, area.numbers, one.totals["store"].iloc[0]
    told, reach = _by_cell(one, store_id), n.km(area.rings_km[-1])
    if not told["customers"].sum() > 0:
        raise tables.DataError(
            f"Too few customers live within {reach} km of {name} to compare directions."
        )
    rows = _by_sector(told, one)
    people = "population" in told and told["population"].sum() >= 1
    if not people:
        verdict = (
            f"Which direction from {name} to advertise in cannot be said: without the people of "
            "each district (table districts with population and geometry) nobody knows how many "
            f"within {reach} km are no customers yet. The counts are shown in compass order."
        )
        rows = rows.assign(value=rows["customers"])
        return Directions(name, rows, n, k, False, "", verdict, "customers")
    rows = rows.assign(**_missing(told, area, seed))
    rows.loc[rows["state"] == "hidden", ["reachable", "penetration", "value", "low", "high"]] = (
        math.nan
    )
    rows = rows.sort_values("value", ascending=False, kind="stable", ignore_index=True)
    verdict, winner = _best(rows[rows["value"].notna()], name, n)
    what = "customers missing against the average of the same rings"
    return Directions(name, rows, n, k, True, winner, verdict, what)


def _best(known: pd.DataFrame, name: str, n: results.Numbers) -> tuple[str, str]:
    """Say which direction lacks most customers, and whether it is clearly ahead."""
    if known.empty:
        return f"No clear winner around {name}: no direction can be compared with others.", ""
    best = known.iloc[0]
    lacks, low, high = (n.number(best[column]) for column in ("value", "low", "high"))
    # Directions without customers know no chance: of one alone with some, none is told.
    some = (known["customers"] > 0).sum() > 1
    if some and best["low"] > 0 and (known["high"].iloc[1:] < best["low"]).all():
        return (
            f"Advertise in the {best['sector']} of {name}: {n.number(best['reachable'])} people "
            f"there are no customers yet. If as many of them bought as of those who live as far "
            f"away in other directions, we would have {lacks} more customers ({low} to {high}); no "
            "other direction lacks as many. Competitors may have them."
        ), str(best["sector"])
    return (
        f"No clear winner around {name}: the intervals of the best directions overlap, or none "
        f"lacks customers. The {best['sector']} lacks most, {lacks} ({low} to {high})."
    ), ""


def _by_cell(one: Cells, store_id: str) -> pd.DataFrame:
    """Return the cells that may be told, with their new customers and their middle by spend."""
    import ibis

    base = one.homes
    stores = base.own[base.own["store_id"] == store_id][["store_id", "latitude", "longitude"]]
    p = base.rows.filter(base.rows.x.notnull())
    p = p.cross_join(places.compass(ibis.memtable(stores), "store_id"))
    ring, sector = places.ring_and_sector(p, rings_km=one.rings_km, sectors=one.sectors)
    weight = p.spend.clip(lower=0.0)
    inside = p.select(
        "new", "spend", ring=ring, sector=sector, weight=weight,
        east=weight * (p.x * p.east_x + p.y * p.east_y),
        north=weight * (p.x * p.north_x + p.y * p.north_y + p.z * p.north_z),
    )  # fmt: skip
    found = inside.group_by("ring", "sector").aggregate(
        new=inside.count(where=inside.new),
        spenders=inside.count(where=inside.spend != 0),
        **{name: inside[name].sum() for name in ("weight", "east", "north")},
    )
    shown = one.rows[(one.rows["sector"] >= 0) & one.rows["state"].isin(["value", "zero"])]
    more = found.to_pandas().astype({"ring": "int64", "sector": "int64"})
    told = shown.merge(more, how="left", on=["ring", "sector"]).fillna({"new": 0, "spenders": 0})
    # Where the sum is hidden, who spent it has no part in the middle either.
    parts = ["spend", "spenders", "weight", "east", "north"]
    told[parts] = told[parts].where(told["spend"].notna(), 0.0).fillna(0.0)
    return told


def _by_sector(told: pd.DataFrame, one: Cells) -> pd.DataFrame:
    """Sum the cells of each sector, and find the middle of its customers."""
    sums = ["customers", "new", "spend", "spenders", "weight", "east", "north"]
    found = told.groupby("sector")[sums].sum().reindex(range(one.sectors)).fillna(0.0)
    # Near a place the sine of the angle is the distance in radii; at 100 km 4 m are lost.
    east, north = (
        found[name] / found["weight"].where(found["weight"] > 0) for name in ("east", "north")
    )
    found["distance_km"] = places.EARTH_KM * (east**2 + north**2) ** 0.5
    # To five degrees: enough for a poster, too little for a house.
    turn = [math.degrees(math.atan2(e, n)) for e, n in zip(east, north, strict=True)]
    found["bearing"] = [5 * round(t / 5) % 360 if t == t else math.nan for t in turn]
    found["rest"] = found["customers"] - found["new"]
    secret = results.hidden(found, counts=["customers", "new", "rest"], k=one.k)
    found["new"] = found["new"].mask(secret)
    few = found["spenders"] < one.k
    found.loc[few & (found["spenders"] > 0), "spend"] = math.nan
    found.loc[few, ["distance_km", "bearing"]] = math.nan
    cells = one.rows[one.rows["sector"] >= 0]
    found["hidden"] = cells["state"].eq("hidden").groupby(cells["sector"]).sum()
    found["state"] = [
        "value" if count > 0 else "hidden" if hidden else "zero"
        for count, hidden in zip(found["customers"], found["hidden"], strict=True)
    ]
    found["distance_km"] = found["distance_km"].round(1)
    found.loc[found["state"] == "hidden", ["customers", "new", "spend"]] = math.nan
    found.insert(0, "sector_name", places.sector_names(one.sectors))
    columns = ["sector_name", "customers", "new", "spend", "distance_km", "bearing", "hidden",
               "state"]  # fmt: skip
    return found[columns].rename(columns={"sector_name": "sector"}).reset_index(drop=True)


def _missing(told: pd.DataFrame, one: Cells, seed: int) -> dict[str, Array]:
    """Return what each sector's people would give at the average of their ring, less what is."""
    import numpy as np

    people, count = np.zeros((2, len(one.rings_km), one.sectors))
    at = (told["ring"].to_numpy(), told["sector"].to_numpy())
    people[at], count[at] = told["population"].fillna(0), told["customers"]
    count[people < 1], people[people < 1] = 0, 0  # beyond the districts nothing is compared
    drawn = np.random.default_rng(tables.check_seed(seed)).poisson(count, (DRAWS, *count.shape))

    def missing(counts: Array) -> Array:
        rings = counts.sum(axis=-1, keepdims=True) / people.sum(axis=1, keepdims=True).clip(1)
        gap: Array = (people * rings - counts).sum(axis=-2)
        return gap

    low, high = np.quantile(missing(drawn), (0.025, 0.975), axis=0)
    there = people.sum(axis=0)
    some = there >= 1
    share = np.divide(count.sum(axis=0), there, out=np.full(one.sectors, np.nan), where=some)
    return {
        "population": there, "reachable": np.maximum(there - count.sum(axis=0), 0),
        "penetration": share, "value": np.where(some, missing(count), np.nan),
        "low": np.where(some, low, np.nan), "high": np.where(some, high, np.nan),
    }  # fmt: skip
