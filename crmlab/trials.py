"""A campaign as it was drawn: who was in which arm, what counts and since when, what it cost."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from crmlab import arms, effects, ledgers, outcomes, purchases, tables
from crmlab.ledgers import HOLDOUT

if TYPE_CHECKING:
    import ibis.expr.types as ir

    from crmlab.sources import Shop

# Where nobody said how many days count.
USUAL_DAYS = 28
EVERYBODY = "all campaigns"


@dataclass(frozen=True, eq=False)
class Trial:
    """One comparison drawn by lot.

    `customers`, a local ibis table, one row per customer: customer_id, arm, stratum, window_from,
    the first day that counts, sent, contact_cost and offer_cost, and the column named by `unit`
    where households were drawn. `sizes` and `contacts`: arm -> customers, and those sent
    something. `mismatch`: chi-squared and p of the sizes against what was planned.
    """

    campaign_id: str
    name: str
    customers: ir.Table = field(repr=False)
    sizes: Mapping[str, int]
    contacts: Mapping[str, int]
    primary: str
    days: int
    as_of: dt.date
    first_from: dt.date
    last_from: dt.date
    looks: int | None
    mismatch: tuple[float, float]
    fixed_cost: float
    unit: str | None
    cautions: tuple[str, ...]

    @property
    def contacted(self) -> int:
        """How many were to be contacted."""
        return sum(n for arm, n in self.sizes.items() if arm != HOLDOUT)

    @property
    def ends_on(self) -> dt.date:
        """The last day that counts."""
        return self.last_from + dt.timedelta(self.days - 1)

    @property
    def complete(self) -> bool:
        """Whether all days that count are over."""
        return self.ends_on <= self.as_of


def find(
    shop: Shop, campaign_id: str, *, as_of: dt.date, window_days: int | None, outcome: str,
    control: str, looks: int | None,
) -> Trial:  # fmt: skip
    """Return a campaign as it was drawn; raise `DataError` where it cannot be measured."""
    purchases.check_date(shop, as_of)
    for what, days in (("window_days", window_days), ("looks", looks)):
        if days is not None and (type(days) is not int or not 0 <= days <= 3660):
            raise tables.UsageError(f"{what} is {days!r}; it must be a whole number up to 3660.")
    if outcome and outcome not in outcomes.OUTCOMES:
        raise tables.UsageError(
            f"outcome is {outcome!r}; it must be one of {', '.join(outcomes.OUTCOMES)}."
            + tables.did_you_mean(outcome, outcomes.OUTCOMES)
        )
    if control == "universal":
        return _universal(shop, as_of, window_days, outcome, looks)
    if control != HOLDOUT:
        raise tables.UsageError(f"control is {control!r}; it must be 'holdout' or 'universal'.")
    known, rows = assigned(shop, campaign_id, as_of)
    cautions: list[str] = []
    days, primary = _asked(known, window_days, outcome, cautions)
    rows = _over(_of_the_lot(rows, cautions), days, as_of, looks, cautions)
    sizes, sent = _sizes(rows)
    _check_arms(shop, campaign_id, known, rows, sizes, sent)
    _caution_of_sends(rows, sizes, sent, cautions)
    if not any(sent.values()):
        cautions.append("When messages were sent is not known: all are taken as sent as planned.")
    if known.get("randomised") is None:
        cautions.append("Nobody says that the arms were drawn by lot; if not, this is no proof.")
    rows = _with_costs(rows, known, any(sent.values()), cautions)
    unit = None
    if known.get("planned", {}).get("campaign", {}).get("by_household"):
        rows, unit = _with_homes(shop, rows), "household"
    first, last = _from(rows)
    return Trial(
        campaign_id=campaign_id, name=known.get("name") or campaign_id,
        customers=shop.landed(rows, "trial"), sizes=sizes,
        contacts=sent if any(sent.values()) else {a: n for a, n in sizes.items() if a != HOLDOUT},
        primary=primary, days=days, as_of=as_of, first_from=first, last_from=last, looks=looks,
        mismatch=_mismatch(known, _units(rows, unit, sizes)), unit=unit,
        fixed_cost=float(known.get("fixed_cost") or 0),
        cautions=tuple(cautions),
    )  # fmt: skip


def assigned(shop: Shop, campaign_id: str, as_of: dt.date) -> tuple[dict[str, Any], ir.Table]:
    """Return what is known of a campaign, and its customers with an arm by that day."""
    import ibis

    known, rows = ledgers.campaigns(shop), ledgers.contacts(shop)
    there = sorted(known)
    if rows is not None:
        ids = rows.select("campaign_id").distinct().order_by("campaign_id")
        there = sorted({*there, *ids.campaign_id.to_pyarrow().to_pylist()})
    if not campaign_id:
        raise tables.UsageError(f"Say which campaign: {', '.join(there[:20]) or 'there is none'}.")
    if not isinstance(campaign_id, str) or campaign_id not in there:
        names = ", ".join(there[:20]) or "none"
        raise tables.UsageError(
            f"Shop '{shop.id}' has no campaign {campaign_id!r}; it has {names}."
            + tables.did_you_mean(str(campaign_id), there)
        )
    name = f"Campaign '{campaign_id}'"
    if rows is None:
        raise tables.DataError(f"{name} was never assigned: nobody was given an arm.")
    rows = rows.filter(rows.campaign_id == campaign_id)
    drawn = rows.filter(rows.assigned_at.date() <= ibis.literal(as_of + dt.timedelta(1)))
    if not drawn.count().to_pyarrow().as_py():
        later = rows.assigned_at.min().to_pyarrow().as_py()
        when = f"until {later:%Y-%m-%d}, after as_of {as_of}" if later else "to anybody"
        raise tables.DataError(f"{name} was never assigned: no arm was given {when}.")
    return known.get(campaign_id, {}), drawn


def _of_the_lot(rows: ir.Table, cautions: list[str]) -> ir.Table:
    """Leave out those whom the shop's table has in a campaign of the ledger, and no lot drew."""
    if rows.filter(~rows.drawn).count().to_pyarrow().as_py():
        cautions.append(
            "The table contacts has customers in this campaign whom the ledger never drew: they "
            "are left out."
        )
    return rows.filter(rows.drawn)


def _over(
    rows: ir.Table, days: int, as_of: dt.date, looks: int | None, cautions: list[str]
) -> ir.Table:
    """Leave out waves whose days are not over, if there are others and nobody asks for a look."""
    import ibis

    over = rows.window_from <= ibis.literal(as_of - dt.timedelta(days - 1))
    [n] = rows.aggregate(over=rows.count(where=over), all=rows.count()).to_pyarrow().to_pylist()
    if looks is not None or n["over"] in (0, n["all"]):
        return rows
    cautions.append("Later waves, whose days are not over, are not counted yet.")
    return rows.filter(over)


def _caution_of_sends(
    rows: ir.Table, sizes: Mapping[str, int], sent: Mapping[str, int], cautions: list[str]
) -> None:
    """Say where what was sent is not what was drawn."""
    if rows.filter(rows.arm == HOLDOUT, rows.sent_at.notnull()).count().to_pyarrow().as_py():
        cautions.append(
            "Some of those held out got the message all the same: the effect is larger than told."
        )
    unsent = sum(sizes[arm] - n for arm, n in sent.items())
    if any(sent.values()) and unsent > 0.1 * sum(sizes[arm] for arm in sent):
        cautions.append(
            "More than a tenth of those to be contacted were never sent anything: the effect on "
            "those who were is larger than told."
        )


def _units(rows: ir.Table, unit: str | None, sizes: Mapping[str, int]) -> Mapping[str, int]:
    """Return how many were drawn in each arm: customers, or households."""
    if unit is None:
        return sizes
    counted = rows.group_by("arm").aggregate(n=rows[unit].nunique())
    return {row["arm"]: row["n"] for row in counted.to_pyarrow().to_pylist()}


def _sizes(rows: ir.Table) -> tuple[dict[str, int], dict[str, int]]:
    counted = rows.group_by("arm").aggregate(n=rows.count(), sent=rows.sent_at.count())
    found = counted.order_by("arm").to_pyarrow().to_pylist()
    return (
        {row["arm"]: row["n"] for row in found},
        {row["arm"]: row["sent"] for row in found if row["arm"] != HOLDOUT},
    )


def _check_arms(
    shop: Shop, campaign_id: str, known: Mapping[str, Any], rows: ir.Table,
    sizes: Mapping[str, int], sent: Mapping[str, int],
) -> None:  # fmt: skip
    """Refuse what no lot has drawn, or nobody has sent."""
    name, k = f"Campaign '{campaign_id}'", shop.policy.privacy_k
    if known.get("randomised") is False or HOLDOUT not in sizes:
        why = (
            "nobody was held out"
            if HOLDOUT not in sizes
            else "who was held out was no lot's choice"
        )
        raise tables.DataError(
            f"{name} has no hold-out to compare with: {why}. That somebody was exposed to it is no "
            "proof of what it did; what can be said without a hold-out is weaker."
        )
    if len(sizes) == 1:
        raise tables.DataError(f"{name} has only a hold-out: nobody was contacted.")
    if few := [arm for arm, n in sizes.items() if n < max(2, k)]:
        raise tables.DataError(
            f"{name} has fewer than {max(2, k)} customers in {', '.join(few)}: too few to compare."
        )
    if never := [arm for arm, n in sent.items() if not n and any(sent.values())]:
        raise tables.DataError(
            f"{name}: nothing was ever sent to arm {', '.join(never)}, and to others it was. An "
            "arm that was not sent cannot be measured: leave its customers out of contacts."
        )
    early = rows.filter(rows.sent_at.date() < rows.assigned_at.date())
    if early.count().to_pyarrow().as_py():
        raise tables.DataError(
            f"{name}: customers got their message before they were given an arm. Arms that are "
            "written down after the send are no lot's: correct assigned_at."
        )


def _asked(
    known: Mapping[str, Any], window_days: int | None, outcome: str, cautions: list[str]
) -> tuple[int, str]:
    """Return the days that count and the primary outcome: as asked, as said before, as usual."""
    days = said_days(known)
    if window_days and days and window_days != days:
        cautions.append(f"Before the send {days} days were said to count, not {window_days}.")
    if not days and not window_days:
        cautions.append(f"How many days count was never said: {USUAL_DAYS} are taken.")
    said = known.get("primary_outcome")
    if said not in outcomes.OUTCOMES:
        said = None
    if not said:
        cautions.append("The primary outcome was not said before the send.")
    elif outcome and outcome != said:
        cautions.append(f"Before the send the primary outcome was said to be {said}.")
    return days_of(known, window_days), outcome or said or "margin"


def said_days(known: Mapping[str, Any]) -> int | None:
    """Return how many days were said to count, or how long the campaign lasted; None if neither."""
    days, starts, ends = known.get("outcome_days"), known.get("starts_on"), known.get("ends_on")
    if not days and starts and ends and ends >= starts:
        days = (ends - starts).days + 1
    return int(days) if days else None


def days_of(known: Mapping[str, Any], window_days: int | None) -> int:
    """Return how many days count: as asked, as said before, as usual."""
    return window_days or said_days(known) or USUAL_DAYS


def _with_costs(
    rows: ir.Table, known: Mapping[str, Any], sent_known: bool, cautions: list[str]
) -> ir.Table:
    """Add what each contact and each offer taken costs; the hold-out costs nothing."""
    import ibis

    contacted = rows.arm != HOLDOUT
    reached = contacted & rows.sent_at.notnull() if sent_known else contacted
    arms_said = known.get("planned", {}).get("campaign", {}).get("arms", [])
    if arms_said:
        contact = [
            ((rows.arm == arm["name"]) & (rows.channel == channel), ibis.literal(float(cost)))
            for arm in arms_said
            for channel, cost in arm["contact_cost"].items()
        ]
        offer = [(rows.arm == arm["name"], ibis.literal(float(arm["offer_cost"])))
                 for arm in arms_said]  # fmt: skip
        each, offers = ibis.cases(*contact, else_=0.0), ibis.cases(*offer, else_=0.0)
    else:
        each, offers = (ibis.literal(float(known.get(name) or 0))
                        for name in ("contact_cost", "offer_cost"))  # fmt: skip
        if known.get("contact_cost") is None and known.get("offer_cost") is None:
            cautions.append("What contacts and offers cost is not known: they count as free.")
    return rows.select(
        "customer_id", "arm", "stratum", "window_from", sent=reached,
        contact_cost=reached.ifelse(each, 0.0), offer_cost=reached.ifelse(offers, 0.0),
    )  # fmt: skip


def _with_homes(shop: Shop, rows: ir.Table) -> ir.Table:
    """Add the household, which the lot has drawn as one."""
    homes = shop.table("customers").select(who="customer_id", household="household_id")
    homes = shop.landed(homes, "homes")
    rows = rows.left_join(homes, rows.customer_id == homes.who).drop("who")
    return rows.mutate(household=rows.household.fill_null(rows.customer_id))


def _from(rows: ir.Table) -> tuple[dt.date, dt.date]:
    bounds = rows.aggregate(first=rows.window_from.min(), last=rows.window_from.max())
    [found] = bounds.to_pyarrow().to_pylist()
    return found["first"], found["last"]


def _mismatch(known: Mapping[str, Any], sizes: Mapping[str, int]) -> tuple[float, float]:
    """Hold the arms' sizes against the planned shares; nan where nobody knows them."""
    held = known.get("holdout_share")
    if not held or not 0 < float(held) < 1:
        return float("nan"), float("nan")
    planned = known.get("planned", {}).get("campaign", {}).get("arms", [])
    names = [name for name in sizes if name != HOLDOUT]
    shares = {arm["name"]: float(arm["share"]) for arm in planned}
    if set(names) <= set(shares):
        whole = sum(shares.values())
        counts = [sizes[HOLDOUT], *(sizes.get(name, 0) for name in shares)]
        parts = [float(held), *((1 - float(held)) * one / whole for one in shares.values())]
        return effects.mismatch(counts, parts)
    rest = sum(sizes[name] for name in names)
    return effects.mismatch([sizes[HOLDOUT], rest], [float(held), 1 - float(held)])


def _universal(
    shop: Shop, as_of: dt.date, window_days: int | None, outcome: str, looks: int | None
) -> Trial:
    """Return all customers against the universal control, whom no campaign addressed."""
    import ibis
    import pyarrow as pa

    known_ones = ledgers.universals(shop)
    begun = [one for one in known_ones if one["starts_on"] <= as_of.isoformat()]
    drawn = next(iter(begun or known_ones), None)
    if drawn is None:
        raise tables.DataError(
            f"Shop '{shop.id}' has no universal control: `campaigns.plan` draws one with "
            "universal_share and universal_until."
        )
    starts = dt.date.fromisoformat(drawn["starts_on"])
    if starts > as_of:
        raise tables.DataError(f"The universal control begins on {starts}, after as_of {as_of}.")
    until = dt.date.fromisoformat(drawn["until"])
    days = window_days or (until - starts).days + 1
    last = min(as_of, until, starts + dt.timedelta(days - 1))
    known = purchases.summary(shop, as_of=starts - dt.timedelta(1))
    ids = (
        known.select("customer_id").order_by("customer_id").to_pyarrow()["customer_id"].to_pylist()
    )
    out = arms.below(ids, share=drawn["share"], salt=drawn["salt"])
    named = [HOLDOUT if one else EVERYBODY for one in out]
    rows = ibis.memtable(pa.table({"customer_id": ids, "arm": pa.array(named, pa.string())}))
    rows = _with_contacts(shop, rows, starts, last)
    rows = rows.mutate(stratum=ibis.null("string"), window_from=ibis.literal(starts),
                       offer_cost=ibis.literal(0.0))  # fmt: skip
    counted = {name: named.count(name) for name in (HOLDOUT, EVERYBODY)}
    if min(counted.values()) < shop.policy.privacy_k:
        raise tables.DataError("The universal control has too few customers to compare.")
    sent = rows.filter(rows.sent, rows.arm == EVERYBODY).count().to_pyarrow().as_py()
    return Trial(
        campaign_id="", name=EVERYBODY, customers=rows, sizes=counted, contacts={EVERYBODY: sent},
        primary=outcome or "margin", days=days, as_of=as_of,
        first_from=starts, last_from=starts, looks=looks,
        mismatch=effects.mismatch([*counted.values()], [drawn["share"], 1 - drawn["share"]]),
        fixed_cost=0.0, unit=None,
        cautions=("Costs are those of the contacts alone, without offers and fixed costs.",),
    )  # fmt: skip


def _with_contacts(shop: Shop, rows: ir.Table, starts: dt.date, last: dt.date) -> ir.Table:
    """Add what the contacts of all campaigns have cost in a period."""
    import ibis

    sent = ledgers.contacts(shop)
    known = ledgers.campaigns(shop)
    if sent is None:
        return rows.mutate(sent=ibis.literal(False), contact_cost=ibis.literal(0.0))
    on = sent.sent_at.date().fill_null(sent.window_from)
    sent = sent.filter(sent.arm != HOLDOUT, on >= ibis.literal(starts), on <= ibis.literal(last))
    cases = []
    for name, one in known.items():
        for arm in one.get("planned", {}).get("campaign", {}).get("arms", []):
            for channel, cost in arm["contact_cost"].items():
                cases.append(((sent.campaign_id == name) & (sent.arm == arm["name"])
                              & (sent.channel == channel), ibis.literal(float(cost))))  # fmt: skip
        cases.append((sent.campaign_id == name, ibis.literal(float(one.get("contact_cost") or 0))))
    cost = ibis.cases(*cases, else_=0.0) if cases else ibis.literal(0.0)
    each = sent.mutate(cost=cost).group_by(who="customer_id").aggregate(cost=lambda t: t.cost.sum())
    each = shop.landed(each, "contact_costs")
    ids = shop.engines.local.read_parquet(_parquet(shop, rows))
    both = ids.left_join(each, ids.customer_id == each.who)
    return both.select("customer_id", "arm", sent=both.who.notnull(),
                       contact_cost=both.cost.fill_null(0.0))  # fmt: skip


def _parquet(shop: Shop, rows: ir.Table) -> str:
    import pyarrow.parquet as pq

    path = shop.engines.scratch("universal")
    pq.write_table(rows.to_pyarrow(), path)
    return str(path)


def with_guardrails(shop: Shop, rows: ir.Table, trial: Trial) -> ir.Table:
    """Add to each customer whether they withdrew a consent or complained in the window."""
    last = dt.timedelta(trial.days - 1)
    if shop.has("consents") and "at" in shop.table("consents").columns:
        said = shop.table("consents")
        said = said.filter(said.status == "withdrawn")
        rows = _happened(shop, rows, said.select("customer_id", on=said["at"].date()), "withdrew",
                         trial, last)  # fmt: skip
    if shop.has("cases"):
        cases = shop.table("cases")
        if "kind" in cases.columns:
            cases = cases.filter(cases.kind.lower() == "complaint")
        on = cases.select("customer_id", on=cases.opened_at.date())
        rows = _happened(shop, rows, on, "complained", trial, last)
    return rows


def _happened(
    shop: Shop, rows: ir.Table, events: ir.Table, name: str, trial: Trial, last: dt.timedelta
) -> ir.Table:
    """Add 1 for whom something happened in the days that count, else 0."""
    import ibis

    inside = (events["on"] >= ibis.literal(trial.first_from)) & (
        events["on"] <= ibis.literal(min(trial.last_from + last, trial.as_of))
    )
    found = shop.landed(events.filter(inside), name).rename(who="customer_id")
    both = rows.select("customer_id", "window_from").inner_join(
        found, rows.customer_id == found.who
    )
    since = both["on"].delta(both.window_from, unit="day")
    hit = both.filter(since >= 0, since < trial.days).select("customer_id").distinct()
    return rows.mutate(**{name: rows.customer_id.isin(hit.customer_id).ifelse(1.0, 0.0)})
