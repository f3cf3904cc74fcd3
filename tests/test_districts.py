import json
import math

import numpy as np
import pytest

from crmlab import city, districts, homes, places, sources
from crmlab.tables import DataError
from tests.test_trade_areas import AS_OF, around, disc, store

KM = 1 / places.KM_PER_DEGREE  # of latitude, in degrees
EAST = KM / math.cos(math.radians(50.45))


def box(west, south, east, north):
    """Return a rectangle as GeoJSON; its sides are in km from 30.52 east, 50.45 north."""
    x, y = (30.52 + np.array([west, east]) * EAST), (50.45 + np.array([south, north]) * KM)
    corners = [[x[0], y[0]], [x[1], y[0]], [x[1], y[1]], [x[0], y[1]], [x[0], y[0]]]
    return {"type": "Polygon", "coordinates": [corners]}


def features(*shapes, **more):
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature", "geometry": shape,
                "properties": {"district_id": f"D{n}", "population": 1_000,
                               "purchasing_power": 100 * n} | more,
            }
            for n, shape in enumerate(shapes, start=1)
        ],
    }  # fmt: skip


def read(folder, given):
    """Write the districts beside a store, and read them."""
    (folder / "districts.geojson").write_text(json.dumps(given), encoding="utf-8")
    (folder / "stores.csv").write_text("store_id,latitude,longitude\nS1,50.45,30.52\n")
    (folder / "shop.toml").write_text("")
    return districts.of(sources.open_shop(folder / "shop.toml"))


def spots(*counts):
    """Return customers: so many in the middle of each square of 1 km, from west to east."""
    columns = {"customer_id": [], "latitude": [], "longitude": []}
    for place, count in enumerate(counts):
        columns["customer_id"] += [f"p{place}-{n:03}" for n in range(count)]
        columns["latitude"] += [50.45 + 0.5 * KM] * count
        columns["longitude"] += [30.52 + (place + 0.5) * EAST] * count
    return columns


@pytest.fixture(scope="module")
def city_of_demo(home):
    base = homes.of_customers(sources.open_shop(home / "data/demo/shop.toml"), as_of=AS_OF)
    return base, districts.of(base.shop)


def test_every_customer_of_the_demo_shop_is_in_the_square_that_arithmetic_says(city_of_demo):
    base, found = city_of_demo
    assert found.notes == ()
    assert len(found.frame) == 36
    assert found.frame["area_km2"].to_numpy() == pytest.approx(4, rel=0.005)
    rows = base.rows.to_pandas()
    east = np.floor(((rows["longitude"] - city.LONGITUDE) * city.KM_EAST + 6) / 2).astype(int)
    north = np.floor(((rows["latitude"] - city.LATITUDE) * city.KM + 6) / 2).astype(int)
    true = rows.groupby("D" + (east + 6 * north + 1).astype(str).str.zfill(2)).agg(
        customers=("customer_id", "size"), buyers=("bought", "sum"), members=("member", "sum"),
        new=("new", "sum"), spend=("spend", "sum"), largest=("spend", lambda one: one.abs().max()),
    )  # fmt: skip
    counted = districts.customers(base, found)
    table = counted.to_frame()
    assert table["customers"].sum() == len(rows)
    assert table["customers"].iloc[-2:].tolist() == [0, 0]
    table = table[table["district_id"].notna()].set_index("district_id")
    for name in true.columns:
        assert table[name].to_numpy() == pytest.approx(true[name].to_numpy())
    assert (table["penetration"] == table["customers"] / table["population"]).all()
    assert counted.twice == 0
    best = table["penetration"].idxmax()
    assert table.loc[best, "name"] in counted.verdict and "most customers per" in counted.verdict
    for text in (counted._repr_html_(), found._repr_html_()):
        assert "POLYGON" not in text and "48.6" not in text


def test_rings_and_sectors_add_up_to_the_population_of_what_they_cover(city_of_demo):
    _, found = city_of_demo

    def of(inner, outer, sector=0, sectors=1):
        cell = places.cell_shape(48.62, 23.14, inner_km=inner, outer_km=outer, sector=sector,
                                 sectors=sectors)  # fmt: skip
        return districts.population_of(found, cell)

    cells = [
        of(inner, outer, sector, 8)
        for inner, outer in ((0, 2), (2, 5), (5, 20))
        for sector in range(8)
    ]
    everyone = found.frame["population"].sum()
    assert sum(cell.population for cell in cells) == pytest.approx(everyone, rel=1e-3)
    assert of(0, 5).population == pytest.approx(sum(c.population for c in cells[:16]), rel=2e-3)
    assert of(0, 5).covered == pytest.approx(1, abs=1e-6)
    assert of(0, 20).covered == pytest.approx(144 / (math.pi * 400), rel=0.01)
    whole = of(0, 20)
    frame = found.frame
    mean = (frame["population"] * frame["purchasing_power"]).sum() / everyone
    assert whole.purchasing_power == pytest.approx(mean)
    nobody = districts.population_of(found, box(0, 0, 1, 1))
    assert (nobody.population, nobody.covered) == (0, 0)
    assert math.isnan(nobody.purchasing_power)


def test_a_shape_takes_its_share_of_each_district_and_what_is_not_known_is_not_covered(tmp_path):
    given = features(box(0, 0, 2, 2), box(2, 0, 4, 2), box(4, 0, 6, 2))
    given["features"][2]["properties"]["population"] = None
    found = read(tmp_path, given)
    half = districts.population_of(found, box(1, 0, 5, 2))
    assert half.population == pytest.approx(500 + 1_000)
    assert half.purchasing_power == pytest.approx((500 * 100 + 1_000 * 200) / 1_500)
    assert half.covered == pytest.approx(0.75)
    # The same, a whole turn on: a ring beyond 180 degrees east is drawn like that.
    turned = box(1, 0, 5, 2)
    turned["coordinates"] = [[[east + 360, north] for east, north in turned["coordinates"][0]]]
    assert vars(districts.population_of(found, turned)) == pytest.approx(vars(half))


def test_what_is_no_area_on_the_globe_is_left_out_and_named(tmp_path):
    bow = box(10, 0, 12, 2)
    corners = bow["coordinates"][0]
    bow["coordinates"] = [[corners[0], corners[2], corners[1], corners[3], corners[0]]]
    swapped = box(0, 4, 1, 5)
    swapped["coordinates"] = [[[north, east] for east, north in swapped["coordinates"][0]]]
    metres = {"type": "Polygon", "coordinates": [[[3e6, 6e6], [3e6, 7e6], [4e6, 7e6], [3e6, 6e6]]]}
    line = {"type": "Polygon", "coordinates": [[[30, 50], [31, 51], [32, 52], [30, 50]]]}
    several = {
        "type": "MultiPolygon",
        "coordinates": [box(0, 0, 1, 1)["coordinates"], box(5, 0, 6, 1)["coordinates"]],
    }
    given = features(
        several, None, {"type": "Point", "coordinates": [30.5, 50.4]}, metres, line, swapped, bow,
        {"type": "Polygon", "coordinates": []}, {"type": "Polygon", "coordinates": [[[1, 2]]]},
    )  # fmt: skip
    found = read(tmp_path, given)
    assert found.frame["district_id"].tolist() == ["D1", "D7"]
    assert found.frame["area_km2"].to_numpy() == pytest.approx([2, 2], rel=0.005)
    assert found.notes == (
        "2 districts, left out: no outline that can be read as GeoJSON: D2, D9.",
        "1 district, left out: no polygon: D3.",
        "1 district, left out: degrees out of range: D4.",
        "2 districts, left out: an outline without area: D5, D8.",
        "1 district, left out: latitude and longitude swapped, or those of the stores: D6.",
        "1 district, an outline crossed itself: D7.",
    )
    with pytest.raises(DataError, match="None of the 2 districts .* longitude first"):
        read(tmp_path, features(swapped, metres))


def test_a_shop_without_districts_or_outlines_says_what_to_add(tmp_path):
    (tmp_path / "shop.toml").write_text("")
    with pytest.raises(DataError, match=r"districts\.geojson"):
        districts.of(sources.open_shop(tmp_path / "shop.toml"))
    (tmp_path / "districts.csv").write_text("district_id,population\nD1,5\n")
    with pytest.raises(DataError, match="no column geometry"):
        districts.of(sources.open_shop(tmp_path / "shop.toml"))


def test_who_lives_in_two_districts_is_counted_in_the_first_and_how_many_is_said(town, tmp_path):
    people = spots(30, 20, 40)
    base = town(people, [store()], {"customer_id": people["customer_id"]})
    found = read(tmp_path, features(box(0, 0, 2, 1), box(1, 0, 3, 1)))
    assert len(found.notes) == 1
    assert found.notes[0].startswith("1 pair of districts lies on each other, such as D1 and D2")
    counted = districts.customers(base, found)
    assert counted.rows["customers"].tolist() == [50, 40, 0, 0]
    assert counted.twice == 20
    assert "in two districts: 20 customers" in counted._repr_html_()
    # Neighbours share a border, and a sliver that was drawn twice is no overlap.
    assert read(tmp_path, features(box(0, 0, 2, 1), box(1.99, 0, 4, 1))).notes == ()


def test_small_districts_are_hidden_with_another_and_zero_and_no_data_look_different(
    town, tmp_path
):
    people = spots(30, 4, 14, 0, 50, 12)
    for name in ("latitude", "longitude"):
        people[name] = [*people[name], *[math.nan] * 3]
    people["customer_id"] += ["nowhere1", "nowhere2", "nowhere3"]
    given = features(*(box(place, 0, place + 1, 1) for place in range(5)))
    given["features"][4]["properties"]["population"] = None
    base = town(people, [store()], {"customer_id": people["customer_id"]})
    counted = districts.customers(base, read(tmp_path, given))
    assert counted.rows["customers"].tolist() == [30, 4, 14, 0, 50, 12, 3]
    shown = counted.shown()
    # Four and three are hidden; seven would stand in the total, so the next smallest joins them.
    assert shown["state"].tolist() == [
        "told", "hidden", "told", "zero", "no data", "hidden", "hidden",
    ]  # fmt: skip
    for name in ("customers", "members", "new", "spend"):
        told = shown[name]
        assert told[shown["state"] == "hidden"].isna().all()
    left = counted.rows.loc[shown["customers"].isna(), "customers"].sum()
    assert left >= 10
    assert shown["penetration"].tolist()[:1] == [0.03] and math.isnan(shown["penetration"][4])
    assert shown["members"].isna().all()  # the shop has no programme
    assert "3 rows are hidden" in counted.verdict and "no coordinates" not in counted.verdict
    assert not any(f">{few}<" in counted._repr_html_() for few in (3, 4, 12))


def test_the_spend_of_a_district_that_one_customer_brings_is_hidden(town, tmp_path):
    people = spots(20, 20, 20)
    amounts = [10.0] * 60
    amounts[0] = 500.0
    base = town(people, [store()], {"customer_id": people["customer_id"], "amount": amounts})
    given = features(*(box(place, 0, place + 1, 1) for place in range(3)))
    shown = districts.customers(base, read(tmp_path, given)).shown()
    assert shown["customers"].tolist() == [20, 20, 20, 0, 0]
    # One brings 500 of 690, and still more than half with the next 200; of all 1,090 less.
    assert shown["spend"].iloc[:3].isna().all()
    assert shown["state"].tolist()[:3] == ["told"] * 3


def test_polygons_with_many_corners_hold_whom_their_formula_says(town, tmp_path):
    km, turn = disc(5, 5_000, 1)
    people = around(50.45, 30.52, km, turn)
    circle = [
        [*places.towards(50.45, 30.52, bearing / 10, 3)] for bearing in (*range(0, 3_600, 3), 0)
    ]
    star = {"type": "Polygon", "coordinates": [circle]}
    base = town(people, [store()], {"customer_id": people["customer_id"]})
    found = read(tmp_path, features(star))
    assert found.frame["area_km2"][0] == pytest.approx(math.pi * 9, rel=1e-3)
    counted = districts.customers(base, found).rows["customers"].tolist()
    assert abs(counted[0] - (km < 3).sum()) <= 1
    assert sum(counted) == 5_000
