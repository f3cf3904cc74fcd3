"""How far customers live from each store, and how their share falls with the distance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from crmlab import effects, places, results, tables

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.homes import Homes

DIGITS = 1  # of a km, in what is shown


@dataclass(frozen=True, eq=False)
class Decay(results.Answer):
    """How the share of customers who buy at a store falls with the distance; exact. See `shown`.

    `rows`: one per own store and band of distance: store_id, name, from_km, to_km, customers of
    the shop who live there, bought, how many of these bought at the store in the last `days`,
    share, and its interval low and high, Wilson's at 95 %; nan where nobody lives. The last band
    of a store has all who live farther. `stores`: store_id, name, half_km: with each so many km the
    share halves, by a straight line through the logarithms of the shares told; nan where these are
    fewer than three or do not fall.
    """

    rows: pd.DataFrame
    stores: pd.DataFrame
    days: int
    k: int
    numbers: results.Numbers

    def shown(self) -> pd.DataFrame:
        """Return what a page may show; what is not told is nan.

        `state` is "told", "hidden" (a number below `k`, or one that the store's total would tell),
        "zero" (nobody bought) or "no data" (nobody lives there).
        """
        return _bands_shown(self.rows, self.k)

    def drawn(self) -> pd.DataFrame:
        """Return `shown` as coarse as a picture needs it: name, from_km, to_km, share, low, high.

        From exact shares and intervals the number of customers in each band could be read, and
        bands add up to rings: shares are rounded to 1 %, and intervals are those of the next
        lower multiple of k customers.
        """
        found = self.shown()
        least = found["customers"] // self.k * self.k
        share = found["share"].round(2)
        ends = [
            effects.wilson(round(part * n), int(n)) if n > 0 else (math.nan, math.nan)
            for part, n in zip(share, least, strict=True)
        ]  # fmt: skip
        found["share"], found["low"], found["high"] = (
            share,
            *(list(x) for x in zip(*ends, strict=True)),
        )
        return found

    @property
    def verdict(self) -> str:
        """How fast the stores lose customers with distance."""
        n, told = self.numbers, self.stores.dropna(subset=["half_km"])
        if told.empty:
            return "Of no store can be said how the share of its customers falls with distance."
        near, far = (told.loc[told["half_km"].agg(end)] for end in ("idxmin", "idxmax"))
        words = (
            f"The share of customers who buy at {near['name']} halves with every "
            f"{n.number(near['half_km'], DIGITS)} km"
        )
        if len(told) > 1:
            words += (
                f", and at {far['name']}, which reaches farthest, with every "
                f"{n.number(far['half_km'], DIGITS)} km"
            )
        return f"{words}."

    def _repr_html_(self) -> str:
        n, shown = self.numbers, self.shown().drop(columns="store_id")
        kinds: dict[str, Any] = {name: n.percent for name in ("share", "low", "high")}
        kinds |= {name: n.number for name in ("customers", "bought")}
        kinds |= {name: lambda km: n.number(km, DIGITS) for name in ("from_km", "to_km")}
        table = results.html_table(
            shown, title=f"Who buys, by distance, last {self.days} days", formats=kinds,
            headings={"from_km": "from, km", "to_km": "to, km"},
        )  # fmt: skip
        return f"<p>{escape(self.verdict)}</p>{table}"


def pairs(homes: Homes, *, weight: str = "customers") -> ir.Table:
    """Return one local row per own store and located customer who bought there.

    store_id, customer_id, latitude, longitude, km, weight; the longitude goes on past 180 degrees
    so that what lies around a store holds together.
    """
    import ibis

    if homes.visits is None:
        raise tables.DataError(
            f"The receipts of shop '{homes.shop.id}' name no store: trade areas need store_id in "
            "transactions."
        )
    rows = homes.rows.filter(homes.rows.latitude.notnull(), homes.rows.longitude.notnull())
    rows = rows.select("customer_id", "latitude", "longitude", "x", "y", "z")
    own = ibis.memtable(homes.own[["store_id", "latitude", "longitude"]])
    stores = places.compass(own, "store_id", "longitude").rename(store_longitude="longitude")
    joined = homes.visits.inner_join(rows, "customer_id").inner_join(stores, "store_id")
    turns = ((joined.longitude - joined.store_longitude) / 360 + 0.5).floor()
    heavy: Any = 1.0 if weight == "customers" else joined[weight].cast("float64").clip(lower=0.0)
    found = joined.select(
        "store_id", "customer_id", "latitude", longitude=joined.longitude - 360 * turns,
        km=places.kilometres(joined), weight=heavy,
    )  # fmt: skip
    return homes.shop.landed(found, "distances")


def decay(homes: Homes, *, band_km: float = 1.0, bands: int = 10) -> Decay:
    """Tell which share of the customers in each band of distance buys at each own store.

    Parameters
    ----------
    band_km : float, width of a band, in km
    bands : int, how many; who lives farther is the last

    Raises
    ------
    DataError where receipts name no store; UsageError for arguments out of range
    """
    import ibis
    import pandas as pd

    tables.check_range("band_km", band_km, 0.1, 1_000)
    if type(bands) is not int or not 1 <= bands <= 100:
        raise tables.UsageError(f"bands is {bands!r}; it must be a whole number from 1 to 100.")
    near = pairs(homes)
    bought = near.group_by("store_id", band=_band(near.km, band_km, bands)).aggregate(
        bought=near.count()
    )
    located = homes.rows.filter(homes.rows.latitude.notnull(), homes.rows.longitude.notnull())
    located = located.select("x", "y", "z")
    own = ibis.memtable(homes.own[["store_id", "latitude", "longitude"]])
    around = located.cross_join(places.compass(own, "store_id"))
    # Most of those who live too far need no arc sine; who is left out here is counted below.
    height = around.x * around.up_x + around.y * around.up_y + around.z * around.up_z
    around = around.filter(
        height > math.cos(min(math.pi, 1.01 * band_km * bands / places.EARTH_KM))
    )
    around = around.select("store_id", km=places.kilometres(around))
    living = around.group_by("store_id", band=_band(around.km, band_km, bands)).aggregate(
        customers=around.count()
    )
    everyone = int(located.count().to_pyarrow().as_py())
    grid = homes.own[["store_id", "name"]].merge(
        pd.DataFrame({"band": range(bands + 1)}), how="cross"
    )
    for counts in (living, bought):
        grid = grid.merge(counts.to_pandas(), "left", on=["store_id", "band"], validate="1:1")
    grid[["customers", "bought"]] = grid[["customers", "bought"]].fillna(0).astype(int)
    inside = grid[grid["band"] < bands].groupby("store_id")["customers"].sum()
    last = grid["band"] == bands
    grid.loc[last, "customers"] = everyone - grid.loc[last, "store_id"].map(inside)
    rows = _with_shares(grid, band_km, bands)
    shown = _bands_shown(rows, homes.k)
    half = [
        (store, name, _half_km(shown[shown["store_id"] == store]))
        for store, name in homes.own[["store_id", "name"]].itertuples(index=False)
    ]
    stores = pd.DataFrame(half, columns=["store_id", "name", "half_km"])
    return Decay(rows, stores, homes.days, homes.k, homes.numbers)


def _band(km: ir.FloatingColumn, band_km: float, bands: int) -> ir.IntegerColumn:
    """Return the number of the band, the last for all that is farther."""
    band: Any = (km / band_km).floor().clip(upper=float(bands)).cast("int64")
    return band


def _with_shares(grid: pd.DataFrame, band_km: float, bands: int) -> pd.DataFrame:
    """Return the rows of `Decay` from store_id, name, band, customers, bought."""
    rows = grid[["store_id", "name"]].copy()
    rows["from_km"] = grid["band"] * band_km
    rows["to_km"] = ((grid["band"] + 1) * band_km).where(grid["band"] < bands, math.inf)
    rows[["customers", "bought"]] = grid[["customers", "bought"]]
    rows["share"] = grid["bought"] / grid["customers"].where(grid["customers"] > 0)
    ends = [
        effects.wilson(bought, lived) if lived else (math.nan, math.nan)
        for lived, bought in grid[["customers", "bought"]].itertuples(index=False)
    ]
    rows["low"], rows["high"] = zip(*ends, strict=True)
    return rows


def _bands_shown(rows: pd.DataFrame, k: int) -> pd.DataFrame:
    """Return what of the bands of each store may be told; see `Decay.shown`."""
    import numpy as np
    import pandas as pd

    counts = ["customers", "bought", "rest"]
    rest = rows.assign(rest=rows["customers"] - rows["bought"])
    secret = pd.concat(
        pd.Series(results.hidden(one, counts=counts, k=k).to_numpy(), index=one.index)
        for _, one in rest.groupby("store_id", sort=False)
    )
    found = rows.copy()
    figures = ["customers", "bought", "share", "low", "high"]
    found[figures] = found[figures].astype(float).mask(secret, axis=0)
    found["state"] = np.select(
        [secret, rows["customers"] == 0, rows["bought"] == 0], ["hidden", "no data", "zero"], "told"
    )
    return found


def _half_km(shown: pd.DataFrame) -> float:
    """Return with how many km the share halves, weighed by how many bought; nan if it cannot."""
    import numpy as np

    told = shown[(shown["bought"] > 0) & np.isfinite(shown["to_km"])]
    if len(told) < 3:
        return math.nan
    middle = (told["from_km"] + told["to_km"]) / 2
    # The logarithm of a share of x customers has a variance of about 1 / x.
    slope = np.polyfit(middle, np.log(told["share"]), 1, w=np.sqrt(told["bought"]))[0]
    return float(math.log(2) / -slope) if slope < 0 else math.nan
