import numpy as np
import pandas as pd
import pytest
from scipy import stats

from crmlab import customer_radar, demo, sources, tables

DAY = "2025-06-30"


@pytest.fixture
def shop_of(make_shop):
    """Open a shop of customers: occupation, sex, birth_date, and the amounts each paid."""

    def make(people, settings="", columns=("occupation", "sex", "birth_date")):
        rows = [f"{place:04},{','.join(person[:3])}" for place, person in enumerate(people)]
        make_shop("\n".join([",".join(["customer_id", *columns]), *rows]), name="customers.csv")
        sold = [
            f"{place:04},{day},{amount}"
            for place, person in enumerate(people)
            for day, amount in person[3]
        ]
        head = "customer_id,purchased_at,amount"
        text = 'name = "A shop"\n[policy]\nprivacy_k = 5\nstale_after_days = 999\n' + settings
        return make_shop("\n".join([head, *sold]), text)

    return make


def group(n, occupation="baker", sex="f", born="1980-01-01", *, each=100):
    return [(occupation, sex, born, [("2025-06-01", each)])] * n


def as_dict(result):
    return {tuple(row[:3]): tuple(row[3:]) for row in result.rows.itertuples(index=False)}


def test_a_group_is_occupation_sex_and_age_on_the_day_and_spend_is_net_of_one_year(shop_of):
    bought = [("2025-06-30", 60), ("2025-06-29", 50), ("2025-06-28", -10), ("2024-06-30", 999)]
    people = [("baker", "f", "1995-06-30", bought)] * 6  # thirty on this very day
    people += [("baker", "f", "1995-07-01", bought)] * 7  # and one day later
    people += [("baker", "f", "1995-07-01", [("2024-06-30", 999)])] * 8  # not in this year
    people += [("baker", "m", "1940-01-01", [("2025-06-30", 5)])] * 9
    result = customer_radar.radar(shop_of(people), as_of=DAY)
    assert as_dict(result) == {
        ("baker", "f", "20s"): (7, 100), ("baker", "f", "30s"): (6, 100),
        ("baker", "m", "70+"): (9, 5),
    }  # fmt: skip
    assert (result.sides, result.ages) == (("f", "m"), ("20s", "30s", "70+"))
    assert result.hidden_groups == 0
    assert result.note == ""


def test_women_are_on_the_left_whatever_the_shop_calls_them_and_the_rest_is_said(shop_of):
    people = group(20, sex="men") + group(10, sex="women") + group(7, sex="") + group(6, sex="x")
    people += group(8, sex="men", born="")
    result = customer_radar.radar(shop_of(people), as_of=DAY)
    assert result.sides == ("women", "men")
    assert result.drawn["customers"].sum() == 30
    assert result.note == "Of other sex, or of unknown sex or age: 21."
    assert set(result.rows["sex"]) == {"women", "men", "unknown", "x"}
    assert "baker, men, 40s" in result.verdict


def test_small_groups_are_hidden_with_so_many_others_that_none_can_be_found(shop_of):
    people = group(50) + group(30, "smith") + group(8, "tailor") + group(2, "pope")
    result = customer_radar.radar(shop_of(people), as_of=DAY)
    # Two alone would be known to be two: the eight join them, each could then be 1 to 9.
    assert (result.hidden_groups, result.hidden_customers) == (2, 10)
    assert result.hidden_spend == 100
    assert result.occupations == ("baker", "smith")
    assert result.note == "Not shown are 2 small groups, together about 10 customers."
    for shown in (result._repr_html_(), str(result.to_frame()), result.verdict):
        assert "pope" not in shown
        assert "tailor" not in shown
    assert result.to_frame()["customers"].sum() == len(people)


def test_a_group_in_which_one_customer_has_half_of_the_spend_is_hidden_too(shop_of):
    people = group(50) + group(9, "smith") + group(1, "smith", each=900)
    result = customer_radar.radar(shop_of(people + group(40, "tailor")), as_of=DAY)
    # The nine and the one spent 1,800 and he half of it: the next group joins.
    assert set(result.rows["occupation"]) == {"baker"}
    assert (result.hidden_groups, result.hidden_customers) == (2, 50)
    assert result.hidden_spend == pytest.approx((1_800 + 4_000) / 50)
    one_less = group(50) + group(9, "smith") + group(1, "smith", each=899)
    assert customer_radar.radar(shop_of(one_less), as_of=DAY).hidden_groups == 0


def test_of_many_occupations_the_eight_largest_are_named(shop_of):
    people = [one for place in range(10) for one in group(20 - place, f"job {place}")]
    result = customer_radar.radar(shop_of(people + group(40, "")), as_of=DAY)
    assert result.occupations == (*(f"job {place}" for place in range(8)), "other", "unknown")
    assert as_dict(result)["other", "f", "40s"][0] == 12 + 11


def test_differences_are_told_where_the_analysis_of_variance_finds_them(shop_of):
    rng = np.random.default_rng(7)
    for shift in (0, 60):
        pay = {name: rng.gamma(4, 25, 40).round(2) + shift * (name == "smith")
               for name in ("baker", "smith", "tailor")}  # fmt: skip
        people = [(name, "f", "1980-01-01", [("2025-06-01", amount)])
                  for name, amounts in pay.items() for amount in amounts]  # fmt: skip
        result = customer_radar.radar(shop_of(people), as_of=DAY)
        p = stats.f_oneway(*pay.values()).pvalue
        assert (p < 0.05) == (shift > 0) == ("beyond chance" in result.verdict)
    assert "(smith, f, 40s)" in result.verdict


def test_what_is_missing_is_said_in_a_sentence(shop_of, make_shop):
    with pytest.raises(tables.DataError, match="no sex, no birth_date. Add"):
        customer_radar.radar(shop_of(group(9), columns=("occupation", "city", "region")),
                             as_of=DAY)  # fmt: skip
    with pytest.raises(tables.DataError, match="too small to be shown: privacy_k is 5"):
        customer_radar.radar(shop_of(group(4)), as_of=DAY)
    with pytest.raises(tables.UsageError, match="days is 0"):
        customer_radar.radar(shop_of(group(9)), as_of=DAY, days=0)
    with pytest.raises(tables.DataError, match="bought in the 9 days to 2025-06-30"):
        customer_radar.radar(shop_of(group(9)), as_of=DAY, days=9)


def test_in_the_demo_shop_nobody_is_lost_and_no_group_spends_more_as_none_does(tmp_path):
    shop = sources.open_shop(demo.shop(folder=tmp_path / "demo", customers=3_000))
    result = customer_radar.radar(shop, as_of="2025-12-31")
    assert "no more than chance explains" in result.verdict
    assert (result.rows["customers"] >= result.k).all()
    lines = pd.read_parquet(tmp_path / "demo" / "transactions.parquet")
    lines = lines[lines["customer_id"].notna() & (lines["purchased_at"] >= "2025-01-01")]
    daily = lines.assign(day=lines["purchased_at"].dt.date, amount=lines["amount"].astype(float))
    daily = daily.groupby(["customer_id", "day"])["amount"].sum().round(4)
    buyers = daily[daily > 0].index.get_level_values(0).unique()
    total = daily.groupby("customer_id").sum()[buyers].sum()
    shown = result.to_frame()
    assert shown["customers"].sum() == len(buyers)
    assert (shown["customers"] * shown["spend"]).sum() == pytest.approx(total)
