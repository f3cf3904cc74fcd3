"""The districts of the city: how many customers each has, and who lives in any shape."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

from crmlab import coordinates, places, results, tables

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from crmlab.homes import Homes
    from crmlab.sources import Shop

    Array = np.ndarray[Any, np.dtype[Any]]

BATCH = 250_000  # customers looked up at a time
OVERLAP = 0.01  # share of the smaller district; less is a border drawn twice
OUTSIDE, NOWHERE = "outside all districts", "no coordinates"


@dataclass(frozen=True, eq=False)
class Districts:
    """The districts whose outline could be read, in the order of their ids.

    `frame`: district_id; name; population; purchasing_power, shop currency per person and year;
    shape, a shapely polygon in degrees, longitude first; area_km2, on the sphere. `notes` are
    sentences: what was left out, put right, or lies twice.
    """

    frame: pd.DataFrame
    notes: tuple[str, ...]
    numbers: results.Numbers = results.Numbers()

    @cached_property
    def flat(self) -> Array:
        """The shapes on a plane that keeps areas, in km."""
        flat: Array = places.equal_area(self.frame["shape"].to_numpy())
        return flat

    @cached_property
    def tree(self) -> Any:
        """The flat shapes, fast to find."""
        import shapely

        return shapely.STRtree(self.flat)

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        rows = self.frame.drop(columns="shape")
        n = self.numbers
        kinds: dict[str, Any] = {"population": n.number, "purchasing_power": n.number}
        kinds["area_km2"] = lambda km2: n.number(km2, 2)
        headings: dict[Any, str] = {
            "purchasing_power": f"{n.currency} per person and year", "area_km2": "km²",
        }  # fmt: skip
        return notes + results.html_table(rows, title="Districts", formats=kinds, headings=headings)


@dataclass(frozen=True)
class Population:
    """Who lives in a shape: population; purchasing_power, the mean of a person in shop currency a
    year, nan where no district tells; covered, the share of its area that districts tell of.
    """  # noqa: D205

    population: float
    purchasing_power: float
    covered: float


@dataclass(frozen=True, eq=False)
class InDistricts(results.Answer):
    """The customers of each district; exact, for the analyst alone. `shown` is for a page.

    `rows` has one row per district and two more without an id: outside all districts, and without
    coordinates. district_id, name, population, customers (who have ever bought), buyers (in the
    last `days`), members, new, spend (in these days, shop currency), spenders (whose spend is not
    0), largest (the most that one of them spent), penetration (customers per inhabitant). `twice`
    counts who lives in two districts or on a border: the first by id has them.
    """

    rows: pd.DataFrame
    twice: int
    notes: tuple[str, ...]
    days: int
    k: int
    numbers: results.Numbers

    def shown(self) -> pd.DataFrame:
        """Return what a page may show, one row for each of `rows`; what is not told is nan.

        Numbers of fewer than `k` customers are hidden, and of others as many as it takes that the
        totals of all districts do not tell them. `state` is "told", "hidden", "zero" or, where the
        population is not known, "no data".
        """
        import numpy as np

        rows = self.rows
        found = rows[["district_id", "name", "population"]].copy()
        # How many have no place is told elsewhere: they hide no district, and only themselves.
        nowhere = rows["name"].eq(NOWHERE) & rows["district_id"].isna()
        secret = results.hidden(
            rows.assign(nowhere=nowhere), counts=["customers"], k=self.k, last="nowhere"
        )
        inside = rows[~nowhere]

        def hides(part: pd.DataFrame, counts: list[str], **largest: str) -> pd.Series[bool]:
            found = results.hidden(part, counts=counts, k=self.k, largest=largest)
            return secret | found.reindex(rows.index, fill_value=True)

        found["customers"] = rows["customers"].astype(float).mask(secret)
        found["penetration"] = rows["penetration"].mask(secret)
        for name in ("members", "new"):
            found[name] = math.nan
            if rows[name].notna().all():
                part = inside.assign(rest=inside["customers"] - inside[name])
                few = hides(part, ["customers", name, "rest"])
                found[name] = rows[name].astype(float).mask(few)
        few = hides(inside, ["customers", "spenders"], spend="largest")
        found["spend"] = rows["spend"].mask(few)
        unknown = rows["district_id"].notna() & ~(rows["population"] > 0)
        choices = [("hidden", secret), ("zero", rows["customers"] == 0), ("no data", unknown)]
        found["state"] = np.select([which for _, which in choices],
                                   [state for state, _ in choices], "told")  # fmt: skip
        return found

    @property
    def verdict(self) -> str:
        """Where the shop is strong, and how many customers live elsewhere."""
        n, rows = self.numbers, self.shown()
        told = rows[rows["district_id"].notna() & rows["penetration"].notna()]
        words = [f"The customers of {len(rows) - 2} districts."]
        if len(told):
            best, least = (told.loc[told["penetration"].agg(end)] for end in ("idxmax", "idxmin"))
            words = [
                f"Of the districts that can be told, {best['name']} has the most customers per "
                f"inhabitant, {n.percent(best['penetration'])}, and {least['name']} the fewest, "
                f"{n.percent(least['penetration'])}."
            ]
        for name in (OUTSIDE, NOWHERE):
            count = rows.loc[rows["district_id"].isna() & (rows["name"] == name), "customers"]
            if count.iloc[0] > 0:
                words.append(f"{n.number(count.iloc[0])} customers: {name}.")
        if hidden := int((rows["state"] == "hidden").sum()):
            words.append(
                f"{n.number(hidden)} rows are hidden: they have fewer than {self.k} customers, or "
                "would tell of one that has."
            )
        return " ".join(words)

    def _repr_html_(self) -> str:
        n, shown = self.numbers, self.shown().drop(columns=["district_id", "state"])
        kinds: dict[str, Any] = dict.fromkeys(("population", "customers", "members", "new"))
        kinds = {name: n.number for name in kinds}
        kinds |= {"penetration": n.percent, "spend": lambda money: n.money(money, 0)}
        notes = [self.verdict, *self.notes]
        if self.twice:
            said = n.number(self.twice) if self.twice >= self.k else f"fewer than {self.k}"
            notes.append(
                f"On a border or in two districts: {said} customers, counted in the first by id."
            )
        table = results.html_table(
            shown, title=f"Customers by district; spend of the last {self.days} days", formats=kinds
        )
        return "".join(f"<p>{escape(note)}</p>" for note in notes) + table


def of(shop: Shop) -> Districts:
    """Read the outlines of the districts.

    A geometry that crosses itself is put right; what is no area on the globe is left out, counted
    and named.

    Raises
    ------
    DataError without a table of districts, or where none of them has an outline that can be used
    """
    import numpy as np
    import pandas as pd
    import shapely

    if not shop.has("districts"):
        raise tables.DataError(
            f"Shop '{shop.id}' has no table districts: put the city's districts beside the other "
            "tables as districts.geojson, with district_id and population."
        )
    try:
        frame = shop.table("districts").to_pandas()
    except tables.DataError as error:
        raise tables.DataError(
            f"The table districts of shop '{shop.id}' cannot be read; `crmlab check {shop.id}` "
            "says why."
        ) from error
    if "geometry" not in frame.columns:
        raise tables.DataError(
            f"The table districts of shop '{shop.id}' has no column geometry, the outline of each "
            "as GeoJSON in degrees."
        )
    wanted = ["district_id", "name", "population", "purchasing_power", "geometry"]
    frame = frame.reindex(columns=wanted).sort_values("district_id", ignore_index=True)
    frame["name"] = frame["name"].astype(object).where(frame["name"].notna(), frame["district_id"])
    for name in ("population", "purchasing_power"):
        frame[name] = pd.to_numeric(frame[name]).astype(float)
    given = frame.pop("geometry")
    texts = np.array([text if isinstance(text, str) else "" for text in given], dtype=object)
    shapes = shapely.force_2d(shapely.from_geojson(texts, on_invalid="ignore"))
    broken = shapely.is_geometry(shapes) & ~shapely.is_valid(shapes)
    faults = _faults(shapes, shop)
    usable = np.ones(len(frame), dtype=bool)
    notes = []
    for why, which in faults.items():
        which &= usable
        usable &= ~which
        if which.any():
            notes.append(_named(frame["district_id"][which], f"left out: {why}"))
    if not usable.any():
        raise tables.DataError(
            f"None of the {len(frame)} districts of shop '{shop.id}' can be used. "
            + " ".join(notes)
            + " GeoJSON has polygons in degrees, longitude first."
        )
    if (broken & usable).any():
        notes.append(_named(frame["district_id"][broken & usable], "an outline crossed itself"))
    frame = frame.assign(shape=_repaired(shapes))[usable].reset_index(drop=True)
    frame["area_km2"] = shapely.area(places.equal_area(frame["shape"].to_numpy()))
    found = Districts(frame, tuple(notes), shop.numbers)
    return replace(found, notes=(*notes, *_overlaps(found)))


def _repaired(shapes: Array) -> Array:
    """Return the shapes as valid polygons; lines and points in them have no area and go."""
    import shapely

    repaired: Array = shapely.make_valid(shapes, method="structure", keep_collapsed=False)
    return repaired


def _faults(shapes: Array, shop: Shop) -> dict[str, Array]:
    """Tell of each shape, by what can be wrong with it, whether it is; the worst first."""
    import numpy as np
    import shapely

    kind = shapely.get_type_id(shapes)
    polygon = (kind == shapely.GeometryType.POLYGON) | (kind == shapely.GeometryType.MULTIPOLYGON)
    area = np.zeros(len(shapes))
    area[polygon] = shapely.area(_repaired(shapes[polygon]))
    bounds = shapely.bounds(shapes)
    with np.errstate(invalid="ignore"):
        out = (np.abs(bounds[:, [0, 2]]) > 180).any(1) | (np.abs(bounds[:, [1, 3]]) > 90).any(1)
    middle = np.nan_to_num(np.stack([bounds[:, [1, 3]].mean(1), bounds[:, [0, 2]].mean(1)], axis=1))
    near = np.empty((0, 2))
    if shop.has("stores") and {"latitude", "longitude"} <= {*shop.table("stores").columns}:
        near = shop.table("stores").select("latitude", "longitude").to_pandas().dropna().to_numpy()
    return {
        "no outline that can be read as GeoJSON": shapely.is_missing(shapes),
        "no polygon": ~polygon,
        "degrees out of range": out,
        "an outline without area": ~(area > 0),
        "latitude and longitude swapped, or those of the stores": coordinates.swapped_places(
            middle, near
        ),
    }


def _named(ids: pd.Series[str], what: str) -> str:
    """Say of how many districts something is true, and name the first."""
    names = ", ".join(ids.iloc[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
    return f"{len(ids)} {'districts' if len(ids) > 1 else 'district'}, {what}: {names}."


def _overlaps(districts: Districts) -> list[str]:
    """Return a sentence on districts that lie on each other, if some do."""
    import numpy as np
    import shapely

    one, other = districts.tree.query(districts.flat, predicate="intersects")
    one, other = one[one < other], other[one < other]
    area = shapely.area(districts.flat)
    shared = shapely.area(shapely.intersection(districts.flat[one], districts.flat[other]))
    twice = np.flatnonzero(shared > OVERLAP * np.minimum(area[one], area[other]))
    if not len(twice):
        return []
    ids = districts.frame["district_id"]
    first = min((ids[one[pair]], ids[other[pair]]) for pair in twice)
    pairs = "pair of districts lies" if len(twice) == 1 else "pairs of districts lie"
    return [
        f"{len(twice)} {pairs} on each other, such as {' and '.join(first)}: who lives in both is "
        "counted in the first by id, and the population of what they share twice."
    ]


def customers(homes: Homes, districts: Districts) -> InDistricts:
    """Count the customers of each district, each in the polygon that their place lies in."""
    import numpy as np
    import pandas as pd
    import shapely

    shapes = districts.frame["shape"].to_numpy()
    shapely.prepare(shapes)
    names = ["customers", "buyers", "members", "new", "spend", "spenders"]
    rows = homes.rows
    rows = rows.select(
        "latitude", "longitude", "spend",
        customers=True, buyers=rows.bought, members=rows.member.fill_null(False),
        new=rows.new.fill_null(False), spenders=rows.spend != 0,
    )  # fmt: skip
    cells = len(shapes) + 2  # the last two: outside all, and without coordinates
    sums, largest, twice = np.zeros((len(names), cells)), np.zeros(cells), 0
    for batch in rows.to_pyarrow().to_batches(max_chunksize=BATCH):
        columns = batch.to_pandas()
        place, double = _first(
            shapes, columns["longitude"].to_numpy(), columns["latitude"].to_numpy()
        )
        twice += double
        for number, name in enumerate(names):
            sums[number] += np.bincount(place, columns[name].to_numpy(), minlength=cells)
        np.maximum.at(largest, place, columns["spend"].abs().to_numpy())
    about = districts.frame[["district_id", "name", "population"]]
    about = pd.concat([about, pd.DataFrame({"name": [OUTSIDE, NOWHERE]})], ignore_index=True)
    found = about.assign(**dict(zip(names, sums, strict=True)), largest=largest)
    whole = ["customers", "buyers", "members", "new", "spenders"]
    found = found.astype(dict.fromkeys(whole, int))
    if "member" not in homes.has:
        found["members"] = math.nan
    known = found["population"].where(found["population"] > 0)
    found["penetration"] = found["customers"] / known
    return InDistricts(found, twice, districts.notes, homes.days, homes.k, homes.numbers)


def _first(shapes: Array, longitude: Array, latitude: Array) -> tuple[Array, int]:
    """Return the number of the first shape around each place, and how many places have several.

    Places in none have the number after the last shape, those without coordinates the next.
    """
    import numpy as np
    import shapely

    order = np.argsort(longitude, kind="stable")
    east, north = longitude[order], latitude[order]
    found = np.full(len(order), len(shapes))
    several = np.zeros(len(order), dtype=bool)
    bounds = shapely.bounds(shapes)
    starts = np.searchsorted(east, bounds[:, 0], side="left")
    ends = np.searchsorted(east, bounds[:, 2], side="right")
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        rows = slice(start, end)
        high = (north[rows] >= bounds[number, 1]) & (north[rows] <= bounds[number, 3])
        near = start + np.flatnonzero(high)
        inside = near[shapely.intersects_xy(shapes[number], east[near], north[near])]
        free = found[inside] == len(shapes)
        found[inside[free]] = number
        several[inside[~free]] = True
    found[np.isnan(east) | np.isnan(north)] = len(shapes) + 1
    answer = np.empty_like(found)
    answer[order] = found
    return answer, int(several.sum())


def population_of(districts: Districts, shape: Any) -> Population:
    """Return who lives in a shape, by its share of each district's area.

    The population is taken as even within a district: a shape smaller than a district is a guess.

    Parameters
    ----------
    shape : a shapely polygon, or GeoJSON as a dict such as `places.cell_shape`, in degrees; it may
        go past 180 degrees
    """
    import numpy as np
    import shapely
    from shapely import affinity, geometry

    one = geometry.shape(shape) if isinstance(shape, dict) else shape
    west, _, east, _ = one.bounds
    turns = [0] + [360] * (west < -180) + [-360] * (east > 180)
    flat = places.equal_area(
        np.array([affinity.translate(one, xoff=turn) for turn in turns], dtype=object)
    )
    frame = districts.frame
    people, power = frame["population"].to_numpy(), frame["purchasing_power"].to_numpy()
    which, found = districts.tree.query(flat, predicate="intersects")
    shared = shapely.area(shapely.intersection(flat[which], districts.flat[found]))
    told = ~np.isnan(people[found])
    living = np.where(told, people[found] * shared / shapely.area(districts.flat[found]), 0.0)
    rich = ~np.isnan(power[found]) & (living > 0)
    spent = float((living * np.where(rich, power[found], 0.0)).sum())
    area = float(shapely.area(flat[0]))
    return Population(
        population=float(living.sum()),
        purchasing_power=spent / float(living[rich].sum()) if rich.any() else math.nan,
        covered=min(1.0, float(shared[told].sum()) / area) if area else math.nan,
    )
