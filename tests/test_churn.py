import datetime as dt
import random

import numpy as np
import pandas as pd
import pytest

from crmlab import candidates, charts, churn, demo, features, probabilities, reasons, risks, sources
from crmlab.candidates import BASE, Rows
from crmlab.tables import DataError, UsageError, day


@pytest.fixture(scope="module")
def cdnow(home):
    return sources.open_shop(home / "data" / "cdnow" / "shop.toml")


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    """The generated shop, of whose customers it is known why they stop."""
    folder = tmp_path_factory.mktemp("city")
    return sources.open_shop(demo.shop(customers=12_000, seed=3, folder=folder))


@pytest.fixture(scope="module")
def risk(cdnow):
    return churn.fit(cdnow, as_of="1998-06-30", horizon_days=91)


@pytest.fixture(scope="module")
def blocks(city):
    """Cut-offs of the generated shop, the newest first, half a year apart."""
    last = day("2025-12-31")
    numbered = risks.numbered(city, last)
    cuts = [last - dt.timedelta(182 * n) for n in (1, 2, 3, 4)]
    return [risks.block(city, cut, 182, numbered) for cut in cuts]


def test_cdnow_39_weeks_ahead_equals_the_measured_closed_forms(cdnow):
    """figures.md 1: Brier and AUC of 1 - p_purchase on all customers, within .0005."""
    test = churn.fit(cdnow, as_of="1998-06-30", horizon_days=273).backtest
    found = test.everyone.set_index("method")[["brier", "auc"]].round(4)
    wanted = {"BG/NBD": (0.1654, 0.747), "MBG/NBD": (0.1661, 0.755), "Pareto/NBD": (0.1656, 0.763)}
    for method, figures in wanted.items():
        assert tuple(found.loc[method]) == pytest.approx(figures, abs=5e-4), method
    assert not test.calibrated
    assert "uncalibrated" in test.verdict
    assert test.drift["cut"].tolist() == [dt.date(1997, 9, 30)]
    # The base rate in hindsight has a Brier score of .2098.
    skill = 1 - found["brier"] / 0.2098
    assert test.everyone.set_index("method")["skill"].to_numpy() == pytest.approx(skill, abs=1e-3)


def test_all_candidates_stand_side_by_side_and_closed_forms_win_on_cdnow(risk):
    test = risk.backtest
    assert test.rows["method"].tolist() == [one for one in candidates.METHODS if one != "NBD"]
    assert risk.choice in candidates.CLOSED_FORMS
    best = test.rows.set_index("method")["brier"]
    assert best[test.best] == best.min()
    assert test.cost.value >= 0
    assert (test.rows["skill_low"] <= test.rows["skill"]).all()
    assert test.chosen["over_recency_low"] > 0
    assert test.slope.low < 1 < test.slope.high
    assert len(test.drift) == 2
    assert test.error > test.perfect_error > 0
    html = risk._repr_html_()
    assert f"{risk.choice} (chosen)" in html
    assert "All customers, the lost too" in html
    assert risk.verdict.replace("’", "'") in html.replace("&#x27;", "'")
    # Of those who are long lost it is easy to say that they stay away.
    easy = test.everyone.set_index("method")["auc"] - test.rows.set_index("method")["auc"]
    assert (easy.drop(BASE) > 0.05).all()


def test_what_stops_customers_in_the_generated_shop_is_found_in_sign_and_order(blocks):
    rows = Rows.together([one.rows for one in blocks])
    scorer = candidates.learn(candidates.SCORECARD, rows)
    one = rows.frame.head(1)

    def added(group, **change):
        return float(scorer.parts(one.assign(**change))[group].iloc[0])

    kinds = {
        kind: added("cases", case_kind=pd.Series([kind], index=one.index), case_open_days=np.nan)
        for kind in (None, "question", "warranty", "complaint")
    }
    # simulation: the odds of stopping are 5 times as high, 2 times, and as they were.
    assert kinds["complaint"] > kinds["warranty"] + 0.15 > kinds["question"] + 0.3
    assert abs(kinds["question"] - kinds[None]) < 0.15
    late = [added("silence", silent=days, overdue=days / 60) for days in (10, 60, 200)]
    assert late == sorted(late)
    assert late[-1] - late[0] > 0.3


def test_the_calibration_slope_of_the_generated_shop_holds_1(city):
    test = churn.fit(city, as_of="2025-12-31", horizon_days=182).backtest
    assert test.slope.low < 1 < test.slope.high
    assert test.slope.high - test.slope.low < 0.15, "an interval that holds everything says nothing"
    assert test.calibrated
    assert test.usable


def origin_of(blocks, seed=1):
    return risks.origin(blocks, ({}, {}), seed)


def test_the_test_block_changes_neither_the_choice_nor_a_chance(blocks):
    test = blocks[0]
    other = Rows(test.rows.frame, test.rows.who, 1 - test.rows.stopped)
    one, two = (
        origin_of([risks.Block(test.cut, rows, test.everyone), *blocks[1:]])
        for rows in (test.rows, other)
    )
    assert one.choice == two.choice
    for method, chance in one.chances.items():
        assert (chance == two.chances[method]).all()


def test_no_label_reaches_into_a_later_block(cdnow, monkeypatch):
    seen = []
    block = risks.block

    def watched(shop, cut, days, numbered):
        seen.append((cut, cut + dt.timedelta(days)))
        return block(shop, cut, days, numbered)

    monkeypatch.setattr(risks, "block", watched)
    churn.fit(cdnow, as_of="1998-03-31", horizon_days=56)
    assert seen[0][1] == dt.date(1998, 3, 31)
    for later, earlier in zip(seen, seen[1:], strict=False):
        assert earlier[1] <= later[0]


def test_shuffled_labels_are_no_better_than_the_base_rate(blocks):
    rng = np.random.default_rng(8)

    def shuffled(block):
        rows = block.rows
        mixed = Rows(rows.frame, rows.who, rng.permutation(rows.stopped))
        return risks.Block(block.cut, mixed, mixed)

    for _ in range(3):
        one = origin_of([shuffled(block) for block in blocks])
        test = risks.summed_up(
            [one], days=182, k=10, seed=1, numbers=sources.results.Numbers("en_GB", "EUR")
        )
        assert not test.usable
        assert "told more than the base rate" in test.verdict
        assert test.chosen["skill"] < 0.005


def test_isotonic_calibration_needs_a_thousand_distinct_customers_of_the_rarer_outcome(blocks):
    rows = Rows.together([one.rows for one in blocks])
    scorer = candidates.learn(candidates.RECENCY, rows)
    asked = []
    kinds = candidates._calibration
    try:
        candidates._calibration = lambda kind, *rest: asked.append(kind) or kinds(kind, *rest)
        rare = np.flatnonzero(rows.stopped == 1)
        often = np.flatnonzero(rows.stopped == 0)
        _, first = np.unique(rows.who[rare], return_index=True)
        distinct = rare[first]
        for n, allowed in ((999, False), (1_000, True)):
            # Rows of the same customers again do not make them more.
            chosen = np.concatenate([distinct[:n], distinct[: n // 2], often[:3_000]])
            asked.clear()
            candidates.calibrate(scorer, rows.part(chosen), seed=1)
            assert ("isotonic" in asked) is allowed
    finally:
        candidates._calibration = kinds


def test_of_two_that_are_as_good_the_simpler_one_is_taken(blocks):
    rows = blocks[0].rows
    chance = candidates.learn(candidates.RECENCY, rows).chance(rows.frame)
    noise = np.random.default_rng(1).normal(0, 1e-4, len(chance))
    made = {BASE: np.full(len(chance), rows.stopped.mean()), "a": chance, "b": chance + noise}
    assert candidates.simplest(made, rows) == "a"
    better = {"a": chance, "b": 0.5 * chance + 0.5 * rows.stopped}
    assert candidates.simplest(better, rows) == "b"


@pytest.mark.parametrize("method", [candidates.SCORECARD, "BG/NBD"])
def test_what_the_groups_add_is_exactly_the_log_odds(city, blocks, method):
    block = blocks[0]
    if method == "BG/NBD":
        scorer = risks.closed_forms(city, block.cut, 182, block.rows.frame)[method]
    else:
        scorer = candidates.learn(method, block.rows)
    odds = probabilities.log_odds(scorer.raw(block.rows.frame))
    rest = odds - scorer.parts(block.rows.frame).sum(axis=1).to_numpy()
    assert np.ptp(rest) < 1e-6
    # Held against an average customer.
    means = scorer.parts(block.rows.frame).mean()
    assert (means.drop("silence").abs() < 1e-6).all()


def test_reasons_are_the_weightiest_and_tell_the_customers_own_numbers(make_shop):
    log = ["customer_id,purchased_at,amount"]
    log += [f"a,{dt.date(2024, 1, 1) + dt.timedelta(18 * n)},5" for n in range(10)]
    log += ["b,2024-08-01,5", "c,2024-01-01,5", "c,2024-08-20,5"]
    shop = make_shop("\n".join(log) + "\n")
    make_shop("case_id,customer_id,opened_at,kind\n1,a,2024-08-08,complaint\n", name="cases.csv")
    rows = features.features(shop, as_of="2024-08-27")
    weights = {
        "a": {"silence": 0.9, "cases": 2.0, "trend": 0.05, "frequency": -1.0},
        "b": {"silence": 0.3, "frequency": 0.4},
        "c": {},
    }

    def parts(frame):
        rows = [weights[one] for one in frame["customer_id"]]
        return pd.DataFrame(rows, columns=["silence", "frequency", "trend", "cases"]).fillna(0.0)

    chances = {"a": 0.9, "b": 0.8, "c": 0.1}
    scorer = candidates.Scorer("x", lambda f: f["customer_id"].map(chances).to_numpy(), parts)
    found = reasons.scored(scorer, rows, shop.landed).to_pandas().set_index("customer_id")
    assert found["p_stop"].to_dict() == chances
    a, b, c = (found.loc[one, ["reason_1", "reason_2", "reason_3"]].tolist() for one in "abc")
    gap = round((2 * (18 + 232) / 2 + 162) / (2 + 9))
    assert a[:2] == ["complaint open for 19 days", f"usually every {gap} days, silent for 77"]
    assert b[:2] == ["bought once so far", "bought once, silent for 26 days"]
    assert pd.isna([a[2], b[2], *c]).all(), "too little, or a risk below the average"
    assert found["main_reason"].tolist()[:2] == [reasons.KINDS["cases"], reasons.KINDS["frequency"]]
    assert reasons.KINDS.keys() == features.GROUPS.keys()


def test_scores_are_of_customers_who_are_not_lost_and_the_same_every_time(risk, cdnow):
    one, two = (churn.score(risk, cdnow, as_of="1998-06-30").to_pandas() for _ in range(2))
    pd.testing.assert_frame_equal(one, two)
    rows = features.features(cdnow, as_of="1998-06-30")
    lost = rows.filter(rows.overdue > 4).customer_id.to_pandas()
    assert not one["customer_id"].isin(lost).any()
    assert len(one) + len(lost) == 23_570
    assert one["p_stop"].between(0, 1, inclusive="neither").all()
    # It tells customers apart as its test did, and not less.
    assert one["p_stop"].nunique() > 1_000
    tested = np.quantile(risk.scorer.chance(rows.to_pandas()), [0.1, 0.9])
    assert tested[1] - tested[0] > 0.3
    base = churn.at_risk(churn.score(risk, cdnow, as_of="1998-06-30"), risk,
                         numbers=cdnow.numbers, k=10)  # fmt: skip
    assert base.customers == len(one)
    assert base.expected == pytest.approx(one["p_stop"].sum())
    assert base.bands["customers"].sum() == len(one)
    assert base.reasons["customers"].sum() == one["main_reason"].notna().sum()
    assert "expected to buy nothing in the next 91 days" in base.verdict
    for chart in (charts.reasons(base), charts.risk_by_tenth(risk.backtest),
                  charts.risk_over_time(risk.backtest)):  # fmt: skip
        assert chart.svg().startswith("<svg")
        assert "91 days" in chart.alt or "reason" in chart.alt


def test_another_shops_risk_scores_nobody(risk, city):
    with pytest.raises(UsageError, match="learnt in shop 'cdnow'"):
        churn.score(risk, city, as_of="2025-12-31")


def test_a_score_that_would_be_a_guess_is_refused(make_shop):
    shop = make_shop(even_log(300, 700))
    risk = churn.fit(shop, as_of="2024-11-30", horizon_days=28)
    assert not risk.backtest.usable
    with pytest.raises(DataError, match="cannot be foretold"):
        churn.score(risk, shop, as_of="2024-11-30")


def even_log(customers, days, seed=1, chance=0.02):
    """Return a log in which everybody buys as often, and nobody ever stops."""
    draw, begin = random.Random(seed), dt.date(2023, 1, 1)
    lines = [
        f"c{n},{begin + dt.timedelta(d)},5"
        for n in range(customers)
        for d in range(days)
        if draw.random() < chance or d == 0
    ]
    return "customer_id,purchased_at,amount\n" + "\n".join(lines) + "\n"


def test_the_horizon_is_the_shortest_that_most_returns_come_within(make_shop):
    lines = [f"c{n % 40},{dt.date(2022, 1, 1) + dt.timedelta(n // 40 * 45)},5" for n in range(960)]
    shop = make_shop("customer_id,purchased_at,amount\n" + "\n".join(lines) + "\n")
    found = churn.horizon(shop, as_of="2024-11-01")
    assert (found.days, found.share, found.gaps) == (56, 1.0, 40 * 23)
    assert "100% of all returns came within 56 days" in found.verdict
    early = churn.horizon(shop, as_of="2022-05-01")
    assert (early.days, early.longest, early.share) == (28, 28, 0.0)
    assert "the history has room for 28" in early.verdict
    short = churn.horizon(shop, as_of="2024-11-01", days=30)
    assert "such a silence is nothing unusual" in short.verdict
    with pytest.raises(UsageError, match="horizon_days"):
        churn.horizon(shop, as_of="2024-11-01", days=-5)
    assert churn.horizon(shop, as_of="2024-11-01", days=30).share == 0
    once = make_shop("customer_id,purchased_at,amount\na,2024-01-01,5\n", name="transactions.csv")
    assert "Nobody came back yet" in churn.horizon(once, as_of="2024-01-01").verdict


def test_logs_that_cannot_say_are_refused_in_words(make_shop):
    once = [f"c{n},{dt.date(2024, 1, 1) + dt.timedelta(n % 300)},5" for n in range(600)]
    shop = make_shop("customer_id,purchased_at,amount\n" + "\n".join(once) + "\n")
    with pytest.raises(DataError, match="nothing to tell apart|too short to learn"):
        churn.fit(shop, as_of="2024-10-26", horizon_days=28)
    with pytest.raises(DataError, match=r"bought on 2024-01-01.*Choose a shorter horizon_days"):
        churn.fit(shop, as_of="2024-10-26", horizon_days=270)
    with pytest.raises(UsageError, match="horizon_days"):
        churn.fit(shop, as_of="2024-10-26", horizon_days=3)
    daily = make_shop(even_log(60, 200, chance=0.9))
    with pytest.raises(DataError, match="nobody did not buy in the 28 days after"):
        churn.fit(daily, as_of="2023-07-15", horizon_days=28)


def test_with_fewer_than_three_cut_offs_closed_forms_stand_alone(cdnow):
    risk = churn.fit(cdnow, as_of="1997-09-30", horizon_days=91)
    assert set(risk.backtest.rows["method"]) <= set(candidates.CLOSED_FORMS)
    assert risk.backtest.calibration == "uncalibrated"
    assert risk.scorer.calibration.kind == "none"
    assert risk.backtest.rows["over_recency"].isna().all()


def test_odd_columns_and_unseen_words_do_no_harm(blocks):
    rows = blocks[1].rows
    frame = rows.frame.assign(
        recent=1.0,
        points=np.nan,
        channel=pd.Series([None] * len(rows.who), index=rows.frame.index, dtype=object),
        store="one",
    )
    odd = Rows(frame, rows.who, rows.stopped)
    other = frame.assign(store="never seen", case_kind="unheard of").drop(columns="distance_km")
    for method in (candidates.SCORECARD, candidates.BOOSTED):
        scorer = candidates.learn(method, odd)
        chance = scorer.chance(other)
        assert np.isfinite(chance).all()
        assert probabilities.auc(chance, rows.stopped, rows.who).value > 0.6
        assert np.isfinite(scorer.parts(other)).all(axis=None)


def test_a_cut_off_unlike_the_others_is_said(blocks):
    few = [one for one in blocks]
    assert churn._shock(few) == ""
    rows = blocks[2].rows
    more = Rows(rows.frame, rows.who, np.maximum(rows.stopped, rows.who % 2))
    shocked = [*blocks[:2], risks.Block(blocks[2].cut, more, more), blocks[3]]
    assert str(blocks[2].cut) in churn._shock(shocked)
    assert "a season, a promotion or a gap" in churn._shock(shocked)


def test_large_shops_are_learnt_from_in_parts(cdnow, monkeypatch):
    monkeypatch.setattr(risks, "MOST_CUSTOMERS", 8_000)
    numbered = risks.numbered(cdnow, day("1998-06-30"))
    block = risks.block(cdnow, day("1998-03-31"), 91, numbered)
    assert len(block.everyone.who) == -(-23_570 // 3)
    assert (block.everyone.who % 3 == 0).all()
    assert churn._sampled([block])


def regular_log(customers=300, seed=4):
    """Return a year and a half in which every second customer stops after some purchases."""
    draw, begin, lines = random.Random(seed), dt.date(2023, 7, 1), []
    for n in range(customers):
        gap, day = draw.choice([9, 20, 40]), draw.randrange(120)
        while day < 549 and draw.random() > 0.06:
            lines.append(f"c{n},{begin + dt.timedelta(day)},5")
            day += max(1, round(draw.expovariate(1 / gap)))
    return "customer_id,purchased_at,amount\n" + "\n".join(lines) + "\n"


def test_lines_before_the_first_customer_and_days_after_the_log_change_nothing(make_shop):
    log = regular_log()
    plain = churn.fit(make_shop(log), as_of="2024-12-31", horizon_days=56)
    last = max(line.split(",")[1] for line in log.splitlines()[1:])
    early = make_shop(log + "zz,2022-01-05,-5\n,2021-01-01,9\n")
    other = churn.fit(early, as_of="2024-12-31", horizon_days=56)
    pd.testing.assert_frame_equal(plain.backtest.rows, other.backtest.rows)
    later = dt.date.fromisoformat(last) + dt.timedelta(6)
    stale = churn.fit(early, as_of=later, horizon_days=56)
    assert stale.backtest.drift["came"].tolist() == plain.backtest.drift["came"].tolist()
    assert len(plain.backtest.rows) > 3


def test_no_message_tells_of_fewer_than_k_customers(make_shop):
    gone = [f"g{n},{dt.date(2023, 1, 1) + dt.timedelta(9 * d)},5"
            for n in range(50) for d in range(9)]  # fmt: skip
    here = [f"h{n},{dt.date(2023, 1, 1) + dt.timedelta(9 * d + n)},5"
            for n in range(3) for d in range(80)]  # fmt: skip
    shop = make_shop("customer_id,purchased_at,amount\n" + "\n".join(gone + here) + "\n")
    with pytest.raises(DataError, match="Fewer than 10 customers were not lost"):
        churn.fit(shop, as_of="2024-12-10", horizon_days=28)


def test_the_tile_of_the_highest_risk_says_what_the_bands_say(risk, cdnow):
    scores = churn.score(risk, cdnow, as_of="1998-06-30")
    for k in (10, 900):
        base = churn.at_risk(scores, risk, numbers=cdnow.numbers, k=k)
        tile, bands = base.kpis[-1].value, base.bands.set_index("band")["customers"]
        assert tile == bands.get("80% to 100%", -1) or (np.isnan(tile) and "other" in bands)
        assert bands.min() >= k


def test_a_case_without_a_kind_is_a_reason_all_the_same(make_shop):
    make_shop("case_id,customer_id,opened_at,kind\n1,a,2024-08-08,\n", name="cases.csv")
    shop = make_shop("customer_id,purchased_at,amount\na,2024-08-01,5\nb,2024-08-20,5\n")
    rows = features.features(shop, as_of="2024-08-27")
    parts = pd.DataFrame({"cases": [2.0]})
    scorer = candidates.Scorer("x", lambda f: np.where(f["customer_id"] == "a", 0.9, 0.1),
                               lambda f: parts.set_axis(f.index))  # fmt: skip
    found = reasons.scored(scorer, rows, shop.landed).to_pandas().set_index("customer_id")
    assert found.loc["a", "reason_1"] == "case open for 19 days"
