import datetime as dt

import ibis
import numpy as np
import pandas as pd
import pytest

from crmlab import clv, customers, results, segments, sources
from crmlab.tables import DataError, UsageError
from tests import worlds

TERMS = {"horizon_days": 365, "margin": 0.3, "annual_discount_rate": 0.1}
NUMBERS = results.Numbers()


@pytest.fixture(scope="module")
def fitted(home):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRMLAB_HOME", str(home))
        summary = customers.summary(sources.open_shop("cdnow-sample"), as_of="1997-09-30")
        model = clv.fit(summary)
        return summary, model, model.predict(summary, **TERMS)


def checked(errors, *, sales=(0.0,), ahead=365, horizon=365, log=2000):
    """Return checks whose forecasts, so many days ahead, were off by `errors`."""
    rows = pd.DataFrame({"total_error": errors, "horizon_days": ahead})
    rows["split"] = dt.date(2024, 1, 1)
    rows["sales_error"] = np.resize(sales, len(errors))
    return clv.Checks(rows, horizon, log, NUMBERS)


def test_a_total_has_a_range_that_is_as_wide_as_earlier_totals_were_off(fitted):
    summary, model, values = fitted
    total = values.clv.sum().to_pyarrow().as_py()
    few, enough = (
        clv.total_range(model, summary, values, **TERMS, checks=checked(errors))
        for errors in ([-0.05, -0.3], [0.02, -0.05, -0.3])
    )
    assert (few.caveat, enough.caveat) == ("model only, not tested", "")
    # The worst of three was 30 % too low: the truth was 1 / .7 of the forecast.
    assert enough.high == pytest.approx(total / 0.7)
    assert enough.low == pytest.approx(total * 0.7)
    assert total < few.high < enough.high
    # By the model alone: the parameters' part, some 13 % of the total, and chance.
    assert np.log(few.high / few.low) / 2 == pytest.approx(0.13, abs=0.05)


def test_a_total_of_money_is_as_uncertain_as_earlier_sales_were_off(fitted):
    summary, model, values = fitted
    total = values.clv.sum().to_pyarrow().as_py()
    checks = checked([0.01, -0.02, 0.01], sales=[0.1, -0.4, 0.05])
    between = clv.total_range(model, summary, values, **TERMS, checks=checks)
    assert between.high == pytest.approx(total / 0.6)
    assert "and by +10.0%, −40.0%, +5.0% in all sales" in checks.verdict


def test_a_sum_that_is_mostly_nothing_has_no_impossible_range(fitted):
    summary, model, _ = fitted
    day = {**TERMS, "horizon_days": 1}
    values = model.predict(summary, **day)
    between = clv.total_range(model, summary.limit(40), values.semi_join(
        summary.limit(40), "customer_id"), **day, checks=checked([0.1]))  # fmt: skip
    # Of forty customers hardly one buys in a day: nothing is likeliest, a few purchases the most.
    assert 0 <= between.low < 1e-6
    assert between.high < 40


@pytest.mark.parametrize("seed", [94, 192])
def test_no_draw_of_flat_parameters_swallows_the_model_s_own_part(seed):
    world = worlds.generate("bgnbd", 80 if seed == 94 else 150, seed)
    summary = world.summary()
    model = clv.fit(summary)
    terms = {"horizon_days": 364, "margin": 1.0, "annual_discount_rate": 0.1}
    values = model.predict(summary, **terms)
    checks = checked([0.1, 0.05, -0.02], horizon=364)
    between = clv.total_range(model, summary, values, **terms, checks=checks)
    assert between.high / between.low > 1.5  # far more than earlier totals were off


def test_two_checks_at_the_same_date_are_not_two(make_shop):
    rows = "\n".join(
        f"c{n},{dt.date(2024, 1, 1) + dt.timedelta((7 * n + 11 * j) % 120)},5"
        for n in range(200) for j in range(1 + n % 6)
    )  # fmt: skip
    shop = make_shop(f"customer_id,purchased_at,amount\n{rows}\n", "[policy]\nprivacy_k = 2\n")
    found = clv.checks(shop, as_of="2024-04-29", horizon_days=1, models=["nbd"]).rows
    assert len(found) == 3
    assert found["split"].is_unique


def test_a_horizon_that_could_not_be_tested_is_said_and_widens_the_range(fitted):
    summary, model, values = fitted
    total = values.clv.sum().to_pyarrow().as_py()
    quarter = checked([0.02, -0.05, -0.3], ahead=92, horizon=368, log=300)
    between = clv.total_range(model, summary, values, **TERMS, checks=quarter)
    # Four times as far as tested: twice as wide, on the logarithm.
    assert between.high == pytest.approx(total / 0.7**2)
    assert between.caveat == "tested 92 days ahead only"
    assert "test 92 days ahead, not 368: the range is widened" in quarter.verdict
    assert "The horizon of 368 days is longer than the log (300 days)" in quarter.caution
    whole = checked([0.02, -0.05, -0.3], ahead=364)
    assert whole.far_enough  # but for a day
    assert ("longer" in whole.caution, "widened" in whole.verdict) == (False, False)


def test_checks_at_earlier_dates_say_how_far_totals_were_off(sample):
    checks = clv.checks(sample(), as_of="1998-06-30", horizon_days=365)
    assert list(checks.rows["split"]) == [dt.date(1997, 12, 31), dt.date(1997, 10, 2),
                                          dt.date(1997, 7, 3)]  # fmt: skip
    assert set(checks.rows["horizon_days"]) == {181}  # a third of the log
    assert (checks.tested_days, checks.log_days) == (181, 545)
    assert checks.rows["total_error"].abs().max() < 0.3
    errors = checks.rows[["total_error", "sales_error"]]
    worst = np.log1p(errors).abs().max().max()
    assert checks.spread == pytest.approx(worst * np.sqrt(365 / 181))
    assert "At 3 dates a forecast of 181 days was off by" in checks._repr_html_()
    assert "All of them were too low." in checks.verdict
    last = checks.rows.iloc[0]
    assert "of the 181 days after Dec 31, 1997, was" in checks.caution
    assert checks.kpis[0].value == last["total_error"]
    # A day after the last complete one costs no check.
    assert len(clv.checks(sample(), as_of="1998-07-02", horizon_days=365).rows) == 3
    short = clv.checks(sample(), as_of="1997-02-15", horizon_days=365)
    assert np.isnan(short.spread)
    assert short.verdict.endswith("That is too few to go by.")


def split(summary, parts):
    """Put every customer into one of `parts`, by the last digits of the id."""
    frame = summary.select("customer_id").to_pandas()
    frame["segment"] = [parts[int(one) % len(parts)] for one in frame["customer_id"]]
    return ibis.memtable(frame)


def by(fitted, segments, k=10, errors=(0.01, 0.01, 0.01), what="region"):
    summary, model, values = fitted
    return clv.by_segment(
        model, summary, values, segments, by=what, **TERMS, checks=checked(list(errors)),
        numbers=NUMBERS, k=k,
    )  # fmt: skip


def test_segments_add_up_to_the_base_and_each_has_its_own_range(fitted):
    summary, _, values = fitted
    found = by(fitted, split(summary, ["<b>north", "south", "south", "south"]))
    rows = found.rows.set_index("segment")
    assert rows["customers"].sum() == 2357
    assert rows["clv"].sum() == pytest.approx(values.clv.sum().to_pyarrow().as_py())
    assert rows["each"].is_monotonic_decreasing
    assert rows.eval("each - clv / customers").abs().max() < 1e-9
    assert (rows["low"] < rows["clv"]).all()
    # What no segment has in common with the others is wider in the smaller one.
    width = np.log(rows["own_high"] / rows["own_low"])
    assert width["<b>north"] > width["south"]
    # The model's own part is more than earlier totals were off by here; and less there.
    assert rows["each_high"].to_numpy() == pytest.approx(rows["own_high"].to_numpy())
    wide = by(fitted, split(summary, ["north", "south"]), errors=(0.5, 0.5, 0.5)).rows
    assert (wide["each_high"] / wide["each"]).to_numpy() == pytest.approx(1.5)
    assert (wide["own_high"] < wide["each_high"]).all()
    assert "&lt;b&gt;north" in found._repr_html_()
    assert found.verdict == "By region, nobody's customers are clearly worth most."
    one = found.rows.assign(own_low=[6.5, 1], own_high=[7.5, 2], each=[7.0, 1.5])
    told = clv.Segments(one, "region", NUMBERS).verdict
    assert told.endswith("are worth most: $7.00 each, against $1.50 of the next.")


def test_small_segments_and_all_after_the_twelfth_are_other(fitted):
    summary = fitted[0]
    many = split(summary, [f"s{n:02d}" for n in range(30)] + ["big"] * 30)
    rows = by(fitted, many).rows
    assert len(rows) <= segments.MOST_SEGMENTS + 1
    assert list(rows["segment"])[-1] == "other"
    assert rows["customers"].sum() == 2357
    few = split(summary, ["most"] * 400 + ["rare", "scarce"])
    rows = by(fitted, few, k=10).rows.set_index("segment")
    assert set(rows.index) == {"most", "other"}
    assert rows.loc["other", "customers"] >= 10
    nothing = by(fitted, few, k=3000)
    assert nothing.rows.empty
    assert "Too few customers" in nothing._repr_html_()


def test_who_has_no_segment_is_unknown(fitted):
    segments = split(fitted[0], ["a", "b"]).filter(ibis._.segment == "a")
    assert set(by(fitted, segments).rows["segment"]) == {"a", "unknown"}


def test_cohorts_are_the_months_or_years_of_the_first_purchase(fitted, sample):
    shop = sample()
    summary = customers.summary(shop, as_of="1997-09-30")
    history = customers.log_start(shop, summary, as_of="1997-09-30")
    segments, what = clv.segments_of(shop, summary, history)
    assert what == "first purchase"
    rows = by(fitted, ibis.memtable(segments.to_pandas()), what=what).rows
    assert list(rows["segment"]) == ["1997-01", "1997-02", "1997-03"]
    shop = sources.open_shop("demo")
    summary = customers.summary(shop, as_of="2025-12-31")
    history = customers.log_start(shop, summary, as_of="2025-12-31")
    segments, _ = clv.segments_of(shop, summary, history)
    counts = segments.group_by("segment").aggregate(n=segments.count()).to_pandas()
    counts = counts.set_index("segment")["n"]
    older = f"perhaps before {history.starts_on}"
    assert set(counts.index) == {"2023", "2024", "2025", older}
    assert counts[older] == history.maybe_older
    assert counts.sum() == history.customers


def test_segments_are_text_columns_of_the_customers(fitted, sample, make_shop):
    shop = sources.open_shop("demo")
    segments, what = clv.segments_of(shop, fitted[0], None, "occupation")
    assert what == "occupation"
    assert segments.columns == ("customer_id", "segment")
    with pytest.raises(UsageError, match="no segment 'latitude'; they have .*occupation"):
        clv.segments_of(shop, fitted[0], None, "latitude")
    with pytest.raises(UsageError, match="'occupation'; they have no column of words"):
        clv.segments_of(sample(), fitted[0], None, "occupation")
    shop = make_shop("customer_id,purchased_at,amount\na,2024-01-01,5\n")
    with pytest.raises(DataError, match="by region need the table customers, which"):
        clv.segments_of(shop, fitted[0], None, "region")


@pytest.mark.slow
@pytest.mark.parametrize("model", worlds.TRUTH)
def test_ranges_of_totals_hold_what_customers_then_bring(model):
    found = worlds.totals(model, worlds=67, n=1500, name="totals")
    # 95 % of 201 is 191; of each model fewer than 58 of 67 has a chance below .3 %.
    assert found["all"].mean() >= 58 / 67
    assert found["segments"].mean() >= 58 / 67
