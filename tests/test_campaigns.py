import csv
import datetime as dt
import json
from concurrent.futures import ThreadPoolExecutor

import ibis
import numpy as np
import pandas as pd
import pytest

from crmlab import campaigns, ledgers, policies, sources, uplift
from crmlab.tables import DataError, UsageError

DAY = "2024-06-30"
FREE = ({"name": "a", "channels": ["email", "post"], "contact_cost": {"email": 0.05, "post": 0.9}},)
ARMS = (
    {"name": "card", "channels": ["email", "post"], "contact_cost": {"email": 0.05, "post": 0.9},
     "offer": "=5 off", "offer_cost": 5},
    {"name": "letter", "channel": "post", "contact_cost": 0.9, "share": 2},
)  # fmt: skip
N = 600
IDS = [f"k{n:04}" for n in range(N)]


@pytest.fixture(scope="module")
def club(tmp_path_factory):
    """A shop in which nothing is ever written."""
    return sources.open_shop(make_club(tmp_path_factory.mktemp("club") / "club"))


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A shop of its own, with a ledger of its own."""
    monkeypatch.setenv("CRMLAB_HOME", str(tmp_path))
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "reports.toml").write_text("")
    make_club(tmp_path / "data" / "club")
    return sources.open_shop("club")


def make_club(folder):
    """Write 600 customers in 300 households: consents, contacts, complaints of all kinds."""
    folder.mkdir(parents=True)
    (folder / "shop.toml").write_text("")
    rng = np.random.default_rng(1)

    def put(name, **columns):
        pd.DataFrame(columns).to_parquet(folder / f"{name}.parquet", index=False)

    who = rng.integers(0, N, 4_000)
    days = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 182, 4_000), "D")
    put("transactions", customer_id=np.array(IDS)[who], purchased_at=days,
        amount=np.round(rng.gamma(2, 10, 4_000), 2))  # fmt: skip
    put("customers", customer_id=IDS, household_id=[f"h{n // 2:03}" for n in range(N)],
        preferred_channel=rng.choice(["email", "post", "sms"], N))  # fmt: skip
    asked = rng.random((N, 2)) < 0.85
    rows = [(IDS[n], ("email", "post")[c], "given", dt.datetime(2024, 1, 1))
            for n, c in zip(*np.nonzero(asked), strict=True)]  # fmt: skip
    rows += [(IDS[n], "post", "withdrawn", dt.datetime(2024, 5, 1)) for n in range(0, 60, 3)]
    rows += [(IDS[n], "all", "withdrawn", dt.datetime(2024, 5, 1)) for n in range(100, 120)]
    rows += [(IDS[n], "post", "withdrawn", dt.datetime(2024, 7, 9)) for n in range(200, 210)]
    put("consents", **dict(zip(("customer_id", "channel", "status", "at"), zip(*rows, strict=True),
                               strict=True)))  # fmt: skip
    put("campaigns", campaign_id=["old"], channel=["email"])
    some = rng.choice(N, 250, replace=False)
    at = pd.Timestamp("2024-06-01") + pd.to_timedelta(rng.integers(0, 29, 250), "D")
    put("contacts", campaign_id=["old"] * 250, customer_id=np.array(IDS)[some],
        arm=rng.choice(["holdout", "mail"], 250), assigned_at=at, sent_at=at)  # fmt: skip
    put("cases", case_id=[f"x{n}" for n in range(30)], customer_id=IDS[300:330],
        opened_at=[dt.datetime(2024, 6, 20)] * 15 + [dt.datetime(2024, 3, 1)] * 15,
        closed_at=[dt.datetime(2024, 6, 21)] * 20 + [None] * 10,
        kind=["complaint"] * 28 + ["question"] * 2)  # fmt: skip
    return folder / "shop.toml"


def audience(shop, ids=IDS, stages=("new", "lost")):
    homes = shop.table("customers").to_pandas().set_index("customer_id")
    frame = pd.DataFrame({"customer_id": ids})
    frame["household_id"] = frame["customer_id"].map(homes["household_id"])
    frame["preferred_channel"] = frame["customer_id"].map(homes["preferred_channel"])
    place = frame["customer_id"].str[1:].astype(int)
    frame["stage"] = np.array(stages)[place % len(stages)]
    frame["spend_year"] = (place * 37 % 100).astype(float)
    return ibis.memtable(frame)


def plan(shop, rows=None, **asked):
    asked = {"as_of": DAY, "arms": ARMS, "outcome": "spend", "holdout_share": 0.2} | asked
    return campaigns.plan(audience(shop) if rows is None else rows, shop, **asked)


def arms(found):
    rows = found.assigned.to_pandas()
    return dict(zip(rows["customer_id"], rows["arm"], strict=True))


def reasons(found):
    return dict(found.left_out.to_pandas()[["customer_id", "reason"]].itertuples(index=False))


def on_lists(folder):
    found = {}
    for path in folder.glob("*.csv"):
        with path.open(newline="") as file:
            found[path.name] = list(csv.DictReader(file))
    return found


def test_everybody_of_the_audience_is_accounted_for(club):
    found = plan(club, policy={"most": 1}, universal_share=0.05, universal_until="2024-12-31")
    counts = found.counts.set_index("what")["customers"]
    assert counts.sum() == found.audience == N
    assert counts["universal control"] > 0 and counts["held out"] > 0
    assert len(arms(found)) == counts["contacted"] + counts["held out"]
    assert len(reasons(found)) == counts["suppressed"]
    assert not set(arms(found)) & set(reasons(found))


def test_why_somebody_may_not_be_contacted_is_said(club):
    said = reasons(plan(club, policy={"most_by_channel": {"email": 0, "post": 9}}))
    consent = policies.consents(club, as_of=dt.date(2024, 6, 30)).to_pandas()
    post = set(consent[(consent.channel == "post") & consent.given]["customer_id"])
    for n, one in enumerate(IDS):
        if 100 <= n < 120:
            assert said[one] == "do not contact"
        elif one not in post:  # every arm must be able to reach everybody
            assert said[one] == "no consent"
        elif 300 <= n < 328 and (n < 315 or n >= 320):
            assert said[one] == "complaint"  # of the last month, or still open
        else:
            assert one not in said


def test_a_channel_is_the_preferred_one_then_the_cheapest(club):
    rows = plan(club).assigned.to_pandas().merge(audience(club).to_pandas(), on="customer_id")
    consent = policies.consents(club, as_of=dt.date(2024, 6, 30)).to_pandas()
    email = set(consent[(consent.channel == "email") & consent.given]["customer_id"])
    for row in rows[rows.arm == "card"].itertuples():
        wish = row.preferred_channel == "post" or row.customer_id not in email
        assert row.channel == ("post" if wish else "email")
    assert set(rows[rows.arm == "letter"]["channel"]) == {"post"}
    assert rows[rows.arm == "holdout"]["channel"].isna().all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy",
    [{"most": 2, "days": 10, "quiet_days": 2}, {"most_by_channel": {"email": 1}}, {"most": 0}],
)
def test_no_limit_is_ever_exceeded(shop, tmp_path, policy):
    limits = policies.read_policy(policy)
    for number, days in enumerate((0, 3, 12)):
        day = dt.date(2024, 6, 30) + dt.timedelta(days)
        try:
            found = plan(shop, as_of=day, policy=policy, campaign_id=f"c{number}",
                         arms=[{"name": "a", "channels": ["email", "post"]}])  # fmt: skip
        except DataError as error:
            assert "may be contacted" in str(error)
            continue
        found.write(tmp_path / "lists")
    sent = ledgers.contacts(shop).to_pandas()
    sent = sent[sent["arm"] != "holdout"]
    sent["on"] = sent["sent_at"].dt.date.fillna(sent["window_from"]).map(pd.Timestamp)
    ours = set(sent[sent["campaign_id"] != "old"]["customer_id"])
    if policy == {"most": 0}:
        assert not ours
        return
    assert ours
    for who, some in sent[sent["customer_id"].isin(ours)].groupby("customer_id"):
        days = sorted(some["on"])
        for one in days:
            inside = some[(some["on"] >= one) & (some["on"] < one + pd.Timedelta(limits.days, "D"))]
            assert len(inside) <= (limits.most or 99), who
            for channel, most in limits.most_by_channel.items():
                assert (inside["channel"] == channel).sum() <= most
        gaps = [(b - a).days for a, b in zip(days, days[1:], strict=False)]
        assert all(gap > limits.quiet_days for gap in gaps) or not limits.quiet_days


def test_nobody_without_consent_is_ever_on_a_list(shop, tmp_path):
    found = plan(shop)
    # Ten say no after the plan: they stay in their arm, and are on no list.
    done = found.write(tmp_path / "lists")
    latest = policies.consents(shop).to_pandas()
    latest = latest[latest.given]
    may = set(zip(latest["customer_id"], latest["channel"], strict=True))
    listed = [row for rows in on_lists(tmp_path / "lists").values() for row in rows]
    assert listed and all((row["customer_id"], row["channel"]) in may for row in listed)
    channel = found.assigned.to_pandas().set_index("customer_id")["channel"]
    gone = {one for one in IDS[200:210] if channel.get(one) == "post"}
    assert gone and not gone & {row["customer_id"] for row in listed}
    assert done.withdrawn == len(gone)
    assert done.verdict.endswith("Who has withdrawn consent since is on none.")


def test_shares_are_exact_in_each_stratum(club):
    rows = plan(club).assigned.to_pandas()
    for _, some in rows.groupby("stratum"):
        share = some["arm"].value_counts()
        assert len(some) >= 20
        for arm, wanted in (("holdout", 0.2), ("card", 0.8 / 3), ("letter", 1.6 / 3)):
            assert abs(share[arm] - wanted * len(some)) < 1 + 1e-9


def test_a_wave_takes_only_new_ones_and_moves_nobody(shop, tmp_path):
    first = plan(shop, audience(shop, IDS[:400]))
    first.write(tmp_path)
    second = plan(shop, as_of="2024-07-07")
    counts = second.counts.set_index("what")["customers"]
    assert counts["in an earlier wave"] == len(arms(first))
    assert not set(arms(first)) & set(arms(second))
    second.write(tmp_path)
    both = ledgers.contacts(shop).to_pandas().query("campaign_id == 'campaign'")
    kept = dict(zip(both["customer_id"], both["arm"], strict=True))
    assert {one: kept[one] for one in arms(first)} == arms(first)
    assert len(kept) == len(both) == len(arms(first)) + len(arms(second))
    with pytest.raises(UsageError, match="began with holdout_share = 0.2 and cannot go on with"):
        plan(shop, as_of="2024-07-14", holdout_share=0.3)
    with pytest.raises(UsageError, match="has a wave of 2024-07-07 already"):
        plan(shop, as_of="2024-07-05")
    # A written day gives its wave again, but not under other rules.
    assert arms(plan(shop, as_of=DAY)) == arms(first)
    with pytest.raises(UsageError, match="has its wave of 2024-07-07 already, with the rules none"):
        plan(shop, as_of="2024-07-07", rules=[{"column": "spend_year", "from": 50}])
    (tmp_path / "elsewhere").mkdir()
    assert "wave of 2024-06-30 no list" in plan(shop, as_of="2024-07-07").write(
        tmp_path / "elsewhere"
    ).verdict  # fmt: skip


def test_a_second_run_gives_the_same_files_and_replaces_nothing(shop, tmp_path):
    folder = tmp_path / "lists"
    plan(shop).write(folder)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    again = plan(shop)
    assert again.written == 1
    again.write(folder)
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()} == before
    assert len(ledgers.waves(shop, "campaign")) == 1
    [path, *_] = folder.glob("*.csv")
    assert path.stat().st_mode & 0o077 == 0 and folder.stat().st_mode & 0o077 == 0
    path.write_text("customer_id,channel,arm,offer,sends_on,campaign_id,wave\nno,,,,,,\n")
    with pytest.raises(UsageError, match="not of this wave"):
        plan(shop).write(folder)
    path.write_text("mine")
    with pytest.raises(UsageError, match="no list of this package"):
        plan(shop).write(folder)
    assert path.read_text() == "mine"


def test_a_spreadsheet_takes_no_cell_for_a_formula(shop, tmp_path):
    plan(shop).write(tmp_path / "lists")
    for name, rows in on_lists(tmp_path / "lists").items():
        if "card" in name:
            assert {row["offer"] for row in rows} == {"'=5 off"}
        assert not any(cell[:1] in "=+-@" for row in rows for cell in row.values() if cell)


def test_a_household_shares_its_arm_also_in_a_later_wave(shop, tmp_path):
    homes = audience(shop).to_pandas().set_index("customer_id")["household_id"]
    first = plan(shop, audience(shop, IDS[::2]), by_household=True)
    first.write(tmp_path)
    second = plan(shop, as_of="2024-07-07", by_household=True)
    second.write(tmp_path)
    both = arms(first) | arms(second)
    by_home = pd.Series(both).groupby(homes).nunique()
    assert by_home.max() == 1 and (pd.Series(both).groupby(homes).size() == 2).sum() > 100
    with pytest.raises(DataError, match="need the column household_id"):
        plan(shop, audience(shop).drop("household_id"), campaign_id="y", by_household=True)


def test_a_budget_contacts_those_of_the_highest_profit_and_is_kept(club):
    found = plan(club, budget=150.0, fixed_cost=20.0, arms=FREE)
    assert 140 < found.cost <= 150 + 1e-9
    contacts = found.assigned.to_pandas()
    paid = contacts["channel"].map({"email": 0.05, "post": 0.9})[contacts["arm"] != "holdout"].sum()
    assert found.cost == pytest.approx(paid + 20)
    # An offer that those take who buy anyway is paid from the budget too.
    dear = plan(club, budget=150.0, fixed_cost=20.0)
    share = dear.said["base"]["response"]
    paid = dear.said["contact_cost"] + 5 * dear.by_arm["card"] * share + 20
    assert dear.cost == pytest.approx(paid) and dear.contacted < found.contacted
    # Nobody knows before the lot what those drawn will cost, but by what they did before.
    assert dear.cost < 1.3 * 150
    rows = audience(club).to_pandas().set_index("customer_id")["spend_year"]
    beyond = [one for one, why in reasons(found).items() if why == "beyond the budget"]
    assert rows[list(arms(found))].min() >= rows[beyond].max()
    with pytest.raises(UsageError, match="pays for no contacts"):
        plan(club, budget=20.0, fixed_cost=20.0)


def test_a_universal_control_is_on_record_with_the_first_wave_that_keeps_to_it(shop, tmp_path):
    before = plan(shop, campaign_id="a")
    drawn = plan(shop, campaign_id="b", universal_share=0.2, universal_until="2024-12-31")
    drawn.write(tmp_path)
    with pytest.raises(UsageError, match="has changed since campaign 'a' was planned"):
        before.write(tmp_path)
    with pytest.raises(UsageError, match="was drawn for 2024-07-01 to 2024-12-31: another may not"):
        plan(shop, as_of="2024-05-01", campaign_id="c", universal_share=0.1,
             universal_until="2024-08-01")  # fmt: skip


def test_what_was_said_before_the_send_stands(shop, tmp_path):
    plan(shop, as_of="2024-05-31", outcome_days=30).write(tmp_path)
    folder = tmp_path / "data" / "club"
    pd.DataFrame(
        {"campaign_id": ["campaign"], "primary_outcome": ["response"], "outcome_days": [14.0],
         "holdout_share": [0.5], "channel": ["email"]}
    ).to_parquet(folder / "campaigns.parquet")  # fmt: skip
    rows = pd.read_parquet(folder / "contacts.parquet")
    more = rows.head(5).assign(campaign_id="campaign", arm="card", customer_id=IDS[100:105])
    pd.concat([rows, more]).to_parquet(folder / "contacts.parquet")
    found = uplift.measure(sources.open_shop("club"), campaign_id="campaign", as_of=DAY)
    assert (found.trial.primary, found.trial.days, found.sound) == ("spend", 30, True)
    # Customers whom no lot drew count in no arm.
    assert sum(found.trial.sizes.values()) == len(arms(plan(shop, as_of="2024-05-31",
                                                           outcome_days=30)))  # fmt: skip
    assert "whom the ledger never drew" in " ".join(found.cautions)


def test_the_universal_control_is_in_no_campaign_for_its_period(shop, tmp_path):
    first = plan(shop, universal_share=0.1, universal_until="2024-12-31")
    first.write(tmp_path)
    out = set(IDS) - set(arms(first)) - set(reasons(first))
    assert 30 < len(out) < 100
    # Another campaign asks for none, and leaves the same ones out.
    other = plan(shop, as_of="2024-08-10", campaign_id="other", seed=5)
    assert set(IDS) - set(arms(other)) - set(reasons(other)) == out
    with pytest.raises(UsageError, match="in force until 2024-12-31"):
        plan(shop, as_of="2024-08-10", campaign_id="z", universal_share=0.2,
             universal_until="2025-12-31")  # fmt: skip
    with pytest.raises(UsageError, match="say until which day"):
        plan(shop, as_of="2025-08-10", campaign_id="z", universal_share=0.2)
    after = plan(shop, as_of="2025-01-10", campaign_id="late")
    assert not set(IDS) - set(arms(after)) - set(reasons(after))


def test_what_can_be_seen_is_said_before_and_kept(shop, tmp_path):
    found = plan(shop, outcome="response")
    said = found.said
    assert said["sends_on"] == "2024-07-01" and said["ends_on"] == "2024-07-28"
    log = shop.table("transactions").to_pandas()
    who = log[log["purchased_at"] >= "2024-06-03"]["customer_id"].unique()
    share = np.mean([one in set(who) for one in arms(found)])
    assert said["base"]["response"] == pytest.approx(share)
    from crmlab.effects import detectable_share

    sizes = found.by_arm
    wanted = detectable_share(share, sizes["card"], sizes["holdout"])
    assert said["detectable"]["response"] == pytest.approx(wanted)
    assert f"{100 * wanted:.1f} percentage points" in found.verdict
    found.write(tmp_path)
    [wave] = ledgers.waves(shop, "campaign")
    assert wave.plan["said"] == json.loads(json.dumps(said))


def test_those_chosen_for_their_silence_need_an_earlier_audience(club):
    bought = set(
        club.table("transactions").to_pandas().query("purchased_at >= '2024-06-03'")["customer_id"]
    )
    silent = [one for one in IDS if one not in bought]
    blind = plan(club, audience(club, silent), outcome="response")
    assert "their silence was what they were chosen for" in blind.warning
    seen = plan(club, audience(club, silent), outcome="response",
                audience_before=audience(club, IDS))  # fmt: skip
    assert seen.said["base"]["response"] == pytest.approx(len(bought) / N)


def test_a_plan_that_can_show_little_says_so(club):
    assert "Campaigns seldom bring as much" in plan(club, holdout_share=0.05).warning
    assert "Too small so far" in plan(club, holdout_share=0.005).warning


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"holdout_share": 0}, "with nobody held out nobody can know"),
        ({"holdout_share": 1.0}, "with all held out"),
        ({"holdout_share": "0.1"}, "holdout_share is '0.1'"),
        ({"arms": []}, "needs arms"),
        ({"arms": [{"name": "holdout", "channel": "email"}]}, "not 'holdout'"),
        ({"arms": [{"name": "a", "channels": "email"}]}, "it is a list of channels"),
        ({"arms": [5]}, "An arm is 5; it is a table"),
        ({"arms": [{"name": "a", "channel": "email", "offer": 5}]}, "offer is 5; it must be words"),
        ({"arms": [{"name": "x" * 61, "channel": "email"}]}, "is too long: 60 letters"),
        ({"arms": [{"name": "Holdout ", "channel": "email"}]}, "not 'holdout'"),
        ({"policy": [1]}, "policy is"),
        ({"policy": {"closed": ["20240701"]}}, "closed has '20240701'"),
        ({"policy": {"most_by_channel": {"emial": 0}}}, "no channel.*Did you mean 'email'"),
        ({"sends_on": "9999-12-31"}, "must be a date such as"),
        ({"budget": -5}, "budget is -5"),
        ({"arms": [{"name": "a", "chanel": "email"}]}, "Did you mean 'channel'"),
        ({"arms": [{"name": "a", "channel": "email"}] * 2}, "Two arms have the name a"),
        ({"arms": [{"name": "a!", "channel": "email"}, {"name": "a?", "channel": "email"}]},
         "differ by signs only"),
        ({"arms": [{"name": "a", "channel": "email", "contact_cost": -1}]}, "must lie between"),
        ({"policy": {"mst": 3}}, "policy has no setting 'mst'.*Did you mean 'most'"),
        ({"policy": {"most": 2.5}}, "policy most is 2.5"),
        ({"policy": {"closed": ["sonntag"]}}, "closed has 'sonntag'"),
        ({"policy": {"closed": ["monday"]}}, "Nothing is sent on 2024-07-01"),
        ({"sends_on": DAY}, "must lie after as_of"),
        ({"outcome": "revenue"}, "outcome is 'revenue'"),
        ({"outcome_days": 0}, "outcome_days is 0"),
        ({"campaign_id": "../x"}, "letters, digits"),
        ({"seed": 1.5}, "seed is 1.5"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_refused_in_words(club, asked, words):
    with pytest.raises(UsageError, match=words):
        plan(club, **asked)
    assert not ledgers.folder(club).exists()


def test_an_audience_of_nobody_and_one_that_may_not_be_contacted(club):
    with pytest.raises(DataError, match="Nobody fits the rules"):
        plan(club, audience(club, IDS[:5]), rules=[{"column": "spend_year", "from": 1e6}])
    with pytest.raises(DataError, match="may be contacted: do not contact.$"):
        plan(club, audience(club, IDS[100:120]))
    with pytest.raises(DataError, match="consent for the channel 'e-mail'.*Did you mean 'email'"):
        plan(club, arms=[{"name": "a", "channel": "e-mail"}])
    with pytest.raises(UsageError, match="customer_id of text"):
        plan(club, ibis.memtable({"customer_id": [1, 2]}))
    with pytest.raises(UsageError, match="ibis.memtable makes one of a DataFrame"):
        plan(club, pd.DataFrame({"customer_id": IDS}))
    with pytest.raises(DataError, match="customer_id more than once"):
        plan(club, audience(club, IDS[:50] * 2))
    with pytest.raises(DataError, match="there is no|has no cost of what was sold"):
        plan(club, outcome="margin")


def test_a_shop_without_consents_contacts_nobody(make_shop):
    shop = make_shop("customer_id,purchased_at,amount\na,2024-06-01,5\nb,2024-06-02,2\n")
    rows = ibis.memtable({"customer_id": ["a", "b"]})
    with pytest.raises(DataError, match="no row is no consent: nobody may be contacted"):
        plan(shop, rows)


@pytest.mark.parametrize("what", ["json", "contacts", "gone", "first", "last"])
def test_a_ledger_that_was_edited_is_not_believed(shop, tmp_path, what):
    plan(shop, audience(shop, IDS[:300])).write(tmp_path / "lists")
    plan(shop, as_of="2024-07-07").write(tmp_path / "lists")
    place = ledgers.folder(shop) / "campaign"
    if what == "json":
        text = (place / "001.json").read_text()
        (place / "001.json").write_text(
            text.replace('"holdout_share": 0.2', '"holdout_share": 0.1')
        )
    elif what == "contacts":
        rows = pd.read_parquet(place / "001-contacts.parquet")
        rows.assign(arm="card").to_parquet(place / "001-contacts.parquet")
    elif what == "gone":
        (place / "002-contacts.parquet").unlink()
    else:
        (place / f"00{1 if what == 'first' else 2}.json").unlink()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match="The ledger was changed since it was written"):
        plan(shop, as_of="2024-07-14")
    with pytest.raises(DataError, match="The ledger was changed"):
        uplift.measure(shop, campaign_id="campaign", as_of="2024-06-30")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_of_two_processes_one_writes_a_wave(shop, tmp_path):
    limits = {"most": 1}
    plans = [plan(shop, policy=limits), plan(sources.open_shop("club"), policy=limits),
             plan(sources.open_shop("club"), policy=limits, campaign_id="other")]  # fmt: skip

    def write(one):
        try:
            return one.write(tmp_path / "lists")
        except UsageError as error:
            return str(error)

    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(write, plans))
    refused = [one for one in done if isinstance(one, str)]
    assert len(refused) == 2
    assert all("has changed since campaign" in one and "Plan again" in one for one in refused)
    rows = ledgers.contacts(shop).to_pandas().query("campaign_id != 'old'")
    assert not rows["customer_id"].duplicated().any()


def test_a_wave_that_was_cut_short_is_no_wave(shop, tmp_path, monkeypatch):
    found = plan(shop)
    with monkeypatch.context() as patch:
        patch.setattr(ledgers, "_write_sealed", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            found.write(tmp_path / "lists")
    assert ledgers.waves(shop, "campaign") == [] and not (tmp_path / "lists").exists()
    again = plan(shop)
    again.write(tmp_path / "lists")
    assert arms(again) == arms(found)


def test_a_written_campaign_is_measured_from_the_ledger(shop, tmp_path):
    plan(shop, as_of="2024-05-31", outcome_days=30).write(tmp_path)
    found = uplift.measure(shop, campaign_id="campaign", as_of=DAY)
    assert found.trial.ends_on == dt.date(2024, 6, 30) and found.trial.complete
    assert found.mismatch[1] > 0.5  # exact shares
    assert "When messages were sent is not known" in " ".join(found.cautions)
    log = shop.table("transactions").to_pandas().query("purchased_at >= '2024-06-01'")
    spend = log.groupby("customer_id")["amount"].sum().astype(float)
    who = plan(shop, as_of="2024-05-31", outcome_days=30)
    wanted = pd.Series(arms(who)).to_frame("arm").join(spend).fillna(0.0).groupby("arm")["amount"]
    rows = found.to_frame().query("outcome == 'spend'").set_index("arm")
    assert rows.loc["card", "mean"] == pytest.approx(wanted.mean()["card"])
    assert rows.loc["letter", "mean_holdout"] == pytest.approx(wanted.mean()["holdout"])
    cost = who.assigned.to_pandas()
    cost = (cost["channel"].map({"email": 0.05, "post": 0.9}) * (cost["arm"] != "holdout")).sum()
    paid = uplift.measure(shop, campaign_id="campaign", as_of=DAY, margin=0.3, take_up=0.0).earned
    assert paid["cost"].sum() == pytest.approx(cost)


def test_a_customer_in_another_arm_than_the_ledgers_is_refused(shop, tmp_path):
    found = plan(shop, as_of="2024-05-31")
    found.write(tmp_path)
    path = tmp_path / "data" / "club" / "contacts.parquet"
    rows = pd.read_parquet(path)
    [one] = [who for who, arm in arms(found).items() if arm == "holdout"][:1]
    more = pd.DataFrame({"campaign_id": ["campaign"], "customer_id": [one], "arm": ["card"],
                         "assigned_at": [dt.datetime(2024, 6, 1)]})  # fmt: skip
    pd.concat([rows, more]).to_parquet(path)
    with pytest.raises(DataError, match="Customers of campaign 'campaign' are in two arms"):
        uplift.measure(sources.open_shop("club"), campaign_id="campaign", as_of=DAY)


def test_all_contacting_is_measured_against_the_universal_control(shop, tmp_path):
    plan(shop, as_of="2024-05-31", universal_share=0.2, universal_until="2024-12-31").write(
        tmp_path
    )
    found = uplift.measure(shop, as_of=DAY, control="universal", margin=0.3)
    sizes = found.trial.sizes
    drawn = ledgers.universal(shop, dt.date(2024, 6, 30))
    from crmlab.arms import below

    first = shop.table("transactions").to_pandas().query("purchased_at < '2024-06-01'")
    known = sorted(first["customer_id"].unique())
    out = below(known, share=0.2, salt=drawn["salt"]).sum()
    assert sizes == {"holdout": out, "all campaigns": len(known) - out}
    assert found.earned.iloc[0]["contacts"] > 100
    with pytest.raises(DataError, match="begins on 2024-06-01, after"):
        uplift.measure(shop, as_of="2024-05-01", control="universal", margin=0.3)


FILE = """name = "Back"
outcome = "spend"
holdout_share = 0.2
[[rules]]
column = "spend_year"
from = 20
[[arms]]
name = "card"
channels = ["email", "post"]
contact_cost = { email = 0.05, post = 0.9 }
[policy]
most = 3
"""


def put(club, name, text):
    folder = club.settings.folder / "campaigns"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.toml").write_text(text)


def test_a_campaigns_file_says_what_plan_takes(club):
    put(club, "back", FILE)
    asked = campaigns.read(club, "back")
    found = plan(club, **{"arms": None, "outcome": None} | asked)
    same = plan(club, campaign_id="back", name="Back", rules=[{"column": "spend_year", "from": 20}],
                arms=[ARMS[0] | {"offer": "", "offer_cost": 0}], policy={"most": 3})  # fmt: skip
    assert arms(found) == arms(same)
    assert found.verdict.startswith("“Back”: of ")
    assert campaigns.day_before(asked, as_of=DAY) == dt.date(2024, 6, 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FILE.replace("holdout_share", "hold_out_share"), "Did you mean 'holdout_share'"),
        (FILE.replace("0.2", '"0.2"'), "holdout_share is '0.2'; it must be of type float"),
        (FILE.replace("name =", "name"), "cannot be read"),
        (FILE.replace("from = 20", "form = 20"), "Did you mean 'from'"),
        ('name = "x"', "says no arms"),
    ],
)
def test_a_campaigns_file_that_cannot_be_meant_is_refused_in_words(club, text, words):
    put(club, "bad", text)
    with pytest.raises(UsageError, match=words):
        campaigns.read(club, "bad")


def test_a_campaign_without_a_file_names_those_there_are(club):
    put(club, "back", FILE)
    with pytest.raises(UsageError, match="Did you mean 'back'"):
        campaigns.read(club, "bakc")
    with pytest.raises(UsageError, match="letters, digits"):
        campaigns.read(club, "../club")


def test_a_shop_that_knows_no_preferred_channel_can_plan(club):
    found = plan(club, audience(club).drop("preferred_channel"))
    rows = found.assigned.to_pandas()
    consent = policies.consents(club, as_of=dt.date(2024, 6, 30)).to_pandas()
    email = set(consent[(consent.channel == "email") & consent.given]["customer_id"])
    card = rows[rows.arm == "card"]
    assert (card["channel"].eq("email") == card["customer_id"].isin(email)).all()


def test_a_rule_of_ids_names_none_of_them(club):
    found = plan(club, rules=[{"column": "customer_id", "is": IDS[120:320]}])
    from crmlab import charts

    said = found.funnel._repr_html_() + charts.funnel(found).alt + found._repr_html_()
    assert "one of 200 that are named" in said
    assert not any(one in said for one in IDS)


def test_a_page_tells_no_group_of_few(club):
    few = plan(club, audience(club, IDS[:100]), holdout_share=0.05)
    assert few.held_out < 10 and not few.tellable
    assert few.kpis == [] and "<table" not in few._repr_html_()
    assert str(few.held_out) not in few.verdict.split(".")[0]
    many = plan(club)
    assert many.tellable and (many.by_stratum[["holdout", "card", "letter"]] >= 10).all(axis=None)
    assert (many.why_not["customers"] >= 10).all()
    from crmlab import charts

    assert f"are contacted: {many.contacted}" in charts.funnel(many).alt
    assert "are contacted" not in charts.funnel(few).alt


def test_a_trigger_is_a_campaign_of_daily_waves_with_its_own_hold_out(shop, tmp_path):
    rules, seen = [{"column": "days_since_first", "from": 14, "to": 14}], {}
    for days in range(3):
        rows = audience(shop).mutate(
            days_since_first=ibis._.customer_id.substr(1).cast("int64") % 5 + 12 + days
        )
        found = plan(shop, rows, rules=rules, as_of=dt.date(2024, 6, 30) + dt.timedelta(days),
                     arms=FREE, policy={"complaint_days": 0})  # fmt: skip
        assert not set(arms(found)) & set(seen)
        seen |= arms(found)
        assert found.wave == f"00{days + 1}"
        found.write(tmp_path / "lists")
    held = sum(arm == "holdout" for arm in seen.values())
    assert held == pytest.approx(0.2 * len(seen), abs=3 * len(set(found.strata["stratum"])))
    assert len(ledgers.waves(shop, "campaign")) == 3
    assert len(list((tmp_path / "lists").glob("*.csv"))) == 6
