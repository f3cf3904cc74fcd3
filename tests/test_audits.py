import duckdb
import pytest

from crmlab import audits, sources, uplift
from crmlab.tables import DataError, UsageError

END = "2025-12-31"


@pytest.fixture(scope="module")
def shop(home):
    return sources.open_shop(home / "data" / "demo" / "shop.toml")


@pytest.fixture(scope="module")
def year():
    return audits.period(as_of=END)


def ask(home, query):
    return duckdb.sql(query.format(data=home / "data" / "demo")).fetchall()


def test_how_often_customers_were_contacted_is_what_the_contacts_say(shop, year, home):
    told = audits.frequency(shop, year)
    counted = ask(home, """
        select times, count(*) from (
            select customer_id, count(sent_at) as times from '{data}/contacts.parquet'
            where arm <> 'holdout' group by 1)
        where times > 0 group by 1""")  # fmt: skip
    rows = dict(told.rows[["contacts", "customers"]].itertuples(index=False))
    assert {int(times): n for times, n in rows.items() if times != "0"} == dict(counted)
    assert told.rows["share"].sum() == pytest.approx(1)
    assert f"{sum(n for _, n in counted):,} of" in told.verdict


def test_reach_and_overlap_count_each_customer_once(shop, year, home):
    told = audits.reach(shop, year).rows.groupby("channel")["customers"].sum()
    counted = ask(home, """
        select c.channel, count(distinct s.customer_id)
        from '{data}/contacts.parquet' s join '{data}/campaigns.parquet' c using (campaign_id)
        where arm <> 'holdout' group by 1""")  # fmt: skip
    assert told.to_dict() == dict(counted)
    [(both,)] = ask(home, """
        select count(*) from '{data}/contacts.parquet' a join '{data}/contacts.parquet' b
        using (customer_id) where a.campaign_id < b.campaign_id
        and a.arm <> 'holdout' and b.arm <> 'holdout'""")  # fmt: skip
    assert audits.overlaps(shop, year).rows["both"].tolist() == [both]


def test_the_history_tells_what_each_campaign_earned_or_that_nobody_knows(shop):
    told = audits.history(shop, as_of=END)
    lift = uplift.measure(shop, campaign_id="2025-spring", as_of=END)
    spring = told.rows.set_index("campaign").loc["Frühlingsgruß"]
    assert spring["profit"] == pytest.approx(lift.earned["profit"].sum())
    assert spring["change"] == pytest.approx(lift.primary["relative"].iloc[0])
    autumn = told.rows.set_index("campaign").loc["Осінній лист"]
    assert autumn["verdict"] == "no hold-out" and autumn["profit"] != autumn["profit"]
    assert "1 arm of a campaign could be measured against a hold-out; of 1 it is" in told.verdict
    early = audits.history(shop, as_of="2025-03-20").rows
    assert early["verdict"].tolist() == ["not over"]


def test_the_newest_campaign_is_one_that_can_be_measured(shop):
    assert audits.newest(shop, as_of=END) == "2025-spring"
    with pytest.raises(DataError, match="No campaign of shop 'demo' was assigned by 2024-01-01"):
        audits.newest(shop, as_of="2024-01-01")


def test_a_shop_that_contacted_nobody_says_so(make_shop, shop):
    empty = make_shop("customer_id,purchased_at,amount\na,2024-06-01,5\nb,2024-06-02,2\n")
    days = audits.period(as_of="2024-06-02")
    for ask_for in (audits.frequency, audits.reach, audits.overlaps):
        with pytest.raises(DataError, match="has no contacts"):
            ask_for(empty, days)
    with pytest.raises(DataError, match="no campaigns that contacted anybody"):
        audits.history(empty, as_of="2024-06-02")
    quiet = audits.period(as_of="2024-01-31", since="2024-01-01")
    with pytest.raises(DataError, match="sent nothing from 2024-01-01 to 2024-01-31"):
        audits.frequency(shop, quiet)
    with pytest.raises(UsageError, match="must not lie after"):
        audits.period(as_of="2024-01-31", since="2024-02-01")
