"""Among which of the shop's own stores customers chose, how far each was, and what they chose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from crmlab import places, tables

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import numpy as np
    import pandas as pd

    from crmlab.homes import Homes

    Array = np.ndarray[Any, np.dtype[Any]]

CELLS = 250_000  # customers x stores that are worked on at once: what a processor's cache holds
TIMES = ("customer_id", "store_id", "minutes")


@dataclass(frozen=True, eq=False)
class Choices:
    """What customers chose among the stores: arrays of customers x stores, without any id.

    Customers are in an order drawn by lot, so that the first of them are a fair sample.
    `far` is the way from home, in `unit` (km or minutes); `visits` counts days with a purchase;
    `spend` is in shop currency. `area` has each store's size in m2, or 1 for all where `sized` is
    false. `homes` are the customers' places as unit vectors; none where the way is in minutes.
    `stores`: store_id, name, latitude, longitude, one row per column of the arrays.
    """

    stores: pd.DataFrame
    far: Array = field(repr=False)
    visits: Array = field(repr=False)
    area: Array
    spend: Array = field(repr=False)
    homes: Array = field(repr=False)
    sized: bool = True
    unit: str = "km"
    notes: tuple[str, ...] = ()

    @property
    def customers(self) -> int:
        """How many customers chose."""
        return len(self.far)

    @property
    def number(self) -> int:
        """How many stores they chose among."""
        return len(self.area)

    def some(self, rows: slice) -> Choices:
        """Return the choices of some of the customers, in arrays that are not copied."""
        return replace(
            self, far=self.far[rows], visits=self.visits[rows], spend=self.spend[rows],
            homes=self.homes[rows],
        )  # fmt: skip

    def drop(self, store: int) -> Choices:
        """Return the choices among the other stores."""
        import numpy as np

        kept = np.arange(self.number) != store
        return replace(
            self, stores=self.stores[kept], area=self.area[kept], far=self.far[:, kept],
            visits=self.visits[:, kept], spend=self.spend[:, kept],
        )  # fmt: skip

    def parts(self) -> Iterator[tuple[Choices, slice]]:
        """Give the customers in parts small enough to be fast, and which rows they are."""
        step = max(1, CELLS // self.number)
        for begin in range(0, self.customers, step):
            rows = slice(begin, begin + step)
            yield self.some(rows), rows


def kilometres(homes: Array, latitude: float, longitude: float) -> Array:
    """Return how far customers live from a place, in km; `homes` are unit vectors."""
    import numpy as np

    north, east = np.radians(latitude), np.radians(longitude)
    place = [np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)]
    chord = np.sqrt(((homes - place) ** 2).sum(axis=1))
    return np.asarray(2 * places.EARTH_KM * np.arcsin(np.minimum(chord / 2, 1)))


def of_customers(
    homes: Homes, *, travel_times: pd.DataFrame | ir.Table | None = None, seed: int = 1
) -> Choices:
    """Read the choices of the customers whose home is known among the shop's own stores.

    Stores at which fewer than k of them bought are left out: the choice among the others stays the
    same choice, by the model's independence of other stores (McFadden 1974).

    Parameters
    ----------
    travel_times : table with customer_id, store_id, minutes, for use instead of the distance; the
        customers in it are those whose home is known
    seed : draws the order of the customers

    Raises
    ------
    DataError where receipts name no store, fewer than two stores or k customers are left, they live
    at fewer than k places, or travel times are missing, given twice or no minutes
    """
    import numpy as np

    k, own = homes.k, homes.own
    if homes.visits is None:
        raise tables.DataError(
            f"Receipts of shop '{homes.shop.id}' name no store (store_id): nobody can tell which "
            "store customers chose."
        )
    rows = homes.rows.filter(homes.rows.x.notnull()).select("customer_id", "x", "y", "z")
    times = None if travel_times is None else _times(homes, travel_times)
    if times is not None:
        rows = times.select("customer_id").distinct().mutate(x=0.0, y=0.0, z=1.0)
    bought = homes.visits.filter(homes.visits.store_id.isin(list(own["store_id"])))
    visits = bought.semi_join(rows, "customer_id")
    buyers = visits.group_by("store_id").aggregate(n=visits.count()).to_pandas()
    enough = own["store_id"].isin(buyers.loc[buyers["n"] >= max(k, 2), "store_id"])
    stores = own[enough].reset_index(drop=True)
    if len(stores) < 2:
        raise tables.DataError(
            f"Shop '{homes.shop.id}' has {len(stores)} own store with coordinates at which at "
            f"least {max(k, 2)} customers with a known home bought in {homes.days} days: without a "
            "choice between two there is nothing to learn."
        )
    ids = list(stores["store_id"])
    at, (visited, spend, *way) = _arrays(homes, rows, visits, ids, times, seed)
    if times is None:
        coordinates = stores[["latitude", "longitude"]].itertuples(index=False)
        far = np.empty_like(visited)
        for nth, one in enumerate(coordinates):
            far[:, nth] = kilometres(at, *one)
        if len(np.unique(at[:, 0] + at[:, 1])) < max(k, 2):
            raise tables.DataError(
                f"The {len(at)} customers live at fewer than {max(k, 2)} different places: "
                "distance cannot be told from what else differs between the stores."
            )
    else:
        (far,) = way
        if lost := int(np.isnan(far).sum()):
            raise tables.DataError(
                f"travel_times has no minutes for {lost} of the {far.size} pairs of a customer who "
                "bought and a store. Add them, or leave these customers out wholly."
            )
    sized = bool((stores["area_m2"] > 0).all())
    area = stores["area_m2"].to_numpy(dtype=float) if sized else np.ones(len(ids))
    everyone = bought.filter(bought.store_id.isin(ids)).customer_id.nunique()
    notes = _notes(homes, stores, len(at), int(everyone.to_pyarrow().as_py()))
    unit = "km" if times is None else "minutes"
    return Choices(stores, far, visited, area, spend, at, sized, unit, notes)


def _notes(homes: Homes, stores: pd.DataFrame, located: int, everyone: int) -> tuple[str, ...]:
    """Say what the choices leave out, and what is strange about them."""
    import pandas as pd

    n, own, found = homes.numbers, homes.own, []
    if len(left_out := own.loc[~own["store_id"].isin(stores["store_id"]), "name"]):
        found.append(
            f"Left out, with fewer than {max(homes.k, 2)} customers whose home is known: "
            f"{', '.join(left_out)}."
        )
    if everyone - located >= homes.k:
        found.append(
            f"Of {n.number(everyone)} customers who bought, {n.percent(1 - located / everyone)} "
            "have no known home and are not in these figures."
        )
    if not (stores["area_m2"] > 0).all():
        found.append("Not every store has an area_m2: all are taken to be equally attractive.")
    since = pd.Timestamp(homes.as_of) - pd.Timedelta(days=homes.days)
    if len(young := stores.loc[pd.to_datetime(stores["opened_on"]) > since, "name"]):
        found.append(
            f"Opened within these {homes.days} days, with fewer visits than it draws: "
            f"{', '.join(young)}."
        )
    return tuple(found)


def _arrays(
    homes: Homes,
    rows: ir.Table,
    visits: ir.Table,
    ids: list[str],
    times: ir.Table | None,
    seed: int,
) -> tuple[Array, list[Array]]:
    """Return homes, and customers x stores: visits, spend, and minutes where there are such.

    The arrays are laid out store by store, so that what is summed over stores runs fast.
    """
    import ibis
    import numpy as np
    import pandas as pd

    visits = visits.filter(visits.store_id.isin(ids))
    rows = rows.semi_join(visits, "customer_id")
    rows = rows.mutate(nth=ibis.row_number().over(order_by="customer_id"))
    rows = homes.shop.landed(rows, "choosers")
    who = rows.drop("customer_id").to_pyarrow()
    # In the order of the ids first, so that the same seed gives the same lot.
    place = np.random.default_rng(tables.check_seed(seed)).permutation(len(who))
    at = np.empty((len(who), 3))
    at[place[who["nth"].to_numpy()]] = np.column_stack([who[axis].to_numpy() for axis in "xyz"])

    def spread(long: ir.Table, missing: float, *columns: str) -> list[Array]:
        found = long.inner_join(rows, "customer_id").select("nth", "store_id", *columns).to_pandas()
        store = pd.Categorical(found["store_id"], categories=ids).codes
        arrays = []
        for column in columns:
            cells = np.full((len(who), len(ids)), missing, dtype=np.float32, order="F")
            cells[place[found["nth"]], store] = found[column]
            arrays.append(cells)
        return arrays

    arrays = spread(visits, 0.0, "visits", "spend")
    if times is not None:
        arrays += spread(times.filter(times.store_id.isin(ids)), np.nan, "minutes")
    return at, arrays


def _times(homes: Homes, travel_times: pd.DataFrame | ir.Table) -> ir.Table:
    """Return the user's travel times as a local table, one row for each pair."""
    import ibis
    import pandas as pd

    if lacks := [name for name in TIMES if name not in travel_times.columns]:
        raise tables.UsageError(
            f"travel_times has no column {', '.join(lacks)}; it needs {', '.join(TIMES)}."
        )
    given = travel_times
    if isinstance(given, pd.DataFrame):
        given = ibis.memtable(given[list(TIMES)])
    kinds = {"customer_id": "string", "store_id": "string", "minutes": "float64"}
    times = homes.shop.landed(given.select(*TIMES).cast(kinds), "times")
    times = times.filter(times.store_id.isin(list(homes.own["store_id"])))
    good = (times.minutes >= 0) & (times.minutes < 100_000)
    if bad := int(times.filter(~good.fill_null(False)).count().to_pyarrow().as_py()):
        raise tables.DataError(f"{bad} rows of travel_times have no minutes of 0 or more.")
    pairs = times.group_by("customer_id", "store_id").aggregate(rows=times.count())
    if twice := int(pairs.filter(pairs.rows > 1).count().to_pyarrow().as_py()):
        raise tables.DataError(f"travel_times has {twice} pairs of customer and store twice.")
    return times
