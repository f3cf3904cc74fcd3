import datetime as dt
import json

import ibis
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crmlab import results
from crmlab.results import Numbers, merge_small_cells

US, DE = Numbers("en_US", "USD"), Numbers("de_DE", "EUR")


@pytest.mark.parametrize(
    ("said", "printed"),
    [
        (US.number(1234567.8), "1,234,568"),
        (DE.number(1234.5, 1), "1.234,5"),
        (US.money(12.5), "$12.50"),
        (US.money(-12.5), "−$12.50"),
        (US.money(1_234_567), "$1,234,567"),
        (DE.money(1_234_567), "1.234.567\xa0€"),
        (Numbers("ja_JP", "JPY").money(1250), "￥1,250"),
        (US.short_money(1_234_567), "$1.23M"),
        (US.short_money(237_770), "$238K"),
        (US.short_money(-29_480), "−$29.5K"),
        (US.short_money(6_993.56), "$6,994"),
        (US.short_money(12.5), "$12.50"),
        (DE.short_money(259_123), "259.000\xa0€"),
        (DE.short_money(1_234_567), "1,23\xa0Mio.\xa0€"),
        (US.percent(0.1234), "12.3%"),
        (US.percent(-0.143, signed=True), "−14.3%"),
        (US.percent(0.02, 0, signed=True), "+2%"),
        (US.percent(-0.0001), "0.0%"),
        (DE.percent(0.5, 0), "50\xa0%"),
        (US.number(float("nan")), "–"),
        (US.money(float("inf")), "–"),
        (US.day(dt.date(1998, 6, 30)), "Jun 30, 1998"),
        (Numbers("uk_UA", "UAH").money(1234.5), "1\xa0234,50\xa0₴"),
    ],
)
def test_numbers_print_as_their_readers_write_them(said, printed):
    assert said == printed


def test_text_from_data_is_escaped_in_a_table():
    frame = pd.DataFrame({"<b>": ["<script>alert(1)</script>"], "n": [1.0]})
    html = results.html_table(frame, title="a & b", formats={"n": US.number})
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "&lt;b&gt;" in html
    assert "a &amp; b" in html


def test_small_cells_become_other_of_at_least_k_customers():
    cells = pd.DataFrame({"city": list("ABCDE"), "n": [50, 40, 12, 3, 2], "sales": [5, 4, 3, 2, 1]})
    merged = merge_small_cells(cells, label="city", customers="n", k=10)
    assert dict(zip(merged["city"], merged["n"], strict=True)) == {"A": 50, "B": 40, "other": 17}
    assert merged["sales"].sum() == 15


def test_too_few_customers_in_all_show_nothing():
    cells = pd.DataFrame({"city": ["A", "B"], "n": [4, 3]})
    assert merge_small_cells(cells, label="city", customers="n", k=10).empty


def test_sums_of_which_one_customer_brings_half_are_blank_and_cannot_be_found_by_difference():
    cells = pd.DataFrame(
        {"city": ["A", "B"], "n": [20, 20], "sum": [100.0, 100], "top": [50.0, 49]}
    )
    merged = merge_small_cells(cells, label="city", customers="n", k=10, largest={"sum": "top"})
    assert merged["sum"].isna().tolist() == [True, True]
    assert list(merged.columns) == ["city", "n", "sum"]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(1, 15))
def test_no_cell_is_ever_under_k_and_nobody_is_lost_unless_all_are_too_few(counts, k):
    cells = pd.DataFrame({"cell": [f"c{i}" for i in range(len(counts))], "n": counts})
    merged = merge_small_cells(cells, label="cell", customers="n", k=k)
    assert (merged["n"] >= k).all()
    assert merged["n"].sum() == (sum(counts) if sum(counts) >= k else 0)


@pytest.fixture
def published(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    return shown


def test_publish_hands_over_the_summary_the_tiles_and_the_tables(published, tmp_path, monkeypatch):
    monkeypatch.setenv("CRMLAB_RUN_DIR", str(tmp_path))
    left_out = pd.DataFrame({"what": ["rows read"], "rows": [5], "money": [float("nan")]})
    results.publish(
        summary="All <well>",
        kpis=[results.Kpi("Customers", 1234, "count", "up")],
        left_out=left_out,
        tables={"values": ibis.memtable({"customer_id": ["a"], "clv": [1.5]})},
        numbers=DE,
    )
    payload = published[0][results.MIME_TYPE]
    assert json.loads(json.dumps(payload, allow_nan=False)) == payload
    assert payload["kpis"][0]["text"] == "1.234"
    assert payload["left_out"] == [{"what": "rows read", "rows": 5, "money": None}]
    assert "All &lt;well&gt;" in published[0]["text/html"]
    assert pd.read_parquet(tmp_path / "values.parquet")["clv"].tolist() == [1.5]


def test_publish_outside_a_run_writes_nothing(published, tmp_path, monkeypatch):
    monkeypatch.delenv("CRMLAB_RUN_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    results.publish(summary="x", tables={"values": ibis.memtable({"a": [1]})})
    assert list(tmp_path.iterdir()) == []


def test_a_published_table_cannot_leave_the_folder(published, tmp_path, monkeypatch):
    monkeypatch.setenv("CRMLAB_RUN_DIR", str(tmp_path / "run"))
    with pytest.raises(ValueError, match="plain name"):
        results.publish(summary="x", tables={"../escape": ibis.memtable({"a": [1]})})


def test_what_is_hidden_cannot_be_found_from_the_totals():
    counts, random = ["customers", "new", "rest"], np.random.default_rng(10)
    partly = 0
    for _ in range(80):
        cells = pd.DataFrame({"customers": random.integers(0, 60, 8) * random.integers(0, 2, 8)})
        cells["new"] = random.binomial(cells["customers"], 0.4)
        cells["rest"] = cells["customers"] - cells["new"]
        cells["most"] = random.integers(0, 60, 8) * (cells["customers"] > 0)
        cells["spend"] = cells["most"] + random.integers(0, 200, 8) * (cells["customers"] > 1)
        hidden = results.hidden(cells, counts=counts, k=10, largest={"spend": "most"})
        told, kept = cells[~hidden], cells[hidden]
        assert not ((told[counts] > 0) & (told[counts] < 10)).any(axis=None)
        assert not ((told["most"] > 0) & (told["most"] * 2 >= told["spend"])).any()
        assert (kept["customers"] > 0).all()
        if kept.empty or hidden[cells["customers"] > 0].all():
            continue
        partly += 1
        assert not any(results.few(kept[name].sum(), 10) for name in counts)
        assert kept["most"].max() * 2 < kept["spend"].sum() or not kept["most"].any()
    assert partly > 20
