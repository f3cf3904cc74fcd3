"""Whom a campaign may contact: consent, limits, rest after a complaint; and by which channel."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from crmlab import ledgers, tables

if TYPE_CHECKING:
    import ibis.expr.types as ir

    from crmlab.sources import Shop

# Consent of this channel withdrawn is a wish not to be contacted at all.
ALL_CHANNELS = "all"
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
DO_NOT_CONTACT, NO_CONSENT = "do not contact", "no consent"
COMPLAINT, RESTING = "complaint", "contacted days ago"
CAP, CHANNEL_CAP = "contact cap", "contact cap of the channel"


@dataclass(frozen=True)
class ContactPolicy:
    """How often and when a customer may be contacted; all days are whole ones.

    At most `most` contacts in any `days` days, and `most_by_channel` of one channel; `quiet_days`
    without any contact before and after each; none while a complaint is open, nor in the
    `complaint_days` after it was opened; nothing is sent on a day that is `closed`: a weekday's
    English name, or a date.
    """

    most: int | None = None
    most_by_channel: Mapping[str, int] = field(default_factory=dict)
    days: int = 30
    quiet_days: int = 0
    complaint_days: int = 30
    closed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arm:
    """What one arm of a campaign gets: an offer, by the first of its `channels` that may be used.

    `share` is relative to the other arms'; `contact_cost`, shop currency per contact by channel;
    `offer_cost`, shop currency per offer taken.
    """

    name: str
    channels: tuple[str, ...]
    offer: str = ""
    share: float = 1.0
    contact_cost: Mapping[str, float] = field(default_factory=dict)
    offer_cost: float = 0.0


def read_policy(given: Mapping[str, Any] | ContactPolicy | None) -> ContactPolicy:
    """Return the policy that a table of TOML, or a dict, says; `UsageError` for what it cannot."""
    if isinstance(given, ContactPolicy):
        given = asdict(given)
        given = {name: value for name, value in given.items() if value is not None}
    if given is not None and not isinstance(given, Mapping):
        raise tables.UsageError(f"policy is {given!r:.80}; it is a table such as {{ most = 3 }}.")
    given = dict(given or {})
    _known("policy", given, [one.name for one in fields(ContactPolicy)])
    for name in ("most", "days", "quiet_days", "complaint_days"):
        if name in given:
            _whole(f"policy {name}", given[name], 1 if name == "days" else 0)
    by_channel = given.get("most_by_channel", {})
    if not isinstance(by_channel, Mapping):
        raise tables.UsageError(
            f"policy most_by_channel is {by_channel!r}; it is a table such as {{ email = 2 }}."
        )
    for channel, most in by_channel.items():
        _whole(f"policy most_by_channel {channel}", most, 0)
    given["most_by_channel"] = {plain(name): most for name, most in by_channel.items()}
    closed = given.get("closed", ())
    if isinstance(closed, str) or not isinstance(closed, Sequence):
        raise tables.UsageError(f"policy closed is {closed!r}; it is a list of days.")
    given["closed"] = tuple(str(day).lower() for day in closed)
    for day in given["closed"]:
        if day not in WEEKDAYS:
            try:
                if dt.date.fromisoformat(day).isoformat() != day:
                    raise ValueError
            except ValueError:
                raise tables.UsageError(
                    f"policy closed has {day!r}; it must be a weekday such as sunday, or a date."
                    + tables.did_you_mean(day, WEEKDAYS)
                ) from None
    return ContactPolicy(**given)


def plain(channel: str) -> str:
    """Return a channel's name as it is compared: the case of its letters means nothing."""
    return str(channel).strip().lower()


def file_part(text: str) -> str:
    """Return a name as a part of a file's: nothing of it can name another folder."""
    return re.sub(r"[^\w-]+", "-", text).strip("-") or "x"


def read_arms(given: Sequence[Mapping[str, Any] | Arm]) -> tuple[Arm, ...]:
    """Return the arms that tables of TOML, or dicts, say; `UsageError` for what they cannot."""
    if isinstance(given, (Mapping, str)) or not isinstance(given, Sequence) or not given:
        raise tables.UsageError("A campaign needs arms: a list of at least one, with a name.")
    arms = tuple(_arm(asdict(one) if isinstance(one, Arm) else one) for one in given)
    names = [arm.name for arm in arms]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise tables.UsageError(f"Two arms have the name {', '.join(sorted(doubled))}.")
    for some in (names, {channel for arm in arms for channel in arm.channels}):
        if len({file_part(name).casefold() for name in some}) < len(some):
            raise tables.UsageError(
                f"Of {', '.join(sorted(some))}, two differ by signs only: files could not tell "
                "them apart."
            )
    return arms


def _arm(given: Any) -> Arm:
    if not isinstance(given, Mapping):
        raise tables.UsageError(
            f"An arm is {given!r:.80}; it is a table with a name and a channel."
        )
    given = dict(given)
    if "channel" in given:
        given["channels"] = [given.pop("channel")]
    _known("arm", given, ["channel", *(one.name for one in fields(Arm))])
    name, channels = given.get("name"), given.get("channels")
    if not isinstance(name, str) or not name.strip() or plain(name) == ledgers.HOLDOUT:
        raise tables.UsageError(f"An arm's name is {name!r}; it must be words, and not 'holdout'.")
    if not isinstance(channels, (list, tuple)) or not channels or not all(
        isinstance(one, str) and one.strip() and plain(one) != ALL_CHANNELS for one in channels
    ):  # fmt: skip
        raise tables.UsageError(f"Arm {name}: channels is {channels!r}; it is a list of channels.")
    channels = tuple(dict.fromkeys(plain(one) for one in channels))
    for what in (name, *channels):
        if len(what.encode()) > ledgers.LONGEST:
            raise tables.UsageError(f"{what!r:.80} is too long: {ledgers.LONGEST} letters at most.")
    if not isinstance(given.get("offer", ""), str):
        raise tables.UsageError(f"Arm {name}: offer is {given['offer']!r}; it must be words.")
    tables.check_range(f"share of arm {name}", given.get("share", 1.0), 0, 1e6)
    if given.get("share", 1.0) == 0:
        raise tables.UsageError(f"Arm {name} has share 0: leave it out.")
    cost = given.get("contact_cost", 0.0)
    by_channel = dict.fromkeys(channels, cost)
    if isinstance(cost, Mapping):
        by_channel = {plain(channel): each for channel, each in cost.items()}
    _known(f"contact_cost of arm {name}", by_channel, channels)
    for what, amount in (*by_channel.items(), ("offer", given.get("offer_cost", 0.0))):
        tables.check_range(f"cost of {what}, arm {name}", amount, 0, 1e9)
    costs = {one: float(by_channel.get(one, 0.0)) for one in channels}
    return Arm(**{**given, "channels": channels, "contact_cost": costs})


def _known(what: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise tables.UsageError(
                f"{what} has no setting '{name}'; it has {', '.join(known)}."
                + tables.did_you_mean(name, known)
            )


def _whole(what: str, value: Any, least: int) -> None:
    if type(value) is not int or not least <= value <= 100_000:
        raise tables.UsageError(f"{what} is {value!r}; it must be a whole number from {least} on.")


def consents(shop: Shop, *, as_of: dt.date | None = None) -> ir.Table:
    """Return who has agreed to what, by each customer's latest answer about a channel.

    Local ibis table: customer_id, channel, given. Of answers at the same moment, or of none that
    is known, a withdrawal counts. `as_of` None takes every answer there is. Raises `DataError`
    where the shop has no consents: no row is no consent.
    """
    import ibis

    if not shop.has("consents"):
        raise tables.DataError(
            f"Shop '{shop.id}' has no table consents, and no row is no consent: nobody may be "
            "contacted. Name yours in shop.toml: [tables.consents] from = ..., or flags = { sms = "
            '"sms_ok" } for columns of yes and no in customers.'
        )
    rows = shop.table("consents")
    at = rows["at"] if "at" in rows.columns else ibis.null("timestamp")
    channel = rows.channel.strip().lower()
    rows = rows.select("customer_id", channel=channel, given=rows.status == "given", said_at=at)
    if as_of is not None:
        rows = rows.filter((rows.said_at.date() <= ibis.literal(as_of)).fill_null(True))
    own = {"group_by": ["customer_id", "channel"]}
    # Undated answers count as the oldest, but a withdrawal among them as one for good.
    rows = rows.mutate(latest=rows.said_at.max().over(**own))
    rows = rows.filter(
        (rows.said_at == rows.latest).fill_null(False)
        | rows.latest.isnull()
        | (rows.said_at.isnull() & ~rows.given)
    )
    found = rows.group_by("customer_id", "channel").aggregate(
        no=rows.count(where=~rows.given), given=rows.count(where=rows.given)
    )
    found = found.select("customer_id", "channel", given=(found.no == 0) & (found.given > 0))
    return shop.landed(found, "consents")


def open_channels(
    rows: ir.Table, shop: Shop, *, arms: Sequence[Arm], policy: ContactPolicy, as_of: dt.date,
    sends_on: dt.date,
) -> ir.Table:  # fmt: skip
    """Say by which channel each arm would reach each customer, and why some may not be reached.

    Every arm must be able to reach everybody from whom arms are drawn: else who is in an arm would
    depend on who agreed to its channel.

    Parameters
    ----------
    rows : local ibis table, one row per customer: customer_id; preferred_channel if it is known

    Returns
    -------
    local ibis table, the rows with: reason, null for who may be contacted; channel_0 of the first
    arm, and so on, null where no channel is open
    """
    import ibis

    named = sorted({channel for arm in arms for channel in arm.channels})
    said = consents(shop, as_of=as_of)
    _check_channels(said, named, policy)
    stop = said.filter(said.channel == ALL_CHANNELS, ~said.given).select("customer_id")
    columns = list(rows.columns)
    counts = _contacted(shop, policy, sends_on, named)
    agreed = said.filter(said.given).group_by("customer_id").aggregate(
        **{f"may_{n}": (said.filter(said.given).channel == name).any()
           for n, name in enumerate(named)}
    )  # fmt: skip
    wide = _beside(rows, agreed, "agreed")
    wide = _beside(wide, counts, "counted") if counts is not None else wide
    may = {name: wide[f"may_{n}"].fill_null(False) for n, name in enumerate(named)}
    free = {
        name: _under(wide, f"sent_{n}", policy.most_by_channel.get(name))
        for n, name in enumerate(named)
    }
    wish = ibis.literal("")
    if "preferred_channel" in columns:
        wish = wide.preferred_channel.strip().lower().fill_null("")
    chosen, agreed_all, free_all = {}, [], []
    for n, arm in enumerate(arms):
        cheapest = sorted(arm.channels, key=lambda one: (arm.contact_cost.get(one, 0.0), one))
        first = [(may[one] & free[one] & (wish == one), ibis.literal(one))
                 for one in cheapest]  # fmt: skip
        then = [(may[one] & free[one], ibis.literal(one)) for one in cheapest]
        chosen[f"channel_{n}"] = ibis.cases(*first, *then, else_=ibis.null("string"))
        agreed_all.append(ibis.or_(*(may[one] for one in arm.channels)))
        free_all.append(ibis.or_(*(may[one] & free[one] for one in arm.channels)))
    customer = wide.customer_id
    reasons = [
        (customer.isin(stop.customer_id), DO_NOT_CONTACT),
        (~ibis.and_(*agreed_all), NO_CONSENT),
    ]
    if (cross := _complaining(shop, policy, as_of)) is not None:
        reasons.append((customer.isin(cross.customer_id), COMPLAINT))
    if counts is not None:
        reasons += [
            (~_under(wide, "near", 1 if policy.quiet_days else None), RESTING),
            (~_under(wide, "sent", policy.most), CAP),
        ]
    elif policy.most == 0:
        reasons.append((ibis.literal(True), CAP))
    reasons.append((~ibis.and_(*free_all), CHANNEL_CAP))
    wide = wide.mutate(reason=ibis.cases(*reasons, else_=ibis.null("string")), **chosen)
    return wide.select(*columns, "reason", *chosen)


def _check_channels(said: ir.Table, named: Sequence[str], policy: ContactPolicy) -> None:
    """Refuse a channel for which nobody ever gave consent, or a limit on one that is misspelt."""
    there = said.select("channel").distinct().order_by("channel").to_pyarrow()["channel"]
    known = [one for one in there.to_pylist() if one]
    for channel in named:
        if channel not in known:
            raise tables.DataError(
                f"Nobody ever gave consent for the channel {channel!r}; there are "
                f"{', '.join(known[:20])}.{tables.did_you_mean(channel, known)}"
            )
    for channel in policy.most_by_channel:
        if channel not in (*known, *named):
            raise tables.UsageError(
                f"policy most_by_channel has {channel!r}, which is no channel; there are "
                f"{', '.join(known[:20])}.{tables.did_you_mean(channel, known)}"
            )


def _beside(rows: ir.Table, more: ir.Table, name: str) -> ir.Table:
    """Join what is known of some customers to the rows of all, one row each as before."""
    more = more.rename({f"{name}_id": "customer_id"})
    return rows.left_join(more, rows.customer_id == more[f"{name}_id"]).drop(f"{name}_id")


def _under(rows: ir.Table, column: str, most: int | None) -> Any:
    """Tell whether one contact more is still within the limit."""
    import ibis

    if most is None:
        return ibis.literal(True)
    sent = rows[column].fill_null(0) if column in rows.columns else ibis.literal(0)
    return sent + 1 <= most


def _contacted(
    shop: Shop, policy: ContactPolicy, sends_on: dt.date, named: Sequence[str]
) -> ir.Table | None:
    """Count the contacts of each customer near the day of sending, whichever campaign's they are.

    Also those that are planned for after it: no period of so many days may have too many.
    """
    import ibis

    rows = ledgers.contacts(shop)
    if rows is None:
        return None
    # Who was held out and got a message all the same was contacted.
    rows = rows.filter((rows.arm != ledgers.HOLDOUT) | rows.sent_at.notnull())
    rows = rows.mutate(channel=rows.channel.strip().lower())
    rows = rows.mutate(on=rows.sent_at.date().fill_null(rows.window_from))
    reach = max(policy.days - 1, policy.quiet_days)
    first, last = (ibis.literal(sends_on + dt.timedelta(side * reach)) for side in (-1, 1))
    rows = rows.filter(rows.on >= first, rows.on <= last)
    away = rows.on.delta(ibis.literal(sends_on), unit="day").abs()
    rows = rows.mutate(away=away)
    inside = rows.away < policy.days
    return rows.group_by("customer_id").aggregate(
        sent=rows.count(where=inside),
        near=rows.count(where=rows.away <= policy.quiet_days),
        **{
            f"sent_{n}": rows.count(where=inside & (rows.channel == name).fill_null(False))
            for n, name in enumerate(named)
        },
    )


def _complaining(shop: Shop, policy: ContactPolicy, as_of: dt.date) -> ir.Table | None:
    """Return who has an open complaint, or has complained a short time ago."""
    import ibis

    if not policy.complaint_days or not shop.has("cases"):
        return None
    rows = shop.table("cases")
    if "kind" not in rows.columns:
        return None
    opened = rows.opened_at.date()
    rows = rows.filter(rows.kind.lower() == "complaint", opened <= ibis.literal(as_of))
    recent = rows.opened_at.date() > ibis.literal(as_of - dt.timedelta(policy.complaint_days))
    if "closed_at" in rows.columns:
        still = rows.closed_at.isnull() | (rows.closed_at.date() > ibis.literal(as_of))
        recent = recent | still
    return shop.landed(rows.filter(recent).select("customer_id").distinct(), "complaints")


def is_closed(policy: ContactPolicy, day: dt.date) -> bool:
    """Whether nothing is sent on a day."""
    return WEEKDAYS[day.weekday()] in policy.closed or day.isoformat() in policy.closed
