"""What a fit found: parameters, how well the log shows them, and the value of a purchase."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from crmlab.models import Array, Parameters

WIDEST = 30  # times: a parameter that far out is as good as infinite


@dataclass(frozen=True)
class Estimates:
    """Parameters in the literature's order, and their covariance as far as the log shows it.

    `covariance` is the inverse of the observed information. Where there is no `maximum` at finite
    parameters, it also holds how far those that the log does not show may lie from where they
    were held, and there are no standard errors.
    """

    parameters: dict[str, float]
    covariance: tuple[tuple[float, ...], ...]
    maximum: bool = True

    def relative(self) -> Array:
        """Return the covariance of the parameters' logarithms."""
        import numpy as np

        values = np.array(list(self.parameters.values()))
        return np.asarray(np.array(self.covariance) / np.outer(values, values))

    def standard_errors(self) -> dict[str, float]:
        """Return the standard error of each parameter; nan where there is no maximum."""
        return {
            name: self.covariance[i][i] ** 0.5 if self.maximum else float("nan")
            for i, name in enumerate(self.parameters)
        }

    def drawn(self, rng: np.random.Generator) -> Parameters:
        """Draw parameters that the log allows; their logarithms are taken to be normal."""
        import numpy as np

        logs = np.log(list(self.parameters.values()))
        some = rng.multivariate_normal(logs, self.relative())
        some = np.clip(some, logs - np.log(WIDEST), logs + np.log(WIDEST))
        return dict(zip(self.parameters, np.exp(some).tolist(), strict=True))


@dataclass(frozen=True)
class Spend:
    """Gamma-Gamma: how the mean value of a purchase differs between customers.

    `p`, `q` and `v` as in Fader and Hardie (2013), note 025, in shop currency;
    `customers` counts the repeat customers it was fitted on.
    """

    estimates: Estimates
    customers: int

    @property
    def p(self) -> float:
        """Shape of a customer's purchases."""
        return self.estimates.parameters["p"]

    @property
    def q(self) -> float:
        """Shape of the differences between customers."""
        return self.estimates.parameters["q"]

    @property
    def v(self) -> float:
        """Scale of the differences between customers, in shop currency."""
        return self.estimates.parameters["v"]

    @property
    def population_mean(self) -> float:
        """Mean value of a purchase of a customer of whom nothing is known."""
        return self.p * self.v / (self.q - 1)
