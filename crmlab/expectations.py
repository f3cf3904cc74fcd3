"""Said before the send: what such customers do anyway, what a plan can show, what it costs."""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from crmlab import effects, ledgers, outcomes

if TYPE_CHECKING:
    import ibis.expr.types as ir

    from crmlab.effects import Moments
    from crmlab.planning import Allotted
    from crmlab.sources import Shop

# A rise by more than this share of what they do anyway is more than campaigns bring.
HARDLY = 0.5


def anyway(
    shop: Shop, rows: ir.Table, asked: Mapping[str, Any], *, as_of: dt.date
) -> tuple[dict[str, Moments], bool]:
    """Return what customers did in the days up to a day, by outcome, and whether one did half.

    It stands for what such customers would do without the campaign.
    """
    import ibis

    margin = asked["margin"]
    knows = "cost" in shop.table("transactions").columns
    if margin is None and asked["primary_outcome"] != "margin" and not knows:
        margin = 1.0  # not asked for: only that the sums can be made
    days = asked["outcome_days"]
    begin = as_of + dt.timedelta(1 - days)
    rows = rows.select("customer_id", window_from=ibis.literal(begin))
    did = outcomes.of_customers(shop, rows, as_of=as_of, days=days, margin=margin)
    pairs: dict[str, tuple[str, str | None]] = {name: (name, None) for name in outcomes.OUTCOMES}
    [found] = outcomes.moments(did.mutate(all=ibis.literal("all")), pairs, by=["all"]).values()
    [most] = did.aggregate(most=did.spend.abs().max(), all=did.spend.sum()).to_pyarrow().to_pylist()
    return found, bool(most["most"] and 2 * most["most"] >= abs(most["all"]))


def said(
    shop: Shop, found: Allotted, asked: Mapping[str, Any], *, as_of: dt.date, sends_on: dt.date,
    like: ir.Table | None, earlier: Sequence[ledgers.Wave],
) -> dict[str, Any]:  # fmt: skip
    """Say what is measured, the smallest effect that this size can show, and what it will cost.

    What those `like` them did in as many days up to `as_of`, else they themselves, stands for what
    they would do without the campaign; power .8 at alpha .05, the smallest arm against the
    hold-out, both with those of earlier waves.
    """
    days, primary, k = asked["outcome_days"], asked["primary_outcome"], shop.policy.privacy_k
    rows = found.assigned if like is None else like
    if not rows.count().to_pyarrow().as_py():
        rows = found.assigned
    before, dominated = anyway(shop, rows, asked, as_of=as_of)
    now = Counter(found.strata.groupby("arm")["customers"].sum().to_dict())
    sizes = now + sum((_sizes(wave) for wave in earlier), Counter[str]())
    held = int(sizes[ledgers.HOLDOUT])
    least = min(int(sizes[arm["name"]]) for arm in asked["arms"])
    detectable = {
        name: _detectable(name, one, least, held) if min(held, least) >= k else None
        for name, one in before.items()
    }
    buyers = before["response"].mean * before["response"].n
    offers = sum(now[arm["name"]] * arm["offer_cost"] for arm in asked["arms"])
    fixed = 0.0 if earlier else asked["fixed_cost"]
    return {
        "outcome": primary,
        "outcome_days": days,
        "sends_on": sends_on.isoformat(),
        "ends_on": (sends_on + dt.timedelta(days - 1)).isoformat(),
        "base": {name: one.mean for name, one in before.items()},
        "few_bought": bool(dominated or min(buyers, before["response"].n - buyers) < k),
        "detectable": detectable,
        "contact_cost": found.contact_cost,
        "cost": found.contact_cost + offers * before["response"].mean + fixed,
        "knows_margin": asked["margin"] is not None or "cost" in shop.table("transactions").columns,
        "warning": _warning(
            detectable[primary], before[primary].mean, min(held, least) < k, days, like is not None
        ),
    }


def _sizes(wave: ledgers.Wave) -> Counter[str]:
    strata, found = wave.plan["strata"], Counter[str]()
    for arm, customers in zip(strata["arm"], strata["customers"], strict=True):
        found[arm] += customers
    return found


def _detectable(name: str, before: Moments, n: int, held: int) -> float | None:
    """Return the smallest effect that such sizes show; None where they show nothing."""
    if name == "response":
        seen = effects.detectable_share(before.mean, n, held)
    elif before.variance > 0:
        seen = effects.detectable_mean(math.sqrt(before.variance), n, held)
    else:
        return None
    return None if seen != seen else seen


def _warning(seen: float | None, usual: float, small: bool, days: int, known: bool) -> str:
    """Return what should be said before money is spent on it."""
    if small:
        return (
            "Too small so far: with so few held out, or in an arm, nobody will be able to say "
            "what it changed."
        )
    if not usual and not known:
        return (
            f"They bought nothing in the {days} days before, as their silence was what they were "
            "chosen for: what can be seen is not known without `audience_before`."
        )
    if seen is None:
        return "It can show nothing: such customers buy next to nothing. Count more days."
    if usual <= 0 or seen > HARDLY * usual:
        return "Campaigns seldom bring as much: hold out more, contact more, or count more days."
    return ""
