"""Where customers come from, ring by ring and direction by direction."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

from crmlab import districts, homes, places, results, tables
from crmlab.homes import Homes
from crmlab.stocks import Table, attempt

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.sources import Shop

RINGS_KM = (5.0, 10.0, 20.0)
OUTSIDE, NOWHERE = "outside", "without coordinates"
# Who has a part of a sum, and the most that one of them has: what tells whether it may be told.
HELPERS = {"spend": ("spenders", "largest_spend"), "points": ("holders", "largest_points")}
MEASURES = ("customers", "members", "spend", "points", "population", "purchasing_power",
            "penetration")  # fmt: skip
MONEY = ("spend", "purchasing_power")
HEADINGS = {
    "population": "people", "purchasing_power": "purchasing power", "penetration": "are customers"
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Cells(results.Answer):
    """The customers around each own store by ring and sector, as far as a page may tell them.

    `rows`: store_id, store; ring, from 0, and sector, from 0 clockwise from north; from_km, to_km,
    direction; state, "value", "hidden", "zero" or "no data"; customers; members of the programme;
    spend, net in the last `days` in shop currency; points, the balance; population,
    purchasing_power in shop currency a year, and penetration, customers per person, as far as
    districts reach. Where a cell is hidden its figures are missing, and so is a sum where few have
    a part in it. Below the cells of a store stand what lies outside the rings and the customers
    without coordinates, with ring and sector -1. `totals`: per store its customers, and how many
    of them in how many cells are hidden.
    `exact` is the same without hiding: for the private folder only.
    """

    homes: Homes
    rings_km: tuple[float, ...]
    sectors: int
    exact: pd.DataFrame
    rows: pd.DataFrame
    totals: pd.DataFrame
    note: str = ""

    @property
    def numbers(self) -> results.Numbers:
        """How figures print."""
        return self.homes.numbers

    @property
    def k(self) -> int:
        """The fewest customers of whom may be told."""
        return self.homes.k

    @property
    def store(self) -> str:
        """The store's name, where it is one only."""
        return str(self.totals["store"].iloc[0]) if self.store_id else ""

    @property
    def store_id(self) -> str:
        """The store's id, where it is one only."""
        ids = self.totals["store_id"]
        return str(ids.iloc[0]) if len(ids) == 1 else ""

    def of(self, store_id: str) -> Cells:
        """Return the cells of one store."""
        found = self.totals["store_id"] == store_id
        if not found.any():
            raise tables.UsageError(
                f"There is no own store '{store_id}' with coordinates. There are: "
                f"{', '.join(self.totals['store_id'])}."
            )
        one = {
            name: frame[frame["store_id"] == store_id].reset_index(drop=True)
            for name, frame in (
                ("exact", self.exact), ("rows", self.rows), ("totals", self.totals)
            )
        }  # fmt: skip
        return replace(self, **one)

    @property
    def verdict(self) -> str:
        """Say for each of up to three stores where most customers live."""
        n, told = self.numbers, []
        for store in self.totals.head(3).itertuples():
            rows = self.rows[(self.rows["store_id"] == store.store_id) & (self.rows["sector"] >= 0)]
            by = rows.groupby("direction", sort=False)["customers"].sum()
            inside = store.customers - store.outside - store.nowhere
            least = "" if inside == inside else "at least "
            inside = inside if inside == inside else by.sum()
            if not by.max() > 0:
                told.append(f"Around {store.store} too few customers live to tell where.")
                continue
            shown = " of those shown" if store.hidden_cells else ""
            told.append(
                f"Of our {n.number(store.customers)} customers {least}{n.number(inside)} live "
                f"within {n.km(self.rings_km[-1])} km of {store.store}, most of them in the "
                f"{by.idxmax()} ({n.percent(by.max() / by.sum(), 0)}{shown})."
            )
        rest = len(self.totals) - 3
        more = f" {n.number(rest)} more stores are in the table." if rest > 0 else ""
        return " ".join(told) + more

    @property
    def by_store(self) -> Table:
        """The customers of each ring around each store, where no cell of the ring is hidden."""
        n, rows = self.numbers, self.rows[self.rows["sector"] >= 0]
        secret = (rows["state"] == "hidden").groupby([rows["store_id"], rows["to_km"]]).sum()
        sums = rows.assign(customers=rows["customers"].fillna(0)).pivot_table(
            index="store_id", columns="to_km", values="customers", aggfunc="sum"
        )
        hidden = secret.reset_index(name="state").pivot_table(
            index="store_id", columns="to_km", values="state"
        )
        sums = sums.mask(hidden > 0).reindex(self.totals["store_id"]).reset_index(drop=True)
        sums.columns = [f"within {n.km(sums.columns[0])} km" if not ring else
                        f"{n.km(sums.columns[ring - 1])} to {n.km(radius)} km"
                        for ring, radius in enumerate(sums.columns)]  # fmt: skip
        sums.insert(0, "store", self.totals["store"])
        sums[OUTSIDE] = self.totals["outside"].to_numpy()
        return Table(
            "Customers by distance from each store", sums, self.verdict, n,
            note="A dash stands where a cell of the ring is hidden.",
        )  # fmt: skip

    @property
    def kpis(self) -> list[results.Kpi]:
        """The tiles of one store: who lives within each ring."""
        told = []
        for radius in self.rings_km:
            near = self.rows[(self.rows["sector"] >= 0) & (self.rows["to_km"] <= radius)]
            if (near["state"] == "hidden").any() or len(self.totals) > 1:
                continue
            label = f"Customers within {self.numbers.km(radius)} km of {self.store}"
            told.append(results.Kpi(label, near["customers"].sum(), "count", "up"))
        return told

    def shapes(self) -> pd.DataFrame:
        """Return `exact` with a GeoJSON geometry for each cell: for the private folder only."""
        at = self.homes.own.set_index("store_id")[["latitude", "longitude"]]
        inside = self.exact[self.exact["sector"] >= 0]
        return inside.assign(geometry=[
            places.cell_shape(*at.loc[cell.store_id], inner_km=cell.from_km, outer_km=cell.to_km,
                              sector=cell.sector, sectors=self.sectors)
            for cell in inside.itertuples()])  # fmt: skip

    @property
    def hidden(self) -> str:
        """Say how many customers are hidden, in how many cells."""
        n, cells = self.numbers, int(self.totals["hidden_cells"].sum())
        if self.totals["hidden"].isna().any():
            return f"Around some stores too few customers live to tell where (k = {self.k})."
        if not cells:
            return ""
        one = len(self.totals) == 1
        around = "" if one else f" around {n.number(len(self.totals))} stores"
        return (
            f"{n.number(cells)} cells{around} are hidden, as they or others would tell of fewer "
            f"than {self.k} customers; they hold {n.number(self.totals['hidden'].sum())} customers."
            + (
                " Wider rings or fewer directions would hide less."
                if 3 * cells > len(self.rows)
                else ""
            )
        )

    def _repr_html_(self) -> str:
        n, rows = self.numbers, self.rows
        known = [name for name in MEASURES if name in rows and rows[name].notna().any()]
        shown = rows[["direction"]].copy()
        if not self.store:
            shown.insert(0, "store", rows["store"])
        shown.loc[rows["state"] == "hidden", "direction"] += " (hidden)"
        shown["km"] = [
            f"{n.km(row.from_km)}–{n.km(row.to_km)}" if row.to_km == row.to_km else ""
            for row in rows.itertuples()
        ]
        shown[known] = rows[known]
        formats: dict[str, Any] = {name: n.number for name in known}
        formats |= {name: n.short_money for name in known if name in MONEY}
        formats |= {"penetration": n.percent} if "penetration" in known else {}
        around = f" around {self.store}" if self.store else ""
        title = f"Customers by ring and direction{around}, spend of {self.homes.days} days"
        table = results.html_table(shown, title=title, formats=formats, headings=HEADINGS)
        said = " ".join(filter(None, (self.hidden, self.note)))
        return f"<p>{escape(self.verdict)}</p>{table}<p>{escape(said)}</p>"


def cells(
    shop: Shop | Homes,
    *,
    as_of: str | dt.date = "",
    rings_km: Sequence[float] | str = RINGS_KM,
    sectors: int = 8,
    method: str = "sphere",
) -> Cells:
    """Count the customers around each own store by ring and sector.

    Every customer is counted once around every store: in a cell, outside the rings, or among those
    without coordinates. A ring holds its outer radius. The population is that of the districts by
    their share of a cell's area.

    Parameters
    ----------
    shop : Shop, or its `homes.of_customers`, which knows its own `as_of`
    rings_km : the outer radii of the rings, rising
    sectors : 4, 8 or 16, the first of them around north
    method : "sphere", or "geodesic" on the WGS84 ellipsoid, for audits; slower, and needs pyproj

    Raises
    ------
    DataError as `homes.of_customers`; UsageError for radii, sectors or a method that cannot be
    """
    if not isinstance(shop, Homes) and not as_of:
        raise tables.UsageError("cells needs as_of, a date such as 2025-12-31, unless it is given "
                                "what homes.of_customers returns.")  # fmt: skip
    base = shop if isinstance(shop, Homes) else homes.of_customers(shop, as_of=as_of)
    radii, names = places.rings(rings_km), places.sector_names(sectors)
    if method not in ("sphere", "geodesic"):
        raise tables.UsageError(f"method is {method!r}; it must be 'sphere' or 'geodesic'.")
    how = _counted if method == "sphere" else _geodesic
    counted = how(base, radii, sectors)
    exact = _complete(base, counted, radii, names)
    land = attempt(lambda: districts.of(base.shop)) if base.shop.has("districts") else None
    note = "" if land is None else getattr(land, "why", "")
    if land:
        exact, note = _peopled(exact, base, land, radii, sectors), " ".join(land.notes)
    hidden = [_shown(part, base) for _, part in exact.groupby("store_id", sort=False)]
    import pandas as pd

    rows = pd.concat([part for part, _ in hidden], ignore_index=True)
    totals = pd.DataFrame([total for _, total in hidden])
    return Cells(base, radii, sectors, exact, rows, totals, note)


def count_cells(
    rows: ir.Table, stores: ir.Table, *, rings_km: Sequence[float], sectors: int
) -> ir.Table:
    """Count and sum customers by store, ring and sector, as one expression for any engine.

    Parameters
    ----------
    rows : x, y, z as of `places.on_sphere`, member, spend, points; one row per customer
    stores : store_id and the vectors of `places.compass`

    Returns
    -------
    table: store_id, ring, sector, customers, members; spend, spenders, whose spend is not 0, and
    largest_spend, the most of one of them; points, holders and largest_points likewise
    """
    pairs = rows.filter(rows.x.notnull()).cross_join(stores)
    ring, sector = places.ring_and_sector(pairs, rings_km=rings_km, sectors=sectors)
    pairs = pairs.select("store_id", "member", "spend", "points", ring=ring, sector=sector)
    return pairs.group_by("store_id", "ring", "sector").aggregate(
        customers=pairs.count(),
        members=pairs.count(where=pairs.member),
        spend=pairs.spend.sum(),
        spenders=pairs.count(where=pairs.spend != 0),
        largest_spend=pairs.spend.abs().max(),
        points=pairs.points.sum(),
        holders=pairs.count(where=pairs.points != 0),
        largest_points=pairs.points.abs().max(),
    )


def _counted(base: Homes, radii: Sequence[float], sectors: int) -> pd.DataFrame:
    """Count on the sphere, in the run's own DuckDB."""
    import ibis

    stores = ibis.memtable(base.own[["store_id", "latitude", "longitude"]])
    stores = places.compass(stores, "store_id")
    found: pd.DataFrame = count_cells(
        base.rows, stores, rings_km=radii, sectors=sectors
    ).to_pandas()
    return found


def _geodesic(base: Homes, radii: Sequence[float], sectors: int) -> pd.DataFrame:
    """Count on the ellipsoid, store by store."""
    import numpy as np
    import pandas as pd

    try:
        from pyproj import Geod
    except ImportError:
        raise tables.UsageError(
            "method='geodesic' needs the package pyproj: pip install pyproj. The method 'sphere' "
            "needs nothing and is at most .22 % off within 20 km."
        ) from None
    rows = base.rows.filter(base.rows.x.notnull())
    frame = rows.select("latitude", "longitude", "member", "spend", "points").to_pandas()
    frame["member"] = frame["member"].astype("boolean").fillna(False).astype(bool)
    for total, (who, most) in HELPERS.items():
        frame[who], frame[most] = frame[total] != 0, frame[total].abs()
    # No points at all are no points of anybody.
    frame["holders"] &= frame["points"].notna()
    globe, parts = Geod(ellps="WGS84"), []
    for store in base.own.itertuples():
        at = (np.full(len(frame), store.longitude), np.full(len(frame), store.latitude))
        bearing, _, metres = globe.inv(*at, frame["longitude"], frame["latitude"])
        there = frame.assign(
            store_id=store.store_id,
            ring=np.searchsorted(radii, metres / 1000),
            sector=np.floor((bearing % 360) * sectors / 360 + 0.5).astype(int) % sectors,
        )
        sums = dict.fromkeys(("members", "spend", "spenders", "points", "holders"), "sum")
        largest = dict.fromkeys(("largest_spend", "largest_points"), "max")
        there = there.rename(columns={"member": "members"}).assign(customers=1)
        cells = there.groupby(["store_id", "ring", "sector"], as_index=False)
        parts.append(cells.agg({"customers": "sum", **sums, **largest}))
    return pd.concat(parts, ignore_index=True)


def _complete(
    base: Homes, counted: pd.DataFrame, radii: Sequence[float], names: Sequence[str]
) -> pd.DataFrame:
    """Return every cell of every store, empty ones too, and below them who is in none."""
    import pandas as pd

    columns = ["customers", "members", "spend", "spenders", "largest_spend", "points", "holders",
               "largest_points"]  # fmt: skip
    homeless = base.rows.filter(base.rows.x.isnull()).count().to_pyarrow().as_py()
    nowhere = dict.fromkeys(columns, 0.0) | {"customers": homeless}
    parts = []
    for store in base.own.itertuples():
        mine = counted[counted["store_id"] == store.store_id]
        inside = mine[mine["ring"] < len(radii)].set_index(["ring", "sector"])[columns]
        every = pd.MultiIndex.from_product(
            [range(len(radii)), range(len(names))], names=["ring", "sector"]
        )
        full = inside.reindex(every).reset_index()
        full["from_km"] = [([0.0, *radii])[ring] for ring in full["ring"]]
        full["to_km"] = [radii[ring] for ring in full["ring"]]
        full["direction"] = [names[sector] for sector in full["sector"]]
        beyond = mine[mine["ring"] >= len(radii)]
        rest = pd.DataFrame([
            {name: beyond[name].agg("max" if "largest" in name else "sum") for name in columns},
            nowhere])  # fmt: skip
        rest = rest.assign(ring=-1, sector=-1, direction=[OUTSIDE, NOWHERE])
        rest["from_km"] = [radii[-1], math.nan]
        full = pd.concat([full, rest], ignore_index=True)
        full.insert(0, "store_id", store.store_id)
        full.insert(1, "store", store.name)
        parts.append(full)
    found = pd.concat(parts, ignore_index=True)
    found[columns] = found[columns].fillna(0).astype(float).round(2)
    lacking = {"member": ["members"], "points": ["points", "holders", "largest_points"]}
    gone = [name for what, names in lacking.items() if what not in base.has for name in names]
    return found.drop(columns=gone)


def _peopled(
    exact: pd.DataFrame,
    base: Homes,
    land: districts.Districts,
    radii: Sequence[float],
    sectors: int,
) -> pd.DataFrame:
    """Add the people and their purchasing power in each cell, and the customers per person."""
    at = base.own.set_index("store_id")
    people, power = [], []
    for row in exact.itertuples():
        if row.sector < 0:
            people.append(math.nan)
            power.append(math.nan)
            continue
        store = at.loc[row.store_id]
        shape = places.cell_shape(
            store["latitude"], store["longitude"], inner_km=row.from_km, outer_km=row.to_km,
            sector=row.sector, sectors=sectors,
        )  # fmt: skip
        there = districts.population_of(land, shape)
        people.append(round(there.population, 1))
        power.append(there.population * there.purchasing_power)
    found = exact.assign(population=people, purchasing_power=power)
    known = found["population"] >= 1
    found["penetration"] = found["customers"].where(known) / found["population"].where(known)
    return found


def _shown(exact: pd.DataFrame, base: Homes) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Hide what would tell of too few, and count it."""
    first = exact.iloc[0]
    nowhere = exact["direction"] == NOWHERE
    # Whoever has no place is told of elsewhere: they hide no cell, and only their own number.
    hidden = results.hidden(
        exact.assign(nowhere=nowhere), counts=["customers"], k=base.k, last="nowhere"
    )
    rows = exact.drop(columns=[name for pair in HELPERS.values() for name in pair if name in exact])
    inside = exact[~nowhere].assign(others=exact["customers"] - exact.get("members", 0))
    asked: dict[str, tuple[list[str], dict[str, str]]] = {
        total: (["customers", who], {total: most}) for total, (who, most) in HELPERS.items()
    }
    asked["members"] = (["customers", "members", "others"], {})
    for name in [name for name in asked if name in exact]:
        counts, largest = asked[name]
        secret = results.hidden(inside, counts=counts, k=base.k, largest=largest)
        rows[name] = rows[name].mask(secret.reindex(rows.index, fill_value=True))
    told = ("customers", "members", "spend", "points", "penetration")
    rows.loc[hidden, [name for name in told if name in rows]] = math.nan
    # Nobody is anywhere while nobody's home is known.
    known = exact.loc[~nowhere, "customers"].sum() > 0
    rows["state"] = "zero" if known else "no data"
    rows.loc[exact["customers"] > 0, "state"] = "value"
    rows.loc[hidden, "state"] = "hidden"
    total, count = exact["customers"].sum(), exact.loc[hidden, "customers"].sum()
    if hidden.any() and (hidden | (exact["customers"] == 0)).all():
        total, count = total if total >= base.k else math.nan, math.nan
    by = rows.set_index("direction")["customers"]
    return rows, {
        "store_id": first["store_id"], "store": first["store"], "customers": total,
        "outside": by[OUTSIDE], "nowhere": by[NOWHERE], "hidden": count,
        "hidden_cells": int((rows["state"] == "hidden").sum()),
    }  # fmt: skip
