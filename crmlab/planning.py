"""A wave drawn: who of the audience may be contacted, in which arm, and what that can show."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import TYPE_CHECKING, Any

from crmlab import arms as lot
from crmlab import effects, ledgers, outcomes, policies, tables

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    from crmlab.policies import Arm
    from crmlab.sources import Shop

    Array = np.ndarray[Any, np.dtype[Any]]

# Where the value of a customer is looked for; the first that the audience has is used.
VALUES = ("clv", "expected_value", "spend_year")
THIRDS = ("lower third", "middle third", "upper third")
BUDGET, EARLIER, UNIVERSAL = "beyond the budget", "in an earlier wave", "universal control"
# A rise by more than this share of what they do anyway is more than campaigns bring.
HARDLY = 0.5


@dataclass(frozen=True, eq=False)
class Allotted:
    """What became of an audience: `Plan` tells what the tables are."""

    audience: int
    counts: pd.DataFrame
    strata: pd.DataFrame
    suppressed: pd.DataFrame
    assigned: ir.Table
    left_out: ir.Table
    contact_cost: float


def as_json(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was asked as JSON gives it back, so that two can be compared."""
    return {
        name: {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(value).items()}
        if is_dataclass(value) and not isinstance(value, type)
        else value
        for name, value in asked.items()
    }


def allot(
    fits: ir.Table, shop: Shop, asked: Mapping[str, Any], *, as_of: dt.date, sends_on: dt.date,
    budget: float | None, universal: Mapping[str, Any] | None, earlier: Sequence[ledgers.Wave],
    everybody: ir.Table,
) -> Allotted:  # fmt: skip
    """Suppress who may not be contacted, and draw the arms of all others by lot.

    Parameters
    ----------
    fits, everybody : local ibis tables: the audience, and of whom it was chosen
    asked : what `campaigns.plan` was asked
    universal : share and salt of the universal control, if there is one
    earlier : the campaign's waves that were written
    """
    import numpy as np

    of_arms = policies.read_arms(asked["arms"])
    rows = _rows(fits, shop, asked, of_arms, as_of, sends_on, earlier)
    ids = rows["customer_id"]
    if not len(ids):
        raise tables.DataError(
            f"Nobody fits the rules of campaign '{asked['campaign_id']}' on {as_of}: loosen a rule."
        )
    state = np.array(rows["reason"], object)
    if universal:
        out = lot.below(ids, share=universal["share"], salt=universal["salt"])
        state[out] = UNIVERSAL
    state[rows["arm_before"] != None] = EARLIER  # noqa: E711 element by element
    free = np.flatnonzero(state == None)  # noqa: E711
    if not len(free):
        raise _all_suppressed(asked, state)
    arms = np.full(len(ids), -1)
    strata = np.full(len(ids), "", object)
    for room in _rooms(budget, asked, rows, free):
        kept, cost = free[:room], 0.0
        strata[kept] = lot.merged(_strata(rows, kept))
        arms[kept] = _arms(rows, kept, strata[kept], asked, of_arms, earlier, everybody)
        cost = _cost(rows, kept, arms, of_arms)
        if budget is None or cost + asked["fixed_cost"] <= budget:
            break
    state[free[len(kept) :]] = BUDGET
    return _allotted(shop, rows, state, kept, arms, strata, of_arms, cost)


def _rows(
    fits: ir.Table, shop: Shop, asked: Mapping[str, Any], of_arms: Sequence[Arm], as_of: dt.date,
    sends_on: dt.date, earlier: Sequence[ledgers.Wave],
) -> dict[str, Array]:  # fmt: skip
    """Return what allotting needs of each customer, as arrays in the order of their ids."""
    import ibis

    value = next((name for name in VALUES if name in fits.columns), None)
    wanted = {
        "customer_id": fits.customer_id,
        "value": fits[value].cast("float64") if value else ibis.literal(0.0),
        "profit": fits.profit.cast("float64") if "profit" in fits.columns else None,
        "stage": fits.stage if "stage" in fits.columns else ibis.literal("all"),
        "household_id": fits.household_id if "household_id" in fits.columns else None,
        "preferred_channel": fits.preferred_channel
        if "preferred_channel" in fits.columns
        else None,
    }
    if asked["by_household"] and wanted["household_id"] is None:
        raise tables.DataError(
            "Arms by household need the column household_id in the audience, from the table "
            "customers."
        )
    rows = fits.select(**{name: one for name, one in wanted.items() if one is not None})
    rows = policies.open_channels(
        rows, shop, arms=of_arms, policy=asked["policy"], as_of=as_of, sends_on=sends_on
    )
    if earlier:
        before = shop.engines.local.read_parquet([str(wave.contacts) for wave in earlier])
        before = before.select(before_id="customer_id", arm_before="arm")
        rows = rows.left_join(before, rows.customer_id == before.before_id).drop("before_id")
    else:
        rows = rows.mutate(arm_before=ibis.null("string"))
    found = rows.order_by("customer_id").to_pyarrow()
    counted = len(found) == len(set(found["customer_id"].to_pylist()))
    if not counted:
        raise tables.DataError("The audience has a customer_id more than once.")
    return {name: found[name].to_numpy(zero_copy_only=False) for name in found.column_names}


def _all_suppressed(asked: Mapping[str, Any], state: Array) -> tables.DataError:
    import numpy as np

    reasons = ", ".join(
        f"{name} {n}" for name, n in zip(*np.unique(state.astype(str), return_counts=True),
                                         strict=True)
    )  # fmt: skip
    return tables.DataError(
        f"Nobody of the audience of campaign '{asked['campaign_id']}' may be contacted: {reasons}."
    )


def _rooms(
    budget: float | None, asked: Mapping[str, Any], rows: dict[str, Array], free: Array
) -> list[int]:
    """Order `free` by expected profit, and return how many of them to try, ever fewer.

    Which customers are held out decides what the others cost, so that the first may be too many.
    """
    import numpy as np

    if budget is None:
        return [len(free)]
    tables.check_range("budget", budget, 0, 1e12)
    order = "profit" if "profit" in rows else "value"
    rank = np.lexsort((free, -np.nan_to_num(rows[order][free], nan=-np.inf)))
    free[:] = free[rank]
    each, shares = _expected_cost(rows, free, asked), 1 - asked["holdout_share"]
    spent = np.cumsum(each) * shares + asked["fixed_cost"]
    room = int(np.searchsorted(spent, budget, side="right"))
    rooms = [int(room * (1 - 0.02 * n)) for n in range(25)]
    if not rooms[0] or not rooms[-1]:
        raise tables.UsageError(
            f"A budget of {budget:g} pays for no contacts, after fixed costs of "
            f"{asked['fixed_cost']:g}."
        )
    return rooms


def _expected_cost(rows: dict[str, Array], chosen: Array, asked: Mapping[str, Any]) -> Array:
    """Return what contacting each costs, over the arms that they may be in."""
    of_arms = policies.read_arms(asked["arms"])
    whole = sum(arm.share for arm in of_arms)
    cost: Array = sum(
        arm.share / whole * _cost_of(rows[f"channel_{n}"][chosen], arm)
        for n, arm in enumerate(of_arms)
    )  # type: ignore[assignment]
    return cost


def _cost_of(channels: Array, arm: Arm) -> Array:
    import numpy as np

    cost = np.zeros(len(channels))
    for channel, each in arm.contact_cost.items():
        cost[channels == channel] = each
    return cost


def _cost(rows: dict[str, Array], kept: Array, arms: Array, of_arms: Sequence[Arm]) -> float:
    """Return what the contacts cost, of those who are not held out."""
    total = 0.0
    for n, arm in enumerate(of_arms):
        sent = kept[arms[kept] == n + 1]
        total += float(_cost_of(rows[f"channel_{n}"][sent], arm).sum())
    return total


def _strata(rows: dict[str, Array], kept: Array) -> list[str]:
    """Name each customer's stratum: the stage, and the third by value."""
    import numpy as np

    value = np.nan_to_num(rows["value"][kept].astype(float), nan=-np.inf)
    rank = np.empty(len(kept), int)
    rank[np.lexsort((kept, value))] = np.arange(len(kept))
    thirds = 3 * rank // len(kept)
    flat = len(np.unique(value)) == 1
    return [
        f"{stage or 'unknown'}" if flat else f"{stage or 'unknown'}, {THIRDS[third]}"
        for stage, third in zip(rows["stage"][kept], thirds, strict=True)
    ]


def _arms(
    rows: dict[str, Array], kept: Array, strata: Array, asked: Mapping[str, Any],
    of_arms: Sequence[Arm], earlier: Sequence[ledgers.Wave], everybody: ir.Table,
) -> Array:  # fmt: skip
    """Draw the arms: 0 is the hold-out. A household shares one, and keeps it in later waves."""
    import numpy as np

    whole = sum(arm.share for arm in of_arms)
    held = asked["holdout_share"]
    shares = [held, *((1 - held) * arm.share / whole for arm in of_arms)]
    salt, wave = f"{asked['campaign_id']}/{asked['seed']}", str(len(earlier) + 1)
    if not asked["by_household"]:
        return lot.drawn(rows["customer_id"][kept], strata, shares=shares, salt=salt, wave=wave)
    own = rows["customer_id"][kept]
    homes = rows["household_id"][kept]
    units = np.where(homes == None, own, homes).astype(str)  # noqa: E711
    names, first, of = np.unique(units, return_index=True, return_inverse=True)
    found = lot.drawn(names, strata[first], shares=shares, salt=salt, wave=wave)
    known = _earlier_homes(everybody, earlier)
    places = {ledgers.HOLDOUT: 0} | {arm.name: n + 1 for n, arm in enumerate(of_arms)}
    found = np.array([places[known[name]] if name in known else arm
                      for name, arm in zip(names, found, strict=True)], int)  # fmt: skip
    return np.asarray(found[of])


def _earlier_homes(everybody: ir.Table, earlier: Sequence[ledgers.Wave]) -> dict[str, str]:
    """Return the arm that each household was given in an earlier wave."""
    import pyarrow.parquet as pq

    if not earlier:
        return {}
    homes = everybody.filter(everybody.household_id.notnull())
    found = homes.select("customer_id", "household_id").to_pyarrow()
    home = dict(zip(*(found[name].to_pylist() for name in found.column_names), strict=True))
    arms: dict[str, str] = {}
    for wave in earlier:
        rows = pq.read_table(wave.contacts, columns=["customer_id", "arm"])
        for who, arm in zip(*(rows[name].to_pylist() for name in rows.column_names), strict=True):
            arms.setdefault(home.get(who, who), arm)
    return arms


def _allotted(
    shop: Shop, rows: dict[str, Array], state: Array, kept: Array, arms: Array, strata: Array,
    of_arms: Sequence[Arm], cost: float,
) -> Allotted:  # fmt: skip
    """Count what became of everybody, and return the two tables of customers."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    kept = np.sort(kept)
    names = np.array([ledgers.HOLDOUT, *(arm.name for arm in of_arms)], object)
    channel = np.full(len(kept), None, object)
    for n in range(len(of_arms)):
        sent = arms[kept] == n + 1
        channel[sent] = rows[f"channel_{n}"][kept[sent]]
    text = pa.string()
    assigned = pa.table(
        {"customer_id": pa.array(rows["customer_id"][kept], text),
         "arm": pa.array(names[arms[kept]], text), "stratum": pa.array(strata[kept], text),
         "channel": pa.array(channel, text)}
    )  # fmt: skip
    out = np.flatnonzero((state != None) & (state != EARLIER) & (state != UNIVERSAL))  # noqa: E711
    left = pa.table({"customer_id": pa.array(rows["customer_id"][out], text),
                     "reason": pa.array(state[out], text)})  # fmt: skip
    held = int((arms[kept] == 0).sum())
    counts = {
        "contacted": len(kept) - held, "held out": held, "suppressed": len(out),
        UNIVERSAL: int((state == UNIVERSAL).sum()), EARLIER: int((state == EARLIER).sum()),
    }  # fmt: skip
    if sum(counts.values()) != len(state):
        raise AssertionError("not everybody of the audience is accounted for")
    strata_frame = pd.DataFrame({"stratum": strata[kept], "arm": names[arms[kept]]})
    strata_frame = strata_frame.value_counts(sort=False).rename("customers").reset_index()
    reasons = pd.Series(state[out], dtype=object).value_counts(sort=False)
    suppressed = reasons.rename_axis("reason").rename("customers").reset_index()
    return Allotted(
        audience=len(state),
        counts=pd.DataFrame({"what": list(counts), "customers": list(counts.values())}),
        strata=strata_frame,
        suppressed=suppressed.sort_values(["customers", "reason"], ascending=[False, True]),
        assigned=_local(shop, assigned, "assigned"),
        left_out=_local(shop, left, "left_out"),
        contact_cost=cost,
    )


def _local(shop: Shop, rows: pa.Table, name: str) -> ir.Table:
    import pyarrow.parquet as pq

    path = shop.engines.scratch(name)
    pq.write_table(rows, path)
    return shop.engines.local.read_parquet(str(path))


def said(
    shop: Shop, found: Allotted, asked: Mapping[str, Any], *, as_of: dt.date, sends_on: dt.date,
    like: ir.Table | None,
) -> dict[str, Any]:  # fmt: skip
    """Say before the send what is measured, and the smallest effect that this size can show.

    What those `like` them did in as many days up to `as_of`, else they themselves, stands for what
    they would do without the campaign; power .8 at alpha .05, the smallest arm against the
    hold-out.
    """
    import ibis

    days, primary = asked["outcome_days"], asked["primary_outcome"]
    margin = asked["margin"]
    if margin is None and primary != "margin" and "cost" not in shop.table("transactions").columns:
        margin = 1.0  # not asked for: only that the sums can be made
    begin = as_of + dt.timedelta(1 - days)
    rows = found.assigned if like is None else like
    rows = rows.select("customer_id", window_from=ibis.literal(begin))
    if not rows.count().to_pyarrow().as_py():
        rows = found.assigned.select("customer_id", window_from=ibis.literal(begin))
    did = outcomes.of_customers(shop, rows, as_of=as_of, days=days, margin=margin)
    pairs = {name: (name, None) for name in outcomes.OUTCOMES}
    [before] = outcomes.moments(did.mutate(all=ibis.literal("all")), pairs, by=["all"]).values()
    sizes = found.strata.groupby("arm")["customers"].sum()
    held = int(sizes.get(ledgers.HOLDOUT, 0))
    least = min((int(sizes.get(arm["name"], 0)) for arm in asked["arms"]), default=0)
    detectable = {}
    for name in outcomes.OUTCOMES:
        seen = math.nan
        if held and least and name == "response":
            seen = effects.detectable_share(before[name].mean, least, held)
        elif held > 1 and least > 1 and before[name].variance > 0:
            seen = effects.detectable_mean(math.sqrt(before[name].variance), least, held)
        detectable[name] = seen
    return {
        "outcome": primary,
        "outcome_days": days,
        "sends_on": sends_on.isoformat(),
        "ends_on": (sends_on + dt.timedelta(days - 1)).isoformat(),
        "base": {name: one.mean for name, one in before.items()},
        "detectable": {name: None if one != one else one for name, one in detectable.items()},
        "contact_cost": found.contact_cost,
        "knows_margin": "cost" in shop.table("transactions").columns,
        "warning": _warning(
            detectable[primary], before[primary].mean, held, least, days, like is not None
        ),
    }


def _warning(seen: float, usual: float, held: int, least: int, days: int, known: bool) -> str:
    """Return what should be said before money is spent on it."""
    if not held or not least:
        nobody = "held out" if not held else "in one of the arms"
        return f"Nobody is {nobody} in this wave: it shows nothing by itself."
    if not usual and not known:
        return (
            f"They bought nothing in the {days} days before, as their silence was what they were "
            "chosen for: what can be seen is not known without `audience_before`."
        )
    if seen != seen:
        return (
            "It can show nothing: such customers bought nothing, or are too few. Count more "
            "days, or contact and hold out more."
        )
    if usual <= 0 or seen > HARDLY * usual:
        share = "more than all" if usual <= 0 else f"{100 * seen / usual:.0f}%"
        return (
            f"That is {share} of what they do in {days} days anyway, and campaigns seldom "
            "bring as much: hold out more, contact more, or count more days."
        )
    return ""
