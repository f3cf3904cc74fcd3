import ibis
import numpy as np
import pandas as pd
import pytest

from crmlab import charts, churn, clv, customers, sources
from crmlab.results import Numbers
from crmlab.tables import DataError, UsageError

COSTS = {"contact_cost": 0.5, "offer_cost": 5.0}


def tables_of(n=400, seed=1):
    rng = np.random.default_rng(seed)
    ids = [f"c{one:04d}" for one in range(n)]
    bought = rng.uniform(0.1, 0.9, n)
    scores = pd.DataFrame({"customer_id": ids, "p_stop": rng.uniform(0.05, 0.95, n)})
    values = pd.DataFrame(
        {"customer_id": ids, "clv": bought * rng.gamma(2, 40, n), "p_purchase": bought}
    )
    return scores, values


def plan(scores, values, **options):
    options = {"save": 0.2, "take_up": 0.3} | COSTS | options
    return churn.worth_keeping(ibis.memtable(scores), ibis.memtable(values), **options)


def test_a_contact_earns_what_the_formula_says():
    scores, values = tables_of()
    keep = plan(scores, values)
    rows = scores.merge(values, on="customer_id").set_index("customer_id")
    kept = rows["clv"] / rows["p_purchase"]
    p = rows["p_stop"]
    wanted = p * 0.2 * (kept - 5) - (1 - p) * 0.3 * 5 - 0.5
    found = keep.contacts.to_pandas().set_index("customer_id")
    assert found["profit"].sort_index().to_numpy() == pytest.approx(wanted.to_numpy())
    assert found["value_if_kept"].sort_index().to_numpy() == pytest.approx(kept.to_numpy())
    best = wanted.sort_values(ascending=False).cumsum()
    for row in keep.curve.itertuples():
        assert row.profit == pytest.approx(best.iloc[row.customers - 1])
    assert keep.curve["customers"].is_monotonic_increasing
    assert keep.least <= keep.share <= keep.most
    # What the other half says of the best share is near what the curve says, and not the same.
    at = keep.curve.loc[(keep.curve["share"] - keep.share).abs().idxmin(), "profit"]
    assert keep.profit == pytest.approx(at, rel=0.15)
    assert keep.profit_low < keep.profit < keep.profit_high


def test_the_chance_in_the_interval_is_that_of_saved_customers_and_given_offers():
    scores, values = tables_of(n=2_000)
    keep = plan(scores, values)
    rows = keep.contacts.order_by(ibis.desc("profit")).to_pandas().head(keep.to_contact)
    rng, made = np.random.default_rng(2), []
    for _ in range(2_000):
        stop = rng.random(len(rows)) < rows["p_stop"]
        saved, took = rng.random(len(rows)) < 0.2, rng.random(len(rows)) < 0.3
        earned = np.where(stop, saved * (rows["value_if_kept"] - 5), -5.0 * took) - 0.5
        made.append(earned.sum())
    half = (keep.profit_high - keep.profit_low) / 2
    assert half == pytest.approx(1.959964 * np.std(made), rel=0.08)
    assert np.mean(made) == pytest.approx(keep.profit, rel=0.1)


def test_ranges_of_save_and_take_up_widen_the_band():
    scores, values = tables_of()
    point, band = plan(scores, values), plan(scores, values, save=(0.1, 0.3), take_up=(0.2, 0.4))
    assert point.curve["profit"].tolist() == pytest.approx(band.curve["profit"].tolist())
    assert (point.curve["high"] - point.curve["low"]).abs().max() < 1e-9
    assert (band.curve["low"] < band.curve["profit"]).all()
    assert (band.curve["high"] > band.curve["profit"]).all()
    assert band.profit_low < point.profit_low
    assert "10% to 30%" in band.verdict
    assert "planning figure" in band.verdict


def test_where_no_contact_pays_nobody_is_contacted():
    keep = plan(*tables_of(), save=0.0)
    assert (keep.share, keep.to_contact, keep.profit) == (0, 0, 0)
    assert keep.verdict.startswith("No contact pays for itself")
    everyone = plan(*tables_of(), save=1.0, take_up=0.0)
    assert everyone.share > 0.9
    assert charts.keeping(everyone).alt.endswith(everyone.verdict)
    assert charts.keeping(keep).svg().startswith("<svg")


def test_the_four_cells_hold_all_customers_and_none_of_few():
    keep = plan(*tables_of())
    assert keep.cells["customers"].sum() == 400
    assert len(keep.cells) == 4
    rows = keep.contacts.to_pandas()
    total = (keep.cells["customers"] * keep.cells["each"]).sum()
    assert total == pytest.approx(rows["profit"].sum())
    few = plan(*tables_of(n=60), k=14)
    assert few.cells["customers"].min() >= 14
    assert few.curve["customers"].diff().dropna().min() >= 14


def test_bad_input_is_refused_in_words():
    scores, values = tables_of(n=39)
    with pytest.raises(DataError, match="Fewer than 40 customers have both a score and a value"):
        plan(scores, values)
    with pytest.raises(UsageError, match="save"):
        plan(*tables_of(), save=1.5)
    with pytest.raises(UsageError, match="take_up"):
        plan(*tables_of(), take_up=(-0.1, 0.2))
    for odd in ((0.1,), (0.1, 0.2, 0.3)):
        with pytest.raises(UsageError, match="the two ends of a range"):
            plan(*tables_of(), save=odd)
    with pytest.raises(UsageError, match="give the lower end first"):
        plan(*tables_of(), save=(0.3, 0.1))
    with pytest.raises(UsageError, match="it is a DataFrame with customer_id, p_stop"):
        churn.worth_keeping(scores, ibis.memtable(values), save=0.1, take_up=0.1, **COSTS)
    with pytest.raises(UsageError, match="values must be an ibis table with customer_id, clv"):
        plan(scores, scores)
    with pytest.raises(UsageError, match="k"):
        plan(*tables_of(), k=0)
    with pytest.raises(UsageError, match="offer_cost"):
        plan(*tables_of(), offer_cost=-1)


def test_what_a_kept_customer_is_worth_counts_stopping_once(home):
    """E[V] = P(N > 0) E[V | N > 0]: clv holds the chance of stopping, value_if_kept does not."""
    summary = customers.summary(sources.open_shop("cdnow-sample"), as_of="1998-06-30")
    model = clv.fit(summary)
    values = model.predict(summary, horizon_days=365, margin=0.3, annual_discount_rate=0)
    scores = values.select("customer_id", p_stop=1 - values.p_purchase)
    keep = churn.worth_keeping(scores, values, save=0.2, take_up=0.3, **COSTS, numbers=Numbers())
    rows = keep.contacts.to_pandas().merge(values.to_pandas(), on="customer_id")
    product = rows["value_if_kept"] * rows["p_purchase"]
    assert product.to_numpy() == pytest.approx(rows["clv"].to_numpy())
    assert (rows["value_if_kept"] >= rows["clv"]).all()
