import json
import math

import numpy as np
import pandas as pd
import pytest
import shapely

from crmlab import homes, places, results, sources, trade_areas
from crmlab.tables import DataError, UsageError

AS_OF = "2025-12-31"


def around(latitude, longitude, km, turn):
    """Return the columns of customers who live so far from a place, and in which direction."""
    spots = [places.towards(latitude, longitude, *one) for one in zip(turn, km, strict=True)]
    return {
        "customer_id": [f"c{number:05}" for number in range(len(spots))],
        "latitude": [north for _, north in spots],
        "longitude": [(east + 540) % 360 - 180 for east, _ in spots],
    }


def disc(radius, count, seed):
    random = np.random.default_rng(seed)
    return radius * np.sqrt(random.random(count)), random.uniform(0, 360, count)


def store(store_id="S1", latitude=50.45, longitude=30.52, **more):
    return {"store_id": store_id, "latitude": latitude, "longitude": longitude} | more


@pytest.mark.parametrize("longitude", [30.52, 179.99])
def test_of_customers_evenly_in_a_disc_six_tenths_live_within_the_root_of_that(town, longitude):
    people = around(50.45, longitude, *disc(5, 4_000, 1))
    base = town(
        people, [store(longitude=longitude)],
        {"customer_id": people["customer_id"], "store_id": "S1"},
    )  # fmt: skip
    found = trade_areas.areas(base, beyond_km=4)
    row = found.shown().iloc[0]
    for share in (0.5, 0.6, 0.8, 0.95):
        assert row[f"km_{100 * share:g}"] == pytest.approx(5 * math.sqrt(share), abs=0.1)
        assert row[f"km_{100 * share:g}"] == round(row[f"km_{100 * share:g}"], 1)
    assert row["beyond"] == pytest.approx(1 - 16 / 25, abs=0.03)
    hulls = found.hulls.set_index("share")["shape"]
    primary = places.equal_area(hulls[0.6]).area
    # Squares of 1 km stand out over the circle by less than their diagonal.
    assert math.pi * (5**2 * 0.6) * 0.8 < primary < math.pi * (5 * math.sqrt(0.6) + 1.42) ** 2
    assert "60% of the customers of S1 come from within 3.9 km" in found.verdict
    assert "km" in found._repr_html_()


def test_hulls_are_made_of_the_corners_of_squares_and_hold_no_place_of_a_customer(town):
    people = around(50.45, 30.52, *disc(5, 2_000, 2))
    base = town(people, [store()], {"customer_id": people["customer_id"], "store_id": "S1"})
    found = trade_areas.areas(base)
    text = places.geojson(found.shapes())
    assert len(json.loads(text)["features"]) == 3
    for name in ("latitude", "longitude"):
        assert not any(f"{value:.8f}" in text for value in people[name])
    up, along = places.steps(1.0, 50.45)
    for shape in found.hulls["shape"]:
        corners = np.array(shape.exterior.coords) / (along, up)
        assert np.allclose(corners, corners.round(), atol=1e-6)
    # A square with nine of the store's customers is not drawn, one with ten is.
    squares = pd.Series(zip(*(np.floor(np.array(people[name]) / step) for name, step in
                              (("longitude", along), ("latitude", up))), strict=True))  # fmt: skip
    counts = squares.value_counts()
    widest = found.hulls["shape"].iloc[-1]
    west = min(column for (column, _), count in counts.items() if count >= 10)
    assert widest.bounds[0] >= west * along - 1e-9


def test_customers_who_all_live_on_one_point_are_one_square_at_one_distance(town):
    people = around(50.45, 30.52, [2.0] * 30, [90.0] * 30)
    base = town(people, [store()], {"customer_id": people["customer_id"], "store_id": "S1"})
    found = trade_areas.areas(base)
    assert found.shown().loc[0, ["km_50", "km_60", "km_95"]].tolist() == [2.0, 2.0, 2.0]
    [hull] = {one.wkt: one for one in found.hulls["shape"]}.values()
    assert 1 <= places.equal_area(hull).area < 3  # the square, and the way to the store
    assert hull.covers(shapely.Point(30.52, 50.45))


def test_where_customers_live_thinly_hulls_are_of_larger_squares_and_hold_nine_tenths(town):
    people = around(50.45, 30.52, *disc(9, 400, 4))  # about 1.6 customers per square km
    base = town(people, [store()], {"customer_id": people["customer_id"], "store_id": "S1"})
    found = trade_areas.areas(base)
    for hull in found.hulls.itertuples():
        inside = shapely.contains_xy(hull.shape, people["longitude"], people["latitude"])
        assert inside.mean() >= 0.9 * hull.share


def test_too_few_customers_of_a_store_are_hidden_and_counted(town):
    people = around(50.45, 30.52, *disc(3, 200, 3))
    ids = people["customer_id"]
    stores = [store("S1"), store("S2", 50.5), store("S3"), store("S4", own=False)]
    for one in stores[:3]:
        one["own"] = True
    base = town(
        people, stores,
        {"customer_id": [*ids, ids[0], *ids], "store_id": ["S1"] * 200 + ["S2"] + ["S4"] * 200},
    )  # fmt: skip
    found = trade_areas.areas(base)
    shown = found.shown().set_index("store_id")
    assert list(shown.index) == ["S1", "S2", "S3"]
    assert shown["state"].tolist() == ["told", "hidden", "zero"]
    assert shown.loc["S2"].drop(["name", "state"]).isna().all()
    assert found.hidden == 1 and "fewer than 10 customers, hidden: 1" in found.verdict
    assert set(found.hulls["store_id"]) == {"S1"}
    # Of 200 customers ten are farther than the 95 %; of fewer that would be told of nine.
    assert shown.loc["S1", "km_95"] == pytest.approx(3 * math.sqrt(0.95), abs=0.1)
    fewer = trade_areas.areas(base, shares=(0.6, 0.97)).shown().set_index("store_id")
    assert math.isnan(fewer.loc["S1", "km_97"]) and fewer.loc["S1", "km_60"] > 0


def test_a_weight_draws_the_area_to_who_spends_and_one_big_spender_is_not_followed(town):
    km, turn = disc(5, 1_000, 4)
    people = around(50.45, 30.52, km, turn)
    visits = {"customer_id": people["customer_id"], "store_id": "S1"}
    base = town(people, [store()], visits | {"amount": np.where(km < 2, 90, 10)})
    count, spend = (trade_areas.areas(base, weight=one).rows for one in ("customers", "spend"))
    order = np.argsort(km)
    reached = np.cumsum(np.where(km < 2, 90, 10)[order])
    true = km[order][np.searchsorted(reached, 0.6 * reached[-1])]
    assert spend["km_60"][0] == pytest.approx(true, abs=1e-6)
    assert spend["km_60"][0] < count["km_60"][0] - 1
    visits["amount"] = [20_000.0] + [10.0] * 999
    base = town(people, [store()], visits)
    assert math.isnan(trade_areas.areas(base, weight="spend").rows["km_60"][0])


def test_the_demo_shop_is_measured_as_haversine_does_customer_by_customer():
    base = homes.of_customers(sources.open_shop("demo"), as_of=AS_OF)
    found = trade_areas.areas(base, beyond_km=5)
    visits, rows = base.visits.to_pandas(), base.rows.to_pandas().set_index("customer_id")
    for row in found.rows.to_dict("records"):
        ids = visits.loc[visits["store_id"] == row["store_id"], "customer_id"]
        at = np.radians(rows.loc[ids, ["latitude", "longitude"]].to_numpy())
        own = base.own.set_index("store_id").loc[row["store_id"]]
        to = np.radians([own["latitude"], own["longitude"]])
        half = np.sin((at - to) / 2) ** 2
        km = np.sort(
            2 * 6371.0088
            * np.arcsin(np.sqrt(half[:, 0] + np.cos(at[:, 0]) * np.cos(to[0]) * half[:, 1]))
        )  # fmt: skip
        assert row["customers"] == len(km)
        assert row["beyond_customers"] == (km > 5).sum()
        for share in (0.5, 0.6, 0.8, 0.95):
            nearest = km[math.ceil(share * len(km) - 1e-6) - 1]
            assert row[f"km_{100 * share:g}"] == pytest.approx(nearest, abs=1e-5)
    shared = trade_areas.overlap(found)
    assert len(shared) == 10
    assert shared["of_both"].between(0, 1).all()
    # Share of the base by distance, held against the same customers counted here.
    curve = trade_areas.decay(base, band_km=2, bands=3)
    assert (curve.rows.groupby("store_id")["customers"].sum() == len(rows)).all()
    assert (curve.rows.groupby("store_id")["bought"].sum().to_numpy()
            == found.rows["customers"].to_numpy()).all()  # fmt: skip
    first = curve.rows.groupby("store_id")["share"].agg(list)
    assert all(shares[0] > shares[1] > shares[2] for shares in first)


def test_two_areas_have_the_four_ratios_that_esri_publishes():
    found = trade_areas.ratios(1.32, 1.00, 0.53)
    assert vars(found) == pytest.approx(
        {"size_ratio": 1.32, "of_both": 0.30, "of_first": 0.40, "of_second": 0.53}, abs=0.005
    )


@pytest.mark.parametrize("longitude", [30.52, -179.97])
def test_areas_that_lie_on_each_other_are_measured_over_the_line_where_a_day_begins(
    town, longitude
):
    # The second store is 4 km to the west of the first.
    west = (places.towards(50.45, longitude, 270, 4)[0] + 540) % 360 - 180
    one = around(50.45, longitude, *disc(4, 3_000, 5))
    two = around(50.45, west, *disc(4, 3_000, 6))
    two["customer_id"] = [f"d{number}" for number in range(3_000)]
    people = {name: [*one[name], *two[name]] for name in one}
    stores = [store("A", longitude=longitude), store("B", longitude=west)]
    visits = {"customer_id": people["customer_id"], "store_id": ["A"] * 3_000 + ["B"] * 3_000}
    base = town(people, stores, visits)
    found = trade_areas.overlap(trade_areas.areas(base), share=0.95).iloc[0]
    # Two circles of the same radius r, d apart, share 2 r^2 acos(d / 2r) - d / 2 sqrt(4r^2 - d^2).
    r, d = math.sqrt(found["area_km2"] / math.pi), 4.0
    lens = 2 * r * r * math.acos(d / 2 / r) - d / 2 * math.sqrt(4 * r * r - d * d)
    assert found["overlap_km2"] == pytest.approx(lens, rel=0.15)
    assert found["size_ratio"] == pytest.approx(1, abs=0.1)
    assert found["of_first"] == pytest.approx(found["overlap_km2"] / found["area_km2"])


def test_the_share_that_falls_by_half_every_two_kilometres_is_found_and_few_are_hidden(town):
    km, turn = disc(8, 20_000, 7)
    people = around(50.45, 30.52, km, turn)
    random = np.random.default_rng(8)
    there = random.random(len(km)) < 0.8 * 0.5 ** (km / 2)
    at = np.where(there, "S1", "S2")
    base = town(
        people, [store(), store("S2", 52.0)],
        {"customer_id": people["customer_id"], "store_id": at},
    )  # fmt: skip
    found = trade_areas.decay(base, band_km=0.5, bands=18)
    assert found.stores.loc[0, "half_km"] == pytest.approx(2.0, abs=0.1)
    rows = found.rows[found.rows["store_id"] == "S1"]
    inside = rows[rows["customers"] > 100]
    middle = (inside["from_km"] + inside["to_km"]) / 2
    held = inside["low"].le(0.8 * 0.5 ** (middle / 2)) & inside["high"].ge(
        0.8 * 0.5 ** (middle / 2)
    )
    assert held.mean() >= 0.8
    assert (rows["low"].dropna() <= rows["share"].dropna()).all()
    shown = found.shown()
    states = shown[shown["store_id"] == "S1"].set_index("from_km")["state"]
    assert (states[9.0], states[8.5]) == ("no data", "no data")
    true = found.rows.assign(rest=found.rows["customers"] - found.rows["bought"])
    for _, one in true.groupby("store_id"):
        hidden = one[shown.loc[one.index, "state"] == "hidden"]
        for name in ("customers", "bought", "rest"):
            assert not results.few(hidden[name].sum(), 10)
    told = true[shown["state"].isin(["told", "zero"])]
    assert not any(
        results.few(x, 10) for x in told[["customers", "bought", "rest"]].to_numpy().flat
    )
    assert "customers who buy at S1 halves with every 1.9 km" in found.verdict
    assert "share" in found._repr_html_()


def test_wrong_arguments_and_a_log_without_stores_say_what_to_do(town):
    people = around(50.45, 30.52, *disc(3, 20, 9))
    visits = {"customer_id": people["customer_id"]}
    base = town(people, [store()], visits)
    with pytest.raises(DataError, match="name no store"):
        trade_areas.areas(base)
    base = town(people, [store()], visits | {"store_id": "other"})
    nobody = trade_areas.areas(base)
    assert nobody.shown()["state"].tolist() == ["zero"]
    assert nobody.hulls.empty and trade_areas.overlap(nobody).empty
    assert "No store has enough customers" in nobody.verdict
    assert "Of no store" in trade_areas.decay(base).verdict
    for wrong in ({"shares": (0.6, 1.0)}, {"shares": ()}, {"weight": "spent"}, {"beyond_km": 0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            trade_areas.areas(base, **wrong)
    with pytest.raises(UsageError, match="these areas have 0.6, 0.8, 0.95"):
        trade_areas.overlap(nobody, share=0.7)
    with pytest.raises(UsageError, match="whole number from 1 to 100"):
        trade_areas.decay(base, bands=0)
