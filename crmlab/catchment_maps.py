"""What the map of the catchment shows: density, districts, cells, rings, trade areas, stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crmlab import maps, places, tables

if TYPE_CHECKING:
    import pandas as pd

    from crmlab.catchment import Cells
    from crmlab.districts import Districts, InDistricts
    from crmlab.squares import Squares
    from crmlab.trade_areas import TradeAreas

NOT_TOLD = {
    "hidden": "hidden for privacy",
    "zero": "no customers",
    "no data": "not known",
}


def catchment(
    area: Cells,
    *,
    squares: Squares | None = None,
    trade: TradeAreas | None = None,
    land: Districts | None = None,
    living: InDistricts | None = None,
    store_id: str = "",
    tiles: str | None = None,
    attribution: str | None = None,
) -> maps.Map:
    """Draw where customers live around the stores; with `store_id`, its rings and sectors too.

    Parameters
    ----------
    squares, trade, land, living : what is known of density, trade areas, districts and their
        customers; None, or what `stocks.attempt` left out, is left out here too
    tiles, attribution : as of `maps.draw`

    Raises
    ------
    DataError where a store lies so near a pole that no map shows it
    """
    if (area.homes.stores["latitude"].abs() > maps.LARGEST_LATITUDE).any():
        raise tables.DataError("A store lies so near a pole that no map shows it.")
    n, layers = area.numbers, []
    if squares and len(squares.rows):
        layers.append(_density(squares))
    if land and living:
        layers.append(_districts(land, living, shown=not layers))
    if store_id:
        layers += _around(area.of(store_id), shown=not layers)
    if trade and len(trade.hulls):
        layers.append(_hulls(trade, store_id))
    stores = area.homes.stores
    shops = [
        maps.Place(store.name, store.latitude, store.longitude, bool(store.own))
        for store in stores.itertuples()
    ]
    one = area.of(store_id) if store_id else area
    notes = [squares.verdict if squares else "", one.hidden if store_id else ""]
    ours = int(stores["own"].sum())
    return maps.draw(
        "Where do our customers live?",
        f"Shops of ours: {n.number(ours)}; of others: {n.number(len(stores) - ours)}. "
        f"{one.verdict}",
        layers=layers,
        places=shops,
        numbers=n,
        note=" ".join(filter(None, notes)),
        tiles=tiles,
        attribution=attribution,
    )


def _density(squares: Squares) -> maps.Layer:
    # Without words of their own they are few shapes, each of all squares of a shade.
    shapes = [maps.Shape(row.geometry, "", row.density) for row in squares.rows.itertuples()]
    n = squares.numbers
    few = squares.rows["density"].max() < 20  # then whole numbers would say little
    return maps.Layer("Density of customers", shapes, "Customers per square km",
                      printed=lambda x: n.number(x, 2 if few and x < 1 else int(few)))  # fmt: skip


def _districts(land: Districts, living: InDistricts, *, shown: bool) -> maps.Layer:
    """Shade the districts by the customers per inhabitant."""
    import shapely

    n, told = living.numbers, living.shown().set_index("district_id")
    shapes = []
    for row in land.frame.itertuples():
        cell = told.loc[row.district_id]
        state: Any = "value" if cell["state"] == "told" else cell["state"]
        said = [str(row.name)]
        if row.population == row.population:
            said.append(f"{n.number(row.population)} people")
        if state == "value":
            said.append(f"{n.percent(cell['penetration'])} of them customers")
        value = cell["penetration"] if state == "value" else None
        outline = shapely.geometry.mapping(row.shape)
        shapes.append(maps.Shape(outline, "\n".join(said), value, state))
    return maps.Layer("Customers per inhabitant", shapes, "Customers per inhabitant",
                      printed=n.percent, shown=shown)  # fmt: skip


def _around(one: Cells, *, shown: bool) -> list[maps.Layer]:
    """Draw the rings and sectors of one store, shaded, and the rings alone."""
    n = one.numbers
    inside = one.rows[one.rows["sector"] >= 0]
    store_id = inside["store_id"].iloc[0]
    store = one.homes.own.set_index("store_id").loc[store_id]
    at = (float(store["latitude"]), float(store["longitude"]))
    cells = []
    for row in inside.itertuples():
        where = f"{row.direction}, {n.km(row.from_km)} to {n.km(row.to_km)} km"
        said = NOT_TOLD.get(row.state, f"{n.number(row.customers)} customers")
        shape = places.cell_shape(*at, inner_km=row.from_km, outer_km=row.to_km, sector=row.sector,
                                  sectors=one.sectors)  # fmt: skip
        value = row.customers if row.state == "value" else None
        cells.append(maps.Shape(shape, f"{where}\n{said}", value, row.state))
    rings = [
        maps.Shape(places.cell_shape(*at, inner_km=0, outer_km=radius, sector=0, sectors=1),
                   f"{n.km(radius)} km around {store['name']}")
        for radius in one.rings_km
    ]  # fmt: skip
    title = f"Rings and directions around {store['name']}"
    return [
        maps.Layer(title, cells, "Customers by ring and direction", shown=shown),
        maps.Layer("Rings", rings, colour="red"),
    ]


def _hulls(trade: TradeAreas, store_id: str) -> maps.Layer:
    """Outline where the closest customers of each store live, or of one."""
    import shapely

    n, share = trade.numbers, trade.shares[0]
    rows: pd.DataFrame = trade.hulls[trade.hulls["share"] == share]
    rows = rows[rows["store_id"] == store_id] if store_id else rows
    shapes = [
        maps.Shape(
            shapely.geometry.mapping(row.shape),
            f"{row.name}: {n.percent(share, 0)} of its {trade.weight} "
            f"within {n.number(row.km, 1)} km",
        )
        for row in rows.itertuples()
    ]
    return maps.Layer("Primary trade areas", shapes, colour="violet", dashed=True)
