"""The ledger of campaigns: who was given which arm, written once, before anything is sent."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crmlab import settings, tables

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pyarrow as pa

    from crmlab.sources import Shop

HOLDOUT = "holdout"
# How many bytes a name may have that becomes a part of a file's.
LONGEST = 60
HEAD = "head.json"
# What is known of each customer of a campaign, whichever of ledger and source holds it.
CONTACTS = (
    "campaign_id", "customer_id", "arm", "stratum", "wave", "channel", "assigned_at", "window_from",
    "sent_at", "delivered_at", "drawn",
)  # fmt: skip


@dataclass(frozen=True)
class Wave:
    """One wave of a campaign as it was written: `plan`, its part of the ledger in words.

    `contacts` and `suppressed` are the files with one row per customer.
    """

    number: int
    plan: Mapping[str, Any]
    contacts: Path
    suppressed: Path

    @property
    def as_of(self) -> dt.date:
        """The day by whose end the arms were drawn."""
        return dt.date.fromisoformat(self.plan["as_of"])


def folder(shop: Shop) -> Path:
    """Return the shop's ledger, in the private folder."""
    return settings.home() / "reports" / "private" / shop.id / "ledger"


def check_id(campaign_id: str) -> str:
    """Return the id if a folder may have its name; raise `UsageError` if not."""
    named = isinstance(campaign_id, str) and re.fullmatch(r"\w[\w.-]*", campaign_id)
    if not named or len(campaign_id.encode()) > LONGEST:
        raise tables.UsageError(
            f"campaign_id is {campaign_id!r:.120}; it may have letters, digits, - _ and . only, "
            f"begins with a letter or digit, and is no longer than {LONGEST} letters of ASCII."
        )
    return campaign_id


def campaign_ids(shop: Shop) -> list[str]:
    """Return the campaigns of the ledger."""
    there = (*folder(shop).glob("*/[0-9]*.json"), *folder(shop).glob(f"*/{HEAD}"))
    return sorted({path.parent.name for path in there})


def waves(shop: Shop, campaign_id: str) -> list[Wave]:
    """Return the waves of a campaign that were written, the first one first.

    Raises `DataError` where a file is not as it was written: then nobody can know any more who
    was in which arm.
    """
    place, found, before = folder(shop) / check_id(campaign_id), [], ""
    for number, path in enumerate(sorted(place.glob("[0-9]*.json")), start=1):
        plan = _sealed(path)
        if path.name != f"{number:03}.json" or plan["after"] != before:
            raise _edited(path, "a wave before it is gone or is another one")
        wave = Wave(number, plan, *(_part(path, what) for what in ("contacts", "suppressed")))
        for part, digest in ((wave.contacts, "contacts"), (wave.suppressed, "suppressed")):
            if not part.is_file() or _digest(part.read_bytes()) != plan["files"][digest]:
                raise _edited(part, "it is gone, or its content is another one")
        found.append(wave)
        before = plan["seal"]
    head = place / HEAD
    # Written after the wave: where a run was cut short between the two, it says one less.
    if head.is_file() and _sealed(head)["waves"] > len(found):
        raise _edited(head, "the last wave is gone")
    return found


def state(shop: Shop) -> str:
    """Return what changes with every wave that is written, of whatever campaign."""
    seals = [wave.plan["seal"] for one in campaign_ids(shop) for wave in waves(shop, one)]
    return _digest(" ".join(seals).encode())


def write_wave(
    shop: Shop, campaign_id: str, plan: Mapping[str, Any], *, contacts: pa.Table,
    suppressed: pa.Table, planned_at: str,
) -> Wave:  # fmt: skip
    """Write the next wave, on the disk for good before this returns; nothing is ever replaced.

    Parameters
    ----------
    plan : what is said before the send, as JSON holds it; with `as_of`
    contacts, suppressed : one row per customer
    planned_at : the ledger's `state` when it was planned

    Raises
    ------
    UsageError if any wave was written since: limits and arms may be others then
    """
    import pyarrow.parquet as pq

    settings.make_folder(folder(shop), 0o700)
    with _lock(folder(shop)):
        if state(shop) != planned_at:
            raise tables.UsageError(
                f"The ledger of shop '{shop.id}' has changed since campaign '{campaign_id}' was "
                "planned: another wave was written, and limits or arms may be others now. Plan "
                "again. Nothing was written."
            )
        earlier = waves(shop, campaign_id)
        place, number = folder(shop) / campaign_id, len(earlier) + 1
        settings.make_folder(place, 0o700)
        path, files = place / f"{number:03}.json", {}
        for name, table in (("contacts", contacts), ("suppressed", suppressed)):
            part = _part(path, name)
            pq.write_table(table, part, compression="zstd")
            part.chmod(0o600)
            _sync(part)
            files[name] = _digest(part.read_bytes())
        before = earlier[-1].plan["seal"] if earlier else ""
        _write_sealed(path, {**plan, "after": before, "files": files})
        _write_sealed(place / HEAD, {"waves": number})
        return waves(shop, campaign_id)[-1]


def universal(shop: Shop, day: dt.date) -> dict[str, Any] | None:
    """Return the universal control in force on a day: share, salt, starts_on and until.

    It is in force from the first wave that was written with it; None where there is none.
    """
    drawn = universals(shop)
    return next((one for one in drawn if one["starts_on"] <= day.isoformat() <= one["until"]), None)


def universals(shop: Shop) -> list[dict[str, Any]]:
    """Return every universal control that a wave was written with, the newest first."""
    found = {
        wave.plan["universal"]["starts_on"]: dict(wave.plan["universal"])
        for one in campaign_ids(shop)
        for wave in waves(shop, one)
        if wave.plan.get("universal")
    }
    return [found[start] for start in sorted(found, reverse=True)]


def campaigns(shop: Shop) -> dict[str, dict[str, Any]]:
    """Return what is known of each campaign by its id: what was planned, else what the shop has.

    The shop's table gives name, channel, offer, costs, days and whether arms were drawn by lot.
    """
    found: dict[str, dict[str, Any]] = {}
    if shop.has("campaigns"):
        rows = shop.table("campaigns").to_pyarrow().to_pylist()
        found = {row["campaign_id"]: row for row in sorted(rows, key=lambda r: r["campaign_id"])}
    for campaign_id in campaign_ids(shop):
        written = waves(shop, campaign_id)
        first = written[0].plan
        # What was said before the send stands, whatever the shop's table says later.
        found[campaign_id] = {
            **found.get(campaign_id, {}), **first["campaign"], "randomised": True,
            "planned": first,
            "fixed_cost": written[-1].plan["campaign"]["fixed_cost"],
        }  # fmt: skip
    return found


def contacts(shop: Shop) -> ir.Table | None:
    """Return who was given which arm: what the ledger says, and the shop's table beside it.

    Returns
    -------
    local ibis table, one row per campaign and customer, columns `CONTACTS`; None if there are
    none. The arm is the ledger's where it has the customer; when it was sent, the shop's.
    `window_from` is the first day that counts: of the planned send, else of the assignment.
    `drawn` is false for whom the shop's table has in a campaign of the ledger that never drew them.

    Raises
    ------
    DataError where the shop's table gives a customer another arm than the ledger, or the ledger
    was changed
    """
    import ibis

    parts = []
    if shop.has("contacts"):
        parts.append(_of_shop(shop))
    written = [wave for one in campaign_ids(shop) for wave in waves(shop, one)]
    if written:
        # Read at once: pyarrow's types, not those that a file claims.
        rows = shop.engines.local.read_parquet([str(wave.contacts) for wave in written])
        ours = rows.select(
            *(name for name in CONTACTS if name in rows.columns),
            sent_at=ibis.null("timestamp(6)"),
            delivered_at=ibis.null("timestamp(6)"),
            drawn=ibis.literal(True),
        )
        doubled = ours.group_by("campaign_id", "customer_id").aggregate(n=ours.count())
        if doubled.filter(doubled.n > 1).count().to_pyarrow().as_py():
            raise tables.DataError(
                f"The ledger of shop '{shop.id}' gives customers two arms of one campaign: nobody "
                "can know which counts. Restore the folder from a backup."
            )
        if parts:
            ours, others = _united(ours, parts.pop())
            parts.append(others)
        parts.append(ours.select(*CONTACTS))
    if not parts:
        return None
    both = ibis.union(*parts) if len(parts) > 1 else parts[0]
    return shop.landed(both, "contacts")


def _of_shop(shop: Shop) -> ir.Table:
    """Return the contacts of the shop's own table."""
    import ibis

    rows = shop.table("contacts")
    text, moment = ibis.null("string"), ibis.null("timestamp(6)")
    optional = {"stratum": text, "wave": text, "sent_at": moment, "delivered_at": moment}
    found = {name: rows[name] if name in rows.columns else no for name, no in optional.items()}
    rows = rows.select(
        "campaign_id", "customer_id", "arm", "assigned_at",
        window_from=rows.assigned_at.date(), drawn=ibis.literal(True), **found,
    )  # fmt: skip
    rows = shop.landed(rows, "contacts")
    if shop.has("campaigns") and "channel" in shop.table("campaigns").columns:
        named = shop.table("campaigns").select(one="campaign_id", channel="channel")
        named = shop.landed(named, "channels")
        rows = rows.left_join(named, rows.campaign_id == named.one)
    else:
        rows = rows.mutate(channel=text)
    kinds = {"assigned_at": "timestamp(6)", "sent_at": "timestamp(6)",
             "delivered_at": "timestamp(6)"}  # fmt: skip
    return rows.select(*CONTACTS).cast(kinds)


def _united(ours: ir.Table, theirs: ir.Table) -> tuple[ir.Table, ir.Table]:
    """Take from the shop's table when a message of the ledger was sent; return both, disjoint."""
    theirs = theirs.rename(lambda name: f"their_{name}")
    both = ours.left_join(
        theirs,
        (ours.campaign_id == theirs.their_campaign_id)
        & (ours.customer_id == theirs.their_customer_id),
    )
    other = both.filter(both.arm != both.their_arm)
    if wrong := other.select("campaign_id", "arm", "their_arm").limit(1).to_pyarrow().to_pylist():
        [row] = wrong
        raise tables.DataError(
            f"Customers of campaign '{row['campaign_id']}' are in two arms: the ledger has "
            f"{row['arm']!r} where the table contacts has {row['their_arm']!r}. What was drawn by "
            "lot is what counts: correct the table, or name its campaign otherwise."
        )
    mine = both.select(
        *(name for name in CONTACTS if name not in ("sent_at", "delivered_at")),
        sent_at=both.their_sent_at, delivered_at=both.their_delivered_at,
    )  # fmt: skip
    known = ours.select("campaign_id", "customer_id")
    rest = theirs.anti_join(
        known,
        (theirs.their_campaign_id == known.campaign_id)
        & (theirs.their_customer_id == known.customer_id),
    )
    rest = rest.rename(lambda name: name.removeprefix("their_"))
    campaigns_of_ours = ours.select("campaign_id").distinct()
    rest = rest.mutate(drawn=rest.campaign_id.notin(campaigns_of_ours.campaign_id))
    return mine, rest.select(*CONTACTS)


def _part(path: Path, what: str) -> Path:
    return path.with_name(f"{path.stem}-{what}.parquet")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _seal(content: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != "seal"}
    return _digest(json.dumps(rest, sort_keys=True).encode())


def _sealed(path: Path) -> dict[str, Any]:
    """Read a page of the ledger; its seal says whether it is as it was written."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["seal"] == _seal(found):
            return dict(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _edited(path, f"it cannot be read ({type(error).__name__})") from None
    raise _edited(path, "its content is another one")


def _edited(path: Path, what: str) -> tables.DataError:
    return tables.DataError(
        f"The ledger was changed since it was written: {path}: {what}. Nobody can know any more "
        "who was held out: restore the folder from a backup. Nothing was written."
    )


def _write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a page of the ledger so that it is there whole or not at all, whatever happens."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps({**content, "seal": _seal(content)}, indent=1, sort_keys=True)
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.chmod(0o600)
        _sync(scratch)
        scratch.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise OSError(f"{path.parent} cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until the disk has it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _lock(place: Path) -> Iterator[None]:
    """Let one process write at a time."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(place / ".lock", timeout=60):
            yield
    except Timeout:
        raise tables.UsageError(f"Another process is writing in {place}: try again.") from None
