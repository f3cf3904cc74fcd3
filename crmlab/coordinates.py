"""How good the coordinates of customers and stores are, and which of them to put right."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from crmlab import places, results, tables

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.homes import Homes

FAR_KM = 200.0  # nobody buys every week at a store that is farther away
FAR_MEDIANS = 20  # nor that much farther than half of the customers do
NEARER = 10  # so many times nearer to a store when swapped: no accident
COARSE_DECIMALS = 2  # of a degree: about a kilometre
# What can be wrong with a customer's place, the worst first.
MISSING, SWAPPED, FAR, SHARED, COARSE = (
    "no latitude and longitude",
    "latitude and longitude swapped",
    "far from every store",
    "on a point with many others",
    "two decimals or fewer",
)


@dataclass(frozen=True, eq=False)
class Quality(results.Answer):
    """How far the coordinates can be trusted.

    `rows`: what, customers, share of all who have bought; the exact counts, for the analyst alone.
    `stores`: the same of stores, without a share: these are no secret. `points` is how many points
    are home to at least `k` customers each; `far_km` is how far is far, in km.
    `caution` says in a sentence that something is wrong as a whole; it may be empty.
    """

    customers: int
    rows: pd.DataFrame
    stores: pd.DataFrame
    points: int
    far_km: float
    caution: str
    k: int
    numbers: results.Numbers

    @property
    def kpis(self) -> list[results.Kpi]:
        """The tile: how many customers have a place, where that can be told."""
        count = self.rows.set_index("what")["customers"]
        located = int(count["located"] - count[SWAPPED] - count[FAR])
        if self.customers < self.k or results.few(self.customers - located, self.k):
            return []
        share = located / self.customers
        if results.few(located, self.k):
            return []
        return [results.Kpi("Customers with a place", share, "share", "up", "that can be, of all")]

    def told(self, count: int) -> str:
        """Print a number of customers: of some, but fewer than `k`, only that; so of the rest."""
        if self.customers < self.k or results.few(count, self.k):
            return f"fewer than {self.k}"
        if results.few(self.customers - count, self.k):
            return f"all but fewer than {self.k}"
        return self.numbers.number(count)

    def to_frame(self) -> pd.DataFrame:
        """Return what a page may show: what, customers in words, share or nan."""
        import pandas as pd

        told = [self.told(count) for count in self.rows["customers"]]
        hidden = ["fewer" in word for word in told]
        share = self.rows["share"].mask(pd.Series(hidden, dtype=bool))
        return self.rows[["what"]].assign(customers=told, share=share)

    @property
    def verdict(self) -> str:
        """Whether the places are good enough to draw rings around them."""
        n, count = self.numbers, self.rows.set_index("what")["customers"]
        if self.customers < self.k:
            return f"Fewer than {self.k} customers have bought: nothing is said of their places."
        told = f"Of {n.number(self.customers)} customers {self.told(count['located'])} have a place"
        for what, words in ((SWAPPED, "swapped"), (FAR, "far from every store")):
            told += f", {self.told(count[what])} {words}" if count[what] else ""
        if count[SHARED]:
            told += (
                f"; {self.told(count[SHARED])} live on {n.number(self.points)} "
                f"point{'s' * (self.points != 1)} of at least {self.k} customers each, which may "
                "be the middle of a district or postcode"
            )
        return f"{told}. {self.caution}".strip()

    def _repr_html_(self) -> str:
        n = self.numbers
        customers = results.html_table(
            self.to_frame(), title="Where customers live: how sure",
            formats={"customers": str, "share": n.percent},
        )  # fmt: skip
        stores = results.html_table(
            self.stores, title="Where stores are: how sure", formats={"stores": n.number}
        )
        return f"<p>{escape(self.verdict)}</p>{customers}{stores}"


def looks_swapped(km: Any, swapped_km: Any, *, far_km: float = FAR_KM) -> Any:
    """Whether what is far from every store would be near one, were its coordinates swapped.

    Distances to the nearest store in km: numbers, numpy arrays or columns of ibis.
    """
    return (km > far_km) & (swapped_km <= far_km) & (swapped_km * NEARER <= km)


def swapped_places(given: Any, near: Any) -> Any:
    """Tell of each place, a row of latitude and longitude, whether it looks swapped.

    So it does where it is far from all of `near`, and would not be if swapped.
    """
    import numpy as np

    given, near = np.asarray(given, float), np.asarray(near, float)
    if not len(given) or not len(near):
        return np.zeros(len(given), dtype=bool)
    km, swapped = (
        places.kilometres_between(side, near).min(axis=1) for side in (given, given[:, ::-1])
    )
    return looks_swapped(km, swapped) & (np.abs(given[:, 1]) <= 90)


def quality(homes: Homes, *, far_km: float | None = None) -> Quality:
    """Say how far the coordinates of customers and stores can be trusted.

    Parameters
    ----------
    far_km : float, from how far on a customer is far from every store, in km; by default 200 km,
        or 20 times the median distance to the nearest store where that is more

    Raises
    ------
    UsageError if `far_km` is not above 0
    """
    import pandas as pd

    rows, far_km = _measured(homes, far_km)
    wrong = {MISSING: rows.km.isnull(), **_faults(rows, homes.k, far_km)}
    found = rows.aggregate(
        customers=rows.count(),
        located=rows.km.count(),
        **{f"wrong {place}": one.sum() for place, one in enumerate(wrong.values())},
    )
    points = rows.filter(wrong[SHARED]).select("latitude", "longitude").distinct().count()
    counts = {n: int(value or 0) for n, value in found.to_pandas().iloc[0].items()}
    table = pd.DataFrame(
        [("located", counts["located"])]
        + [(what, counts[f"wrong {place}"]) for place, what in enumerate(wrong)],
        columns=["what", "customers"],
    )
    table["share"] = table["customers"] / counts["customers"]
    stores, swapped = _stores(homes, rows)
    return Quality(
        customers=counts["customers"],
        rows=table,
        stores=stores,
        points=int(points.to_pyarrow().as_py()),
        far_km=far_km,
        caution=_caution(homes, counts["located"], table, swapped),
        k=homes.k,
        numbers=homes.numbers,
    )


def to_repair(homes: Homes, *, far_km: float | None = None) -> ir.Table:
    """Return what to put right: a local table with one row per customer, for the private folder.

    Columns: customer_id; what is wrong, the worst; latitude and longitude in degrees as given, and
    proposed_latitude and proposed_longitude where these seem to be swapped, else null. Nothing is
    looked up: no address and no coordinate leaves the machine.
    """
    import ibis

    rows, far_km = _measured(homes, far_km)
    faults = _faults(rows, homes.k, far_km)
    named = [(one, what) for what, one in faults.items()]
    what = ibis.cases((rows.km.isnull(), MISSING), *named, else_=ibis.null("string"))
    swapped, none = faults[SWAPPED].fill_null(False), ibis.null("float64")
    found = rows.select(
        "customer_id", "latitude", "longitude", what=what,
        proposed_latitude=swapped.ifelse(rows.longitude, none),
        proposed_longitude=swapped.ifelse(rows.latitude, none),
    )  # fmt: skip
    found = found.filter(found.what.notnull()).select(
        "customer_id", "what", "latitude", "longitude", "proposed_latitude", "proposed_longitude"
    )
    return homes.shop.landed(found.order_by("customer_id"), "to_repair")


def _measured(homes: Homes, far_km: float | None) -> tuple[ir.Table, float]:
    """Return each customer's distance to the nearest store, as given and if swapped; what is far.

    One local row per customer: customer_id, latitude, longitude, km; swapped_km, null for those
    near a store as they are and where the longitude can be no latitude; neighbours, the customers
    on the same point, 0 where they are fewer than `k`.
    """
    import ibis

    if far_km is not None and not 0 < far_km < math.inf:
        raise tables.UsageError(f"far_km is {far_km!r}; it must be a distance in km above 0.")
    stores = places.on_sphere(ibis.memtable(homes.stores[["latitude", "longitude"]]))
    vectors = stores.select("x", "y", "z").to_pandas().to_numpy().tolist()

    def nearest(rows: ir.Table) -> Any:
        # A few stores are faster written out than joined.
        return places.arc(
            ibis.least(*(places.squared_chord((rows.x, rows.y, rows.z), one) for one in vectors))
        )

    rows = homes.rows.select("customer_id", "latitude", "longitude", "x", "y", "z")
    known = rows.latitude.notnull() & rows.longitude.notnull()
    rows = rows.mutate(km=known.ifelse(nearest(rows), None)).drop("x", "y", "z")
    rows = homes.shop.landed(rows, "kilometres")
    # Who lives near is not swapped: the vectors the other way round are made of few.
    away = rows.filter(rows.km > min(FAR_KM, far_km or FAR_KM), rows.longitude.abs() <= 90)
    turned = away.select("customer_id", latitude=away.longitude, longitude=away.latitude)
    turned = homes.shop.landed(places.on_sphere(turned), "turned")
    turned = turned.select("customer_id", swapped_km=nearest(turned))
    placed = rows.filter(rows.km.notnull())
    points = placed.group_by("latitude", "longitude").aggregate(neighbours=placed.count())
    # Measured: to keep the crowded points alone is ten times faster than to number every row.
    points = homes.shop.landed(points.filter(points.neighbours >= homes.k), "points")
    measured = rows.left_join(turned, "customer_id").drop("customer_id_right")
    measured = measured.left_join(points, ["latitude", "longitude"])
    measured = measured.drop("latitude_right", "longitude_right")
    measured = measured.mutate(neighbours=measured.neighbours.fill_null(0))
    measured = homes.shop.landed(measured, "measured")
    if far_km is None:
        # The nearer of both: in a file that is swapped as a whole nothing would be far.
        best = ibis.least(measured.km, measured.swapped_km.coalesce(measured.km))
        median = best.median().to_pyarrow().as_py()
        far_km = max(FAR_KM, FAR_MEDIANS * (median or 0.0))
    return measured, float(far_km)


def _faults(rows: ir.Table, k: int, far_km: float) -> dict[str, ir.BooleanColumn]:
    """Return what is wrong with a place that is there, the worst first; each names its own."""
    swapped = looks_swapped(rows.km, rows.swapped_km, far_km=far_km).fill_null(False)
    scale = 10**COARSE_DECIMALS
    # A file's digits are decimal and the engine's are not: 1e-7 of a step is as good as none.
    coarse = [((side * scale) - (side * scale).round()).abs() < 1e-7
              for side in (rows.latitude, rows.longitude)]  # fmt: skip
    return {
        SWAPPED: swapped,
        FAR: (rows.km > far_km) & ~swapped,
        SHARED: rows.neighbours >= k,
        COARSE: rows.km.notnull() & coarse[0] & coarse[1],
    }


def _stores(homes: Homes, rows: ir.Table) -> tuple[pd.DataFrame, int]:
    """Count the stores with a place, without, and swapped as the middle of the customers shows."""
    import pandas as pd

    located = rows.filter(rows.km.notnull())
    middle = located.aggregate(
        latitude=located.latitude.median(), longitude=located.longitude.median()
    ).to_pandas()
    near = middle.dropna().to_numpy()
    swapped = int(swapped_places(homes.stores[["latitude", "longitude"]].to_numpy(), near).sum())
    lines = [("located", len(homes.stores)), (MISSING, homes.lost), (SWAPPED, swapped)]
    return pd.DataFrame(lines, columns=["what", "stores"]), swapped


def _caution(homes: Homes, located: int, table: pd.DataFrame, stores: int) -> str:
    """Say in a sentence what is wrong with a table as a whole, or nothing."""
    swapped = table.set_index("what")["customers"][SWAPPED]
    if located and swapped * 2 > located:
        return (
            "Most customers would be near a store were latitude and longitude swapped: rename "
            "these columns of customers, or of stores, in shop.toml."
        )
    if stores:
        return (
            f"{stores} of {len(homes.stores)} stores would be near the customers were latitude "
            "and longitude swapped: put these right in the table stores."
        )
    check = homes.shop.check("customers")
    # (0, 0), a text or a latitude of 120 became unknown at the door, and was counted there.
    lost = {
        name: check.kept.get(f"{name} unreadable or impossible", 0)
        for name in ("latitude", "longitude")
    }
    if lost["latitude"] * 2 > check.used and lost["longitude"] * 2 < check.used:
        return (
            "Most latitudes in the table customers are out of range: are they longitudes? "
            "Rename these columns in shop.toml."
        )
    n, k, told = homes.numbers, homes.k, []
    for count, words in (
        (swapped + table.set_index("what")["customers"][FAR],
         "look swapped or lie far from every store, and count as they are given"),
        (max(lost.values()), "were (0, 0), out of range or unreadable, and are unknown"),
    ):  # fmt: skip
        if count:
            many = f"fewer than {k}" if results.few(count, k) else n.number(count)
            told.append(f"The coordinates of {many} customers {words}.")
    return " ".join(told)
