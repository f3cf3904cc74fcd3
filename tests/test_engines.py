"""One meaning on three engines: DuckDB on files, PostgreSQL as a reader, local Spark.

Decimals, counts, dates and texts are compared exactly, floats to 1e-9 of their size.
"""

import datetime as dt
import decimal
import importlib.util
import math
import os
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crmlab import (
    audiences,
    catchment,
    clv,
    cohorts,
    customers,
    features,
    inventory,
    places,
    policies,
    rules,
    sources,
    uplift,
)
from crmlab.tables import CONTRACT, DataError
from tests.conftest import need, new_database

PASSWORD = "s:cr/t@word%"
MONEY, MOMENT = pa.decimal128(12, 2), pa.timestamp("us", tz="UTC")


def receipts(n=4000):
    """Three years of a shop in Kyiv whose rows break every rule that a typed column can break."""
    rng = np.random.default_rng(5)
    start = np.datetime64("2022-01-01", "us")
    at = start + (rng.random(n) ** 1.3 * 900 * 86400e6).astype("timedelta64[us]")
    who = 10_000.0 + rng.integers(1, 300, n)
    amount = np.round(rng.gamma(2, 9, n), 2)
    amount[:60] *= -1
    amount[60:70], amount[70:73], amount[73] = 0, (np.nan, np.inf, -np.inf), 1e15
    rows = {
        "card": pa.array([None if w > 10_290 else w for w in who], pa.float64()),
        "purchased_at": pa.array(at, pa.timestamp("us")).cast(MOMENT),
        "amount": pa.array(amount, pa.float64()),
        "transaction_id": pa.array(rng.integers(1, n, n), pa.int64()),
        "product_id": pa.array([f" p{p} " if p else "" for p in rng.integers(0, 40, n)]),
        "store_id": pa.array([decimal.Decimal(int(s)) for s in rng.integers(1, 9, n)], MONEY),
        "discount": pa.array([decimal.Decimal(int(d)) / 4 for d in rng.integers(0, 9, n)], MONEY),
        "quantity": pa.array(rng.integers(1, 5, n), pa.int32()),
        "channel": pa.array([None if c == 2 else "web" * c for c in rng.integers(0, 3, n)]),
    }
    table = pa.table(rows)
    moments = ["2024-03-31T00:59:00", "2024-03-31T01:00:00", "2022-10-30T00:30:00"]
    odd = table.slice(0, 3).set_column(
        1, "purchased_at", pa.array([dt.datetime.fromisoformat(m) for m in moments], MOMENT)
    )
    return pa.concat_tables([table, odd, table.slice(200, 5), table.slice(200, 2)])


def days(n, step):
    """Return moments before August 2022, late in the evening, so many days apart."""
    last = dt.datetime(2022, 7, 31, 22, 30)
    return [last - dt.timedelta(step * one) for one in range(n)]


def others():
    """The other tables, small and dirty."""
    at = pa.array([dt.datetime(2023, 5, day, 23, 30) for day in (1, 2, 3)], pa.timestamp("us"))
    ids = [str(n) for n in range(10_001, 10_200)]
    return {
        "customers": pa.table(
            {
                "customer_id": [*ids, "10007", None],
                "birth_date": pa.array(
                    [dt.date(1893, 1, 1), dt.date(2262, 1, 1)] + [dt.date(1980, 2, 29)] * 199
                ),
                "latitude": [0.0, 91.0, math.nan] + [50.45] * 198,
                "longitude": [0.0, 30.5, 30.5] + [30.5] * 198,
                "sms_ok": pa.array([True, None] + [False] * 199),
                "mail_ok": pa.array([1, 0] + [None, 1, 1] * 66 + [None], pa.int32()),
            }
        ),
        "stores": pa.table(
            {
                "store_id": pa.array([1, 2, 2, 3], pa.int32()),
                "name": ["Львів", "茶叶店", "again", "<b>"],
                "own": [True, False, True, None],
                "area_m2": [100.0, -5.0, 3.0, math.inf],
                "opened_on": pa.array([dt.date(2001, 5, 17)] * 4),
            }
        ),
        "points": pa.table(
            {
                "customer_id": ["1", "2", "3"],
                "posted_at": at,
                "points": pa.array([10, -5, 7], pa.int64()),
                "kind": ["EARN", "redeem", "gift"],
            }
        ),
        "products": pa.table(
            {
                "product_id": [f"p{n}" for n in range(1, 39)],
                "category": [None if n % 9 == 0 else f"kind {n % 7}" for n in range(1, 39)],
            }
        ),
        "cases": pa.table(
            {
                "case_id": [str(n) for n in range(60)],
                "customer_id": [str(10_001 + n % 40) for n in range(60)],
                "opened_at": pa.array(days(60, 4), pa.timestamp("us")),
                "closed_at": pa.array(
                    [d if n % 2 else None for n, d in enumerate(days(60, 5))], pa.timestamp("us")
                ),
                "kind": [("complaint", "question", None)[n % 3] for n in range(60)],
            }
        ),
        "contacts": pa.table(
            {
                "campaign_id": ["x"] * 60 + ["y"] * 120,
                "customer_id": [str(10_001 + n) for n in (*range(60), *range(80, 200))],
                "arm": ["mail"] * 60 + ["mail", "holdout", "call"] * 40,
                "assigned_at": pa.array([*days(60, 3), *[DRAWN] * 120], pa.timestamp("us")),
                "sent_at": pa.array([*days(60, 3), *[DRAWN, None, DRAWN] * 40], pa.timestamp("us")),
            }
        ),
        "campaigns": pa.table(
            {
                "campaign_id": ["x", "y"],
                "channel": ["sms", "post"],
                "starts_on": pa.array([dt.date(2022, 5, 2), dt.date(2022, 6, 2)]),
                "ends_on": pa.array([dt.date(2022, 5, 31), dt.date(2022, 7, 1)]),
                "contact_cost": pa.array([decimal.Decimal("0.05"), decimal.Decimal("0.90")], MONEY),
                "randomised": [False, True],
            }
        ),
    }


DRAWN = dt.datetime(2022, 6, 1, 22, 30)  # the next day in Kyiv
TOML = """
name = "Shop"
timezone = "Europe/Kyiv"
{source}
[tables.transactions]
columns = {{ customer_id = "card" }}
[tables.consents]
flags = {{ sms = "sms_ok", post = "mail_ok" }}
[policy]
naive_timestamps = "UTC"
duplicate_lines = "{equal}"
not_goods = ["p3"]
"""


def opened(folder, source="", equal="keep"):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "shop.toml").write_text(TOML.format(source=source, equal=equal), encoding="utf-8")
    return sources.open_shop(folder / "shop.toml")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files") / "shop"
    folder.mkdir()
    for name, table in {"transactions": receipts(), **others()}.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def postgres(postgres_server, files):
    """A database that holds the same tables, and the URL of one who may only read it."""
    import psycopg

    with new_database(postgres_server, PASSWORD) as (url, reader, where):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"revoke all on database {reader} from public")
            connection.execute("revoke all on schema public from public")
            connection.execute(f"grant connect on database {reader} to {reader}")
            connection.execute(f"grant usage on schema public to {reader}")
            for table in ("transactions", *others()):
                load(connection, table, pq.read_table(files / f"{table}.parquet"))
            connection.execute(f"grant select on all tables in schema public to {reader}")
        os.environ["CRMLAB_TEST_PASSWORD"] = PASSWORD
        yield f"postgresql://{reader}:${{CRMLAB_TEST_PASSWORD}}@{where}"


KINDS = {
    "double": "double precision", "int64": "bigint", "int32": "integer", "string": "text",
    "bool": "boolean", "date32[day]": "date", "timestamp[us]": "timestamp",
    "timestamp[us, tz=UTC]": "timestamptz", "decimal128(12, 2)": "numeric",
}  # fmt: skip


def load(connection, name, table):
    columns = ", ".join(f'"{f.name}" {KINDS[str(f.type)]}' for f in table.schema)
    connection.execute(f"create table {name} ({columns})")
    with connection.cursor().copy(f"copy {name} from stdin") as copy:
        for row in table.to_pylist():
            copy.write_row(list(row.values()))


@pytest.fixture(scope="module")
def spark():
    """One Spark for all tests, stopped after them."""
    need(importlib.util.find_spec("pyspark"), "the extra `spark`")
    need(shutil.which("java"), "Java")
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    session = (
        builder.config("spark.sql.shuffle.partitions", "2")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.session.timeZone", "America/New_York")
        .getOrCreate()
    )
    yield session
    session.stop()


@pytest.fixture(scope="module", params=["postgres", "spark"])
def pair(request, files, tmp_path_factory):
    """The shop on files, and the same shop on another engine, by policy for equal lines."""
    where = request.getfixturevalue(request.param)
    source = f'[source]\nurl = "{where if request.param == "postgres" else "spark"}"\n'
    folder = tmp_path_factory.mktemp(request.param) / "shop"
    if request.param == "spark":
        shutil.copytree(files, folder, ignore=shutil.ignore_patterns("*.toml"))
        (folder / "stores.parquet").unlink()
        where.read.parquet(str(files / "stores.parquet")).createOrReplaceTempView("stores")
    made = {}

    def pair(equal="keep"):
        if equal not in made:
            made[equal] = opened(files, equal=equal), opened(folder, source, equal=equal)
        return made[equal]

    return pair


def cells(table):
    """Return a table's rows in one order, with floats rounded to what must agree."""
    rows = [tuple(row.values()) for row in table.to_pyarrow().to_pylist()]
    return sorted(rows, key=lambda row: tuple((value is not None, str(value)) for value in row))


def assert_same(one, other):
    assert list(one.columns) == list(other.columns)
    assert [str(kind) for kind in one.schema().types] == [str(k) for k in other.schema().types]
    left, right = cells(one), cells(other)
    assert len(left) == len(right) > 0
    for row, twin in zip(left, right, strict=True):
        for value, same in zip(row, twin, strict=True):
            if isinstance(value, float) and value == value:
                assert same == pytest.approx(value, rel=1e-9)
            else:
                assert value == same


@pytest.mark.parametrize("name", ["transactions", "customers", "stores", "points", "consents"])
def test_a_table_is_the_same_cell_by_cell(pair, name):
    ours, theirs = pair()
    assert_same(ours.table(name), theirs.table(name))


@pytest.mark.parametrize("equal", ["keep", "drop"])
@pytest.mark.parametrize("name", ["transactions", "customers", "stores", "points", "consents"])
def test_the_check_counts_the_same(pair, name, equal):
    one, other = (shop.check(name, as_of="2024-01-31") for shop in pair(equal))
    assert one.rows == one.used + one.rows_set_aside + one.later > 0
    for field in ("rows", "used", "later", "kept", "first", "last"):
        assert getattr(one, field) == getattr(other, field), field
    assert one.used_money == pytest.approx(other.used_money, rel=1e-12)
    assert one.set_aside.keys() == other.set_aside.keys()
    for rule, (rows, money) in one.set_aside.items():
        assert (rows, money) == pytest.approx(other.set_aside[rule], nan_ok=True)


def test_every_rule_of_a_typed_column_is_broken_by_these_data(pair):
    ours, _ = pair("drop")
    found = {name: ours.check(name) for name in ("transactions", "customers", "stores", "points")}
    broken = {name: sorted((*check.set_aside, *check.kept)) for name, check in found.items()}
    assert broken == {
        "transactions": [
            "amount missing",
            "amount negative (a return, taken off its day)",
            "amount unreadable",
            "amount zero (a day of nothing else is a purchase only if the policy counts it)",
            "customer_id missing (anonymous sale, in no customer's figures)",
            "customer_id without a row in customers",
            "line equal to an earlier one in every column",
            "no goods by the shop's policy (in no customer's figures)",
            "product_id without a row in products",
            "store_id without a row in stores",
        ],
        "customers": [
            "birth_date unreadable or impossible",
            "customer_id missing",
            "latitude unreadable or impossible",
            "longitude unreadable or impossible",
            "second row of the same customer_id",
        ],
        "stores": ["area_m2 unreadable or impossible", "second row of the same store_id"],
        "points": [
            "customer_id without a row in customers",
            "kind none of earn, redeem, expire, adjust",
        ],
    }


def test_times_are_the_shops_wall_clock_on_both_clock_change_days(pair):
    for shop in pair():
        rows = shop.table("transactions")
        seen = set(rows.select("purchased_at").to_pyarrow()["purchased_at"].to_pylist())
        for wall in ("2024-03-31 02:59", "2024-03-31 04:00", "2022-10-30 03:30"):
            assert dt.datetime.fromisoformat(wall) in seen, (shop.table, wall)


def test_the_stages_and_the_moves_between_them_are_the_same(pair):
    one, other = (customers.stages(shop, as_of="2023-12-31") for shop in pair())
    assert_same(one, other)
    one, other = (customers.flows(shop, start="2022-03-31", end="2022-06-30") for shop in pair())
    pd.testing.assert_frame_equal(one.moves, other.moves)
    pd.testing.assert_frame_equal(one.stock, other.stock)
    assert one.usual_gap == pytest.approx(other.usual_gap, rel=1e-9)
    assert one.stock[["before", "now"]].min(axis=None) > 0


def test_the_features_are_the_same(pair):
    one, other = (features.features(shop, as_of="2022-07-31") for shop in pair())
    assert_same(one, other)
    rows = one.to_pandas()
    assert rows.notna().any().all(), "every feature is known of somebody"
    assert {"store", "channel", "case_kind"} <= {*rows}
    for name in ("contacts", "categories", "cases", "case_open_days", "discount_share"):
        assert rows[name].max() > 0, name
    bought = [features.bought_after(shop, after=dt.date(2022, 7, 31), days=91) for shop in pair()]
    assert_same(*bought)


MEASURES = (
    {"column": "purchases", "category": ["kind 1", "kind 2"], "to": 1e9},
    {"column": "spend", "store_id": "5", "days": 183, "to": 1e9},
    {"column": "days_since", "channel": "web", "months": [5, 6, 7], "to": 1e9},
    {"column": "spend", "product_id": ["p1", "p2"], "category": "kind 1", "to": 1e9},
)


def test_the_audience_and_its_measures_of_receipts_are_the_same(pair):
    asked = rules.read(MEASURES)
    day = {"as_of": "2022-07-31", "rules": asked}
    one, other = (audiences.audience(shop, **day) for shop in pair())
    assert_same(one, other)
    rows = one.to_pandas()
    for rule in asked:
        assert rows[rule.column_name].nunique() > 2, str(rule)
    assert {"age", "days_to_birthday", "case_kind", "season"} <= {*rows}
    found = [rules.funnel(rows, asked).to_frame() for rows in (one, other)]
    pd.testing.assert_frame_equal(*found)
    for shop in pair():
        with pytest.raises(DataError, match="there is no category 'kind 9'. Did you mean"):
            audiences.audience(
                shop, as_of="2022-07-31", rules=[{"column": "spend", "category": "kind 9"}]
            )


def test_a_campaign_is_measured_the_same(pair):
    asked = {"campaign_id": "y", "as_of": "2022-07-31", "margin": 0.3}
    one, other = (uplift.measure(shop, **asked) for shop in pair())
    assert one.trial.first_from == dt.date(2022, 6, 2)
    assert dict(one.trial.sizes) == {"mail": 40, "holdout": 40, "call": 40}
    for name in ("rows", "earned", "longer", "guardrails", "segments", "balance"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), rtol=1e-9)
    assert one.to_frame()["mean"].min() > 0


def test_who_may_be_contacted_is_the_same(pair):
    day, arms = (
        dt.date(2022, 6, 10),
        policies.read_arms([{"name": "a", "channels": ["sms", "post"]}]),
    )
    policy = policies.read_policy({"most": 1, "quiet_days": 2, "complaint_days": 20})
    found = []
    for shop in pair():
        rows = shop.landed(shop.table("customers").select("customer_id"), "customers")
        asked = {"arms": arms, "policy": policy, "as_of": day, "sends_on": day + dt.timedelta(1)}
        found.append(policies.open_channels(rows, shop, **asked))
    assert_same(*found)
    said = set(found[0].to_pandas()["reason"].fillna("may"))
    assert {"may", "no consent", "complaint"} <= said and len(said) > 3


def test_products_may_lie_elsewhere_than_the_receipts(postgres, files, tmp_path):
    (tmp_path / "shop").mkdir()
    shutil.copy(files / "products.parquet", tmp_path / "shop")
    mixed = opened(
        tmp_path / "shop", f'[source]\nurl = "{postgres}"\n[tables.products]\nurl = "."\n'
    )
    asked = [{"column": "spend", "category": "kind 1", "to": 1e9}]
    made = [
        audiences.audience(shop, as_of="2022-07-31", rules=asked) for shop in (opened(files), mixed)
    ]
    assert_same(*made)


@pytest.mark.parametrize("ask", [cohorts.activation, cohorts.retention])
def test_the_cohorts_are_the_same(pair, ask):
    one, other = (ask(shop, as_of="2022-07-31") for shop in pair())
    pd.testing.assert_frame_equal(one.table, other.table, rtol=1e-9)
    assert one.left_out == other.left_out > 0
    assert one.table.isna().any(axis=None)  # what the log does not reach is missing on all
    assert one.table["customers"].sum() > 20


def test_what_is_asked_of_each_customer_is_the_same(pair):
    days = {"as_of": "2023-12-31", "since": "2023-10-31"}
    one, other = (inventory.base(shop, **days) for shop in pair())
    assert_same(one.rows, other.rows)
    for part in (inventory.demographics, inventory.lost_valuable, inventory.reactivated):
        told = [inventory.attempt(lambda part=part, base=base: part(base)) for base in (one, other)]
        assert told[0]._repr_html_() == told[1]._repr_html_()
    assert_same(inventory.to_ring(one, n=9), inventory.to_ring(other, n=9))


def test_the_log_ends_on_the_same_day(pair):
    one, other = pair()
    assert one.last_complete_day() == other.last_complete_day()
    before = dt.date(2023, 6, 1)
    assert one.last_complete_day(before=before) == other.last_complete_day(before=before)


@pytest.mark.parametrize("equal", ["keep", "drop"])
def test_the_customer_summary_is_the_same(pair, equal):
    one, other = (customers.summary(shop, as_of="2023-12-31") for shop in pair(equal))
    assert_same(one, other)
    assert one.frequency.max().to_pyarrow().as_py() > 3


def test_purchase_days_are_the_same(pair):
    one, other = (customers.purchase_days(shop, as_of="2023-12-31") for shop in pair())
    assert_same(one, other)


def test_the_hold_out_check_is_the_same(pair):
    one, other = (
        clv.backtest(shop, split="2023-06-30", horizon_days=180, as_of="2024-01-31")
        for shop in pair()
    )
    pd.testing.assert_frame_equal(one.rows, other.rows, rtol=1e-6)
    pd.testing.assert_frame_equal(one.tracking, other.tracking, rtol=1e-6)
    assert (one.born_after, one.actual) == (other.born_after, other.actual)


def test_rows_set_aside_are_the_same(pair, tmp_path):
    one, other = pair("drop")
    left = pq.read_table(one.write_set_aside(tmp_path / "one"))
    right = pq.read_table(other.write_set_aside(tmp_path / "other"))
    assert sorted(left["rule"].to_pylist()) == sorted(right["rule"].to_pylist())
    assert left.column_names == right.column_names


def test_the_page_check_finds_a_customer_on_every_engine(pair):
    from crmlab.reports import child

    for shop in pair():
        assert child._customers_named(shop, "<p>10007 and 10008, not 20001</p>") == 2


def test_a_database_is_only_read(postgres, files, tmp_path):
    shop = opened(tmp_path / "shop", f'[source]\nurl = "{postgres}"\n')
    shop.check()
    connection = shop.engines.at(shop.settings.url).con
    with connection.cursor() as cursor:
        assert cursor.execute("show default_transaction_read_only").fetchone() == ("on",)
        with pytest.raises(Exception, match="permission denied|read-only"):
            cursor.execute("create temp table t (a int)")


def test_tables_may_come_from_several_sources(postgres, files, tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "stores.csv").write_text("store_id,name\n1,A\n2,B\n", encoding="utf-8")
    shop = opened(tmp_path / "shop", f'[source]\nurl = "{postgres}"\n[tables.stores]\nurl = "."\n')
    mixed = shop.check().kept["store_id without a row in stores"]
    rows = opened(files).table("transactions")
    assert mixed == rows.filter(~rows.store_id.isin(["1", "2"])).count().to_pyarrow().as_py()


def test_no_password_is_shown(postgres, files, tmp_path, monkeypatch):
    shop = opened(tmp_path / "shop", f'[source]\nurl = "{postgres}"\n')
    shown = [repr(shop), repr(shop.settings), str(shop.check()), shop.check()._repr_html_()]
    monkeypatch.setenv("CRMLAB_TEST_PASSWORD", "wrong" + PASSWORD)
    broken = f'[source]\nurl = "{postgres.replace("port=", "port=1")}"\n'
    for source in (broken, broken.replace("postgresql://", "mysql://")):
        with pytest.raises(DataError) as caught:
            opened(tmp_path / "broken", source).check()
        shown.append(str(caught.value))
    for text in shown:
        assert PASSWORD not in text
        assert "s%3Acr" not in text


def test_a_name_in_the_database_never_becomes_sql(postgres, tmp_path):
    evil = 'receipts"; drop table transactions; --'
    shop = opened(tmp_path / "shop", f'[source]\nurl = "{postgres}"\n')
    text = (tmp_path / "shop" / "shop.toml").read_text(encoding="utf-8")
    (tmp_path / "shop" / "shop.toml").write_text(
        text.replace("[tables.transactions]\n", f"[tables.transactions]\nfrom = '{evil}'\n"),
        encoding="utf-8",
    )
    with pytest.raises(DataError, match="has no table"):
        sources.open_shop(tmp_path / "shop" / "shop.toml").check()
    assert shop.check().rows > 0


def test_a_database_that_goes_away_is_an_error_in_words(postgres, tmp_path):
    import psycopg

    shop = opened(tmp_path / "shop", f'[source]\nurl = "{postgres}"\n')
    shop.table("transactions")
    connection = shop.engines.at(shop.settings.url).con
    pid = connection.info.backend_pid
    # A role may end its own connections.
    with psycopg.connect(shop.settings.url, autocommit=True) as another:
        another.execute("select pg_terminate_backend(%s)", [pid])
    with pytest.raises(DataError, match="cannot be read from postgresql://"):
        shop.last_complete_day()


def test_a_query_that_takes_too_long_is_an_error_in_words(postgres, tmp_path):
    url = postgres + "&options=-c%20statement_timeout%3D1"
    shop = opened(tmp_path / "shop", f'[source]\nurl = "{url}"\n')
    with pytest.raises(DataError, match="statement timeout"):
        shop.check()


def test_the_contract_has_no_table_that_no_engine_test_could_open(pair):
    ours, theirs = pair()
    assert [ours.has(name) for name in CONTRACT] == [theirs.has(name) for name in CONTRACT]


def test_rings_and_sectors_are_the_same_on_every_engine(pair):
    found = []
    for shop in pair():
        people = shop.table("customers")
        n = people.customer_id.cast("int64")
        people = people.select(
            "customer_id", latitude=50.45 + (n % 97 - 48).cast("float64") / 300,
            longitude=30.5 + (n % 89 - 44).cast("float64") / 200, member=n % 2 == 0,
            spend=(n % 7).cast("float64"), points=(n % 5).cast("float64"),
        )  # fmt: skip
        stores = people.filter(people.customer_id.isin(["10007", "10100"]))
        stores = places.compass(stores, "customer_id").rename(store_id="customer_id")
        rows = places.on_sphere(people)
        found.append(catchment.count_cells(rows, stores, rings_km=(5, 10, 20), sectors=16))
    assert_same(*found)
    assert found[0].count().to_pyarrow().as_py() > 40
    # At one point stand most of them; the others have no coordinate, an impossible one or (0, 0).
    located = [places.on_sphere(shop.table("customers")) for shop in pair()]
    counts = [rows.filter(rows.x.notnull()).count().to_pyarrow().as_py() for rows in located]
    assert counts == [196, 196]  # of 201 rows one without and one with a second id
