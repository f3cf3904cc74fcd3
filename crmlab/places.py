"""Distance and direction on the globe: rings and sectors around a place, squares of a grid.

The earth is a sphere here. Around Kyiv that is at most 62 m from the WGS84 ellipsoid within 20 km.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from crmlab import tables

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import numpy as np
    import pandas as pd

    Array = np.ndarray[Any, np.dtype[Any]]

EARTH_KM = 6371.0088  # the mean radius, as the International Union of Geodesy has it
KM_PER_DEGREE = EARTH_KM * math.pi / 180
COMPASS = ("N", "NNE", "NE", "ENE", "E", "ESE", "SE", "SSE",
           "S", "SSW", "SW", "WSW", "W", "WNW", "NW", "NNW")  # fmt: skip


def sector_names(sectors: int) -> list[str]:
    """Return the winds clockwise from north.

    >>> sector_names(8)
    ['N', 'NE', 'E', 'SE', 'S', 'SW', 'W', 'NW']
    """
    if type(sectors) is not int or sectors not in (4, 8, 16):
        raise tables.UsageError(f"sectors is {sectors!r}; it must be 4, 8 or 16.")
    return list(COMPASS[:: 16 // sectors])


def rings(rings_km: Sequence[float] | str) -> tuple[float, ...]:
    """Read the outer radii of the rings, in km.

    >>> rings("5, 10, 20")
    (5.0, 10.0, 20.0)
    """
    given = rings_km.split(",") if isinstance(rings_km, str) else rings_km
    try:
        found = tuple(float(radius) for radius in given)
    except (TypeError, ValueError):
        found = ()
    rises = all(a < b for a, b in zip((0.0, *found), found, strict=False))
    if not 1 <= len(found) <= 10 or not rises or found[-1] > 1_000:
        raise tables.UsageError(
            f"rings_km is {rings_km!r}; it must be up to ten rising radii in km such as 5, 10, 20."
        )
    return found


def on_sphere(rows: ir.Table) -> ir.Table:
    """Add x, y, z, the unit vector of `latitude` and `longitude` in degrees."""
    north, east = rows.latitude.radians(), rows.longitude.radians()
    return rows.select(
        *rows.columns, x=north.cos() * east.cos(), y=north.cos() * east.sin(), z=north.sin()
    )


def compass(rows: ir.Table, *names: str) -> ir.Table:
    """Return places as vectors: `names`, and by each place up, east and north in x, y, z."""
    north, east = rows.latitude.radians(), rows.longitude.radians()
    return rows.select(
        *names,
        up_x=north.cos() * east.cos(), up_y=north.cos() * east.sin(), up_z=north.sin(),
        east_x=-east.sin(), east_y=east.cos(),
        north_x=-north.sin() * east.cos(), north_y=-north.sin() * east.sin(), north_z=north.cos(),
    )  # fmt: skip


def ring_and_sector(
    pairs: ir.Table, *, rings_km: Sequence[float], sectors: int
) -> tuple[ir.IntegerColumn, ir.IntegerColumn]:
    """Return in which ring, from 0, and sector, clockwise from north, one place lies of another.

    Additions, products and comparisons only: a ring ends where the cosine of the angle between
    both falls below that of its radius; a sector where, within a quarter of the compass, the way
    across over the way along passes a tangent. The direction is the initial bearing. `pairs` has
    the columns of `on_sphere` and of `compass`. Outside all rings the ring is their number; at the
    place itself the sector is 0.
    """
    import ibis

    p = pairs
    height = p.x * p.up_x + p.y * p.up_y + p.z * p.up_z
    east = p.x * p.east_x + p.y * p.east_y
    north = p.x * p.north_x + p.y * p.north_y + p.z * p.north_z
    ends = [math.cos(radius / EARTH_KM) for radius in rings_km]
    ring = ibis.cases(
        *((height >= end, number) for number, end in enumerate(ends)), else_=len(ends)
    )
    # How many ends of sectors lie between the direction and north or south, whichever is nearer
    # by a quarter of the compass; measured the same way in all four.
    tangents = [math.tan((end + 0.5) * 2 * math.pi / sectors) for end in range(sectors // 4)]
    passed = ibis.cases(
        *((east.abs() <= north.abs() * tan, number) for number, tan in enumerate(tangents)),
        else_=len(tangents),
    )
    half = sectors // 2
    sector = ibis.cases(
        ((east >= 0) & (north >= 0), passed),
        (east >= 0, half - passed),
        (north < 0, half + passed),
        (passed == 0, 0),
        else_=sectors - passed,
    )
    return ring.cast("int8"), sector.cast("int8")


def kilometres(pairs: ir.Table) -> ir.FloatingColumn:
    """Return the distance of pairs with the columns of `on_sphere` and of `compass`, in km.

    By the chord between both, which keeps its digits where they are near, as haversine does.
    """
    p = pairs
    return arc(squared_chord((p.x, p.y, p.z), (p.up_x, p.up_y, p.up_z)))


def squared_chord(one: Sequence[Any], other: Sequence[Any]) -> Any:
    """Return the square of the chord between unit vectors, of columns or of numbers."""
    # Products: a power takes the engine ten times as long.
    x, y, z = ((a - b) * (a - b) for a, b in zip(one, other, strict=True))
    return x + y + z


def arc(squared_chord: Any) -> Any:
    """Return the distance in km that belongs to the square of a chord of the unit sphere."""
    return 2 * EARTH_KM * (squared_chord.sqrt() / 2).clip(upper=1.0).asin()


def kilometres_between(one: Array, other: Array) -> Array:
    """Return the distance of each place of `one`, a row, from each of `other`, a column, in km.

    Both have a row per place: latitude and longitude in degrees. For tables as small as stores or
    districts; customers are measured by `kilometres`.
    """
    import numpy as np

    radians = (np.radians(np.asarray(side, float)).T for side in (one, other))
    x, y = (
        np.stack([np.cos(n) * np.cos(e), np.cos(n) * np.sin(e), np.sin(n)], axis=1)
        for n, e in radians
    )
    chord = np.linalg.norm(x[:, None, :] - y[None, :, :], axis=2)
    distance: Array = 2 * EARTH_KM * np.arcsin(np.clip(chord / 2, 0, 1))
    return distance


def square(rows: ir.Table, *, side_km: float, middle: float) -> tuple[Any, Any]:
    """Return row and column of the square of a grid in which each `latitude`, `longitude` lies.

    Rows are as high as `side_km`, columns as wide at the latitude `middle`.
    """
    up, along = steps(side_km, middle)
    return (rows.latitude / up).floor().cast("int64"), (rows.longitude / along).floor().cast(
        "int64"
    )


def steps(side_km: float, middle: float) -> tuple[float, float]:
    """Return the height and width of a square of the grid, in degrees."""
    return side_km / KM_PER_DEGREE, side_km / KM_PER_DEGREE / max(
        0.01, math.cos(math.radians(middle))
    )


def square_shape(row: int, column: int, *, side_km: float, middle: float) -> dict[str, Any]:
    """Return a square of the grid as a GeoJSON geometry."""
    up, along = steps(side_km, middle)
    south, north = row * up, (row + 1) * up
    west, east = column * along, (column + 1) * along
    corners = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Polygon", "coordinates": [corners]}


def towards(latitude: float, longitude: float, bearing: float, km: float) -> tuple[float, float]:
    """Return longitude and latitude of what lies so far in a direction, in degrees from north.

    The longitude goes on past 180 degrees, so that shapes around a place hold together.
    """
    north, far, turn = math.radians(latitude), km / EARTH_KM, math.radians(bearing)
    sine = math.sin(north) * math.cos(far) + math.cos(north) * math.sin(far) * math.cos(turn)
    up = math.asin(max(-1.0, min(1.0, sine)))
    along = math.atan2(
        math.sin(turn) * math.sin(far) * math.cos(north),
        math.cos(far) - math.sin(north) * math.sin(up),
    )
    return longitude + math.degrees(along), math.degrees(up)


def cell_shape(
    latitude: float,
    longitude: float,
    *,
    inner_km: float,
    outer_km: float,
    sector: int,
    sectors: int,
) -> dict[str, Any]:
    """Return one ring x sector cell around a place as a GeoJSON geometry; `sectors=1`: a ring."""
    wide = 360 / sectors
    begin = (sector - 0.5) * wide
    # A corner every five degrees of the circle is within .1 % of the radius.
    turns = [
        begin + wide * step / max(2, round(wide / 5)) for step in range(max(2, round(wide / 5)) + 1)
    ]
    outer = [[*towards(latitude, longitude, turn, outer_km)] for turn in turns]
    inner = [[*towards(latitude, longitude, turn, inner_km)] for turn in reversed(turns)]
    if sectors == 1:
        shells = [outer, inner] if inner_km else [outer]
        return {"type": "Polygon", "coordinates": [[*shell[:-1], shell[0]] for shell in shells]}
    shell = outer + (inner if inner_km else [[longitude, latitude]])
    return {"type": "Polygon", "coordinates": [[*shell, shell[0]]]}


def geojson(rows: pd.DataFrame) -> str:
    """Return the rows, each with a GeoJSON `geometry`, as a collection of features."""
    import json

    about = json.loads(rows.drop(columns="geometry").to_json(orient="records"))
    features = [
        {"type": "Feature", "properties": properties, "geometry": geometry}
        for properties, geometry in zip(about, rows["geometry"], strict=True)
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}, ensure_ascii=False)


def equal_area(shapes: Any) -> Any:
    """Project shapely shapes in degrees onto a plane in km that keeps every area.

    Lambert's cylindrical projection (1772), x = R longitude, y = R sin(latitude): forms are
    stretched away from the equator, areas and shares of areas are those on the sphere. Around
    Kyiv these are within .3 % of those on the WGS84 ellipsoid.
    """
    import numpy as np
    import shapely

    def project(degrees: Array) -> Array:
        east, north = np.radians(degrees).T
        return EARTH_KM * np.stack([east, np.sin(north)], axis=1)

    return shapely.transform(shapes, project)
