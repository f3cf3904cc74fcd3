"""What a campaign changed, what it earned, and whom to contact next time."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

from crmlab import effects, lifts, outcomes, results, tables, trials
from crmlab.ledgers import HOLDOUT
from crmlab.outcomes import OUTCOMES

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.sources import Shop

__all__ = ["Lift", "measure"]

# A mismatch of the arms' sizes as rare as this is no chance.
MISMATCH = 0.001
UNLIKE = 0.1
BEFORE_DAYS = 182


@dataclass(frozen=True, eq=False)
class Lift:
    """What every arm changed against those held out, by the arm that was drawn, sent or not.

    `rows` as `lifts.differences` gives them; `earned` as `lifts.money`, None where the shop's
    margin is not known; `longer`, the effect on margin or spend in one, two and four windows;
    `guardrails`, what should not have risen; `segments`, the primary outcome by stratum: all three
    as `lifts.compared_by`. `balance` as `lifts.balance`. `looks` is how often somebody looked
    before the end, None if nobody says; `alpha`, the chance of a false alarm that is spent now.
    """

    trial: trials.Trial
    rows: pd.DataFrame
    earned: pd.DataFrame | None
    longer: pd.DataFrame
    guardrails: pd.DataFrame
    segments: pd.DataFrame
    balance: pd.DataFrame
    mismatch: tuple[float, float]
    alpha: float
    buyers: Mapping[str, int]
    dominated: bool
    numbers: results.Numbers
    k: int

    def to_frame(self) -> pd.DataFrame:
        """Return one row per arm and outcome."""
        return self.rows.copy()

    @property
    def sound(self) -> bool:
        """Whether the arms have the sizes that were planned."""
        return not self.mismatch[1] < MISMATCH

    @property
    def tellable(self) -> bool:
        """Whether enough customers bought, and did not, in each arm to tell of them on a page."""
        return not any(
            count < self.k or self.trial.sizes[arm] - count < self.k
            for arm, count in self.buyers.items()
        )

    @property
    def primary(self) -> pd.DataFrame:
        """The rows on which the verdict rests."""
        return self.rows[self.rows["primary"]].reset_index(drop=True)

    @property
    def cautions(self) -> list[str]:
        """What stands against the figures, a sentence each."""
        n, trial, found = self.numbers, self.trial, list(self.trial.cautions)
        if not self.sound:
            found.insert(0, (
                f"The arms do not have the sizes that were planned (chi-squared "
                f"{n.number(self.mismatch[0], 1)}, p {self.mismatch[1]:.1g}): something but the "
                "lot decided who was in which, and the figures may be wrong."
            ))  # fmt: skip
        unlike = self.balance[self.balance["standardised"].abs() > UNLIKE]
        if len(unlike):
            found.append(
                f"The arms differed before in {', '.join(sorted(set(unlike['outcome'])))} by more "
                "than a tenth of a standard deviation."
            )
        if not trial.complete:
            found.append(
                f"The days that count end on {n.day(trial.ends_on)}: this is not the result yet."
            )
        return found

    @property
    def verdict(self) -> str:
        """Whether it worked, on the primary outcome, in plain words."""
        n, trial = self.numbers, self.trial
        if not self.sound:
            return f"Cannot say whether “{trial.name}” worked. {self.cautions[0]}"
        if not trial.complete and trial.looks is None:
            return (
                f"Too early to say whether “{trial.name}” worked: the days that count end on "
                f"{n.day(trial.ends_on)}. Who wants to know before says how often they have "
                "looked (`looks`), so that no chance finding passes for a success."
            )
        return " ".join(_sentence(self, row) for row in self.primary.itertuples())

    @property
    def money_verdict(self) -> str:
        """Whether it paid, in plain words; nothing where that is not known."""
        n = self.numbers
        if self.earned is None or not self.sound or (
            not self.trial.complete and self.trial.looks is None
        ):  # fmt: skip
            return ""
        told = []
        for row in self.earned.itertuples():
            ends = f"{n.short_money(row.low)} to {n.short_money(row.high)}"
            what = {"earned": "It paid", "lost": "It lost money"}.get(row.verdict, "Not proven")
            arm = f" “{row.arm}”" if len(self.earned) > 1 else ""
            told.append(
                f"{what}{':' if not arm else f', arm{arm}:'} {n.short_money(row.profit)} after "
                f"costs of {n.short_money(row.cost)} ({ends})."
            )
        return " ".join(told)

    @property
    def response(self) -> str:
        """How many bought, beside how many would have bought anyway."""
        n, found = self.numbers, self.rows[self.rows["outcome"] == "response"]
        if not self.tellable:
            return f"Fewer than {self.k} in an arm bought, or did not: no share is told."
        return " ".join(
            f"{n.percent(row.mean)} of “{row.arm}” bought; so did {n.percent(row.mean_holdout)} of "
            "those who were held out."
            for row in found.itertuples()
        )

    @property
    def kpis(self) -> list[results.Kpi]:
        """The tiles, as far as they may be told."""
        first = self.primary.iloc[0]
        found = [
            results.Kpi("Customers contacted", self.trial.contacted, "count"),
            results.Kpi("Held out", self.trial.sizes[HOLDOUT], "count", note="by lot"),
        ]
        may = self.tellable and not self.dominated and (
            self.trial.complete or self.trial.looks is not None
        )  # fmt: skip
        if may:
            found.append(
                results.Kpi(f"Change in {first['outcome']}", first["relative"], "signed_share",
                            "up", "primary outcome")
            )  # fmt: skip
            if self.earned is not None:
                found.append(results.Kpi("Profit", float(self.earned["profit"].sum()), "money",
                                         "up", "after costs"))  # fmt: skip
        return found

    def shown(self) -> pd.DataFrame:
        """Return the rows that a page may show: nothing of few buyers, no sum of one customer."""
        rows = self.rows if self.tellable else self.rows.iloc[:0]
        if self.dominated:
            rows = rows[rows["outcome"].isin(["response", "purchases"])]
        return rows.reset_index(drop=True)

    def _repr_html_(self) -> str:
        n, early = self.numbers, not self.trial.complete and self.trial.looks is None
        said = [self.verdict, self.money_verdict, *self.cautions]
        text = "".join(f"<p>{escape(one)}</p>" for one in said if one)
        if early or not len(rows := self.shown()):
            return text
        rows = rows.assign(
            **{"95% interval": [_ends(n, row) for row in rows.itertuples()],
               "more": [_size(n, row.outcome, row.difference) for row in rows.itertuples()],
               "with": [_level(n, row.outcome, row.mean) for row in rows.itertuples()],
               "held out": [_level(n, row.outcome, row.mean_holdout) for row in rows.itertuples()]}
        )  # fmt: skip
        shown = ["arm", "outcome", "with", "held out", "more", "95% interval", "relative"]
        return text + results.html_table(
            rows[shown], title="Each arm against those held out, per customer",
            formats={"with": str, "held out": str, "more": str,
                     "relative": lambda value: n.percent(value, signed=True)},
            headings={"relative": "in percent"},
        )  # fmt: skip


def _level(n: results.Numbers, outcome: str, value: float) -> str:
    if outcome == "response":
        return n.percent(value)
    return n.number(value, 3) if outcome == "purchases" else n.money(value)


def _size(n: results.Numbers, outcome: str, value: float) -> str:
    sign = "+" if value > 0 else ""
    if outcome == "response":
        return f"{sign}{n.number(100 * value, 2)} points"
    return sign + _level(n, outcome, value)


def _ends(n: results.Numbers, row: Any) -> str:
    return " to ".join(_size(n, row.outcome, end) for end in (row.low, row.high))


def _sentence(lift: Lift, row: Any) -> str:
    """Say of one arm whether it changed the primary outcome."""
    n = lift.numbers
    middle, low, high = lifts.best(row)
    arm = f"Arm “{row.arm}” of “{lift.trial.name}”" if len(lift.primary) > 1 else (
        f"“{lift.trial.name}”"
    )  # fmt: skip
    what = {"response": "the share of buyers"}.get(row.outcome, f"{row.outcome} per customer")
    ends = f"({_size(n, row.outcome, low)} to {_size(n, row.outcome, high)})"
    if low > 0 or high < 0:
        verb = "raised" if low > 0 else "lowered"
        size = _size(n, row.outcome, abs(middle)).removeprefix("+")
        return f"{arm} {verb} {what} by {size} {ends}."
    return f"{arm} did not visibly change {what}: {_size(n, row.outcome, middle)} {ends}."


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
    rows = rows.mutate(cost=cost, profit=rows.margin - cost)
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
        numbers=shop.numbers,
        k=shop.policy.privacy_k,
    )  # fmt: skip


def _alpha(trial: trials.Trial) -> float:
    """Return what may be spent now: looks before the end have half of it, the end the rest."""
    if trial.complete:
        return effects.ALPHA / 2 if trial.looks else effects.ALPHA
    return effects.alpha_of_look((trial.looks or 0) + 1, alpha=effects.ALPHA / 2)


def _guards(shop: Shop) -> dict[str, str]:
    found = {"money back": "returned"}
    found |= {"withdrew consent": "withdrew"} if shop.has("consents") else {}
    return found | ({"complained": "complained"} if shop.has("cases") else {})


def _longer(rows: ir.Table, trial: trials.Trial, what: str, alpha: float) -> pd.DataFrame:
    """Compare longer windows, as far as they are over: sales may only have come earlier."""
    columns = {str(trial.days): what}
    for times in outcomes.LONGER:
        last = trial.last_from + dt.timedelta(times * trial.days - 1)
        if last <= trial.as_of:
            columns[str(times * trial.days)] = f"{what}_{times}"
    return lifts.compared_by(rows, columns, alpha=alpha, unit=trial.unit)


def _dominated(rows: ir.Table) -> bool:
    """Whether one customer brings half of the money of an arm."""
    most = rows.group_by("arm").aggregate(
        largest=rows.spend.abs().max(), total=rows.spend.sum().abs()
    )
    found = most.filter((most.largest > 0) & (most.largest * 2 >= most.total))
    return bool(found.count().to_pyarrow().as_py())
