import datetime as dt

import duckdb
import pandas as pd
import pytest

from crmlab import customers, demo, features, sources
from crmlab.tables import DataError

AS_OF = "2024-10-15"


@pytest.fixture(scope="module")
def shop_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    demo.shop(customers=1_500, seed=5, folder=folder)
    return folder


def made(shop, as_of):
    return features.features(shop, as_of=as_of).order_by("customer_id").to_pandas()


def with_another_future(folder, to):
    """Copy a shop, and change every table after AS_OF: nothing, twice as much, closed cases."""
    to.mkdir()
    end = f"timestamp '{AS_OF} 23:59:59'"
    wall = "timezone('Europe/Kyiv', {})"
    for path in folder.glob("*.parquet"):
        columns = duckdb.read_parquet(str(path)).columns
        moment = next((one for one in ("purchased_at", "opened_at", "posted_at", "sent_at")
                       if one in columns), None)  # fmt: skip
        query = f"select * from read_parquet('{path}')"
        if moment:
            query += f" where {moment} is null or {wall.format(moment)} <= {end}"
        if path.stem == "transactions":
            query += f""" union all select * replace (amount * 3 as amount, 'S2' as store_id)
                from read_parquet('{path}') where {wall.format(moment)} > {end}
                and abs(hash(customer_id) % 3) = 0"""
        if path.stem == "cases":
            query = query.replace("*", f"* replace (case when {wall.format('closed_at')} > {end} "
                                  "then null else closed_at end as closed_at)", 1)  # fmt: skip
        duckdb.sql(query).write_parquet(str(to / path.name))
    (to / "shop.toml").write_text((folder / "shop.toml").read_text())
    return sources.open_shop(to / "shop.toml")


def test_changing_the_future_changes_no_feature(shop_folder, tmp_path):
    shop = sources.open_shop(shop_folder / "shop.toml")
    known = made(shop, AS_OF)
    other = with_another_future(shop_folder, tmp_path / "other")
    pd.testing.assert_frame_equal(known, made(other, AS_OF), rtol=1e-9)
    # The test can fail: a later date shows what was changed.
    later = [made(one, "2025-06-30") for one in (shop, other)]
    with pytest.raises(AssertionError):
        pd.testing.assert_frame_equal(*later, rtol=1e-9)
    assert known["case_open_days"].notna().any()
    assert {"store", "channel", "points", "contacts", "distance_km", "categories"} <= {*known}


def test_frequency_recency_rhythm_and_lost_are_those_of_the_customers(shop_folder):
    shop = sources.open_shop(shop_folder / "shop.toml")
    known = made(shop, AS_OF).set_index("customer_id")
    summary = customers.summary(shop, as_of=AS_OF).order_by("customer_id").to_pandas()
    for name in ("frequency", "recency", "T"):
        assert known[name].tolist() == summary[name].tolist()
    stages = customers.stages(shop, as_of=AS_OF).order_by("customer_id").to_pandas()
    assert known["usual_gap"].to_numpy() == pytest.approx(stages["usual_gap"].to_numpy())
    late = known["overdue"] > shop.policy.lost_after_gaps
    assert late.tolist() == (stages["stage"] == "lost").tolist()
    assert 0 < late.sum() < len(late)


LOG = """customer_id,purchased_at,amount,discount,store_id,channel,product_id
a,2024-01-01,100,0,north,shop,p1
a,2024-03-01,60,0,north,shop,p1
a,2024-03-05,-30,0,north,shop,p1
a,2024-11-30,30,10,south,web,p2
a,2024-11-30,20,0,south,web,p3
b,2024-12-01,8,0,north,shop,p1
c,2025-01-02,9,0,north,shop,p1
d,2024-05-01,-9,0,north,shop,p1
"""
TABLES = {
    "products.csv": "product_id,category\np1,tea\np2,tea\np3,jam\n",
    "stores.csv": "store_id,latitude,longitude\nnorth,36.12,-86.67\nsouth,33.94,-118.40\n",
    "customers.csv": "customer_id,latitude,longitude\na,36.12,-86.67\nb,,\n",
    "cases.csv": "case_id,customer_id,opened_at,closed_at,kind\n"
    "1,a,2024-12-02,2024-12-20,complaint\n2,a,2024-12-10,2025-01-03,question\n"
    "3,a,2025-01-01,,complaint\n4,b,2024-11-20,,complaint\n",
    "points.csv": "customer_id,posted_at,points,kind\na,2024-11-30,50,earn\n"
    "a,2024-12-05,-20,redeem\na,2025-01-01,7,earn\n",
    "contacts.csv": "campaign_id,customer_id,arm,assigned_at,sent_at\n"
    "x,a,mail,2024-12-01,2024-12-01\nx,b,holdout,2024-12-01,\ny,a,mail,2024-01-01,2024-01-01\n",
}


def test_features_of_a_few_receipts_are_those_counted_by_hand(make_shop):
    for name, text in TABLES.items():
        make_shop(text, name=name)
    shop = make_shop(LOG)
    rows = made(shop, "2024-12-31").set_index("customer_id")
    assert rows.index.tolist() == ["a", "b"], "d only brought back, and c comes later"
    a, b = rows.loc["a"], rows.loc["b"]
    assert (a["frequency"], a["recency"], a["T"], a["silent"]) == (2, 334, 365, 31)
    assert a["usual_gap"] == (2 * 167 + 334) / 4
    assert a["overdue"] == 31 / 167
    assert (a["recent"], a["earlier"], a["trend"]) == (1, 0, 1)
    assert a["purchases_a_year"] == pytest.approx(2 * 364 / 365)
    assert a["mean_spend"] == pytest.approx(210 / 3)
    assert a["spend_slope"] == pytest.approx((60 + 50) / 2 / 70 - 1)
    assert a["returned_share"] == pytest.approx(30 / 210)
    assert a["discount_share"] == pytest.approx(10 / 220)
    assert (a["store"], a["channel"], a["categories"]) == ("south", "web", 2)
    # figures.md 4 gives 2,886.44 km with a radius of 6,371.0 km; ours is the mean one.
    assert a["distance_km"] == pytest.approx(2886.444442837983 * 6371.0088 / 6371.0, rel=1e-12)
    assert (a["cases"], a["case_kind"], a["case_open_days"]) == (2, "question", 21)
    assert (a["points"], a["contacts"]) == (30, 1)
    assert (b["points"], b["contacts"], b["cases"]) == (0, 0, 1)
    assert b[["case_kind", "case_open_days", "distance_km"]].isna().all()
    assert (b["frequency"], b["spend_slope"], b["usual_gap"]) == (0, 0, 167)


def test_a_shop_with_receipts_alone_has_the_features_of_receipts(make_shop):
    rows = made(make_shop("customer_id,purchased_at,amount\na,2024-01-01,5\n"), "2024-01-01")
    assert not {*features.WORDS, "points", "distance_km", "discount_share"} & {*rows}
    assert pd.isna(rows.loc[0, "usual_gap"])
    assert pd.isna(rows.loc[0, "overdue"])
    assert (rows.loc[0, "T"], rows.loc[0, "purchases_a_year"]) == (0, 0)
    groups = [name for names in features.GROUPS.values() for name in names]
    assert len(groups) == len(set(groups))


def test_who_bought_in_the_days_after_did_not_stop(make_shop):
    shop = make_shop(LOG)
    found = features.bought_after(shop, after=dt.date(2024, 2, 29), days=1).to_pandas()
    assert found["customer_id"].tolist() == ["a"]
    found = features.bought_after(shop, after=dt.date(2024, 3, 1), days=100).to_pandas()
    assert found.empty, "what is brought back is no purchase"


def test_a_log_of_returns_alone_has_no_features(make_shop):
    shop = make_shop("customer_id,purchased_at,amount\na,2024-01-01,-5\n")
    with pytest.raises(DataError, match="returns, of no value"):
        features.features(shop, as_of="2024-01-01")
