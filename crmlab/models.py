"""The formulas of the purchase models, and the scores of a forecast: arrays in, numbers out.

`x` is a customer's repeat purchases, the last of them at `t_x`, seen until `T`, all counted from
the first purchase; times are in the parameters' own unit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import betaln, expit, gammaln, hyp2f1

Array = np.ndarray[Any, np.dtype[np.float64]]


def log_likelihood(parameters: dict[str, float], x: Array, t_x: Array, T: Array) -> Array:
    """Return each customer's BG/NBD log-likelihood.

    Fader, Hardie and Lee (2005), Marketing Science 24, equation 6.
    """
    r, alpha, a, b = (parameters[name] for name in ("r", "alpha", "a", "b"))
    common = gammaln(r + x) - gammaln(r) + r * np.log(alpha) - betaln(a, b)
    alive = betaln(a, b + x) - (r + x) * np.log(alpha + T)
    later = np.maximum(x, 1)  # the second term exists for x > 0 only
    dropped = betaln(a + 1, b + later - 1) - (r + x) * np.log(alpha + t_x)
    return np.asarray(common + np.logaddexp(alive, np.where(x > 0, dropped, -np.inf)))


def spend_log_likelihood(parameters: dict[str, float], x: Array, value: Array) -> Array:
    """Return the Gamma-Gamma log-likelihood of customers with mean `value` over `x` purchases.

    Fader and Hardie (2013), note 025, equation 1a.
    """
    p, q, v = (parameters[name] for name in ("p", "q", "v"))
    return np.asarray(
        gammaln(p * x + q)
        - gammaln(p * x)
        - gammaln(q)
        + q * np.log(v)
        + (p * x - 1) * np.log(value)
        + p * x * np.log(x)
        - (p * x + q) * np.log(x * value + v)
    )


def p_alive(parameters: dict[str, float], x: Array, t_x: Array, T: Array) -> Array:
    """Return the chance of not having dropped out by `T`.

    Fader, Hardie and Lee (2008), "Computing P(alive) using the BG/NBD model", note 021.
    """
    r, alpha, a, b = (parameters[name] for name in ("r", "alpha", "a", "b"))
    later = np.maximum(x, 1)
    log_odds = np.log(a / (b + later - 1)) + (r + x) * np.log((alpha + T) / (alpha + t_x))
    return np.asarray(np.where(x > 0, expit(-log_odds), 1.0))


def p_purchase(parameters: dict[str, float], x: Array, t_x: Array, T: Array, t: float) -> Array:
    """Return the chance of at least one purchase within `t` after `T`.

    Given alive, the rate is Gamma(r + x, alpha + T), so no purchase within t has the probability
    ((alpha + T) / (alpha + T + t))^(r + x).
    """
    r, alpha = parameters["r"], parameters["alpha"]
    none = (r + x) * np.log((alpha + T) / (alpha + T + t))
    return np.asarray(p_alive(parameters, x, t_x, T) * -np.expm1(none))


def conditional_purchases(
    parameters: dict[str, float], x: Array, t_x: Array, T: Array, t: float
) -> Array:
    """Return E[Y(t) | x, t_x, T], the purchases expected within `t` after `T`.

    Fader, Hardie and Lee (2005), Marketing Science 24, equation 10.
    """
    alpha, a, b = (parameters[name] for name in ("alpha", "a", "b"))
    gone = _lost(parameters, x, t / (alpha + T + t))
    return np.asarray((a + b + x - 1) / (a - 1) * (1 - gone) * p_alive(parameters, x, t_x, T))


def _lost(parameters: dict[str, float], x: Array, z: Array) -> Array:
    """Return (1 - z)^(r + x) 2F1(r + x, b + x; a + b + x - 1; z), for any x.

    By Euler's transformation (Abramowitz and Stegun 15.3.3): the plain form is infinity times
    nothing for customers with thousands of purchases.
    """
    r, a, b = (parameters[name] for name in ("r", "a", "b"))
    return np.asarray((1 - z) ** (a - 1) * hyp2f1(a + b - 1 - r, a - 1, a + b + x - 1, z))


def expected_purchases(parameters: dict[str, float], t: Array) -> Array:
    """Return E[X(t)], the repeat purchases expected of a new customer within `t`.

    Fader, Hardie and Lee (2005), Marketing Science 24, equation 9.
    """
    alpha, a, b = (parameters[name] for name in ("alpha", "a", "b"))
    gone = _lost(parameters, np.zeros_like(t), t / (alpha + t))
    return np.asarray((a + b - 1) / (a - 1) * (1 - gone))


def p_count(parameters: dict[str, float], most: int, t: Array) -> Array:
    """Return P(X(t) = x) for x = 0 ... `most` (rows) and each `t` (columns).

    Fader, Hardie and Lee (2005), Marketing Science 24, equation 8.
    """
    r, alpha, a, b = (parameters[name] for name in ("r", "alpha", "a", "b"))
    x = np.arange(most + 1)[:, None]
    log_share = np.log(np.maximum(t, 1e-300) / (alpha + t))
    poisson = np.exp(
        gammaln(r + x)
        - gammaln(r)
        - gammaln(x + 1)
        + r * np.log(alpha / (alpha + t))
        + x * log_share
    )
    alive = np.exp(betaln(a, b + x) - betaln(a, b)) * poisson
    fewer = np.vstack([np.zeros_like(poisson[:1]), np.cumsum(poisson, axis=0)[:-1]])
    later = np.maximum(x, 1)
    dropped = np.exp(betaln(a + 1, b + later - 1) - betaln(a, b)) * (1 - fewer)
    return np.asarray(alive + np.where(x > 0, dropped, 0))


def score(forecast: Array, actual: Array, weights: Array) -> dict[str, float]:
    """Compare a forecast per customer with what happened.

    Parameters
    ----------
    forecast, actual : numbers of purchases; `weights`: how many customers have this row's numbers

    Returns
    -------
    purchases, the forecast total; mae and rmse per customer; total_error, a share of the actual
    total; capture_top10, the share of the actual purchases that the tenth of the customers with
    the highest forecast made; auc of the forecast for buying at all. Customers with equal
    forecasts share their places, so the order of the rows changes nothing.
    """
    total, customers_in_all = weights @ actual, weights.sum()
    levels, level = np.unique(-forecast, return_inverse=True)
    size = np.bincount(level, weights, len(levels))
    made = np.bincount(level, weights * actual, len(levels))
    place, share = (np.concatenate([[0], np.cumsum(v) / v.sum()]) for v in (size, made))
    buyers = np.bincount(level, weights * (actual > 0), len(levels))
    others = size - buyers
    # Mann-Whitney: pairs of a buyer and another in the right order, ties count half.
    behind = others.sum() - np.cumsum(others)
    pairs = buyers.sum() * others.sum()
    return {
        "purchases": float(weights @ forecast),
        "mae": float(weights @ np.abs(forecast - actual) / customers_in_all),
        "rmse": float(np.sqrt(weights @ (forecast - actual) ** 2 / customers_in_all)),
        "total_error": float(weights @ forecast / total - 1) if total else float("nan"),
        "capture_top10": float(np.interp(0.1, place, share)) if total else float("nan"),
        "auc": float(buyers @ (behind + others / 2) / pairs) if pairs else float("nan"),
    }
