"""The log-likelihoods of purchases and of spend, with their derivatives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from crmlab.models import Array, PurchaseModel

# Of the logarithms of the parameters: value, gradient and, where it is asked for, the Hessian.
Derivatives: TypeAlias = "Callable[[Array, bool], tuple[float, Array, Array]]"


class Rows:
    """Customers alike, and the log-likelihood of a purchase model on them.

    Special functions are evaluated once per different pair of x and T, and of x and t_x;
    `weights` counts the customers of each row of x, t_x and T.
    """

    def __init__(self, x: Array, t_x: Array, T: Array, weights: Array) -> None:
        import numpy as np

        self.weights, self.median_T = weights, float(np.median(T))
        self.x, place = np.unique(x, return_inverse=True)
        self.customers = np.bincount(place, weights)
        self.at_T, self.at_last = _pairs(place, T), _pairs(place, t_x)

    def parts(self, formulas: PurchaseModel, logs: Array) -> tuple[Array, Array, Array]:
        """Return start, still and stopped of `models`, the last two for each different pair."""
        import numpy as np

        p = dict(zip(formulas.names, np.exp(logs).tolist(), strict=True))
        (x_T, T, _), (x_last, t_x, _) = self.at_T, self.at_last
        return (
            formulas.start(p, self.x),
            formulas.still(p, self.x[x_T], T),
            formulas.stopped(p, self.x[x_last], t_x),
        )

    def total(self, formulas: PurchaseModel, logs: Array) -> float:
        """Return the log-likelihood at the logarithms of the parameters."""
        import numpy as np

        start, still, stopped = self.parts(formulas, logs)
        either = np.logaddexp(still[self.at_T[2]], stopped[self.at_last[2]])
        return float(self.customers @ start + self.weights @ either)

    def derivatives(
        self, formulas: PurchaseModel, logs: Array, second: bool
    ) -> tuple[float, Array, Array]:
        """Return the total, its gradient and, if asked for, its Hessian in the logarithms.

        A row's part is the logarithm of a sum of two terms, so its slope is the mean of theirs,
        weighted by their shares, and its curvature has the variance between them beside the mean.
        What each term does on its own is found by central differences, once per pair.
        """
        import numpy as np
        from scipy.special import expit

        parts = partial(self.parts, formulas)
        start, still, stopped = parts(logs)
        place_T, place_last = self.at_T[2], self.at_last[2]
        first, other = still[place_T], stopped[place_last]
        total = self.customers @ start + self.weights @ np.logaddexp(first, other)
        share = expit(first - other)
        of_T = np.bincount(place_T, self.weights * share, len(still))
        of_last = np.bincount(place_last, self.weights * (1 - share), len(stopped))
        some = of_last > 0  # nobody can have stopped before a first repeat purchase

        def fixed(at: Array) -> float:
            one, two, three = parts(at)
            return float(self.customers @ one + of_T @ two + of_last[some] @ three[some])

        steps = np.eye(len(logs))
        slopes, gradient = [], []
        for step in steps * 1e-5:
            ends = zip(parts(logs + step), parts(logs - step), strict=True)
            with np.errstate(invalid="ignore"):
                one, two, three = (np.nan_to_num((up - down) / 2e-5) for up, down in ends)
            gradient.append(self.customers @ one + of_T @ two + of_last @ three)
            if second:
                slopes.append(two[place_T] - three[place_last])
        hessian = np.zeros((len(logs), len(logs)))
        if not second:
            return float(total), np.array(gradient), hessian
        steps, middle = steps * 1e-3, fixed(logs)
        between = self.weights * share * (1 - share)
        ups = [fixed(logs + step) for step in steps]
        downs = [fixed(logs - step) for step in steps]
        for i in range(len(logs)):
            hessian[i, i] = (ups[i] + downs[i] - 2 * middle) / 1e-6
            for j in range(i):
                both = fixed(logs + steps[i] + steps[j]) + fixed(logs - steps[i] - steps[j])
                alone = ups[i] + downs[i] + ups[j] + downs[j] - 2 * middle
                hessian[i, j] = hessian[j, i] = (both - alone) / 2e-6
        return (
            float(total),
            np.array(gradient),
            hessian + np.array([[between @ (one * other) for one in slopes] for other in slopes]),
        )


def _pairs(place: Any, t: Array) -> tuple[Any, Array, Any]:
    """Return the different pairs of a place and a time, and the place of each row's among them."""
    import numpy as np

    times, at = np.unique(t, return_inverse=True)
    found, back = np.unique(place * len(times) + at, return_inverse=True)
    return found // len(times), times[found % len(times)], back


def spend_derivatives(x: Array, value: Array, weights: Array) -> Derivatives:
    """Return the Gamma-Gamma log-likelihood of unique rows as a function of log p, log q, log v.

    Fader and Hardie (2013), note 025, equation 1a, with its derivatives.
    """
    import numpy as np
    from scipy.special import gammaln, polygamma, psi

    xs, place = np.unique(x, return_inverse=True)
    counts, n = np.bincount(place, weights), weights.sum()
    in_all, of_x = x * value, weights * x
    constant = of_x @ np.log(in_all)
    less = weights @ np.log(value)

    def derivatives(logs: Array, second: bool) -> tuple[float, Array, Array]:
        p, q, v = np.exp(logs)
        shape, log, inverse = p * xs + q, np.log(in_all + v), 1 / (in_all + v)
        rows = p * x + q
        total = counts @ (gammaln(shape) - gammaln(p * xs)) - n * (gammaln(q) - q * np.log(v))
        total += p * constant - less - (weights * rows) @ log
        gradient = np.array(
            [
                (counts * xs) @ (psi(shape) - psi(p * xs)) + constant - of_x @ log,
                counts @ psi(shape) - n * (psi(q) - np.log(v)) - weights @ log,
                n * q / v - (weights * rows) @ inverse,
            ]
        ) * np.exp(logs)
        if not second:
            return float(total), gradient, np.zeros((3, 3))
        curve = polygamma(1, shape)
        pp = (counts * xs**2) @ (curve - polygamma(1, p * xs))
        pq, qq = (counts * xs) @ curve, counts @ curve - n * polygamma(1, q)
        pv, qv = -of_x @ inverse, n / v - weights @ inverse
        vv = (weights * rows) @ inverse**2 - n * q / v**2
        hessian = np.array([[pp, pq, pv], [pq, qq, qv], [pv, qv, vv]])
        scale = np.outer(np.exp(logs), np.exp(logs))
        return float(total), gradient, hessian * scale + np.diag(gradient)

    return derivatives
