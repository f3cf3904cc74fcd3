import dataclasses
import datetime as dt
import re

import ibis
import numpy as np
import pandas as pd
import pytest

from crmlab import city, clv, customers, demo, sources

AS_OF = "2025-12-31"
TRUTH = np.array(city.PARAMETERS["seasonality"]["month"])


@pytest.fixture(scope="module")
def make_world(tmp_path_factory):
    def make(n, effects, seed=21):
        folder = tmp_path_factory.mktemp("season")
        return sources.open_shop(demo.shop(customers=n, effects=effects, seed=seed, folder=folder))

    return make


@pytest.fixture(scope="module")
def seasonal(make_world):
    """A shop that is busier in some months, and customers who know nothing else."""
    return make_world(15_000, ["seasonality"])


def season_of(shop, as_of=AS_OF):
    summary = customers.summary(shop, as_of=as_of)
    return summary, clv.season(shop, summary, clv.fit(summary), as_of=as_of)


def test_the_months_of_the_truth_are_found_with_their_intervals(seasonal):
    _, season = season_of(seasonal)
    months = season.months
    assert season.found
    assert season.seen_months == 36
    assert months["index"].mean() == pytest.approx(1)
    held = (months["low"] <= TRUTH / TRUTH.mean()) & (months["high"] >= TRUTH / TRUTH.mean())
    assert held.all()  # the intervals hold all twelve at once, 95 times in 100
    assert (months["high"] / months["low"]).max() < 1.35
    assert months.loc[11, "low"] > 1.2  # December is no chance
    assert "The shop is seasonal" in season.verdict
    assert "more in December (95 % interval" in season.verdict
    assert re.search(r"More than usual they surely buy in .*November and December", season.verdict)
    assert re.search("Less than usual they surely buy in January, February", season.verdict)
    spring = season.caution(dt.date(2025, 12, 31), 60)
    assert re.search("these 60 days are worth (4[7-9]|5[0-3]) average ones", spring)
    assert season.caution(dt.date(2025, 12, 31), 365) == ""


def test_a_shop_without_a_season_has_none(make_world):
    _, season = season_of(make_world(8_000, []))
    assert not season.found
    assert season.verdict.startswith("No season shows in 36 whole months")
    assert season.ahead(dt.date(2025, 12, 31), 90) == 90


def test_two_full_years_are_needed(seasonal, sample):
    _, season = season_of(seasonal, as_of="2024-12-30")  # a day short of the 24th month
    assert (season.seen_months, season.months.empty, season.found) == (23, True, False)
    assert "A season cannot be seen in 23 whole months" in season._repr_html_()
    _, season = season_of(seasonal, as_of="2024-12-31")
    assert season.seen_months == 24
    assert len(season.months) == 12
    _, season = season_of(sample(), as_of="1998-06-30")
    assert season.seen_months == 18  # the log begins on the first of a month and ends on a last
    assert not season.found


def test_a_young_shop_may_have_begun_with_hardly_any_buyers(make_world):
    shop = make_world(4_000, ["seasonality"], seed=5)
    policy = dataclasses.replace(shop.policy, privacy_k=60)
    shop = dataclasses.replace(shop, settings=dataclasses.replace(shop.settings, policy=policy))
    _, season = season_of(shop)
    assert 24 <= season.seen_months < 36
    assert len(season.months) == 12


def test_without_two_years_the_season_costs_no_forecast(make_shop):
    """Where nothing can be taken out, it is as if nothing had been asked."""
    rng = np.random.default_rng(3)
    rows = [
        f"c{n},{dt.date(2022, 1, 1) + dt.timedelta(int(day))},5"
        for n in range(400)
        for day in rng.integers(n // 4, 500, 2 + rng.poisson(3))
    ]
    shop = make_shop("customer_id,purchased_at,amount\n" + "\n".join(rows))
    plain, out = (
        clv.backtest(shop, split="2022-05-01", horizon_days=300, models=["bgnbd"],
                     season_out=season_out).rows
        for season_out in (False, True)
    )  # fmt: skip
    pd.testing.assert_frame_equal(plain, out)


def test_months_of_few_buyers_are_not_shown(make_shop):
    rng = np.random.default_rng(1)
    days = pd.date_range("2022-01-01", "2024-12-31")
    rows = [f"c{n},{days[d]:%Y-%m-%d},5" for n in range(40) for d in rng.integers(0, 1096, 12)]
    shop = make_shop("customer_id,purchased_at,amount\n" + "\n".join(rows))
    _, season = season_of(shop, as_of="2024-12-31")
    assert season.months.empty
    assert "too few customers came back" in season.verdict


def test_time_without_the_season_makes_a_year_of_a_year(seasonal):
    _, season = season_of(seasonal)
    day = dt.date(2025, 12, 31)
    assert season.ahead(day, 365) == pytest.approx(365, abs=1.5)
    assert season.ahead(dt.date(2025, 11, 30), 31) == pytest.approx(
        31 * season.months["index"].iloc[11]
    )
    clock = season.clock(day, day + dt.timedelta(40))
    assert clock[0] == 0
    assert (np.diff(clock) > 0).all()


def test_a_summary_without_the_season_counts_in_days_of_an_average_month(seasonal):
    summary, season = season_of(seasonal)
    plain = summary.order_by("customer_id").to_pandas()
    taken = season.taken_out(summary, as_of=AS_OF).order_by("customer_id").to_pandas()
    assert list(taken.columns) == list(plain.columns)
    same = ["customer_id", "frequency", "monetary_value", "first_purchase", "last_purchase"]
    pd.testing.assert_frame_equal(taken[same], plain[same])
    assert (taken["recency"] <= taken["T"]).all()
    one = plain.iloc[17]
    clock = season.clock(one["first_purchase"].date(), dt.date(2025, 12, 31))
    assert taken["T"].iloc[17] == pytest.approx(clock[-1], abs=0.06)
    assert taken["recency"].iloc[17] == pytest.approx(clock[one["recency"]], abs=0.06)


def test_taking_the_season_out_mends_a_forecast_of_the_months_before_christmas(seasonal):
    plain, out = (
        clv.backtest(
            seasonal, split="2025-09-30", horizon_days=91, models=["bgnbd"], challenger=False,
            season_out=season_out,
        )
        for season_out in (False, True)
    )  # fmt: skip
    assert plain.total_error < -0.1  # the quarter has 23 % more than its share
    assert abs(out.total_error) < 0.06
    assert out.rows["rmse"].iloc[0] < plain.rows["rmse"].iloc[0]
    assert (out.tracking["day"] == plain.tracking["day"]).all()
    # Rules of thumb and silences stay the calendar's.
    columns = ["label", "customers", "actual"]
    pd.testing.assert_frame_equal(out.by_silence[columns], plain.by_silence[columns])
    rule = [one.rows.set_index("method").loc["same rate", "purchases"] for one in (plain, out)]
    assert rule[0] == pytest.approx(rule[1])
    missed = [
              abs(one.tracking["expected"].iloc[-1] / one.tracking["actual"].iloc[-1] - 1)
              for one in (plain, out)]  # fmt: skip
    assert missed[1] < missed[0]


def test_without_a_season_nothing_is_taken_out():
    none = clv.Season(pd.DataFrame(), float("nan"), 12, None)
    table = ibis.memtable(pd.DataFrame({"customer_id": ["a"]}))
    assert none.taken_out(table, as_of=AS_OF) is table


@pytest.mark.slow
def test_a_season_is_found_by_chance_once_in_a_hundred_shops(make_world):
    found = sum(season_of(make_world(1_500, [], seed=seed))[1].found for seed in range(40))
    assert found <= 3  # more has a chance below .1 %
