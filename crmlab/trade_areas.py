"""From how far customers come to each store, where its trade area lies, and whose it overlaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from crmlab import places, results, tables
from crmlab.distances import DIGITS, Decay, decay, pairs
from crmlab.stocks import Table

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.homes import Homes

__all__ = ["Decay", "Overlap", "TradeAreas", "areas", "decay", "overlap", "overlaps", "ratios"]

SHARES = (0.6, 0.8, 0.95)  # the first is the primary trade area, as Esri has it
MOST_SIDES = 16  # how much larger a square of a hull may become
WEIGHTS = ("customers", "spend", "visits")


@dataclass(frozen=True, eq=False)
class TradeAreas(results.Answer):
    """How far the customers of each own store live; exact, for the analyst. `shown` is for a page.

    `rows`: store_id; name; customers who bought there in the last `days` and have coordinates;
    km_50 the median, km_60, km_80 and so on: the distance within which that share of the `weight`
    lives, in km; beyond, the share of customers farther than `beyond_km`; beyond_customers.
    A distance is nan where fewer than `k` customers live so far or farther, or so near or nearer,
    or where one customer brings half of the weight.
    `hulls`: store_id, name, share, km, shape (shapely, in degrees), around the store and the
    squares in which at least `k` of its customers live within that distance; these are of
    `square_km` or as much larger as it takes to hold nine tenths of them; else there is no hull.
    """

    rows: pd.DataFrame
    hulls: pd.DataFrame
    shares: tuple[float, ...]
    weight: str
    beyond_km: float
    square_km: float
    days: int
    k: int
    numbers: results.Numbers

    @property
    def hidden(self) -> int:
        """The number of stores with some, but fewer than `k` customers."""
        return int(self.rows["customers"].between(1, self.k - 1).sum())

    def shown(self) -> pd.DataFrame:
        """Return what a page may show, distances to .1 km: what is not told is nan.

        `state` is "told", "hidden" (fewer than `k` customers) or "zero".
        """
        found = self.rows.drop(columns="beyond_customers")
        count, far = self.rows["customers"], self.rows["beyond_customers"]
        few = count.between(1, self.k - 1)
        secret = few | far.between(1, self.k - 1) | (count - far).between(1, self.k - 1)
        found["customers"] = count.astype(float).mask(few)
        for name in _distances(found):
            found[name] = found[name].round(DIGITS).mask(few)
        found["beyond"] = found["beyond"].mask(secret)
        found["state"] = "told"
        found.loc[few, "state"] = "hidden"
        found.loc[count == 0, "state"] = "zero"
        return found

    def shapes(self) -> pd.DataFrame:
        """Return the hulls, each with its GeoJSON geometry: corners are those of squares."""
        import shapely

        found = self.hulls.drop(columns="shape").round({"km": DIGITS})
        return found.assign(geometry=[shapely.geometry.mapping(one) for one in self.hulls["shape"]])

    @property
    def verdict(self) -> str:
        """How far the stores reach, the nearest and the farthest of them."""
        n, share = self.numbers, self.shares[0]
        told = self.shown().dropna(subset=[_name(share)])
        if told.empty:
            words = f"No store has enough customers to say from how far they come ({self.k} or more"
            return f"{words} within a distance, and beyond it)."
        near, far = (told.loc[told[_name(share)].agg(end)] for end in ("idxmin", "idxmax"))
        come = "comes" if self.weight == "spend" else "come"
        words = (
            f"{n.percent(share, 0)} of the {self.weight} of {near['name']} {come} from within "
            f"{n.number(near[_name(share)], DIGITS)} km"
        )
        if len(told) > 1:
            words += (
                f", of {far['name']} from within {n.number(far[_name(share)], DIGITS)} km: the "
                f"nearest and the farthest of {n.number(len(told))} stores"
            )
        if self.hidden:
            words += f". Stores of fewer than {self.k} customers, hidden: {n.number(self.hidden)}"
        return f"{words}."

    def _repr_html_(self) -> str:
        n, shown = self.numbers, self.shown().drop(columns=["store_id", "state"])
        kinds: dict[str, Any] = {
            name: lambda km: n.number(km, DIGITS) for name in _distances(shown)
        }
        kinds |= {"customers": n.number, "beyond": n.percent}
        of = "" if self.weight == "customers" else f" of {self.weight}"
        headings: dict[Any, str] = {
            name: f"{float(name.removeprefix('km_')):g} %{of}, km" for name in _distances(shown)
        }
        headings |= {"beyond": f"beyond {self.beyond_km:g} km"}
        table = results.html_table(
            shown, title=f"Within how many km customers with a place live, last {self.days} days",
            formats=kinds, headings=headings,
        )  # fmt: skip
        return f"<p>{escape(self.verdict)}</p>{table}"


@dataclass(frozen=True)
class Overlap:
    """How two areas lie on each other: Esri's four ratios, A1 to A4, as shares of 1.

    size_ratio: the first area by the second; of_both: the overlap by all that either covers;
    of_first and of_second: the overlap by each area.
    """

    size_ratio: float
    of_both: float
    of_first: float
    of_second: float


def areas(
    homes: Homes,
    *,
    shares: Sequence[float] = SHARES,
    weight: str = "customers",
    beyond_km: float = 10.0,
    square_km: float = 1.0,
) -> TradeAreas:
    """Measure from how far the customers of each own store come.

    Parameters
    ----------
    shares : shares of 1, the first that of the primary trade area; Esri: the closest 60 % of the
        customers or of a weight
    weight : "customers", "spend" (net in the homes' days, not below 0) or "visits" at that store
    beyond_km : float, also tell how many live farther than that, in km
    square_km : float, side of the squares that the hulls are made of, in km

    Raises
    ------
    DataError where receipts name no store; UsageError for arguments out of range
    """
    given, shares = shares, tuple(shares) if isinstance(shares, Sequence) else ()
    numbers = all(isinstance(one, float) and 0 < one < 1 for one in shares)
    if not shares or not numbers or len({*shares}) < len(shares):
        raise tables.UsageError(
            f"shares is {given!r}; it must be different shares between 0 and 1."
        )
    if weight not in WEIGHTS:
        raise tables.UsageError(
            f"weight is {weight!r}; it must be one of {', '.join(WEIGHTS)}."
            + tables.did_you_mean(str(weight), WEIGHTS)
        )
    for name, km in (("beyond_km", beyond_km), ("square_km", square_km)):
        tables.check_range(name, km, 0.1, 1_000)
    wanted = sorted({*shares, 0.5, 0.8})
    customers = pairs(homes, weight=weight)
    distances = _quantiles(customers, wanted, homes.k)
    far = customers.group_by("store_id").aggregate(
        customers=customers.count(),
        beyond_customers=customers.count(where=customers.km > beyond_km),
    )
    rows = homes.own[["store_id", "name"]].merge(far.to_pandas(), "left", validate="1:1")
    rows[["customers", "beyond_customers"]] = (
        rows[["customers", "beyond_customers"]].fillna(0).astype(int)
    )
    rows = rows.merge(distances, "left", on="store_id", validate="1:1")
    rows["beyond"] = rows["beyond_customers"] / rows["customers"].where(rows["customers"] > 0)
    hulls = _hulls(homes, customers, rows, shares, square_km)
    return TradeAreas(
        rows, hulls, shares, weight, beyond_km, square_km, homes.days, homes.k, homes.numbers
    )


def _name(share: float) -> str:
    """Return the column of the distance within which so many live."""
    return f"km_{100 * share:g}"


def _distances(rows: pd.DataFrame) -> list[str]:
    return [name for name in rows.columns if str(name).startswith("km_")]


def _quantiles(customers: ir.Table, shares: Sequence[float], k: int) -> pd.DataFrame:
    """Return store_id and the distance within which each share of the weight lives, or nan."""
    import ibis

    near = ibis.cumulative_window(group_by="store_id", order_by="km")
    totals = customers.group_by("store_id").aggregate(
        total=customers.weight.sum(), heaviest=customers.weight.max()
    )
    ranked = customers.select("store_id", "km", reached=customers.weight.sum().over(near))
    ranked = ranked.inner_join(totals, "store_id")
    told = ranked.heaviest * 2 < ranked.total
    # The last digits of a sum must not push the end to the next customer.
    ends = ranked.group_by("store_id").aggregate(
        **{
            _name(share): ranked.km.min(
                where=told & (ranked.reached >= share * ranked.total * (1 - 1e-9))
            )
            for share in shares
        }
    )
    names = [_name(share) for share in shares]
    found = ends.to_pandas().astype(dict.fromkeys(names, float))
    joined = customers.inner_join(ibis.memtable(found), "store_id")
    sides = joined.group_by("store_id").aggregate(
        **{f"nearer {name}": joined.count(where=joined.km <= joined[name]) for name in names},
        **{f"farther {name}": joined.count(where=joined.km >= joined[name]) for name in names},
    )
    counts = found[["store_id"]].merge(sides.to_pandas(), on="store_id", validate="1:1")
    for name in names:
        few = (counts[f"nearer {name}"] < k) | (counts[f"farther {name}"] < k)
        found[name] = found[name].mask(few)
    return found


def _hulls(
    homes: Homes, customers: ir.Table, rows: pd.DataFrame, shares: Sequence[float], side_km: float
) -> pd.DataFrame:
    """Return the convex hull of the squares of each store and share that may be told."""
    import ibis
    import pandas as pd
    from shapely import geometry

    names = [_name(share) for share in shares]
    middle = float(homes.own["latitude"].median())
    ends = ibis.memtable(rows[["store_id", *names]].astype(dict.fromkeys(names, "float64")))
    joined = customers.inner_join(ends, "store_id")
    row, column = places.square(joined, side_km=side_km, middle=middle)
    counted = joined.group_by("store_id", row=row, column=column).aggregate(
        **{name: joined.count(where=joined.km <= joined[name]) for name in names}
    )
    squares = counted.order_by("store_id", "row", "column").to_pandas()
    at, found = homes.own.set_index("store_id"), []
    for store in rows.to_dict("records"):
        of_store = squares[squares["store_id"] == store["store_id"]]
        for share, name in zip(shares, names, strict=True):
            grid, side = of_store[["row", "column", name]], side_km
            # Where customers live thinly, small squares would leave out most of them.
            while side < MOST_SIDES * side_km and not _holds(grid[name], homes.k):
                up = grid.assign(row=grid["row"] // 2, column=grid["column"] // 2)
                grid, side = up.groupby(["row", "column"], as_index=False)[name].sum(), 2 * side
            told = grid[grid[name] >= homes.k]
            if store[name] != store[name] or not _holds(grid[name], homes.k):
                continue
            corners = [
                (at.loc[store["store_id"], "longitude"], at.loc[store["store_id"], "latitude"])
            ]
            for square in zip(told["row"].tolist(), told["column"].tolist(), strict=True):
                shape = places.square_shape(*square, side_km=side, middle=middle)
                corners += shape["coordinates"][0]
            hull = geometry.MultiPoint(corners).convex_hull
            found.append((store["store_id"], store["name"], share, store[name], hull))
    return pd.DataFrame(found, columns=["store_id", "name", "share", "km", "shape"])


def _holds(counts: pd.Series[int], k: int) -> bool:
    """Tell whether nine tenths of the customers live in squares that may be told."""
    return bool(0 < 0.9 * counts.sum() <= counts[counts >= k].sum())


def ratios(one_km2: float, other_km2: float, shared_km2: float) -> Overlap:
    """Return Esri's four ratios of two areas and what they share, each in the same unit.

    Esri, ArcGIS Business Analyst, Measure Cannibalization.

    >>> found = ratios(1.32, 1.00, 0.53)
    >>> [round(100 * one) for one in vars(found).values()]
    [132, 30, 40, 53]
    """
    either = one_km2 + other_km2 - shared_km2
    return Overlap(
        one_km2 / other_km2, shared_km2 / either, shared_km2 / one_km2, shared_km2 / other_km2
    )


def overlaps(areas: TradeAreas) -> Table:
    """Tell which stores' primary trade areas lie on each other most, as far as they do.

    Raises
    ------
    DataError where fewer than two stores have an area, or none lies on another
    """
    n, found = areas.numbers, overlap(areas)
    found = found[found["overlap_km2"] > 0].sort_values("of_both", ascending=False, kind="stable")
    if found.empty:
        raise tables.DataError("No two stores have primary trade areas that lie on each other.")
    first = found.iloc[0]
    verdict = (
        f"The primary trade areas of {first['name']} and {first['other_name']} lie on each other "
        f"most: {n.percent(first['of_first'], 0)} of the first and "
        f"{n.percent(first['of_second'], 0)} of the second are shared."
    )
    rows = found[["name", "other_name", "size_ratio", "of_both", "of_first", "of_second"]].round(3)
    rows.columns = ["store", "other", "first : other", "of both", "of the first", "of the other"]
    return Table(
        "Trade areas that lie on each other", rows.reset_index(drop=True), verdict, n,
        shares=tuple(rows.columns[2:]),
        note="The size of the first by that of the other, and what they share of both, of the "
        "first and of the other: the four ratios that Esri gives.",
    )  # fmt: skip


def overlap(areas: TradeAreas, *, share: float | None = None) -> pd.DataFrame:
    """Tell how far the trade areas of each two stores lie on each other: who takes from whom.

    Areas are those of the hulls on the sphere. One row per pair of stores with a hull: store_id,
    name, other_id, other_name, area_km2, other_km2, overlap_km2, and the ratios of `Overlap`.

    Parameters
    ----------
    share : one of the `shares` of `areas`; by default the first, the primary trade area
    """
    import itertools

    import pandas as pd
    import shapely
    from shapely import affinity

    share = areas.shares[0] if share is None else share
    if share not in areas.shares:
        raise tables.UsageError(
            f"share is {share!r}; these areas have {', '.join(map(str, areas.shares))}."
        )
    hulls = areas.hulls[areas.hulls["share"] == share]
    found = []
    for one, other in itertools.combinations(hulls.itertuples(index=False), 2):
        # Stores on both sides of the line where a day begins are neighbours too.
        turn = 360 * round((one.shape.centroid.x - other.shape.centroid.x) / 360)
        first = places.equal_area(one.shape)
        second = places.equal_area(affinity.translate(other.shape, xoff=turn))
        km2 = first.area, second.area, shapely.intersection(first, second).area
        found.append(
            (one.store_id, one.name, other.store_id, other.name, *km2, *vars(ratios(*km2)).values())
        )
    names = ["store_id", "name", "other_id", "other_name", "area_km2", "other_km2", "overlap_km2"]
    return pd.DataFrame(found, columns=[*names, *Overlap.__dataclass_fields__])
