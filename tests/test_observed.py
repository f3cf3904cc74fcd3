import importlib.util
import re
from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from crmlab import effects, observed, weighing
from crmlab.results import Numbers
from crmlab.tables import DataError, UsageError
from tests.conftest import need

EFFECT = 2.0
METHODS = [observed.WEIGHTED, observed.DOUBLY_ROBUST, observed.DIFFERENCES]
PERSONS = ["age", "educ", "black", "hisp", "marr", "nodegree"]


def world(n=2_000, seed=1, hidden=0.0, effect=EFFECT):
    """Customers chosen by what they spent before, age and region; and by a hidden taste too.

    Without `hidden` nothing but these moves what they spend after; all gain `effect`.
    """
    rng = np.random.default_rng(seed)
    taste, age = rng.normal(size=n), rng.normal(40, 12, n)
    region = rng.choice(["north", "south", "east"], n, p=[0.5, 0.3, 0.2])
    usual = 10 + 3 * taste + 0.2 * (age - 40) + 2 * (region == "south")
    earlier, before = usual + rng.normal(0, 2, n), usual + rng.normal(0, 2, n)
    odds = 0.15 * (before - 10) + 0.03 * (age - 40) + 0.4 * (region == "north") - 0.8
    treated = rng.random(n) < 1 / (1 + np.exp(-odds - hidden * taste))
    after = 10 + 0.6 * (before - 10) + 0.15 * (age - 40) + 2 * hidden * taste
    return pd.DataFrame(
        {
            "customer_id": [f"c{one:05d}" for one in range(n)],
            "treated": treated,
            "outcome": after + (region == "south") + rng.normal(0, 2, n) + effect * treated,
            "before": before,
            "earlier": earlier,
            "age": age,
            "region": region,
        }
    )


def asked(rows, **options):
    return observed.observed(rows, **({"covariates": ["before", "age", "region"]} | options))


def by_method(found):
    return found.to_frame().set_index("method")


@pytest.fixture(scope="module")
def plain():
    return asked(world())


@pytest.fixture(scope="module")
def lalonde():
    """The NSW experiment (Dehejia and Wahba's men), and the contacted of it beside CPS."""
    found = need(importlib.util.find_spec("causaldata"), "the package causaldata")
    [place] = found.submodule_search_locations
    drawn = pd.read_stata(Path(place, "nsw_mixtape", "nsw_mixtape.dta"))
    survey = pd.read_stata(Path(place, "cps_mixtape", "cps_mixtape.dta"))
    return drawn, pd.concat([drawn[drawn["treat"] == 1], survey], ignore_index=True)


def trained(rows, **options):
    return observed.observed(
        rows, treated="treat", outcome="re78", before="re75",
        covariates=[*PERSONS, "re74", "re75"], **options,
    )  # fmt: skip


def test_a_survey_beside_the_trained_gives_about_what_the_experiment_gave(lalonde):
    drawn, beside = lalonde
    rows = drawn.astype({"re78": float}).groupby("treat")["re78"].mean()
    assert rows[1] - rows[0] == pytest.approx(1794.34, abs=0.005)
    found = trained(beside)
    table = by_method(found)
    assert table.loc[observed.NAIVE, "effect"] == pytest.approx(-8497.52, abs=0.005)
    # What adjusting has given in the literature: Dehejia and Wahba (1999) and after.
    assert table.loc[METHODS, "effect"].between(1_297, 3_621).all()
    assert (table.loc[METHODS, "low"] < 1794.34).all()
    assert (table.loc[METHODS, "high"] > 1794.34).all()
    assert found.balance["before"].abs().max() > 2
    assert found.balance["after"].abs().max() < 0.1
    assert (found.treated, found.share_dropped) == (158, pytest.approx(27 / 185))
    assert found.untreated == pytest.approx(400, abs=30)
    assert "observational, weaker" in found.verdict


def test_the_trained_had_earned_less_already_so_that_the_placebo_warns(lalonde):
    _, beside = lalonde
    found = trained(beside, placebo="re75")
    assert not found.usable
    assert found.verdict.startswith("Cannot say: the methods find an effect on re75 too")
    table = by_method(found)
    assert (table.loc[METHODS[:2], "placebo_high"] < 0).all()
    assert table["passed"].tolist() == [False, False, pd.NA, False]


def test_where_the_lot_decided_the_placebo_finds_nothing(lalonde):
    drawn, _ = lalonde
    found = trained(drawn, placebo="re75")
    table = by_method(found)
    assert table.loc[METHODS, "effect"].to_numpy() == pytest.approx(1794.34, abs=250)
    assert table.loc[METHODS[:2], "passed"].all()
    assert found.usable


def test_the_naive_difference_misses_what_the_others_find(plain):
    table = by_method(plain)
    for name in METHODS:
        assert table.loc[name, "low"] <= EFFECT <= table.loc[name, "high"]
        assert table.loc[name, "effect"] == pytest.approx(EFFECT, abs=0.4)
    assert table.loc[observed.NAIVE, "low"] > 2 * EFFECT
    assert list(table.index) == [*METHODS, observed.NAIVE]
    assert not table["passed"].isna().loc[observed.NAIVE]
    ends = table.loc[METHODS, "low"].min(), table.loc[METHODS, "high"].max()
    assert plain.usable
    assert plain.verdict.startswith(
        f"Between ${ends[0]:.2f} and ${ends[1]:.2f} of outcome per customer contacted "
        "(observational, weaker)."
    )
    assert "No placebo was tried" in plain.verdict
    for words in (plain.verdict, asked(world(), placebo="earlier").verdict):
        assert "naive" not in words
        assert "profit" not in words


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say():
    tried = [by_method(asked(world(n=1_000, seed=seed), seed=seed, folds=3)) for seed in range(100)]
    least, most = stats.binom.interval(0.99, len(tried), 0.95)
    for name in METHODS:
        found = pd.DataFrame(
            [one.loc[name, ["effect", "low", "high"]] for one in tried], dtype=float
        )
        covered = found["low"].le(EFFECT) & found["high"].ge(EFFECT)
        assert least <= covered.sum() <= most, name
        said = (found["high"] - found["low"]).mean() / (2 * 1.96)
        assert said == pytest.approx(found["effect"].std(), rel=0.2), name
        assert found["effect"].mean() == pytest.approx(EFFECT, abs=0.1), name
    assert not any(one.loc[observed.NAIVE, "low"] <= EFFECT for one in tried)


def strata(n=4_000):
    """Two strata of which different shares were contacted, with exactly these chances."""
    rng = np.random.default_rng(3)
    second = np.arange(n) % 2 == 1
    contacted = rng.random(n) < np.where(second, 0.6, 0.2)
    shares = {one: contacted[second == one].mean() for one in (False, True)}
    chance = np.where(second, shares[True], shares[False])
    values = 5 + 4 * second + contacted * (1 + second) + rng.normal(0, 1 + second)
    matrix = second.astype(float)[:, None]
    folds = [(np.arange(n), np.arange(n))]
    weighed = weighing.Weighed(contacted, matrix, folds, chance, chance / (1 - chance))
    return weighed, values, second


def test_both_weightings_give_the_difference_by_stratum_averaged_over_those_contacted():
    weighed, values, second = strata()
    one = weighed.contacted
    by_hand = sum(
        (one & (second == s)).sum()
        / one.sum()
        * (values[one & (second == s)].mean() - values[~one & (second == s)].mean())
        for s in (False, True)
    )
    assert weighed.weighted(values, 0.95).difference == pytest.approx(by_hand)
    assert weighed.doubly_robust(values, 0.95).difference == pytest.approx(by_hand)


def test_with_learnt_chances_the_influence_is_the_efficient_one_of_hahn_1998():
    """Hahn (1998), Econometrica 66, theorem 1; reached by weights of strata: Hirano et al."""
    weighed, values, second = strata()
    one, odds = weighed.contacted, weighed.odds
    expected = np.where(second, values[~one & second].mean(), values[~one & ~second].mean())
    left = values - expected
    efficient = (one * (left - left[one].mean()) - ~one * odds * left) / one.mean()
    found = weighed.influence(values) + weighed.correction(values)
    assert found == pytest.approx(efficient, abs=0.02)
    assert weighed.influence(values) != pytest.approx(efficient, abs=0.5)
    both = weighed.weighted(values, 0.95), weighed.doubly_robust(values, 0.95)
    half = 1.959964 * np.sqrt((efficient**2).sum()) / len(values)
    for one_of in both:
        assert one_of.high - one_of.difference == pytest.approx(half, rel=0.01)


def test_without_selection_the_interval_is_that_of_two_means():
    rng = np.random.default_rng(5)
    values, contacted = rng.gamma(2, 5, 3_000), np.arange(3_000) % 3 == 0
    chance = np.full(3_000, 1 / 3)
    weighed = weighing.Weighed(contacted, np.zeros((3_000, 1)), [], chance, chance / (1 - chance))
    groups = [
        effects.Moments(len(of), of.mean(), of.var(ddof=1))
        for of in (values[contacted], values[~contacted])
    ]
    wanted, found = effects.welch(*groups), weighed.weighted(values, 0.95)
    assert found.difference == pytest.approx(wanted.difference)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), rel=2e-3)
    assert found.p_value == pytest.approx(wanted.p_value, rel=0.02)


def test_a_hidden_difference_that_the_placebo_shows_gives_no_answer():
    rows = world(n=3_000, hidden=0.7)
    fooled, warned = asked(rows), asked(rows, placebo="earlier")
    # Without a placebo nothing shows it: that is why the verdict says that none was tried.
    assert (by_method(fooled).loc[METHODS[:2], "low"] > EFFECT).all()
    assert fooled.usable
    assert "No placebo was tried" in fooled.verdict
    assert not warned.usable
    assert warned.verdict.startswith("Cannot say: the methods find an effect on earlier too")
    assert not by_method(warned)["passed"].any()


def test_a_placebo_held_against_what_they_were_chosen_by_passes():
    found = asked(world(), placebo="earlier", placebo_covariates=["before", "age", "region"])
    table = by_method(found)
    assert table.loc[METHODS, "passed"].all()
    assert not table.loc[observed.NAIVE, "passed"]
    assert table.loc[observed.NAIVE, "placebo_low"] > 1
    assert found.usable
    assert "placebo" not in found.verdict
    # The trend between the two windows is what the difference in differences is tested on.
    rows = world()
    change = (rows["before"] - rows["earlier"])[rows["treated"]].mean()
    trend = table.loc[observed.DIFFERENCES, "placebo"]
    assert abs(trend) < 0.3 < change


def test_one_method_that_fails_its_placebo_is_named_and_not_counted():
    estimates = pd.DataFrame(
        [
            (observed.WEIGHTED, -3.0, -4.0, -2.0, 1.0, 0.5, 1.5, False),
            (observed.DOUBLY_ROBUST, 2.0, 1.0, 3.0, 0.1, -0.5, 0.7, True),
            (observed.NAIVE, -9.0, -10.0, -8.0, 1.0, 0.5, 1.5, False),
        ],
        columns=list(observed.ESTIMATES),
    ).astype({"passed": "boolean"})
    columns = observed._Asked("treated", "spend", None, "earlier", (), ())
    even = pd.DataFrame({"covariate": ["age"], "after": [0.0], "bad": [False]})

    def say(estimates):
        return observed._verdict(estimates, even, columns, 100, "", Numbers(), "money")

    usable, words = say(estimates)
    assert usable
    assert words.startswith("Between $1.00 and $3.00 of spend per customer contacted")
    assert f"Not counted, as it failed its placebo: {observed.WEIGHTED}." in words
    usable, words = say(estimates.assign(passed=pd.array([True, True, False], "boolean")))
    assert not usable
    assert words == (
        "Cannot say: the methods disagree on whether spend rose or fell (between −$3.00 and $2.00)."
    )


def test_where_nobody_is_comparable_there_is_no_figure_at_all():
    rows = world()
    apart = rows.assign(treated=rows["before"] > 12)
    for found in (asked(apart), asked(rows.groupby("treated").head(99))):
        assert not found.usable
        assert found.verdict.startswith("Cannot say: no overlap.")
        assert found.to_frame().empty
        assert found.balance.empty
        assert "<table" not in found._repr_html_()
    assert asked(apart).treated < 100 < apart["treated"].sum()


def test_all_are_held_against_the_overlap_that_is_asked_for():
    rows = world(n=4_000)
    wide, narrow = asked(rows, overlap=(0.0, 0.99)), asked(rows, overlap=(0.2, 0.6))
    assert wide.share_dropped < 0.01
    assert narrow.share_dropped > 0.2
    kept = round((1 - narrow.share_dropped) * rows["treated"].sum())
    assert (narrow.treated, narrow.treated + narrow.untreated < wide.treated + wide.untreated) == (
        kept,
        True,
    )
    assert f"It leaves out {100 * narrow.share_dropped:.1f}% of those contacted" in narrow.verdict


def test_groups_that_weights_do_not_make_alike_give_no_answer(monkeypatch):
    monkeypatch.setattr(weighing, "chances", lambda matrix, contacted, folds: contacted * 0 + 0.4)
    found = asked(world())
    assert not found.usable
    assert found.verdict == (
        "Cannot say: even after weighting, those contacted differ from the others in what goes "
        "with outcome, most in before."
    )
    assert found.balance["after"].to_numpy() == pytest.approx(found.balance["before"].to_numpy())
    # What has nothing to do with the outcome may differ.
    rows = world()
    rng = np.random.default_rng(1)
    rows["lucky"] = rng.random(len(rows)) < np.where(rows["treated"], 0.6, 0.4)
    rows["outcome"] = rng.normal(size=len(rows)) + rows["treated"]
    found = asked(rows, before=None, covariates=["lucky"])
    assert found.balance["after"].iloc[0] > 0.3
    assert found.usable


def test_balance_is_in_standard_deviations_of_those_contacted(plain):
    rows = world()
    one, other = (
        rows.loc[rows["treated"] == group, "region"] == "north" for group in (True, False)
    )
    table = plain.balance.set_index("covariate")
    wanted = (one.mean() - other.mean()) / one.std(ddof=0)
    assert table.loc["region: north", "before"] == pytest.approx(wanted)
    assert set(table.index) == {
        "before", "age", "region: north", "region: south", "region: east",
    }  # fmt: skip
    assert table["after"].abs().max() < 0.1 < table["before"].abs().max()


def test_shuffled_contacts_do_nothing():
    rows = world(effect=0.0)
    shuffled = rows["treated"].sample(frac=1, random_state=2).to_numpy()
    found = asked(rows.assign(treated=shuffled), placebo="earlier")
    table = by_method(found)
    assert (table["low"] < 0).all()
    assert (table["high"] > 0).all()
    assert found.balance["before"].abs().max() < 0.15
    assert table.loc[METHODS, "passed"].all()
    assert "so perhaps nothing" in found.verdict or found.verdict.startswith("Cannot say")


def test_an_ibis_table_in_any_order_gives_the_same():
    rows = world(n=600)
    rows["region"] = rows["region"].where(rows.index % 9 > 0, None)
    rows["card"] = pd.Series(np.where(rows.index % 7, rows.index % 2 == 0, None), dtype=object)
    rows["visits"] = pd.array(np.where(rows.index % 5, rows.index % 4, -1), "Int64")
    rows.loc[rows["visits"] == -1, "visits"] = pd.NA
    rows["before"] = rows["before"].round(2)
    covariates = ["before", "age", "region", "card", "visits"]
    wanted = asked(rows, covariates=covariates)
    table = ibis.memtable(rows.sample(frac=1, random_state=4).astype({"card": "boolean"}))
    found = asked(table.mutate(before=table.before.cast("decimal(18, 4)")), covariates=covariates)
    pd.testing.assert_frame_equal(found.to_frame(), wanted.to_frame(), rtol=1e-6)
    pd.testing.assert_frame_equal(found.balance, wanted.balance, rtol=1e-6, atol=1e-9)
    assert {"region: unknown", "card", "card: unknown", "visits: unknown"} <= {
        *found.balance["covariate"]
    }
    again, other = asked(rows, covariates=covariates), asked(rows, covariates=covariates, seed=2)
    pd.testing.assert_frame_equal(again.to_frame(), wanted.to_frame())
    assert other.to_frame()["effect"].iloc[0] != wanted.to_frame()["effect"].iloc[0]


def test_all_columns_but_the_campaigns_are_covariates_unless_some_are_named(plain):
    rows = world().drop(columns="earlier")
    pd.testing.assert_frame_equal(observed.observed(rows).to_frame(), plain.to_frame())
    without = observed.observed(rows.rename(columns={"before": "spent"}))
    assert without.to_frame()["method"].tolist() == [*METHODS[:2], observed.NAIVE]
    assert "spent" in without.balance["covariate"].tolist()


def test_what_tells_nobody_apart_is_left_out_and_said():
    rows = world(n=800).assign(shop="one", rare=[*["few"] * 9, *["many"] * 791], note=None)
    rows["card_number"] = rows["customer_id"]
    names = ["before", "age", "shop", "rare", "note", "card_number"]
    found = asked(rows, covariates=names)
    assert found.notes == (
        "Left out, with one value only, or none that 10 customers share: "
        "shop, rare, note, card_number.",
    )
    assert found.balance["covariate"].tolist() == ["before", "age"]
    assert "rare" not in asked(rows, covariates=["age", "region", "rare"]).balance.to_string()
    assert "rare: few" in asked(rows, covariates=names, k=9).balance["covariate"].tolist()
    with pytest.raises(DataError, match=r"The covariates \(shop, note\) have one value only"):
        asked(rows, covariates=["shop", "note"])


def test_a_page_names_no_few_customers_and_marks_what_is_weaker():
    found = asked(world(n=4_000), overlap=(0.03, 0.9), placebo="earlier", kind="count")
    page = found._repr_html_()
    assert "Effect per customer contacted (observational, weaker)" in page
    assert "naive (wrong)" in page
    assert "before and after weighting" in page
    assert "$" not in page
    few = asked(world(n=4_000), k=100)
    dropped = round(few.share_dropped * world(n=4_000)["treated"].sum())
    assert 0 < dropped < 100
    assert "It leaves out fewer than 100 of those contacted" in few.verdict
    euros = asked(world(n=800), numbers=Numbers("de_DE", "EUR"))
    assert re.search(r"Between \d,\d\d\s€ and \d,\d\d\s€", euros.verdict)
    counts = asked(world(n=800), kind="count")
    assert re.search(r"Between \d\.\d\d and \d\.\d\d of outcome", counts.verdict)


def test_bad_data_is_refused_in_words():
    rows = world(n=300)
    for value, words in ((True, "All 300 customers were contacted"), (False, "left alone")):
        with pytest.raises(DataError, match=words):
            asked(rows.assign(treated=value))
    with pytest.raises(DataError, match="All customers have the same outcome, 3"):
        asked(rows.assign(outcome=3.0))
    with pytest.raises(DataError, match=r"no column 'agee'. Did you mean 'age'\? It has: cust"):
        asked(rows, covariates=["agee"])
    with pytest.raises(DataError, match="no column 'spent'"):
        asked(rows, before="spent")
    with pytest.raises(DataError, match="must be True or False"):
        asked(rows.assign(treated=["yes", "no", "no"] * 100))
    with pytest.raises(DataError, match="outcome is missing for 2 customers; put 0"):
        asked(rows.assign(outcome=rows["outcome"].where(rows.index > 1)))
    with pytest.raises(DataError, match="age has 1 infinite values"):
        asked(rows.assign(age=rows["age"].where(rows.index > 0, np.inf)))
    with pytest.raises(DataError, match="before must hold numbers; it is of type"):
        asked(rows.assign(before="much"))
    with pytest.raises(DataError, match="3 rows repeat a customer_id"):
        asked(pd.concat([rows, rows.head(3)]))
    with pytest.raises(DataError, match="joined is a date; give the days"):
        asked(rows.assign(joined=pd.date_range("2024-01-01", periods=300)), covariates=["joined"])


def test_wrong_arguments_are_refused_in_words():
    rows = world(n=300)
    for options in ({"folds": 1}, {"confidence": 95}, {"overlap": (0.6, 0.9)}, {"k": 0}):
        with pytest.raises(UsageError, match="must lie between"):
            asked(rows, **options)
    with pytest.raises(UsageError, match="kind is 'euros'"):
        asked(rows, kind="euros")
    with pytest.raises(UsageError, match="cannot be before, placebo or a covariate"):
        asked(rows, covariates=["age", "outcome"])
    with pytest.raises(UsageError, match="they are: none"):
        asked(rows, covariates=["before"], placebo="earlier")
    with pytest.raises(UsageError, match="without the placebo itself; they are: age, earlier"):
        asked(rows, placebo="earlier", placebo_covariates=["age", "earlier"])
    with pytest.raises(UsageError, match="it is a list"):
        observed.observed([1, 2])
