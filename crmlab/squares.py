"""How densely customers live, in squares that are as large as their privacy needs."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from crmlab import places, results, tables

if TYPE_CHECKING:
    import pandas as pd

    from crmlab.homes import Homes

LEVELS = 4  # how often a square of too few customers is doubled
MOST = 3_000  # shapes on a map


@dataclass(frozen=True, eq=False)
class Squares(results.Answer):
    """Customers per square km, in squares of at least `k` customers.

    `rows`: row, column and level of the square, whose side is `side_km` times 2 to the level;
    customers; area_km2, without the smaller squares inside it that are told; density, customers per
    square km; geometry, a GeoJSON polygon. Larger squares come first: the smaller lie on them.
    `customers` of them are in these, and `left_out` live so far from others that they are in none.
    """

    rows: pd.DataFrame
    side_km: float
    middle: float
    customers: int
    left_out: int
    numbers: results.Numbers
    k: int

    @property
    def verdict(self) -> str:
        """Say what is drawn, and of how many customers it is not told where they live."""
        n = self.numbers
        if not len(self.rows):
            return f"Fewer than {self.k} customers live near one another: no square can be told."
        left = f" {n.number(self.left_out)} customers" if self.left_out >= self.k else (
            f" Fewer than {self.k} customers" if self.left_out else ""
        )  # fmt: skip
        side = n.number(self.side_km, 0 if self.side_km % 1 == 0 else 2)
        tail = f"{left} live too far from others to be shown." if left else ""
        count = f"{n.number(len(self.rows))} square{'s' * (len(self.rows) != 1)}"
        return (
            f"{n.number(self.customers)} customers in {count} of {side} km and more, each of at "
            f"least {self.k} customers.{tail}"
        )

    def shapes(self) -> pd.DataFrame:
        """Return the squares, each with its GeoJSON geometry."""
        return self.rows.copy()

    def _repr_html_(self) -> str:
        top = self.rows.nlargest(20, "density")[["customers", "area_km2", "density"]]
        n = self.numbers
        formats: dict[str, Any] = {
            "customers": n.number, "area_km2": lambda x: n.number(x, 1), "density": n.number
        }  # fmt: skip
        table = results.html_table(top, title="The densest squares", formats=formats)
        return f"<p>{escape(self.verdict)}</p>{table}"


def density(homes: Homes, *, side_km: float = 1.0) -> Squares:
    """Count customers by square; where a square has too few, it and its like join in a larger one.

    Raises
    ------
    DataError where no customer has coordinates
    """
    if not isinstance(side_km, (int, float)) or not 0.1 <= side_km <= 1_000:
        raise tables.UsageError(f"side_km is {side_km!r}; it must be from 0.1 to 1000 km.")
    rows = homes.rows.filter(homes.rows.x.notnull())
    middle = float(homes.own["latitude"].median())
    # Longitudes count from the stores, so that a town on the 180th meridian is one town.
    west = float(homes.own["longitude"].median()) - 180
    turned = rows.longitude - west
    turned = west + turned - 360 * (turned / 360).floor()
    rows = rows.mutate(longitude=turned)
    while True:
        row, column = places.square(rows, side_km=side_km, middle=middle)
        found = rows.group_by(row=row, column=column).aggregate(customers=rows.count())
        if int(found.count().to_pyarrow().as_py()) <= 20 * MOST:
            break
        side_km *= 2
    fine = found.to_pandas().sort_values(["row", "column"], ignore_index=True)
    if fine.empty:
        raise tables.DataError("No customer has a latitude and a longitude: no map can be drawn.")
    told, left = _grown(fine, homes.k)
    while len(told) > MOST:
        side_km *= 2
        fine = _doubled(fine)
        told, left = _grown(fine, homes.k)
    told["area_km2"] = told["free"] * side_km**2
    told["density"] = told["customers"] / told["area_km2"]
    told["geometry"] = [
        places.square_shape(one.row, one.column, side_km=side_km * 2**one.level, middle=middle)
        for one in told.itertuples()
    ]
    told["large"] = -told["level"]
    told = told.sort_values(["large", "row", "column"], ignore_index=True)
    inside = int(fine["customers"].sum()) - left
    told = told.drop(columns=["free", "large"])
    return Squares(told, side_km, middle, inside, left, homes.numbers, homes.k)


def _grown(fine: pd.DataFrame, k: int) -> tuple[pd.DataFrame, int]:
    """Tell squares of at least `k`; join the others, level by level; count who is left."""
    import pandas as pd

    rest, told = fine.assign(free=1.0), []
    for level in range(LEVELS):
        enough = rest["customers"] >= k
        told.append(rest[enough].assign(level=level))
        # What is told takes its area out of the square that it lies in.
        small = _doubled(rest[~enough].drop(columns="free"))
        taken = _taken(pd.concat(told), level)
        rest = small.merge(taken, how="left", on=["row", "column"]).fillna({"taken": 0.0})
        rest["free"] = 4.0 ** (level + 1) - rest.pop("taken")
    return pd.concat(told, ignore_index=True), int(rest["customers"].sum())


def _taken(told: pd.DataFrame, level: int) -> pd.DataFrame:
    """Return, by square of the next level, how much of it smaller told squares cover."""
    up = 2 ** (level + 1 - told["level"])
    at = told.assign(row=told["row"] // up, column=told["column"] // up, taken=told["free"])
    found: pd.DataFrame = at.groupby(["row", "column"], as_index=False)["taken"].sum()
    return found


def _doubled(squares: pd.DataFrame) -> pd.DataFrame:
    """Sum squares of twice the side."""
    found: pd.DataFrame = (
        squares.assign(row=squares["row"] // 2, column=squares["column"] // 2)
        .groupby(["row", "column"], as_index=False)["customers"]
        .sum()
    )
    return found
