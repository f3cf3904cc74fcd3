import datetime as dt

import numpy as np
import pytest

from crmlab import charts, clv, customers, results
from crmlab.tables import DataError, UsageError


@pytest.fixture
def fitted(sample):
    shop = sample()
    summary = customers.summary(shop, as_of="1997-09-30")
    return shop, summary, clv.fit(summary)


def test_a_matrix_is_what_lifetimes_says_of_the_same_histories(fitted):
    _, summary, model = fitted
    found = clv.matrix(model, summary, horizon_days=273, numbers=results.Numbers())
    cells = found.cells
    assert found.T == 262  # nine in ten were first seen up to so many days ago
    assert list(cells["frequency"].unique()) == [1, 2, 3, 5, 8]
    assert list(cells["silent_days"].unique()) == [0, 30, 60, 90, 180]
    assert (cells["frequency"] <= found.T - cells["silent_days"]).all()
    x, last = cells["frequency"], (found.T - cells["silent_days"]) / 7
    theirs = clv.to_lifetimes(model).conditional_expected_number_of_purchases_up_to_time(
        39, x, last, np.full(len(x), found.T / 7)
    )
    assert cells["expected_purchases"].to_numpy() == pytest.approx(np.asarray(theirs), rel=1e-8)
    assert cells["p_purchase"].between(0, 1).all()
    # At every frequency, longer silence is a smaller chance.
    for _, column in cells.groupby("frequency"):
        assert column.sort_values("silent_days")["p_purchase"].is_monotonic_decreasing


def test_a_path_ends_where_the_forecast_of_the_customer_is(fitted):
    shop, summary, model = fitted
    values = model.predict(summary, horizon_days=273, margin=1.0, intervals=False).to_pandas()
    rows = summary.to_pandas().set_index("customer_id")
    one = rows[rows["frequency"] == 5].index[0]
    found = clv.path(shop, model, one, as_of="1997-09-30", horizon_days=273)
    assert len(found.purchases) == 6
    assert found.days["day"].iloc[-1] == dt.date(1997, 9, 30)
    last = values.set_index("customer_id").loc[one]
    assert found.days["p_purchase"].iloc[-1] == pytest.approx(last["p_purchase"])
    assert found.days["p_alive"].iloc[-1] == pytest.approx(last["p_alive"])
    # A purchase lifts the chance; every day of silence lowers it.
    days = found.days.set_index("day")["p_purchase"]
    steps = days.diff()
    assert (steps[found.purchases[2:]] > 0).all()
    assert (steps.drop(found.purchases).iloc[1:] < 0).all()
    assert "6 days with a purchase" in charts.path(found).alt


def test_nothing_after_as_of_is_in_a_path(fitted):
    shop, summary, model = fitted
    busiest = summary.order_by(summary.frequency.desc()).limit(1).to_pandas().iloc[0]
    early = clv.path(shop, model, busiest["customer_id"], as_of="1997-06-30")
    assert max(early.purchases) <= dt.date(1997, 6, 30)
    assert early.days["day"].max() == dt.date(1997, 6, 30)


def test_a_customer_without_a_purchase_has_no_path(fitted):
    shop, _, model = fitted
    with pytest.raises(DataError, match="no purchase of a customer 'nobody' up to 1997-09-30"):
        clv.path(shop, model, "nobody", as_of="1997-09-30")


def test_no_path_of_a_customer_gets_on_a_page(fitted, monkeypatch, tmp_path):
    shop, summary, model = fitted
    monkeypatch.setenv("CRMLAB_RUN_DIR", str(tmp_path))
    one = summary.limit(1).customer_id.to_pyarrow()[0].as_py()
    with pytest.raises(UsageError, match="never for a page"):
        clv.path(shop, model, one, as_of="1997-09-30")
