"""Rings, sectors and squares around stores: against numpy, by published distances, by attack."""

import dataclasses
import math
import re
import shutil

import ibis
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linprog

from crmlab import (
    advertising,
    catchment,
    demo,
    homes,
    places,
    reports,
    results,
    sources,
    squares,
    trade_areas,
)
from crmlab.tables import DataError, UsageError
from tests.conftest import ROOT

AS_OF = "2025-12-31"
RINGS = (2.0, 5.0, 10.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("catchment")
    demo.shop(customers=3_000, seed=8, folder=made)
    return made


@pytest.fixture(scope="module")
def base(folder):
    return homes.of_customers(sources.open_shop(folder / "shop.toml"), as_of=AS_OF)


def as_rows(latitude, longitude, member=None, spend=None):
    n = len(latitude)
    frame = pd.DataFrame({
        "latitude": latitude, "longitude": longitude,
        "member": np.arange(n) % 2 == 0 if member is None else member,
        "spend": np.arange(n) % 7 + 0.25 if spend is None else spend,
        "points": np.arange(n) % 5 - 1.0})  # fmt: skip
    return places.on_sphere(ibis.memtable(frame))


def around(latitude, longitude, names=("S1",)):
    frame = pd.DataFrame({"store_id": names, "latitude": latitude, "longitude": longitude})
    return places.compass(ibis.memtable(frame), "store_id")


def kilometres(one, other):
    pairs = as_rows([one[0]], [one[1]]).cross_join(around([other[0]], [other[1]]))
    return float(pairs.select(km=places.kilometres(pairs)).to_pandas()["km"].iloc[0])


def test_distances_and_bearings_are_the_published_ones():
    # Rosetta Code's example with a radius of 6,371.0 km, and Veness's with its bearing.
    scale = places.EARTH_KM / 6371.0
    assert kilometres((36.12, -86.67), (33.94, -118.40)) == pytest.approx(
        2886.444442837983 * scale, abs=1e-6
    )
    here = (50 + 3 / 60 + 59 / 3600, -(5 + 42 / 60 + 53 / 3600))
    there = (58 + 38 / 60 + 38 / 3600, -(3 + 4 / 60 + 12 / 3600))
    assert kilometres(here, there) == pytest.approx(968.854 * scale, abs=1e-3)
    longitude, latitude = places.towards(*here, 9.1198, 968.854 * scale)
    assert (latitude, longitude) == pytest.approx(there, abs=1e-4)
    assert pytest.approx(111_195.08, abs=0.01) == 1000 * places.KM_PER_DEGREE
    assert 1000 * kilometres((50.45, 30), (50.45, 31)) == pytest.approx(70_803.08, abs=0.01)


def by_numpy(frame, stores, radii, sectors):
    """Haversine and the bearing's own formula, store by store."""
    found = []
    for name, at, along in stores:
        lat, lon, up, east = (
            np.radians(v) for v in (frame["latitude"], frame["longitude"], at, along)
        )
        half = (
            np.sin((lat - up) / 2) ** 2 + np.cos(lat) * np.cos(up) * np.sin((lon - east) / 2) ** 2
        )
        far = 2 * places.EARTH_KM * np.arcsin(np.sqrt(half))
        turn = np.degrees(np.arctan2(
            np.sin(lon - east) * np.cos(lat),
            np.cos(up) * np.sin(lat) - np.sin(up) * np.cos(lat) * np.cos(lon - east)))  # fmt: skip
        there = frame.assign(
            store_id=name, ring=np.searchsorted(radii, far),
            sector=np.floor(turn % 360 * sectors / 360 + 0.5).astype(int) % sectors)  # fmt: skip
        cells = there.groupby(["store_id", "ring", "sector"])
        found.append(cells.agg(
            customers=("spend", "size"), members=("member", "sum"), spend=("spend", "sum")
        ))  # fmt: skip
    return pd.concat(found)


@pytest.mark.parametrize("sectors", [4, 8, 16])
def test_a_million_customers_fall_into_the_cells_that_numpy_finds(sectors):
    draw, n = np.random.default_rng(sectors), 1_000_000 if sectors == 8 else 50_000
    rows = as_rows(48.6 + draw.normal(0, 0.12, n), 23.1 + draw.normal(0, 0.2, n))
    stores = [("A", 48.62, 23.14), ("B", 48.55, 23.3), ("C", 48.9, 22.9)]
    names, north, east = zip(*stores, strict=True)
    cells = catchment.count_cells(
        rows, around(north, east, names), rings_km=(5, 10, 20), sectors=sectors
    ).to_pandas()
    cells = cells.set_index(["store_id", "ring", "sector"]).sort_index()
    frame = rows.select("latitude", "longitude", "member", "spend").to_pandas()
    expected = by_numpy(frame, stores, (5, 10, 20), sectors)
    assert len(expected) > 2 * 4 * sectors
    pd.testing.assert_frame_equal(
        cells[["customers", "members", "spend"]],
        expected,
        check_dtype=False,
        check_index_type=False,
    )


@pytest.mark.parametrize("place", [(48.62, 23.14), (-33.9, 151.2), (0.0, 180.0), (89.9, 10.0)])
def test_turning_everybody_by_45_degrees_moves_the_sectors_by_one(place):
    draw = np.random.default_rng(7)
    bearings, km = draw.uniform(0, 360, 4_000), draw.uniform(0.1, 25, 4_000)

    def counted(turn):
        at = [places.towards(*place, b + turn, far) for b, far in zip(bearings, km, strict=True)]
        east, north = zip(*at, strict=True)
        east = [(one + 180) % 360 - 180 for one in east]  # as coordinates are written
        rows = as_rows(list(north), list(east))
        found = catchment.count_cells(
            rows, around([place[0]], [place[1]]), rings_km=(5, 10, 20), sectors=8
        ).to_pandas()
        return found.pivot_table(index="ring", columns="sector", values="customers").to_numpy()

    np.testing.assert_array_equal(np.roll(counted(0), 1, axis=1), counted(45))


def test_everybody_is_counted_once_around_every_store(base):
    area = catchment.cells(base, rings_km=RINGS)
    everyone = int(base.rows.count().to_pyarrow().as_py())
    by_store = area.exact.groupby("store_id")
    assert (by_store["customers"].sum() == everyone).all()
    assert (by_store.size() == 3 * 8 + 2).all()
    spend = float(base.rows.spend.sum().to_pyarrow().as_py())
    assert by_store["spend"].sum().tolist() == pytest.approx([spend] * 5, abs=0.1)
    members = base.rows.filter(base.rows.member).count().to_pyarrow().as_py()
    assert (by_store["members"].sum() == members).all()


def test_the_ellipsoid_moves_few_customers_into_another_ring(base):
    pytest.importorskip("pyproj")
    sphere, ellipsoid = (
        catchment.cells(base, rings_km=RINGS, method=method).exact["customers"]
        for method in ("sphere", "geodesic")
    )
    moved = (sphere - ellipsoid).abs().sum() / 2 / sphere.sum()
    assert 0 < moved < 0.006  # .22 % change the ring; here some change the sector too


def test_people_and_penetration_are_those_of_the_districts(base):
    area = catchment.cells(base, rings_km=RINGS)
    people = sum(area.homes.shop.table("districts").population.to_pandas())
    inside = area.exact[area.exact["sector"] >= 0]
    # The rings of 10 km around a store near the middle hold the whole city of 12 x 12 km.
    assert inside.groupby("store_id")["population"].sum().max() == pytest.approx(people, rel=0.02)
    known = inside[inside["population"] >= 1]
    assert (known["penetration"] * known["population"]).to_numpy() == pytest.approx(
        known["customers"].to_numpy()
    )


def bounds(counts, total, least):
    """Return by linear programming between what each hidden count can lie."""
    n = len(counts)
    found = []
    for cell in range(n):
        ends = []
        for sign in (1, -1):
            cost = np.zeros(n)
            cost[cell] = sign
            solved = linprog(cost, A_eq=[np.ones(n)], b_eq=[total], bounds=[(least, None)] * n)
            assert solved.success
            ends.append(solved.x[cell])
        found.append(ends[1] - ends[0])
    return found


@pytest.mark.parametrize("seed", range(3))
def test_no_hidden_count_can_be_found_from_what_is_told(make_shop, tmp_path, seed):
    draw = np.random.default_rng(seed)
    n, k = int(draw.integers(40, 600)), 10
    near, turn = draw.exponential(4, n), draw.uniform(0, 360, n)
    at = [places.towards(50, 10, b, km) for b, km in zip(turn, near, strict=True)]
    lines = "\n".join(
        f"c{i:05d},2024-01-{1 + i % 28:02d} 10:00,{draw.integers(1, 99)},A" for i in range(n)
    )
    home = "\n".join(
        f"c{i:05d},{lat if i % 19 else ''},{lon},2023-01-01" for i, (lon, lat) in enumerate(at)
    )
    make_shop(f"customer_id,purchased_at,amount,store_id\n{lines}\n")
    (tmp_path / "customers.csv").write_text(f"customer_id,latitude,longitude,joined_on\n{home}\n")
    (tmp_path / "stores.csv").write_text("store_id,latitude,longitude\nA,50,10\nB,50.02,10.02\n")
    shop = sources.open_shop(tmp_path / "shop.toml")
    area = catchment.cells(shop, as_of="2024-01-28", rings_km=(2, 4, 8))
    for store, rows in area.rows.groupby("store_id"):
        exact = area.exact[area.exact["store_id"] == store]
        hidden = (rows["state"] == "hidden").to_numpy()
        told = exact[~hidden]["customers"]
        assert ((told == 0) | (told >= k)).all()
        np.testing.assert_array_equal(rows["customers"][~hidden], told)
        assert rows[hidden][["customers", "members", "spend"]].isna().all(axis=None)
        if hidden.any():
            parts = exact[hidden]["customers"]
            assert min(bounds(parts, parts.sum(), 1)) >= k
            said = area.totals.set_index("store_id").loc[store, "hidden"]
            assert said == parts.sum()
    for store in ("A", "B"):
        where = advertising.directions(area, store)
        shown = area.rows[(area.rows["store_id"] == store) & (area.rows["sector"] >= 0)]
        # What a direction sums up are cells that are told anyway.
        assert where.rows["customers"].sum() == shown["customers"].sum()
        assert not where.ranked
        assert "cannot be said" in where.verdict


def test_a_cell_of_one_great_spender_is_hidden_with_others():
    cells = pd.DataFrame({"customers": [50, 20, 40, 0], "spend": [900.0, 500.0, 800.0, 0.0],
                          "largest": [50.0, 400.0, 60.0, 0.0]})  # fmt: skip
    spend = {"spend": "largest"}
    hidden = results.hidden(cells, counts=["customers"], k=10, largest=spend)
    assert hidden.tolist() == [False, True, True, False]
    alone = results.hidden(cells[1:2], counts=["customers"], k=10, largest=spend)
    assert alone.tolist() == [True]
    cells["customers"] = [50, 9, 40, 0]
    assert results.hidden(cells, counts=["customers"], k=10).tolist() == [False, True, True, False]


def test_squares_hold_at_least_k_and_everybody(base):
    for side in (0.3, 1.0):
        found = squares.density(base, side_km=side)
        everyone = int(base.rows.count().to_pyarrow().as_py())
        assert (found.rows["customers"] >= base.k).all()
        assert found.rows["customers"].sum() == found.customers == everyone - found.left_out
        assert found.rows["level"].nunique() > 1
        # Drawn on one another they cover each place once: the areas are those of the union.
        import shapely

        shapes = [shapely.geometry.shape(one) for one in found.rows["geometry"]]
        union = shapely.union_all(shapes).area
        scale = side**2 / math.prod(places.steps(side, found.middle))
        assert found.rows["area_km2"].sum() == pytest.approx(union * scale, rel=1e-9)


def test_a_direction_that_lacks_customers_is_found_and_others_are_not(base):
    area = catchment.cells(base, rings_km=(2, 4), sectors=4)
    where = advertising.directions(area, "S01")
    assert where.ranked
    rows = where.rows.set_index("sector")
    assert (rows["low"] <= rows["value"]).all() and (rows["value"] <= rows["high"]).all()
    assert rows["value"].sum() == pytest.approx(0, abs=1e-6)
    # All alike: customers in proportion to people; nobody wins but by chance.
    wins = 0
    for seed in range(40):
        draw = np.random.default_rng(seed)
        alike = area.rows.copy()
        inside = alike["sector"] >= 0
        alike.loc[inside, "population"] = 5_000.0
        alike.loc[inside, "customers"] = draw.poisson(200, inside.sum()).astype(float)
        alike.loc[inside, "state"] = "value"
        told = alike[inside & (alike["store_id"] == "S01")]
        gaps = pd.DataFrame(advertising._missing(told, area, seed))
        best = gaps.sort_values("value", ascending=False)
        wins += best["high"].iloc[1:].max() < best["low"].iloc[0]
    assert wins <= 2


def test_a_sum_of_few_is_hidden_where_its_cell_is_not(make_shop, tmp_path):
    at = [places.towards(50, 10, 10 + n % 4 * 90, 1 + n % 3 / 10) for n in range(160)]
    # In the north 40 customers, of whom 4 have bought lately; elsewhere all have.
    lines = "".join(
        f"c{n:03d},{'2022-01-05' if n % 4 == 0 and n > 12 else '2024-01-05'} 10:00,9,A\n"
        for n in range(160)
    )
    make_shop(f"customer_id,purchased_at,amount,store_id\n{lines}")
    people = "".join(f"c{n:03d},{lat},{lon}\n" for n, (lon, lat) in enumerate(at))
    people += "".join(f"d{n},,\n" for n in range(12))
    (tmp_path / "customers.csv").write_text(f"customer_id,latitude,longitude\n{people}")
    (tmp_path / "stores.csv").write_text("store_id,latitude,longitude\nA,50,10\n")
    base = homes.of_customers(sources.open_shop(tmp_path / "shop.toml"), as_of="2024-01-05")
    area = catchment.cells(base, rings_km=(2,), sectors=4)
    rows = area.rows.set_index("direction")
    assert rows["customers"].tolist() == [40, 40, 40, 40, 0, 0]
    # One more is hidden with it: else the total would tell the one.
    assert rows["spend"].iloc[:4].isna().sum() == 2
    assert math.isnan(rows.loc["N", "spend"])
    where = advertising.directions(area, "A").rows.set_index("sector")
    assert where.loc["N", ["distance_km", "bearing"]].isna().all()
    assert where["spend"].fillna(0).sum() == rows["spend"].iloc[:4].sum()


def test_of_one_place_with_customers_no_direction_is_advised(base):
    area = catchment.cells(base, rings_km=(2, 4), sectors=4)
    rows = area.rows.copy()
    inside = rows["sector"] >= 0
    rows.loc[inside, ["population", "state"]] = [1_000.0, "zero"]
    rows.loc[inside, "customers"] = 0.0
    rows.loc[inside & (rows["sector"] == 2), ["customers", "state"]] = [50.0, "value"]
    where = advertising.directions(dataclasses.replace(area, rows=rows), "S01")
    assert where.winner == ""
    assert "No clear winner" in where.verdict


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["", "store_id", "lost", "nobody"])
def test_a_small_shop_without_districts_gets_its_page(make_shop, tmp_path, project, extra):
    draw = np.random.default_rng(3)
    n = 1 if extra == "nobody" else 240
    at = [places.towards(50, 10, draw.uniform(0, 360), draw.exponential(2)) for _ in range(n)]
    store = "" if extra == "store_id" else ",store_id"
    lines = "".join(
        f"c{i:04d},2024-01-{1 + j * 9:02d} 10:00,{draw.integers(5, 30)}"
        + (f",{'AB'[int(draw.integers(2))]}" if store else "")
        + "\n"
        for i in range(n)
        for j in range(3)
    )
    people = "".join(
        f"c{i:04d},{'' if extra == 'lost' else lat},{lon}\n" for i, (lon, lat) in enumerate(at)
    )
    shop = project / "data" / "tiny"
    shop.mkdir()
    (shop / "shop.toml").write_text("")
    (shop / "transactions.csv").write_text(f"customer_id,purchased_at,amount{store}\n{lines}")
    (shop / "customers.csv").write_text(f"customer_id,latitude,longitude\n{people}")
    name = "<script>document.title='x'</script>"
    (shop / "stores.csv").write_text(
        f"store_id,name,latitude,longitude,area_m2\nA,{name},50,10,900\nB,Zwei,50.03,10.02,300\n"
    )
    shutil.copy(ROOT / "notebooks" / "catchment.ipynb", project / "notebooks")
    toml = project / "reports" / "reports.toml"
    toml.write_text('[[report]]\nid = "where"\nnotebook = "catchment"\nshop = "tiny"\n')
    run = reports.prepare(project, reports.load(project)["where"])
    [done] = reports.run_all([run], progress=False)
    assert done.state == "published", done
    text = done.page.read_text("utf-8")
    assert "<script>document.title" not in text
    if extra in ("", "store_id"):
        assert "Where do our customers live?" in text
    if extra == "":
        assert "primary trade" in text.lower()


BAD = {
    "no stores": (None, "c1,50,10\n", "no table stores"),
    "no customers": ("A,50,10\n", None, "no table customers"),
    "stores without coordinates": ("A,,\n", "c1,50,10\n", "None of the 1 stores"),
    "a store on no coordinate": ("A,0,0\n", "c1,50,10\n", "None of the 1 stores"),
    "a store out of range": ("A,95,10\n", "c1,50,10\n", "None of the 1 stores"),
}


def small_shop(make_shop, folder, stores, people, *, header="latitude,longitude", k=10):
    lines = "\n".join(
        f"{row.split(',')[0]},2024-01-09,5,A" for i, row in enumerate((people or "c1").splitlines())
    )
    make_shop(
        f"customer_id,purchased_at,amount,store_id\n{lines}\n", f"[policy]\nprivacy_k = {k}\n"
    )
    for name, rows, key in (("stores", stores, "store_id"), ("customers", people, "customer_id")):
        if rows is not None:
            (folder / f"{name}.csv").write_text(f"{key},{header}\n{rows}", encoding="utf-8")
    return sources.open_shop(folder / "shop.toml")


@pytest.mark.parametrize("what", BAD)
def test_what_is_missing_is_said(make_shop, tmp_path, what):
    stores, people, said = BAD[what]
    shop = small_shop(make_shop, tmp_path, stores, people)
    with pytest.raises(DataError, match=said):
        catchment.cells(shop, as_of="2024-01-09")


def test_columns_that_are_missing_are_named(make_shop, tmp_path):
    shop = small_shop(make_shop, tmp_path, "A,1\n", "c1,2\n", header="floor")
    with pytest.raises(DataError, match="latitude and longitude"):
        catchment.cells(shop, as_of="2024-01-09")


PEOPLE = {
    "one customer": [(50.01, 10.0)],
    "all on one point": [(50.01, 10.0)] * 50,
    "nobody located": [("", "")] * 50,
    "all on no coordinate": [(0, 0)] * 50,
    "all out of range": [(500, 10)] * 50,
    "swapped": [(10.0, 50.01)] * 50,
}


@pytest.mark.parametrize("what", PEOPLE)
def test_odd_customers_give_hidden_cells_and_sentences(make_shop, tmp_path, what):
    people = "".join(f"c{i:03d},{lat},{lon}\n" for i, (lat, lon) in enumerate(PEOPLE[what]))
    shop = small_shop(make_shop, tmp_path, "A,50,10\n", people)
    area = catchment.cells(shop, as_of="2024-01-09")
    rows, told = area.rows.set_index("direction"), area._repr_html_()
    assert re.search(r"of A,|Around A ", area.verdict)
    if what == "one customer":
        assert rows.loc["N", "customers"].isna().tolist() == [True, False, False]
        assert area.totals[["customers", "hidden"]].isna().all(axis=None)
        assert "Too few" in told or "too few" in told
    elif what == "all on one point":
        assert rows.loc["N", "customers"].tolist() == [50, 0, 0]
    elif what == "swapped":
        assert rows.loc[catchment.OUTSIDE, "customers"] == 50
    else:
        assert rows.loc[catchment.NOWHERE, "customers"] == 50
        assert (rows.loc[["N", "SE"], "state"] == "no data").all()
    if what in ("one customer", "nobody located"):
        with pytest.raises(DataError):
            advertising.directions(area, "A")


def test_on_the_180th_meridian_and_near_the_pole_nobody_is_far(make_shop, tmp_path):
    for north, east in ((-17.0, 179.99), (89.95, 0.0)):
        at = [places.towards(north, east, turn, 3.0) for turn in range(1, 360, 3)]
        people = "".join(
            f"c{i:03d},{lat},{(lon + 180) % 360 - 180}\n" for i, (lon, lat) in enumerate(at)
        )
        shop = small_shop(make_shop, tmp_path, f"A,{north},{east}\n", people)
        base = homes.of_customers(shop, as_of="2024-01-09")
        area = catchment.cells(base, sectors=4)
        assert area.rows["customers"].iloc[:4].tolist() == [30] * 4
        shapes = squares.density(base, side_km=2).rows["geometry"]
        if north < 0:
            wide = [x for one in shapes for x, _ in one["coordinates"][0]]
            assert max(wide) - min(wide) < 0.2


def test_parameters_that_cannot_be_are_named(base):
    for wrong in ({"rings_km": "5, 3"}, {"rings_km": ()}, {"rings_km": "a"}, {"sectors": 5},
                  {"method": "flat"}):  # fmt: skip
        with pytest.raises(UsageError, match=next(iter(wrong))):
            catchment.cells(base, **wrong)
    for wrong in (-1, 1.5, "x"):
        with pytest.raises(UsageError, match="seed is"):
            advertising.directions(catchment.cells(base, rings_km=RINGS), "S01", seed=wrong)
    for wrong in (None, ("a",), (0.6, 0.6), 0.6):
        with pytest.raises(UsageError, match="shares is"):
            trade_areas.areas(base, shares=wrong)
    with pytest.raises(UsageError, match="no own store 'S99'"):
        catchment.cells(base).of("S99")
    with pytest.raises(UsageError, match="side_km"):
        squares.density(base, side_km=0)
