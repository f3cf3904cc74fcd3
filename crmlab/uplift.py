"""What a campaign changed, what it earned, and whom to contact next time."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import TYPE_CHECKING

from crmlab import effects, lifts, outcomes, tables, trials
from crmlab.comparisons import features, without_holdout
from crmlab.learning import Target, learn
from crmlab.ledgers import HOLDOUT
from crmlab.observed import Observed
from crmlab.outcomes import OUTCOMES
from crmlab.verdicts import Lift

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.sources import Shop

__all__ = ["Lift", "Observed", "Target", "features", "learn", "measure", "without_holdout"]

# For how long before the campaign the arms are compared: half a year in whole weeks.
BEFORE_DAYS = 182


def measure(
    shop: Shop,
    *,
    campaign_id: str = "",
    as_of: str | dt.date,
    window_days: int | None = None,
    outcome: str = "",
    margin: float | None = None,
    take_up: float = 1.0,
    looks: int | None = None,
    before_days: int = BEFORE_DAYS,
    control: str = HOLDOUT,
) -> Lift:
    """Measure what a campaign changed, against those whom the lot held out.

    Parameters
    ----------
    campaign_id : a campaign of the ledger, or of the shop's table contacts
    window_days : int, days from the assignment or planned send that count, the same for all arms;
        by default those said before the send
    outcome : the primary outcome; by default the one said before the send
    margin : float, share of the amount; None = by the shop's cost of each line
    take_up : float, share of an arm's buyers who took the offer, of whom each costs `offer_cost`
    looks : int, how often somebody looked at the result before the end; before it, None shows no
        verdict
    before_days : int, days before the campaign that the arms are compared in
    control : "universal" compares all customers with the universal control instead

    Raises
    ------
    DataError where there is no such campaign, no hold-out, too few customers, an arm that was
    never sent, or one customer in two arms; UsageError for what cannot be asked

    Notes
    -----
    By the arm that was drawn (intent to treat): who was not reached stays in it. Differences by
    Welch (1947), small shares by Newcombe (1998), spend per purchase by the delta method, with
    CUPED (Deng and others 2013) beside. Looks before the end spend half of alpha, the k-th of
    them 6 alpha / (2 pi² k²); the end then has the other half.
    """
    trial = trials.find(
        shop, campaign_id, as_of=tables.day(as_of), window_days=window_days, outcome=outcome,
        control=control, looks=looks,
    )  # fmt: skip
    return _measured(shop, trial, margin=margin, take_up=take_up, before_days=before_days)


def _measured(
    shop: Shop, trial: trials.Trial, *, margin: float | None, take_up: float, before_days: int
) -> Lift:
    tables.check_range("take_up", take_up, 0, 1)
    tables.check_range("before_days", before_days, 0, 3660)
    knows = margin is not None or "cost" in shop.table("transactions").columns
    if not knows and trial.primary == "margin":
        trial = replace(trial, primary="spend", cautions=(
            *trial.cautions, "The shop's margin is not known: spend stands for it, and what was "
            "earned cannot be told."))  # fmt: skip
    rows = outcomes.of_customers(
        shop, trial.customers, as_of=trial.as_of, days=trial.days, before_days=before_days,
        margin=margin if knows else 1.0,
    )  # fmt: skip
    cost = rows.contact_cost + rows.offer_cost * take_up * rows.response
    rows = rows.mutate(cost=cost, profit=rows.margin - cost,
                       gave_back=(rows.returned > 0).ifelse(1.0, 0.0))  # fmt: skip
    names = [name for name in OUTCOMES if knows or name != "margin"]
    pairs = dict(lifts.PAIRS)
    groups = outcomes.moments(rows, pairs, unit=trial.unit)
    alpha = _alpha(trial)
    told = [*names, lifts.RATIO] if trial.unit is None else names
    money = lifts.money(
        groups, sizes=trial.sizes, contacts=trial.contacts, fixed_cost=trial.fixed_cost,
        alpha=alpha,
    ) if knows else None  # fmt: skip
    what = "margin" if knows else "spend"
    share = {name: one["response"].mean * trial.sizes[name[-1]] for name, one in groups.items()}
    return Lift(
        trial=trial,
        rows=lifts.differences(groups, told, sizes=trial.sizes, primary=trial.primary, alpha=alpha),
        earned=money,
        longer=_longer(rows, trial, what, alpha),
        guardrails=lifts.compared_by(
            trials.with_guardrails(shop, rows, trial), _guards(shop), alpha=alpha, unit=trial.unit
        ),
        segments=lifts.compared_by(
            rows.mutate(stratum=rows.stratum.fill_null("all")), {trial.primary: trial.primary},
            alpha=alpha, unit=trial.unit, by=["stratum"],
        ),
        balance=lifts.balance(groups, names),
        mismatch=trial.mismatch,
        alpha=alpha,
        buyers={name[-1]: round(count) for name, count in share.items()},
        dominated=_dominated(rows),
        few_in_parts=_few_in_parts(rows, shop.policy.privacy_k),
        numbers=shop.numbers,
        k=shop.policy.privacy_k,
        take_up=take_up,
    )  # fmt: skip


def _alpha(trial: trials.Trial) -> float:
    """Return what may be spent now: looks before the end have half of it, the end the rest."""
    if trial.complete:
        return effects.ALPHA / 2 if trial.looks else effects.ALPHA
    return effects.alpha_of_look((trial.looks or 0) + 1, alpha=effects.ALPHA / 2)


def _guards(shop: Shop) -> dict[str, str]:
    found = {"brought something back": "gave_back"}
    if shop.has("consents") and "at" in shop.table("consents").columns:
        found["withdrew consent"] = "withdrew"
    return found | ({"complained": "complained"} if shop.has("cases") else {})


def _longer(rows: ir.Table, trial: trials.Trial, what: str, alpha: float) -> pd.DataFrame:
    """Compare longer windows, as far as they are over: sales may only have come earlier."""
    columns = {str(trial.days): what}
    for times in outcomes.LONGER:
        last = trial.last_from + dt.timedelta(times * trial.days - 1)
        if last <= trial.as_of:
            columns[str(times * trial.days)] = f"{what}_{times}"
    return lifts.compared_by(rows, columns, alpha=alpha, unit=trial.unit)


def _few_in_parts(rows: ir.Table, k: int) -> bool:
    """Whether a stratum has too few buyers, or others, in an arm, or one who brings half."""
    counted = rows.group_by("stratum", "arm").aggregate(
        buyers=rows.response.sum(), others=rows.count() - rows.response.sum()
    )  # fmt: skip
    few = counted.filter((counted.buyers < k) | (counted.others < k)).count().to_pyarrow().as_py()
    return bool(few or _half_of_one(rows, ["stratum", "arm"]).count().to_pyarrow().as_py())


def _dominated(rows: ir.Table) -> bool:
    """Whether one customer brings half of any sum of money of an arm, in any of the windows."""
    return bool(_half_of_one(rows, ["arm"]).count().to_pyarrow().as_py())


def _half_of_one(rows: ir.Table, by: list[str]) -> ir.Table:
    """Return the groups of which one customer brings half of a sum of money."""
    import ibis

    columns = [name for name in rows.columns if name.split("_")[0] in ("spend", "margin")]
    sums = {f"{what} {name}": value for name in columns for what, value in
            (("most", rows[name].abs().max()), ("all", rows[name].sum().abs()))}  # fmt: skip
    found = rows.group_by(by).aggregate(**sums)
    return found.filter(
        ibis.or_(
            *((found[f"most {name}"] > 0) & (found[f"most {name}"] * 2 >= found[f"all {name}"])
              for name in columns)
        )
    )  # fmt: skip
