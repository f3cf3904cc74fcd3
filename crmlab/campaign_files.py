"""What is asked of a plan: a campaign's file in the shop's folder, and whether it can be meant."""

from __future__ import annotations

import datetime as dt
import tomllib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from crmlab import ledgers, outcomes, policies, tables
from crmlab import rules as rules_of
from crmlab.policies import Arm, ContactPolicy

if TYPE_CHECKING:
    from crmlab.sources import Shop

# What a campaign's file may say, all as `campaigns.plan` takes it, and the types of what it says.
SETTINGS: dict[str, tuple[type, ...]] = {
    "name": (str,), "rules": (list,), "arms": (list,), "policy": (dict,), "outcome": (str,),
    "outcome_days": (int,), "holdout_share": (float, int), "seed": (int,), "margin": (float, int),
    "fixed_cost": (float, int), "budget": (float, int), "by_household": (bool,),
    "universal_share": (float, int), "universal_until": (dt.date, str), "sends_on": (dt.date, str),
}  # fmt: skip


def read(shop: Shop, name: str) -> dict[str, Any]:
    """Return what a campaign's file asks: campaigns/<name>.toml in the shop's folder.

    Returns
    -------
    dict of arguments for `campaigns.plan`, with the file's name as campaign_id; `rules` as
    `rules.read` gives them

    Raises
    ------
    UsageError if there is no such file, or it says what cannot be asked
    """
    folder = shop.settings.folder / "campaigns"
    path = folder / f"{ledgers.check_id(name)}.toml"
    if not path.is_file():
        there = sorted(one.stem for one in folder.glob("*.toml"))
        raise tables.UsageError(
            f"There is no campaign file {path}. There is: {', '.join(there) or 'none'}."
            + tables.did_you_mean(name, there)
        )
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise tables.UsageError(f"{path} cannot be read: {error}.") from None
    for key, value in given.items():
        if key not in SETTINGS:
            raise tables.UsageError(
                f"{path} has no setting '{key}'; it has {', '.join(SETTINGS)}."
                + tables.did_you_mean(key, SETTINGS)
            )
        if type(value) not in SETTINGS[key]:
            kinds = " or ".join(one.__name__ for one in SETTINGS[key])
            raise tables.UsageError(f"{path}: {key} is {value!r:.60}; it must be of type {kinds}.")
    if "arms" not in given:
        raise tables.UsageError(f"{path} says no arms: add [[arms]] with a name and a channel.")
    return {**given, "campaign_id": name, "rules": rules_of.read(given.get("rules", ()))}


def checked(
    campaign_id: str, name: str, arms: tuple[Arm, ...], policy: ContactPolicy,
    holdout_share: float, seed: int, outcome: str, outcome_days: int, fixed_cost: float,
    by_household: bool,
) -> dict[str, Any]:  # fmt: skip
    """Check what is asked, and return it as the ledger keeps it."""
    ledgers.check_id(campaign_id)
    tables.check_range("holdout_share", holdout_share, 0, 1)
    if not 0 < holdout_share < 1:
        raise tables.UsageError(
            f"holdout_share is {holdout_share}: with {'nobody' if not holdout_share else 'all'} "
            "held out nobody can know what the campaign changed. 0.1 is usual."
        )
    if outcome not in outcomes.OUTCOMES:
        raise tables.UsageError(
            f"outcome is {outcome!r}; it must be one of {', '.join(outcomes.OUTCOMES)}."
            + tables.did_you_mean(str(outcome), outcomes.OUTCOMES)
        )
    if type(outcome_days) is not int or not 1 <= outcome_days <= 3660:
        raise tables.UsageError(f"outcome_days is {outcome_days!r}; it must be from 1 to 3660.")
    if type(seed) is not int:
        raise tables.UsageError(f"seed is {seed!r}; it must be a whole number.")
    tables.check_range("fixed_cost", fixed_cost, 0, 1e12)
    return {
        "campaign_id": campaign_id, "name": name or campaign_id, "holdout_share": holdout_share,
        "seed": seed, "primary_outcome": outcome, "outcome_days": outcome_days,
        "fixed_cost": fixed_cost, "by_household": by_household, "policy": policy,
        "arms": [{"name": arm.name, "channels": list(arm.channels), "offer": arm.offer,
                  "share": arm.share, "contact_cost": dict(arm.contact_cost),
                  "offer_cost": arm.offer_cost} for arm in arms],
    }  # fmt: skip


def check_days(asked: Mapping[str, Any], day: dt.date, sending: dt.date) -> None:
    """Raise `UsageError` for a day of sending that cannot be meant."""
    if sending <= day:
        raise tables.UsageError(f"sends_on {sending} must lie after as_of {day}.")
    if policies.is_closed(asked["policy"], sending):
        raise tables.UsageError(
            f"Nothing is sent on {sending} ({policies.WEEKDAYS[sending.weekday()]}), by the policy."
        )


def universal_control(
    shop: Shop, share: float, until: str | dt.date, sending: dt.date
) -> dict[str, Any] | None:
    """Return the universal control in force on a day: the one that was drawn, else a new one."""
    tables.check_range("universal_share", share, 0, 0.5)
    known = ledgers.universal(shop, sending)
    if known:
        if share and share != known["share"]:
            raise tables.UsageError(
                f"A universal control of {known['share']} is in force until {known['until']}; it "
                "cannot be changed before."
            )
        return known
    if not share:
        return None
    if not until or tables.day(until, name="universal_until") <= sending:
        raise tables.UsageError(
            f"universal_until is {str(until)[:20] or 'missing'}; say until which day, after "
            f"{sending}, those stay out of every campaign."
        )
    first = sending.isoformat()
    last = tables.day(until, name="universal_until").isoformat()
    if other := [one for one in ledgers.universals(shop) if first <= one["starts_on"] <= last]:
        raise tables.UsageError(
            f"A universal control was drawn for {other[0]['starts_on']} to {other[0]['until']}: "
            "another may not reach into its days."
        )
    return {"share": share, "salt": f"universal/{first}", "starts_on": first,
            "until": last}  # fmt: skip
