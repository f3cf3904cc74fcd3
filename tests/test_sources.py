import datetime as dt
import decimal
import gzip

import duckdb
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crmlab import sources, tables
from crmlab.tables import DataError, UsageError

CSV = """customer_id,purchased_at,amount
007,2024-01-01 10:00,12.50
007,2024-01-03,7.25
1e5,2024-01-05,3
,2024-01-06,4
"""


def rows(shop):
    table = shop.table("transactions").order_by("purchased_at", "amount").to_pyarrow()
    return pd.DataFrame(table.to_pylist(), dtype=object)


def test_ids_stay_text_and_money_is_decimal(make_shop):
    table = make_shop(CSV).table("transactions")
    assert str(table.schema()["amount"]) == "decimal(18, 4)"
    found = table.order_by("purchased_at").to_pyarrow().to_pylist()
    assert [row["customer_id"] for row in found] == ["007", "007", "1e5", None]
    assert found[0]["amount"] == decimal.Decimal("12.5")
    assert found[0]["purchased_on"] == dt.date(2024, 1, 1)


@pytest.mark.parametrize("form", ["csv", "csv.gz", "parquet", "folder", "duckdb"])
def test_every_kind_of_file_gives_the_same_table(make_shop, tmp_path, form):
    frame = pd.DataFrame(
        {
            "customer_id": ["a", "b"],
            "purchased_at": pd.to_datetime(["2024-01-01", "2024-01-02"]),
            "amount": [1.5, -2.25],
        }
    )
    source = ""
    if form == "csv":
        frame.to_csv(tmp_path / "transactions.csv", index=False)
    elif form == "csv.gz":
        frame.to_csv(tmp_path / "transactions.csv.gz", index=False)
    elif form == "parquet":
        frame.to_parquet(tmp_path / "transactions.parquet")
    elif form == "folder":
        (tmp_path / "transactions").mkdir()
        frame.iloc[:1].to_parquet(tmp_path / "transactions" / "1.parquet")
        frame.iloc[1:].to_parquet(tmp_path / "transactions" / "2.parquet")
    else:
        source = '[source]\nurl = "shop.duckdb"\n'
        with duckdb.connect(str(tmp_path / "shop.duckdb")) as connection:
            connection.register("frame", frame)
            connection.execute("create table transactions as select * from frame")
    found = rows(make_shop(None, source))
    assert list(found["customer_id"]) == ["a", "b"]
    assert [float(value) for value in found["amount"]] == [1.5, -2.25]


def test_opening_a_source_changes_nothing_in_its_folder(make_shop, tmp_path):
    with duckdb.connect(str(tmp_path / "shop.duckdb")) as connection:
        connection.execute(
            "create table transactions as select '1' as customer_id, "
            "timestamp '2024-01-01' as purchased_at, 1.0 as amount"
        )
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    shop = make_shop(None, '[source]\nurl = "shop.duckdb"\n')
    assert len(rows(shop)) == 1
    after = {path: path.read_bytes() for path in tmp_path.iterdir() if path.name != "shop.toml"}
    assert after == before


def test_columns_are_renamed_once_and_the_separator_and_decimal_comma_are_read(make_shop):
    shop = make_shop(
        "card;ts;total\n1;31/12/2023;1,50\n2;01/02/2024;2,25\n",
        '[tables.transactions]\nseparator = ";"\ndecimal = ","\ndate_format = "%d/%m/%Y"\n'
        'columns = { customer_id = "card", purchased_at = "ts", amount = "total" }\n',
    )
    found = rows(shop)
    assert list(found["purchased_on"]) == [dt.date(2023, 12, 31), dt.date(2024, 2, 1)]
    assert [float(value) for value in found["amount"]] == [1.5, 2.25]


@pytest.mark.parametrize(
    ("decimal", "given", "read"),
    [
        (",", "1.234,50", 1234.5),
        (",", "1.250", 1250.0),
        (",", "-12,5", -12.5),
        (",", "12.50", None),
        (",", "1.2345", None),
        (".", "1,234.50", 1234.5),
        (".", "12,50", None),
        (".", "1e3", 1000.0),
    ],
)
def test_thousands_are_read_and_what_breaks_their_pattern_is_not_guessed(
    make_shop, decimal, given, read
):
    csv = f'customer_id,purchased_at,amount\na,2024-01-01,"{given}"\n' + "b,2024-01-02,1\n" * 3
    shop = make_shop(csv, f'[tables.transactions]\ndecimal = "{decimal}"\n')
    found = [float(row.amount) for row in rows(shop).itertuples() if row.customer_id == "a"]
    assert found == ([] if read is None else [read])
    assert shop.check().examples == ({"amount unreadable": given} if read is None else {})
    assert f"such as {given!r}" in str(shop.check()) or read is not None


def test_a_receipt_dated_after_the_slot_does_not_move_the_reports_date(make_shop):
    shop = make_shop(CSV + "a,2031-01-05,3\n")
    assert shop.last_complete_day(before=dt.date(2024, 2, 1)) == dt.date(2024, 1, 5)
    with pytest.raises(DataError, match="no purchase before 2024-01-01"):
        shop.last_complete_day(before=dt.date(2024, 1, 1))


def test_a_line_that_begins_with_a_hash_is_a_line(make_shop):
    csv = "customer_id,purchased_at,amount\n1,2024-01-01,10\n#2,2024-01-02,20\n#3,2024-01-03,30\n"
    assert make_shop(csv).check().used_money == 60


def test_files_of_a_folder_may_differ_in_their_types(make_shop, tmp_path):
    (tmp_path / "transactions").mkdir()
    days = pd.to_datetime(["2024-01-01"])
    for name, frame in {
        "a": {"customer_id": [7], "purchased_at": days, "amount": [1]},
        "b": {"amount": [2.75], "purchased_at": days, "customer_id": ["007"], "channel": ["web"]},
    }.items():
        pd.DataFrame(frame).to_parquet(tmp_path / "transactions" / f"{name}.parquet")
    found = rows(make_shop(None))
    assert list(found["customer_id"]) == ["7", "007"]
    assert [float(v) for v in found["amount"]] == [1, 2.75]
    assert list(found["channel"]) == [None, "web"]


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("2020-01-01 23:30:00+00:00", "2020-01-02 08:30:00"),
        ("2020-01-01T23:30:00Z", "2020-01-02 08:30:00"),
        ("2020-01-01 23:30:00-05", "2020-01-02 13:30:00"),
        ("2020-01-01 23:30", "2020-01-01 23:30:00"),
        ("2020/01/01", "2020-01-01 00:00:00"),
        ("2020-01-01 10:00 PM", None),
        ("2020-01-01 10:00 EST", None),
        ("20-01-02", None),
        ("infinity", None),
    ],
)
def test_text_with_a_zone_becomes_the_shops_clock_and_only_iso_is_guessed(make_shop, given, read):
    csv = f"customer_id,purchased_at,amount\na,{given},1\n" + "b,2020-01-05,1\n" * 2
    found = rows(make_shop(csv, 'timezone = "Asia/Tokyo"\n'))
    assert [str(at) for at in found["purchased_at"][:-2]] == ([read] if read else [])


def test_a_date_format_with_a_zone_is_read(make_shop):
    toml = 'timezone = "Asia/Tokyo"\n[tables.transactions]\ndate_format = "%d.%m.%Y %H:%M %z"\n'
    csv = "customer_id,purchased_at,amount\na,01.01.2020 23:30 +0000,1\n"
    assert str(rows(make_shop(csv, toml))["purchased_at"][0]) == "2020-01-02 08:30:00"


def test_plain_dates_stay_their_day_even_where_times_are_utc(make_shop):
    toml = 'timezone = "America/New_York"\n[policy]\nnaive_timestamps = "UTC"\n'
    csv = "customer_id,purchased_at,amount\na,2024-01-01,1\na,2024-01-03 02:00,1\n"
    days = [str(day) for day in rows(make_shop(csv, toml))["purchased_on"]]
    assert days == ["2024-01-01", "2024-01-02"]


def test_a_rename_wins_over_a_column_that_differs_by_case(make_shop):
    toml = (
        '[policy]\nduplicate_lines = "drop"\n[tables.transactions]\ncolumns = { amount = "net" }\n'
    )
    csv = "customer_id,purchased_at,Amount,net\na,2024-01-01,100,7\n"
    assert make_shop(csv, toml).check().used_money == 7


def test_ids_from_a_float_column_are_whole_numbers_or_unreadable(make_shop, tmp_path):
    pd.DataFrame(
        {
            "customer_id": [1001.0, 1001.5, 1e20, np.nan, 5.0],
            "purchased_at": pd.to_datetime(["2024-01-01"] * 5),
            "amount": [1.0, 2, 3, 4, 5],
        }
    ).to_parquet(tmp_path / "transactions.parquet")
    shop = make_shop(None)
    assert set(rows(shop)["customer_id"]) == {"1001", "5", None}
    assert shop.check().set_aside == {"customer_id unreadable": (2, 5.0)}


def test_products_that_are_no_goods_are_counted_and_in_no_customers_figures(make_shop):
    from crmlab import customers

    csv = (
        "customer_id,purchased_at,amount,product_id\n"
        "a,2024-01-01,9,x\na,2024-01-02,3,POST\na,2024-01-03,5,\n"
    )
    shop = make_shop(csv, '[policy]\nnot_goods = ["POST"]\n')
    assert shop.check().kept == {tables.NO_GOODS: 1}
    days = customers.purchase_days(shop, as_of="2024-01-03").order_by("purchased_on").to_pyarrow()
    assert [str(day) for day in days["purchased_on"].to_pylist()] == ["2024-01-01", "2024-01-03"]


def test_rows_set_aside_of_an_earlier_state_are_taken_away(make_shop, tmp_path):
    csv = "customer_id,purchased_at,amount\na,2024-01-01,5\na,x,5\n"
    path = make_shop(csv).write_set_aside(tmp_path / "aside")
    assert path.exists()
    make_shop(csv.replace("x", "2024-01-02")).write_set_aside(tmp_path / "aside")
    assert not path.exists()


WRONG_TYPES = [
    "policy = 3",
    "tables = []",
    "tables.transactions = 3",
    'tables.transactions = "transactions.csv"',
    "source = 3",
    "source.url = 3",
    "name = 3",
    "locale = 3",
    "currency = 3",
    "timezone = 3",
    'timezone = "Europe"',
    "policy.not_goods = 3",
    'policy.privacy_k = "ten"',
    "policy.privacy_k = 0",
    "policy.privacy_k = true",
    "policy.stale_after_days = -1",
    "tables.transactions.columns = 3",
    "tables.transactions.columns.amount = 3",
    "tables.transactions.from = 3",
    "tables.transactions.date_format = 3",
    'tables.transactions.decimal = "0"',
]


@pytest.mark.parametrize("toml", WRONG_TYPES)
def test_a_setting_of_the_wrong_type_is_an_error_in_words(make_shop, toml):
    with pytest.raises(DataError, match=r"shop.toml: .*(must be|is not known|use )"):
        make_shop(CSV, toml + "\n")


def test_a_table_that_is_not_in_the_contract_is_refused(make_shop):
    with pytest.raises(UsageError, match="no table 'nope'; the contract has transactions"):
        make_shop(CSV).table("nope")
    assert not make_shop(CSV).has("nope")


FLAGS = """customer_id,mail,sms
a,yes,no
b,1,
c, ,Yes
d,yes,perhaps
e,yes,yes
e ,no,yes
f,yes,yes
f,maybe,no
,yes,yes
"""


def test_consents_from_flags_are_given_only_where_nothing_speaks_against_it(make_shop):
    settings = '[tables.consents]\nflags = { email = "mail", sms = "sms" }\n'
    shop = make_shop(FLAGS, settings, name="customers.csv")
    rows = shop.table("consents").to_pyarrow().to_pylist()
    found = sorted((row["customer_id"], row["channel"], row["status"]) for row in rows)
    assert found == [
        ("a", "email", "given"),
        ("a", "sms", "withdrawn"),
        ("b", "email", "given"),
        ("c", "sms", "given"),
        ("d", "email", "given"),
        ("e", "email", "withdrawn"),
        ("e", "sms", "given"),
        ("f", "sms", "withdrawn"),
    ]
    # What cannot be read is counted: "perhaps" of d and "maybe" of f; and those of nobody.
    check = shop.check("consents")
    assert {rule: n for rule, (n, _) in check.set_aside.items()} == {
        "status none of given, withdrawn": 2,
        "customer_id missing": 2,
    }
    assert check.examples["status none of given, withdrawn"] in ("perhaps", "maybe")


URLS = {
    "another kind": "jdbc:postgresql://reader:sec/ret@db/retail",
    "one slash": "postgresql:/u:secret@h/d",
    "a blank before": " postgresql://u:secret@h/d",
    "words": "host=h password=secret",
    "a number sign": "postgresql://ann:sec#ret@127.0.0.1:1/d",
    "a question mark": "postgresql://ann:sec?ret@127.0.0.1:1/d",
    "a slash": "postgresql://ann:sec/ret@127.0.0.1:1/d",
    "an at sign": "postgresql://ann:x@secret@127.0.0.1:1/d",
    "a bracket": "postgresql://ann:sec[ret@127.0.0.1:1/d",
    "a sign of more than one letter": "postgresql://ann:sec℀ret@127.0.0.1:1/d",
    "an option": "postgresql://ann@127.0.0.1:1/d?password=sec@ret",
}


@pytest.mark.parametrize("url", URLS.values(), ids=URLS)
@pytest.mark.parametrize(
    "setting", ['[source]\nurl = "{}"', 'source = "{}"', '[tables.transactions]\nfrom = "{}"']
)
def test_no_url_that_is_written_wrong_shows_its_password(make_shop, url, setting):
    with pytest.raises(DataError) as found:
        make_shop(None, setting.format(url)).check()
    said = str(found.value).lower()
    assert "sec" not in said.replace("second", "")
    assert "ret@" not in said
    assert "retail" not in said


def test_what_one_run_found_tidy_is_trimmed_where_it_is_not(make_shop):
    """Text that needs no trimming is not trimmed again, and this must never change an answer."""
    tidy = make_shop("customer_id,purchased_at,amount\na,2024-01-01,1\na,2024-01-02,2\n")
    assert tidy.table("transactions").customer_id.nunique().to_pyarrow().as_py() == 1
    padded = make_shop("customer_id,purchased_at,amount\na,2024-01-01,1\n a,2024-01-02,2\n")
    assert padded.table("transactions").customer_id.nunique().to_pyarrow().as_py() == 1
    assert padded.check().used == 2
    days = make_shop("customer_id,purchased_at,amount\na, 2024-01-01 ,1\na,2024-01-02,2\n")
    assert days.table("transactions").count().to_pyarrow().as_py() == days.check().used == 2


def test_rows_that_break_a_rule_are_set_aside_by_name_and_written(make_shop, tmp_path):
    bad = "x,not a date,1\ny,2024-01-01,ten\nz,,5\nw,2024-01-01,inf\nv,2024-01-01,\n"
    good = "".join(f"c{n},2024-01-01,2\n" for n in range(10))
    shop = make_shop("customer_id,purchased_at,amount\n" + bad + good)
    check = shop.check()
    assert {rule: n for rule, (n, _) in check.set_aside.items()} == {
        "purchased_at unreadable": 1,
        "purchased_at missing": 1,
        "amount unreadable": 2,
        "amount missing": 1,
    }
    assert (check.rows, check.used, check.used_money) == (15, 10, 20.0)
    assert check.set_aside["purchased_at missing"] == (1, 5.0)
    written = pd.read_parquet(shop.write_set_aside(tmp_path / "aside"))
    assert (
        dict(zip(written["rule"], written["customer_id"], strict=True))["purchased_at unreadable"]
        == "x"
    )
    assert len(written) == 5
    assert set(written[written["rule"] == "amount unreadable"]["amount"]) == {"ten", "inf"}


def test_a_clean_table_sets_nothing_aside_and_writes_nothing(make_shop, tmp_path):
    assert make_shop(CSV).write_set_aside(tmp_path / "aside") is None
    assert not (tmp_path / "aside").exists()


def test_an_anonymous_sale_is_kept_and_counted(make_shop):
    assert make_shop(CSV).check().kept == {
        "customer_id missing (anonymous sale, in no customer's figures)": 1
    }


def test_an_unreadable_optional_value_is_unknown_and_its_sale_stays(make_shop):
    shop = make_shop("customer_id,purchased_at,amount,quantity\na,2024-01-01,5,many\n")
    assert shop.check().kept == {"quantity unreadable": 1}
    assert rows(shop)["quantity"].isna().all()


def test_equal_lines_are_kept_and_counted_or_dropped_by_policy(make_shop):
    csv = "customer_id,purchased_at,amount\na,2024-01-01,5\na,2024-01-01,5\nb,2024-01-01,5\n"
    kept = make_shop(csv).check()
    assert (kept.used, kept.kept) == (3, {tables.DUPLICATE_LINES: 1})
    dropped = make_shop(csv, '[policy]\nduplicate_lines = "drop"\n').check()
    assert (dropped.used, dropped.set_aside) == (2, {tables.DUPLICATE_LINES: (1, 5.0)})


def test_rows_after_as_of_are_later_not_bad(make_shop):
    check = make_shop(CSV).check(as_of="2024-01-03")
    assert (check.used, check.later, check.used_money, check.later_money) == (2, 2, 19.75, 7.0)


def test_the_published_counts_of_cdnow(home):
    check = sources.open_shop("cdnow").check()
    assert (check.rows, check.used, check.rows_set_aside) == (69659, 69659, 0)
    assert check.used_money == 2500315.63
    assert check.kept == {tables.WORTHLESS.name: 80, tables.DUPLICATE_LINES: 255}


texts = st.one_of(
    st.sampled_from(["", "nan", "inf", "-0", "1e400", "2024-02-30", "1893-01-01", "2262-05-01"]),
    st.floats(-1e6, 1e6).map(str),
    st.dates(dt.date(1893, 1, 1), dt.date(2100, 1, 1)).map(str),
    st.text("abzÄД中 '/;:#-", max_size=8),
)


# The years that a date of crmlab may have: `tables.day` refuses others with a sentence.
as_ofs = st.dates(dt.date(1000, 1, 1), dt.date(9000, 12, 31))


@given(st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=12), as_ofs)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_row_is_used_set_aside_or_later_and_so_is_its_money(make_shop, lines, as_of):
    # Good rows enough that the table is never refused, whatever the others hold.
    good = [("good", "2024-05-05", "1.25")] * (len(lines) + 1)
    cells = [",".join(f'"{cell}"' for cell in line) for line in lines + good]
    shop = make_shop("customer_id,purchased_at,amount\n" + "\n".join(cells) + "\n")
    check = shop.check(as_of=as_of)
    assert check.rows == len(cells) == check.used + check.rows_set_aside + check.later
    aside = np.nansum([money for _, money in check.set_aside.values()])
    money = check.used_money + check.later_money + aside
    readable = 0.0
    for _, _, amount in lines + good:
        value = pd.to_numeric(amount.strip() or None, errors="coerce")
        if amount.isascii() and pd.notna(value) and abs(value) < 1e9:
            readable += round(float(value), 4)
    assert money == pytest.approx(readable, abs=1e-3 * len(cells))


def test_the_last_day_counts_unless_its_receipts_stop_early(make_shop):
    head = "customer_id,purchased_at,amount\n"
    days = [f"2024-01-{day:02d}" for day in range(5, 30)]
    full = "".join(f"a,{day} {clock},1\n" for day in days for clock in ("09:10", "19:58"))
    last = dt.date(2024, 1, 30)
    assert make_shop(head + full).last_complete_day() == dt.date(2024, 1, 29)
    for clock, complete in (("19:58", last), ("20:15", last), ("14:00", last - dt.timedelta(1))):
        punctual = make_shop(f"{head}{full}a,2024-01-30 {clock},1\n")
        assert punctual.last_complete_day() == complete
        # The same slot, looked at after the log has gone on.
        late = make_shop(f"{head}{full}a,2024-01-30 {clock},1\na,2024-02-02 20:00,1\n")
        assert late.last_complete_day(before=dt.date(2024, 2, 1)) == complete


def test_a_log_of_few_days_with_times_is_complete_to_the_day_before_its_last(make_shop):
    timed = make_shop("customer_id,purchased_at,amount\na,2024-01-05,1\na,2024-01-09 14:00,1\n")
    assert timed.last_complete_day() == dt.date(2024, 1, 8)
    dated = make_shop("customer_id,purchased_at,amount\na,2024-01-05,1\na,2024-01-09,1\n")
    assert dated.last_complete_day() == dt.date(2024, 1, 9)


def test_moments_become_the_shops_wall_clock_on_both_clock_change_days(make_shop, tmp_path):
    moments = ["2024-03-31T00:59:00Z", "2024-03-31T01:00:00Z", "2024-10-26T22:30:00Z"]
    pd.DataFrame(
        {"customer_id": "a", "purchased_at": pd.to_datetime(moments), "amount": 1.0}
    ).to_parquet(tmp_path / "transactions.parquet")
    found = rows(make_shop(None, 'timezone = "Europe/Kyiv"\n'))
    assert [str(at) for at in found["purchased_at"]] == [
        "2024-03-31 02:59:00",
        "2024-03-31 04:00:00",
        "2024-10-27 01:30:00",
    ]
    assert found["purchased_on"].iloc[2] == dt.date(2024, 10, 27)


def test_naive_times_are_the_shops_own_or_utc_by_policy(make_shop):
    csv = "customer_id,purchased_at,amount\na,2024-01-01 23:30,1\na,2024-01-02 10:00,1\n"
    own = make_shop(csv, 'timezone = "Europe/Kyiv"\n')
    assert rows(own)["purchased_on"].iloc[0] == dt.date(2024, 1, 1)
    utc = make_shop(csv, 'timezone = "Europe/Kyiv"\n[policy]\nnaive_timestamps = "UTC"\n')
    assert rows(utc)["purchased_on"].iloc[0] == dt.date(2024, 1, 2)


def test_what_shop_toml_leaves_empty_is_not_used(make_shop, tmp_path):
    (tmp_path / "cases.csv").write_text("case_id,colour\n1,black\n", encoding="utf-8")
    csv = "customer_id,purchased_at,amount,channel\na,2024-01-01,1,web\n"
    shop = make_shop(
        csv, '[tables.cases]\nfrom = ""\n[tables.transactions.columns]\nchannel = ""\n'
    )
    assert not shop.has("cases")
    assert "channel" not in shop.table("transactions").columns
    with pytest.raises(DataError, match="has no column for"):
        make_shop(csv).has("cases")


def test_an_amount_may_be_the_product_of_two_columns(make_shop):
    csv = 'customer_id,purchased_at,pieces,price\na,2024-01-01,3,"1.250,50"\nb,2024-01-02,x,2\n'
    toml = '[tables.transactions.columns]\namount = "pieces * price"\nquantity = "pieces"\n'
    shop = make_shop(csv + 'c,2024-01-03,-2,"0,55"\n', toml)
    assert [str(amount) for amount in rows(shop)["amount"]] == ["3751.5000", "-1.1000"]
    assert shop.check().set_aside == {
        "amount missing": (1, pytest.approx(float("nan"), nan_ok=True))
    }


def test_a_year_of_two_digits_is_never_the_time_of_the_caesars(make_shop):
    csv = "customer_id,purchased_at,amount\n" + "a,02/01/24,1\n" * 3
    with pytest.raises(DataError, match=r'date_format = "%d/%m/%y"'):
        make_shop(csv).check()
    wrong = '[tables.transactions]\ndate_format = "%d/%m/%Y"\n'
    with pytest.raises(DataError, match="does not fit"):
        make_shop(csv, wrong).check()


def test_the_fingerprint_changes_with_the_file(make_shop, tmp_path):
    first = make_shop(CSV).fingerprint()
    assert make_shop(None).fingerprint() == first
    (tmp_path / "transactions.csv").write_text(CSV.replace("12.50", "12.51"))
    assert make_shop(None).fingerprint() != first


BAD = {
    "a missing column": (
        "card,purchased_at,amount\n1,2024-01-01,1\n",
        "",
        r"has no column for:\n  customer_id: who bought.*\nIt has: card, purchased_at, amount\.\n"
        r"Name yours in shop.toml under \[tables.transactions.columns\]: customer_id = ",
    ),
    "dates that cannot be read": (
        "customer_id,purchased_at,amount\na,03.12.2023,1\nb,04.12.2023,1\n",
        "",
        r"2 of 2 rows cannot be used, most for 'purchased_at unreadable', such as "
        r"'03.12.2023'. Say how dates look, such as date_format = \"%d.%m.%Y\" under \[tables",
    ),
    "a date format that does not fit": (
        "customer_id,purchased_at,amount\na,31/12/2023 10:00,1\n",
        '[tables.transactions]\ndate_format = "%d/%m/%Y"\n',
        'The date_format = "%d/%m/%Y" does not fit it',
    ),
    "a DuckDB file named as a table": (
        None,
        '[tables.transactions]\nfrom = "shop.duckdb"\n',
        'Say url = "shop.duckdb" and name the table in it',
    ),
    "a currency that is none": (CSV, 'currency = "EURO"\n', "currency 'EURO' is not known"),
    "text for amounts": (
        "customer_id,purchased_at,amount\na,2024-01-01,one\nb,2024-01-01,two\n",
        "",
        r"'amount unreadable', such as '(one|two)'. If it has a decimal comma",
    ),
    "an empty table": ("customer_id,purchased_at,amount\n", "", "is empty: it has columns but no"),
    "an empty file": ("", "", "transactions.csv is an empty file"),
    "a missing file": (None, "", r"has no file: looked for transactions.parquet, transactions.csv"),
    "a missing folder": (None, '[source]\nurl = "nowhere"\n', "in .*nowhere"),
    "a named file that is not there": (
        None,
        '[tables.transactions]\nfrom = "r.csv"\n',
        "looked for r.csv",
    ),
    "a missing database": (None, '[source]\nurl = "x.duckdb"\n', "There is no DuckDB file"),
    "a database that is none of ours": (
        None,
        '[source]\nurl = "mysql://u:secret@h/db"\n',
        "not 'mysql'",
    ),
    "a database that is not there": (
        None,
        '[source]\nurl = "postgresql://u:secret@127.0.0.1:1/db"\n',
        "postgresql://127.0.0.1:1/db cannot be read: connection failed.*refused",
    ),
    "a URL that is none": (
        None,
        '[source]\nurl = "postgresql://u:100%@h/db"\n',
        "PostgreSQL URL cannot be read",
    ),
    "a rename of what is not there": (
        CSV,
        '[tables.transactions]\ncolumns = { amount = "total" }\n',
        "renames 'total' .* has no such column. It has: customer_id, purchased_at, amount",
    ),
    "a setting misspelt": (CSV, "[policy]\nprivacy = 3\n", "no setting 'privacy'.*'privacy_k'"),
    "a policy that is none": (
        CSV,
        '[policy]\nduplicate_lines = "delete"\n',
        r"'delete'; use one of \('keep', 'drop'\)",
    ),
    "an unknown time zone": (CSV, 'timezone = "Europe/Kyif"\n', "timezone is not known"),
    "an unknown locale": (CSV, 'locale = "xx_YY"\n', "locale or timezone is not known"),
    "broken TOML": (CSV, "name = \n", "is not valid TOML"),
    "a variable that is not set": (CSV, '[source]\nurl = "${CRMLAB_NO}"\n', "variable CRMLAB_NO"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_gets_a_sentence(make_shop, what):
    csv, toml, said = BAD[what]
    with pytest.raises(DataError, match=said) as caught:
        make_shop(csv, toml).check()
    assert "secret" not in str(caught.value)


def test_a_truncated_parquet_file_is_an_error_in_words(make_shop, tmp_path):
    pd.DataFrame({"customer_id": ["a"] * 1000}).to_parquet(tmp_path / "transactions.parquet")
    whole = (tmp_path / "transactions.parquet").read_bytes()
    with pytest.raises(DataError, match="cannot be read from .*transactions.parquet"):
        make_shop(whole[: len(whole) // 2], name="transactions.parquet").check()


def test_a_truncated_gz_file_is_an_error_in_words(make_shop):
    whole = gzip.compress((CSV * 2000).encode())
    with pytest.raises(DataError):
        make_shop(whole[: len(whole) // 2], name="transactions.csv.gz").check()


def test_text_in_a_database_is_not_parsed_and_the_view_to_make_is_shown(make_shop, tmp_path):
    with duckdb.connect(str(tmp_path / "shop.duckdb")) as connection:
        connection.execute(
            "create table receipts as select '1' as customer_id, "
            "timestamp '2024-01-01' as purchased_at, '1,0' as amount"
        )
    toml = '[source]\nurl = "shop.duckdb"\n[tables.transactions]\nfrom = "receipts"\n'
    with pytest.raises(
        DataError, match=r"CREATE VIEW .* CAST\(amount AS decimal\(18, 4\)\) AS .* FROM receipts;"
    ):
        make_shop(None, toml).check()
    with duckdb.connect(str(tmp_path / "shop.duckdb")) as connection:
        connection.execute(
            "create schema crm; create table crm.sales as select '1' as customer_id, "
            "timestamp '2024-01-01' as purchased_at, 2.5 as amount"
        )
    assert make_shop(None, toml.replace("receipts", "crm.sales")).check().used_money == 2.5
    with pytest.raises(DataError, match="has no table 'transactions'. It has: crm.sales, receipts"):
        make_shop(None, '[source]\nurl = "shop.duckdb"\n').check()


def test_an_unknown_shop_names_those_that_exist():
    with pytest.raises(UsageError, match=r"No shop 'cdnov'.*There is: cdnow, .*mean 'cdnow'"):
        sources.open_shop("cdnov")
    with pytest.raises(UsageError, match="is no shop's name"):
        sources.open_shop("../cdnow")


def test_names_from_a_file_cannot_become_sql(make_shop):
    evil = 'x"; drop table transactions; --'
    quoted = '"' + evil.replace('"', '""') + '"'
    shop = make_shop(
        f"{quoted},purchased_at,amount\na,2024-01-01,1\n",
        "[tables.transactions]\ncolumns = { customer_id = '" + evil + "' }\n",
    )
    assert list(rows(shop)["customer_id"]) == ["a"]


def test_outside_a_project_the_error_says_where_to_go(tmp_path, monkeypatch):
    monkeypatch.delenv("CRMLAB_HOME")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="set CRMLAB_HOME"):
        sources.home()
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "reports.toml").touch()
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    assert sources.home() == tmp_path
