import math
import shutil

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crmlab import coordinates, homes, sources
from crmlab.coordinates import COARSE, FAR, MISSING, SHARED, SWAPPED
from crmlab.tables import UsageError
from tests.test_trade_areas import AS_OF, around, disc, store


@pytest.fixture(scope="module")
def spoiled(home, tmp_path_factory):
    """The demo shop with customers whose places were spoiled: homes, and what was done to whom."""
    folder = tmp_path_factory.mktemp("spoiled")
    for path in (home / "data" / "demo").iterdir():
        if path.suffix == ".parquet" and path.name != "customers.parquet":
            (folder / path.name).symlink_to(path)
    shutil.copy(home / "data" / "demo" / "shop.toml", folder)
    table = pq.read_table(home / "data" / "demo" / "customers.parquet")
    frame = table.to_pandas()
    bought = pq.read_table(home / "data" / "demo" / "transactions.parquet", columns=["customer_id"])
    buyers = sorted(set(bought["customer_id"].to_pylist()) - {None})
    rows = frame.index[frame["customer_id"].isin(buyers)]
    groups = {
        SWAPPED: rows[:50], SHARED: rows[50:250], FAR: rows[250:253],
        MISSING: rows[253:323], COARSE: rows[323:353],
    }  # fmt: skip
    place = frame[["latitude", "longitude"]].copy()
    frame.loc[groups[SWAPPED], ["latitude", "longitude"]] = place.loc[
        groups[SWAPPED], ["longitude", "latitude"]
    ].to_numpy()
    frame.loc[groups[SHARED], ["latitude", "longitude"]] = (48.6215, 23.1415)
    frame.loc[groups[FAR], ["latitude", "longitude"]] = [
        (52.5001, 13.4),
        (-33.8765, 151.2),
        (35.7654, -9.1),
    ]
    # Forty are empty, thirty are what the door takes for unknown.
    frame.loc[groups[MISSING][:40], ["latitude", "longitude"]] = math.nan
    frame.loc[groups[MISSING][40:60], ["latitude", "longitude"]] = 0.0
    frame.loc[groups[MISSING][60:], "latitude"] = 123.0
    # Thirty points of 1 km around the city, too far from each other to be shared.
    frame.loc[groups[COARSE], "latitude"] = [48.6 + n % 5 / 100 for n in range(30)]
    frame.loc[groups[COARSE], "longitude"] = [23.1 + n // 5 / 100 for n in range(30)]
    places = {name: pa.array(frame[name], from_pandas=True) for name in ("latitude", "longitude")}
    for name, column in places.items():
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, folder / "customers.parquet")
    base = homes.of_customers(sources.open_shop(folder / "shop.toml"), as_of=AS_OF)
    return base, {what: set(frame.loc[which, "customer_id"]) for what, which in groups.items()}


def test_what_was_spoiled_is_found_and_nothing_else(spoiled):
    base, done = spoiled
    found = coordinates.quality(base)
    counts = found.rows.set_index("what")["customers"].to_dict()
    everyone = base.rows.count().to_pyarrow().as_py()
    assert counts == {"located": everyone - 70} | {what: len(ids) for what, ids in done.items()}
    assert (found.customers, found.points, found.far_km) == (everyone, 1, 200.0)
    assert found.stores.set_index("what")["stores"].tolist() == [11, 0, 0]
    shown = found.to_frame().set_index("what")
    assert shown.loc[FAR, "customers"] == "fewer than 10" and math.isnan(shown.loc[FAR, "share"])
    assert shown.loc[SWAPPED, "customers"] == "50"
    assert shown.loc[SWAPPED, "share"] == pytest.approx(50 / everyone)
    assert "50 swapped, fewer than 10 far from every store" in found.verdict
    assert (
        "The coordinates of 30 customers were (0, 0), out of range or unreadable" in found.verdict
    )
    assert "one point" not in found.verdict and "1 point of at least 10" in found.verdict
    for text in (found.verdict, found._repr_html_()):
        assert "48.62" not in text and not any(one in text for one in done[FAR])


def test_the_list_to_repair_has_one_row_for_each_and_proposes_what_was_swapped(spoiled):
    base, done = spoiled
    rows = coordinates.to_repair(base).to_pandas()
    assert rows["customer_id"].is_unique
    assert {what: set(one) for what, one in rows.groupby("what")["customer_id"]} == done
    swapped = rows[rows["what"] == SWAPPED]
    assert (swapped["proposed_latitude"] == swapped["longitude"]).all()
    assert (swapped["proposed_longitude"] == swapped["latitude"]).all()
    assert swapped["proposed_latitude"].between(48.5, 48.7).all()
    assert rows.loc[rows["what"] != SWAPPED, "proposed_latitude"].isna().all()


def test_a_customer_is_far_from_what_distance_on_the_analyst_says(spoiled):
    base, done = spoiled
    rows = coordinates.to_repair(base, far_km=12_000).to_pandas()
    assert (rows["what"] == FAR).sum() == 1  # the one in Australia
    with pytest.raises(UsageError, match="above 0"):
        coordinates.quality(base, far_km=0)


@pytest.mark.parametrize("whose", ["customers", "stores"])
def test_a_file_swapped_as_a_whole_is_said_in_one_sentence(town, whose):
    people, stores = pd.DataFrame(around(50.45, 30.52, *disc(3, 100, 1))), pd.DataFrame([store()])
    spoilt = people if whose == "customers" else stores
    spoilt[["latitude", "longitude"]] = spoilt[["longitude", "latitude"]].to_numpy()
    base = town(people, stores, {"customer_id": people["customer_id"]})
    found = coordinates.quality(base)
    assert found.caution.startswith("Most customers would be near a store were latitude and long")
    assert found.rows.set_index("what").loc[SWAPPED, "customers"] == 100
    assert found.to_frame().set_index("what").loc[SWAPPED, "customers"] == "100"


def test_a_file_swapped_where_no_longitude_is_a_latitude_is_asked_about(tmp_path):
    people = pd.DataFrame(around(35.7, 139.7, *disc(3, 100, 1)))
    people[["latitude", "longitude"]] = people[["longitude", "latitude"]].to_numpy()
    people.loc[0, ["latitude", "longitude"]] = (35.7, 139.7)
    people.to_csv(tmp_path / "customers.csv", index=False)
    pd.DataFrame([store("S1", 35.7, 139.7)]).to_csv(tmp_path / "stores.csv", index=False)
    sales = people[["customer_id"]].assign(purchased_at=AS_OF, amount=10)
    sales.to_csv(tmp_path / "transactions.csv", index=False)
    (tmp_path / "shop.toml").write_text("")
    base = homes.of_customers(sources.open_shop(tmp_path / "shop.toml"), as_of=AS_OF)
    found = coordinates.quality(base)
    assert "Most latitudes in the table customers are out of range" in found.caution
    # 99 of 100 are missing: to say so would tell of the last one.
    assert found.to_frame().set_index("what").loc[MISSING, "customers"] == "all but fewer than 10"
    assert found.to_frame()["share"].isna().tolist()[:2] == [True, True]


def test_one_swapped_store_among_others_is_counted(town):
    people = around(50.45, 30.52, *disc(3, 40, 2))
    stores = [
        store("S1"),
        store("S2", 30.5, 50.46),
        store("S3", 50.47, 30.55),
        store("S4", None, None),
    ]
    base = town(people, stores, {"customer_id": people["customer_id"]})
    found = coordinates.quality(base)
    assert found.stores.set_index("what")["stores"].to_dict() == {
        "located": 3, MISSING: 1, SWAPPED: 1,
    }  # fmt: skip
    assert "1 of 3 stores would be near the customers" in found.verdict


def test_the_nearest_store_lies_across_the_line_where_a_day_begins(town):
    people = around(-16.8, 179.99, *disc(5, 60, 3))
    assert min(people["longitude"]) < -179.9
    base = town(people, [store("S1", -16.8, 179.99)], {"customer_id": people["customer_id"]})
    counts = coordinates.quality(base).rows.set_index("what")["customers"]
    assert (counts["located"], counts[FAR], counts[SWAPPED]) == (60, 0, 0)


def test_of_fewer_than_k_customers_nothing_is_told(town):
    people = around(50.45, 30.52, *disc(3, 5, 4))
    base = town(people, [store()], {"customer_id": people["customer_id"]})
    found = coordinates.quality(base)
    assert set(found.to_frame()["customers"]) == {"fewer than 10"}
    assert found.to_frame()["share"].isna().all()
    assert found.verdict.startswith("Fewer than 10 customers")
    nowhere = {"customer_id": ["a"], "latitude": [math.nan], "longitude": [math.nan]}
    base = town(nowhere, [store()], {"customer_id": ["a"] * 30})
    assert coordinates.quality(base).rows["customers"].tolist() == [0, 1, 0, 0, 0, 0]
    assert coordinates.to_repair(base).to_pandas()["what"].tolist() == [MISSING]
