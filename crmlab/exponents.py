"""Huff's formula, and its exponents of size and distance as the visits of customers show them.

Huff (1963), Land Economics 39, 81-90: P(store) = size^a * distance^b / the same sum over all
stores. Its exponents are those of a conditional logit on the logarithms (McFadden 1974).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crmlab import tables
from crmlab.choices import Choices

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

# Nobody's way is shorter: who lives in the house next door still walks, parks and waits.
LEAST = {"km": 0.2, "minutes": 1.0}
# With fewer stores the exponent of size rests on so few sizes that it is taken to be 1 ...
FEW_STORES = 8
# ... unless its 95 % interval reaches no farther than this, so that 1 can be told from 0.
WELL_KNOWN = 0.5
STEEPEST = 20.0  # an exponent that far out is as good as infinite
REPEATED = 400_000  # customers x stores of the lot on which a fit is repeated without each store
LEAST_INFORMATION = 1e-6  # for each visit: below it the stores do not differ in this
START = (1.0, -1.0)


def probabilities(
    size: Any, distance: Any, *, size_exponent: float = 1.0, distance_exponent: float = -2.0
) -> Array:
    """Return how likely each store (column) is chosen from each place (row); rows sum to 1.

    Parameters
    ----------
    size : array of the stores, in any unit, above 0
    distance : array of places x stores, in any unit, above 0

    Examples
    --------
    >>> probabilities([1.0, 2.0], [[1.0, 1.0], [1.0, 2.0]]).round(3).tolist()
    [[0.333, 0.667], [0.667, 0.333]]
    """
    import numpy as np

    logs = size_exponent * np.log(np.asarray(size, dtype=float))
    return _softmax(logs + distance_exponent * np.log(np.asarray(distance, dtype=float)))


def _softmax(logs: Array) -> Array:
    import numpy as np

    pulls: Array = np.exp(logs - logs.max(axis=-1, keepdims=True))
    pulls /= pulls.sum(axis=-1, keepdims=True)
    return pulls


def _way(found: Choices) -> Array:
    """Return the logarithm of the way, which is never less than the least that counts."""
    import numpy as np

    way: Array = np.log(np.maximum(found.far.astype(float), LEAST[found.unit]))
    return way


def shares(found: Choices, exponents: Array) -> Array:
    """Return `probabilities` of customers x stores, under the least way that counts."""
    import numpy as np

    return _softmax(exponents[0] * np.log(found.area) + exponents[1] * _way(found))


@dataclass(frozen=True, eq=False)
class Moments:
    """The log-likelihood at some exponents of size and distance, and its derivatives.

    `scores` is the sum over customers of the outer product of each one's gradient.
    """

    likelihood: float
    gradient: Array
    information: Array
    scores: Array


def moments(found: Choices, exponents: Array) -> Moments:
    """Go over all customers once; what one visit adds is the same for each visit of a customer."""
    import numpy as np

    likelihood, gradient = 0.0, np.zeros(2)
    information, scores = np.zeros((2, 2)), np.zeros((2, 2))
    size = np.log(found.area)
    for part, _ in found.parts():
        visits, way = part.visits.astype(float), _way(part)
        chance = _softmax(exponents[0] * size + exponents[1] * way)
        number = visits.sum(axis=1)
        likelihood += float((visits * np.log(np.maximum(chance, 1e-300))).sum())
        more = visits - number[:, None] * chance
        score = np.column_stack([more @ size, (more * way).sum(axis=1)])
        gradient += score.sum(axis=0)
        scores += score.T @ score
        weighted = chance * way
        means = np.column_stack([chance @ size, weighted.sum(axis=1)])
        squares = chance @ size**2, weighted @ size, (weighted * way).sum(axis=1)
        second = np.array([(number * one).sum() for one in squares])
        information += second[[[0, 1], [1, 2]]] - (means * number[:, None]).T @ means
    return Moments(likelihood, gradient, information, scores)


def climb(
    found: Choices, free: tuple[int, ...], start: Array | tuple[float, float] = START
) -> tuple[Array, Moments]:
    """Return the exponents of the greatest likelihood, by Newton's steps: it has one summit.

    `free` are the exponents to be found: 0 of size, 1 of distance; the others stay at `start`.

    Raises
    ------
    DataError where the stores do not differ in what is asked, or no finite exponent is best
    """
    import numpy as np

    which = np.ix_(free, free)
    here = np.array(start, dtype=float)
    at, visits = moments(found, here), float(found.visits.sum(dtype=float))
    for _ in range(60):
        information = at.information[which]
        if np.linalg.eigvalsh(information).min() < LEAST_INFORMATION * visits:
            names = " and ".join(("size", "distance")[one] for one in free)
            raise tables.DataError(
                f"The visits do not show what {names} do: from where customers live, the stores "
                "hardly differ in it."
            )
        step = np.zeros(2)
        step[list(free)] = np.linalg.solve(information, at.gradient[list(free)])
        gain = float(step @ at.gradient)
        step *= min(1.0, 3.0 / np.abs(step).max()) if gain > 0 else 1.0
        if gain < 1e-9:
            return here, at
        while True:
            there = moments(found, here + step)
            if there.likelihood >= at.likelihood - 1e-12 * abs(at.likelihood):
                break
            step /= 2
        here, at = here + step, there
        if np.abs(here).max() > STEEPEST:
            break
    raise tables.DataError(
        "Nearly every visit goes where size or distance alone would send it: no finite exponent "
        "is best, and Huff's model adds nothing to that rule."
    )


def clustered(at: Moments, free: tuple[int, ...], customers: int) -> Array:
    """Return the covariance of the exponents, 0 where fixed; a customer's visits are one lot.

    The sandwich of Liang and Zeger (1986), Biometrika 73, 13-22, times n / (n - 1).
    """
    import numpy as np

    which = np.ix_(free, free)
    bread = np.linalg.inv(at.information[which])
    covariance = np.zeros((2, 2))
    covariance[which] = bread @ at.scores[which] @ bread * customers / (customers - 1)
    return covariance


@dataclass(frozen=True, eq=False)
class Exponents:
    """The `best` exponents of size and distance, and how well the visits show them.

    `free` are those that were found, 0 of size, 1 of distance; the others are fixed. Both standard
    errors are 0 where fixed: `from_customers` takes each customer's visits as one lot,
    `from_stores` leaves out each store once, and is nan where that cannot be done. `reach` is the
    half of the 95 % interval: 1.96 of the former or Student's t of the latter, with stores - 1
    degrees of freedom, whichever is wider; `covariance` is that of the customers, widened to it.
    Where stores have an appeal of their own, the former alone is far too narrow. `without`: stores
    x 2, the exponents from the choice among the others.
    """

    best: Array
    free: tuple[int, ...]
    from_customers: Array
    from_stores: Array
    reach: Array
    covariance: Array
    without: Array


def find(found: Choices, few: Choices) -> Exponents:
    """Find the exponents; of size only where eight stores or its interval allow it.

    The fit is repeated without each store on `few`, some of the customers.
    """
    import numpy as np

    if found.sized and found.number > 2:
        try:
            both = _of(found, few, (0, 1))
        except tables.DataError:
            both = None  # distance alone may be told, or `climb` says below why not
        if both is not None:
            known = both.reach[0] <= WELL_KNOWN and not np.isnan(both.from_stores[0])
            if found.number >= FEW_STORES or known:
                return both
    return _of(found, few, (1,))


def _of(found: Choices, few: Choices, free: tuple[int, ...]) -> Exponents:
    import numpy as np
    from scipy.special import stdtrit

    # From what some customers show it is not far to what all do.
    best, at = climb(found, free, climb(few, free)[0])
    without = np.full((found.number, 2), math.nan)
    for store in range(found.number if found.number > 2 else 0):
        try:
            without[store], _ = climb(few.drop(store), free, best)
        except tables.DataError:
            continue
    covariance = clustered(at, free, found.customers)
    from_customers, from_stores = np.sqrt(np.diag(covariance)), jackknife(without)
    reach = np.fmax(1.96 * from_customers, stdtrit(found.number - 1, 0.975) * from_stores)
    # The correlation of the sandwich, with the wider intervals.
    wider = np.divide(reach / 1.96, from_customers, out=np.zeros(2), where=from_customers > 0)
    covariance = covariance * np.outer(wider, wider)
    return Exponents(best, free, from_customers, from_stores, reach, covariance, without)


def jackknife(without: Array) -> Array:
    """Return the jackknife's standard errors, Efron (1982), chapter 3; nan where a store lacks."""
    import numpy as np

    n = len(without)
    spread = ((without - without.mean(axis=0)) ** 2).sum(axis=0)
    return np.asarray(np.sqrt((n - 1) / n * spread))
