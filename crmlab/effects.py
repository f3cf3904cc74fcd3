"""The difference between two groups drawn by lot: size, interval, chance, and what can be seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

ALPHA = 0.05
MANY = 5_000  # degrees of freedom, from which on t is normal


@dataclass(frozen=True)
class Moments:
    """How many customers, the mean of what they did, and its variance (n - 1) among them.

    With `other_mean`, `other_variance` and `covariance` of a second quantity of the same
    customers: the denominator of a ratio, or what they did before.
    """

    n: int
    mean: float
    variance: float
    other_mean: float = math.nan
    other_variance: float = math.nan
    covariance: float = math.nan

    @staticmethod
    def of_sums(n: int, total: float, squares: float, *more: float) -> Moments:
        """Return the moments of sums: of x and x², and with `more` of y, y² and xy."""

        def spread(ab: float, a: float, b: float) -> float:
            return max(0.0, ab - a * b / n) / (n - 1) if n > 1 else math.nan

        mean, variance = total / n, spread(squares, total, total)
        if not more:
            return Moments(n, mean, variance)
        other, other_squares, products = more
        both = (products - total * other / n) / (n - 1) if n > 1 else math.nan
        return Moments(n, mean, variance, other / n, spread(other_squares, other, other), both)


@dataclass(frozen=True)
class Effect:
    """A difference with its interval, and the chance of one as large if there were none."""

    difference: float
    low: float
    high: float
    p_value: float


def welch(one: Moments, other: Moments, *, alpha: float = ALPHA) -> Effect:
    """Return the difference of two means: Welch (1947), Biometrika 34."""
    from scipy import stats

    parts = [group.variance / group.n for group in (one, other)]
    error, difference = math.sqrt(sum(parts)), one.mean - other.mean
    if not error > 0:
        return Effect(difference, math.nan, math.nan, math.nan)
    freedom = sum(parts) ** 2 / sum(
        part**2 / (group.n - 1) for part, group in zip(parts, (one, other), strict=True)
    )
    reach = float(stats.t.isf(alpha / 2, freedom)) * error
    p_value = 2 * float(stats.t.sf(abs(difference) / error, freedom))
    return Effect(difference, difference - reach, difference + reach, p_value)


def wilson(x: int, n: int, *, alpha: float = ALPHA) -> tuple[float, float]:
    """Return the interval of the share x / n; n is above zero.

    Wilson (1927), Journal of the American Statistical Association 22, 209-212.
    """
    z = NormalDist().inv_cdf(1 - alpha / 2)
    half = z * math.sqrt(z * z + 4 * x * (n - x) / n)
    low, high = ((2 * x + z * z + side * half) / (2 * (n + z * z)) for side in (-1, 1))
    return low, high


def newcombe(
    x1: int, n1: int, x0: int, n0: int, *, alpha: float = ALPHA
) -> tuple[float, float, float]:
    """Return x1 / n1 - x0 / n0 and its interval, for shares that may be small.

    Newcombe (1998), Statistics in Medicine 17, 873-890, method 10: Wilson's intervals combined.

    >>> [round(one, 4) for one in newcombe(56, 70, 48, 80)]
    [0.2, 0.0524, 0.3339]
    """
    p1, p0 = x1 / n1, x0 / n0
    (low1, high1), (low0, high0) = wilson(x1, n1, alpha=alpha), wilson(x0, n0, alpha=alpha)
    low = p1 - p0 - math.hypot(p1 - low1, high0 - p0)
    return p1 - p0, low, p1 - p0 + math.hypot(high1 - p1, p0 - low0)


def relative(one: Moments, other: Moments, *, alpha: float = ALPHA) -> tuple[float, float, float]:
    """Return how much larger one mean is as a share of the other, by the logarithm of the ratio.

    nan where a mean is not above zero. Never the symmetric delta interval, which misses on one
    side more often than it says.
    """
    if not (one.mean > 0 and other.mean > 0):
        return math.nan, math.nan, math.nan
    z = NormalDist().inv_cdf(1 - alpha / 2)
    error = math.sqrt(sum(g.variance / g.n / g.mean**2 for g in (one, other)))
    ratio = one.mean / other.mean
    return ratio - 1, ratio * math.exp(-z * error) - 1, ratio * math.exp(z * error) - 1


def fieller(
    top: float, top_variance: float, bottom: float, bottom_variance: float,
    covariance: float = 0.0, *, alpha: float = ALPHA,
) -> tuple[float, float] | None:  # fmt: skip
    """Return the ends of a ratio of two estimates, or None where the lower may be zero.

    Fieller (1954), Journal of the Royal Statistical Society B 16.
    """
    z2 = NormalDist().inv_cdf(1 - alpha / 2) ** 2
    a = bottom**2 - z2 * bottom_variance
    if a <= 0:
        return None
    b = top * bottom - z2 * covariance
    root = math.sqrt(max(0.0, b * b - a * (top**2 - z2 * top_variance)))
    return (b - root) / a, (b + root) / a


def ratio(one: Moments, other: Moments, *, alpha: float = ALPHA) -> Effect:
    """Return the difference of two ratios of sums, such as spend per purchase: delta method.

    Deng, Knoblich and Lu (2018), KDD: a ratio's customers are drawn, not its denominators.
    """
    parts = []
    for group in (one, other):
        if not group.other_mean:
            return Effect(math.nan, math.nan, math.nan, math.nan)
        r = group.mean / group.other_mean
        spread = group.variance - 2 * r * group.covariance + r * r * group.other_variance
        parts.append((r, max(0.0, spread) / group.other_mean**2, group.n))
    (r1, v1, n1), (r0, v0, n0) = parts
    return welch(Moments(n1, r1, v1), Moments(n0, r0, v0), alpha=alpha)


def adjusted(one: Moments, other: Moments) -> tuple[Moments, Moments, float]:
    """Return both groups held against what they did before, and the share of variance removed.

    CUPED: Deng, Xu, Kohavi and Walker (2013), WSDM; the slope is that of both groups together.
    """
    freedom = [group.n - 1 for group in (one, other)]
    groups = list(zip((one, other), freedom, strict=True))
    # Of all customers as one group: what lies between the groups is chance before the campaign.
    between = one.n * other.n / (one.n + other.n) * (one.other_mean - other.other_mean)
    before = sum(f * g.other_variance for g, f in groups)
    before += between * (one.other_mean - other.other_mean)
    together = sum(f * g.covariance for g, f in groups) + between * (one.mean - other.mean)
    slope = together / before if before > 0 else 0.0
    middle = sum(g.n * g.other_mean for g in (one, other)) / (one.n + other.n)
    found = [
        Moments(
            g.n,
            g.mean - slope * (g.other_mean - middle),
            max(0.0, g.variance - 2 * slope * g.covariance + slope**2 * g.other_variance),
        )
        for g in (one, other)
    ]
    was = sum(f * g.variance for g, f in groups)
    removed = 1 - sum(f * g.variance for g, f in zip(found, freedom, strict=True)) / was
    return found[0], found[1], max(0.0, removed) if was else 0.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that hold for several comparisons at once: Holm (1979)."""
    order, found, largest = sorted(range(len(p_values)), key=p_values.__getitem__), {}, 0.0
    for place, n in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[n]))
        found[n] = largest
    return [found[n] for n in range(len(p_values))]


def mismatch(counts: Sequence[int], shares: Sequence[float]) -> tuple[float, float]:
    """Return chi-squared and p of the sizes of the arms against the planned shares.

    A p below .001 means that something but the lot decided who was in which arm; the shares need
    not be equal, nor add up to 1.
    """
    from scipy import stats

    whole, planned = sum(counts), sum(shares)
    expected = [whole * share / planned for share in shares]
    chi2 = sum((n - e) ** 2 / e for n, e in zip(counts, expected, strict=True))
    return chi2, float(stats.chi2.sf(chi2, len(counts) - 1))


def alpha_of_look(look: int, *, alpha: float = ALPHA) -> float:
    """Return what the look at a campaign before its end may spend, the first being 1.

    6 alpha / (pi² k²) adds up to alpha over any number of looks.
    """
    return 6 * alpha / (math.pi * look) ** 2


def detectable_share(
    base: float, n: int, holdout: int, *, alpha: float = ALPHA, power: float = 0.8
) -> float:
    """Return the smallest rise of a share that groups of such sizes show with that power.

    The pooled test, as in figures of sample sizes; nan where not even 100 % would be seen.
    """
    from scipy.optimize import brentq

    z, z_power = (NormalDist().inv_cdf(one) for one in (1 - alpha / 2, power))

    def short(lift: float) -> float:
        top = base + lift
        pooled = (n * top + holdout * base) / (n + holdout)
        null = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / holdout))
        real = math.sqrt(top * (1 - top) / n + base * (1 - base) / holdout)
        return lift - z * null - z_power * real

    if short(1 - base) < 0:
        return math.nan
    return float(brentq(short, 1e-12, 1 - base))


def detectable_mean(
    deviation: float, n: int, holdout: int, *, alpha: float = ALPHA, power: float = 0.8
) -> float:
    """Return the smallest difference of means that groups of such sizes show with that power.

    By the noncentral t distribution: Cohen (1988), Statistical Power Analysis, chapter 2.
    """
    from scipy import stats
    from scipy.optimize import brentq

    freedom, error = n + holdout - 2, deviation * math.sqrt(1 / n + 1 / holdout)
    z = sum(NormalDist().inv_cdf(one) for one in (1 - alpha / 2, power))
    if freedom > MANY or not error > 0:
        return z * error
    limit = stats.t.isf(alpha / 2, freedom)

    def short(distance: float) -> float:
        return float(stats.nct.sf(limit, freedom, distance)) - power

    return error * float(brentq(short, z / 2, 20 * z))
