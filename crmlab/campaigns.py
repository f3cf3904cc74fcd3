"""Whom to contact: the audience, the policy, arms and hold-out drawn by lot, what can be seen."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crmlab import (
    campaign_files,
    contact_lists,
    expectations,
    ledgers,
    planning,
    policies,
    results,
    tables,
)
from crmlab import rules as rules_of
from crmlab.campaign_files import read
from crmlab.policies import Arm, ContactPolicy
from crmlab.stocks import LeftOut, Table

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.sources import Shop

__all__ = ["Arm", "ContactPolicy", "Plan", "day_before", "plan", "read"]

FRAMES = ("counts", "strata", "suppressed")


@dataclass(frozen=True, eq=False)
class Plan:
    """A wave of a campaign: who is contacted, held out or left alone, and what can be seen of it.

    `funnel` says how many customers each rule leaves; `counts`, what became of the `audience`:
    what, customers; `strata`, how each was divided: stratum, arm, customers; `suppressed`, reason,
    customers. `said` is what the ledger keeps: the primary outcome, the days, the smallest effects
    that this size can detect with power .8. `assigned` is a local ibis table, one row per customer
    with an arm: customer_id, arm, stratum, channel; `left_out` one per suppressed customer:
    customer_id, reason. `written` is the wave's number if it was in the ledger when this was made.
    """

    shop: Shop
    campaign: Mapping[str, Any]
    as_of: dt.date
    wave: str
    audience: int
    funnel: Any
    counts: pd.DataFrame
    strata: pd.DataFrame
    suppressed: pd.DataFrame
    said: Mapping[str, Any]
    assigned: ir.Table = field(repr=False)
    left_out: ir.Table = field(repr=False)
    record: Mapping[str, Any] = field(repr=False)
    planned_at: str = field(repr=False)
    written: int | None = None

    @property
    def numbers(self) -> results.Numbers:
        """How figures print."""
        return self.shop.numbers

    @cached_property
    def by_arm(self) -> dict[str, int]:
        """How many customers each arm has, the hold-out first."""
        found = self.strata.groupby("arm", sort=False)["customers"].sum()
        names = [ledgers.HOLDOUT, *(arm["name"] for arm in self.campaign["arms"])]
        return {name: int(found.get(name, 0)) for name in names}

    @property
    def contacted(self) -> int:
        """How many are contacted."""
        return sum(n for name, n in self.by_arm.items() if name != ledgers.HOLDOUT)

    @property
    def held_out(self) -> int:
        """How many are held out."""
        return self.by_arm[ledgers.HOLDOUT]

    @property
    def cost(self) -> float:
        """Shop currency that contacts, offers and fixed costs of this wave will come to.

        Offers as if those who buy anyway took them.
        """
        return float(self.said["cost"])

    @property
    def warning(self) -> str:
        """What stands against sending, in a sentence; nothing if nothing does."""
        return str(self.said["warning"])

    @property
    def verdict(self) -> str:
        """The plan in plain words."""
        n, said = self.numbers, self.said
        what, seen = said["outcome"], said["detectable"][said["outcome"]]
        parts = [
            f"“{self.campaign['name']}”: of {n.number(self.audience)} customers who fit the rules, "
            f"{n.number(self.contacted)} are contacted and {n.number(self.held_out)} held out by "
            f"lot; {n.number(int(self.suppressed['customers'].sum()))} may not be contacted."
        ]
        if not self.tellable:
            k = self.shop.policy.privacy_k
            parts = [f"Some of the groups of this wave have fewer than {k} customers: not told."]
        if seen is not None and not said["few_bought"]:
            usual = said["base"][what]
            size = {
                "response": f"{n.number(100 * seen, 1)} percentage points more buyers",
                "purchases": f"{n.number(seen, 3)} more purchases a customer",
            }.get(what, f"{n.money(seen)} more {what} a customer")
            share = f", {n.percent(seen / usual, 0)} of what such customers do anyway" if (
                usual > 0) else ""  # fmt: skip
            parts.append(
                f"In {n.number(said['outcome_days'])} days it will be noticed (4 times in 5) only "
                f"if it brings {size}{share}, or more."
            )
        parts.append(self.warning)
        if self.tellable and self.contacted and self.cost:
            each = n.money(self.cost / self.contacted)
            parts.append(f"It pays from {each} more margin per customer contacted on.")
        return " ".join(filter(None, parts))

    @property
    def kpis(self) -> list[results.Kpi]:
        """The tiles."""
        found = [
            results.Kpi("Fit the rules", self.audience, "count"),
            results.Kpi("Contacted", self.contacted, "count"),
            results.Kpi("Held out", self.held_out, "count", note="by lot"),
            results.Kpi("Expected cost", self.cost, "money", "down", "contacts, offers, fixed"),
        ]
        return found if self.tellable else []

    def to_frame(self) -> pd.DataFrame:
        """Return what became of the audience: what, customers."""
        return self.counts.copy()

    @property
    def tellable(self) -> bool:
        """Whether no count of what became of the audience is of too few for a page."""
        counts, k = [*self.counts["customers"], *self.by_arm.values()], self.shop.policy.privacy_k
        left = self.funnel.shown["left"]
        # Where the funnel hides how many are left, so must everything that says it.
        hidden = len(left) and left.isna().iloc[-1]
        return not hidden and not any(results.few(count, k) for count in counts)

    @property
    def power(self) -> Table | LeftOut:
        """What such customers do anyway, and the smallest effects that this size can show."""
        import pandas as pd

        n, said, rows = self.numbers, self.said, []
        if said["few_bought"]:
            return LeftOut("Too few such customers bought, or did not, to tell of them.")
        for name, usual in said["base"].items():
            seen = said["detectable"][name]
            kind = {"response": n.percent, "purchases": lambda one: n.number(one, 3)}
            printed = kind.get(name, n.money)
            share = (
                n.percent(seen / usual, 0) if seen is not None and usual > 0 else results.NOTHING
            )
            rows.append((name, printed(usual), results.NOTHING if seen is None else printed(seen),
                         share))  # fmt: skip
        if not said["knows_margin"]:
            rows = [row for row in rows if row[0] != "margin"]
        columns = ["outcome", "anyway, per customer", "smallest effect", "in percent"]
        days = n.number(said["outcome_days"])
        return Table(f"What can be seen in {days} days", pd.DataFrame(rows, columns=columns), "", n)

    @property
    def why_not(self) -> pd.DataFrame:
        """Why customers may not be contacted, as a page may tell it: reason, customers."""
        return results.merge_small_cells(
            self.suppressed, label="reason", customers="customers", k=self.shop.policy.privacy_k
        )

    @property
    def by_stratum(self) -> pd.DataFrame:
        """How each stratum was divided, as a page may tell it: a row each, a column per arm."""
        wide = self.strata.pivot_table("customers", "stratum", "arm", aggfunc="sum", fill_value=0)
        arms = list(self.by_arm)
        wide = wide.reindex(columns=arms, fill_value=0).reset_index()
        wide["customers"] = wide[arms].sum(axis=1)
        told = results.merge_small_cells(
            wide, label="stratum", customers="customers", k=self.shop.policy.privacy_k, parts=arms
        )
        return told[["stratum", "customers", *arms]]

    def __str__(self) -> str:
        """Say the verdict."""
        return self.verdict

    def _repr_html_(self) -> str:
        # A page begins with the verdict.
        text = "" if results.on_page() else f"<p>{escape(self.verdict)}</p>"
        number = self.numbers.number
        if not self.tellable:
            return text
        some = self.counts[self.counts["customers"] > 0]
        text += results.html_table(
            some, title="What became of the audience", formats={"customers": number}
        )
        if len(self.why_not):
            text += results.html_table(
                self.why_not, title="Why some may not be contacted", formats={"customers": number}
            )
        strata = self.by_stratum
        return text + results.html_table(
            strata, title="Who was drawn for which arm, by stage and value",
            formats=dict.fromkeys(strata.columns[1:], number),
        )  # fmt: skip

    def write(self, folder: str | Path | None = None) -> contact_lists.Written:
        """Write the ledger, on the disk for good, and then one contact list per channel and arm.

        Who has withdrawn consent since the plan is on no list, and stays in the arm. A list that
        is there already is never replaced: a second run gives the same files.

        Parameters
        ----------
        folder : where the lists go, private: CSV, one row per customer; by default lists/ and the
            campaign's id beside the ledger

        Raises
        ------
        UsageError if another process has written this wave meanwhile, or a list of that name
        holds something else; DataError if the ledger was changed
        """
        waves = ledgers.waves(self.shop, self.campaign["campaign_id"])
        record = json.loads(json.dumps(self.record))
        if not any({name: wave.plan.get(name) for name in record} == record for wave in waves):
            self._write_ledger()
        place = ledgers.folder(self.shop).parent / "lists" / self.campaign["campaign_id"]
        return contact_lists.write(
            self.shop, Path(folder) if folder else place, campaign=self.campaign, wave=self.wave,
            sends_on=self.said["sends_on"],
            assigned=self.assigned,
        )  # fmt: skip

    def _write_ledger(self) -> None:
        import ibis

        moment = ibis.literal(dt.datetime.combine(self.as_of, dt.time()) + dt.timedelta(1))
        named = {"campaign_id": ibis.literal(self.campaign["campaign_id"])}
        contacts = self.assigned.mutate(
            **named, wave=ibis.literal(self.wave), assigned_at=moment.cast("timestamp(6)"),
            window_from=ibis.literal(dt.date.fromisoformat(self.said["sends_on"])),
        )  # fmt: skip
        suppressed = self.left_out.mutate(**named, at=moment.cast("timestamp(6)"))
        ledgers.write_wave(
            self.shop, self.campaign["campaign_id"], self.record,
            contacts=contacts.order_by("customer_id").to_pyarrow(),
            suppressed=suppressed.order_by("customer_id").to_pyarrow(),
            planned_at=self.planned_at,
        )  # fmt: skip


def plan(
    audience: ir.Table,
    shop: Shop,
    *,
    as_of: str | dt.date,
    arms: Sequence[Mapping[str, Any] | Arm],
    rules: Sequence[Any] = (),
    policy: Mapping[str, Any] | ContactPolicy | None = None,
    holdout_share: float = 0.1,
    seed: int = 1,
    campaign_id: str = "campaign",
    name: str = "",
    sends_on: str | dt.date = "",
    outcome: str = "margin",
    outcome_days: int = 28,
    margin: float | None = None,
    fixed_cost: float = 0.0,
    budget: float | None = None,
    by_household: bool = False,
    universal_share: float = 0.0,
    universal_until: str | dt.date = "",
    audience_before: ir.Table | None = None,
) -> Plan:
    """Choose whom to contact, and draw by lot who is held out; nothing is written yet.

    Parameters
    ----------
    audience : local ibis table keyed by customer_id, such as `audiences.audience` gives
    rules : who of them fits: see `rules.read`
    arms : `Arm`, or tables with its fields, such as {"name": "card", "channel": "post"}
    policy : `ContactPolicy`, or a table with its fields
    holdout_share : float, the share of those who may be contacted that are not
    seed, campaign_id : another lot for another of them; name : as people call the campaign
    sends_on : date, the day of sending, on which the days that count begin; by default the day
        after `as_of`
    outcome : the primary outcome: response, purchases, spend or margin
    outcome_days : int, how many days count
    margin : float, share of the amount; None = amount less the shop's cost of each line
    margin : float, share of the amount; None = by the shop's cost of each line
    fixed_cost, budget : shop currency; a budget contacts those of the highest expected profit:
        the audience's column profit, else its value
    by_household : whether those of a household share their arm
    universal_share, universal_until : a share of all customers whom no campaign contacts until
        that day, drawn once
    audience_before : the audience as it was `outcome_days` before `as_of`: what those who fitted
        then did since says what to expect without the campaign; by default it is what those who
        fit now did before, which is nothing where they were chosen for their silence

    Raises
    ------
    UsageError for what cannot be asked; DataError where nobody fits or may be contacted, too few
    for a hold-out, or the campaign goes on with other arms than it began with

    Notes
    -----
    A campaign of several waves: each takes only who has no arm yet, and everybody keeps theirs.
    """
    planning.check_audience(audience)
    day = tables.day(as_of)
    sending = tables.day(sends_on, name="sends_on") if sends_on else day + dt.timedelta(1)
    asked = campaign_files.checked(
        campaign_id, name, policies.read_arms(arms), policies.read_policy(policy), holdout_share,
        seed, outcome, outcome_days, fixed_cost, by_household,
    )  # fmt: skip
    campaign_files.check_days(asked, day, sending)
    drawn = campaign_files.universal_control(shop, universal_share, universal_until, sending)
    asked["margin"] = margin
    earlier = ledgers.waves(shop, campaign_id)
    _check_goes_on(asked, earlier, day)
    k = shop.policy.privacy_k
    funnel = rules_of.funnel(audience, rules, numbers=shop.numbers, k=k)
    planned_at = ledgers.state(shop)
    said_rules = [one.words() for one in rules_of.read(rules)]
    again = next((wave for wave in earlier if wave.as_of == day), None)
    if again is not None:
        _check_same(campaign_id, again, said_rules, sends_on and sending)
        return _as_written(shop, again, funnel, planned_at)
    drawn = campaign_files.universal_control(shop, universal_share, universal_until, sending)
    like = None
    if audience_before is not None:
        like = audience_before
        like = like.filter(rules_of.matches(like, rules)) if rules else like
    fits = audience.filter(rules_of.matches(audience, rules)) if rules else audience
    left, buying = _left(budget, asked, earlier), 0.0
    if budget is not None and any(arm["offer_cost"] for arm in asked["arms"]):
        bought, _ = expectations.anyway(shop, fits if like is None else like, asked, as_of=day)
        buying = bought["response"].mean
    found = planning.allot(
        fits, shop, asked, as_of=day, sends_on=sending, budget=left, buying=buying,
        universal=drawn, earlier=earlier, everybody=audience,
    )  # fmt: skip
    said = expectations.said(
        shop, found, asked, as_of=day, sends_on=sending, like=like, earlier=earlier
    )
    wave = f"{len(earlier) + 1:03}"
    record = {
        "campaign": planning.as_json(asked), "as_of": day.isoformat(), "wave": wave, "said": said,
        "audience": found.audience, "universal": drawn, "rules": said_rules,
        **{name: getattr(found, name).to_dict("list") for name in FRAMES},
    }  # fmt: skip
    return _of_record(shop, record, funnel, found.assigned, found.left_out, planned_at)


def _left(
    budget: float | None, asked: Mapping[str, Any], earlier: Sequence[ledgers.Wave]
) -> float | None:
    """Return what the fixed costs and earlier waves leave of the campaign's budget."""
    if budget is None:
        return None
    tables.check_range("budget", budget, 0, 1e12)
    spent = float(sum(wave.plan["said"]["cost"] for wave in earlier))
    return budget - (spent if earlier else float(asked["fixed_cost"]))


def _check_same(
    campaign_id: str, wave: ledgers.Wave, said_rules: list[str], sending: dt.date | str
) -> None:
    """Refuse to plan a wave again that is written, with other rules or on another day."""
    day, then = wave.as_of, wave.plan["said"]["sends_on"]
    if wave.plan["rules"] != said_rules or (sending and str(sending) != then):
        raise tables.UsageError(
            f"Campaign '{campaign_id}' has its wave of {day} already, with the rules "
            f"{'; '.join(wave.plan['rules']) or 'none'}, sent on {then}. It stays as it is: use a "
            "later as_of for another wave."
        )


def _check_goes_on(asked: Mapping[str, Any], earlier: Sequence[ledgers.Wave], day: dt.date) -> None:
    """Refuse a wave that goes on otherwise than the campaign began, or lies before one drawn."""
    if not earlier:
        return
    began, now = earlier[0].plan["campaign"], planning.as_json(asked)
    name = asked["campaign_id"]
    for old, new in zip(began["arms"], now["arms"], strict=False):
        for what in old:
            if old[what] != new[what]:
                raise tables.UsageError(
                    f"Campaign '{name}' began with {what} {old[what]!r} of arm {old['name']}, and "
                    f"now it is {new[what]!r:.80}: its waves could not be put together. Use "
                    "another campaign_id, which is the file's name."
                )
    for what in ("arms", "holdout_share", "seed", "primary_outcome", "outcome_days", "by_household",
                 "margin"):  # fmt: skip
        if began[what] != now[what]:
            raise tables.UsageError(
                f"Campaign '{name}' began with {what} = {began[what]!r:.200} and cannot go on with "
                f"{now[what]!r:.200}: its waves could not be put together. Use another campaign_id."
            )
    if day < earlier[-1].as_of and all(wave.as_of != day for wave in earlier):
        raise tables.UsageError(
            f"Campaign '{name}' has a wave of {earlier[-1].as_of} already, and as_of {day} is "
            "before it."
        )


def _as_written(shop: Shop, wave: ledgers.Wave, funnel: Any, planned_at: str) -> Plan:
    """Return the plan of a wave that is in the ledger: the ledger decides."""
    read = shop.engines.local.read_parquet
    assigned = read(str(wave.contacts)).select("customer_id", "arm", "stratum", "channel")
    left_out = read(str(wave.suppressed)).select("customer_id", "reason")
    return _of_record(shop, wave.plan, funnel, assigned, left_out, planned_at, wave.number)


def _of_record(
    shop: Shop, record: Mapping[str, Any], funnel: Any, assigned: ir.Table, left_out: ir.Table,
    planned_at: str, written: int | None = None,
) -> Plan:  # fmt: skip
    import pandas as pd

    return Plan(
        shop=shop, campaign=record["campaign"], as_of=dt.date.fromisoformat(record["as_of"]),
        wave=record["wave"], audience=record["audience"], funnel=funnel, said=record["said"],
        assigned=assigned, left_out=left_out, record=record, planned_at=planned_at, written=written,
        **{name: pd.DataFrame(record[name]) for name in FRAMES},
    )  # fmt: skip


def day_before(asked: Mapping[str, Any], *, as_of: str | dt.date) -> dt.date:
    """Return the day from which as many days as count had gone by at `as_of`."""
    return tables.day(as_of) - dt.timedelta(int(asked.get("outcome_days", 28)))
