import json
from math import comb

import duckdb
import ibis
import numpy as np
import pandas as pd
import pytest

from crmlab import demo, effects, lifts, outcomes, sources, uplift
from crmlab.effects import Moments
from crmlab.tables import DataError, UsageError
from tests.conftest import REFERENCE_DATA

HILLSTROM = REFERENCE_DATA / "hillstrom.csv.gz"
END = "2025-12-31"


@pytest.fixture(scope="module")
def hillstrom():
    if not HILLSTROM.exists():
        pytest.skip("hillstrom.csv.gz is not here")
    frame = pd.read_csv(HILLSTROM)
    frame["arm"] = frame["segment"].replace({"No E-Mail": "holdout"})
    return frame.assign(
        response=frame["visit"], purchases=frame["visit"], margin=0.3 * frame["spend"],
        before_response=0.0, before_purchases=0.0, before_spend=frame["history"],
        before_margin=0.0, contact_cost=0.1 * (frame["arm"] != "holdout"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def demo_shop(home):
    return sources.open_shop(home / "data" / "demo" / "shop.toml")


@pytest.fixture(scope="module")
def spring(demo_shop):
    return uplift.measure(demo_shop, campaign_id="2025-spring", as_of=END)


def of_hillstrom(frame, arm, name):
    """Compare one arm with those who got no e-mail."""
    frame = frame[frame["arm"].isin(["holdout", arm])]
    frame = frame.assign(cost=frame["contact_cost"], profit=frame["margin"] - frame["contact_cost"])
    groups = outcomes.moments(ibis.memtable(frame), lifts.PAIRS)
    sizes = {name[-1]: one["spend"].n for name, one in groups.items()}
    rows = lifts.differences(groups, [name], sizes=sizes, primary=name, alpha=0.05)
    return groups, sizes, rows.iloc[0]


@pytest.mark.parametrize(
    ("arm", "name", "wanted"),
    [
        ("Mens E-Mail", "response", (0.07658956, 0.06995315, 0.08322598, 0.7214, 0.640, 0.806)),
        ("Mens E-Mail", "spend", (0.76982716, 0.48513973, 1.05451458, 1.1793, 0.628, 1.917)),
        ("Womens E-Mail", "response", (0.04523311, 0.03889349, 0.05157272, 0.4261, 0.356, 0.500)),
        ("Womens E-Mail", "spend", (0.42441222, 0.16895679, 0.67986764, 0.6502, 0.2180, 1.2356)),
    ],
)
def test_hillstroms_differences_are_those_of_three_other_packages(hillstrom, arm, name, wanted):
    _, _, row = of_hillstrom(hillstrom, arm, name)
    assert (row.difference, row.low, row.high) == pytest.approx(wanted[:3], abs=1e-6)
    told = (row.relative, row.relative_low, row.relative_high)
    assert told == pytest.approx(wanted[3:], abs=6e-4)


def test_hillstroms_spend_per_visit_and_what_history_explains(hillstrom):
    _, _, row = of_hillstrom(hillstrom, "Womens E-Mail", lifts.RATIO)
    found = (row.difference, row.low, row.high)
    assert found == pytest.approx((0.96623270, -0.99090945, 2.92337485), abs=1e-6)
    _, _, row = of_hillstrom(hillstrom, "Womens E-Mail", "spend")
    found = (row.adjusted, row.adjusted_low, row.adjusted_high)
    assert found == pytest.approx((0.42270092, 0.16729379, 0.67810805), abs=1e-6)
    assert row.variance_removed == pytest.approx(0.0004, abs=5e-5)
    assert lifts.best(row)[0] == row.difference  # it bought nothing, so it is not used


@pytest.mark.parametrize(
    ("arm", "wanted", "verdict"),
    [
        ("Mens E-Mail", (2_790, 970, 4_610), "earned"),
        ("Womens E-Mail", (584, -1_055, 2_223), "not proven"),
    ],
)
def test_hillstroms_profit(hillstrom, arm, wanted, verdict):
    groups, sizes, _ = of_hillstrom(hillstrom, arm, "spend")
    [row] = lifts.money(
        groups, sizes=sizes, contacts=sizes, fixed_cost=0.0, alpha=0.05
    ).itertuples()
    assert (row.profit, row.low, row.high) == pytest.approx(wanted, abs=0.6)
    assert row.verdict == verdict
    assert row.cost == pytest.approx(0.1 * sizes[arm])
    assert row.roi == pytest.approx(row.profit / row.cost)
    # At the break-even cost of a contact nothing is left.
    assert row.margin - row.break_even * sizes[arm] == pytest.approx(0, abs=1e-6)
    more = groups[(arm,)]["response"].mean - groups[("holdout",)]["response"].mean
    assert row.buyer == pytest.approx(0.1 / more)
    assert row.buyer_low < row.buyer < row.buyer_high


def test_three_arms_share_one_chance_of_a_false_alarm(hillstrom):
    frame = hillstrom.assign(cost=0.0, profit=0.0)
    groups = outcomes.moments(ibis.memtable(frame), lifts.PAIRS)
    sizes = {name[-1]: one["spend"].n for name, one in groups.items()}
    rows = lifts.differences(groups, ["spend", "response"], sizes=sizes, primary="spend",
                             alpha=0.05)  # fmt: skip
    mens = rows[(rows.arm == "Mens E-Mail") & rows.primary].iloc[0]
    one, held = groups[("Mens E-Mail",)]["spend"], groups[("holdout",)]["spend"]
    half = effects.welch(one, held, alpha=0.025)
    assert (mens.low, mens.high) == pytest.approx((half.low, half.high))
    assert list(rows[rows.primary]["p_holm"]) == pytest.approx(
        effects.holm(list(rows[rows.primary]["p_value"]))
    )
    other = rows[~rows.primary]
    assert other["p_holm"].isna().all()
    visit = effects.welch(groups[("Mens E-Mail",)]["response"], groups[("holdout",)]["response"])
    assert other.iloc[0].low == pytest.approx(visit.low)


def test_few_buyers_get_newcombes_interval_and_fishers_p():
    frame = pd.DataFrame({"arm": ["a"] * 70 + ["holdout"] * 80})
    frame["response"] = [1.0] * 5 + [0.0] * 65 + [1.0] + [0.0] * 79
    for name in ("purchases", "spend", "margin", "cost", "profit", "contact_cost",
                 *(f"before_{one}" for one in outcomes.OUTCOMES)):  # fmt: skip
        frame[name] = 0.0
    groups = outcomes.moments(ibis.memtable(frame), lifts.PAIRS)
    [row] = lifts.differences(groups, ["response"], sizes={"a": 70, "holdout": 80},
                              primary="response", alpha=0.05).itertuples()  # fmt: skip
    assert (row.difference, row.low, row.high) == effects.newcombe(5, 70, 1, 80)
    # Fisher: all tables of 6 buyers among 150 that are no likelier than the one seen.
    chance = [comb(70, x) * comb(80, 6 - x) / comb(150, 6) for x in range(7)]
    two_sided = sum(one for one in chance if one <= chance[5] * (1 + 1e-9))
    assert row.p_value == pytest.approx(two_sided)
    assert row.method.startswith("Newcombe")


def test_sums_by_arm_are_those_of_numpy_with_and_without_households():
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"home": np.repeat(np.arange(400), rng.integers(1, 4, 400))})
    arm = rng.choice(["a", "holdout"], 400)
    frame["arm"] = arm[frame["home"]]
    frame["y"] = rng.gamma(1, 5, len(frame)) + frame["home"] % 5
    frame["x"] = rng.normal(0, 1, len(frame)) + frame["y"]
    found = outcomes.moments(ibis.memtable(frame), {"y": ("y", "x")})
    for name, some in frame.groupby("arm"):
        one = found[(name,)]["y"]
        assert one.n == len(some)
        assert (one.mean, one.other_mean) == pytest.approx((some.y.mean(), some.x.mean()))
        assert one.variance == pytest.approx(some.y.var())
        assert one.covariance == pytest.approx(np.cov(some.y, some.x)[0, 1])
    by_home = outcomes.moments(ibis.memtable(frame), {"y": ("y", "x")}, unit="home")
    for name, some in frame.groupby("arm"):
        one, sums = by_home[(name,)]["y"], some.groupby("home")["y"].agg(["sum", "size"])
        mean = some.y.mean()
        # The variance of a ratio of sums over households, by its linear terms.
        linear = (sums["sum"] - mean * sums["size"]) / sums["size"].mean()
        assert (one.n, one.mean) == (len(sums), pytest.approx(mean))
        assert one.variance == pytest.approx(linear.var())


def test_the_demo_campaign_is_measured_as_the_truth_says(spring, home):
    law = json.loads((home / "data/demo/truth/parameters.json").read_text())
    law = law["campaigns"]["2025-spring"]
    rows = spring.to_frame().set_index("outcome")
    for name in ("purchases", "spend"):
        assert rows.loc[name, "difference"] == pytest.approx(law["contacted_minus_holdout"][name])
        assert rows.loc[name, "low"] < law["true_effect"][name] < rows.loc[name, "high"]
    assert dict(spring.trial.sizes) == {
        "voucher": law["customers"]["contacted"], "holdout": law["customers"]["holdout"],
    }  # fmt: skip
    assert "raised spend per customer" in spring.verdict
    assert spring.primary["outcome"].tolist() == ["spend"]  # as the table campaigns says
    # What they did before takes variance away, and both intervals hold the truth.
    assert rows.loc["spend", "variance_removed"] > 0.05
    assert rows.loc["spend", "adjusted_low"] < law["true_effect"]["spend"]
    assert law["true_effect"]["spend"] < rows.loc["spend", "adjusted_high"]
    assert rows.loc["spend", "adjusted_high"] - rows.loc["spend", "adjusted_low"] < (
        rows.loc["spend", "high"] - rows.loc["spend", "low"]
    )


def test_the_response_rate_stands_beside_that_of_those_held_out(spring):
    rows = spring.to_frame().set_index("outcome").loc["response"]
    assert spring.response == (
        f"Of those given “voucher” {rows['mean']:.1%} bought, of those held out "
        f"{rows.mean_holdout:.1%}."
    )


def test_what_the_page_shows_is_what_the_verdict_says(spring):
    [row] = spring.primary.itertuples()
    assert row.variance_removed > lifts.WORTH_ADJUSTING
    assert f"€{row.adjusted:.2f}" in spring.verdict
    assert f"+€{row.adjusted:.2f}" in spring._repr_html_()
    [tile] = [one for one in spring.kpis if one.label == "Change in spend"]
    assert tile.value == pytest.approx(row.adjusted / (row.mean - row.adjusted), rel=0.05)
    assert spring.money.rows["profit"].iloc[0] == spring.earned["profit"].iloc[0]
    assert "no finite value" not in spring.money._repr_html_()
    assert len(spring.guards.rows) == 3 and len(spring.groups.rows) == 2


def test_the_money_adds_up(spring, demo_shop):
    [row] = spring.earned.itertuples()
    contacts = demo_shop.table("contacts")
    sent = contacts.filter(contacts.campaign_id == "2025-spring", contacts.sent_at.notnull())
    assert row.contacts == sent.count().to_pyarrow().as_py()
    rows = spring.to_frame().set_index("outcome")
    buyers = rows.loc["response", "mean"] * row.n
    assert row.cost == pytest.approx(row.contacts * 0.05 + 5 * buyers + 600)
    assert row.profit == pytest.approx(row.margin - row.cost)
    assert row.low < row.profit < row.high
    assert row.verdict == "earned" and "It paid" in spring.money_verdict
    half = uplift.measure(demo_shop, campaign_id="2025-spring", as_of=END, take_up=0.5)
    assert half.earned.iloc[0]["cost"] == pytest.approx(row.cost - 2.5 * buyers)


def test_longer_windows_tell_what_was_only_pulled_forward(spring):
    assert spring.longer["what"].tolist() == ["42", "84", "168"]
    rows = spring.to_frame().set_index("outcome")
    assert spring.longer["difference"][0] == pytest.approx(rows.loc["margin", "difference"])


def test_guardrails_count_who_left_and_who_complained(spring, home):
    data = home / "data" / "demo"
    [[withdrew, n]] = duckdb.sql(f"""
        select count(distinct c.customer_id) filter (s.customer_id is not null),
            count(distinct c.customer_id)
        from '{data}/contacts.parquet' c left join '{data}/consents.parquet' s
            on s.customer_id = c.customer_id and s.status = 'withdrawn'
            and s.at::date between c.assigned_at::date and c.assigned_at::date + 41
        where c.campaign_id = '2025-spring' and c.arm = 'voucher'""").fetchall()
    row = spring.guardrails.set_index("what").loc["withdrew consent"]
    assert row["mean"] == pytest.approx(withdrew / n)
    assert set(spring.guardrails["what"]) == {
        "brought something back",
        "withdrew consent",
        "complained",
    }


def test_a_targeted_campaign_has_no_hold_out_to_compare_with(demo_shop):
    with pytest.raises(DataError, match="no hold-out to compare with: nobody was held out"):
        uplift.measure(demo_shop, campaign_id="2025-autumn", as_of=END)


def test_before_the_end_nothing_is_said_unless_somebody_says_how_often_they_looked(demo_shop):
    early = uplift.measure(demo_shop, campaign_id="2025-spring", as_of="2025-03-31")
    assert not early.trial.complete
    assert early.verdict.startswith("Too early") and early.money_verdict == ""
    assert early.response == "" and not early.money and not early.guards and not early.groups
    assert "<table" not in early._repr_html_()
    look = uplift.measure(demo_shop, campaign_id="2025-spring", as_of="2025-03-31", looks=1)
    assert look.alpha == pytest.approx(effects.alpha_of_look(2, alpha=0.025))
    assert "not the result yet" in " ".join(look.cautions)
    end = uplift.measure(demo_shop, campaign_id="2025-spring", as_of=END, looks=2)
    assert end.alpha == 0.025


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"campaign_id": "2025-sprin"}, "Did you mean '2025-spring'"),
        ({"outcome": "revenue"}, "outcome is 'revenue'; it must be one of response"),
        ({"window_days": -3}, "window_days is -3"),
        ({"take_up": 2.0}, "take_up is 2.0"),
        ({"margin": 30}, "margin is 30"),
        ({"control": "nobody"}, "'holdout' or 'universal'"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(demo_shop, asked, words):
    with pytest.raises(UsageError, match=words):
        uplift.measure(demo_shop, **({"campaign_id": "2025-spring", "as_of": END} | asked))


def campaign(make_shop, tmp_path, contacts, campaigns="x,true,0.5,spend,14", sales=None):
    """A shop of one campaign of 40 customers, 20 in each arm, drawn on 2 January."""
    (tmp_path / "contacts.csv").write_text(contacts)
    (tmp_path / "campaigns.csv").write_text(
        f"campaign_id,randomised,holdout_share,primary_outcome,outcome_days\n{campaigns}\n"
    )
    sales = sales or "".join(f"c{n:02},2024-01-{1 + n % 28:02},{5 + n}\n" for n in [*range(40)] * 2)
    return make_shop(f"customer_id,purchased_at,amount\nz,2024-01-31,1\n{sales}")


def rows_of(arms, sent="2024-01-03", assigned="2024-01-02"):
    head = "campaign_id,customer_id,arm,assigned_at,sent_at\n"
    return head + "".join(
        f"x,c{n:02},{arm},{assigned},{'' if arm == 'holdout' else sent}\n"
        for n, arm in enumerate(arms)
    )


HALF = ["a"] * 20 + ["holdout"] * 20


def test_a_small_campaign_is_measured_by_the_arm_that_was_drawn(make_shop, tmp_path):
    contacts = rows_of(HALF).replace("c03,a,2024-01-02,2024-01-03", "c03,a,2024-01-02,")
    shop = campaign(make_shop, tmp_path, contacts)
    found = uplift.measure(shop, campaign_id="x", as_of="2024-01-31")
    rows = found.to_frame().set_index("outcome")
    # Days 2 to 15 of January, what was bought twice a day being one purchase; c03 was not
    # reached, and stays in the arm.
    inside = [n for n in range(40) if 2 <= 1 + n % 28 <= 15]
    spent = [sum(2.0 * (5 + n) for n in inside if lo <= n < lo + 20) / 20 for lo in (0, 20)]
    assert rows.loc["spend", ["mean", "mean_holdout"]].tolist() == pytest.approx(spent)
    assert found.trial.contacts == {"a": 19}
    assert found.earned is None and "margin is not known" not in " ".join(found.cautions)
    assert uplift.measure(shop, campaign_id="x", as_of="2024-01-31", margin=0.5).earned is not None


@pytest.mark.parametrize(
    ("contacts", "campaigns", "words"),
    [
        (rows_of(["a"] * 40), "x,true,0.5,spend,14", "nobody was held out"),
        (rows_of(["holdout"] * 40), "x,true,0.5,spend,14", "only a hold-out"),
        (rows_of(["a"] * 37 + ["holdout"] * 3), "x,true,0.5,spend,14", "fewer than 10 .* holdout"),
        (rows_of(HALF), "x,false,0.5,spend,14", "no lot's choice"),
        (rows_of(HALF, assigned="2024-01-09"), "x,true,0.5,spend,14", "customers got their"),
        (rows_of(HALF, assigned="2025-01-09", sent=""), "x,true,0.5,spend,14",
         "until 2025-01-09, after as_of 2024-01-31"),
        ("campaign_id,customer_id,arm,assigned_at\ny,c01,a,2024-01-02\n", "x,true,0.5,spend,14",
         "never assigned"),
        (rows_of(["a"] * 14 + ["b"] * 12 + ["holdout"] * 14).replace("b,2024-01-02,2024-01-03",
         "b,2024-01-02,"), "x,true,0.5,spend,14", "nothing was ever sent to arm b"),
    ],
)  # fmt: skip
def test_a_campaign_that_cannot_be_measured_says_why(
    make_shop, tmp_path, contacts, campaigns, words
):
    shop = campaign(make_shop, tmp_path, contacts, campaigns)
    with pytest.raises(DataError, match=words):
        uplift.measure(shop, campaign_id="x", as_of="2024-01-31")


def test_arms_of_other_sizes_than_planned_make_no_verdict(make_shop, tmp_path):
    shop = campaign(make_shop, tmp_path, rows_of(HALF), "x,true,0.05,spend,14")
    found = uplift.measure(shop, campaign_id="x", as_of="2024-01-31")
    assert found.mismatch == pytest.approx(effects.mismatch([20, 20], [0.05, 0.95]))
    assert found.verdict.startswith("Cannot say") and found.money_verdict == ""


def test_a_campaign_after_which_nobody_bought_is_told_as_one(make_shop, tmp_path):
    sales = "".join(f"c{n:02},2023-12-01,5\n" for n in range(40))
    shop = campaign(make_shop, tmp_path, rows_of(HALF), sales=sales)
    found = uplift.measure(shop, campaign_id="x", as_of="2024-01-31", margin=0.3)
    assert found.verdict.endswith("did not visibly change spend per customer; of so few buyers "
                                  "no figure is told.")  # fmt: skip
    assert not found.tellable and len(found.shown()) == 0
    assert not found.money and not found.groups and len(found.kpis) == 2


def test_all_the_same_price_is_no_error(make_shop, tmp_path):
    sales = "".join(f"c{n:02},2024-01-05,19.9\n" for n in range(0, 40, 3))
    shop = campaign(make_shop, tmp_path, rows_of(HALF), sales=sales)
    found = uplift.measure(shop, campaign_id="x", as_of="2024-01-31").to_frame()
    row = found.set_index("outcome").loc["spend per purchase"]
    assert row["mean"] == pytest.approx(19.9) and row["difference"] == pytest.approx(0)


def test_later_waves_wait_until_their_days_are_over(make_shop, tmp_path):
    contacts = rows_of(HALF) + rows_of(
        ["a"] * 8 + ["holdout"] * 8, assigned="2024-01-20", sent="2024-01-21"
    ).split("\n", 1)[1].replace("c", "d")
    shop = campaign(make_shop, tmp_path, contacts)
    found = uplift.measure(shop, campaign_id="x", as_of="2024-01-31")
    assert found.trial.complete and dict(found.trial.sizes) == {"a": 20, "holdout": 20}
    assert "not counted yet" in " ".join(found.cautions)


def test_who_was_held_out_and_got_the_message_is_said(make_shop, tmp_path):
    contacts = rows_of(HALF).replace("c20,holdout,2024-01-02,", "c20,holdout,2024-01-02,2024-01-03")
    shop = campaign(make_shop, tmp_path, contacts)
    found = uplift.measure(shop, campaign_id="x", as_of="2024-01-31")
    assert "Some of those held out got the message" in " ".join(found.cautions)
    assert dict(found.trial.sizes) == {"a": 20, "holdout": 20}


def moments(values, before=None):
    n, total, squares = len(values), values.sum(), (values**2).sum()
    more = () if before is None else (before.sum(), (before**2).sum(), (values * before).sum())
    return Moments.of_sums(n, float(total), float(squares), *map(float, more))


def world(folder, seed, customers=1_500):
    """What the customers of a small shop's campaign did, and what it truly changed."""
    demo.shop(folder=folder, customers=customers, seed=seed)
    rows = duckdb.sql(f"""
        select arm = 'holdout' as held, purchases_with, purchases_without,
            spend_with::double as spend_with, spend_without::double as spend_without
        from '{folder}/truth/campaign_effects.parquet' where campaign_id = '2025-spring'
    """)
    return {name: values for name, values in rows.fetchnumpy().items()}


def held_the_truth(folder, seed):
    """Whether the intervals of purchases and spend hold what the campaign truly changed."""
    rows, found = world(folder, seed), []
    held = rows["held"]
    for name in ("purchases", "spend"):
        with_it, without = (rows[f"{name}_{one}"].astype(float) for one in ("with", "without"))
        # Moments as the engine's sums give them; before is not looked at here.
        groups = {("voucher",): {name: moments(with_it[~held], with_it[~held] * 0)},
                  ("holdout",): {name: moments(without[held], without[held] * 0)}}  # fmt: skip
        sizes = {"voucher": int((~held).sum()), "holdout": int(held.sum())}
        [row] = lifts.differences(groups, [name], sizes=sizes, primary=name,
                                  alpha=0.05).itertuples()  # fmt: skip
        found.append(row.low <= (with_it - without).mean() <= row.high)
    return found


@pytest.mark.slow
def test_the_interval_holds_the_truth_of_generated_campaigns(tmp_path):
    found = np.array([held_the_truth(tmp_path, seed) for seed in range(100, 300)])
    assert (found.mean(axis=0) >= 0.89).all() and (found.mean(axis=0) <= 0.99).all()


@pytest.mark.slow
def test_daily_looks_at_a_campaign_that_does_nothing_alarm_in_at_most_5_percent():
    rng, worlds, days, n = np.random.default_rng(7), 400, 28, 300
    alarms = plain = 0
    for _ in range(worlds):
        spend = (rng.random((days, 2, n)) < 0.05) * rng.gamma(2, 15, (days, 2, n))
        so_far = spend.cumsum(axis=0)
        hits = []
        for look in range(1, days + 1):
            groups = [moments(one) for one in so_far[look - 1]]
            alpha = effects.alpha_of_look(look, alpha=0.025) if look < days else 0.025
            found = [effects.welch(*groups, alpha=level).p_value < level for level in (alpha, 0.05)]
            hits.append(found)
        alarms += any(one for one, _ in hits)
        plain += any(one for _, one in hits)
    assert alarms / worlds <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / worlds)
    assert plain / worlds > 0.1  # without that, looking alone finds something
