"""Contact lists: one CSV per channel and arm, for those who still agree, never replaced."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crmlab import ledgers, policies, settings, sources, tables

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.sources import Shop

COLUMNS = ("customer_id", "channel", "arm", "offer", "sends_on", "campaign_id", "wave")


@dataclass(frozen=True)
class Written:
    """What was written: `lists`, path -> how many customers are on it; `withdrawn`, how many of
    those to contact have withdrawn consent since the plan and are on none; `listed`, how many of
    them are on a list that an earlier run wrote, and must be taken off before it is sent;
    `earlier`, waves before this one of which no list lies in the folder.
    """  # noqa: D205

    lists: Mapping[Path, int]
    withdrawn: int
    listed: int
    earlier: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """What to do with the lists; without a count, so that a page may say it."""
        parts = [f"{len(self.lists) or 'No'} contact list{'s' * (len(self.lists) != 1)} written."]
        if self.withdrawn:
            parts.append("Who has withdrawn consent since is on none.")
        if self.listed:
            parts.append(
                "Some withdrew consent after the lists were written: do not send those lists as "
                "they are."
            )
        if self.earlier:
            parts.append(
                f"Of the wave of {', '.join(self.earlier)} no list lies here: if it was never "
                "sent, plan that day again, and write."
            )
        return " ".join(parts)


def write(
    shop: Shop, folder: Path, *, campaign: Mapping[str, Any], wave: str, sends_on: str,
    assigned: ir.Table,
) -> Written:  # fmt: skip
    """Write one list per channel and arm of a wave that is in the ledger.

    Parameters
    ----------
    assigned : local ibis table, one row per customer: customer_id, arm, channel

    Raises
    ------
    UsageError if a file of such a name holds other customers than those of the wave; nothing is
    replaced then
    """
    to_send = _with_consent(shop, assigned)
    settings.make_folder(folder, 0o700)
    offers = {arm["name"]: arm["offer"] for arm in campaign["arms"]}
    lists: dict[Path, int] = {}
    withdrawn = listed = 0
    for (channel, arm), some in to_send.groupby(["channel", "arm"]):
        ids, may = (list(part["customer_id"]) for part in (some, some[some["agreed"]]))
        parts = (campaign["campaign_id"], wave, channel, arm)
        path = folder / f"{'-'.join(map(policies.file_part, parts))}.csv"
        said = (channel, arm, offers.get(arm, ""), sends_on, campaign["campaign_id"], wave)
        there = _there(path)
        if there is None:
            _write(path, _csv(may, said))
            there = may
        elif not set(there) <= set(map(harmless, ids)):
            raise tables.UsageError(
                f"{path} holds customers who are not of this wave: move it away, or write into "
                "another folder. Nothing was replaced."
            )
        left = set(map(harmless, some.loc[~some["agreed"], "customer_id"]))
        listed += len(left & set(there))
        withdrawn += len(left - set(there))
        lists[path] = len(there)
    earlier = _unlisted(shop, folder, campaign["campaign_id"], wave)
    return Written(lists, withdrawn, listed, earlier)


def _unlisted(shop: Shop, folder: Path, campaign_id: str, wave: str) -> tuple[str, ...]:
    """Return the days of the waves before this one of which the folder has no list."""
    here, found = [path.name for path in folder.iterdir()], []
    for one in ledgers.waves(shop, campaign_id):
        begins = f"{policies.file_part(campaign_id)}-{one.plan['wave']}-"
        if one.plan["wave"] < wave and not any(name.startswith(begins) for name in here):
            found.append(str(one.as_of))
    return tuple(found)


def _with_consent(shop: Shop, assigned: ir.Table) -> pd.DataFrame:
    """Return who is to be contacted, and whether they agree by all answers read anew."""
    import ibis

    rows = assigned.filter(assigned.arm != ledgers.HOLDOUT, assigned.channel.notnull())
    rows = ibis.memtable(rows.select("customer_id", "channel", "arm").to_pyarrow())
    said = policies.consents(sources.Shop(shop.settings))
    stop = said.filter(said.channel == policies.ALL_CHANNELS, ~said.given)
    yes = said.filter(said.given).select(who="customer_id", by="channel")
    both = rows.left_join(yes, (rows.customer_id == yes.who) & (rows.channel == yes.by))
    agreed = both.who.notnull() & both.customer_id.notin(stop.customer_id)
    found = both.select("customer_id", "channel", "arm", agreed=agreed)
    return found.order_by("channel", "arm", "customer_id").to_pandas()


def harmless(text: str) -> str:
    """Return a cell that no spreadsheet takes for a formula.

    >>> harmless("=1+1"), harmless("C0001")
    ("'=1+1", 'C0001')
    """
    return f"'{text}" if text[:1] in tuple("=+-@\t\r\n") else text


def _csv(ids: list[str], said: tuple[str, ...]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    rest = [harmless(one) for one in said]
    writer.writerows([harmless(one), *rest] for one in ids)
    return text.getvalue()


def _there(path: Path) -> list[str] | None:
    """Return the customers of a list that is there already."""
    if not path.exists():
        return None
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        if rows and tuple(rows[0]) == COLUMNS:
            return [row[0] for row in rows[1:]]
    except (OSError, UnicodeDecodeError, csv.Error, IndexError):
        pass
    raise tables.UsageError(f"{path} is no list of this package; it is left as it is.")


def _write(path: Path, text: str) -> None:
    """Write a file that was not there, whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.chmod(0o600)
        os.link(scratch, path)  # unlike a rename, it replaces nothing
    except FileExistsError:
        raise tables.UsageError(f"{path} was written by another process meanwhile.") from None
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
