"""Huff's model against published tables, worlds whose choices are known, and the demo shop."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest

from crmlab import choices, exponents, homes, huff, sharing, sources, tables, what_if
from tests.conftest import REFERENCE_DATA, need

AS_OF = "2025-12-31"
OWN = [(50.02, 30.00, 1200.0), (49.98, 30.05, 500.0), (50.00, 29.94, 800.0), (49.95, 29.97, 2000.0)]
RIVALS = [(50.03, 30.06, 900.0), (49.97, 30.00, 600.0)]


def pulls(people, stores, size=1.0, distance=-2.0):
    """Return the logarithm of how strongly each store draws each of the people, on a sphere."""
    at = np.radians(people)[:, None, :]
    there = np.radians(np.array(stores)[:, :2])[None]
    half = np.sin((at - there) / 2) ** 2
    turn = half[..., 0] + np.cos(at[..., 0]) * np.cos(there[..., 0]) * half[..., 1]
    km = 2 * 6371.0088 * np.arcsin(np.sqrt(turn))
    return size * np.log(np.array(stores)[:, 2]) + distance * np.log(np.maximum(km, 0.2))


class World:
    """People who choose for each visit what pleases them most; Gumbel noise makes it a logit."""

    def __init__(self, n=1500, own=OWN, rivals=(), seed=1, visits=4, place=None, utility=pulls):
        rng = np.random.default_rng(seed)
        self.people = rng.uniform([49.93, 29.92], [50.05, 30.08], (n, 2))
        if place is not None:
            self.people[:] = place
        self.stores, self.own = [*own, *rivals], len(own)
        self.who = np.repeat(np.arange(n), visits)
        # One more store, so that the same noise tells what people would do if it opened.
        self.noise = rng.gumbel(size=(len(self.who), len(self.stores) + 1))
        self.utility = utility(self.people, self.stores)[self.who] + self.noise[:, :-1]
        self.chosen = self.utility.argmax(axis=1)
        self.amount = rng.gamma(3, 10, len(self.who)).round(2) + 1

    @property
    def table(self):
        """The stores."""
        found = pd.DataFrame(self.stores, columns=["latitude", "longitude", "area_m2"])
        found["store_id"] = [f"S{nth}" for nth in range(len(found))]
        found["name"] = [f"Shop {nth}" for nth in range(len(found))]
        found["own"] = [nth < self.own for nth in range(len(found))]
        return found

    def homes(self, folder):
        """Write the world as a shop's files; what happens at competitors, no receipt tells."""
        people = pd.DataFrame(self.people, columns=["latitude", "longitude"])
        people.insert(0, "customer_id", [f"C{nth:05}" for nth in range(len(people))])
        receipts = pd.DataFrame(
            {
                "customer_id": people["customer_id"].to_numpy()[self.who],
                "store_id": self.table["store_id"].to_numpy()[self.chosen],
                "amount": self.amount,
            }
        )
        day = receipts.groupby("customer_id").cumcount() * 3 + 1
        receipts["purchased_at"] = pd.Timestamp("2025-06-01") + pd.to_timedelta(day, unit="D")
        receipts = receipts[self.chosen < self.own]
        for name, frame in (
            ("customers", people),
            ("stores", self.table),
            ("transactions", receipts),
        ):
            frame.to_csv(folder / f"{name}.csv", index=False)
        (folder / "shop.toml").write_text('name = "World"\ncurrency = "EUR"\n')
        return homes.of_customers(sources.open_shop(folder / "shop.toml"), as_of="2025-06-15")

    def model(self, demo, *, sized=True, amount=None):
        """Fit the same without files: other figures of the homes are those of the demo shop."""
        stores = self.table
        shape = (len(self.people), len(stores))
        visits, spend = np.zeros(shape), np.zeros(shape)
        np.add.at(visits, (self.who, self.chosen), 1)
        np.add.at(spend, (self.who, self.chosen), self.amount if amount is None else amount)
        north, east = np.radians(self.people).T
        at = np.column_stack(
            [np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)]
        )
        far = np.column_stack([choices.kilometres(at, *store[:2]) for store in self.stores])
        ours = slice(self.own)
        area = stores["area_m2"].to_numpy()[ours] if sized else np.ones(self.own)
        found = choices.Choices(
            stores[ours], far[:, ours], visits[:, ours], area, spend[:, ours], at, sized
        )
        return huff.of_choices(found, dataclasses.replace(demo[0], stores=stores))


@pytest.fixture(scope="module")
def small(home, tmp_path_factory):
    """A small world, and the homes that are read of its files; few buy at the last store."""
    world = World(500, own=[*OWN, (50.05, 30.08, 3.0)])
    assert 0 < (world.chosen == 4).sum() < 10
    return world, world.homes(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def demo(home):
    """The homes of the demo shop over its three years, and the model of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRMLAB_HOME", str(home))
        found = homes.of_customers(sources.open_shop("demo"), as_of=AS_OF, days=1095)
        return found, huff.fit(found)


def of_arrays(far, visits, area):
    """Return choices of arrays alone; what they do not need is empty."""
    stores = pd.DataFrame({"store_id": [f"S{n}" for n in range(len(area))]})
    return choices.Choices(
        stores, np.asfortranarray(far, dtype=np.float32), np.asarray(visits, dtype=np.float32),
        np.array(area, dtype=float), np.asarray(visits, dtype=np.float32), np.zeros((len(far), 3)),
    )  # fmt: skip


def test_the_published_table_of_towns_and_malls():
    minutes = [[40, 25, 30], [15, 25, 30], [40, 50, 45], [40, 30, 20]]
    found = huff.probabilities([1.3, 1.7, 1.5], minutes, size_exponent=1, distance_exponent=-2)
    assert found == pytest.approx(
        np.array(
            [[0.156, 0.523, 0.321], [0.568, 0.268, 0.164], [0.364, 0.304, 0.332],
             [0.126, 0.293, 0.581]]
        ), abs=5e-4,
    )  # fmt: skip
    assert found.sum(axis=1) == pytest.approx(np.ones(4))
    assert np.array([15, 20, 25, 10]) @ found == pytest.approx([24.07, 23.74, 22.19], abs=0.005)


def test_freiburg_by_the_formula_and_by_size_alone():
    files = [REFERENCE_DATA / f"huff_freiburg{nth}.csv" for nth in (1, 2, 3)]
    need(all(file.exists() for file in files), "the shared data of Freiburg")
    pairs, power, sales = (pd.read_csv(file) for file in files)
    far = pairs.pivot_table("distance", "district", "store")
    area = pairs.groupby("store")["salesarea"].first().to_numpy()
    found = huff.probabilities(area, far.to_numpy())
    expected = power.set_index("district").loc[far.index, "ppower"].to_numpy() @ found
    actual = sales.set_index("store").loc[far.columns, "annualsales"].to_numpy()
    assert expected.sum() == pytest.approx(377_105_880, abs=1)
    assert np.corrcoef(expected, actual)[0, 1] == pytest.approx(0.7416, abs=5e-5)
    assert np.corrcoef(area, actual)[0, 1] == pytest.approx(0.976, abs=5e-4)


def test_gradient_and_information_are_derivatives_of_the_likelihood():
    rng = np.random.default_rng(3)
    found = of_arrays(rng.uniform(0.1, 9, (60, 4)), rng.poisson(1, (60, 4)), [300, 500, 900, 2000])
    at, step = np.array([0.7, -1.3]), 1e-4
    here = exponents.moments(found, at)
    for nth in range(2):
        up, down = (exponents.moments(found, at + sign * step * np.eye(2)[nth]) for sign in (1, -1))
        slope = (up.likelihood - down.likelihood) / 2 / step
        assert here.gradient[nth] == pytest.approx(slope, rel=1e-6)
        bend = (up.gradient - down.gradient) / 2 / step
        assert -here.information[nth] == pytest.approx(bend, rel=1e-5)


def test_the_demo_shop_was_generated_by_these_exponents(demo):
    _, model = demo
    rows = model.rows.set_index("exponent")
    assert list(rows.index) == ["size", "distance"]
    assert rows["larger"].isin(["customers", "stores left out"]).all()  # none of both is fixed
    errors = (model.exponents - [1, -2]) / rows["standard_error"].to_numpy()
    assert np.abs(errors).max() < 3
    assert rows["standard_error"].between(0.003, 0.05).all()
    assert model.beats
    assert model.beats_for_new_stores
    assert "say where customers buy" in model.verdict


@pytest.mark.slow
def test_other_shops_of_the_same_law_give_the_same_exponents(tmp_path):
    from crmlab import demo

    off = []
    for seed in range(11, 19):
        shop = sources.open_shop(demo.shop(customers=8000, seed=seed, folder=tmp_path / str(seed)))
        found = choices.of_customers(homes.of_customers(shop, as_of=AS_OF))
        best, at = exponents.climb(found, (0, 1))
        errors = np.sqrt(np.diag(exponents.clustered(at, (0, 1), found.customers)))
        off.append((best - [1, -2]) / errors)
    assert np.abs(off).max() < 3
    assert np.abs(np.mean(off, axis=0)).max() < 3 / np.sqrt(8)


def test_huff_is_proved_beside_simpler_rules_on_customers_it_had_not_seen(demo):
    _, model = demo
    proof = model.proof.set_index("method")
    assert list(proof.index) == ["Huff", "area only", "nearest store", "equal"]
    assert proof.loc["equal", "log_score"] == pytest.approx(np.log(1 / 5))
    assert proof.loc["equal", "right"] == pytest.approx(1 / 5)
    assert proof["log_score"].idxmax() == "Huff"
    assert (proof.drop(index="Huff")["low"] > 0).all()
    assert proof.loc["Huff", "misplaced"] < 0.03 < proof["misplaced"].drop("Huff").min()
    assert proof.loc["Huff", "new_store_error"] < 0.05 < proof["new_store_error"].drop("Huff").min()


def test_what_is_read_of_files_is_what_people_did(small):
    world, found = small
    read = choices.of_customers(found)
    ours = world.model((found, None)).choices
    order = [np.lexsort(one.homes.T) for one in (read, ours)]
    for name in ("far", "visits", "spend"):
        one, other = (getattr(c, name)[rows] for c, rows in zip((read, ours), order, strict=True))
        assert len(one) == len(other)
        assert one == pytest.approx(other[:, :4], rel=1e-5)


def test_a_store_of_few_customers_is_left_out_and_named(small):
    model = huff.fit(small[1])
    assert model.choices.number == 4
    assert any("Left out" in note and "Shop 4" in note for note in model.notes)
    assert "Shop 4" not in set(what_if.without(model, "S0").rows["store"])


def test_the_same_seed_gives_the_same_answer_and_another_lot_nearly_the_same(small):
    one, two, other = (huff.fit(small[1], seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(one.proof, two.proof, check_exact=True)
    pd.testing.assert_frame_equal(one.rows, two.rows, check_exact=True)
    assert other.exponents == pytest.approx(one.exponents, abs=1e-6)
    assert not other.proof.equals(one.proof)


def test_with_few_stores_of_nearly_one_size_its_exponent_is_fixed_at_one(demo):
    own = [(*place[:2], 1000 + nth) for nth, place in enumerate(OWN)]
    model = World(own=own).model(demo)
    rows = model.rows.set_index("exponent")
    assert rows.loc["size", ["value", "larger"]].tolist() == [1, "fixed"]
    assert np.isnan(rows.loc["size", "standard_error"])
    assert any("fixed at 1: 4 stores" in note for note in model.notes)
    assert abs(rows.loc["distance", "value"] + 2) < 4 * rows.loc["distance", "standard_error"]


def test_without_sizes_all_stores_are_equally_attractive(small, demo):
    found = small[1]
    unknown = found.stores.assign(area_m2=[np.nan, *found.stores["area_m2"][1:]])
    model = huff.fit(dataclasses.replace(found, stores=unknown))
    assert not model.choices.sized
    assert any("area_m2" in note for note in model.notes)
    assert "size alone" not in model.verdict
    own = [(*place[:2], 1000) for place in OWN]
    model = World(own=own).model(demo, sized=False)
    assert model.exponents[0] == 1
    assert model.exponents[1] == pytest.approx(-2, abs=0.2)


def test_two_stores_show_distance_and_no_jackknife(demo):
    model = World(own=OWN[:2]).model(demo)
    assert model.rows["larger"].tolist() == ["fixed", "customers"]
    assert np.isnan(model.rows.loc[1, "from_stores"])
    assert model.proof["new_store_error"].isna().all()
    assert model.exponents[1] == pytest.approx(-2, abs=0.3)
    assert any("cannot be said" in note for note in model.notes)


def test_minutes_in_place_of_kilometres(small):
    _, found = small
    by_km = choices.of_customers(found)
    ids = found.rows.order_by("customer_id").to_pandas()["customer_id"]
    place = np.random.default_rng(1).permutation(len(ids))
    # Five minutes each km, so that the least minute is the least distance.
    long = pd.DataFrame(5 * by_km.far[place].astype(float), columns=[f"S{n}" for n in range(4)])
    times = long.assign(customer_id=ids.to_numpy()).melt(
        "customer_id", var_name="store_id", value_name="minutes"
    )
    model = huff.fit(found, travel_times=times)
    assert model.rows["exponent"].tolist() == ["size", "minutes"]
    assert model.exponents == pytest.approx(huff.fit(found).exponents, abs=1e-5)
    assert what_if.without(model, "S0").elsewhere is None
    with pytest.raises(tables.DataError, match="travel times"):
        what_if.with_store(model, 50, 30, 1000)
    with pytest.raises(tables.DataError, match="no minutes for 3 of the 2000 pairs"):
        huff.fit(found, travel_times=times.iloc[3:])
    with pytest.raises(tables.DataError, match="1 pairs of customer and store twice"):
        huff.fit(found, travel_times=pd.concat([times, times.iloc[:1]]))
    with pytest.raises(tables.DataError, match="2 rows of travel_times have no minutes"):
        bad = times.assign(
            minutes=times["minutes"].where(times.index > 0).mask(times.index == 1, -1)
        )
        huff.fit(found, travel_times=bad)
    with pytest.raises(tables.UsageError, match="no column minutes"):
        huff.fit(found, travel_times=times.drop(columns="minutes"))


def test_no_model_where_there_is_nothing_to_learn_from(small, demo):
    def ask(message, **other):
        with pytest.raises(tables.DataError, match=message):
            huff.fit(dataclasses.replace(found, **other))

    found = small[1]
    at = found.rows.filter(found.rows.x.notnull())
    ask("fewer than 10 different places", rows=at.mutate(x=0.5, y=0.5, z=0.5**0.5))
    ask("has 1 own store", stores=found.stores[:1])
    ask("has 0 own store", rows=at.order_by("customer_id").limit(8))
    ask("name no store", visits=None)
    with pytest.raises(tables.DataError, match="name no store"):
        sharing.shared(dataclasses.replace(found, visits=None))
    with pytest.raises(tables.DataError, match="hardly differ"):
        World(200, own=[OWN[0], (*OWN[0][:2], 700)]).model(demo)


def always_nearest(people, stores):
    return 1e6 * pulls(people, stores, size=0)


def test_where_all_go_to_the_nearest_store_no_exponent_is_best(demo):
    with pytest.raises(tables.DataError, match="no finite exponent"):
        World(200, utility=always_nearest).model(demo)


def test_no_what_if_where_distance_says_nothing(demo):
    model = World(800, utility=lambda *at: pulls(*at, distance=0.0)).model(demo)
    assert not model.beats
    assert "does not hold" in model.verdict
    for ask in (lambda: what_if.without(model, "S0"), lambda: what_if.with_store(model, 50, 30, 9)):
        with pytest.raises(tables.DataError, match="No what-if"):
            ask()


def mostly_nearest(people, stores):
    near = pulls(people, stores, size=0)
    return 3.0 * (near == near.max(axis=1, keepdims=True))


def test_no_what_if_where_the_nearest_store_foretells_better(demo):
    model = World(3000, utility=mostly_nearest).model(demo)
    assert not model.beats
    assert "no better than" in model.verdict
    assert "“nearest store”" in model.verdict


@pytest.mark.parametrize("rivals", [[], RIVALS])
def test_visits_of_a_closed_store_go_where_people_would_have_gone(demo, rivals):
    world = World(6000, rivals=rivals)
    model = world.model(demo)
    found = what_if.without(model, "S1")
    utility = world.utility.copy()
    utility[:, 1] = -np.inf
    second = utility.argmax(axis=1)[world.chosen == 1]
    truth = np.bincount(second, minlength=len(world.stores))
    noise = 4 * np.sqrt(truth) + 1
    rows = found.rows.set_index("store")
    for nth in (0, 2, 3):
        row = rows.loc[f"Shop {nth}"]
        assert row["difference"] == pytest.approx(truth[nth], abs=noise[nth])
        assert row["low"] < row["difference"] < row["high"]
        assert row["before"] == (world.chosen == nth).sum()
        assert row["after"] == pytest.approx(row["before"] + row["difference"])
    assert rows.loc["Shop 1", "after"] == 0
    if rivals:
        assert found.elsewhere[0] == pytest.approx(
            truth[4:].sum(), abs=4 * np.sqrt(truth[4:].sum())
        )
        assert "competitors" in found.verdict
        assert rows["difference"].sum() == pytest.approx(-found.elsewhere[0])
    else:
        assert found.elsewhere is None
        assert any("No competitor is in this model" in note for note in found.notes)
        assert rows["difference"].sum() == pytest.approx(0, abs=1e-6)
        assert rows["spend_difference"].sum() == pytest.approx(0, abs=1e-3)
    assert rows.loc["Shop 1", "spend_before"] == pytest.approx(
        world.amount[world.chosen == 1].sum(), rel=1e-6
    )


@pytest.mark.parametrize("rivals", [[], RIVALS])
def test_a_new_store_takes_the_visits_that_people_would_rather_make_there(demo, rivals):
    world = World(6000, rivals=rivals)
    model = world.model(demo)
    place = (49.99, 29.99, 1500.0)
    found = what_if.with_store(model, place[0], place[1], place[2])
    there = pulls(world.people, [place])[world.who, 0] + world.noise[:, -1]
    moves = there > world.utility.max(axis=1)
    truth = np.bincount(world.chosen[moves], minlength=len(world.stores))[:4]
    rows = found.rows.set_index("store")
    assert rows["difference"].to_numpy()[:4] == pytest.approx(-truth, abs=4 * np.sqrt(truth.max()))
    new = rows.loc["new store"]
    assert new["difference"] == pytest.approx(truth.sum(), abs=4 * np.sqrt(truth.sum()))
    assert new["low"] < new["difference"] < new["high"]
    assert rows["difference"].sum() == pytest.approx(0, abs=1e-6)
    assert rows["share_of_moved"].iloc[:4].sum() == pytest.approx(1)
    words = "it cannot say: they are in no receipt" if rivals else "it cannot say new demand"
    assert words in found.verdict


def test_a_what_if_asks_for_what_it_needs(demo):
    _, model = demo
    with pytest.raises(tables.UsageError, match="the model knows S01, S02"):
        what_if.without(model, "S9")
    with pytest.raises(tables.UsageError, match="area_m2"):
        what_if.with_store(model, 48.6, 23.1)
    with pytest.raises(tables.UsageError, match="latitude is 95"):
        what_if.with_store(model, 95, 23.1, 500)


def test_no_money_is_told_where_one_customer_brings_half_of_a_stores(demo):
    world = World(600)
    amount = world.amount.copy()
    amount[np.flatnonzero(world.chosen == 2)[0]] = 1e6
    found = what_if.without(world.model(demo, amount=amount), "S0")
    assert found.rows.filter(like="spend_").isna().all(axis=None)
    assert "spend" not in found._repr_html_()
    assert found.rows["difference"].notna().all()


def test_what_is_shown_holds_neither_coordinates_nor_customers(demo):
    found, model = demo
    shown = [
        model, model.choices, what_if.without(model, "S02"),
        what_if.with_store(model, 48.62, 23.14, 900), sharing.shared(found),
    ]  # fmt: skip
    text = " ".join(one._repr_html_() for one in shown if hasattr(one, "_repr_html_"))
    text += " ".join(map(repr, shown))
    people = found.rows.limit(500).to_pandas()
    assert not any(one in text for one in people["customer_id"])
    degrees = {f"{value:.5f}" for value in [*people["latitude"], *people["longitude"]]}
    assert degrees.isdisjoint(re.findall(r"\d+\.\d{5}", text))


def test_customers_that_stores_share_are_those_who_bought_at_both(demo):
    found, _ = demo
    shared = sharing.shared(found)
    visits = found.visits.to_pandas().pivot_table("visits", "customer_id", "store_id").notna()
    names = found.own.set_index("store_id")["name"]
    assert len(shared.rows) == 10
    for row in shared.rows.itertuples():
        one, other = (visits[names[names == name].index[0]] for name in (row.store, row.other))
        assert row.both == (one & other).sum()
        assert row.share == pytest.approx((one & other).sum() / one.sum())
        assert row.share >= row.share_of_other == (one & other).sum() / other.sum()
    assert shared.rows["store"][0] in shared.verdict


def test_few_shared_customers_are_hidden_and_none_is_zero(make_shop):
    # A and B share 3, A and C none, B and C 12 of 40; who bought at C alone are 28.
    at = {"A": range(30), "B": [*range(27, 60)], "C": [*range(48, 60), *range(60, 88)]}
    lines = [f"c{n},2025-07-01,5,{store}" for store, who in at.items() for n in who]
    make_shop(
        "customer_id,latitude,longitude\n" + "".join(f"c{n},50,30\n" for n in range(88)),
        name="customers.csv",
    )
    make_shop("store_id,latitude,longitude\nA,50,30\nB,50,30.1\nC,50,30.2\n", name="stores.csv")
    shop = make_shop(
        "customer_id,purchased_at,amount,store_id\n" + "\n".join(lines),
        'name = "Three"\ncurrency = "EUR"\n',
    )
    shared = sharing.shared(homes.of_customers(shop, as_of="2025-07-01"))
    rows = shared.rows.set_index(["store", "other"])
    assert rows["state"].to_dict() == {
        ("B", "C"): "value", ("A", "B"): "hidden", ("A", "C"): "zero"
    }  # fmt: skip
    assert rows.loc[("B", "C"), "both"] == 12
    assert rows.loc[("B", "C"), "visits_share"] == pytest.approx(0.5)
    assert rows.loc[("A", "B"), ["both", "share", "share_of_other"]].isna().all()
    assert rows.loc[("A", "C"), "both"] == 0
    assert '<td class="num">–</td>' in shared._repr_html_()


def test_a_jackknife_of_means_is_the_standard_error_of_the_mean():
    values = np.array([3.0, 5.0, 4.0, 8.0, 1.0])
    without = np.array([np.delete(values, nth).mean() for nth in range(5)])
    found = exponents.jackknife(np.column_stack([without, without]))
    assert found[0] == pytest.approx(values.std(ddof=1) / np.sqrt(5))


@pytest.mark.slow
@pytest.mark.parametrize("loyal", [False, True])
def test_intervals_hold_the_truth_of_generated_worlds(loyal):
    # Who is loyal chooses once and goes there ten times: only whole customers tell something.
    rng, held, larger = np.random.default_rng(7), np.zeros(2), np.zeros(2)
    area = rng.uniform(300, 2500, 9)
    for _ in range(200):
        home, stores = rng.uniform(-5, 5, (400, 2)), rng.uniform(-5, 5, (9, 2))
        far = np.maximum(np.hypot(*(home[:, None] - stores[None]).transpose(2, 0, 1)), 0.2)
        chance = huff.probabilities(area, far)
        times = 1 if loyal else 10
        visits = rng.multinomial(times, chance) * (10 // times)
        found = exponents.find(one := of_arrays(far, visits, area), one)
        assert found.free == (0, 1)
        off = np.abs(found.best - [1, -2])
        held += off < 1.96 * found.from_customers
        larger += off < found.reach
    assert (held >= 0.90 * 200).all() and (held <= 0.99 * 200).all(), held
    assert (larger >= held).all(), larger


@pytest.mark.slow
@pytest.mark.parametrize("number", [4, 6, 10])
def test_where_stores_have_an_appeal_of_their_own_only_the_stores_tell_how_sure(number):
    rng, reached, customers = np.random.default_rng(number), 0, 0
    for _ in range(100):
        home, stores = rng.uniform(-5, 5, (800, 2)), rng.uniform(-5, 5, (number, 2))
        far = np.maximum(np.hypot(*(home[:, None] - stores[None]).transpose(2, 0, 1)), 0.2)
        area, appeal = rng.uniform(300, 2500, number), np.exp(rng.normal(0, 0.5, number))
        one = of_arrays(far, rng.multinomial(5, huff.probabilities(area * appeal, far)), area)
        found = exponents.find(one, one)
        off = abs(found.best[1] + 2)
        reached += off < found.reach[1]
        customers += off < 1.96 * found.from_customers[1]
    assert reached >= 88
    assert customers < 60


@pytest.mark.slow
def test_a_what_if_holds_the_truth_where_stores_have_an_appeal_of_their_own(demo):
    rng, opened, closed = np.random.default_rng(6), [], []
    for seed in range(40):
        corners = [49.94, 29.93], [50.04, 30.07]
        *own, new = [(*rng.uniform(*corners), rng.uniform(300, 2500)) for _ in range(7)]
        appeal = rng.normal(0, 0.4, 7)

        def utility(people, stores, appeal=appeal):
            return pulls(people, stores) + appeal[: len(stores)]

        world = World(own=own, seed=seed, utility=utility)
        model = world.model(demo)
        left = world.utility.copy()
        left[:, 0] = -np.inf
        truth = np.bincount(left.argmax(axis=1)[world.chosen == 0], minlength=6)[1:]
        rows = what_if.without(model, "S0").rows[1:]
        closed += list((rows["low"] <= truth + 1) & (truth - 1 <= rows["high"]))
        if model.beats_for_new_stores:
            row = what_if.with_store(model, new[0], new[1], new[2]).rows.iloc[-1]
            there = pulls(world.people, [new])[world.who, 0] + appeal[6] + world.noise[:, -1]
            opened.append(row["low"] <= (there > world.utility.max(axis=1)).sum() <= row["high"])
    assert len(opened) >= 20
    assert np.mean(opened) >= 0.85
    assert 0.9 <= np.mean(closed) < 1
