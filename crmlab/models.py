"""The formulas of the models of purchases and of spend: arrays in, numbers out.

`x` is a customer's repeat purchases, the last of them at `t_x`, seen until `T`, all counted from
the first purchase; times are in the parameters' own unit. In every model here a customer buys at
random times, at a rate that differs between customers as Gamma(r, alpha), until the customer stops
for good; the models differ in when that may be. So each likelihood has the form
start(x) * (still(x, T) + stopped(x, t_x)): special functions are needed once per pair, not per row.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from scipy.special import betaln, expit, gammaln, hyp2f1

Array = np.ndarray[Any, np.dtype[np.float64]]
Parameters = dict[str, float]


class PurchaseModel:
    """What is common to all models; this one itself is NBD, in which no one ever stops.

    Ehrenberg (1959), Applied Statistics 8; the conditional expectation is the mean of
    Gamma(r + x, alpha + T).
    """

    key: ClassVar[str] = "nbd"
    title: ClassVar[str] = "NBD"
    names: ClassVar[tuple[str, ...]] = ("r", "alpha")
    guess: ClassVar[tuple[float, ...]] = ()  # of the parameters that follow r and alpha

    def start(self, p: Parameters, x: Array) -> Array:
        """Return the logarithm of what depends on the number of purchases alone."""
        return np.asarray(gammaln(p["r"] + x) - gammaln(p["r"]) + p["r"] * np.log(p["alpha"]))

    def still(self, p: Parameters, x: Array, T: Array) -> Array:
        """Return the logarithm of the part of the likelihood that depends on `T`."""
        return np.asarray(-(p["r"] + x) * np.log(p["alpha"] + T))

    def stopped(self, p: Parameters, x: Array, t_x: Array) -> Array:
        """Return the logarithm of the part that depends on `t_x`."""
        return np.full(np.broadcast(x, t_x).shape, -np.inf)

    def log_likelihood(self, p: Parameters, x: Array, t_x: Array, T: Array) -> Array:
        """Return each customer's log-likelihood."""
        return self.start(p, x) + np.logaddexp(self.still(p, x, T), self.stopped(p, x, t_x))

    def alive_of_still(self, p: Parameters, x: Array, T: Array) -> Array:
        """Return how the chance of not having stopped compares with the share of `still`."""
        return np.ones(np.broadcast(x, T).shape)

    def p_alive(self, p: Parameters, x: Array, t_x: Array, T: Array) -> Array:
        """Return the chance of not having stopped by `T`."""
        share = expit(self.still(p, x, T) - self.stopped(p, x, t_x))
        return np.asarray(share * self.alive_of_still(p, x, T))

    def p_silent(self, p: Parameters, x: Array, T: Array, t: Array | float) -> Array:
        """Return the chance that one who has not stopped at `T` does not buy within `t`."""
        return np.asarray(((p["alpha"] + T) / (p["alpha"] + T + t)) ** (p["r"] + x))

    def purchases_alive(self, p: Parameters, x: Array, T: Array, t: Array | float) -> Array:
        """Return the purchases expected within `t` of one who has not stopped at `T`."""
        return np.asarray((p["r"] + x) / (p["alpha"] + T) * t)

    def p_purchase(self, p: Parameters, x: Array, t_x: Array, T: Array, t: float) -> Array:
        """Return the chance of at least one purchase within `t` after `T`."""
        return self.p_alive(p, x, t_x, T) * (1 - self.p_silent(p, x, T, t))

    def conditional_purchases(
        self, p: Parameters, x: Array, t_x: Array, T: Array, t: float
    ) -> Array:
        """Return E[Y(t) | x, t_x, T], the purchases expected within `t` after `T`."""
        return self.p_alive(p, x, t_x, T) * self.purchases_alive(p, x, T, t)

    def expected_purchases(self, p: Parameters, t: Array) -> Array:
        """Return E[X(t)], the repeat purchases expected of a new customer within `t`."""
        return self.purchases_alive(p, np.zeros_like(t), np.zeros_like(t), t)

    def p_count(self, p: Parameters, most: int, t: Array) -> Array:
        """Return P(X(t) = x) for x = 0 ... `most` (rows) and each `t` (columns)."""
        return _negative_binomial(p, most, t)

    def draw(self, p: Parameters, x: Array, T: Array, t: float, rng: np.random.Generator) -> Array:
        """Draw the purchases within `t` of customers who have not stopped at `T`."""
        return np.asarray(rng.poisson(self._rates(p, x, T, rng) * t))

    @staticmethod
    def _rates(p: Parameters, x: Array, T: Array, rng: np.random.Generator) -> Array:
        return np.asarray(rng.standard_gamma(p["r"] + x) / (p["alpha"] + T))


class BgNbd(PurchaseModel):
    """BG/NBD: after each repeat purchase a customer stops with a chance that is Beta(a, b).

    Fader, Hardie and Lee (2005), Marketing Science 24: equations 6 (likelihood), 8 (counts),
    9 and 10 (expectations); chance of being alive: the same (2008), note 021.
    """

    key, title, names, guess = "bgnbd", "BG/NBD", ("r", "alpha", "a", "b"), (0.8, 2.5)
    coins: ClassVar[int] = 0  # how often a customer may stop before the first repeat purchase

    def start(self, p: Parameters, x: Array) -> Array:
        """Return the logarithm of what depends on the number of purchases alone."""
        return np.asarray(super().start(p, x) - betaln(p["a"], p["b"]))

    def still(self, p: Parameters, x: Array, T: Array) -> Array:
        """Return the logarithm of the part of the likelihood that depends on `T`."""
        return np.asarray(super().still(p, x, T) + betaln(p["a"], p["b"] + x + self.coins))

    def stopped(self, p: Parameters, x: Array, t_x: Array) -> Array:
        """Return the logarithm of the part that depends on `t_x`."""
        tossed = np.maximum(x + self.coins, 1)
        log = betaln(p["a"] + 1, p["b"] + tossed - 1) + super().still(p, x, t_x)
        return np.where(x + self.coins > 0, log, -np.inf)

    def purchases_alive(self, p: Parameters, x: Array, T: Array, t: Array | float) -> Array:
        """Return the purchases expected within `t` of one who has not stopped at `T`.

        By Euler's transformation (Abramowitz and Stegun 15.3.3): the plain form is infinity times
        nothing for customers with thousands of purchases.
        """
        r, a, b = p["r"], _off(1, p["a"]), p["b"] + self.coins
        z = t / (p["alpha"] + T + t)
        lost = (1 - z) ** (a - 1) * hyp2f1(a + b - 1 - r, a - 1, a + b + x - 1, z)
        return np.asarray((a + b + x - 1) / (a - 1) * (1 - lost))

    def p_count(self, p: Parameters, most: int, t: Array) -> Array:
        """Return P(X(t) = x) for x = 0 ... `most` (rows) and each `t` (columns)."""
        a, b, tossed = p["a"], p["b"], np.arange(most + 1)[:, None] + self.coins
        poisson = _negative_binomial(p, most, t)
        fewer = np.vstack([np.zeros_like(poisson[:1]), np.cumsum(poisson, axis=0)[:-1]])
        alive = np.exp(betaln(a, b + tossed) - betaln(a, b)) * poisson
        stopped = np.exp(betaln(a + 1, b + np.maximum(tossed, 1) - 1) - betaln(a, b)) * (1 - fewer)
        return np.asarray(alive + np.where(tossed > 0, stopped, 0))

    def draw(self, p: Parameters, x: Array, T: Array, t: float, rng: np.random.Generator) -> Array:
        """Draw the purchases within `t` of customers who have not stopped at `T`."""
        bought = rng.poisson(self._rates(p, x, T, rng) * t)
        stops = np.maximum(rng.beta(p["a"], p["b"] + x + self.coins), 1e-12)
        return np.asarray(np.minimum(bought, rng.geometric(stops)))


class MbgNbd(BgNbd):
    """MBG/NBD: as BG/NBD, but a customer may stop right after the first purchase too.

    Batislam, Denizel and Filiztekin (2007), International Journal of Research in Marketing 24;
    Hoppe and Wagner (2007), Marketing JRM 29. It is BG/NBD with one more toss of the coin.
    """

    key, title, guess, coins = "mbgnbd", "MBG/NBD", (0.9, 1.6), 1

    def expected_purchases(self, p: Parameters, t: Array) -> Array:
        """Return E[X(t)], the repeat purchases expected of a new customer within `t`."""
        return p["b"] / (p["a"] + p["b"]) * super().expected_purchases(p, t)


class ParetoNbd(PurchaseModel):
    """Pareto/NBD: a customer may stop at any time, at a rate that is Gamma(s, beta).

    Schmittlein, Morrison and Colombo (1987), Management Science 33; likelihood and expectations as
    in Fader and Hardie (2005), "A note on deriving the Pareto/NBD model", with their integrals
    over the time of stopping written as `_log_tail`.
    """

    key, title = "paretonbd", "Pareto/NBD"
    names, guess = ("r", "alpha", "s", "beta"), (0.6, 1.0)

    def start(self, p: Parameters, x: Array) -> Array:
        """Return the logarithm of what depends on the number of purchases alone."""
        return np.asarray(super().start(p, x) + p["s"] * np.log(p["beta"]))

    def still(self, p: Parameters, x: Array, T: Array) -> Array:
        """Return the logarithm of the part of the likelihood that depends on `T`."""
        # By parts: the chance to be alive at T less the integral from T on, without a difference.
        return np.asarray(np.log(p["r"] + x) + _log_tail(p, p["r"] + x + 1, p["s"], T))

    def stopped(self, p: Parameters, x: Array, t_x: Array) -> Array:
        """Return the logarithm of the part that depends on `t_x`."""
        return np.asarray(np.log(p["s"]) + _log_tail(p, p["r"] + x, p["s"] + 1, t_x))

    def alive_of_still(self, p: Parameters, x: Array, T: Array) -> Array:
        """Return how the chance of not having stopped compares with the share of `still`."""
        return np.asarray(np.exp(self._alive(p, x, T) - self.still(p, x, T)))

    @staticmethod
    def _alive(p: Parameters, x: Array, T: Array) -> Array:
        log = (p["r"] + x) * np.log(p["alpha"] + T) + p["s"] * np.log(p["beta"] + T)
        return np.asarray(-log)

    def p_silent(self, p: Parameters, x: Array, T: Array, t: Array | float) -> Array:
        """Return the chance that one who has not stopped at `T` does not buy within `t`."""
        first = np.log(p["r"] + x) - self._alive(p, x, T)
        now, then = (_log_tail(p, p["r"] + x + 1, p["s"], end) for end in (T, T + t))
        return np.asarray(1 - np.exp(first + now) * -np.expm1(then - now))

    def purchases_alive(self, p: Parameters, x: Array, T: Array, t: Array | float) -> Array:
        """Return the purchases expected within `t` of one who has not stopped at `T`."""
        less = _off(1, p["s"]) - 1
        stays = p["beta"] + T
        time = stays * -np.expm1(less * np.log(stays / (stays + t))) / less
        return np.asarray((p["r"] + x) / (p["alpha"] + T) * time)

    def p_count(self, p: Parameters, most: int, t: Array) -> Array:
        """Return P(X(t) = x) for x = 0 ... `most` (rows) and each `t` (columns).

        NBD up to the time of stopping, added up over that time by Gauss and Legendre.
        """
        nodes, weights = np.polynomial.legendre.leggauss(60)
        stays = (p["beta"] / (p["beta"] + t)) ** p["s"]
        counts = stays * _negative_binomial(p, most, t)
        # In the share of those who have stopped by then the integrand is smooth.
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            stopped = (1 - stays) * node
            at = p["beta"] * np.expm1(-np.log1p(-stopped) / p["s"])
            counts = counts + weight * (1 - stays) * _negative_binomial(p, most, at)
        return np.asarray(counts)

    def draw(self, p: Parameters, x: Array, T: Array, t: float, rng: np.random.Generator) -> Array:
        """Draw the purchases within `t` of customers who have not stopped at `T`."""
        stops = rng.standard_gamma(p["s"], len(x)) / (p["beta"] + T)
        active = np.minimum(rng.standard_exponential(len(x)) / np.maximum(stops, 1e-300), t)
        return np.asarray(rng.poisson(self._rates(p, x, T, rng) * active))


MODELS: dict[str, PurchaseModel] = {
    model.key: model for model in (BgNbd(), MbgNbd(), ParetoNbd(), PurchaseModel())
}


def _off(value: float, parameter: float) -> float:
    """Return the parameter, moved where a formula divides nothing by nothing."""
    return parameter if abs(parameter - value) > 1e-6 else value + 1e-6


def _negative_binomial(p: Parameters, most: int, t: Array) -> Array:
    """Return the NBD's P(X(t) = x) for x = 0 ... `most` (rows) and each `t` (columns)."""
    r, alpha, x = p["r"], p["alpha"], np.arange(most + 1)[:, None]
    log = gammaln(r + x) - gammaln(r) - gammaln(x + 1) + r * np.log(alpha / (alpha + t))
    return np.asarray(np.exp(log + x * np.log(np.maximum(t, 1e-300) / (alpha + t))))


def _log_tail(p: Parameters, m: Array, k: float, t: Array) -> Array:
    """Return the logarithm of the integral from t to infinity of (alpha+u)^-m (beta+u)^-k du.

    Euler's integral of 2F1 after its transformations (Abramowitz and Stegun 15.3.1, 15.3.3), in
    the form whose first parameter is 1, and whose argument lies between 0 and 1.
    """
    alpha, beta = p["alpha"], p["beta"]
    first, second = np.log(alpha + t), np.log(beta + t)
    if alpha >= beta:
        log = -m * first + (1 - k) * second
        series = _series(m, m + k, (alpha - beta) / (alpha + t))
    else:
        log = (1 - m) * first - k * second
        series = _series(k, m + k, (beta - alpha) / (beta + t))
    return np.asarray(log - np.log(m + k - 1) + np.log(series))


def _series(b: Array | float, c: Array, z: Array) -> Array:
    """Return 2F1(1, b; c; z) for z between 0 and 1.

    Where scipy gives none, for large b and c near z = 1, by Gauss's continued fraction (Abramowitz
    and Stegun 15.3.3; Gauss 1813), which converges for all z below 1.
    """
    found = np.asarray(hyp2f1(1, b, c, z))
    lost = ~np.isfinite(found)
    if not lost.any():
        return found
    b, c, z = (np.broadcast_to(one, found.shape)[lost] for one in (b, c, z))
    fraction = np.ones_like(z)
    for n in range(1000, 0, -1):
        even = n * (c - b + n - 1) / ((c + 2 * n - 2) * (c + 2 * n - 1))
        odd = (b + n) * (c + n - 1) / ((c + 2 * n - 1) * (c + 2 * n))
        fraction = 1 - even * z / (1 - odd * z / fraction)
    found[lost] = 1 / (1 - b / c * z / fraction)
    return found


def value_of_a_purchase(p: Parameters, x: Array, in_all: Array) -> Array:
    """Return E[M], the mean value of a purchase of who spent `in_all` over `x` repeat purchases.

    Fader and Hardie (2013), note 025, equation 5; nothing known (x = 0) gives the average.
    """
    return np.asarray(p["p"] * (p["v"] + in_all) / (p["p"] * x + p["q"] - 1))


def draw_spend(
    p: Parameters, x: Array, in_all: Array, bought: Array, rng: np.random.Generator
) -> Array:
    """Draw what customers with that past spend on `bought` > 0 purchases, all together.

    Each purchase is Gamma(p, nu), and nu given the past is Gamma(q + p x, v + in_all).
    """
    scale = rng.standard_gamma(p["q"] + p["p"] * x) / (p["v"] + in_all)
    return np.asarray(rng.standard_gamma(p["p"] * bought) / scale)
