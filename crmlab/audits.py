"""How often customers are contacted, by which channel, and what each campaign earned."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crmlab import customers, ledgers, lifts, results, tables, trials, uplift, verdicts
from crmlab.ledgers import HOLDOUT
from crmlab.stocks import Table

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.sources import Shop

# From so many contacts on customers are counted together.
MOST = 5
HISTORY = ("campaign", "verdict", "profit", "outcome", "change", "low", "high", "since",
           "channel", "contacted", "held out")  # fmt: skip


@dataclass(frozen=True)
class Period:
    """The days that an audit looks at, both included."""

    since: dt.date
    as_of: dt.date


def _sent(shop: Shop, period: Period) -> ir.Table:
    """Return what was sent to whom in a period; what is not known to have been sent, as planned."""
    import ibis

    rows = ledgers.contacts(shop)
    if rows is None:
        raise tables.DataError(f"Shop '{shop.id}' has no contacts, in a table or in the ledger.")
    rows = rows.filter(rows.arm != HOLDOUT)
    rows = rows.mutate(on=rows.sent_at.date().fill_null(rows.window_from))
    rows = rows.filter(
        rows["on"] >= ibis.literal(period.since), rows["on"] <= ibis.literal(period.as_of)
    )
    rows = shop.landed(
        rows.select("customer_id", "campaign_id", channel=rows.channel.fill_null("unknown")), "sent"
    )
    if not rows.count().to_pyarrow().as_py():
        raise tables.DataError(
            f"Shop '{shop.id}' sent nothing from {period.since} to {period.as_of}."
        )
    return rows


def period(*, as_of: str | dt.date, since: str | dt.date = "") -> Period:
    """Return the days to look at: by default the year up to `as_of`."""
    last = tables.day(as_of)
    first = tables.day(since, name="since") if since else last - dt.timedelta(364)
    if first > last:
        raise tables.UsageError(f"since {first} must not lie after as_of {last}.")
    return Period(first, last)


def frequency(shop: Shop, days: Period) -> Table:
    """Count customers by how often they were contacted.

    Returns
    -------
    Table, one row per number of contacts: contacts; customers; share, of all who ever bought or
    were contacted. Raises `DataError` if nothing was sent.
    """
    sent, k, n = _sent(shop, days), shop.policy.privacy_k, shop.numbers
    stages = customers.stages(shop, as_of=days.as_of).select("customer_id")
    everybody = stages.union(sent.select("customer_id"), distinct=True)
    each = sent.group_by(who="customer_id").aggregate(times=sent.count())
    both = everybody.left_join(each, everybody.customer_id == each.who)
    times = both.times.fill_null(0).clip(upper=MOST)
    counted = both.group_by(times=times).aggregate(customers=both.count())
    found = counted.order_by("times").to_pandas()
    found["contacts"] = [f"{t} or more" if t == MOST else str(t) for t in found["times"]]
    whole = int(found["customers"].sum())
    told = results.merge_small_cells(
        found[["contacts", "customers"]], label="contacts", customers="customers", k=k
    )
    told["share"] = told["customers"] / whole
    in_all, reached = sent.count().to_pyarrow().as_py(), whole - _none(found)
    verdict = ""
    if not results.few(reached, k) and not results.few(whole - reached, k):
        verdict = (
            f"From {n.day(days.since)} to {n.day(days.as_of)} {n.number(reached)} of "
            f"{n.number(whole)} customers were contacted, {n.number(in_all / reached, 1)} times "
            "each on average."
        )
    return Table("How often customers were contacted", told, verdict, n, (), ("share",))


def _none(found: pd.DataFrame) -> int:
    return int(found.loc[found["times"] == 0, "customers"].sum())


def reach(shop: Shop, days: Period) -> Table:
    """Tell who was reached by which channel, and how often, by life stage at the period's end.

    Returns
    -------
    Table, one row per stage and channel: stage; channel; customers reached; contacts each
    """
    import pandas as pd

    sent, k = _sent(shop, days), shop.policy.privacy_k
    stages = customers.stages(shop, as_of=days.as_of).select(who="customer_id", stage="stage")
    rows = sent.left_join(stages, sent.customer_id == stages.who)
    rows = rows.mutate(stage=rows.stage.fill_null("never bought"))
    counted = rows.group_by("stage", "channel").aggregate(
        customers=rows.customer_id.nunique(), contacts=rows.count()
    )
    [all_of_them] = rows.aggregate(n=rows.customer_id.nunique()).to_pyarrow().to_pylist()
    each = rows.group_by("channel").aggregate(n=rows.customer_id.nunique()).to_pandas()["n"]
    if results.few(int(each.sum()) - all_of_them["n"], k):
        raise tables.DataError("Too few were reached by two channels to tell of each channel.")
    found, parts = counted.order_by("channel", "stage").to_pandas(), []
    for channel, some in found.groupby("channel"):
        told = results.merge_small_cells(
            some[["stage", "customers", "contacts"]], label="stage", customers="customers", k=k
        )
        parts.append(told.assign(channel=channel))
    rows_told = pd.concat(parts, ignore_index=True)
    rows_told["contacts each"] = rows_told.pop("contacts") / rows_told["customers"]
    rows_told = rows_told[["channel", "stage", "customers", "contacts each"]]
    each = rows_told["contacts each"]
    rows_told["contacts each"] = [shop.numbers.number(one, 2) for one in each]
    return Table("Who was reached, by channel", rows_told, "", shop.numbers)


def overlaps(shop: Shop, days: Period) -> Table:
    """Count the customers whom two campaigns both contacted, pair by pair.

    Table, one row per pair: campaign; other; both; share, of those in the smaller of the two.
    Raises `DataError` if there were no two campaigns.
    """
    sent, k, n = _sent(shop, days), shop.policy.privacy_k, shop.numbers
    one = sent.select("customer_id", campaign="campaign_id").distinct()
    two = one.rename(who="customer_id", other="campaign")
    pairs = one.join(two, (one.customer_id == two.who) & (one.campaign < two.other))
    counted = pairs.group_by("campaign", "other").aggregate(both=pairs.count())
    sizes = one.group_by("campaign").aggregate(n=one.count()).to_pandas()
    size = dict(zip(sizes["campaign"], sizes["n"], strict=True))
    found = counted.order_by("campaign", "other").to_pandas()
    if len(size) < 2:
        raise tables.DataError(f"There were no two campaigns from {days.since} to {days.as_of}.")
    smaller = [
        min(size[a], size[b]) for a, b in zip(found["campaign"], found["other"], strict=True)
    ]
    told = [
        not any(results.few(count, k) for count in (both, size[a] - both, size[b] - both))
        for a, b, both in found.itertuples(index=False)
    ]
    found["share"] = found["both"] / smaller if len(found) else []
    verdict = "" if len(found) else "No customer was contacted by two campaigns."
    return Table("Whom two campaigns contacted", found[told].reset_index(drop=True), verdict, n, (),
                 ("share",))  # fmt: skip


def history(
    shop: Shop, *, as_of: str | dt.date, margin: float | None = None,
    measured: Sequence[verdicts.Lift] = (), progress: Callable[[str], None] | None = None,
) -> Table:  # fmt: skip
    """Tell what each campaign changed and earned, the newest first; what cannot be told, why.

    Parameters
    ----------
    measured : campaigns that are measured already, with the same margin

    Returns
    -------
    Table, one row per arm of a campaign assigned by `as_of`: campaign, and arm of several; verdict:
    earned, lost, not proven, no hold-out, not over, or cannot say; profit in shop currency;
    outcome, the primary one; change in percent of those held out, low, high; since; channel;
    contacted; held out
    """
    import pandas as pd

    day, rows = tables.day(as_of), []
    contacts = ledgers.contacts(shop)
    if contacts is None:
        raise tables.DataError(f"Shop '{shop.id}' has no campaigns that contacted anybody.")
    begun = contacts.group_by("campaign_id").aggregate(since=contacts.window_from.min())
    found = begun.to_pandas()
    found = found[pd.to_datetime(found["since"]).dt.date <= day]
    known = ledgers.campaigns(shop)
    known_lifts = {lift.trial.campaign_id: lift for lift in measured}
    for row in found.sort_values(["since", "campaign_id"], ascending=[False, True]).itertuples():
        if progress:
            progress(f"Measuring {row.campaign_id} ...")
        about = {
            "campaign": known.get(row.campaign_id, {}).get("name") or row.campaign_id,
            "since": shop.numbers.day(pd.Timestamp(row.since).date()),
            "channel": known.get(row.campaign_id, {}).get("channel") or "",
        }
        try:
            lift = known_lifts.get(row.campaign_id) or uplift.measure(
                shop, campaign_id=row.campaign_id, as_of=day, margin=margin
            )
        except tables.DataError as error:
            why = "no hold-out" if "no hold-out" in str(error) else "cannot say"
            rows.append({**about, "verdict": why})
            continue
        for one in _told(lift):
            arm = one.pop("arm")
            rows.append({**about, **one, "campaign": f"{about['campaign']}{arm}"})
    frame = pd.DataFrame(rows, columns=list(HISTORY))
    frame = frame.drop(columns=[name for name in ("channel",) if not any(frame[name])])
    proven = frame[frame["verdict"].isin(["earned", "lost"])]
    said = ""
    if frame["profit"].notna().any():
        n, tried = shop.numbers, int(frame["profit"].notna().sum())
        said = (
            f"{n.number(tried)} arm{'s' * (tried > 1)} of a campaign could be measured against a "
            f"hold-out; of {n.number(len(proven))} it is proven that money was earned or lost, "
            f"{n.short_money(proven['profit'].sum())} after costs."
        )
    return Table(
        "What each campaign changed and earned", frame, said, shop.numbers, ("profit",),
        ("change", "low", "high"),
    )  # fmt: skip


def newest(shop: Shop, *, as_of: str | dt.date) -> str:
    """Return the newest campaign that can be measured, else the newest of all.

    That is one whose days are over, with a hold-out drawn by lot and arms that are large enough.
    """
    day, contacts = tables.day(as_of), ledgers.contacts(shop)
    if contacts is None:
        raise tables.DataError(f"Shop '{shop.id}' has no campaigns that contacted anybody.")
    begun = contacts.group_by("campaign_id").aggregate(since=contacts.assigned_at.min())
    rows = [row for row in begun.to_pyarrow().to_pylist() if row["since"].date() <= day]
    rows.sort(key=lambda row: (row["since"], row["campaign_id"]), reverse=True)
    if not rows:
        raise tables.DataError(f"No campaign of shop '{shop.id}' was assigned by {day}.")
    for row in rows:
        with suppress(tables.DataError):
            found = trials.find(
                shop, row["campaign_id"], as_of=day, window_days=None, outcome="",
                control=HOLDOUT, looks=None,
            )  # fmt: skip
            if found.complete:
                return str(row["campaign_id"])
    return str(rows[0]["campaign_id"])


def _told(lift: verdicts.Lift) -> Sequence[dict[str, Any]]:
    """Return what may be told of each arm of a campaign."""
    rows = []
    money = {} if lift.earned is None else {row.arm: row for row in lift.earned.itertuples()}
    for row in lift.primary.itertuples():
        arm = f", {row.arm}" if len(lift.primary) > 1 else ""
        one = {
            "arm": arm,
            "contacted": float(row.n),
            "held out": float(row.n_holdout),
            "outcome": row.outcome,
        }
        if not lift.trial.complete:
            rows.append({**one, "verdict": "not over"})
        elif not lift.sound or not lift.tellable or lift.dominated:
            rows.append({**one, "verdict": "cannot say"})
        else:
            _, low, high = lifts.best(row)
            proof = "raised" if low > 0 else "lowered" if high < 0 else "not proven"
            paid = money.get(row.arm)
            rows.append(
                {**one, "change": row.relative, "low": row.relative_low, "high": row.relative_high,
                 "profit": paid.profit if paid else float("nan"),
                 "verdict": paid.verdict if paid else proof}
            )  # fmt: skip
    return rows
