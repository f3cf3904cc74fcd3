"""What a measured campaign says: whether it worked, whether it paid, and what a page may tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from crmlab import lifts, results, tables, trials
from crmlab.comparisons import features
from crmlab.learning import Target, learn
from crmlab.ledgers import HOLDOUT
from crmlab.stocks import LeftOut, Table

if TYPE_CHECKING:
    import pandas as pd

    from crmlab.sources import Shop

# A mismatch of the arms' sizes as rare as this is no chance.
MISMATCH = 0.001
UNLIKE = 0.1


@dataclass(frozen=True, eq=False)
class Lift:
    """What every arm changed against those held out, by the arm that was drawn, sent or not.

    `rows` as `lifts.differences` gives them; `earned` as `lifts.money`, None where the shop's
    margin is not known; `longer`, the effect on margin or spend in one, two and four windows;
    `guardrails`, what should not have risen; `segments`, the primary outcome by stratum: all three
    as `lifts.compared_by`. `balance` as `lifts.balance`. `looks` is how often somebody looked
    before the end, None if nobody says; `alpha`, the chance of a false alarm that is spent now.
    """

    trial: trials.Trial
    rows: pd.DataFrame
    earned: pd.DataFrame | None
    longer: pd.DataFrame
    guardrails: pd.DataFrame
    segments: pd.DataFrame
    balance: pd.DataFrame
    mismatch: tuple[float, float]
    alpha: float
    buyers: Mapping[str, int]
    dominated: bool
    few_in_parts: bool
    numbers: results.Numbers
    k: int
    take_up: float

    def __str__(self) -> str:
        """Say the verdicts."""
        return f"{self.verdict} {self.money_verdict}".strip()

    def to_frame(self) -> pd.DataFrame:
        """Return one row per arm and outcome."""
        return self.rows.copy()

    @property
    def sound(self) -> bool:
        """Whether the arms have the sizes that were planned."""
        return not self.mismatch[1] < MISMATCH

    @property
    def tellable(self) -> bool:
        """Whether enough customers bought, and did not, in each arm to tell of them on a page."""
        return not any(
            count < self.k or self.trial.sizes[arm] - count < self.k
            for arm, count in self.buyers.items()
        )

    @property
    def primary(self) -> pd.DataFrame:
        """The rows on which the verdict rests."""
        return self.rows[self.rows["primary"]].reset_index(drop=True)

    @property
    def cautions(self) -> list[str]:
        """What stands against the figures, a sentence each."""
        n, trial, found = self.numbers, self.trial, list(self.trial.cautions)
        if not self.sound:
            found.insert(0, (
                f"The arms do not have the sizes that were planned (chi-squared "
                f"{n.number(self.mismatch[0], 1)}, p {self.mismatch[1]:.1g}): something but the "
                "lot decided who was in which, and the figures may be wrong."
            ))  # fmt: skip
        unlike = self.balance[self.balance["standardised"].abs() > UNLIKE]
        if len(unlike):
            found.append(
                f"The arms differed before in {', '.join(sorted(set(unlike['outcome'])))} by more "
                "than a tenth of a standard deviation."
            )
        if not trial.complete:
            found.append(
                f"The days that count end on {n.day(trial.ends_on)}: this is not the result yet."
            )
        return found

    @property
    def verdict(self) -> str:
        """Whether it worked, on the primary outcome, in plain words."""
        n, trial = self.numbers, self.trial
        if not self.sound:
            return f"Cannot say whether “{trial.name}” worked. {self.cautions[0]}"
        if self.early:
            return (
                f"Too early to say whether “{trial.name}” worked: the days that count end on "
                f"{n.day(trial.ends_on)}. Who wants to know before says how often they have "
                "looked (`looks`), so that no chance finding passes for a success."
            )
        return " ".join(_sentence(self, row) for row in self.primary.itertuples())

    @property
    def money_verdict(self) -> str:
        """Whether it paid, in plain words; nothing where that is not known."""
        n = self.numbers
        if self._no_money() or self.earned is None:
            return ""
        told = []
        for row in self.earned.itertuples():
            ends = f"{n.short_money(row.low)} to {n.short_money(row.high)}"
            what = {"earned": "It paid", "lost": "It lost money"}.get(row.verdict, "Not proven")
            arm = f" “{row.arm}”" if len(self.earned) > 1 else ""
            told.append(
                f"{what}{':' if not arm else f', arm{arm}:'} {n.short_money(row.profit)} after "
                f"costs of {n.short_money(row.cost)} ({ends})."
            )
        return " ".join(told)

    @property
    def response(self) -> str:
        """How many bought, beside how many would have bought anyway."""
        n, found = self.numbers, self.rows[self.rows["outcome"] == "response"]
        if self.early or not self.sound:
            return ""
        if not self.tellable:
            return f"Fewer than {self.k} in an arm bought, or did not: no share is told."
        return " ".join(
            f"Of those given “{row.arm}” {n.percent(row.mean)} bought, of those held out "
            f"{n.percent(row.mean_holdout)}."
            for row in found.itertuples()
        )

    @property
    def kpis(self) -> list[results.Kpi]:
        """The tiles, as far as they may be told."""
        found = [
            results.Kpi("Customers contacted", sum(self.trial.contacts.values()), "count"),
            results.Kpi("Held out", self.trial.sizes[HOLDOUT], "count", note="by lot"),
        ]
        if self.sound and self.tellable and not self.dominated and not self.early:
            for row in self.primary.itertuples():
                _, low, high = lifts.best(row)
                arm = f", {row.arm}" if len(self.primary) > 1 else ""
                note = "primary outcome" if low > 0 or high < 0 else "may be chance"
                label = f"Change in {row.outcome}{arm}"
                found.append(results.Kpi(label, row.relative, "signed_share", "up", note))
            if self.earned is not None and len(self.earned) == 1:
                [row] = self.earned.itertuples()
                found.append(
                    results.Kpi("Profit", row.profit, "money", "up", f"after costs, {row.verdict}")
                )
        return found

    @property
    def early(self) -> bool:
        """Whether the days that count are not over, and nobody said how often they have looked."""
        return not self.trial.complete and self.trial.looks is None

    @property
    def money(self) -> Table | LeftOut:
        """What each arm earned, as a page may tell it."""
        why = self._no_money()
        if why or self.earned is None:
            return LeftOut(why)
        n, rows = self.numbers, self.earned.copy()
        rows["cost of a buyer more"] = [
            f"{n.money(row.buyer)} ({n.money(row.buyer_low)} to {n.money(row.buyer_high)})"
            if row.buyer == row.buyer else "no finite value"
            for row in rows.itertuples()
        ]  # fmt: skip
        rows["return"] = [n.percent(one, 0, signed=True) for one in rows["roi"]]
        rows["a contact may cost"] = [
            n.money(one) if one > 0 else "nothing" for one in rows["break_even"]
        ]
        rows = rows.rename(columns={"margin": "margin more", "low": "from", "high": "to"})
        shown = ["arm", "margin more", "cost", "profit", "from", "to", "verdict", "return",
                 "a contact may cost", "cost of a buyer more"]  # fmt: skip
        who = "Every buyer" if self.take_up == 1 else f"{n.percent(self.take_up, 0)} of the buyers"
        note = (
            "Profit is the margin beyond that of those held out, less contacts, offers and fixed "
            "costs; from and to hold it 95 times in 100. "
            f"{who} of an arm counts as having used the offer."
        )
        return Table("What each arm earned", rows[shown], self.money_verdict, n,
                     ("margin more", "cost", "profit", "from", "to"), (), (), note)  # fmt: skip

    def _no_money(self) -> str:
        if self.earned is None:
            return "The shop's margin is not known: say margin, a share of sales."
        if self.early:
            return "The days that count are not over."
        if not self.sound or not self.tellable or self.dominated:
            return "Too few bought, one customer brought half of it, or the arms are not sound."
        return ""

    @property
    def guards(self) -> Table | LeftOut:
        """What should not have risen, as a page may tell it: shares of customers."""
        k, rows = self.k, self.guardrails
        counts = [
            count
            for row in rows.itertuples()
            for share, size in ((row.mean, self.trial.sizes[row.arm]),
                                (row.mean_holdout, self.trial.sizes[HOLDOUT]))
            for count in (round(share * size), size - round(share * size))
        ]  # fmt: skip
        told = [
            not any(results.few(one, k) for one in counts[4 * at : 4 * at + 4])
            for at in range(len(rows))
        ]
        rows = rows[told]
        if not len(rows) or self.early:
            return LeftOut("Too few customers withdrew, complained or brought something back.")
        shown = rows[["what", "arm", "mean", "mean_holdout", "difference", "low", "high"]]
        shown = shown.set_axis(["what", "arm", "share", "held out", "more", "from", "to"], axis=1)
        rose = [row.what for row in rows.itertuples() if row.low > 0]
        verdict = (
            f"More customers {' and '.join(rose)}." if rose else "Nothing of this rose visibly."
        )
        return Table("What should not rise, share of customers", shown, verdict, self.numbers,
                     (), ("share", "held out", "more", "from", "to"))  # fmt: skip

    @property
    def groups(self) -> Table | LeftOut:
        """The primary outcome by the groups that the lot was drawn in: exploratory."""
        if self.early or not self.tellable or self.few_in_parts or self.segments.empty:
            return LeftOut("Some of the groups are too small to tell of.")
        n, name = self.numbers, self.trial.primary
        rows = self.segments.copy()
        for column in ("mean", "mean_holdout"):
            rows[column] = [_level(n, name, one) for one in rows[column]]
        for column in ("difference", "low", "high"):
            rows[column] = [_size(n, name, one) for one in rows[column]]
        rows["stratum"] = rows["stratum"].replace({"other": "small groups together"})
        shown = rows[["stratum", "arm", "n", "mean", "mean_holdout", "difference", "low", "high"]]
        who = "households" if self.trial.unit else "customers"
        names = ["group", "arm", who, "with", "held out", "more", "from", "to"]
        return Table(f"{name.capitalize()} per customer, by group", shown.set_axis(names, axis=1),
                     "Exploratory: no verdict rests on it.", n)  # fmt: skip

    def learn(self, shop: Shop, *, seed: int = 1, margin: float | None = None) -> Target:
        """Learn from this campaign whom to contact next time, by what each contact cost.

        From the largest arm. Raises `DataError` as `features` and `learn` do, and while the days
        that count are not over.
        """
        if not self.trial.complete or not self.sound:
            raise tables.DataError(
                "Nothing is learnt from a campaign that is not over, or unsound."
            )
        arm = max((n, name) for name, n in self.trial.sizes.items() if name != HOLDOUT)[1]
        name = "margin" if self.earned is not None else "spend"
        rows = features(
            shop, campaign_id=self.trial.campaign_id, as_of=self.trial.as_of, arm=arm,
            outcome=name, margin=margin,
        ).rename(columns={"outcome": name})  # fmt: skip
        cost = 0.0
        if self.earned is not None:
            [cost] = self.earned.loc[self.earned["arm"] == arm, "each"]
        return learn(
            rows, outcome=name, seed=seed, contact_cost=cost, numbers=self.numbers, k=self.k
        )

    def shown(self) -> pd.DataFrame:
        """Return the rows that a page may show: nothing of few buyers, no sum of one customer."""
        rows = self.rows if self.tellable else self.rows.iloc[:0]
        if self.dominated:
            rows = rows[rows["outcome"].isin(["response", "purchases"])]
        return rows.reset_index(drop=True)

    def _repr_html_(self) -> str:
        n = self.numbers
        said = [] if results.on_page() else [self.verdict, self.money_verdict, *self.cautions]
        text = "".join(f"<p>{escape(one)}</p>" for one in said if one)
        if self.early or not len(rows := self.shown()):
            return text
        rows = rows.assign(
            **{"95% interval": [_ends(n, row) for row in rows.itertuples()],
               "more": [_size(n, row.outcome, lifts.best(row)[0]) for row in rows.itertuples()],
               "with": [_level(n, row.outcome, row.mean) for row in rows.itertuples()],
               "held out": [_level(n, row.outcome, row.mean_holdout) for row in rows.itertuples()]}
        )  # fmt: skip
        shown = ["outcome", "arm", "more", "95% interval", "relative", "with", "held out"]
        if (removed := rows["variance_removed"].max()) > lifts.WORTH_ADJUSTING:
            text += _paragraph(
                "Differences are held against what customers did in the half year before, where "
                f"that takes chance away: here up to {n.percent(removed, 0)} of the variance."
            )
        return text + results.html_table(
            rows[shown], title="Each arm against those held out, per customer",
            formats={"with": str, "held out": str, "more": str,
                     "relative": lambda value: n.percent(value, signed=True)},
            headings={"relative": "in percent"},
        )  # fmt: skip


def _level(n: results.Numbers, outcome: str, value: float) -> str:
    if outcome == "response":
        return n.percent(value)
    return n.number(value, 3) if outcome == "purchases" else n.money(value)


def _size(n: results.Numbers, outcome: str, value: float) -> str:
    sign = "+" if value > 0 else ""
    if outcome == "response":
        return f"{sign}{n.number(100 * value, 2)} points"
    return sign + _level(n, outcome, value)


def _ends(n: results.Numbers, row: Any) -> str:
    low, high = (_size(n, row.outcome, end) for end in lifts.best(row)[1:])
    return f"{low.removesuffix(' points')} to {high}"


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _sentence(lift: Lift, row: Any) -> str:
    """Say of one arm whether it changed the primary outcome."""
    n = lift.numbers
    middle, low, high = lifts.best(row)
    arm = f"Arm “{row.arm}” of “{lift.trial.name}”" if len(lift.primary) > 1 else (
        f"“{lift.trial.name}”"
    )  # fmt: skip
    what = {"response": "the share of buyers"}.get(row.outcome, f"{row.outcome} per customer")
    ends = f"({_size(n, row.outcome, low)} to {_size(n, row.outcome, high)})"
    verb = "raised" if low > 0 else "lowered" if high < 0 else "did not visibly change"
    if not lift.tellable or lift.dominated:
        return f"{arm} {verb} {what}; of so few buyers no figure is told."
    if low > 0 or high < 0:
        size = _size(n, row.outcome, abs(middle)).removeprefix("+")
        return f"{arm} {verb} {what} by {size} {ends}."
    return f"{arm} {verb} {what}: {_size(n, row.outcome, middle)} {ends}."
