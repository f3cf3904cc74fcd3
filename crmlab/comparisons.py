"""A campaign's customers beside what was known of them before it: to learn from, or to compare."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from crmlab import audiences, observed, outcomes, purchases, tables, trials
from crmlab.ledgers import HOLDOUT
from crmlab.observed import Observed

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.sources import Shop

# What names a customer or is another way to say a feature.
NO_FEATURES = ("household_id", "first_purchase", "last_purchase", "joined_on", "birth_date",
               "days_to_birthday")  # fmt: skip


def features(
    shop: Shop, *, campaign_id: str, as_of: str | dt.date, arm: str = "", outcome: str = "",
    margin: float | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Return what was known of a campaign's customers before it, and what they did after.

    Parameters
    ----------
    arm : the arm to learn from; by default the only one
    outcome : response, purchases, spend or margin; by default what the campaign was to raise
    margin : float, share of the amount, where the outcome is margin and the shop has no cost

    Returns
    -------
    DataFrame, one row per customer of the arm and the hold-out: customer_id; treated; outcome; and
    the columns of `audiences.audience` on the day before: what `learning.learn` takes

    Raises
    ------
    DataError as `uplift.measure` does
    """
    import ibis

    trial = trials.find(
        shop, campaign_id, as_of=tables.day(as_of), window_days=None, outcome=outcome,
        control=HOLDOUT, looks=None,
    )  # fmt: skip
    arms = sorted(name for name in trial.sizes if name != HOLDOUT)
    if not arm and len(arms) > 1:
        raise tables.UsageError(
            f"Campaign '{campaign_id}' has the arms {', '.join(arms)}: say which."
        )
    if arm and arm not in arms:
        raise tables.UsageError(
            f"Campaign '{campaign_id}' has no arm {arm!r}; it has {', '.join(arms)}."
            + tables.did_you_mean(arm, arms)
        )
    rows = trial.customers.filter(trial.customers.arm.isin([arm or arms[0], HOLDOUT]))
    knows = margin is not None or "cost" in shop.table("transactions").columns
    name = trial.primary if knows or trial.primary != "margin" else "spend"
    did = outcomes.of_customers(
        shop, rows, as_of=trial.as_of, days=trial.days, margin=margin if knows else 1.0
    )
    known = audiences.audience(shop, as_of=trial.first_from - dt.timedelta(1))
    kept = [one for one in known.columns if one not in NO_FEATURES]
    did = did.select("customer_id", treated=did.arm != HOLDOUT, outcome=did[name])
    found = did.left_join(known.select(*kept), "customer_id").drop("customer_id_right")
    found = found.mutate(treated=found.treated.cast("int64"))
    numbers = [one for one, kind in found.schema().items() if kind.is_decimal()]
    found = found.mutate(**{one: found[one].cast("float64") for one in numbers})
    return _plain(found.order_by(ibis.asc("customer_id")))


def without_holdout(
    shop: Shop, *, campaign_id: str, as_of: str | dt.date, outcome: str = "spend",
    window_days: int | None = None, seed: int = 1,
) -> Observed:  # fmt: skip
    """Say what can be said of a campaign for which customers were chosen: observational, weaker.

    Those given an arm are held against all other customers of the day before, by what was known
    of them; the placebo is what they did two windows earlier.

    Raises
    ------
    DataError if the campaign was never assigned, has a hold-out drawn by lot, or began on several
    days, or its days are not over by `as_of`
    """
    day = tables.day(as_of)
    if outcome not in ("spend", "purchases"):
        raise tables.UsageError(f"outcome is {outcome!r}; it must be spend or purchases.")
    purchases.check_date(shop, day)
    known, assigned = trials.assigned(shop, campaign_id, day)
    days = trials.days_of(known, window_days)
    held_out = assigned.filter(assigned.arm == HOLDOUT).count().to_pyarrow().as_py()
    if held_out and known.get("randomised"):
        raise tables.DataError(
            f"Campaign '{campaign_id}' has a hold-out drawn by lot: only that says what it changed."
        )
    firsts = assigned.window_from.nunique().to_pyarrow().as_py()
    if firsts > 1:
        raise tables.DataError(
            f"Campaign '{campaign_id}' began on {firsts} days for different customers: without a "
            "hold-out nobody can say what each group would have done."
        )
    first = assigned.window_from.min().to_pyarrow().as_py()
    if first + dt.timedelta(days - 1) > day:
        raise tables.DataError(
            f"The {days} days that count of campaign '{campaign_id}' end after as_of {day}."
        )
    known = audiences.audience(shop, as_of=first - dt.timedelta(1))
    contacted = assigned.filter(assigned.arm != HOLDOUT).select("customer_id")
    held = assigned.filter(assigned.arm == HOLDOUT).select("customer_id")
    rows = known.filter(known.customer_id.notin(held.customer_id))
    treated = rows.customer_id.isin(contacted.customer_id).cast("int64")
    rows = shop.landed(rows.select("customer_id", treated=treated), "exposed")
    did = _did(shop, rows, first, day, days, outcome)
    earlier = _did(shop, rows, first - dt.timedelta(2 * days), day, days, outcome)
    earlier = earlier.select(who="customer_id", placebo=outcome)
    did = did.left_join(earlier, did.customer_id == earlier.who).drop("who")
    kept = [name for name in known.columns if name not in (*NO_FEATURES, "customer_id")]
    # Their names say that they are of before: one may be called as the outcome is.
    named = {f"earlier {name}": known[name] for name in kept}
    did = did.left_join(known.select("customer_id", **named), "customer_id")
    frame = _plain(did.drop("customer_id_right").order_by("customer_id"))
    covariates = [name for name in frame if name.startswith("earlier ")]
    # Who was chosen by what they did lately differs in it: the placebo must hold that still too.
    return observed.observed(
        frame, outcome=outcome, placebo="placebo", covariates=[*covariates, "before", "placebo"],
        placebo_covariates=[*covariates, "before"],
        kind="money" if outcome == "spend" else "count", seed=seed, numbers=shop.numbers,
        k=shop.policy.privacy_k,
    )  # fmt: skip


def _did(
    shop: Shop, rows: ir.Table, first: dt.date, day: dt.date, days: int, outcome: str
) -> ir.Table:
    """Add what each did in the days from a day on, and in as many before it."""
    import ibis

    rows = rows.mutate(window_from=ibis.literal(first))
    found = outcomes.of_customers(shop, rows, as_of=day, days=days, before_days=days, margin=1.0)
    return found.select("customer_id", "treated", outcome, before=found[f"before_{outcome}"])


def _plain(rows: ir.Table) -> pd.DataFrame:
    """Return the rows as numbers, words and gaps."""
    words = [name for name, kind in rows.schema().items() if kind.is_boolean()]
    rows = rows.mutate(**{name: rows[name].cast("int64") for name in words})
    empty = [name for name, kind in rows.schema().items() if kind.is_null()]
    return rows.select(*(name for name in rows.columns if name not in empty)).to_pandas()
