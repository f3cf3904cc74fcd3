import datetime as dt
import itertools
import random
import re
import xml.etree.ElementTree as ET  # noqa: S405, N817

import pandas as pd
import pytest

from crmlab import charts, cohorts, customers, inventory, reports, results, sources
from crmlab.tables import UsageError
from tests.conftest import ROOT
from tests.test_customers import random_log, stage_by_hand

NOW, THEN = dt.date(2024, 4, 20), dt.date(2024, 2, 10)
LOW_K = "[policy]\nprivacy_k = 1\n"


def log(seed, customers_=400, shuffled=0):
    """Return lives with amounts and stores, some of them returns, and the log as CSV."""
    lives, _ = random_log(seed, customers_=customers_)
    draw, lines = random.Random(seed), []
    for one, bought in lives.items():
        lines += [(one, f"{day} 10:00", draw.randrange(1, 99), f"s{draw.randrange(3)}")
                  for day in bought]  # fmt: skip
        if draw.random() < 0.3:
            lines.append((one, f"{bought[-1] + dt.timedelta(2)} 11:00", -1, "s9"))
    random.Random(shuffled).shuffle(lines)
    text = "\n".join(",".join(map(str, line)) for line in lines)
    return lives, lines, f"customer_id,purchased_at,amount,store_id\n{text}\n"


def seen(lives, at):
    return {one: [d for d in bought if d <= at] for one, bought in lives.items() if bought[0] <= at}


def by_hand(lives, lines):
    """Each customer's stage before and now, value, last store and last line, one by one."""
    rows = []
    for one, bought in seen(lives, NOW).items():
        own = [(at, amount, store) for who, at, amount, store in lines
               if who == one and at[:10] <= str(NOW)]  # fmt: skip
        last, own = bought[-1], sorted(own)
        begin = str(last - dt.timedelta(364))
        rows.append({
            "customer_id": one,
            "stage": stage_by_hand(lives, one, NOW),
            "before": stage_by_hand(lives, one, THEN) if bought[0] <= THEN else None,
            "silent": (NOW - last).days,
            "purchases": len(bought),
            "value": float(sum(amount for at, amount, _ in own if at[:10] >= begin)),
            "total": float(sum(amount for _, amount, _ in own)),
            "store_id": next(s for at, a, s in own if at[:10] == str(last) and a > 0),
            "last_was_return": own[-1][1] < 0,
            "returned_on": next((d for d in bought if d > THEN), None),
        })  # fmt: skip
    found = pd.DataFrame(rows).set_index("customer_id").sort_index()
    found["known"] = (found.stage != "lost") | (found.before.notna() & (found.before != "lost"))
    return found


@pytest.mark.parametrize("seed", [21, 22])
def test_each_customer_is_described_as_the_receipts_say(make_shop, seed):
    lives, lines, csv = log(seed)
    base = inventory.base(make_shop(csv), as_of=NOW, since=THEN)
    found = base.rows.to_pandas().set_index("customer_id").sort_index()
    wanted = by_hand(lives, lines)
    assert list(found.index) == list(wanted.index)
    for name in ("stage", "silent", "purchases", "value", "total", "store_id", "last_was_return",
                 "known"):  # fmt: skip
        assert found[name].to_list() == wanted[name].to_list(), name
    assert found.before.fillna("").to_list() == wanted.before.fillna("").to_list()
    days = [pd.to_datetime(rows.returned_on).dt.strftime("%F") for rows in (found, wanted)]
    assert days[0].fillna("").to_list() == days[1].fillna("").to_list()
    known = wanted[wanted.known].value
    place = found[found.known].place
    assert place.to_dict() == {one: int((known > known[one]).sum()) for one in known.index}
    assert set(found[found.known].of) == {len(known)}


def test_early_warning_counts_who_declines_and_who_went_by_fifths_of_value(make_shop):
    lives, lines, csv = log(23)
    base = inventory.base(make_shop(csv, LOW_K), as_of=NOW, since=THEN)
    rows = inventory.early_warning(base).to_frame().set_index("group")
    wanted = by_hand(lives, lines)
    wanted = wanted[wanted.known]
    part = [int(5 * (wanted.value > one).sum() // len(wanted)) for one in wanted.value]
    for number, (group, row) in enumerate(rows.iterrows()):
        own = wanted[[one == number for one in part]]
        slips = own[own.stage == "declining"]
        assert (row.customers, row.declining) == (len(own), len(slips)), group
        assert row["became lost"] == (own.stage == "lost").sum()
        assert row["at stake"] == pytest.approx(slips.value.sum())
    assert list(rows.index) == list(inventory.PARTS[5])
    stock = inventory.stock(base.shop, start=THEN, end=NOW)
    assert rows["became lost"].sum() == stock.bridge.set_index("what").customers["became lost"] > 0
    assert rows["declining"].sum() == stock.rows.set_index("stage")["now"]["declining"]


def test_rfm_scores_are_fifths_of_those_who_do_strictly_worse(make_shop):
    lives, lines, csv = log(24)
    base = inventory.base(make_shop(csv, LOW_K), as_of=NOW, since=THEN)
    wanted = by_hand(lives, lines)

    def score(values, one):
        return 1 + 5 * int((values < one).sum()) // len(values)

    segments = []
    for row in wanted.itertuples():
        r = score(-wanted.silent, -row.silent)
        both = score(wanted.purchases, row.purchases) + score(wanted.total, row.total)
        segments.append(next(name for name, a, b, _ in inventory.RFM if r >= a and both >= b))
    found = inventory.rfm(base).to_frame().set_index("segment")
    assert found.customers.to_dict() == pd.Series(segments).value_counts().to_dict()
    assert found.share.sum() == pytest.approx(1)
    assert len(found) >= 6


def test_the_order_of_lines_changes_nothing(make_shop):
    told = []
    for shuffled in (1, 2):
        base = inventory.base(make_shop(log(25, shuffled=shuffled)[2]), as_of=NOW, since=THEN)
        told.append([inventory.rfm(base)._repr_html_(), inventory.early_warning(base).verdict,
                     inventory.to_ring(base, n=7).to_pandas().to_csv()])  # fmt: skip
    assert told[0] == told[1]


def few(count, k=10):
    return 0 < count < k


@pytest.mark.parametrize("seed", range(31, 37))
@pytest.mark.parametrize("size", [60, 250])
def test_nothing_on_the_page_is_made_of_fewer_than_ten(make_shop, seed, size):
    shop = make_shop(log(seed, customers_=size)[2])
    base = inventory.base(shop, as_of=NOW, since=THEN)
    if stock := inventory.attempt(lambda: inventory.stock(shop, start=THEN, end=NOW)):
        counts = stock.rows.filter(["before", "now"]).to_numpy().ravel()
        assert not any(map(few, counts))
        assert (stock.bridge is None) == base.closed == ("before" not in stock.rows)
        assert base.closed or not any(map(few, stock.bridge.customers))
        # Nor can any stage be had by taking those shown from the active ones.
        active = stock.rows[stock.rows.stage != "lost"]
        assert active["now"].sum() == stock.active
    if warning := inventory.attempt(lambda: inventory.early_warning(base)):
        rows = warning.rows
        went = rows.get("became lost", rows.customers * 0)
        assert base.closed == ("became lost" not in rows)
        for counts in (
            rows.customers,
            rows.declining,
            went,
            rows.customers - rows.declining - went,
        ):
            assert not any(map(few, counts))
    if back := inventory.attempt(lambda: inventory.reactivated(base)):
        assert not any(map(few, [*back.rows["came back"], *back.rows.customers]))
    if gone := inventory.attempt(lambda: inventory.lost_valuable(base)):
        assert gone.rows["became lost"][0] == warning.rows["became lost"][0]
        assert not any(map(few, [*gone.rows["became lost"], *gone.rows.valuable]))
    for found in (cohorts.activation(shop, as_of=NOW), cohorts.retention(shop, as_of=NOW)):
        shown = found.shown()
        for _, row in shown.iterrows():
            shares = [v for v in row.iloc[2:] if v == v]
            counts = [round(share * row.customers) for share in shares]
            assert row.customers >= 10
            assert not any(few(c) or few(row.customers - c) for c in counts)
            if found.nested:
                assert not any(few(b - a) for a, b in itertools.pairwise(counts))


def test_stages_of_too_few_stand_together_and_cannot_be_found_from_the_rest(make_shop):
    gone = [f"g{n},2023-01-{1 + d},5" for n in range(15) for d in (0, 5, 10)]
    mature = [f"m{n},{dt.date(2023, 1, 1) + dt.timedelta(5 * d)},5"
              for n in range(30) for d in range(60)]  # fmt: skip
    fresh = [f"n{n},2023-10-20,5" for n in range(4)]
    csv = "customer_id,purchased_at,amount\n" + "\n".join(gone + mature + fresh) + "\n"
    stock = inventory.stock(make_shop(csv), start="2023-10-01", end="2023-10-23")
    assert dict(zip(stock.rows.stage, stock.rows.now, strict=True)) == {
        "new or mature": 34, "developing": 0, "declining": 0, "lost": 15, "reactivated": 0,
    }  # fmt: skip
    assert not any(map(few, stock.rows.now))
    assert stock.bridge is None, "4 new customers would be what is left of the lost and the active"
    assert stock.verdict.endswith("is not told: too few came, went or came back.")
    assert [tile.label for tile in stock.kpis if tile.label == "New"] == []


def test_the_reactivated_are_told_by_contact_and_the_hold_out_has_the_last_word(home):
    shop = sources.open_shop("demo")
    base = inventory.base(shop, as_of="2025-04-13", since="2025-02-28")
    found = inventory.reactivated(base)
    rows = found.to_frame().set_index("group")
    flows = customers.flows(shop, start="2025-02-28", end="2025-04-13")
    assert rows.loc["all", "came back"] == flows.bridge.customers[2]
    assert rows.loc["all", "customers"] == flows.stock.before[4]
    assert "not because of it" in found.verdict
    # The truth: the voucher raises purchases. The hold-out shows it, by lot.
    assert re.search(r"drawn by lot, .* held out came back: .* the contact did that", found.verdict)
    contacts = shop.table("contacts").to_pandas()
    lost = base.rows.filter(base.rows.before == "lost").to_pandas().set_index("customer_id")
    spring = contacts[contacts.campaign_id == "2025-spring"].set_index("customer_id")
    both = lost.join(spring, how="inner")
    returned = pd.to_datetime(both.returned_on)
    both = both[returned.isna() | (returned >= both.assigned_at.dt.normalize())]
    held = both[both.arm == "holdout"]
    assert f"{shop.numbers.number(len(held))} held out" in found.verdict
    assert f"{shop.numbers.percent((held.stage != 'lost').mean())} of" in found.verdict
    sent = pd.to_datetime(spring.sent_at).dropna()
    first = lost.join(sent, how="inner")
    returned = pd.to_datetime(first.returned_on)
    first = first[returned.isna() | (returned >= first.sent_at.dt.normalize())]
    # Nearly all of those sent something are the campaign's: of the difference nothing is told.
    assert 0 < abs(len(first) - (both.arm != "holdout").sum()) < shop.policy.privacy_k
    assert list(rows.index) == ["all"]
    rate = shop.numbers.percent((first.stage != "lost").mean(), 0)
    assert f"{rate} of those contacted came back" in found.verdict


def test_who_came_back_before_the_contact_did_not_come_back_after_it(make_shop):
    lives, _, csv = log(26)
    shop = make_shop(csv, LOW_K)
    lost = [one for one in seen(lives, THEN) if stage_by_hand(lives, one, THEN) == "lost"]
    back = [one for one in lost if stage_by_hand(lives, one, NOW) != "lost"]
    first = {one: next(d for d in lives[one] if d > THEN) for one in back}
    days = [(one, day - dt.timedelta(1)) for one, day in list(first.items())[:2]]
    days += [(one, day + dt.timedelta(1)) for one, day in list(first.items())[2:4]]
    days += [(one, NOW) for one in lost if one not in back][:3]
    rows = "".join(f"c,{one},a,{THEN},{day}\n" for one, day in days)
    shop = make_shop("campaign_id,customer_id,arm,assigned_at,sent_at\n" + rows, LOW_K,
                     "contacts.csv")  # fmt: skip
    base = inventory.base(shop, as_of=NOW, since=THEN)
    found = inventory.reactivated(base).to_frame().set_index("group")
    assert found.loc["contacted before", ["customers", "came back"]].to_list() == [5, 2]
    assert found.loc["not contacted", "came back"] == len(back) - 2


def test_valuable_customers_who_went_are_counted_by_case_return_and_store(make_shop):
    lives, lines, csv = log(27)
    make_shop(csv)
    wanted = by_hand(lives, lines)
    known = wanted[wanted.known]
    top = known[[5 * (known.value > one).sum() < len(known) for one in known.value]]
    kinds = {one: "late" if n % 2 else "loud" for n, one in enumerate(top.index[::2])}
    cases = "".join(f"k{n},{one},2024-01-0{n % 9 + 1},{kind}\nj{n},{one},2023-01-01,old\n"
                    for n, (one, kind) in enumerate(kinds.items()))  # fmt: skip
    shop = make_shop("case_id,customer_id,opened_at,kind\n" + cases, LOW_K, "cases.csv")
    base = inventory.base(shop, as_of=NOW, since=THEN)
    rows = inventory.lost_valuable(base).to_frame().set_index(["what", "value"])
    assert rows.loc[("all", "")].valuable == len(top)
    assert rows.loc[("last line", "a return")].valuable == top.last_was_return.sum()
    gone = top[top.stage == "lost"]
    assert rows.loc[("all", "")]["became lost"] == len(gone) > 1
    for store, count in gone.store_id.value_counts().items():
        assert rows.loc[("last store", store)]["became lost"] == count
    ring = inventory.to_ring(base, n=1000).to_pandas().set_index("customer_id")
    assert sorted(ring.index) == sorted(gone.index)
    for one, row in ring.iterrows():
        assert row.last_case == kinds.get(one) or (pd.isna(row.last_case) and one not in kinds)
        assert (row.spend, row.store) == (gone.value[one], gone.store_id[one])
    drawn = [set(inventory.to_ring(base, n=3, seed=seed).to_pandas().customer_id)
             for seed in (1, 1, 2, 3)]  # fmt: skip
    assert drawn[0] == drawn[1]
    assert len({frozenset(one) for one in drawn}) > 1
    assert all(len(one) == min(3, len(gone)) for one in drawn)


def test_who_the_customers_are_adds_up_and_the_unknown_are_counted(make_shop):
    lives, _, csv = log(28, customers_=600)
    make_shop(csv)
    births = {"a": "1999-04-20", "b": "1999-04-21", "c": "1950-01-01", "d": ""}
    people = list(lives)
    rows = "".join(f"{one},{births['abcd'[n % 4]]},{'fm'[n % 2]}\n"
                   for n, one in enumerate(people[:-100]))  # fmt: skip
    shop = make_shop("customer_id,birth_date,sex\n" + rows, LOW_K, "customers.csv")
    base = inventory.base(shop, as_of=NOW, since=THEN)
    found = inventory.demographics(base).to_frame().set_index(["what", "value"])
    count = {one: n for n, one in enumerate(people) if one in seen(lives, NOW)}
    old = [one for one, n in count.items() if n % 4 == 0 and n < len(people) - 100]
    assert found.loc[("age", "25 to 34")].customers == len(old)  # 25 on the day itself
    assert found.loc[("age", "25 to 34")].lost == pytest.approx(
        sum(stage_by_hand(lives, one, NOW) == "lost" for one in old) / len(old)
    )
    for what in ("age", "sex"):
        assert found.loc[what].customers.sum() == len(count)
    assert found.loc[("sex", "unknown")].customers == sum(n >= len(people) - 100
                                                          for n in count.values())  # fmt: skip
    assert (found.active + found.lost).to_list() == pytest.approx([1] * len(found))
    assert list(found.loc["age"].index) == ["under 25", "25 to 34", "65 and older", "unknown"]


BAD = {
    "one purchase each": [(f"c{n}", f"2024-0{1 + n % 4}-05") for n in range(200)],
    "all mature": [(f"c{n}", str(dt.date(2024, 1, 1) + dt.timedelta(4 * d)))
                   for n in range(40) for d in range(28)],
    "three customers": [(f"c{n}", f"2024-0{m}-0{n + 1}") for n in range(3) for m in range(1, 5)],
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_log_of_little_gives_sentences_and_no_traceback(make_shop, kind):
    text = "".join(f"{one},{day},5\n" for one, day in BAD[kind])
    shop = make_shop("customer_id,purchased_at,amount\n" + text)
    day, since = max(one[1] for one in BAD[kind]), "2024-03-01"
    base = inventory.base(shop, as_of=day, since=since)
    made = {
        "stock": inventory.attempt(lambda: inventory.stock(shop, start=since, end=day)),
        "was_lost": inventory.attempt(lambda: inventory.was_lost(shop, as_of=day)),
        **{name: inventory.attempt(lambda name=name: getattr(inventory, name)(base))
           for name in ("early_warning", "rfm", "demographics", "reactivated", "lost_valuable")},
    }  # fmt: skip
    for found in made.values():
        assert found._repr_html_().startswith("<p>")
        assert "nan" not in found._repr_html_()
    assert "no table customers" in made["demographics"].why
    assert not made["reactivated"]
    assert inventory.to_ring(base).to_pandas().empty
    for found in (cohorts.activation(shop, as_of=day), cohorts.retention(shop, as_of=day)):
        found._repr_html_()
    charts.retention(found).svg()
    if made["stock"]:
        charts.stock(made["stock"]).svg()
        if made["stock"].bridge is not None:
            charts.bridge(made["stock"]).svg()
    with pytest.raises(UsageError, match="must lie before as_of"):
        inventory.base(shop, as_of=day, since=day)


def test_words_from_the_data_are_escaped(make_shop):
    _, _, csv = log(29)
    shop = make_shop(csv.replace(",s0", ",<i>s0"), LOW_K)
    base = inventory.base(shop, as_of=NOW, since=THEN)
    text = inventory.lost_valuable(base)._repr_html_()
    assert "&lt;i&gt;s0" in text
    assert "<i>" not in text


def test_every_chart_of_the_customers_says_its_numbers_and_stays_small(home):
    shop = sources.open_shop("demo")
    base = inventory.base(shop, as_of="2025-12-31", since="2025-12-01")
    stock = inventory.stock(shop, start="2025-12-01", end="2025-12-31")
    warning, stay = inventory.early_warning(base), cohorts.retention(shop, as_of="2025-12-31")
    drawn = {charts.stock: stock, charts.bridge: stock, charts.early_warning: warning,
             charts.retention: stay}  # fmt: skip
    n = shop.numbers
    for draw, result in drawn.items():
        svg = draw(result).svg()
        assert svg == draw(result).svg()
        ET.fromstring(svg)
        assert not set(re.findall(r"#[0-9a-f]{6}(?!\))", svg)), draw.__name__
        assert len(svg) < 27_000, draw.__name__
    assert f"lost: {n.number(stock.rows.before[4])} before" in charts.stock(stock).alt
    assert f"new: {n.number(stock.bridge.customers[1])}" in charts.bridge(stock).alt
    assert f"top fifth: {warning.rows.declining[0]} of" in charts.early_warning(warning).alt
    assert "2025-11: 34% of 451 in month 1" in charts.retention(stay).alt


def test_small_parts_of_a_cell_are_merged_with_it():
    cells = pd.DataFrame({"name": list("abcd"), "n": [100, 90, 50, 40], "left": [50, 3, 20, 0]})
    kept = results.merge_small_cells(cells, label="name", customers="n", k=10, parts=["left"])
    assert kept.to_dict("records") == [
        {"name": "a", "n": 100, "left": 50},
        {"name": "other", "n": 180, "left": 23},
    ]


def test_the_page_of_a_small_shop_is_whole_and_names_nobody(project, monkeypatch):
    (project / "notebooks" / "customers.ipynb").write_bytes(
        (ROOT / "notebooks" / "customers.ipynb").read_bytes()
    )
    lives, _, csv = log(30, customers_=300)
    (project / "data" / "small" / "transactions.csv").write_text(csv)
    (project / "reports" / "reports.toml").write_text(
        '[[report]]\nid = "quick"\nnotebook = "customers"\nshop = "small"\n'
        f'parameters = {{ as_of = "{NOW}", since = "{THEN}", ring = 5 }}\n'
    )
    result = reports.run(project, reports.load(project)["quick"], progress=False)
    assert (result.state, result.code) == ("published", 0), result
    page = result.page.read_text()
    assert page.count("<svg") >= 2
    assert "no table customers" in page
    assert not [one for one in lives if re.search(rf"\b{one}\b", page)]
    [ring] = (project / "reports" / "private").rglob("to_ring.parquet")
    assert 0 < len(pd.read_parquet(ring)) <= 5
    [stages] = (project / "reports" / "private").rglob("stages.parquet")
    assert len(pd.read_parquet(stages)) == len(seen(lives, NOW))


def test_customers_who_all_spend_the_same_are_one_group(make_shop):
    lines = [f"c{n},{dt.date(2023, 1, 1) + dt.timedelta(d)},5"
             for n in range(120) for d in range(n % 40, 280, 40)]  # fmt: skip
    shop = make_shop("customer_id,purchased_at,amount\n" + "\n".join(lines) + "\n")
    base = inventory.base(shop, as_of="2023-09-30", since="2023-09-01")
    found = inventory.attempt(lambda: inventory.early_warning(base))
    assert "top fifth" not in found._repr_html_()
    if found:
        sizes = found.to_frame()["customers"]
        assert (sizes - sizes.mean()).abs().max() <= 0.25 * sizes.sum() / len(sizes)


def test_a_month_before_ends_with_the_month():
    for day, wanted in (("2025-12-31", "2025-11-30"), ("2024-03-31", "2024-02-29"),
                        ("2025-12-15", "2025-11-15"), ("2025-02-28", "2025-01-31")):  # fmt: skip
        assert str(inventory.month_before(day)) == wanted


def test_the_summary_warns_where_the_lost_come_back():
    back, gone = (customers.LostCheck(dt.date(2024, 1, 1), 365, 100, n, 4, 9) for n in (40, 10))
    assert back.caution.startswith("Read lost as silent for long: 40% of those")
    assert gone.caution == inventory.LeftOut("too short a log").caution == ""
