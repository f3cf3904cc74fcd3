"""Fit models of purchases and of spend to a summary by maximum likelihood."""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, TypeAlias

from crmlab import tables
from crmlab.forecasts import KEYS, TITLES, ClvModel, Estimates, Spend

if TYPE_CHECKING:
    import ibis.expr.types as ir

    from crmlab.models import Array, PurchaseModel

# Fewer repeat customers than this leave four parameters to chance.
MIN_REPEAT_CUSTOMERS = 30
# What two more parameters must add to the log-likelihood: half the 95 % point of chi-squared (2).
LEAST_GAIN = 3.0
WIDEST = 100  # times its start: a parameter that far out is as good as infinite
FEW = 20_000  # unique rows that a fit starts with; the rest only move it a little

# Of the logarithms of the parameters: value, gradient and, where it is asked for, the Hessian.
Rows: TypeAlias = "tuple[Array, ...]"  # x, t_x, T and how many customers have them
Derivatives: TypeAlias = "Callable[[Array, bool], tuple[float, Array, Array]]"


def fit(summary: ir.Table, *, model: str = "bgnbd", days_per_unit: float = 7) -> ClvModel:
    """Fit a model of purchases, and Gamma-Gamma for their value, by maximum likelihood.

    Where the log does not show that customers stop, the model is NBD instead, and says so.

    Parameters
    ----------
    summary : ibis table as `customers.summary` gives it
    model : "bgnbd", "mbgnbd", "paretonbd" or "nbd"; their publications stand in `models`
    days_per_unit : float, days in the parameters' unit of time; 7 as in the literature

    Raises
    ------
    UsageError for a model that does not exist; DataError if fewer than 30 customers came back, or
    the mean value of a purchase is infinite
    """
    import numpy as np

    from crmlab import models

    tables.check_range("days_per_unit", days_per_unit, 0.001, 10_000)
    if model not in TITLES:
        raise tables.UsageError(
            f"There is no model {model!r}; choose one of {', '.join(TITLES)}."
            + tables.did_you_mean(str(model), TITLES)
        )
    keys = list(KEYS)
    rows = summary.group_by(keys).aggregate(customers=summary.count()).order_by(keys).to_pandas()
    x, t_x, T, weights = (rows[key].to_numpy(float) for key in [*keys, "customers"])
    repeaters = int(weights[x > 0].sum())
    if repeaters < MIN_REPEAT_CUSTOMERS:
        raise tables.DataError(
            f"Only {repeaters} of {int(weights.sum())} customers came back for a second purchase; "
            f"a lifetime value needs at least {MIN_REPEAT_CUSTOMERS}. Take a longer log or a later "
            "as_of."
        )
    data = (x, t_x / days_per_unit, T / days_per_unit, weights)
    few = tuple(column[:: max(1, len(x) // FEW)] for column in data)
    nbd = _fit_purchases(models.MODELS["nbd"], data, few, (0.5, _mean_gap(data)))
    chosen, fitted = "nbd", nbd
    if model != "nbd":
        parameters = nbd[0].parameters
        least = few[3] @ models.MODELS["nbd"].log_likelihood(parameters, *few[:3]) + LEAST_GAIN
        richer = _fit_purchases(
            models.MODELS[model], data, few, tuple(parameters.values()), least=least
        )
        chosen, fitted = (model, richer) if richer[1] > nbd[1] + LEAST_GAIN else (chosen, nbd)
    estimates, total, notes = fitted
    if chosen != model:
        notes += (
            f"That customers stop buying for good does not show in this log: {TITLES[model]} fits "
            "it no better than NBD, in which no one ever stops. So NBD is used, and its forecasts "
            "are too high wherever customers do stop.",
        )
    spend, spend_notes = _fit_spend(summary)
    newest = summary.order_by(summary["T"], summary.customer_id).limit(1).to_pandas().iloc[0]
    return ClvModel(
        model=chosen,
        estimates=estimates,
        log_likelihood=total,
        spend=spend,
        days_per_unit=days_per_unit,
        as_of=tables.day(newest["first_purchase"]) + dt.timedelta(days=int(newest["T"])),
        customers=int(weights.sum()),
        fingerprint=hashlib.sha256(np.array([x, t_x, T, weights]).tobytes()).hexdigest()[:16],
        notes=(*notes, *spend_notes),
    )


def _mean_gap(data: Rows) -> float:
    """Return a first guess of alpha for r = .5: half of the time seen per repeat purchase."""
    x, _, T, weights = data
    return max(0.5 * float(weights @ T) / float(weights @ x), 1e-6)


def _fit_purchases(
    formulas: PurchaseModel,
    data: Rows,
    few: Rows,
    nbd: tuple[float, ...],
    least: float = float("-inf"),
) -> tuple[Estimates, float, tuple[str, ...]]:
    """Return estimates, log-likelihood and notes of a purchase model, starting from NBD's.

    Where a few of the rows do not even reach the log-likelihood `least`, it ends there.
    """
    import numpy as np

    start = np.log([*nbd, *formulas.guess])
    if formulas.key == "paretonbd":  # the scale of the time to stopping is one of time
        start[3] += np.log(max(float(np.median(data[2])), 1e-6))
    whole, some = Likelihood(formulas, *data), Likelihood(formulas, *few)
    logs = _bounded(some.derivatives, start, start, float(few[3].sum()))
    if some.derivatives(logs, False)[0] < least:
        return _estimates(formulas.names, logs, None), float("-inf"), ()
    logs, found = _maximum(whole.derivatives, logs, start, float(data[3].sum()))
    notes: tuple[str, ...] = ()
    if not found:
        notes = (
            f"{formulas.title}: no maximum at finite parameters, so they were held within 100 "
            "times a usual value. How customers differ, in how often they buy or in when they "
            "stop, does not show in this log. Forecasts are usable if the hold-out check says so; "
            "standard errors there are none.",
        )
    total, _, hessian = whole.derivatives(logs, True)
    return _estimates(formulas.names, logs, hessian if found else None), total, notes


class Likelihood:
    """The log-likelihood of a purchase model, its special functions evaluated once per pair.

    `weights` counts the customers of each row of x, t_x and T.
    """

    def __init__(
        self, formulas: PurchaseModel, x: Array, t_x: Array, T: Array, weights: Array
    ) -> None:
        import numpy as np

        self.formulas, self.weights = formulas, weights
        self.x, place = np.unique(x, return_inverse=True)
        self.customers = np.bincount(place, weights)
        self.at_T, self.at_last = _pairs(place, T), _pairs(place, t_x)

    def parts(self, logs: Array) -> tuple[Array, Array, Array]:
        """Return start, still and stopped of `models`, the last two for each different pair."""
        import numpy as np

        p = dict(zip(self.formulas.names, np.exp(logs).tolist(), strict=True))
        (x_T, T, _), (x_last, t_x, _) = self.at_T, self.at_last
        return (
            self.formulas.start(p, self.x),
            self.formulas.still(p, self.x[x_T], T),
            self.formulas.stopped(p, self.x[x_last], t_x),
        )

    def derivatives(self, logs: Array, second: bool) -> tuple[float, Array, Array]:
        """Return the total, its gradient and, if asked for, its Hessian in the logarithms.

        A row's part is the logarithm of a sum of two terms, so its slope is the mean of theirs,
        weighted by their shares, and its curvature has the variance between them beside the mean.
        What each term does on its own is found by central differences, once per pair.
        """
        import numpy as np
        from scipy.special import expit

        start, still, stopped = self.parts(logs)
        place_T, place_last = self.at_T[2], self.at_last[2]
        first, other = still[place_T], stopped[place_last]
        total = self.customers @ start + self.weights @ np.logaddexp(first, other)
        share = expit(first - other)
        of_T = np.bincount(place_T, self.weights * share, len(still))
        of_last = np.bincount(place_last, self.weights * (1 - share), len(stopped))
        some = of_last > 0  # nobody can have stopped before a first repeat purchase

        def fixed(at: Array) -> float:
            one, two, three = self.parts(at)
            return float(self.customers @ one + of_T @ two + of_last[some] @ three[some])

        steps = np.eye(len(logs))
        slopes, gradient = [], []
        for step in steps * 1e-5:
            ends = zip(self.parts(logs + step), self.parts(logs - step), strict=True)
            with np.errstate(invalid="ignore"):
                one, two, three = (np.nan_to_num((up - down) / 2e-5) for up, down in ends)
            gradient.append(self.customers @ one + of_T @ two + of_last @ three)
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


def _bounded(derivatives: Derivatives, at: Array, start: Array, customers: float) -> Any:
    """Climb from `at`, each parameter within WIDEST times its start."""
    import numpy as np
    from scipy.optimize import minimize

    def loss(logs: Array) -> tuple[float, Array]:
        total, gradient, _ = derivatives(logs, False)
        return -total / customers, -gradient / customers

    bounds = [(value - np.log(WIDEST), value + np.log(WIDEST)) for value in start]
    options = {"ftol": 1e-12, "gtol": 1e-8, "maxiter": 300}
    return minimize(loss, at, jac=True, bounds=bounds, method="L-BFGS-B", options=options).x


def _maximum(whole: Derivatives, logs: Array, start: Array, customers: float) -> tuple[Array, bool]:
    """Return where a likelihood is largest, and whether that is a maximum at finite parameters.

    By Newton's steps from near it, which end where another could add nothing.
    """
    import numpy as np

    for _ in range(30):
        total, gradient, hessian = whole(logs, True)
        curved = np.linalg.eigvalsh(-hessian).min() > 1e-9 * customers
        if not curved or np.abs(logs - start).max() > 0.99 * np.log(WIDEST):
            break
        step = np.linalg.solve(-hessian, gradient)
        if gradient @ step < 1e-9:
            return logs + step, True
        size = min(1.0, 1 / np.abs(step).max())
        while whole(logs + size * step, False)[0] < total and size > 1e-3:
            size /= 2
        logs = logs + size * step
    return _bounded(whole, logs, start, customers), False


def _estimates(names: tuple[str, ...], logs: Array, hessian: Array | None) -> Estimates:
    """Return parameters with the inverse of the observed information, if there is any."""
    import numpy as np

    values = np.exp(logs)
    covariance = np.full((len(values), len(values)), np.nan)
    if hessian is not None:
        # At the maximum the gradient is zero, so the change of variables is the plain Jacobian.
        covariance = np.linalg.inv(-hessian) * np.outer(values, values)
    return Estimates(
        dict(zip(names, values.tolist(), strict=True)), tuple(map(tuple, covariance.tolist()))
    )


def _fit_spend(summary: ir.Table) -> tuple[Spend, list[str]]:
    import numpy as np

    repeat = summary.filter(summary.frequency > 0, summary.monetary_value > 0)
    keys = ["frequency", "monetary_value"]
    rows = repeat.group_by(keys).aggregate(customers=repeat.count()).order_by(keys).to_pandas()
    x, value, weights = (rows[key].to_numpy(float) for key in [*keys, "customers"])
    if weights.sum() < MIN_REPEAT_CUSTOMERS:
        raise tables.DataError(
            f"Only {int(weights.sum())} customers came back and spent more than nothing; the value "
            f"of a purchase needs at least {MIN_REPEAT_CUSTOMERS} of them."
        )
    start = np.log([5.0, 4.0, float(weights @ value / weights.sum())])
    whole, few = spend_derivatives(x, value, weights), slice(None, None, max(1, len(x) // FEW))
    some = spend_derivatives(x[few], value[few], weights[few])
    logs = _bounded(some, start, start, float(weights[few].sum()))
    logs, found = _maximum(whole, logs, start, float(weights.sum()))
    notes = [] if found else [
        "Gamma-Gamma: customers do not visibly differ in what they spend, so each is taken to "
        "spend nearly what all do on average."
    ]  # fmt: skip
    estimates = _estimates(("p", "q", "v"), logs, whole(logs, True)[2] if found else None)
    if (q := estimates.parameters["q"]) <= 1:
        raise tables.DataError(
            f"Gamma-Gamma finds q = {q:.2f}: at q <= 1 the mean value of a purchase is infinite. "
            "Look for a few enormous amounts, or amounts in two currencies."
        )
    return Spend(estimates, int(weights.sum())), notes + _dependence(x, value, weights)


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


def _dependence(x: Array, value: Array, weights: Array) -> list[str]:
    """Say where how often customers buy and what they spend go together; Gamma-Gamma has it not."""
    import numpy as np

    covariance = np.cov(x, np.log(value), fweights=weights.astype(int))
    if not (np.diag(covariance) > 0).all():
        return []
    correlation = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    # Fisher's transformation; note 025 lets .11 pass.
    least = np.tanh(np.arctanh(abs(correlation)) - 1.96 / np.sqrt(max(weights.sum() - 3, 1)))
    if not least > 0.2:
        return []
    more, less = ("more", "too low") if correlation > 0 else ("less", "too high")
    return [
        f"Who buys more often spends {more} at a time (correlation {correlation:.2f} of frequency "
        f"and the logarithm of value), but Gamma-Gamma takes the two to be independent: values of "
        f"frequent customers may be {less}."
    ]


def to_lifetimes(model: ClvModel) -> Any:
    """Return the same purchase model as a fitted object of lifetimes, for its plots and methods.

    Raises `UsageError` for NBD, which lifetimes does not have.
    """
    import pandas as pd

    names = {
        "bgnbd": "BetaGeoFitter",
        "mbgnbd": "ModifiedBetaGeoFitter",
        "paretonbd": "ParetoNBDFitter",
    }
    if model.model not in names:
        raise tables.UsageError(f"lifetimes has no {model.title}; it has {', '.join(names)}.")
    with lifetimes_imported() as lifetimes:
        fitter = getattr(lifetimes, names[model.model])()
        fitter.params_ = pd.Series(model.parameters)
    return fitter


@contextmanager
def lifetimes_imported() -> Iterator[Any]:
    """Give the package lifetimes, quiet, and undo what importing it changes."""
    import pandas as pd

    # A fitter that fails prints the optimiser's state.
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        before = pd.get_option("mode.chained_assignment")
        import lifetimes

        pd.set_option("mode.chained_assignment", before)
        yield lifetimes
