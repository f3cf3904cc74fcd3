"""A campaign's file: what is asked of a plan, as TOML in the shop's folder."""

from __future__ import annotations

import datetime as dt
import tomllib
from typing import TYPE_CHECKING, Any

from crmlab import ledgers, tables
from crmlab import rules as rules_of

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
