"""Whatever a file holds, it is read right or refused in words; nothing is lost or changed."""

import collections
import csv
import datetime as dt
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from crmlab import checks, customers, files, sources, tables
from crmlab.tables import DataError

NAMES = ["customer_id", "purchased_at", "amount"]
HEAD = "customer_id,purchased_at,amount\n"
ROWS = "a,2024-01-01,5\nb,2024-01-02,6\nc,2024-01-03,7\n"
PLAIN, CUT = HEAD + ROWS, '"d,2024-01-04,8\n'
MANY = HEAD + "".join(f"c{n},2024-01-0{1 + n % 9},{n % 977}.25\n" for n in range(50_000))
DAY, US = dt.datetime(2024, 1, 1), pa.timestamp("us")
PROPERTY = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


def toml(**options):
    lines = (f"{key} = {json.dumps(value)}" for key, value in options.items())
    return "\n".join(["[tables.transactions]", *lines]) + "\n"


def text(rows, names=NAMES, **dialect):
    file = io.StringIO(newline="")
    csv.writer(file, **{"lineterminator": "\n"} | dialect).writerows([names, *rows])
    return file.getvalue()


def wider(*names):
    """Return the three plain lines with more columns behind."""
    return text([[*row.split(","), *"x" * len(names)] for row in ROWS.split()], [*NAMES, *names])


def table(rows=3, **columns):
    days = pa.array([DAY + dt.timedelta(n) for n in range(rows)], US)
    plain = {"customer_id": list("abc")[:rows], "purchased_at": days, "amount": [1.5] * rows}
    return pa.table(plain | columns)


def parquet(found, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(found, path)


def database(path, query):
    plain = path.parents[1] / "plain.duckdb"  # this is no test of how DuckDB writes odd names
    with duckdb.connect(str(plain)) as connection:
        connection.execute(query)
    plain.rename(path)


def digests(folder):
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture
def read(make_shop, tmp_path):
    """Read a table whole: it adds up, errors are clear, and the source is as it was."""

    def read(content=None, settings="", name="transactions.csv", table="transactions"):
        content = content.encode() if isinstance(content, str) else content
        shop = make_shop(content, settings, name)
        before = digests(tmp_path)
        try:
            check = shop.check(table)
            rows = shop.table(table).to_pyarrow().to_pylist()
        except DataError as error:
            said = str(error)
            assert 20 < len(said) < 1500
            assert all(letter.isprintable() or letter == "\n" for letter in said), repr(said)
            raise
        finally:
            assert digests(tmp_path) == before
        assert check.rows == check.used + check.rows_set_aside + check.later
        assert len(rows) == check.used + check.later
        return SimpleNamespace(check=check, rows=rows, shop=shop)

    return read


# fmt: off
GZ = gzip.compress(MANY.encode())
REFUSED = {
    "a gz file cut in the middle": (GZ[: len(GZ) // 2], "", "Truncated"),
    "a gz file without its last byte": (GZ[:-1], "", "Truncated"),
    "a gz file with a wrong checksum": (GZ[:-8] + bytes(8), "", "incorrect data check"),
    "a gz file that is text": (PLAIN, "", "transactions.csv.gz cannot be read"),
    "gz named csv": (gzip.compress(PLAIN.encode()), "", "no text but|cannot be read"),
    "an Excel file": (b"PK\x03\x04" + bytes(range(256)), "", "no text but Excel"),
    "an old Excel file": (b"\xd0\xcf\x11\xe0" + bytes(900), "", "no text but Excel"),
    "a Parquet file": (b"PAR1" + bytes(99), "", "no text but Parquet"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 99, "", "transactions.csv"),
    "zeros": (bytes(5000), "", "transactions.csv"),
    "HTML": ("<html><table><tr><td>1</td></tr></table></html>", "", "transactions.csv"),
    "UTF-16 that does not say so": (PLAIN.encode("utf-16-le"), "", "transactions.csv"),
    "UTF-16 cut within a letter": (PLAIN.encode("utf-16")[:-1], "", "cannot be read"),
    "only a mark of UTF-8": (b"\xef\xbb\xbf", "", "empty"),
    "blanks": ("   \r\n\t \n", "", "empty"),
    "a header": (HEAD, "", "is empty"),
    "a header that no line's end follows": (HEAD.strip(), "", "is empty"),
    "a quote not closed in the last line": (PLAIN + 'd,2024-01-04,"8\n', "", "never closed"),
    "a quote not closed at the end": (PLAIN + 'd,2024-01-04,"8', "", "never closed"),
    "a quote not closed in the middle": (PLAIN + CUT + ROWS, "", "never closed"),
    "a quote not closed in a large file": (MANY + CUT + ROWS * 9999, "", "never closed"),
    "a quote not closed in UTF-16": ((PLAIN + CUT + ROWS).encode("utf-16"), "", "never closed"),
    "a quote closed by another's": (PLAIN + CUT + ROWS + '"e",2024-01-05,9\n', "", "quot"),
    "two quotes that are not closed": (PLAIN + CUT + ROWS + CUT + ROWS, "", "quot"),
    "a separator of two letters": (PLAIN, toml(separator=";;"), "separator"),
    "a separator of nothing": (PLAIN, '[tables.transactions]\nseparator = "\\u0000"\n', "ASCII"),
    "a separator beyond ASCII": (PLAIN, toml(separator="§"), "separator"),
    "a separator that ends lines": (PLAIN, toml(separator="\n"), "delimiter|separator"),
    "an encoding that is none": (PLAIN, toml(encoding="utf-9"), "no encoding 'utf-9'"),
    "an encoding that is not for text": (PLAIN, toml(encoding="base64"), "no encoding 'base64'"),
    "an encoding that decodes nothing": (PLAIN, toml(encoding="undefined"), "encoding"),
    "another encoding than said": (PLAIN + "ü", toml(encoding="ascii"), "It is not ascii"),
    "a date format that is none": (PLAIN, toml(date_format="%Q"), "%Q"),
    "days that may be months": (HEAD + "a,01/02/2024,5\nb,3/4/2024,5\n", "", "date_format = "),
    "days and months in both orders": (HEAD + "a,13/3/2024,5\nb,1/22/2024,1\n", "", "date_format"),
    "years of two digits": (HEAD + "a,05.01.24,5\nb,31.01.24,5\n", "", r"%d\.%m\.%y"),
    "an encoding of host names": (PLAIN, toml(encoding="idna"), "no encoding 'idna'|idna"),
    "an encoding with a zero": (PLAIN, toml(encoding="a\0b"), "no encoding|control"),
    "UTF-8 with one letter of another": ((PLAIN + "é" * 9).encode() + b"\xe9", "", "two encodings"),
    "thousands or fractions": (text([["a", "2024-01-01", "1.250"]]), "", r"such as 1\.250 may be"),
    "thousands or fractions, by comma": (text([["a", "2024-01-01", "1,250"]]), "", "say decimal"),
    "a product of thousands or fractions": (
        text([["a", "2024-01-01", "1,250", "5"]], ["customer_id", "purchased_at", "q", "p"]),
        '[tables.transactions.columns]\namount = "q * p"\n', "say decimal"),
    "dates of which one is none": (
        HEAD + "a,01/01/2024,5\nb,05/02/2024,5\nc,99/01/2024,5\n", "", "date_format = "),
    "months with names": (HEAD + "a,01-Jan-2024,5\n", "", "%d-%b-%Y"),
    "days without marks": (HEAD + "a,31122024,5\n", "", '"%d%m%Y"'),
    "a URL as a file's name": (PLAIN, toml(**{"from": "postgresql://a:se@h/d"}), "named by url ="),
    "a file whose name is too long": (PLAIN, toml(**{"from": "a" * 5000}), "Table 'transactions'"),
    "nobody's home": (PLAIN, '[source]\nurl = "~nobody-at-all/x"\n', "transactions"),
}
LONG = "x" * 10_000_000
READ = {
    "lines ended by CR LF": PLAIN.replace("\n", "\r\n"),
    "lines ended by CR": PLAIN.replace("\n", "\r"),
    "lines ended in all ways": PLAIN.replace("5\n", "5\r\n").replace("6\n", "6\r"),
    "no end of the last line": PLAIN.strip(),
    "empty lines before the header": "\r\n\n" + PLAIN,
    "empty lines after a mark of UTF-8": "\ufeff\n" + PLAIN,
    "empty lines": PLAIN.replace("\n", "\n\n\n"),
    "gz in two pieces": gzip.compress(PLAIN[:60].encode()) + gzip.compress(PLAIN[60:].encode()),
    "tabs": PLAIN.replace(",", "\t"),
    "UTF-16 with the high byte first": b"\xfe\xff" + PLAIN.encode("utf-16-be"),
    "a mark of UTF-8": "\ufeff" + PLAIN,
    "a mark of UTF-8 before a quote": PLAIN.replace("customer_id", '\ufeff"customer_id"'),
    "quoted names with blanks": PLAIN.replace("purchased_at", '"  purchased_at "'),
    "a name that stands twice": wider("amount", "amount", "amount (4)"),
    "names that differ by case": wider("Amount", "CUSTOMER_ID"),
    "our names after others by case": text([f"0,{row}".split(",") for row in ROWS.split()],
                                           ["Amount", *NAMES]),
    "names over two lines, and empty ones": wider("first\nname", "", "a  b", ""),
    "names that could be SQL": wider('x"; drop table t; --', "it's", "*", "\\"),
    "names that crmlab uses itself": wider("rule", "later", "dated", "amount as given", "rows",
                                           "earlier_equal_lines", "line", "given amount"),
    "a quote's byte in UTF-16": (wider("note")[:-2] + '"Т\nx"').encode("utf-16"),
    "2,000 columns": wider(*(f"c{n}" for n in range(2000))),
    "a cell of 10 MB in the first line": wider("note").replace("x\n", LONG + "\n", 1),
    "a cell of 10 MB in the last line": wider("note")[:-2] + LONG,
    "NUL in a cell": wider("note").replace("x", "x\0x"),
}
NUMBERS = {
    ".": {
        "5": 5, "+5": 5, "-5": -5, " 5 ": 5, "005": 5, ".5": 0.5, "5.": 5, "1,234.56": 1234.56,
        "1,234,567": 1234567, "1e3": 1000, "1E-2": 0.01, "1_000": 1000, "99999999999999.9999":
        "99999999999999.9999", "12,50": None, "1e308": None, "1e400": None, "nan": None,
        "inf": None, "-Infinity": None, "٣": None, "５": None, "1.234,56": None, "1 234.56": None,
        "5-": None, "$5": None, "0x10": None, "1.2.3": None, "--5": None, "−5": None, "1e": None,
        "100000000000000": None, "5\0": None, "1" * 99: None, "=1+1": None, "true": None,
    },
    ",": {
        "1.234,56": 1234.56, "12,5": 12.5, "1.250": 1250, "12.50": None, "1,234.56": None,
        "-0,01": -0.01, ",5": 0.5, "1.234.567": 1234567, "1,2,3": None, "٣,٥": None,
    },
}
DATES = {  # in Kyiv
    "2024-01-02": "2024-01-02 00:00:00", "2024-1-2": "2024-01-02 00:00:00",
    "2024/01/02 03:04": "2024-01-02 03:04:00", "2024-01-02T03:04:05": "2024-01-02 03:04:05",
    "2024-01-02 03:04:05.678": "2024-01-02 03:04:05.678000", "1893-05-01": "1893-05-01 00:00:00",
    "2262-05-01": "2262-05-01 00:00:00", "2024-02-29": "2024-02-29 00:00:00",
    "2024-03-31T00:59:59Z": "2024-03-31 02:59:59", "2024-03-31T01:00:00Z": "2024-03-31 04:00:00",
    "2024-10-27 00:30:00+00:00": "2024-10-27 03:30:00", "2024-10-27T01:30Z": "2024-10-27 03:30:00",
    "2024-10-27 03:30": "2024-10-27 03:30:00", "2024-03-31 03:30": "2024-03-31 03:30:00",
    "2023-02-29": None, "2024-13-01": None, "0000-01-01": None, "9999-12-31": None, "today": None,
    "31.12.2023": None, "12/31/2023": None, "24-01-02": None, "20240102": None, "45293": None,
    "infinity": None, "2024-01": None, "２０２４-01-02": None, "2024-01-02 10 PM": None,
    "2024-01-02 25:00": None, "2024-01-02 BC": None, "epoch": None, "2024-01-02\0": None,
    "2024-01-02 10:00 Mars/Base": None, "99999-01-01": None, "-2024-01-02": None,
}
FORMATS = {  # of UTC, in New York
    ("%d %B %Y", "05 January 2024"): "2024-01-05 00:00:00", ("%d %B %Y", "5"): None,
    ("%d %B %Y %H:%M", "05 January 2024 01:00"): "2024-01-04 20:00:00",
    ("%d.%m.%Y", "05.01.2024"): "2024-01-05 00:00:00", ("%d.%m.%Y", "05.01.24"): None,
    ("%d.%m.%y", "05.01.24"): "2024-01-05 00:00:00",
    ("%d.%m.%Y %H:%M", "05.01.2024"): "2024-01-05 00:00:00",
    ("%d.%m.%Y %H:%M", "05.01.2024 01:00"): "2024-01-04 20:00:00",
    ("%d.%m.%YT%H:%M", "05.01.2024T01:00"): "2024-01-04 20:00:00",
    ("%H:%M %d.%m.%Y", "01:00 05.01.2024"): "2024-01-04 20:00:00",
    ("%d.%m.%Y %-H:%M", "05.01.2024 1:00"): "2024-01-04 20:00:00",
    ("%d.%m.%Y %X", "05.01.2024 01:00:00"): "2024-01-04 20:00:00",
    ("%c", "2024-01-05 01:00:00"): "2024-01-04 20:00:00",
    ("%d.%m.%Y %H:%M %z", "05.01.2024 01:00 +0100"): "2024-01-04 19:00:00",
}
COLUMNS = {  # name, what a Parquet file holds, how many of its three rows are used
    "an amount that is all null": ("amount", pa.nulls(3), 0),
    "an amount that is a list": ("amount", pa.array([[1.0]] * 3), 0),
    "an amount that is true": ("amount", pa.array([True] * 3), 0),
    "times of day": ("purchased_at", pa.array([dt.time(1)] * 3), 0),
    "seconds since 1970": ("purchased_at", pa.array([1704153600] * 3), 0),
    "an optional column of nothing": ("cost", pa.nulls(3), 3),
    "nested columns": ("extra", pa.array([{"a": [1]}] * 3), 3),
    "one infinite amount": ("amount", pa.array([1.5, float("-inf"), 1.5]), 2),
    "two of three amounts that are none": ("amount", pa.array([float("nan"), float("inf"), 1]), 0),
    "an amount above all": ("amount", pa.array([1.5, 1e14, 1.5]), 2),
    "1893 and 2262": ("purchased_at", pa.array([DAY.replace(y) for y in (1893, 2262, 2024)]), 3),
    "nanoseconds": ("purchased_at", pa.array([DAY] * 3, pa.timestamp("ns")), 3),
    "the end of time": ("purchased_at", pa.array([0, 2**63 - 1, 1], US), 2),
    "large numbers as ids": ("customer_id", pa.array([1, 2, 2**64 - 1], pa.uint64()), 3),
    "fractions as ids": ("customer_id", pa.array([1.0, 2.5, 3.0]), 2),
    "fractions without an id": ("customer_id", pa.array([1.0, float("nan"), 3.0]), 3),
    "fractions too large to be ids": ("customer_id", pa.array([1.0, 1e17, 3.0]), 2),
    "a name that could be SQL": ('x"; drop table t; --', pa.array([1, 2, 3]), 3),
    "an empty name": ("", pa.array([1, 2, 3]), 3),
}
# fmt: on


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_that_cannot_be_read_right_is_refused_in_words(read, what):
    with pytest.raises(DataError, match=REFUSED[what][2]):
        read(*REFUSED[what][:2], "transactions.csv" + ".gz" * what.startswith("a gz file"))


@pytest.mark.parametrize("what", READ)
def test_the_form_of_a_file_does_not_change_its_table(read, what):
    found = read(READ[what], name="transactions.csv" + ".gz" * what.startswith("gz"))
    seen = [(row["customer_id"], row["purchased_on"].day, row["amount"]) for row in found.rows]
    assert seen == [("a", 1, 5), ("b", 2, 6), ("c", 3, 7)]


@pytest.mark.parametrize("encoding", ["UTF-8", "utf8", "utf-8-sig"])
def test_an_encoding_by_another_name_is_the_same(read, encoding):
    assert len(read("\ufeff" + PLAIN, toml(encoding=encoding)).rows) == 3


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16"])
def test_a_line_of_another_number_of_cells_is_set_aside_as_it_is(read, tmp_path, encoding):
    bad = ["Jürgen,2024-01-04", "e,2024-01-05,8,9", "   ", "\0" * 99]
    found = read((PLAIN + "\n".join(bad) + "\n" + ROWS).encode(encoding))
    assert found.check.set_aside.keys() == {checks.BAD_LINE}
    assert (found.check.used, found.check.rows_set_aside) == (6, 4)
    written = pq.read_table(found.shop.write_set_aside(tmp_path / "aside"))
    assert sorted(written["line"].to_pylist()) == sorted(bad)


@pytest.mark.slow
def test_of_very_many_bad_lines_all_are_counted_and_some_kept(read, tmp_path):
    found = read(PLAIN + ROWS * 60_000 + "x\n" * 150_000)
    assert found.check.set_aside[checks.BAD_LINE][0] == 150_000
    written = pq.read_table(found.shop.write_set_aside(tmp_path / "aside"))
    assert collections.Counter(written["line"].to_pylist()) == {"x": 100_000, "": 50_000}


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16"])
def test_it_does_not_matter_where_a_block_of_the_file_ends(read, monkeypatch, encoding):
    monkeypatch.setattr(files, "BLOCK", 1000)
    lines = [(f"Müller\n{n}", "2024-01-01", "1") for n in range(500)]
    lines[250:250] = [("Müller", "2024-01-01")] * 3
    found = read(text(lines).encode(encoding))
    assert [row["customer_id"] for row in found.rows] == [f"Müller\n{n}" for n in range(500)]
    assert found.check.set_aside.keys() == {checks.BAD_LINE}
    assert found.check.rows_set_aside == 3


@pytest.mark.parametrize("mark", NUMBERS)
def test_a_number_is_read_as_it_is_meant_or_not_at_all(read, mark):
    rows = [[f"-{n}-", "2024-01-01", number] for n, number in enumerate(NUMBERS[mark])]
    good = [["good", "2024-01-01", "1"]] * len(rows)
    found = read(text(rows + good, quoting=csv.QUOTE_ALL), toml(decimal=mark))
    amounts = {row["customer_id"]: row["amount"] for row in found.rows}
    seen = {number: amounts.get(f"-{n}-") for n, number in enumerate(NUMBERS[mark])}
    assert seen == {n: v if v is None else Decimal(str(v)) for n, v in NUMBERS[mark].items()}


DECIMALS = {
    "a zero before the mark": (["0,750", "1,250"], ["0.75", "1.25"]),
    "a zero before the point": (["0.750", "1.250"], ["0.75", "1.25"]),
    "thousands twice": (["1.234.567", "1.250"], ["1234567", "1250"]),
    "thousands twice, by comma": (["1,234,567", "1,250"], ["1234567", "1250"]),
    "two digits elsewhere": (["12,50", "1.250"], ["12.5", "1250"]),
    "both marks": (["1,250.5", "1,250"], ["1250.5", "1250"]),
    "no mark at all": (["5", "1250"], ["5", "1250"]),
}


@pytest.mark.parametrize("what", DECIMALS)
def test_which_mark_divides_fractions_is_told_by_any_number_that_can_be_one_only(read, what):
    numbers, amounts = DECIMALS[what]
    found = read(text([["a", "2024-01-01", number] for number in numbers], quoting=csv.QUOTE_ALL))
    assert [row["amount"] for row in found.rows] == [Decimal(amount) for amount in amounts]


def test_coordinates_of_three_digits_are_no_thousands(read):
    rows = [["a", "50.450", "30.523"], ["b", "50.451", "30.524"]]
    content = text(rows, ["customer_id", "latitude", "longitude"])
    found = read(content, name="customers.csv", table="customers")
    assert {row["latitude"] for row in found.rows} == {50.45, 50.451}


def test_products_keep_the_digits_of_their_factors(read):
    rows = [["a", "2024-01-01", "10000", "0.00123"], ["a", "2024-01-01", "100000", "0.00004"]]
    content = text(rows, ["customer_id", "purchased_at", "q", "p"])
    found = read(content, '[tables.transactions.columns]\namount = "q * p"\n')
    assert [row["amount"] for row in found.rows] == [Decimal("12.3"), Decimal(4)]


@pytest.mark.parametrize(
    ("kind", "said"),
    [(pa.bool_(), "holds boolean, which is no number"), (pa.date32(), "holds date"),
     (pa.list_(pa.int8()), "holds array"), (pa.int8(), "")],
    ids=str,
)  # fmt: skip
def test_a_product_of_what_is_no_number_is_refused_in_words(read, tmp_path, kind, said):
    values = {"bool": [True] * 3, "date32[day]": [dt.date(2024, 1, 1)] * 3, "int8": [100] * 3}
    rows = {
        "customer_id": list("abc"),
        "purchased_at": [DAY] * 3,
        "p": pa.array([2] * 3, pa.int8()),
    }
    rows["q"] = pa.array(values.get(str(kind), [None] * 3), kind)
    pq.write_table(pa.table(rows), tmp_path / "transactions.parquet")
    settings = '[tables.transactions.columns]\namount = "q * p"\n'
    if said:
        with pytest.raises(DataError, match=said):
            read(None, settings)
    else:
        assert [row["amount"] for row in read(None, settings).rows] == [200] * 3


def test_lines_that_differ_in_a_column_not_used_are_not_equal(read):
    rows = [["a", "2024-01-01", "5", channel, "1"] for channel in ("web", "shop", "shop")]
    content = text(rows, [*NAMES, "channel", "Bon"])
    columns = '[tables.transactions.columns]\nchannel = ""\n'
    found = read(content, f'[policy]\nduplicate_lines = "drop"\n{columns}')
    assert (found.check.used, found.check.rows_set_aside) == (2, 1)


@pytest.mark.parametrize("blank", ["\t", "\u00a0", " \u00a0\t"])
def test_blanks_of_every_kind_around_an_id_are_not_part_of_it(read, blank):
    found = read(
        text(
            [
                [f"{left}a{right}", "2024-01-01", "5"]
                for left, right in [("", ""), (blank, ""), ("", blank), (blank, blank)]
            ]
        )
    )
    assert {row["customer_id"] for row in found.rows} == {"a"}


def test_a_folder_of_parquet_that_holds_anything_else_is_refused(read, tmp_path):
    folder = tmp_path / "transactions"
    folder.mkdir()
    rows = pa.table({"customer_id": list("abc"), "purchased_at": [DAY] * 3, "amount": [1.0] * 3})
    for name in ("one.parquet", "two.PARQUET"):
        pq.write_table(rows, folder / name)
    (folder / "_SUCCESS").touch()
    assert read().check.used == 6
    (folder / "three.csv").write_text(PLAIN)
    with pytest.raises(DataError, match=r"Parquet files only, but also has three\.csv"):
        read()


def test_ids_of_a_folder_are_one_whatever_type_a_file_gives_them(read, tmp_path):
    folder = tmp_path / "transactions"
    folder.mkdir()
    for n, ids in enumerate([["1"], pa.array([Decimal(1)], pa.decimal128(10, 2)), [1.0], [1]]):
        rows = pa.table({"customer_id": ids, "purchased_at": [DAY], "amount": [1.0]})
        pq.write_table(rows, folder / f"{n}.parquet")
    assert [row["customer_id"] for row in read().rows] == ["1"] * 4


def test_a_file_that_changes_after_its_check_is_an_error(make_shop, tmp_path):
    rows = pa.table({"customer_id": list("abc"), "purchased_at": [DAY] * 3, "amount": [1.0] * 3})
    pq.write_table(rows, tmp_path / "transactions.parquet")
    shop = make_shop(None)
    shop.check()
    pq.write_table(rows.slice(1), tmp_path / "transactions.parquet")
    with pytest.raises(DataError, match="has changed since it was checked"):
        shop.table("transactions")


def test_a_day_is_read_as_it_is_meant_or_not_at_all(read):
    rows = [[f"-{n}-", day, "1"] for n, day in enumerate(DATES)]
    found = read(text(rows + [["good", "2024-01-01", "1"]] * len(rows)), 'timezone="Europe/Kyiv"\n')
    days = {row["customer_id"]: str(row["purchased_at"]) for row in found.rows}
    assert {day: days.get(f"-{n}-") for n, day in enumerate(DATES)} == DATES
    unread = list(DATES.values()).count(None)
    assert found.check.set_aside == {"purchased_at unreadable": (unread, unread)}


@pytest.mark.parametrize(("form", "day"), FORMATS)
def test_by_a_named_format_a_time_is_moved_from_utc_and_a_day_is_not(read, form, day):
    policy = 'timezone = "America/New_York"\n[policy]\nnaive_timestamps = "UTC"\n'
    good = dt.datetime(2024, 1, 9, tzinfo=dt.UTC).strftime(form)
    found = read(HEAD + f"a,{day},1\ngood,{good},1\n", policy + toml(date_format=form))
    seen = [str(row["purchased_at"]) for row in found.rows if row["customer_id"] == "a"]
    assert seen == [FORMATS[form, day]] * (FORMATS[form, day] is not None)


# Their letters tell an encoding from the others; "Т" holds in UTF-16 the byte of a quote.
WORDS = {
    "utf-8": ["Müller", "Тарас", "茶叶", "∀x😀"],
    "utf-8-sig": ["Müller", "Тарас", "茶叶"],
    "utf-16": ["Müller", "Тарас", "茶叶", "∀x😀"],
    "cp1252": ["Müller", "Crème", "façade", "Straße"],
    "cp1251": ["Тарас", "Шевченко", "Їжак"],
}
IDS = ["007", "1e5", "nan", "NA", "None", "1.0", "#2", "", "-", "NULL", "1,5", "2024-01-01"]
MARKS = [" ", "\n", ",", ";", '"', "'", "\t", "|", "#", "\\", ""]
CLOCKS = ["", " %H:%M", " %H:%M:%S", " %I:%M %p"]


@given(st.data())
@PROPERTY
def test_a_table_written_in_any_dialect_is_read_back_equal(read, tmp_path, data):
    def one(*choices):
        return data.draw(st.sampled_from(choices))

    encoding, separator, decimal, grouped = one(*WORDS), one(*",;\t|"), one(".", ","), one(0, 1)
    form = one("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%Y-%m-%d") + one(*CLOCKS)
    assume(form != "%Y-%m-%d %I:%M %p")  # nothing but ISO is read without a format, or d/m/y
    words = st.sampled_from(WORDS[encoding])
    name = st.tuples(words, st.sampled_from(MARKS), words).map("".join) | st.sampled_from(IDS)
    day = st.datetimes(dt.datetime(1893, 1, 1), dt.datetime(2262, 12, 31))
    rows = data.draw(st.lists(st.tuples(name, day, st.integers(-(10**9), 10**9)), max_size=8))
    # One day above the 12th tells their order; one name the encoding.
    rows.insert(0, (WORDS[encoding][0] * 3, dt.datetime(2024, 1, 25, 13, 14, 15), 150))

    def number(cents):
        written = f"{cents / 100:,.2f}" if grouped else f"{cents / 100:.2f}"
        return written.translate(str.maketrans(",.", ".,")) if decimal == "," else written

    lines = [(name, day.strftime(form), number(cents)) for name, day, cents in rows]
    dialect = {"delimiter": separator, "lineterminator": one("\n", "\r\n"), "quoting": one(0, 1)}
    content = text(lines, **dialect).encode(encoding)
    for old in tmp_path.glob("transactions.*"):
        old.unlink()
    zipped = (gzip.compress(content), "", "transactions.csv.gz")
    found = read(*one(zipped, (content,)))
    assert [tuple(row.values())[:3] for row in found.rows] == [
        (name or None, dt.datetime.strptime(day, form), Decimal(cents) / 100)
        for (name, _, cents), (_, day, _) in zip(rows, lines, strict=True)
    ]


WHEN = {"2024-01-01": "", "2024-06-30 23:59": "", " 2024-07-01 ": "", "2031-01-01": "",
        "": "missing", "2024-02-30": "unreadable", "1.2.2024": "unreadable"}  # fmt: skip
AMOUNTS = {"1.25": 1.25, "-3": -3, "1,000.50": 1000.5, "0": 0, "1e2": 100, "": "missing",
           "x": "unreadable", "inf": "unreadable", "1e308": "unreadable"}  # fmt: skip
LINE = st.tuples(st.sampled_from(["a", "007", " b ", "", "nan", "Ä"]), st.sampled_from([*WHEN]),
                 st.sampled_from([*AMOUNTS]))  # fmt: skip
GOOD = st.tuples(st.sampled_from("ab"), st.sampled_from([*WHEN][:4]), st.sampled_from(["-3", "0"]))
BAD = st.sampled_from([("a", "2024-01-01"), ("a", "2024-01-01", "1", "2")])


LINES = st.lists(LINE | GOOD | GOOD | BAD, min_size=1, max_size=25)
LAST_DAYS = ["2024-01-01", "2024-06-30", "2030-12-31", None]


@given(LINES, st.sampled_from(["keep", "drop"]), st.sampled_from(LAST_DAYS))
@PROPERTY
def test_every_line_and_all_money_is_used_set_aside_or_later(read, lines, policy, as_of):
    meant = {"used": [0, 0], "later": [0, 0]}
    for n, line in enumerate(lines):
        amount = AMOUNTS[line[2]] if len(line) == 3 else "not a line"
        if len(line) != 3:
            where = checks.BAD_LINE
        elif WHEN[line[1]]:
            where = f"purchased_at {WHEN[line[1]]}"
        elif isinstance(amount, str):
            where = f"amount {amount}"
        elif policy == "drop" and line in lines[:n]:
            where = tables.DUPLICATE_LINES
        else:
            where = "later" if as_of and line[1].strip() > f"{as_of} 24" else "used"
        rows, money = meant.get(where, [0, 0])
        meant[where] = [rows + 1, money + (0 if isinstance(amount, str) else amount)]
    settings = f'[policy]\nduplicate_lines = "{policy}"\n' + toml(decimal=".")
    used, later = meant.pop("used"), meant.pop("later")
    if sum(rows for rows, _ in meant.values()) * 2 > len(lines):
        with pytest.raises(DataError, match="rows cannot be used"):
            read(text(lines), settings)
        return
    check = read(text(lines), settings).shop.check(as_of=as_of)
    assert [check.used, check.used_money, check.later, check.later_money] == [*used, *later]
    assert {rule: [n, money if money == money else 0]
            for rule, (n, money) in check.set_aside.items()} == meant  # fmt: skip
    assert check.rows == len(lines)
    assert check.money == used[1] + later[1] + sum(money for _, money in meant.values())


@given(st.data())
@PROPERTY
def test_a_damaged_file_is_refused_or_none_of_its_lines_is_lost(read, data):
    whole = bytearray((PLAIN + ROWS.replace("a,", "Ä,") * 3).encode())
    marks = st.sampled_from([b"", b"\0", b"\n", b'"', b",", b";", b"\xff", b"\r", b"\xe4"])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole)))
        whole[at : at + data.draw(st.sampled_from([0, 1, 2, 30]))] = data.draw(marks)
    try:
        found = read(bytes(whole))
    except DataError:
        return
    if b'"' not in whole:
        lines = [line for line in re.split(rb"[\r\n]+", bytes(whole)) if line]
        assert found.check.rows == len(lines) - 1


@given(st.integers(0, 2000))
@settings(PROPERTY, max_examples=15)
def test_a_parquet_file_cut_anywhere_is_refused(read, tmp_path, at):
    parquet(table(), tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    assume(at < len(whole))
    with pytest.raises(DataError, match="cannot be read from .*transactions.parquet"):
        read(whole[:at], name="transactions.parquet")


@pytest.mark.parametrize("what", COLUMNS)
def test_a_parquet_column_is_read_as_its_type_or_refused(read, tmp_path, what):
    name, values, used = COLUMNS[what]
    parquet(table(**{name: values}), tmp_path / "transactions.parquet")
    if used:
        assert read().check.used == used
    else:
        with pytest.raises(DataError, match=name):
            read()


def test_files_of_a_folder_may_differ_in_their_columns_and_types(read, tmp_path):
    for name, ids in {"a": [1, 2, 7], "b": ["007", "1", "2"]}.items():
        parquet(table(customer_id=ids, note=["x"] * 3), tmp_path / f"transactions/{name}.parquet")
    words = table(purchased_at=["2024-01-05", "2024-01-06 10:00", "x"]).select([2, 1, 0])
    parquet(words, tmp_path / "transactions" / "c.parquet")
    found = read()
    seen = sorted(row["customer_id"] for row in found.rows)
    assert seen == ["007", "1", "1", "2", "2", "7", "a", "b"]
    assert found.check.set_aside == {"purchased_at unreadable": (1, 1.5)}


def test_ids_that_are_fractions_in_one_file_and_text_in_another_are_not_mixed_up(read, tmp_path):
    for name, ids in {"a": [1.0, 2.0, None], "b": ["1", "2", "3"]}.items():
        parquet(table(customer_id=ids), tmp_path / f"transactions/{name}.parquet")
    try:
        seen = {row["customer_id"] for row in read().rows}
    except DataError as error:
        assert "customer_id" in str(error)
    else:
        assert seen == {"1", "2", "3", None}


PATHS = ["a*b", "a?b", "[x]b", "o'hara", 'a"b', "x' as y; --", "ü 中", "%s", "a;b"]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("kind", [".csv", ".parquet", "/%s.parquet", ".duckdb"])
def test_a_path_is_no_pattern_and_no_sql(tmp_path, name, kind):
    file = f"{name}.duckdb" if kind == ".duckdb" else "transactions" + kind.replace("%s", name)
    url = f"[source]\nurl = {json.dumps(file)}\n" if kind == ".duckdb" else ""
    for folder, amount in ((name, 1.5), ("axb", 100), ("xb", 100)):
        path = tmp_path / folder / file
        parquet(table(1, amount=[amount]), path)
        if kind == ".csv":
            path.write_text(HEAD + f"a,2024-01-01,{amount}\n")
        elif kind == ".duckdb":
            path.unlink()
            rows = f"values ('a', timestamp '2024-01-01', {amount})"
            database(path, f"create table transactions as from ({rows}) t({', '.join(NAMES)})")
        (tmp_path / folder / "shop.toml").write_text(url)
    before = digests(tmp_path)
    assert sources.open_shop(tmp_path / name / "shop.toml").check().used_money == 1.5
    assert digests(tmp_path) == before


def test_names_in_a_duckdb_file_cannot_become_sql(read, tmp_path):
    evil = "t'; drop table x; --"
    database(
        tmp_path / "s.duckdb",
        f"""create schema "s""x"; create table "s""x"."{evil}" as
        select 'a' as "customer""id", timestamp '2024-01-01' as purchased_at, 1.5 as amount""",
    )
    renamed = toml(**{"from": f's"x.{evil}'}) + "columns = { customer_id = 'customer\"id' }\n"
    assert read(None, '[source]\nurl = "s.duckdb"\n' + renamed).check.used_money == 1.5


@pytest.mark.parametrize("what", ["cut", "zeros", "empty", "a view of a table that is gone"])
def test_a_broken_duckdb_file_is_refused_in_words(read, tmp_path, what):
    database(tmp_path / "s.duckdb", "create table t as select 1 as customer_id; "
             "create view transactions as select * from t; drop table t")  # fmt: skip
    whole = (tmp_path / "s.duckdb").read_bytes()
    changed = {"cut": whole[: len(whole) // 2], "zeros": bytes(9000), "empty": b""}
    (tmp_path / "s.duckdb").write_bytes(changed.get(what, whole))
    with pytest.raises(DataError, match=r"s\.duckdb"):
        read(None, '[source]\nurl = "s.duckdb"\n')


@pytest.mark.parametrize("then", ["check", "summary", "last_complete_day", "fingerprint", "write"])
def test_a_file_that_goes_after_it_was_found_is_an_error_in_words(make_shop, tmp_path, then):
    bad = table(purchased_at=["2024-01-01", "x", "2024-01-02"])
    parquet(bad, tmp_path / "transactions.parquet")
    shop = make_shop(None)
    assert shop.has("transactions") and (then == "check" or shop.check())
    (tmp_path / "transactions.parquet").unlink()
    work = {
        "summary": lambda: customers.summary(shop, as_of="2024-01-02"),
        "write": lambda: shop.write_set_aside(tmp_path / "aside"),
    }.get(then, getattr(shop, then, None))
    with pytest.raises(DataError, match="cannot be read|is gone"):
        work()
    assert not list(tmp_path.rglob("*.parquet*"))


def test_a_text_file_that_goes_while_it_is_read_is_an_error_in_words(
    make_shop, tmp_path, monkeypatch
):
    start = files._first_bytes

    def then_gone(path):
        found = start(path)
        path.unlink()
        return found

    monkeypatch.setattr(files, "_first_bytes", then_gone)
    with pytest.raises(DataError, match="transactions.csv cannot be read: .*No such file"):
        make_shop(PLAIN).check()


@pytest.mark.parametrize("name", ["transactions.csv", "transactions.parquet", "transactions"])
def test_a_link_that_leads_to_itself_is_no_file(make_shop, tmp_path, name):
    (tmp_path / name).symlink_to(tmp_path / name)
    with pytest.raises(DataError, match="has no file"):
        make_shop(None).check()


@pytest.mark.parametrize("what", ["a file", "under a file", "a folder in its place"])
def test_rows_set_aside_that_cannot_be_written_leave_nothing_behind(make_shop, tmp_path, what):
    shop = make_shop(PLAIN + "d,x,1\n")
    folder = tmp_path / "aside"
    if what == "a folder in its place":
        (folder / "transactions.parquet" / "kept").mkdir(parents=True)
    else:
        folder.write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((DataError, OSError), match=r"aside.* cannot be written"):
        shop.write_set_aside(folder / "more" if what == "under a file" else folder)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError, OSError])
def test_rows_set_aside_are_written_whole_or_not_at_all(make_shop, tmp_path, monkeypatch, stop):
    def interrupted(*paths):
        raise stop

    whole = make_shop(PLAIN + "d,x,1\n").write_set_aside(tmp_path / "aside").read_bytes()
    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(stop):
        make_shop(PLAIN + "e,y,1\n").write_set_aside(tmp_path / "aside")
    [left] = (tmp_path / "aside").iterdir()
    assert left.read_bytes() == whole


ZONES = """
import sys
from crmlab import sources
for path in sys.argv[1:]:
    rows = sources.open_shop(path).table("transactions").order_by("customer_id").to_pyarrow()
    print([(str(row["purchased_at"]), str(row["purchased_on"])) for row in rows.to_pylist()])
"""


def test_the_zone_of_the_process_changes_no_time(tmp_path):
    moments = ["2024-03-31 00:59", "2024-03-31 01:00", "2024-10-27 00:30", "2024-10-27 22:30"]
    zoned = pa.array([dt.datetime.fromisoformat(f"{at}+00:00") for at in moments],
                     pa.timestamp("us", "America/New_York"))  # fmt: skip
    plain = pa.array([dt.datetime.fromisoformat(at) for at in moments], US)
    four = {"customer_id": list("abcd"), "amount": [1.5] * 4}
    parquet(pa.table(four | {"purchased_at": zoned}), tmp_path / "zoned/transactions.parquet")
    parquet(pa.table(four | {"purchased_at": plain}), tmp_path / "naive/transactions.parquet")
    (tmp_path / "text").mkdir()
    lines = text([[name, f"{at}Z", "1"] for name, at in zip("abcd", moments, strict=True)])
    (tmp_path / "text" / "transactions.csv").write_text(lines)
    (tmp_path / "base").mkdir()
    database(tmp_path / "base" / "s.duckdb", "create table transactions as select * from "
             f"'{tmp_path}/zoned/transactions.parquet'")  # fmt: skip
    shops = []
    for kind in ("zoned", "naive", "text", "base"):
        shops.append(tmp_path / kind / "shop.toml")
        url = '[source]\nurl = "s.duckdb"\n' * (kind == "base")
        shops[-1].write_text(f'timezone = "Europe/Kyiv"\n{url}[policy]\nnaive_timestamps = "UTC"\n')
    for zone in ("America/New_York", "Pacific/Kiritimati"):
        done = subprocess.run(
            [sys.executable, "-c", ZONES, *shops], env=os.environ | {"TZ": zone},
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert done.stdout.splitlines() == 4 * [
            "[('2024-03-31 02:59:00', '2024-03-31'), ('2024-03-31 04:00:00', '2024-03-31'), "
            "('2024-10-27 03:30:00', '2024-10-27'), ('2024-10-28 00:30:00', '2024-10-28')]"
        ]


def test_coordinates_that_are_impossible_or_zero_are_unknown_and_counted(read):
    places = "a,48.6,23.1\nb,0,0\nc,23.1,148.6\nd,148.6,23.1\ne,nan,23\nf,,\n"
    found = read("customer_id,latitude,longitude\n" + places, "", "customers.csv", "customers")
    seen = {row["customer_id"]: (row["latitude"], row["longitude"]) for row in found.rows}
    assert seen == {"a": (48.6, 23.1), "b": (None, None), "c": (23.1, 148.6), "d": (None, 23.1),
                    "e": (None, 23), "f": (None, None)}  # fmt: skip
    counts = {"latitude unreadable or impossible": 3, "longitude unreadable or impossible": 1}
    assert found.check.kept == counts


SHAPE = '{"features": [{"properties": {"district_id": "007"%s}, "geometry": null}]}'
SHAPES = {
    "cut": SHAPE[:40], "Latin-1": (SHAPE % ', "name": "ü"').encode("latin-1"), "a list": "[1, 2]",
    "nested without end": "[" * 100_000, "half a letter": SHAPE % r', "name": "\ud800"',
    "half a letter in a name": SHAPE % r', "\ud800": 1', "no features": '{"features": null}',
    "UTF-16": (SHAPE % "").encode("utf-16"),
}  # fmt: skip


@pytest.mark.parametrize("what", SHAPES)
def test_a_broken_geojson_is_refused_in_words(read, what):
    with pytest.raises(DataError, match=r"districts\.geojson"):
        read(SHAPES[what], "", "districts.geojson", "districts")


def test_properties_of_geojson_may_have_any_name(read):
    content = SHAPE % ', "District_ID": 8, "": 9, "x\\"; drop table t; --": [1]'
    assert read(content, "", "districts.geojson", "districts").rows[0]["district_id"] == "007"
