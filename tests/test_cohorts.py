import datetime as dt
import math
import statistics

import pytest

from crmlab import cohorts, sources
from crmlab.tables import UsageError
from tests.test_customers import random_log


def burn_in_ends(lives, at):
    """Return the day from which on a customer first seen is surely new."""
    gaps = [
        (b - a).days
        for bought in lives.values()
        for a, b in zip(bought, bought[1:], strict=False)
        if b <= at
    ]
    begin = min(bought[0] for bought in lives.values())
    return begin + dt.timedelta(max(60, math.ceil(2 * statistics.median(gaps))))


@pytest.mark.parametrize("seed", [11, 12])
def test_second_purchases_are_counted_among_those_seen_for_long_enough(make_shop, seed):
    lives, csv = random_log(seed, customers_=300)
    at = dt.date(2024, 3, 20)
    found = cohorts.activation(make_shop(csv), as_of=at, within=(7, 30))
    table = found.to_frame().set_index("cohort")
    new = {n: b for n, b in lives.items() if burn_in_ends(lives, at) <= b[0] <= at}
    assert table["customers"].sum() == len(new)
    assert found.left_out == sum(b[0] <= at for b in lives.values()) - len(new) > 0
    for month, row in table.iterrows():
        of_month = [b for b in new.values() if f"{b[0]:%Y-%m}" == month]
        assert row["customers"] == len(of_month)
        for days in (7, 30):
            seen = [b for b in of_month if (at - b[0]).days >= days]
            back = [b for b in seen if len(b) > 1 and b[1] <= at and (b[1] - b[0]).days <= days]
            share = row[f"within {days} days"]
            assert math.isnan(share) if not seen else share == pytest.approx(len(back) / len(seen))
    assert math.isnan(table.loc["2024-03", "within 30 days"])
    assert "Second purchases of new customers" in found._repr_html_()
    with pytest.raises(UsageError, match="1 or more"):
        cohorts.activation(make_shop(csv), as_of=at, within=(0, 7))


@pytest.mark.parametrize(("at", "whole"), [("2024-03-20", "2024-02"), ("2024-02-29", "2024-02")])
def test_each_share_of_the_triangle_is_that_of_the_customers_counted_one_by_one(
    make_shop, at, whole
):
    lives, csv = random_log(13, customers_=300)
    day = dt.date.fromisoformat(at)
    found = cohorts.retention(make_shop(csv), as_of=at)
    table = found.to_frame().set_index("cohort")
    sure = burn_in_ends(lives, day)
    last_older = max(b[0] for b in lives.values() if b[0] < sure)
    assert table.index[0] == f"{last_older.replace(day=1) + dt.timedelta(32):%Y-%m}"
    assert table.index[-1] == whole
    for month, row in table.iterrows():
        of_month = [b for b in lives.values() if f"{b[0]:%Y-%m}" == month]
        assert row["customers"] == len(of_month)
        year, number = map(int, month.split("-"))
        for after in [name for name in table.columns if name != "customers"]:
            place = 12 * year + number - 1 + after
            then = f"{place // 12}-{place % 12 + 1:02d}"
            back = sum(any(f"{d:%Y-%m}" == then for d in bought) for bought in of_month)
            if then > whole:
                assert math.isnan(row[after])
            else:
                assert row[after] == pytest.approx(back / len(of_month))
    assert table["customers"].sum() + found.left_out == sum(b[0] <= day for b in lives.values())


def test_all_customers_of_cdnow_are_new():
    shop = sources.open_shop("cdnow")
    for question in (cohorts.activation, cohorts.retention):
        found = question(shop, as_of="1998-06-30")
        assert found.to_frame()["customers"].to_list() == [7846, 8476, 7248]
        assert found.left_out == 0
