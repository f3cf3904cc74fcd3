import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score

from crmlab import probabilities


def world(seed, n=400, slope=1.0):
    """Return probabilities, outcomes drawn from them (by `slope` sharper), and a customer each."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(0.3, 1.2, n)
    came = (rng.random(n) < 1 / (1 + np.exp(-slope * odds))).astype(float)
    return 1 / (1 + np.exp(-odds)), came, np.arange(n)


def test_scores_equal_those_of_scikit_learn():
    chance, came, who = world(1)
    assert probabilities.brier(chance, came) == pytest.approx(brier_score_loss(came, chance))
    ties = np.round(chance, 1)
    assert probabilities.auc(ties, came, who).value == pytest.approx(roc_auc_score(came, ties))
    slope, intercept = probabilities.calibration_line(chance, came, who)
    model = LogisticRegression(C=np.inf, tol=1e-10)
    model.fit(probabilities.log_odds(chance)[:, None], came)
    assert slope.value == pytest.approx(model.coef_[0, 0], rel=1e-4)
    assert intercept.value == pytest.approx(model.intercept_[0], abs=1e-4)


def test_skill_is_the_share_of_the_rivals_error_that_is_saved():
    came = np.array([1.0, 0, 1, 0])
    found = probabilities.skill(np.array([0.9, 0.1, 0.9, 0.1]), 0.5, came, np.arange(4))
    assert found.value == pytest.approx(1 - 0.01 / 0.25)
    assert probabilities.skill(np.full(4, 0.5), 0.5, came, np.arange(4)).value == 0
    assert np.isnan(probabilities.skill(came, came, came, np.arange(4)).value)


def test_intervals_hold_the_truth_as_often_as_they_say():
    truth, _, _ = world(99, n=200_000)
    known = {
        "auc": roc_auc_score(world(99, n=200_000)[1], truth),
        "skill": 1 - np.mean(truth * (1 - truth)) / (truth.mean() * (1 - truth.mean())),
        "slope": 1.0,
        "intercept": 0.0,
    }
    held = dict.fromkeys(known, 0)
    for seed in range(300):
        chance, came, who = world(seed)
        slope, intercept = probabilities.calibration_line(chance, came, who)
        found = {
            "auc": probabilities.auc(chance, came, who),
            "skill": probabilities.skill(chance, float(truth.mean()), came, who),
            "slope": slope,
            "intercept": intercept,
        }
        for name, one in found.items():
            held[name] += one.low <= known[name] <= one.high
    # 95 % of 300, give or take three standard errors.
    assert all(274 <= count <= 296 for count in held.values()), held


def test_a_customer_who_is_there_twice_counts_once_for_the_interval():
    chance, came, who = world(3)
    twice = [np.concatenate([one, one]) for one in (chance, came, who)]
    for score in (
        lambda *rows: probabilities.auc(*rows),
        lambda *rows: probabilities.calibration_line(*rows)[0],
        lambda chance, came, who: probabilities.skill(chance, 0.5, came, who),
    ):
        one, two = score(chance, came, who), score(*twice)
        assert two.high - two.low == pytest.approx(one.high - one.low)
        assert two.value == pytest.approx(one.value)
    low = probabilities.worse_by(np.full(400, 0.5), chance, came, who)
    assert probabilities.worse_by(np.full(800, 0.5), *twice) == pytest.approx(low)


def test_pairs_are_formed_and_levels_taken_within_a_block():
    chance, came, who = world(4, n=2_000)
    blocks = np.repeat([0, 1], 1_000)
    both = [probabilities.auc(chance[blocks == n], came[blocks == n], who[blocks == n]).value
            for n in (0, 1)]  # fmt: skip
    found = probabilities.auc(chance, came, who, blocks)
    assert found.value == pytest.approx(np.mean(both))
    # In the second block everyone stops more often than was said: that is no slope.
    rng, odds = np.random.default_rng(5), probabilities.log_odds(chance) + 1.5 * blocks
    came = (rng.random(2_000) < 1 / (1 + np.exp(-odds))).astype(float)
    slope, intercept = probabilities.calibration_line(chance, came, who, blocks)
    assert slope.low < 1 < slope.high
    assert intercept.low < 0.75 < intercept.high


def test_a_line_is_found_however_many_rows_there_are_and_however_steep_it_is():
    for seed in range(40):
        chance, came, who = world(seed, n=8_000, slope=0.3 + seed / 8)
        slope, _ = probabilities.calibration_line(chance, came, who)
        assert slope.value == pytest.approx(0.3 + seed / 8, rel=0.25)
        chance = np.clip(chance, 0.4, 0.6)  # far from what is true
        assert np.isfinite(probabilities.calibration_line(chance, came, who)[0].value)


def test_a_line_that_cannot_be_drawn_is_not():
    for chance, came in ((np.full(9, 0.4), np.arange(9) % 2), (np.arange(9) / 9, np.ones(9))):
        for one in probabilities.calibration_line(chance, came.astype(float), np.arange(9)):
            assert np.isnan(one.value)
    assert np.isnan(probabilities.auc(np.arange(9) / 9, np.ones(9), np.arange(9)).value)


@pytest.mark.parametrize("n", [200, 5_000])
def test_the_error_of_a_perfect_probability_is_what_true_ones_show(n):
    errors = [probabilities.expected_error(*world(seed, n)[:2]) for seed in range(60)]
    said = probabilities.perfect_error(world(0, n)[0], seed=1)
    assert said == pytest.approx(np.mean(errors), rel=0.1)
    chance, came, _ = world(1, n)
    assert probabilities.expected_error(np.clip(chance + 0.2, 0, 1), came) > 0.12


def test_tenths_of_too_few_customers_stand_together():
    chance, came, _ = world(6, n=2_000)
    table = probabilities.by_tenth(chance, came, k=10)
    assert table["customers"].sum() == 2_000
    assert table["part"].tolist()[0] == "1"
    assert (table["customers"] * table["came"]).sum() == pytest.approx(came.sum())
    assert (table["customers"] * table["said"]).sum() == pytest.approx(chance.sum())
    stopped = table["customers"] * table["came"]
    assert min(stopped.min(), (table["customers"] - stopped).min()) >= 10
    merged = probabilities.by_tenth(chance, came, k=70)
    assert any("–" in part for part in merged["part"])
    assert merged["customers"].sum() == 2_000
    assert probabilities.by_tenth(chance, np.zeros(2_000), k=10).empty
    assert probabilities.by_tenth(chance[:0], came[:0], k=10).empty
