"""Whom to contact next time, learnt from a campaign whose contacts were drawn by lot."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from crmlab import results, tables
from crmlab.learners import (
    DR_LEARNER,
    ID,
    RESPONSE,
    T_LEARNER,
    Encoding,
    Study,
    Trial,
    as_frame,
    encoding,
    score_split,
    trial,
)
from crmlab.lists import EVERYONE, NO_ONE, RETRAININGS, bands, draw_up, judged
from crmlab.qini import Qini, at_shares, deciles, is_share, page_curve, qini

if TYPE_CHECKING:
    import ibis.expr.types as ir

    from crmlab.qini import Array

__all__ = ["Qini", "Target", "learn", "qini", "score_split"]

WORDS = {
    EVERYONE: "contacting everyone",
    NO_ONE: "contacting no one",
    RESPONSE: "contacting those likeliest to respond",
    T_LEARNER: "contacting those it moves most (two models)",
    DR_LEARNER: "contacting those it moves most (doubly robust)",
}
TOLD = (0.1, 0.2, 0.3)


@dataclass(frozen=True, eq=False)
class Target:
    """Whom to contact next time, and what that is worth; private: `scored`, `fitted`.

    `methods` has a row per way to choose: method, qini and its bands, low to high by chance in who
    was drawn and retrained_low to retrained_high with that in what was learnt (`retrainings`
    times); share contacted; net_value per customer of its list over contacting no one, net_low to
    net_high; rival, the best other choice in hindsight, difference to it per customer,
    difference_low to difference_high; better, than every other choice. Money is `value` per unit
    of the outcome less `contact_cost`. `deciles` and `cutoff` are of `method`, the best learner:
    group, customers, predicted, effect, low, high per customer. `at_k` and `curve` have all:
    method, share, customers, effect, low, high; method, share, gain. `share` to contact is that of
    its list, or where no list was `better` that of what to do `instead`: "everyone", "no one" or
    "response".
    `scored` has one row per customer: customer_id where given, fold, a score per method, and
    contact_ with the method: whether its list, drawn up without them, has them.
    """

    methods: pd.DataFrame
    deciles: pd.DataFrame
    at_k: pd.DataFrame
    curve: pd.DataFrame
    method: str
    better: bool
    instead: str
    share: float
    cutoff: float
    customers: int
    treated_customers: int
    retrainings: int
    outcome: str
    in_money: bool
    scored: pd.DataFrame
    fitted: Callable[[pd.DataFrame], Array] | None
    numbers: results.Numbers

    def _of(self, method: str) -> Any:
        return self.methods.set_index("method").loc[method]

    def _thousand(self, each: float) -> str:
        """Print what a thousand customers bring."""
        amount = 1_000 * each
        return self.numbers.money(amount) if self.in_money else self.numbers.number(amount, 1)

    def _per_thousand(self, middle: float, low: float, high: float, more: str = "") -> str:
        unit = "" if self.in_money else f" units of {self.outcome}"
        ends = f"({self._thousand(low)} to {self._thousand(high)})"
        return f"{self._thousand(middle)}{unit}{more} per 1,000 customers {ends}"

    @property
    def verdict(self) -> str:
        """Whom to contact, in plain words, or that no list was better."""
        n, row, everyone = self.numbers, self._of(self.method), self._of(EVERYONE)
        ends = (row.difference, row.difference_low, row.difference_high)
        base = (
            f"Learnt from {n.number(self.customers)} customers, {n.number(self.treated_customers)} "
            "of them contacted by lot."
        )
        if self.better:
            return (
                f"Contact the {n.percent(row.share, 0)} of customers whom the message moves most: "
                f"such a list earned {self._per_thousand(*ends, more=' more')} than "
                f"{WORDS[row.rival]}, the best other choice. {base} Keep a hold-out next time too."
            )
        if self.instead == RESPONSE and self._of(RESPONSE).better:
            row = self._of(RESPONSE)
            ends = (row.difference, row.difference_low, row.difference_high)
            return (
                f"Contact the {n.percent(row.share, 0)} of customers likeliest to respond: such a "
                f"list earned {self._per_thousand(*ends, more=' more')} than {WORDS[row.rival]}. "
                f"Lists of those whom the message moves were no better than that. {base}"
            )
        earned = self._per_thousand(everyone.net_value, everyone.net_low, everyone.net_high)
        best = (
            ""
            if row.difference == 0
            else f"Against {WORDS[row.rival]}, the best list made a difference of "
            f"{self._per_thousand(*ends)}. "
        )
        sorts = (
            "Some customers are moved more than others, but not so that a list is sure to pay."
            if row.retrained_low > 0
            else "That the message moves some customers more than others is not proven either."
        )
        return (
            f"No list was better than {WORDS[self.instead]}. Contacting everyone earned {earned}. "
            f"{best}{sorts} {base}"
        )

    @property
    def headline(self) -> str:
        """The verdict in one short sentence, for a summary."""
        if self.better:
            share = self.numbers.percent(self._of(self.method).share, 0)
            return f"Next time contact the {share} whom the message moves most."
        if self.instead == RESPONSE:
            share = self.numbers.percent(self._of(RESPONSE).share, 0)
            return (
                f"Next time contact the {share} likeliest to buy: no list of those whom the "
                "message moves was better."
            )
        return f"No list of whom to contact was better than {WORDS[self.instead]}."

    def to_frame(self) -> pd.DataFrame:
        """Return one row per way to choose."""
        return self.methods

    def predict(self, rows: pd.DataFrame | ir.Table) -> pd.DataFrame:
        """Score customers by the best learner, fitted on all of the campaign.

        Parameters
        ----------
        rows : DataFrame, or ibis table with customer_id; the features the campaign was learnt from

        Returns
        -------
        DataFrame, one row per customer: customer_id where given, uplift, the expected effect in
        units of the outcome, and contact, whether the score is that of the list

        Raises
        ------
        DataError if no list was better, or a feature is missing
        """
        if self.fitted is None:
            raise tables.DataError(
                f"There is no list to draw up. {self.verdict.split('. ')[0]}. Do that, or learn "
                "from a larger campaign."
            )
        if not isinstance(rows, pd.DataFrame) and ID not in rows.columns:
            raise tables.UsageError(f"An ibis table has no order: give {ID} to tell who is who.")
        frame = as_frame(rows)
        uplift = self.fitted(frame)
        found = pd.DataFrame({"uplift": uplift, "contact": uplift >= self.cutoff})
        if ID in frame:
            found.insert(0, ID, frame[ID])
        return found

    def _repr_html_(self) -> str:
        n = self.numbers
        text = f"<p>{escape(self.verdict)}</p>"
        columns = ["method", "share", "net_value", "net_low", "net_high", "qini", "low", "high"]
        shown = self.methods[columns].assign(method=self.methods["method"].map(WORDS))
        thousand = {name: self._thousand for name in ("net_value", "net_low", "net_high")}
        points = {name: lambda each: n.number(each, 5) for name in ("qini", "low", "high")}
        text += results.html_table(
            shown,
            title="What each choice earned per 1,000 customers, over contacting no one",
            formats={"share": lambda each: n.percent(each, 0), **thousand, **points},
            headings={"method": "choice", "net_value": "earned", "net_low": "from",
                      "net_high": "to", "low": "Qini from", "high": "Qini to"},
        )  # fmt: skip
        printed = n.money if self.in_money else lambda each: n.number(each, 3)
        effect = dict.fromkeys(self.deciles.columns[2:], printed)
        return text + results.html_table(
            self.deciles,
            title=f"Effect on {self.outcome} per customer, by expected effect (1 is the highest)",
            formats={"customers": n.number, **effect},
            headings={"low": "from", "high": "to"},
        )


def learn(
    features: pd.DataFrame | ir.Table,
    *,
    seed: int,
    outcome: str = "outcome",
    treated: str = "treated",
    contact_cost: float = 0.0,
    value: float = 1.0,
    folds: int = 5,
    confidence: float = 0.95,
    learners: Sequence[str] = (T_LEARNER, DR_LEARNER),
    numbers: results.Numbers | None = None,
    k: int = 10,
) -> Target:
    """Learn from a randomised campaign whom to contact next time, and whether a list pays at all.

    Parameters
    ----------
    features : DataFrame or ibis table, one row per customer: customer_id if there is one;
        `treated`, true or 1 for who got the message by lot; `outcome`, 0 or 1 or money; every other
        column is a feature: number, yes or no, word, gaps allowed. Features must have been known
        before the lot was drawn; one that the message itself moved makes all of this wrong, and
        cannot be seen in the table.
    seed : int, for folds and bands
    contact_cost : float, of one contact, in shop currency
    value : float, margin of one unit of the outcome in shop currency; 1 where it is margin already
    folds : int, 4 to 10, into which customers are dealt
    confidence : float, coverage of every interval, a share of 1
    learners : of "t_learner", two models (Künzel et al. 2019, PNAS 116, 4156-4165), and
        "dr_learner" (Kennedy 2023, Electronic Journal of Statistics 17, 3008-3049)
    k : int, the fewest customers of an arm that a figure may stand for

    Returns
    -------
    Target

    Raises
    ------
    DataError if an arm has fewer than 100 customers, the outcome is the same for all, there is no
    feature, or a column is not as said above; UsageError if an argument is out of range

    Notes
    -----
    A list is judged by models and by a share that never saw those it is judged on, with doubly
    robust scores and the share of the lot (Athey and Wager 2021, Econometrica 89, 133-161). It is
    better only if the whole interval of its paired difference to each of everyone, no one and the
    list by response is above zero: at 95 % each learner then wins by chance in at most 2.5 %.
    """
    _check(contact_cost, value, folds, confidence, learners, k)
    known = trial(features, outcome=outcome, treated=treated)
    encoded, alpha = encoding(known.frame), 1 - confidence
    arm, came = known.treated, known.outcome
    study = Study.of(encoded.of(known.frame), arm, came, folds=folds, seed=[seed, 0])
    raw = {name: study.out_of_fold(name) for name in (RESPONSE, *learners)}
    ranks = {name: study.ranks(scores) for name, scores in raw.items()}
    lists, shares = {}, {EVERYONE: 1.0, NO_ONE: 0.0}
    for name in raw:
        lists[name], shares[name] = draw_up(study, name, value, contact_cost)
    lists |= {EVERYONE: np.ones(len(arm), dtype=bool), NO_ONE: np.zeros(len(arm), dtype=bool)}
    methods = judged(lists, value * study.gains() - contact_cost, learners, alpha=alpha)
    methods = methods.join(bands(study, ranks, alpha=alpha, seed=seed), on="method")
    learnt = methods[methods["method"].isin(learners)]
    best = learnt.sort_values(["better", "difference", "qini"], kind="stable").iloc[-1]
    method, size = str(best["method"]), int(lists[best["method"]].sum())
    better = bool(best["better"] and min(size, len(arm) - size) >= k and 0 < shares[method] < 1)
    instead = str(best["unbeaten"] or best["rival"])
    if bool(methods.set_index("method").loc[RESPONSE, "better"]):
        instead = RESPONSE  # no learner beats it, and it beats everyone and no one
    fitted, cutoff = _fitted(study, method, shares[method], encoded) if better else (None, math.nan)
    return Target(
        methods=methods.drop(columns="unbeaten"),
        deciles=deciles(ranks[method], raw[method], arm, came, alpha=alpha, k=k),
        at_k=_stacked(
            {n: at_shares(r, arm, came, shares=TOLD, alpha=alpha, k=k) for n, r in ranks.items()}
        ),
        curve=_stacked({n: page_curve(qini(r, arm, came), arm, k=k) for n, r in ranks.items()}),
        method=method,
        better=better,
        instead="" if better else instead,
        share=shares[method if better else instead],
        cutoff=cutoff,
        customers=len(arm),
        treated_customers=int(arm.sum()),
        retrainings=RETRAININGS,
        outcome=outcome,
        in_money=not is_share(came) or value != 1,
        scored=_scored(known, study, raw, lists),
        fitted=fitted,
        numbers=numbers or results.Numbers(),
    )


def _check(
    cost: float, value: float, folds: int, confidence: float, learners: Sequence[str], k: int
) -> None:
    tables.check_range("contact_cost", cost, 0, 1e9)
    tables.check_range("value", value, 1e-9, 1e9)
    tables.check_range("folds", folds, 4, 10)
    tables.check_range("confidence", confidence, 0.5, 0.999)
    tables.check_range("k", k, 1, 1e9)
    known = (T_LEARNER, DR_LEARNER)
    if isinstance(learners, str) or not learners or not {*learners} <= {*known}:
        raise tables.UsageError(
            f"learners is {learners!r}; it must name one or both of {', '.join(known)}."
        )


def _fitted(
    study: Study, method: str, share: float, encoded: Encoding
) -> tuple[Callable[[pd.DataFrame], Array], float]:
    """Return the method learnt from all customers, and the score of the last one on the list."""
    scorer = study.scorer(method)
    cutoff = float(np.quantile(scorer(study.inputs), 1 - share, method="higher"))
    return lambda rows: scorer(encoded.of(rows)), cutoff


def _stacked(parts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the frames of all methods as one, with a column that names the method."""
    return pd.concat(parts, names=["method"]).reset_index(level=0).reset_index(drop=True)


def _scored(
    known: Trial, study: Study, raw: Mapping[str, Array], lists: Mapping[str, Array]
) -> pd.DataFrame:
    """Return one row per customer: id where there is one, fold, scores, who is on which list."""
    ids = {} if known.ids is None else {ID: known.ids.to_numpy()}
    contacts = {f"contact_{name}": lists[name] for name in raw}
    return pd.DataFrame({**ids, "fold": study.fold, **raw, **contacts})
