"""Fit models of purchases and of spend to a summary by maximum likelihood."""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from typing import TYPE_CHECKING, Any

from crmlab import tables
from crmlab.estimates import WIDEST, Estimates, Spend
from crmlab.forecasts import KEYS, TITLES, ClvModel
from crmlab.likelihoods import Derivatives, Rows, spend_derivatives

if TYPE_CHECKING:
    import ibis.expr.types as ir

    from crmlab.models import Array, PurchaseModel

# Fewer repeat customers than this leave four parameters to chance.
MIN_REPEAT_CUSTOMERS = 30
# What two more parameters must add to the log-likelihood: half the 95 % point of chi-squared (2).
LEAST_GAIN = 3.0
WIDEST_SPEND = 100  # times its start: customers who spend alike are told apart by less
FEW = 4_000  # unique rows that a fit starts with; the rest only move it a little


def fit(
    summary: ir.Table,
    *,
    model: str = "bgnbd",
    days_per_unit: float = 7,
    as_of: dt.date | None = None,
) -> ClvModel:
    """Fit a model of purchases, and Gamma-Gamma for their value, by maximum likelihood.

    Where the log does not show that customers stop, the model is NBD instead, and says so.

    Parameters
    ----------
    summary : ibis table as `customers.summary` gives it
    model : "bgnbd", "mbgnbd", "paretonbd" or "nbd"; their publications stand in `models`
    days_per_unit : float, days in the parameters' unit of time; 7 as in the literature
    as_of : the date of the summary, where its T are not days of the calendar

    Raises
    ------
    UsageError for a model that does not exist; DataError if fewer than 30 customers came back, or
    the mean value of a purchase is infinite
    """
    return fit_each(summary, [model], days_per_unit=days_per_unit, as_of=as_of)[0]


def fit_each(
    summary: ir.Table,
    names: Sequence[str],
    *,
    days_per_unit: float = 7,
    as_of: dt.date | None = None,
) -> list[ClvModel]:
    """Fit several models of purchases to one summary, as `fit` does; what they share, once."""
    import numpy as np

    from crmlab import models

    tables.check_range("days_per_unit", days_per_unit, 0.001, 10_000)
    for name in names:
        if name not in TITLES:
            raise tables.UsageError(
                f"There is no model {name!r}; choose one of {', '.join(TITLES)}."
                + tables.did_you_mean(str(name), TITLES)
            )
    keys = list(KEYS)
    rows = summary.group_by(keys).aggregate(customers=summary.count()).order_by(keys).to_pandas()
    x, t_x, T, weights = (rows[key].to_numpy(float) for key in [*keys, "customers"])
    repeaters = int(weights[x > 0].sum())
    if repeaters < MIN_REPEAT_CUSTOMERS:
        raise tables.DataError(
            f"Fewer than {MIN_REPEAT_CUSTOMERS} of {int(weights.sum())} customers came back for a "
            "second purchase; a lifetime value needs as many. Take a longer log or a later as_of."
        )
    spend, spend_notes = _fit_spend(summary)
    if as_of is None:
        newest = summary.order_by(summary["T"], summary.customer_id).limit(1).to_pandas().iloc[0]
        as_of = tables.day(newest["first_purchase"]) + dt.timedelta(days=int(newest["T"]))
    data = (x, t_x / days_per_unit, T / days_per_unit, weights)
    whole, few = Rows(*data), Rows(*(one[:: max(1, len(x) // FEW)] for one in data))
    nbd = _fit_purchases(models.MODELS["nbd"], whole, few, (0.5, _mean_gap(data)))
    start = tuple(nbd[0].parameters.values())
    gain = LEAST_GAIN * few.weights.sum() / weights.sum()
    least = few.total(models.MODELS["nbd"], np.log(start)) + gain
    fitted = []
    for name in names:
        chosen, (estimates, total, notes) = "nbd", nbd
        if name != "nbd":
            richer = _fit_purchases(models.MODELS[name], whole, few, start, least=least)
            if richer[1] > total + LEAST_GAIN:
                chosen, (estimates, total, notes) = name, richer
        if chosen != name:
            notes += (
                f"That customers stop buying for good does not show in this log: {TITLES[name]} "
                "fits it no better than NBD, in which no one ever stops. So NBD is used, and its "
                "forecasts are too high wherever customers do stop.",
            )
        fitted.append(
            ClvModel(
                model=chosen,
                estimates=estimates,
                log_likelihood=total,
                spend=spend,
                days_per_unit=days_per_unit,
                as_of=as_of,
                customers=int(weights.sum()),
                fingerprint=hashlib.sha256(np.array([x, t_x, T, weights]).tobytes()).hexdigest()[
                    :16
                ],
                notes=(*notes, *spend_notes),
            )
        )
    return fitted


def _mean_gap(data: tuple[Array, ...]) -> float:
    """Return a first guess of alpha for r = .5: half of the time seen per repeat purchase."""
    x, _, T, weights = data
    return max(0.5 * float(weights @ T) / float(weights @ x), 1e-6)


def _fit_purchases(
    formulas: PurchaseModel,
    whole: Rows,
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
        start[3] += np.log(max(whole.median_T, 1e-6))
    some, all_rows = partial(few.derivatives, formulas), partial(whole.derivatives, formulas)
    share, customers = few.weights.sum() / whole.weights.sum(), float(whole.weights.sum())
    logs = _bounded(some, start, start, share * customers)
    total, _, hessian = some(logs, True)
    if total < least:
        return _estimates(formulas.names, logs, hessian, False), float("-inf"), ()
    logs, total, hessian, found = _maximum(all_rows, logs, start, customers, hessian / share, share)
    notes: tuple[str, ...] = ()
    if not found:
        notes = (
            f"{formulas.title}: no maximum at finite parameters, so they were held within 30 "
            "times a usual value. How customers differ, in how often they buy or in when they "
            "stop, does not show in this log. Forecasts are usable if the hold-out check says so; "
            "standard errors there are none.",
        )
    return _estimates(formulas.names, logs, hessian, found), total, notes


def _bounded(
    derivatives: Derivatives, at: Array, start: Array, customers: float, widest: float = WIDEST
) -> Any:
    """Climb from `at`, each parameter within `widest` times its start."""
    import numpy as np
    from scipy.optimize import minimize

    def loss(logs: Array) -> tuple[float, Array]:
        total, gradient, _ = derivatives(logs, False)
        return -total / customers, -gradient / customers

    bounds = [(value - np.log(widest), value + np.log(widest)) for value in start]
    # What is left to gain then is far below a unit of the log-likelihood; Newton finds the rest.
    options = {"ftol": 1e-9, "gtol": 1e-7, "maxiter": 300}
    return minimize(loss, at, jac=True, bounds=bounds, method="L-BFGS-B", options=options).x


def _maximum(
    whole: Derivatives,
    logs: Array,
    start: Array,
    customers: float,
    hessian: Array,
    share: float,
    widest: float = WIDEST,
) -> tuple[Array, float, Array, bool]:
    """Return where a likelihood is largest, its value and Hessian there, and if that is a maximum.

    By Newton's steps from near it, which end where another could add nothing. `logs` and `hessian`
    were found with this `share` of the customers; the latter is taken anew where the steps get on
    slowly, and at the end.
    """
    import numpy as np

    total, gradient, _ = whole(logs, False)
    for n in range(1, 40):
        if n % 6 == 0:
            hessian = whole(logs, True)[2]
        curved = np.linalg.eigvalsh(-hessian).min() > 1e-9 * customers
        if not curved or np.abs(logs - start).max() > 0.99 * np.log(widest):
            break
        step = np.linalg.solve(-hessian, gradient)
        if gradient @ step < 1e-9:
            hessian = whole(logs, True)[2]
            if np.linalg.eigvalsh(-hessian).min() <= 1e-9 * customers:
                break
            return logs + np.linalg.solve(-hessian, gradient), total, hessian, True
        size, least = min(1.0, 1 / np.abs(step).max()), total - 1e-13 * abs(total)
        while (found := whole(logs + size * step, False))[0] < least and size > 1e-3:
            size /= 2
        logs, (total, gradient, _) = logs + size * step, found
    if share < 1:
        logs = _bounded(whole, logs, start, customers, widest)
    total, _, hessian = whole(logs, True)
    return logs, total, hessian, False


def _estimates(names: tuple[str, ...], logs: Array, hessian: Array, maximum: bool) -> Estimates:
    """Return parameters with the inverse of the observed information.

    Where that has none in some direction, half of what parameters were held within stands for it.
    """
    import numpy as np

    values, information = np.exp(logs), -hessian
    if not maximum:
        sizes, directions = np.linalg.eigh(information)
        least = (2 / np.log(WIDEST)) ** 2
        information = directions * (np.maximum(sizes, 0) + least) @ directions.T
    # At the maximum the gradient is zero, so the change of variables is the plain Jacobian.
    covariance = np.linalg.inv(information) * np.outer(values, values)
    return Estimates(
        dict(zip(names, values.tolist(), strict=True)),
        tuple(map(tuple, covariance.tolist())),
        maximum,
    )


def _fit_spend(summary: ir.Table) -> tuple[Spend, list[str]]:
    import numpy as np

    repeat = summary.filter(summary.frequency > 0, summary.monetary_value > 0)
    keys = ["frequency", "monetary_value"]
    rows = repeat.group_by(keys).aggregate(customers=repeat.count()).order_by(keys).to_pandas()
    x, value, weights = (rows[key].to_numpy(float) for key in [*keys, "customers"])
    if weights.sum() < MIN_REPEAT_CUSTOMERS:
        raise tables.DataError(
            f"Fewer than {MIN_REPEAT_CUSTOMERS} customers came back and spent more than nothing; "
            "the value of a purchase needs as many."
        )
    start = np.log([5.0, 4.0, float(weights @ value / weights.sum())])
    whole, few = spend_derivatives(x, value, weights), slice(None, None, max(1, len(x) // FEW))
    some = spend_derivatives(x[few], value[few], weights[few])
    share, customers = weights[few].sum() / weights.sum(), float(weights.sum())
    logs = _bounded(some, start, start, share * customers, WIDEST_SPEND)
    hessian = some(logs, True)[2] / share
    logs, _, hessian, found = _maximum(whole, logs, start, customers, hessian, share, WIDEST_SPEND)
    notes = [] if found else [
        "Gamma-Gamma: customers do not visibly differ in what they spend, so each is taken to "
        "spend nearly what all do on average."
    ]  # fmt: skip
    estimates = _estimates(("p", "q", "v"), logs, hessian, found)
    if (q := estimates.parameters["q"]) <= 1:
        raise tables.DataError(
            f"Gamma-Gamma finds q = {q:.2f}: at q <= 1 the mean value of a purchase is infinite. "
            "Look for a few enormous amounts, or amounts in two currencies."
        )
    return Spend(estimates, int(weights.sum())), notes + _dependence(x, value, weights)


def _dependence(x: Array, value: Array, weights: Array) -> list[str]:
    """Say where how often customers buy and what they spend go together; Gamma-Gamma has it not."""
    import numpy as np

    covariance = np.cov(x, np.log(value), fweights=weights.astype(int))
    if not (np.diag(covariance) > 0).all():
        return []
    correlation = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    correlation = np.clip(correlation, -0.999, 0.999)  # one, but for rounding, in the tiniest log
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
