import datetime as dt

import pytest

from crmlab import clv, customers, results
from crmlab.tables import UsageError

TERMS = {"horizon_days": 365, "margin": 0.3, "annual_discount_rate": 0.1}


@pytest.fixture
def fitted(sample):
    shop = sample()
    summary = customers.summary(shop, as_of="1997-09-30")
    return shop, summary, clv.fit(summary)


def total(model, summary):
    return model.predict(summary, **TERMS, intervals=False).clv.sum().to_pyarrow().as_py()


def test_a_change_is_split_by_what_customers_did_and_adds_up(fitted):
    shop, summary, model = fitted
    found = clv.change(shop, model, summary, since="1997-03-01", **TERMS, k=10)
    rows = found.rows.set_index("group")
    everyone = rows.loc["all"]
    assert everyone["now"] == pytest.approx(total(model, summary))
    earlier = customers.summary(shop, as_of="1997-03-01")
    assert everyone["before"] == pytest.approx(total(model, earlier))
    assert everyone["change"] == pytest.approx(rows.drop("all")["change"].sum())
    assert everyone["customers"] == rows.drop("all")["customers"].sum() == 2357
    frame = summary.to_pandas()
    day = dt.date(1997, 3, 1)
    new = (frame["first_purchase"].dt.date > day).sum()
    assert rows.loc["are new since then", "customers"] == new
    assert rows.loc["are new since then", "before"] == 0
    assert rows.loc["have not bought since", "change"] < 0
    assert "Since Mar 1, 1997 the value of the base went down by" in found.verdict
    assert "have not bought since" in found._repr_html_()


def test_groups_of_few_customers_are_not_told_apart(fitted):
    shop, summary, model = fitted
    rows = clv.change(shop, model, summary, since="1997-09-29", **TERMS, k=50).rows
    assert (rows["customers"] >= 50).all()
    assert "bought again since" not in set(rows["group"])


def test_what_was_before_stands_for_k_customers_of_then(fitted):
    shop, summary, model = fitted
    found = clv.change(shop, model, summary, since="1997-01-02", **TERMS, k=500)
    then = customers.summary(shop, as_of="1997-01-02").count().to_pyarrow().as_py()
    assert then < 500
    assert found.rows["before"].isna().all()
    assert "Too few customers" in found.verdict


def test_an_earlier_day_is_before_as_of(fitted):
    shop, summary, model = fitted
    with pytest.raises(UsageError, match="since 1997-10-01 is after as_of 1997-09-30"):
        clv.change(shop, model, summary, since="1997-10-01", **TERMS, k=10)


def test_nearly_all_is_not_told_apart_from_all(fitted):
    rest = fitted[1].filter(fitted[1].frequency > 0).union(fitted[1].limit(3), distinct=True)
    known = clv.known(rest, numbers=results.Numbers(), k=10)
    assert "nearly all came back" in known.verdict
    assert known.kpis[1].value != known.kpis[1].value


def test_before_the_log_there_is_nothing_to_compare(fitted):
    shop, summary, model = fitted
    for since in ("1996-01-01", "1997-01-01"):
        found = clv.change(shop, model, summary, since=since, **TERMS, k=10)
        assert found.rows.empty
        assert "too short a log" in found._repr_html_()


def test_what_is_known_without_a_forecast(fitted):
    summary = fitted[1]
    known = clv.known(summary, numbers=results.Numbers(), k=10)
    assert known.verdict == (
        "Of 2,357 customers 946 came back at least once; half of them bought 2 times more, "
        "or oftener."
    )
    assert [kpi.value for kpi in known.kpis] == [2357, pytest.approx(946 / 2357)]
    few = clv.known(summary.filter(summary.frequency > 16), numbers=results.Numbers(), k=100)
    assert "fewer than 100 came back" in few.verdict
    assert few.kpis[1].value != few.kpis[1].value


def started(shop, summary, older):
    """Return a start of the log at which the customers of `older` may have been there before."""
    n = (int(rows.count().to_pyarrow().as_py()) for rows in (summary, older))
    return customers.LogStart(dt.date(1997, 1, 1), 60, *n, shop.numbers, older)


def test_a_cut_off_history_is_held_against_a_fit_on_true_newcomers(fitted):
    shop, summary, model = fitted
    early = summary.filter(summary.first_purchase < "1997-02-01").select("customer_id")
    found = clv.newcomers(model, summary, started(shop, summary, early), horizon_days=273, k=10)
    rest = summary.anti_join(early, "customer_id")
    assert found.customers == rest.count().to_pyarrow().as_py()
    values = clv.fit(rest).predict(rest, horizon_days=273, margin=1.0, intervals=False)
    own = values.expected_purchases.sum().to_pyarrow().as_py()
    assert found.by_their_own == pytest.approx(own)
    # Both learnt from customers alike, so they differ by little.
    assert found.by_all == pytest.approx(own, rel=0.1)
    assert "The fit is approximate. Of the" in found._repr_html_()
    none = started(shop, summary, summary.limit(0).select("customer_id"))
    assert clv.newcomers(model, summary, none, horizon_days=273, k=10) is None


def test_too_few_newcomers_are_said(fitted):
    shop, summary, model = fitted
    most = summary.order_by("customer_id").limit(2350).select("customer_id")
    found = clv.newcomers(model, summary, started(shop, summary, most), horizon_days=273, k=10)
    assert "fewer than 10 customers are surely new" in found.verdict
    assert found.by_all != found.by_all
