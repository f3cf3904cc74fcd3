import datetime as dt

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
