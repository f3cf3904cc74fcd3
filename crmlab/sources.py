"""Data in: open a shop on its engines, rename and type its columns, check them at the door."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from crmlab import checks, engines, files, reading, results, settings, tables
from crmlab.checks import TableCheck
from crmlab.engines import Source, readable
from crmlab.settings import Policy, ShopSettings, home, shop_names
from crmlab.tables import DataError, UsageError

if TYPE_CHECKING:
    import ibis.expr.types as ir

__all__ = ["Shop", "TableCheck", "home", "open_shop", "shop_names"]


@dataclass(frozen=True, eq=False)
class Shop:
    """One shop: its settings, and its tables as read-only ibis expressions on their engines."""

    settings: ShopSettings

    @property
    def id(self) -> str:
        """The name of the shop's folder."""
        return self.settings.id

    @property
    def numbers(self) -> results.Numbers:
        """How the shop's readers write numbers, money and dates."""
        return self.settings.numbers

    @property
    def policy(self) -> Policy:
        """What the shop has decided about its data."""
        return self.settings.policy

    @cached_property
    def engines(self) -> engines.Engines:
        """The connections to where the tables lie, and the local DuckDB."""
        return engines.Engines()

    def has(self, name: str) -> bool:
        """Tell whether the shop has that table."""
        try:
            self._source(tables.CONTRACT[name])
        except (engines.NotFoundError, KeyError):
            return False
        return True

    def table(self, name: str) -> ir.Table:
        """Return a table under its contract names and types, without the rows set aside.

        `transactions` comes with `purchased_on`, the date of `purchased_at`. Raises `DataError`
        as `check` does.
        """
        if name not in tables.CONTRACT:
            raise UsageError(
                f"There is no table '{name}'; the contract has {', '.join(tables.CONTRACT)}."
                + tables.did_you_mean(name, tables.CONTRACT)
            )
        self.check(name)
        source = self._source(tables.CONTRACT[name])
        with readable(name, source.label):
            if not source.text and source.stamp() != self._stamps[name]:
                raise DataError(f"{source.label} has changed since it was checked: start again.")
        return self._used(tables.CONTRACT[name])

    def landed(self, rows: ir.Table, name: str) -> ir.Table:
        """Return a result of the size of the customers as a local table, computed once."""
        return self.engines.landed(rows, name)

    def check(
        self, name: str = "transactions", *, as_of: str | dt.date | None = None
    ) -> TableCheck:
        """Read the table against its contract, in the engine.

        Raises `DataError` if a required column is missing, the table is empty, or more than half
        of its rows would have to be set aside: then something else is wrong than a few bad rows.
        """
        last_day = tables.day(as_of) if as_of else dt.date.max
        if (name, last_day) not in self._checks:
            self._checks[name, last_day] = self._check(tables.CONTRACT[name], last_day)
        return self._checks[name, last_day]

    @cached_property
    def _checks(self) -> dict[tuple[str, dt.date], TableCheck]:
        return {}

    def last_complete_day(self, *, before: dt.date = dt.date.max) -> dt.date:
        """Return the last day of the log, earlier than `before`, that seems to be over.

        A log of plain dates is complete to its last one. Where it has times, a day whose last
        receipt comes earlier than on nine in ten of the 28 days of business before is taken as cut
        short, as is one with fewer than seven such days, and the day before it is returned.
        Receipts after that day do not count, so that a late look gives what a punctual one gave.
        Raises `DataError` if there is no purchase before that day.
        """
        if before not in self._last_days:
            self._last_days[before] = self._last_complete_day(before)
        return self._last_days[before]

    @cached_property
    def _last_days(self) -> dict[dt.date, dt.date]:
        return {}

    def _last_complete_day(self, before: dt.date) -> dt.date:
        import ibis

        rows = self.table("transactions")
        at = rows.purchased_at
        seconds = at.hour() * 3600 + at.minute() * 60 + at.second()
        days = (
            rows.filter(rows.purchased_on < ibis.literal(before))
            .group_by(day=rows.purchased_on)
            .aggregate(end=seconds.max())
        )
        days = days.order_by(days.day.desc()).limit(29)
        with readable("transactions", self._source(tables.TRANSACTIONS).label):
            found = days.to_pyarrow().to_pydict()
        if not found["day"]:
            raise DataError(f"Shop '{self.id}' has no purchase before {before}.")
        day: dt.date = found["day"][0]
        end, earlier = found["end"][0], found["end"][1:]
        timed = any(found["end"])
        over = len(earlier) >= 7 and 10 * sum(other <= end for other in earlier) >= len(earlier)
        return day if over or not timed else day - dt.timedelta(days=1)

    def fingerprint(self) -> str:
        """Return 16 hex digits that change when the data behind `transactions` change.

        Of files: size, time of change and the sha256 of the whole CSV or of a Parquet file's
        footer. Of a database: number of rows, first and last day, sum of amounts.
        """
        source, digest = self._source(tables.TRANSACTIONS), hashlib.sha256()
        if not source.paths:
            found = self.check("transactions")
            digest.update(f"{found.rows} {found.first} {found.last} {found.money}".encode())
        with readable("transactions", source.label):
            for path in source.paths:
                state = path.stat()
                digest.update(f"{path.name} {state.st_size} {state.st_mtime_ns}".encode())
                with path.open("rb") as file:
                    if path.suffix in (".parquet", ".duckdb"):
                        file.seek(max(0, state.st_size - 65_536))
                    while block := file.read(1 << 20):
                        digest.update(block)
        return digest.hexdigest()[:16]

    def write_set_aside(self, folder: Path, name: str = "transactions") -> Path | None:
        """Write the rows set aside as Parquet with the rule's name; None when there are none.

        Lines that no table can hold are written as text, in the column `line`.
        """
        import duckdb
        import ibis

        path = folder / f"{name}.parquet"
        if not self.check(name).rows_set_aside:
            path.unlink(missing_ok=True)  # of an earlier state of the data
            return None
        table = tables.CONTRACT[name]
        read, source = self._read(table), self._source(table)
        bad = read.filter(read.rule.notnull())
        bad = bad.select("rule", **{c: bad[tables.given(c)] for c in self._found(table)})
        if source.text and source.text.bad_lines:
            # A text file is read by the local DuckDB, so the two can be put together here.
            lines = ibis.memtable(
                {"line": source.text.bad_lines}, schema=ibis.schema({"line": "string"})
            )
            empty = {column: ibis.null(bad[column].type()) for column in bad.columns[1:]}
            bad = bad.mutate(line=ibis.null("string")).union(
                lines.select(rule=ibis.literal(checks.BAD_LINE), **empty, line=lines.line)
            )
        found = self.engines.landed(bad, name)
        scratch = folder / f".{name}.{os.getpid()}"
        try:
            settings.make_folder(folder, 0o700)
            found.to_parquet(str(scratch))
            scratch.replace(path)
        except (OSError, duckdb.Error) as error:
            raise OSError(f"{folder} cannot be written: {error}") from error
        finally:
            with suppress(OSError):
                scratch.unlink(missing_ok=True)
        return path

    @cached_property
    def _sources(self) -> dict[str, Source]:
        return {}

    @cached_property
    def _stamps(self) -> dict[str, list[tuple[int, int]]]:
        return {}

    def _source(self, table: tables.Table) -> Source:
        """Return the table as its source holds it, under the contract's names."""
        if table.name not in self._sources:
            setting = self.settings.table(table.name)
            if setting.flags:
                source = self._consents_from_flags(setting.flags)
            else:
                source = engines.open_table(table.name, setting, self.engines, self.settings.folder)
            self._stamps[table.name] = source.stamp()
            renamed = reading.renamed(source, table.name, setting)
            tables.require_columns(table, list(renamed.columns), where=source.label)
            self._sources[table.name] = replace(source, rows=renamed)
        return self._sources[table.name]

    def _consents_from_flags(self, flags: dict[str, str]) -> Source:
        """Return consents as the yes and no of columns of `customers`, one row per channel."""
        customers = tables.CONTRACT["customers"]
        source = self._source(customers)
        if lost := [own for own in flags.values() if own not in source.rows.columns]:
            raise DataError(
                f"shop.toml takes consents from the flags {', '.join(map(repr, lost))}, but "
                f"{source.label} has no such column. It has: {', '.join(source.rows.columns)}."
            )
        rows = reading.consents_from_flags(source.rows, flags, self._reading(customers))
        return replace(source, rows=rows, text=None)

    def _found(self, table: tables.Table) -> list[str]:
        present = self._source(table).rows.columns
        return [column.name for column in table.columns if column.name in present]

    @cached_property
    def _readings(self) -> dict[str, reading.Reading]:
        return {}

    def _reading(self, table: tables.Table) -> reading.Reading:
        """Return how the table is read; what shop.toml does not say of a text file is guessed."""
        if table.name not in self._readings:
            setting, source = self.settings.table(table.name), self._source(table)
            decimal, date_format = setting.decimal, setting.date_format
            if source.text:
                found = [table.column(name) for name in self._found(table)]
                dates = [c.name for c in found if c.kind in ("timestamp", "date")]
                numbers = [c.name for c in found if c.kind in (tables.MONEY, "float64")]
                small = [c.name for c in found if c.within]
                date_format = date_format or files.guess_dates(source.rows, dates)
                with reading.told(table.name, source.label):
                    decimal = decimal or files.guess_decimal(source.rows, numbers, small)
            self._readings[table.name] = reading.Reading(
                table=table.name,
                source=source.label,
                origin=source.origin,
                engine=source.engine,
                is_file=source.is_file,
                decimal=decimal or ".",
                date_format=date_format,
                timezone=self.settings.timezone,
                naive_timestamps=self.policy.naive_timestamps,
                columns=setting.columns,
            )
        return self._readings[table.name]

    def _typed(self, table: tables.Table) -> ir.Table:
        """Return every row, typed, beside what was given."""
        import ibis

        raw, how, found = self._source(table).rows, self._reading(table), self._found(table)
        earlier = {}
        if self._drops_equal(table):
            # Of all that the source has, the columns too that are not used.
            number = ibis.row_number().over(group_by=list(raw.columns), order_by=raw.columns[0])
            raw = raw.mutate(earlier_equal_lines=number)
            earlier = {"earlier_equal_lines": raw.earlier_equal_lines}
        typed = raw.select(
            **earlier,
            **{name: reading.typed(raw[name], table.column(name), how) for name in found},
            **{
                tables.given(name): raw[name]
                if name in how.tidy
                else reading.blank_to_null(raw[name])
                for name in found
            },
            **{f"{name} padded": reading.is_padded(raw[name]) for name in self._texts(table)},
        )
        if not {"latitude", "longitude"} <= set(found):
            return typed
        nowhere = (typed.latitude == 0) & (typed.longitude == 0)
        return typed.mutate(
            latitude=nowhere.ifelse(None, typed.latitude),
            longitude=nowhere.ifelse(None, typed.longitude),
        )

    def _texts(self, table: tables.Table) -> list[str]:
        """Return the columns that a file holds as text; a database's may change after the check."""
        source = self._source(table)
        if not source.is_file:
            return []
        return [name for name in self._found(table) if source.rows[name].type().is_string()]

    def _drops_equal(self, table: tables.Table) -> bool:
        return self.policy.duplicate_lines == "drop" and not table.key

    def _read(self, table: tables.Table) -> ir.Table:
        """Return every row, typed, beside what was given and the set-aside rule it breaks."""
        import ibis

        typed, found = self._typed(table), self._found(table)
        broken = [
            (rule.broken(typed), rule.name) for rule in table.rules if rule.severity == "set aside"
        ]
        if self._drops_equal(table):
            broken.append((typed.earlier_equal_lines > 0, tables.DUPLICATE_LINES))
        judged = typed.mutate(rule=ibis.cases(*broken, else_=ibis.null("string")))
        if not table.key:
            return judged
        # The first row, in the order of all that is given, keeps the key; a bad row takes none.
        order = [judged[tables.given(name)] for name in found]
        second = ibis.row_number().over(
            group_by=[*(judged[name] for name in table.key), judged.rule.isnull()], order_by=order
        )
        judged = judged.mutate(second=second)
        rule = (judged.rule.isnull() & (judged.second > 0)).ifelse(
            tables.second_row(table), judged.rule
        )
        return judged.mutate(rule=rule).drop("second")

    def _used(self, table: tables.Table) -> ir.Table:
        """Return the rows that are not set aside, under the contract's names."""
        found = self._found(table)
        if table.key or self._drops_equal(table):
            read = self._read(table)
            rows = read.filter(read.rule.isnull())
        else:
            # The same rows, without naming the rule: half the work on a log of millions.
            rows = self._typed(table)
            for column in (column for column in table.columns if column.required):
                readable_or_empty = rows[column.name].notnull()
                if column.nullable:
                    readable_or_empty |= rows[tables.given(column.name)].isnull()
                if not (
                    column.nullable and self._source(table).rows[column.name].type().is_string()
                ):
                    rows = rows.filter(readable_or_empty)
        rows = rows.select(found)
        if table.name != "transactions":
            return rows
        return rows.mutate(purchased_on=rows.purchased_at.date())

    def _check(self, table: tables.Table, last_day: dt.date) -> TableCheck:
        import ibis

        source, rows = self._source(table), self._read(table)
        dated = rows[table.dated].date() if table.dated in rows.columns else ibis.null("date")
        later = (dated > ibis.literal(last_day)).fill_null(False) & rows.rule.isnull()
        rows = rows.mutate(later=later, dated=dated)
        kept = {
            f"kept {n}": rule.broken(rows).ifelse(1, 0).sum()
            for n, rule in enumerate(table.rules)
            if rule.severity == "kept" and rule.column in rows.columns
        }
        if self.policy.not_goods and table.name == "transactions" and "product_id" in rows.columns:
            # Counted like a rule, though it is the shop's own.
            kept["no goods"] = rows.product_id.isin(self.policy.not_goods).ifelse(1, 0).sum()
        given = {
            f"given {rule.column}": rows.rule.notnull()
            .ifelse(rows[tables.given(rule.column)].cast("string"), None)
            .min()
            for rule in table.rules
            if rule.severity == "set aside"
        }
        counts = rows.group_by("rule", "later").aggregate(
            rows=rows.count(),
            money=rows[table.money].sum() if table.money else ibis.null("float64"),
            first=rows.dated.min(),
            last=rows.dated.max(),
            **kept,
            **given,
            **{f"{name} padded": rows[f"{name} padded"].any() for name in self._texts(table)},
        )
        with readable(table.name, source.label):
            groups = counts.to_pyarrow().to_pylist()
            # What needs no trimming, and days that are all of this calendar, are not looked at
            # again: a third of the time of a summary.
            texts = self._texts(table)
            tidy = {name for name in texts if not any(group[f"{name} padded"] for group in groups)}
            broken = {group["rule"] for group in groups}
            mended = {rule.column for rule in table.rules if rule.name in broken}
            if source.is_file and table.dated and table.column(table.dated).required:
                tidy |= {table.dated} - {*mended, *texts}
            self._readings[table.name] = replace(self._reading(table), tidy=frozenset(tidy))
            noted = self._orphans(table)
            if self.policy.duplicate_lines == "keep" and not table.key:
                lines = reading.lines(source.rows, source.engine)
                different = lines.distinct().count().to_pyarrow().as_py()
                noted[tables.DUPLICATE_LINES] = sum(group["rows"] for group in groups) - different
        bad_lines = source.text.bad_lines if source.text else []
        where = source.paths[0].name if source.is_file else f"{source.origin} in {source.label}"
        check = checks.summarise(table, where, groups, noted=noted, bad_lines=bad_lines)
        check = replace(check, read_as=_read_as(source, self._reading(table)))
        checks.refuse_unusable(table, check, self._reading(table).date_format)
        return check

    def _orphans(self, table: tables.Table) -> dict[str, int]:
        """Count the rows used whose id the other table does not have, by the rule's name."""
        counts = {}
        for column, partner in table.partners.items():
            try:
                if column not in self._found(table) or not self.has(partner):
                    continue
                other = self._source(tables.CONTRACT[partner])
            except DataError:
                continue  # the other table's own check says what is wrong with it
            rows = self._used(table)
            ids = rows.group_by(column).aggregate(rows=rows.count())
            known = self._used(tables.CONTRACT[partner]).select(column)
            if self._source(table).engine != other.engine:
                ids, known = self.landed(ids, "ids"), self.landed(known, partner)
            alone = ids.filter(ids[column].notnull()).anti_join(known, column)
            total = alone.rows.sum().to_pyarrow().as_py()
            counts[tables.no_partner(column, partner)] = int(total or 0)
        return counts


def _read_as(source: Source, how: reading.Reading) -> str:
    """Say how a text file was read, found out or told."""
    if not source.text or not source.text.separator:
        return ""
    dates = f", dates like {how.date_format}" if how.date_format else ""
    return f"{source.text.encoding}, cells divided by {source.text.separator!r}, decimals by " + (
        f"{how.decimal!r}{dates}"
    )


def open_shop(name: str | Path) -> Shop:
    """Open a shop: a name under data/, or the path of a shop.toml.

    Raises `UsageError` for a shop that does not exist, `DataError` for a broken shop.toml. The
    tables are read when they are first used.
    """
    return Shop(settings.read(name))
