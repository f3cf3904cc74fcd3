import datetime as dt
import math
import statistics

import pytest

from crmlab import customers, sources
from crmlab.tables import DataError, UsageError

LOG = """customer_id,purchased_at,amount
a,2024-01-01 09:00,10
a,2024-01-01 17:00,5
a,2024-01-11,20
a,2024-01-21,40
a,2024-01-31,99
b,2024-01-05,8
c,2024-01-06,8
c,2024-01-06,-8
d,2024-01-07,9
d,2024-01-09,-3
,2024-01-08,70
"""


def summarise(shop, as_of="2024-01-30"):
    found = customers.summary(shop, as_of=as_of).order_by("customer_id").to_pyarrow().to_pylist()
    return {row["customer_id"]: row for row in found}


def test_a_customers_lines_of_one_day_are_one_purchase_and_the_first_is_no_repeat(make_shop):
    a = summarise(make_shop(LOG))["a"]
    assert (a["frequency"], a["recency"], a["T"], a["monetary_value"]) == (2, 20, 29, 30.0)
    assert (a["first_purchase"], a["last_purchase"]) == (dt.date(2024, 1, 1), dt.date(2024, 1, 21))


def test_as_of_is_the_whole_day(make_shop):
    assert summarise(make_shop(LOG), "2024-01-31")["a"]["frequency"] == 3


def test_a_one_time_buyer_has_no_monetary_value(make_shop):
    b = summarise(make_shop(LOG))["b"]
    assert (b["frequency"], b["recency"], b["T"], b["monetary_value"]) == (0, 0, 25, None)


def test_days_that_net_to_nothing_or_less_are_no_purchases(make_shop):
    found = summarise(make_shop(LOG))
    assert set(found) == {"a", "b", "d"}
    assert found["d"]["frequency"] == 0
    counted = summarise(make_shop(LOG, '[policy]\nzero_value_purchases = "count"\n'))
    assert set(counted) == {"a", "b", "c", "d"}


def test_customers_of_cdnow_and_their_purchase_days_are_as_published(home):
    shop = sources.open_shop("cdnow")
    summary = customers.summary(shop, as_of="1998-06-30")
    found = summary.aggregate(n=summary.count(), repeat=summary.frequency.sum())
    assert found.to_pyarrow().to_pylist() == [{"n": 23570, "repeat": 67591 - 23570}]


def test_a_summary_is_the_same_however_often_it_is_made(sample):
    one = customers.summary(sample(), as_of="1998-06-30").order_by("customer_id").to_pandas()
    two = customers.summary(sample(), as_of="1998-06-30").order_by("customer_id").to_pandas()
    assert one.equals(two)


def test_as_of_before_the_first_purchase_is_an_error_in_words(make_shop):
    with pytest.raises(DataError, match=r"as_of 2023-12-31 is before the first purchase .*2024-01"):
        customers.summary(make_shop(LOG), as_of="2023-12-31")


def test_as_of_that_is_no_date_is_an_error_in_words(make_shop):
    with pytest.raises(UsageError, match="as_of is '31.12.2023'; it must be a date such as"):
        customers.summary(make_shop(LOG), as_of="31.12.2023")


def test_as_of_long_after_the_log_is_an_error_in_words(make_shop):
    assert summarise(make_shop(LOG), "2024-02-07")["a"]["T"] == 37
    with pytest.raises(
        DataError, match=r"as_of 2024-02-08 is after the last purchase .*2024-01-31"
    ):
        customers.summary(make_shop(LOG), as_of="2024-02-08")


def random_log(seed, customers_=120, days=500):
    """Return the purchase days of each customer, and the log as CSV."""
    import random

    draw, begin = random.Random(seed), dt.date(2023, 1, 1)
    lives = {}
    for number in range(customers_):
        day, gap, bought = draw.randrange(days), draw.choice([5, 30, 90]), set()
        while day < days and draw.random() > 0.12:
            bought.add(begin + dt.timedelta(day))
            long = 12 if draw.random() < 0.1 else 1
            day += max(1, round(draw.expovariate(1 / gap))) * long
        if bought:
            lives[f"c{number:03d}"] = sorted(bought)
    lines = [f"{one},{day},5" for one, bought in lives.items() for day in bought]
    return lives, "customer_id,purchased_at,amount\n" + "\n".join(lines) + "\n"


def stage_by_hand(lives, one, at, lost=4, declining=2, mature=5):
    """The definition, read customer by customer and purchase by purchase."""
    seen = {name: [day for day in bought if day <= at] for name, bought in lives.items()}
    gaps = {n: [(b - a).days for a, b in zip(d, d[1:], strict=False)] for n, d in seen.items()}
    shops = statistics.median(sum(g) / len(g) for g in gaps.values() if g)
    pooled = statistics.median(gap for g in gaps.values() for gap in g)
    begin = min(day for bought in seen.values() for day in bought)
    days, own = seen[one], gaps[one]
    usual = (2 * shops + sum(own)) / (2 + len(own))
    silence = (at - days[-1]).days / usual
    backs = [
        place + 1
        for place, gap in enumerate(own)
        if gap / ((2 * shops + sum(own[:place])) / (2 + place)) > lost
    ]
    if silence > lost:
        return "lost"
    if backs and len(days) - backs[-1] < 3 and (at - days[backs[-1]]).days <= 2 * usual:
        return "reactivated"
    if silence > declining:
        return "declining"
    older = days[0] < begin + dt.timedelta(max(60, math.ceil(2 * pooled)))
    if len(days) == 1 and not older:
        return "new"
    return "developing" if len(days) < mature else "mature"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_each_customer_is_in_the_stage_that_the_definition_says(make_shop, seed):
    lives, csv = random_log(seed)
    shop = make_shop(csv)
    met = set()
    for at in (dt.date(2023, 4, 10), dt.date(2023, 9, 30), dt.date(2024, 5, 1)):
        found = customers.stages(shop, as_of=at).to_pandas().set_index("customer_id")["stage"]
        wanted = {one: stage_by_hand(lives, one, at) for one in lives if lives[one][0] <= at}
        assert found.to_dict() == wanted
        met |= set(found)
    assert met == set(customers.STAGES)


def test_the_shop_sets_the_thresholds_of_the_stages(make_shop):
    lives, csv = random_log(4)
    policy = "[policy]\nlost_after_gaps = 7\ndeclining_after_gaps = 3\nmature_purchases = 8\n"
    at = dt.date(2024, 4, 1)
    rows = customers.stages(make_shop(csv, policy), as_of=at).to_pandas()
    for row in rows.itertuples():
        assert row.stage == stage_by_hand(lives, row.customer_id, at, 7, 3, 8)
    with pytest.raises(DataError, match="lost_after_gaps is 3; it must be 4 or more"):
        make_shop(csv, "[policy]\nlost_after_gaps = 3\ndeclining_after_gaps = 3\n")


def test_what_comes_later_changes_no_stage(make_shop):
    _, csv = random_log(5)
    at = dt.date(2023, 12, 31)
    head, *lines = csv.splitlines()
    known = [line for line in lines if line.split(",")[1] <= str(at)]
    whole, cut = (
        customers.stages(make_shop("\n".join([head, *part]) + "\n"), as_of=at)
        .order_by("customer_id")
        .to_pandas()
        for part in (lines, known)
    )
    assert len(known) < len(lines)
    assert whole.equals(cut)


@pytest.mark.parametrize("seed", [6, 7])
def test_stock_and_moves_add_up(make_shop, seed):
    lives, csv = random_log(seed)
    shop, start, end = make_shop(csv), dt.date(2023, 11, 30), dt.date(2024, 3, 31)
    flows = customers.flows(shop, start=start, end=end)
    matrix, stock = flows.to_frame(), flows.stock.set_index("stage")
    for date, column in ((start, "before"), (end, "now")):
        counted = customers.stages(shop, as_of=date).to_pandas()["stage"].value_counts()
        assert stock[column].to_dict() == {s: int(counted.get(s, 0)) for s in customers.STAGES}
    assert (matrix.drop(index=customers.NOT_YET).sum(axis=1) == stock["before"]).all()
    assert (matrix.sum() == stock["now"]).all()
    new = sum(start < bought[0] <= end for bought in lives.values())
    assert matrix.loc[customers.NOT_YET].sum() == new > 0
    assert (stock["now"] - stock["before"] == stock["change"]).all()
    steps = flows.bridge.set_index("what")["customers"]
    assert steps["before"] == stock["before"].drop("lost").sum()
    assert steps["now"] == stock["now"].drop("lost").sum()
    assert (
        steps["before"] + steps["new"] + steps["came back"] - steps["became lost"] == steps["now"]
    )
    assert min(steps) > 0
    assert flows._repr_html_().count("<tr") == 8
    with pytest.raises(DataError, match="must lie before"):
        customers.flows(shop, start=end, end=start)


def test_the_lost_who_came_back_are_counted(make_shop):
    lives, csv = random_log(8, customers_=400)
    shop, last, days = make_shop(csv), dt.date(2024, 5, 1), 200
    check = customers.lost_check(shop, as_of=last, days=days)
    then = last - dt.timedelta(days)
    lost = [
        one
        for one, bought in lives.items()
        if bought[0] <= then and stage_by_hand(lives, one, then) == "lost"
    ]
    back = sum(any(then < day <= last for day in lives[one]) for one in lost)
    assert (check.lost, check.came_back) == (len(lost), back)
    assert 0.15 < check.share < 1
    policy = f"[policy]\nlost_after_gaps = {check.enough}\n"
    assert customers.lost_check(make_shop(csv, policy), as_of=last, days=days).share <= 0.15
    assert f"lost_after_gaps = {check.enough}" in check.verdict


def test_a_log_of_returns_alone_has_no_customers_and_says_so(make_shop):
    shop = make_shop("customer_id,purchased_at,amount\na,2024-01-01,-5\n,2024-03-01,5\n")
    for ask in (customers.summary, customers.stages):
        with pytest.raises(DataError, match="No customer of .* has bought anything by 2024-03-01"):
            ask(shop, as_of="2024-03-01")


def test_a_shop_without_repeaters_has_no_rhythm_and_nobody_is_late(make_shop):
    lines = "".join(f"c{n},2024-{1 + n % 9:02d}-05,5\n" for n in range(50))
    shop = make_shop("customer_id,purchased_at,amount\n" + lines)
    rows = customers.stages(shop, as_of="2024-09-10").to_pandas()
    assert set(rows["stage"]) == {"new", "developing"}  # the earliest may be older than the log
    assert not rows["own_rhythm"].any()
    assert customers.flows(shop, start="2024-08-10", end="2024-09-10").usual_gap is None
