import datetime as dt
import math

import ibis
import numpy as np
import pandas as pd
import pytest

from crmlab import audiences, customers, demo, features, rules, sources
from crmlab.tables import DataError, UsageError
from tests.test_features import AS_OF, with_another_future

# Five customers: a regular; b buys X once and takes it back; c once, long ago; d has joined and
# never bought; e joined, and bought, after the day.
LOG = """customer_id,purchased_at,amount,product_id,store_id,channel
a,2022-12-20,40,p1,S1,shop
a,2023-06-29,10,p1,S1,shop
a,2023-06-30,30,p1,S1,shop
a,2023-06-30,5,p2,S1,shop
a,2023-11-05,20,p2,S2,web
a,2023-12-24,8,p1,S2,web
b,2023-12-01,50,p1,S1,shop
b,2023-12-01,-50,p1,S1,shop
b,2023-12-02,7,p3,S1,shop
c,2022-12-31,100,p1,S9,
e,2024-01-01,60,p1,S1,shop
,2023-12-30,99,p1,S1,shop
"""
PRODUCTS = "product_id,brand,category\np1,X,tea\np2,Y,tea\np3,,oil\np4,Z,tea\n"
MEMBERS = """customer_id,sex,city,birth_date,joined_on,latitude,longitude
a,m,Wien,1984-02-29,2022-12-20,48.20,16.37
b,f,Wien,1993-12-31,,48.20,16.37
c,m,Graz,1994-01-01,2024-05-01,47.07,15.44
d,f,Graz,2024-06-01,2023-12-31,47.07,15.44
e,m,Wien,1980-01-01,2024-01-01,48.20,16.37
"""
STORES = "store_id,name,latitude,longitude\nS1,One,48.20,16.37\nS2,Two,48.20,16.47\n"
CASES = """case_id,customer_id,opened_at,closed_at,kind
1,a,2023-12-01,2023-12-10,question
2,a,2023-11-01,2023-12-20,complaint
3,a,2023-12-28,2024-01-03,warranty
4,b,2023-12-28,,question
"""
LATE = "[policy]\nstale_after_days = 10000\n"
DAY = "2023-12-31"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """One shop for all tests: to open it takes longer than to ask it."""
    folder = tmp_path_factory.mktemp("five")
    for name, text in {
        "transactions": LOG, "products": PRODUCTS, "customers": MEMBERS, "stores": STORES,
        "cases": CASES,
    }.items():  # fmt: skip
        (folder / f"{name}.csv").write_text(text, encoding="utf-8")
    (folder / "shop.toml").write_text(LATE, encoding="utf-8")
    return sources.open_shop(folder / "shop.toml")


@pytest.fixture(scope="module")
def known(shop):
    """The audience of that shop on the day."""
    return told(shop)[0]


def told(shop, *asked, as_of=DAY, **more):
    """The audience by customer, and the columns of the rules under their places."""
    read = rules.read(asked)
    made = audiences.audience(shop, as_of=as_of, rules=read, **more)
    found = made.order_by("customer_id").to_pandas().set_index("customer_id")
    return found, [found[rule.column_name] for rule in read]


def same(column, values):
    assert column.index.tolist() == list("abcd")
    assert column.astype(float).tolist() == pytest.approx(
        [math.nan if value is None else value for value in values], nan_ok=True
    )


def test_the_audience_has_who_bought_and_who_had_joined_by_the_day(known):
    found = known
    same(found["purchases"], [5, 1, 1, 0])
    assert found["stage"]["d"] == "never bought"
    assert set(found["stage"]) <= set(customers.STAGES) | {"never bought"}
    same(found["frequency"], [4, 0, 0, None])
    same(found["silent"], [7, 29, 365, None])
    same(found["days_since_first"], [376, 29, 365, None])
    # The 365 days begin on 2023-01-01; what was taken back is taken off.
    same(found["spend_year"], [73, 7, 0, 0])
    assert found["joined_on"].isna().tolist() == [False, True, True, False]  # c's lies ahead
    assert found["city"].tolist() == ["Wien", "Wien", "Graz", "Graz"]
    same(found["overdue"], (found["silent"] / found["usual_gap"]).tolist())
    assert found["overdue"]["a"] == pytest.approx(7 / ((2 * 92.25 + 369) / 6))


def test_what_is_told_of_members_and_cases_is_what_was_known_on_the_day(shop, known):
    found = known
    same(found["age"], [39, 30, 29, None])  # b has the birthday today, c tomorrow; d comes later
    same(found["days_to_birthday"], [61 - 1, 0, 1, None])  # 2024 has a 29 February
    same(found["days_since_case_closed"], [11, None, None, None])
    assert found["case_kind"]["a"] == "complaint"
    assert found["case_kind"].isna()["b"]
    later, _ = told(shop, as_of="2024-01-03")
    assert later["case_kind"]["a"] == "warranty"
    assert later["days_since_case_closed"]["a"] == 0
    assert later.index.tolist() == list("abcde")


def test_the_season_is_that_of_most_purchases_and_of_none_between_equals(shop, known):
    found = known
    # a: two in winter, two in summer, one in autumn.
    assert found["season"].isna().tolist() == [True, False, False, True]
    assert found["season"][["b", "c"]].tolist() == ["winter", "winter"]
    assert told(shop, as_of="2023-06-30")[0]["season"]["a"] == "summer"


def test_the_distance_is_to_the_last_store_and_no_home_is_told(shop, known):
    found = known
    one_tenth = 2 * math.pi * 6371.0088 * math.cos(math.radians(48.2)) / 3600
    same(found["distance_km"], [one_tenth, 0, None, None])  # S9 is in no list
    assert not {"latitude", "longitude", "store", *rules.SEASONS} & {*found}
    ours = features.features(shop, as_of=DAY).to_pandas().set_index("customer_id")["distance_km"]
    assert found["distance_km"]["a"] == pytest.approx(ours["a"])


def test_a_birthday_is_the_day_on_which_the_age_goes_up(shop):
    def age(born, on):
        return on.year - born.year - ((on.month, on.day) < (born.month, born.day))

    for day in ("2023-02-27", "2023-02-28", "2023-03-01", "2023-12-31", "2024-01-01", "2024-02-28",
                "2024-02-29", "2024-03-01", "2024-12-31"):  # fmt: skip
        today = dt.date.fromisoformat(day)
        found = audiences._members(shop, today).to_pandas().set_index("customer_id")
        for who, born in (("a", dt.date(1984, 2, 29)), ("c", dt.date(1994, 1, 1))):
            assert found["age"][who] == age(born, today)
            # Walk on until the age has just gone up.
            ahead = next(
                n for n in range(400)
                if age(born, today + dt.timedelta(n)) > age(born, today + dt.timedelta(n - 1))
            )  # fmt: skip
            assert found["days_to_birthday"][who] == ahead, (day, who)


def test_measures_of_receipts_count_days_that_net_to_a_purchase(shop):
    _, columns = told(
        shop,
        {"column": "purchases", "brand": "X", "to": 9},
        {"column": "spend", "brand": "X", "to": 999},
        {"column": "days_since", "brand": "X", "to": 999},
        {"column": "purchases", "category": "tea", "brand": ["X", "Y"], "to": 9},
        {"column": "spend", "channel": "web", "product_id": "p2", "from": 0},
        {"column": "purchases", "store_id": ["S1", "S9"], "to": 9},
        {"column": "purchases", "months": [11, 12], "to": 9},
        {"column": "spend", "days": 184, "to": 999},
        {"column": "spend", "days": 185, "to": 999},
        {"column": "purchases", "brand": "Z", "to": 0},
    )
    for column, wanted in zip(
        columns,
        [
            [4, 0, 1, 0],  # b took it back on the same day
            [88, 0, 100, 0],
            [7, None, 365, None],
            [5, 0, 1, 0],
            [20, 0, 0, 0],
            [3, 1, 1, 0],
            [3, 1, 1, 0],
            [28, 7, 0, 0],  # from 1 July
            [63, 7, 0, 0],  # and with 30 June
            [0, 0, 0, 0],  # a brand that nobody has bought
        ],
        strict=True,
    ):
        same(column, wanted)


CHOICES = (
    ("ac", [{"column": "purchases", "brand": "X"}]),
    ("a", [{"column": "days_since", "brand": "X", "days": 30}]),
    ("bd", [{"column": "purchases", "brand": "X", "to": 0}]),
    ("c", [{"column": "days_since", "brand": "X", "from": 8}]),
    ("a", [{"column": "spend", "brand": "X", "from": 88, "to": 88}]),
    ("d", [{"column": "stage", "is": "never bought"}]),
    ("bc", [{"column": "purchases", "from": 1, "to": 1}]),
    ("bc", [{"column": "days_to_birthday", "to": 1}]),
    ("a", [{"column": "case_kind", "is": "complaint"},
           {"column": "days_since_case_closed", "to": 11}]),
    ("a", [{"column": "clv", "from": 1}]),
    ("b", [{"column": "p_stop", "known": True}]),
)  # fmt: skip


def test_rules_find_the_columns_that_were_made_for_them_and_those_of_values_and_scores(shop):
    values = ibis.memtable({"customer_id": ["a", "b", "z"], "clv": [5.0, math.nan, 9.0],
                            "city": ["?", "?", "?"]})  # fmt: skip
    scores = ibis.memtable({"customer_id": ["b"], "p_stop": [0.25]})
    asked = [rule for _, some in CHOICES for rule in some]
    made = audiences.audience(shop, as_of=DAY, rules=asked, values=values, scores=scores)
    for wanted, some in CHOICES:
        rows = made.filter(rules.matches(made, some)).to_pyarrow()
        assert "".join(sorted(rows["customer_id"].to_pylist())) == wanted, some
    found = made.order_by("customer_id").to_pandas().set_index("customer_id")
    same(found["clv"], [5, None, None, None])
    same(found["p_stop"], [None, 0.25, None, None])
    assert found["city"]["a"] == "Wien"


def test_values_that_name_a_customer_twice_or_not_at_all_are_refused(shop):
    twice = ibis.memtable({"customer_id": ["a", "a"], "clv": [5.0, 6.0]})
    with pytest.raises(DataError, match="values has 2 rows of 1 customers; each may have one"):
        audiences.audience(shop, as_of=DAY, values=twice)
    with pytest.raises(UsageError, match="scores must be an ibis table with customer_id; it is a "):
        audiences.audience(shop, as_of=DAY, scores=ibis.memtable({"p_stop": [0.5]}))
    with pytest.raises(UsageError, match="it is a DataFrame with customer_id. ibis.memtable"):
        audiences.audience(shop, as_of=DAY, values=pd.DataFrame({"customer_id": ["a"]}))
    with pytest.raises(UsageError, match="customer_id in values must be a text"):
        audiences.audience(shop, as_of=DAY, values=ibis.memtable({"customer_id": [1]}))


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"brand": "x"}, "^Rule 1 .bought brand x.: there is no brand 'x'. There are X, Y, Z.$"),
        ({"brand": ["X", "Y; --"]}, "there is no brand 'Y; --'. There are X, Y, Z.$"),
        ({"category": "teas"}, "there is no category 'teas'. Did you mean 'tea'"),
        ({"product_id": "p9"}, "there is no product_id 'p9'"),
        (
            {"store_id": "S7"},
            "there is no store_id 'S7'. There are S1, S2, S9.$",
        ),
        ({"channel": "phone"}, "there is no channel 'phone'. There are shop, web.$"),
        ({"subcategory": "green"}, "has no table products with a column subcategory"),
    ],
)
def test_what_the_shop_does_not_sell_is_an_error_that_names_what_it_does(shop, rule, said):
    with pytest.raises(DataError, match=said):
        audiences.audience(shop, as_of=DAY, rules=[{"column": "purchases", **rule}])


def test_a_shop_of_transactions_alone_has_an_audience(make_shop):
    bare = make_shop("customer_id,purchased_at,amount\na,2023-01-01,5\na,2023-02-01,5\nb,2023-02-"
                     "02,1\n", LATE)  # fmt: skip
    found, [column] = told(bare, {"column": "purchases", "months": 2}, as_of="2023-02-03")
    assert column.to_dict() == {"a": 1, "b": 1}
    assert found["spend_year"].to_dict() == {"a": 10, "b": 1}
    assert not {"city", "age", "distance_km", "case_kind", "clv"} & {*found}
    with pytest.raises(DataError, match="there is no column 'city'"):
        rules.matches(audiences.audience(bare, as_of="2023-02-03"), [{"column": "city", "is": "x"}])
    for trait, said in (
        ("channel", "has no column channel"),
        ("brand", "has no column product_id"),
    ):
        with pytest.raises(DataError, match=f"the table transactions of shop .* {said}"):
            told(bare, {"column": "spend", trait: "x"}, as_of="2023-02-03")


def test_where_nobody_came_back_nobody_has_a_rhythm_nor_is_overdue(make_shop):
    bare = make_shop("customer_id,purchased_at,amount\na,2023-01-01,5\nb,2023-02-02,1\n", LATE)
    found, _ = told(bare, as_of="2023-02-03")
    assert found[["usual_gap", "overdue"]].isna().all(axis=None)


def test_before_the_first_purchase_there_is_no_audience(shop):
    with pytest.raises(DataError, match="before the first purchase"):
        audiences.audience(shop, as_of="2020-01-01")


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audiences")
    demo.shop(customers=1_500, seed=5, folder=folder)
    return folder


@pytest.mark.slow
def test_changing_the_future_changes_no_audience(demo_folder, tmp_path):
    asked = [{"column": "spend", "brand": "Карпати", "days": 183, "to": 1e9},
             {"column": "days_since", "channel": "web", "to": 1e9}]  # fmt: skip
    one = sources.open_shop(demo_folder / "shop.toml")
    other = with_another_future(demo_folder, tmp_path / "other")
    known = [told(shop, *asked, as_of=AS_OF)[0] for shop in (one, other)]
    pd.testing.assert_frame_equal(*known, rtol=1e-9)
    assert known[0]["days_since_case_closed"].notna().any()
    # The test can fail: a later date shows what was changed.
    later = [told(shop, *asked, as_of="2025-06-30")[0] for shop in (one, other)]
    with pytest.raises(AssertionError):
        pd.testing.assert_frame_equal(*later, rtol=1e-9)


BRAND, DEMO_DAY = "Карпати", dt.date(2025, 6, 30)
EXAMPLE = [
    {"column": "sex", "is": "m"},
    {"column": "age", "from": 30, "to": 40},
    {"column": "purchases", "brand": BRAND, "days": 183},
    {"column": "spend_year", "from": 20, "to": 800},
    {"column": "stage", "is": "declining"},
    {"column": "distance_km", "to": 10},
]


def by_hand(folder, stages):
    """The customers of the example, by pandas from the Parquet files alone, but for the stage."""
    read = {name: pd.read_parquet(folder / f"{name}.parquet")
            for name in ("transactions", "customers", "products", "stores")}  # fmt: skip
    log = read["transactions"].dropna(subset=["customer_id"])
    # A time without a zone is the shop's wall clock.
    log = log.assign(day=log["purchased_at"].dt.date, amount=log["amount"].astype(float))
    log = log[log["day"] <= DEMO_DAY].merge(read["products"], on="product_id", how="left")
    half = log[(log["brand"] == BRAND) & (log["day"] > DEMO_DAY - dt.timedelta(183))]
    visits = half.groupby(["customer_id", "day"])["amount"].sum().round(4)
    bought = set(visits[visits > 0].index.get_level_values(0))
    year = log[log["day"] > DEMO_DAY - dt.timedelta(365)]
    spent = year.groupby("customer_id")["amount"].sum().round(4)
    days = log.groupby(["customer_id", "day"]).agg(
        amount=("amount", "sum"), store_id=("store_id", "max")
    )
    days = days[days["amount"].round(4) > 0].reset_index().sort_values("day")
    last = days.groupby("customer_id")["store_id"].last()
    places = read["stores"].drop_duplicates("store_id").set_index("store_id")
    passed = []
    for row in read["customers"].drop_duplicates("customer_id").itertuples():
        if row.sex != "m" or pd.isna(row.birth_date):
            continue
        born, who = pd.Timestamp(row.birth_date), row.customer_id
        age = DEMO_DAY.year - born.year - ((born.month, born.day) > (6, 30))
        near = (
            who in last.index and last[who] in places.index and km(row, places.loc[last[who]]) <= 10
        )
        if 30 <= age <= 40 and who in bought and 20 <= spent.get(who, 0) <= 800 and near:
            passed += [who] if stages.get(who) == "declining" else []
    return passed


def km(home, store):
    """The angle between two unit vectors on the sphere: another way than the haversine."""
    a, b = (
        np.array([math.cos(n) * math.cos(e), math.cos(n) * math.sin(e), math.sin(n)])
        for n, e in np.radians([[home.latitude, home.longitude], [store.latitude, store.longitude]])
    )
    return 6371.0088 * math.atan2(np.linalg.norm(np.cross(a, b)), a @ b)


@pytest.mark.slow
def test_the_example_of_a_campaign_is_what_pandas_makes_of_the_files(home):
    shop = sources.open_shop("demo")
    made = audiences.audience(shop, as_of=DEMO_DAY, rules=EXAMPLE)
    ids = made.filter(rules.matches(made, EXAMPLE)).to_pyarrow()["customer_id"].to_pylist()
    stages = customers.stages(shop, as_of=DEMO_DAY).to_pandas().set_index("customer_id")["stage"]
    wanted = by_hand(home / "data" / "demo", stages.to_dict())
    assert sorted(ids) == sorted(wanted)
    assert len(ids) >= 10
    funnel = rules.funnel(made, EXAMPLE, numbers=shop.numbers)
    assert funnel.left == len(ids)
    assert (funnel.to_frame()["dropped"].iloc[:5] > 0).all()
