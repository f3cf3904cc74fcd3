"""The generated shop does what its truth says, and its truth is what was asked for."""

import datetime as dt
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from crmlab import city, clv, customers, likelihoods, simulation, sources
from crmlab.tables import CONTRACT, UsageError
from tests.conftest import ARROW

FILES = [name for name in CONTRACT if name != "districts"]
TRUTH = ["truth/customers", "truth/campaign_effects"]
START, END = pd.Timestamp("2023-01-01"), pd.Timestamp("2026-01-01")


class World:
    """A generated shop, its tables read once; money as float64."""

    def __init__(self, folder):
        self.folder, self.read = folder, {}
        self.truth = json.loads((folder / "truth" / "parameters.json").read_text("utf-8"))

    def __getattr__(self, name):
        return self[name]

    def __getitem__(self, name):
        if name not in self.read:
            table = pq.read_table(self.folder / f"{name}.parquet")
            for i, field in enumerate(table.schema):
                if pa.types.is_decimal(field.type):
                    table = table.set_column(i, field.name, pc.cast(table[i], pa.float64()))
            self.read[name] = table.to_pandas()
        return self.read[name]

    @property
    def people(self):
        return self["truth/customers"].set_index("customer_id")

    @property
    def receipts(self):
        """One row per receipt of a customer that is no return."""
        if "receipts" not in self.read:
            lines = self.transactions[self.transactions["quantity"] >= 0]
            self.read["receipts"] = (
                lines[lines["customer_id"].notna()]
                .groupby("transaction_id", sort=False)
                .agg(
                    customer_id=("customer_id", "first"),
                    purchased_at=("purchased_at", "first"),
                    store_id=("store_id", "first"),
                    amount=("amount", "sum"),
                    discount=("discount", "sum"),
                    lines=("amount", "size"),
                )
                .sort_values(["customer_id", "purchased_at"])
            )
        return self.read["receipts"]

    @property
    def returns(self):
        return self.transactions[self.transactions["quantity"] < 0]


@pytest.fixture(scope="module")
def make_world(tmp_path_factory):
    def make(n, effects=simulation.EFFECTS, seed=11):
        folder = tmp_path_factory.mktemp("world")
        simulation.write(folder, customers=n, effects=effects, seed=seed)
        return World(folder)

    return make


@pytest.fixture(scope="module")
def world(make_world):
    """A shop with every effect at work."""
    return make_world(20_000)


@pytest.fixture(scope="module")
def plain(make_world):
    """A shop with none."""
    return make_world(30_000, effects=())


@pytest.fixture(scope="module")
def cases(make_world):
    return make_world(20_000, effects=("cases",))


def noise(shares):
    """Return the standard error of a sum of independent yes-or-nos of these chances."""
    return np.sqrt(np.sum(shares * (1 - shares)))


def test_same_seed_gives_the_same_tables_and_another_seed_another_shop(make_world):
    one, same, other = (make_world(1500, seed=seed) for seed in (1, 1, 2))
    for name in [*FILES, *TRUTH]:
        tables = [pq.read_table(shop.folder / f"{name}.parquet") for shop in (one, same, other)]
        assert tables[0].equals(tables[1]), name
        assert name == "campaigns" or not tables[0].equals(tables[2]), name
    assert one.truth == same.truth
    districts = [(shop.folder / "districts.geojson").read_text("utf-8") for shop in (one, other)]
    assert districts[0] != districts[1]


def test_each_chunk_is_its_own_whatever_comes_after_it(make_world, monkeypatch):
    monkeypatch.setattr(simulation, "CHUNK", 500)
    short, long = make_world(1000), make_world(1500)
    for name in ["transactions", "points", "contacts", *TRUTH]:
        tables = [pq.read_table(shop.folder / f"{name}.parquet") for shop in (short, long)]
        assert tables[0].equals(tables[1].slice(0, tables[0].num_rows)), name
    assert long.transactions["transaction_id"].str.len().unique() == [11]
    first = long.customers["customer_id"]
    assert (first.is_unique, first.iloc[0], first.iloc[-1]) == (True, "C00000001", "C00001500")


@pytest.mark.parametrize("effects", [simulation.EFFECTS, ()])
def test_all_tables_have_the_columns_and_types_of_the_contract(make_world, effects):
    shop = make_world(60, effects)
    for name in FILES:
        found = pq.read_schema(shop.folder / f"{name}.parquet")
        wanted = {column.name: ARROW[column.kind] for column in CONTRACT[name].columns}
        assert dict(zip(found.names, found.types, strict=True)) == wanted, name
    for name in ("campaigns", "contacts", "suppressed", "cases", "truth/campaign_effects"):
        assert (len(shop[name]) > 0) == bool(effects), name
    assert sorted(path.name for path in shop.folder.iterdir()) == sorted(
        [*(f"{name}.parquet" for name in FILES), "districts.geojson", "truth"]
    )


def test_the_shops_check_sets_nothing_aside_and_finds_every_partner(make_world):
    world = make_world(1500)
    (world.folder / "shop.toml").write_text('currency = "EUR"\nlocale = "en_GB"\n')
    shop = sources.open_shop(world.folder / "shop.toml")
    for name in CONTRACT:
        assert shop.check(name).rows_set_aside == 0, name
    for name, key, partner in (
        ("transactions", "customer_id", "customers"),
        ("transactions", "product_id", "products"),
        ("transactions", "store_id", "stores"),
        ("consents", "customer_id", "customers"),
        ("contacts", "campaign_id", "campaigns"),
        ("points", "transaction_id", "transactions"),
    ):
        assert set(world[name][key].dropna()) <= set(world[partner][key]), (name, key)


def test_an_unknown_effect_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(
        UsageError, match="no effect 'season'; .* older. Did you mean 'seasonality'"
    ):
        simulation.write(tmp_path / "shop", customers=10, effects=["season"], seed=1)
    with pytest.raises(UsageError, match="0 customers with seed 1"):
        simulation.write(tmp_path / "shop", customers=0, seed=1)
    assert not (tmp_path / "shop").exists()


def test_a_run_that_breaks_leaves_the_old_files_and_no_scratch(make_world, monkeypatch):
    monkeypatch.setattr(simulation, "CHUNK", 50)
    shop = make_world(60)
    before = {path: path.read_bytes() for path in shop.folder.rglob("*") if path.is_file()}
    told = []

    def stop(message):
        told.append(message)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulation.write(shop.folder, customers=150, seed=2, progress=stop)
    assert told == [f"Generated {n} of 150 customers." for n in (50, 100)]
    assert {p: p.read_bytes() for p in shop.folder.rglob("*") if p.is_file()} == before


def test_the_log_is_three_years_in_shop_hours_with_anonymous_sales(world, make_world):
    at = world.transactions["purchased_at"]
    assert (at.dt.date.min(), at.dt.date.max()) == (dt.date(2023, 1, 1), dt.date(2025, 12, 31))
    assert at.dt.hour.between(9, 19).all()
    lines = Counter(world.transactions["customer_id"].isna())
    assert lines[True] / lines[False] == pytest.approx(0.08, abs=0.005)
    assert 8 < len(world.transactions) / len(world.customers) < 12
    smallest = make_world(1)
    assert smallest.transactions["purchased_at"].dt.date.max() == dt.date(2025, 12, 31)


def test_without_effects_the_models_recover_the_truth(plain):
    (plain.folder / "shop.toml").write_text('currency = "EUR"\nlocale = "en_GB"\n')
    shop = sources.open_shop(plain.folder / "shop.toml")
    summary = customers.summary(shop, as_of="2025-12-31")
    model = clv.fit(summary)
    truth, errors = plain.truth["purchases"], np.sqrt(np.diag(model.covariance))
    assert model.customers == 30_000
    for (name, found), error in zip(model.parameters.items(), errors, strict=True):
        assert found == pytest.approx(truth[name], abs=3.5 * error), name
        assert error < 0.06 * truth[name]
    # Of Gamma-Gamma by the likelihood: as good as the best fit but for chance (chi2, 3 degrees).
    rows = summary.filter(summary.frequency > 0).to_pandas()
    x, value = rows["frequency"].to_numpy(float), rows["monetary_value"].to_numpy()
    truth = plain.truth["spend"]
    fitted = {name: getattr(model.spend, name) for name in ("p", "q", "v")}
    likelihood = likelihoods.spend_derivatives(x, value, np.ones(len(x)))
    points = (np.log([p[name] for name in ("p", "q", "v")]) for p in (fitted, truth))
    best, true = (likelihood(point, False)[0] for point in points)
    assert 0 < 2 * (best - true) < 16
    assert fitted == pytest.approx({name: truth[name] for name in fitted}, rel=0.12)


def test_the_log_of_a_customer_starts_on_the_first_purchase_of_the_truth(plain):
    first = plain.receipts.groupby("customer_id")["purchased_at"].min().dt.date
    assert (first == plain.people["first_purchase"]).all()
    joined = plain.customers.set_index("customer_id")["joined_on"]
    assert (joined == plain.people["first_purchase"]).all()
    days = plain.receipts.assign(day=plain.receipts["purchased_at"].dt.date)
    assert not days.duplicated(["customer_id", "day"]).any()


def test_customers_stop_as_often_as_their_own_chance_says(plain):
    count = plain.receipts.groupby("customer_id").size().reindex(plain.people.index)
    p, stopped = plain.people["p"], ~plain.people["alive"]
    assert not stopped[count == 1].any()
    # As many stops as the chances of all repeat purchases add up to.
    expected = ((count - 1) * p).sum()
    assert stopped.sum() == pytest.approx(
        expected, abs=4 * np.sqrt(((count - 1) * p * (1 - p)).sum())
    )


def test_lines_of_a_receipt_are_one_to_five_and_add_up_in_whole_cents(world):
    assert set(world.receipts["lines"]) == {1, 2, 3, 4, 5}
    lines = world.transactions
    for name in ("amount", "discount", "cost"):
        cents = lines[name] * 100
        assert np.abs(cents - cents.round()).max() < 1e-6, name
    same = lines.groupby("transaction_id")[["customer_id", "purchased_at", "store_id", "channel"]]
    assert (same.nunique() <= 1).all().all()
    earned = world.points[world.points["kind"] == "earn"].set_index("transaction_id")["points"]
    amount = world.receipts["amount"].round(2).loc[earned.index]
    assert (earned == np.floor(amount)).all()


def test_a_product_costs_the_same_in_every_line(world):
    lines = world.transactions.assign(gross=lambda t: t["amount"] + t["discount"])
    lines = lines[lines["gross"] > 20].merge(world.products, on="product_id")
    price = lines["gross"] / lines["quantity"]
    spread = price.groupby(lines["product_id"]).agg(["min", "max"])
    assert (spread["max"] < 1.02 * spread["min"]).all()
    cost = (lines["quantity"] * lines["unit_cost"]).to_numpy()
    assert lines["cost"].to_numpy() == pytest.approx(cost, abs=0.006)
    assert (len(world.products), world.products["category"].nunique()) == (400, 12)


def test_no_balance_of_points_is_ever_negative_and_all_end_at_the_truths(world):
    points = world.points.sort_values(["customer_id", "posted_at"])
    balance = points.groupby("customer_id")["points"].cumsum()
    assert balance.min() >= 0
    assert points["points"].sum() == world.truth["points"]["balance"] > 0
    assert (points[points["kind"] == "redeem"]["points"] % 500 == 0).all()
    assert set(points["kind"]) == {"earn", "redeem", "expire", "adjust"}
    assert points["posted_at"].max() < END
    sign = points.groupby("kind")["points"].agg(["min", "max"])
    assert sign.loc["earn", "min"] > 0 > sign.drop("earn")["max"].max()
    adjusted = points[points["kind"] == "adjust"]["transaction_id"]
    assert set(adjusted) <= set(world.returns["transaction_id"])


def in_window(world, campaign):
    """Return receipts and returned lines that count as a campaign's outcome."""
    row = world.campaigns.set_index("campaign_id").loc[campaign]
    start = pd.Timestamp(row["starts_on"])
    end = start + pd.Timedelta(days=row["outcome_days"])
    return (
        table[(table["purchased_at"] >= start) & (table["purchased_at"] < end)]
        for table in (world.receipts, world.returns)
    )


def outcomes(world, campaign, people):
    """Return purchases and spend in the window, as the log shows them."""
    receipts, returns = in_window(world, campaign)
    purchases = receipts.groupby("customer_id").size().reindex(people, fill_value=0)
    spend = receipts.groupby("customer_id")["amount"].sum().reindex(people, fill_value=0)
    back = returns.groupby("customer_id")["amount"].sum().reindex(people, fill_value=0)
    return purchases, spend + back


@pytest.mark.parametrize("campaign", city.CAMPAIGNS["campaign_id"])
def test_the_log_shows_the_potential_outcome_of_the_arm_that_happened(world, campaign):
    effects = world["truth/campaign_effects"]
    effects = effects[effects["campaign_id"] == campaign].set_index("customer_id")
    contacts = world.contacts[world.contacts["campaign_id"] == campaign].set_index("customer_id")
    assert (contacts["arm"].loc[effects.index] == effects["arm"]).all()
    assert len(contacts) == len(effects)
    held = effects["arm"] == "holdout"
    purchases, spend = outcomes(world, campaign, effects.index)
    for name, seen in (("purchases", purchases), ("spend", spend)):
        happened = effects[f"{name}_without"].where(held, effects[f"{name}_with"])
        assert seen.to_numpy() == pytest.approx(happened.to_numpy(), abs=1e-6), name


def test_the_effects_of_the_randomised_campaign_differ_and_some_are_negative(world):
    effects = world["truth/campaign_effects"]
    effects = effects[effects["campaign_id"] == "2025-spring"].merge(world.customers)
    gain = effects["purchases_with"] - effects["purchases_without"]
    old = pd.to_datetime(effects["birth_date"]) < "1960-01-01"
    assert gain[old].max() == 0 > gain[old].mean()
    assert gain[~old].min() == 0
    extra = world.truth["campaigns"]["extra_purchases"]
    for channel, mean in extra.items():
        group = gain[~old & (effects["preferred_channel"] == channel)]
        # 3 % of the messages do not arrive, and few added purchases fall on another's day.
        assert group.mean() == pytest.approx(0.965 * mean, abs=4 * np.sqrt(mean / len(group)))


def test_the_hold_out_shows_the_true_effect_within_its_noise(world):
    contacts = world.contacts[world.contacts["campaign_id"] == "2025-spring"]
    truth = world.truth["campaigns"]["2025-spring"]
    held = (contacts["arm"] == "holdout").to_numpy()
    assert held.mean() == pytest.approx(0.2, abs=4 * np.sqrt(0.16 / len(held)))
    for name, seen in zip(
        ("purchases", "spend"), outcomes(world, "2025-spring", contacts["customer_id"]), strict=True
    ):
        arms = seen[~held], seen[held]
        difference = arms[0].mean() - arms[1].mean()
        error = np.sqrt(sum(arm.var() / len(arm) for arm in arms))
        assert difference == pytest.approx(truth["contacted_minus_holdout"][name])
        assert difference == pytest.approx(truth["true_effect"][name], abs=3.5 * error)
        assert truth["true_effect"][name] > 3 * error


def test_the_targeted_campaigns_naive_estimate_is_far_above_its_truth(world):
    contacts = world.contacts[world.contacts["campaign_id"] == "2025-autumn"]
    truth = world.truth["campaigns"]["2025-autumn"]
    known = world.people.index[world.people["first_purchase"] < dt.date(2025, 9, 15)]
    others = known.difference(contacts["customer_id"])
    assert truth["customers"] == {
        "contacted": len(contacts), "holdout": 0, "others": len(others)}  # fmt: skip
    for nth, name in enumerate(("purchases", "spend")):
        reached = outcomes(world, "2025-autumn", contacts["customer_id"])[nth].mean()
        naive = reached - outcomes(world, "2025-autumn", others)[nth].mean()
        assert naive == pytest.approx(truth["contacted_minus_others"][name])
        assert naive > 5 * truth["true_effect"][name]
    assert set(contacts["arm"]) == {"sample"}
    randomised = world.campaigns.set_index("campaign_id")["randomised"]
    assert randomised.to_dict() == {"2025-spring": True, "2025-autumn": False}


def test_nobody_is_contacted_without_consent_and_the_suppressed_say_why(world):
    for campaign in world.campaigns.itertuples():
        consents = world.consents[world.consents["channel"] == campaign.channel]
        at = pd.Timestamp(campaign.starts_on) + pd.Timedelta(hours=6)
        latest = consents[consents["at"] < at].sort_values("at").groupby("customer_id").last()
        agreed = set(latest.index[latest["status"] == "given"])
        contacts, out = (
            table[table["campaign_id"] == campaign.campaign_id]
            for table in (world.contacts, world.suppressed)
        )
        assert set(contacts["customer_id"]) <= agreed
        assert not set(contacts["customer_id"]) & set(out["customer_id"])
        refused = out["reason"] == "no consent"
        assert not set(out["customer_id"][refused]) & agreed
        assert set(out["customer_id"][~refused]) <= agreed
        assert set(out["reason"]) == {"no consent", "contact cap"}


def test_only_contacted_customers_have_a_message_and_its_times_are_in_order(world):
    contacts = world.contacts
    held = contacts["arm"] == "holdout"
    times = contacts[["assigned_at", "sent_at", "delivered_at", "opened_at", "clicked_at"]]
    assert times[held].notna().sum().to_list() == [held.sum(), 0, 0, 0, 0]
    assert contacts["sent_at"][~held].notna().all()
    for earlier, later in zip(times, times.columns[1:], strict=False):
        both = times.dropna(subset=[later])
        assert (both[earlier] < both[later]).all() and len(both) > 0, later
    lost = contacts["undelivered_reason"].notna()
    assert (lost == (~held & contacts["delivered_at"].isna())).all()


def test_a_case_multiplies_the_odds_of_stopping_by_its_factor(cases):
    receipts = cases.receipts.reset_index()
    receipts["last"] = ~receipts.duplicated("customer_id", keep="last")
    receipts["first"] = ~receipts.duplicated("customer_id")
    opened = cases.cases.sort_values("opened_at").rename(columns={"opened_at": "purchased_at"})
    found = pd.merge_asof(
        opened, receipts.sort_values("purchased_at"), on="purchased_at", by="customer_id"
    ).join(cases.people[["p", "alive"]], on="customer_id")
    assert len(found) == len(cases.cases) and not found["first"].any()
    stopped = found["last"] & ~found["alive"]
    for kind, factor in cases.truth["cases"]["odds_factor"].items():
        group = found["kind"] == kind
        p = found["p"][group]
        chance = factor * p / (1 - p + factor * p)
        assert stopped[group].sum() == pytest.approx(chance.sum(), abs=4 * noise(chance)), kind
        if factor > 1:  # the test would see it, were there no effect
            assert stopped[group].sum() > p.sum() + 6 * noise(p)
    repeat = (~receipts["first"]).sum()
    share = cases.truth["cases"]["share_of_repeat_purchases"]
    assert len(found) == pytest.approx(share * repeat, abs=4 * np.sqrt(share * repeat))
    kinds = cases.cases["kind"].value_counts(normalize=True)
    assert kinds.to_dict() == pytest.approx(cases.truth["cases"]["shares"], abs=0.03)
    closed = cases.cases.dropna(subset=["closed_at"])
    assert (closed["closed_at"] > closed["opened_at"]).all()


def test_discounted_receipts_have_the_share_and_the_depth_of_the_truth(world):
    truth, n = world.truth["discounts"], len(world.receipts)
    cheap = world.receipts[world.receipts["discount"] > 0]
    share = truth["share_of_receipts"]
    assert len(cheap) / n == pytest.approx(share, abs=4 * np.sqrt(share / n))
    depth = cheap["discount"].sum() / (cheap["amount"] + cheap["discount"]).sum()
    assert depth == pytest.approx(truth["depth"], abs=1e-3)


def test_discounts_take_their_depth_off_what_is_spent(make_world):
    shop = make_world(5000, effects=("discounts",))
    gross = (shop.receipts["amount"] + shop.receipts["discount"]).to_numpy()
    mean = shop.people["mean_spend"].loc[shop.receipts["customer_id"]].to_numpy()
    # Of a Gamma with shape p the standard deviation is the mean / sqrt(p).
    error = np.sqrt((mean**2).sum() / 6)
    assert gross.sum() == pytest.approx(mean.sum(), abs=4 * error)


def test_returns_have_the_share_of_the_truth_and_no_purchase_day_vanishes(world):
    truth, back = world.truth["returns"], world.returns
    assert len(back) == truth["returned_lines"]
    assert world.receipts["lines"].sum() == truth["lines"]
    # What could come back: not what was bought the day before the next purchase or the log's end.
    receipts = world.receipts
    day = receipts["purchased_at"].dt.normalize()
    following = day.groupby(receipts["customer_id"]).shift(-1).fillna(END)
    could = receipts["lines"][(following - day).dt.days > 1].sum()
    share = truth["share_of_lines"]
    assert len(back) == pytest.approx(share * could, abs=4 * np.sqrt(share * could))
    keys = ["customer_id", "day"]
    bought = receipts.assign(day=day)[keys]
    assert back.assign(day=back["purchased_at"].dt.normalize()).merge(bought, on=keys).empty
    sold = world.transactions[world.transactions["quantity"] >= 0]
    line = ["customer_id", "product_id", "store_id", "amount", "quantity", "discount", "cost"]
    signs = {name: -back[name] for name in line[3:]}
    pairs = back.assign(**signs).merge(sold, on=line, suffixes=("", "_sold"))
    days = (
        pairs["purchased_at"].dt.normalize() - pairs["purchased_at_sold"].dt.normalize()
    ).dt.days
    assert days.between(1, 30).groupby(pairs["transaction_id"]).any().sum() == len(back)


def kilometres(people, stores):
    """Return the distances of homes (rows) and stores (columns) on the sphere."""
    home, shop = (np.radians(t[["latitude", "longitude"]].to_numpy()) for t in (people, stores))
    north = home[:, None, 0] - shop[None, :, 0]
    east = (home[:, None, 1] - shop[None, :, 1]) * np.cos(home[:, None, 0])
    return 6371.0088 * np.hypot(north, east)


def pulls(world, places, stores):
    law = world.truth["store_choice"]
    km = np.maximum(kilometres(places, stores), law["least_km"])
    return stores["area_m2"].to_numpy() ** law["area"] * km ** law["distance"]


@pytest.mark.parametrize("side", ["Lindenau", "Верхній Луг", "新河"])
def test_the_stores_are_chosen_by_huff(world, side):
    people = world.customers.set_index("customer_id")
    buyers = people.loc[world.receipts["customer_id"]]
    here = (buyers["city"] == side).to_numpy()
    own = world.stores[world.stores["own"]]
    pull = pulls(world, buyers[here], own)
    chance = pull / pull.sum(axis=1, keepdims=True)
    seen = world.receipts["store_id"][here].to_numpy()
    for nth, store in enumerate(own["store_id"]):
        expected, error = chance[:, nth].sum(), noise(chance[:, nth])
        assert (seen == store).sum() == pytest.approx(expected, abs=4 * error + 0.002 * here.sum())


def test_homes_are_where_people_live_and_our_stores_draw_them(world):
    districts = json.loads((world.folder / "districts.geojson").read_text("utf-8"))["features"]
    assert len(districts) == 36
    rng = np.random.default_rng(1)
    expected, found = [], []
    home = world.customers[["latitude", "longitude"]].to_numpy()
    for district in districts:
        ring = np.array(district["geometry"]["coordinates"][0])[:, ::-1]
        low, high = ring.min(axis=0), ring.max(axis=0)
        places = pd.DataFrame(rng.uniform(low, high, (1500, 2)), columns=["latitude", "longitude"])
        pull = pulls(world, places, world.stores)
        share = pull[:, world.stores["own"]].sum(axis=1) / pull.sum(axis=1)
        expected.append(share.mean() * district["properties"]["population"])
        found.append(((home >= low) & (home < high)).all(axis=1).sum())
        assert district["properties"]["purchasing_power"] > 0
    expected = np.array(expected) / np.sum(expected) * len(home)
    assert sum(found) == len(home)
    # Who shares a household shares a home: 1.4 customers each, so the noise is wider.
    assert np.abs(found - expected).max() < (8 * np.sqrt(expected) + 0.02 * expected).max()
    assert np.corrcoef(found, expected)[0, 1] > 0.99
    assert world.customers["household_id"].nunique() < 0.8 * len(home)


def test_seasonality_moves_sales_by_month_and_weekday(make_world):
    shop = make_world(20_000, effects=("seasonality",))
    truth = shop.truth["seasonality"]
    days = pd.date_range(START, END, inclusive="left")
    busy = np.array(truth["month"])[days.month - 1] * np.array(truth["weekday"])[days.day_of_week]
    assert (busy * truth["scale"]).mean() == pytest.approx(1)
    # Guests come at the intensity alone, customers also as the base grows.
    lines = shop.transactions[shop.transactions["customer_id"].isna()]
    guests = lines.drop_duplicates("transaction_id")["purchased_at"]
    for unit in ("month", "day_of_week"):
        expected = pd.Series(busy).groupby(getattr(days, unit)).sum() / busy.sum() * len(guests)
        seen = guests.groupby(getattr(guests.dt, unit)).size()
        assert (np.abs(seen - expected) < 4.5 * np.sqrt(expected)).all(), unit
        assert np.abs(seen - seen.mean()).max() > 8 * np.sqrt(seen.mean())
    weekday = shop.receipts["purchased_at"].dt.day_of_week.value_counts(normalize=True).sort_index()
    expected = np.array(truth["weekday"]) / np.sum(truth["weekday"])
    assert weekday.to_numpy() == pytest.approx(expected, abs=0.01)


def test_older_customers_bought_before_the_log_and_mostly_do_not_say_so(world, plain):
    older, first = world.people["older"], pd.to_datetime(world.people["first_purchase"])
    assert older.mean() == pytest.approx(0.25, abs=0.015)
    assert ((first < START) == older).all()
    joined = world.customers.set_index("customer_id")["joined_on"]
    known = world.truth["older"]["joined_on_known"]
    assert joined[older].notna().mean() == pytest.approx(known, abs=0.02)
    assert (pd.to_datetime(joined.dropna()) == first[joined.notna()]).all()
    assert not plain.people["older"].any()
    assert plain.truth["older"] is None


def test_names_are_in_latin_cyrillic_and_chinese(world):
    words = [*world.products["category"], *world.stores["name"], *world.customers["city"].unique()]
    for low, high in (("A", "z"), ("А", "я"), ("一", "鿿")):
        assert any(low <= letter <= high for word in words for letter in word)


@pytest.mark.slow
def test_a_million_customers_need_at_most_a_gigabyte_and_a_half(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path; from crmlab import simulation;"
        "simulation.write(Path(sys.argv[1]), customers=1_000_000, seed=1);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 1.5
    assert pq.read_metadata(tmp_path / "transactions.parquet").num_rows > 10_000_000
