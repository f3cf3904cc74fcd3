"""What a list of customers to contact earns, judged on customers it was not learnt from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from crmlab.learners import RESPONSE, Study
from crmlab.qini import drawn, draws, qini

if TYPE_CHECKING:
    from crmlab.qini import Array

EVERYONE, NO_ONE = "everyone", "no one"
SHARES = np.linspace(0, 1, 21)  # that a list may hold
BOOTSTRAPS = 500
RETRAININGS = 10


def draw_up(study: Study, method: str, value: float, cost: float) -> tuple[Array, float]:
    """Return who would be on the list, as seen from the other folds, and its usual share.

    For each fold the share is the one that earned most in the others, whose scores and effects
    come from models that saw neither them nor the fold.
    """
    contacted, shares = np.zeros(len(study.fold), dtype=bool), []
    for fold in study.folds:
        here = study.fold == fold
        ranks = study.ranks(study.out_of_fold(method, also=fold))
        net = value * study.gains(also=fold) - cost
        earned = [float(net[~here & on_list(ranks, share)].sum()) for share in SHARES]
        shares.append(float(SHARES[int(np.argmax(earned))]))
        contacted[here] = on_list(ranks[here], shares[-1])
    return contacted, float(np.median(shares))


def on_list(ranks: Array, share: float) -> Array:
    """Return who is among the highest share of places from 0 to 1."""
    return np.asarray(ranks > 1 - share + 1e-9)


def judged(
    lists: Mapping[str, Array], net: Array, learners: Sequence[str], *, alpha: float
) -> pd.DataFrame:
    """Hold every list against the others, customer by customer.

    `lists` has those of the learners, by response, everyone's and no one's; `net` is what a contact
    with each customer earns. One row per list: method, share, net_value and its interval per
    customer, rival, difference and its interval, better, and `unbeaten`, the first of the rivals
    that the list cannot be told from: the better of everyone and no one before the response.
    """
    z = NormalDist().inv_cdf(1 - alpha / 2)

    def told(each: Array) -> tuple[float, float, float]:
        mean, reach = float(each.mean()), z * float(each.std(ddof=1)) / math.sqrt(len(each))
        return mean, mean - reach, mean + reach

    fixed = [EVERYONE, NO_ONE] if net.mean() > 0 else [NO_ONE, EVERYONE]
    rows = []
    for name, chosen in lists.items():
        rivals = [one for one in (*fixed, RESPONSE) if one != name]
        rivals = rivals if name in learners else [one for one in fixed if name == RESPONSE]
        against = {one: told((chosen * 1.0 - lists[one]) * net) for one in rivals}
        # The best in hindsight is the hardest to beat; the others must be beaten as well.
        rival = min(rivals, key=lambda one: against[one][0], default="")
        unbeaten = [one for one in rivals if not against[one][1] > 0]
        rows.append(
            (name, float(chosen.mean()), *told(chosen * net))
            + (rival, *against.get(rival, (math.nan,) * 3))
            + (bool(rivals) and not unbeaten, unbeaten[0] if unbeaten else "")
        )
    ends = ("difference", "difference_low", "difference_high", "better", "unbeaten")
    columns = ["method", "share", "net_value", "net_low", "net_high", "rival", *ends]
    return pd.DataFrame(rows, columns=columns)


def bands(study: Study, ranks: Mapping[str, Array], *, alpha: float, seed: int) -> pd.DataFrame:
    """Return the Qini of each score with two bands: qini, low, high, retrained_low and _high.

    The first is the bootstrap of customers already scored. For the second, customers are drawn
    again, dealt into new folds and learnt from anew, and the spread of these Qinis is Student's;
    it is never the narrower one, which knows less. One row per method.
    """
    from scipy import stats

    arm, came = study.treated, study.outcome
    found = draws(ranks, arm, came, times=BOOTSTRAPS, seed=seed)
    generator = np.random.default_rng([seed, 2])
    anew: dict[str, list[float]] = {name: [] for name in ranks}
    for again in range(RETRAININGS):
        weights = drawn(arm, generator)
        new = Study.of(
            *(study.inputs, arm, came),
            folds=len(study.folds),
            seed=[seed, 3, again],
            weights=weights,
        )
        for name in ranks:
            places = new.ranks(new.out_of_fold(name))
            anew[name].append(qini(places, arm, came, weights=weights).value)
    rows, t = {}, float(stats.t.isf(alpha / 2, RETRAININGS - 1))
    for name in ranks:
        value = qini(ranks[name], arm, came).value
        low, high = np.quantile(found[name], (alpha / 2, 1 - alpha / 2))
        reach = t * float(np.std(anew[name], ddof=1))
        rows[name] = (value, low, high, min(low, value - reach), max(high, value + reach))
    columns = ["qini", "low", "high", "retrained_low", "retrained_high"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)
