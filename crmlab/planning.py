"""A wave drawn: who of the audience may be contacted, and in which arm."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import TYPE_CHECKING, Any

from crmlab import arms as lot
from crmlab import ledgers, policies, tables

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


def check_audience(rows: ir.Table) -> None:
    """Raise `UsageError` for what is no table of customers."""
    kinds = rows.schema() if hasattr(rows, "schema") and hasattr(rows, "to_pyarrow") else {}
    if "customer_id" not in kinds or not kinds["customer_id"].is_string():
        raise tables.UsageError(
            "The audience must be an ibis table with a customer_id of text, such as "
            "audiences.audience gives; ibis.memtable makes one of a DataFrame."
        )
    for name in (*VALUES, "profit"):
        if name in kinds and not kinds[name].is_numeric():
            raise tables.UsageError(f"The audience's {name} must be numbers.")


def allot(
    fits: ir.Table, shop: Shop, asked: Mapping[str, Any], *, as_of: dt.date, sends_on: dt.date,
    budget: float | None, buying: float, universal: Mapping[str, Any] | None,
    earlier: Sequence[ledgers.Wave], everybody: ir.Table,
) -> Allotted:  # fmt: skip
    """Suppress who may not be contacted, and draw the arms of all others by lot.

    Parameters
    ----------
    fits, everybody : local ibis tables: the audience, and of whom it was chosen
    asked : what `campaigns.plan` was asked
    budget : shop currency for contacts and offers of this wave
    buying : the share of them who will buy, and then take the offer
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
    for room in _rooms(budget, buying, asked, rows, free):
        kept, cost = free[:room], 0.0
        strata[kept] = lot.merged(_strata(rows, kept))
        arms[kept] = _arms(rows, kept, strata[kept], asked, of_arms, earlier, everybody)
        cost = _cost(rows, kept, arms, of_arms)
        if budget is None or cost + _offers(kept, arms, of_arms, buying) <= budget:
            break
    else:
        raise _no_room(budget)
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
    ids = found["customer_id"]
    if ids.null_count or len(found) != len(ids.unique()):
        raise tables.DataError("The audience has a customer_id more than once, or one is missing.")
    return {name: found[name].to_numpy(zero_copy_only=False) for name in found.column_names}


def _all_suppressed(asked: Mapping[str, Any], state: Array) -> tables.DataError:
    reasons = ", ".join(sorted(set(state.astype(str))))  # no counts: they may be of few
    return tables.DataError(
        f"Nobody of the audience of campaign '{asked['campaign_id']}' may be contacted: {reasons}."
    )


def _rooms(
    budget: float | None, buying: float, asked: Mapping[str, Any], rows: dict[str, Array],
    free: Array,
) -> list[int]:  # fmt: skip
    """Order `free` by expected profit, and return how many of them to try, ever fewer.

    Which customers are held out decides what the others cost, so that the first may be too many.
    """
    import numpy as np

    if budget is None:
        return [len(free)]
    order = "profit" if "profit" in rows else "value"
    rank = np.lexsort((free, -np.nan_to_num(rows[order][free], nan=-np.inf)))
    free[:] = free[rank]
    spent = np.cumsum(_expected_cost(rows, free, asked, buying)) * (1 - asked["holdout_share"])
    room = int(np.searchsorted(spent, budget, side="right"))
    rooms = sorted({int(room * 0.97**n) for n in range(200)} - {0}, reverse=True)
    if not rooms:
        raise _no_room(budget)
    return rooms


def _no_room(budget: float | None) -> tables.UsageError:
    return tables.UsageError(
        f"What fixed costs and earlier waves leave of the budget, {budget:.2f}, pays for no "
        "contacts."
    )


def _offers(kept: Array, arms: Array, of_arms: Sequence[Arm], buying: float) -> float:
    """Return what the offers will cost, if those who buy anyway take them."""
    sent = [int((arms[kept] == n + 1).sum()) for n in range(len(of_arms))]
    return sum(n * buying * arm.offer_cost for n, arm in zip(sent, of_arms, strict=True))


def _expected_cost(
    rows: dict[str, Array], chosen: Array, asked: Mapping[str, Any], buying: float
) -> Array:
    """Return what contacting each costs, over the arms that they may be in."""
    of_arms = policies.read_arms(asked["arms"])
    whole = sum(arm.share for arm in of_arms)
    cost: Array = sum(
        arm.share / whole * (_cost_of(rows[f"channel_{n}"][chosen], arm) + buying * arm.offer_cost)
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
