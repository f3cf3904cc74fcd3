"""Data in: open a shop on its engine, rename and type its columns, check them at the door."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from crmlab import checks, results, settings, tables
from crmlab.checks import TableCheck
from crmlab.settings import Policy, ShopSettings, TableSettings, home, shop_names
from crmlab.tables import DataError, UsageError

if TYPE_CHECKING:
    import ibis.expr.types as ir
    from ibis.backends.duckdb import Backend

__all__ = ["Shop", "TableCheck", "home", "open_shop", "shop_names"]


@dataclass(frozen=True, eq=False)
class Shop:
    """One shop: its settings, and its tables as read-only ibis expressions on their engine."""

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
    def connection(self) -> Backend:
        """The engine: a DuckDB in memory, which makes its spill folder when it needs one."""
        import ibis

        spill = Path(tempfile.gettempdir(), f"crmlab-{uuid.uuid4().hex}")
        return ibis.duckdb.connect(temp_directory=str(spill), autoinstall_known_extensions=False)

    def has(self, name: str) -> bool:
        """Tell whether the shop has that table."""
        try:
            self._location(tables.CONTRACT[name])
        except (DataError, KeyError):
            return False
        return True

    def table(self, name: str) -> ir.Table:
        """Return a table under its contract names and types, without the rows set aside.

        `purchased_at` comes with `purchased_on`, its date. Raises `DataError` as `check` does.
        """
        if name not in tables.CONTRACT:
            raise UsageError(
                f"There is no table '{name}'; the contract has {', '.join(tables.CONTRACT)}."
            )
        self.check(name)
        return self._kept_rows(name).drop("rule")

    def check(
        self, name: str = "transactions", *, as_of: str | dt.date | None = None
    ) -> TableCheck:
        """Read the table against its contract, in one pass of the engine.

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
        """Return the last day of the log, earlier than `before`, that is surely over.

        A log of plain dates is complete to its last one; where it has times, its last day may be
        cut short, and the day before is taken, unless the log goes on after it. Raises `DataError`
        if there is no purchase before that day.
        """
        import ibis

        rows = self.table("transactions")
        rows = rows.filter(rows.purchased_on < ibis.literal(before))
        last = rows.aggregate(on=rows.purchased_on.max())
        timed = rows.filter(rows.purchased_at.time() != dt.time(0, 0)).count()
        with readable("transactions", self.id):
            day: dt.date | None = last.to_pyarrow().to_pylist()[0]["on"]
            if day is None:
                raise DataError(f"Shop '{self.id}' has no purchase before {before}.")
            cut_short = timed.to_pyarrow().as_py() and day == self.check("transactions").last
            return day - dt.timedelta(days=1) if cut_short else day

    def fingerprint(self) -> str:
        """Return 16 hex digits that change when the files behind `transactions` change.

        Size, time of change and the sha256 of the whole CSV or of a Parquet file's footer.
        """
        _, paths = self._location(tables.TRANSACTIONS)
        digest = hashlib.sha256()
        for path in paths:
            state = path.stat()
            digest.update(f"{path.name} {state.st_size} {state.st_mtime_ns}".encode())
            with path.open("rb") as file:
                if path.suffix in (".parquet", ".duckdb"):
                    file.seek(max(0, state.st_size - 65_536))
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()[:16]

    def write_set_aside(self, folder: Path, name: str = "transactions") -> Path | None:
        """Write the rows set aside as Parquet with the rule's name; None when there are none."""
        import duckdb

        path = folder / f"{name}.parquet"
        if not self.check(name).rows_set_aside:
            path.unlink(missing_ok=True)  # of an earlier state of the data
            return None
        read = self._read(tables.CONTRACT[name])
        bad = read.filter(read.rule.notnull())
        given = {c: bad[tables.given(c)] for c in self._found(tables.CONTRACT[name])}
        settings.make_folder(folder, 0o700)
        scratch = folder / f".{name}.{os.getpid()}"
        try:
            bad.select("rule", **given).to_parquet(str(scratch))
        except duckdb.IOException as error:
            raise OSError(f"{folder} cannot be written: {error}") from error
        scratch.replace(path)
        return path

    def _location(self, table: tables.Table) -> tuple[str, list[Path]]:
        """Return the kind of the table's source, and its files."""
        setting = self.settings.table(table.name)
        scheme = re.match(r"([A-Za-z][\w+.-]+)://|(spark)$", setting.url)
        if scheme:
            # Never the whole URL: it may hold a password.
            raise DataError(
                f"Table '{table.name}': this version of crmlab reads Parquet, CSV and DuckDB "
                f"files, not '{scheme[1] or scheme[2]}'. Export the table to Parquet."
            )
        place = self.settings.folder / Path(setting.url).expanduser()
        if place.suffix == ".duckdb":
            if not place.is_file():
                raise DataError(f"Table '{table.name}': there is no DuckDB file {place}.")
            return "duckdb", [place]
        names = [setting.origin] if setting.origin else _file_names(table.name)
        if setting.origin.endswith(".duckdb"):
            raise DataError(
                f"Table '{table.name}': {setting.origin} is a DuckDB file. Say url = "
                f'"{setting.origin}" and name the table in it: from = "...".'
            )
        for path in (place / name for name in names):
            if path.is_dir():
                if files := sorted(path.glob("*.parquet")):
                    return "parquet", files
            elif path.is_file():
                return ("parquet" if path.suffix == ".parquet" else "csv"), [path]
        hint = (
            "" if setting.origin else f", or name your file in {self.settings.folder / 'shop.toml'}"
        )
        raise DataError(
            f"Table '{table.name}' of shop '{self.id}' has no file: looked for {', '.join(names)} "
            f"in {place}. Put it there{hint}. For a demo shop run `crmlab demo`."
        )

    @cached_property
    def _raws(self) -> dict[str, ir.Table]:
        return {}

    def _raw(self, table: tables.Table) -> ir.Table:
        """Return the table as its source holds it, under the contract's names."""
        if table.name not in self._raws:
            kind, paths = self._location(table)
            setting = self.settings.table(table.name)
            with readable(table.name, paths[0]):
                source = _open(self.connection, kind, paths, setting, table.name)
            found = list(source.columns)
            if lost := [own for own in setting.columns.values() if own not in found]:
                raise DataError(
                    f"shop.toml renames {', '.join(map(repr, lost))} of table '{table.name}', but "
                    f"{paths[0]} has no such column. It has: {', '.join(found)}."
                )
            taken = {name.lower() for pair in setting.columns.items() for name in pair}
            keep = {name: name for name in found if name.lower() not in taken}
            renamed = source.select(
                **{n: source[own] for n, own in (keep | setting.columns).items()}
            )
            tables.require_columns(table, list(renamed.columns), where=str(paths[0]))
            self._raws[table.name] = renamed
        return self._raws[table.name]

    def _found(self, table: tables.Table) -> list[str]:
        present = self._raw(table).columns
        return [column.name for column in table.columns if column.name in present]

    def _read(self, table: tables.Table) -> ir.Table:
        """Return every row, typed, beside what was given and the set-aside rule it breaks."""
        import ibis

        raw = self._raw(table)
        kind, paths = self._location(table)
        setting = self.settings.table(table.name)
        reading = tables.Reading(
            table=table.name,
            source=str(paths[0]),
            origin=setting.origin or table.name,
            is_database=kind == "duckdb",
            decimal=setting.decimal or ".",
            date_format=setting.date_format,
            timezone=self.settings.timezone,
            naive_timestamps=self.policy.naive_timestamps,
        )
        found = self._found(table)
        if self.policy.duplicate_lines == "drop":
            earlier = ibis.row_number().over(group_by=list(raw.columns), order_by=raw.columns[0])
            raw = raw.mutate(earlier_equal_lines=earlier)
        else:
            raw = raw.mutate(earlier_equal_lines=ibis.literal(0))
        typed = raw.select(
            "earlier_equal_lines",
            **{name: tables.typed(raw[name], table.column(name), reading) for name in found},
            **{tables.given(name): tables.blank_to_null(raw[name]) for name in found},
        )
        broken = [
            (rule.broken(typed), rule.name) for rule in table.rules if rule.severity == "set aside"
        ]
        broken.append((typed.earlier_equal_lines > 0, tables.DUPLICATE_LINES))
        return typed.mutate(rule=ibis.cases(*broken, else_=ibis.null("string")))

    def _kept_rows(self, name: str) -> ir.Table:
        read = self._read(tables.CONTRACT[name])
        rows = read.filter(read.rule.isnull()).select("rule", *self._found(tables.CONTRACT[name]))
        return rows.mutate(purchased_on=rows.purchased_at.date())

    def _check(self, table: tables.Table, last_day: dt.date) -> TableCheck:
        import ibis

        kind, paths = self._location(table)
        read = self._read(table)
        later = (read.purchased_at.date() > ibis.literal(last_day)).fill_null(False)
        rows = read.mutate(later=later & read.rule.isnull())
        kept = {
            f"kept {n}": rule.broken(rows).ifelse(1, 0).sum()
            for n, rule in enumerate(table.rules)
            if rule.severity == "kept" and rule.column in rows.columns
        }
        if self.policy.not_goods and "product_id" in rows.columns:
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
            money=rows.amount.sum(),
            first=rows.purchased_at.date().min(),
            last=rows.purchased_at.date().max(),
            **kept,
            **given,
        )
        with readable(table.name, paths[0]):
            groups = counts.to_pyarrow().to_pylist()
            equal_lines = 0
            if self.policy.duplicate_lines == "keep":
                different = self._raw(table).distinct().count().to_pyarrow().as_py()
                equal_lines = sum(group["rows"] for group in groups) - different
        check = checks.summarise(table, str(paths[0].name), groups, equal_lines)
        checks.refuse_unusable(table, check, self.settings.table(table.name))
        return check


def _file_names(table: str) -> list[str]:
    return [f"{table}.parquet", f"{table}.csv", f"{table}.csv.gz", table]


@contextmanager
def readable(table: str, source: object) -> Iterator[None]:
    """Turn what an engine says about a source it cannot read into a `DataError`."""
    import duckdb

    try:
        yield
    except (duckdb.Error, UnicodeDecodeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = " ".join(line for line in lines[:3] if not line.startswith("Original Line"))
        if "unicode" in said.lower() or "utf-8" in said.lower():
            said += f' Save it as UTF-8, or say encoding = "latin-1" under [tables.{table}].'
        raise DataError(f"Table '{table}' cannot be read from {source}: {said}") from error


def _open(
    connection: Backend, kind: str, paths: list[Path], setting: TableSettings, table: str
) -> ir.Table:
    if kind == "parquet":
        # By name: the files of a folder may differ in the order and the types of their columns.
        return connection.read_parquet([str(path) for path in paths], union_by_name=True)
    if not paths[0].stat().st_size:
        raise DataError(f"Table '{table}': {paths[0]} is an empty file.")
    if kind == "csv":
        options = {"delim": setting.separator, "encoding": setting.encoding}
        return connection.read_csv(
            str(paths[0]),
            all_varchar=True,
            header=True,
            comment="",
            **{k: v for k, v in options.items() if v},
        )
    # ibis 12 cannot list catalogs or tables on DuckDB 2.0; these ask DuckDB itself.
    alias = f"source_{hashlib.sha256(str(paths[0]).encode()).hexdigest()[:8]}"
    if not connection.con.execute(
        "select 1 from duckdb_databases() where database_name = ?", [alias]
    ).fetchall():
        connection.attach(str(paths[0]), name=alias, read_only=True)
    name = setting.origin or table
    query = """select case table_schema when 'main' then '' else table_schema || '.' end
        || table_name, table_schema, table_name
        from information_schema.tables where table_catalog = ?"""
    there = {row[0]: row[1:] for row in connection.con.execute(query, [alias]).fetchall()}
    if name not in there:
        raise DataError(
            f"Table '{table}': {paths[0]} has no table '{name}'. It has: "
            f"{', '.join(sorted(there)) or 'none'}. Name yours in shop.toml: "
            f'[tables.{table}] from = "...".'
        )
    schema, plain = there[name]
    return connection.table(plain, database=(alias, schema))


def open_shop(name: str | Path) -> Shop:
    """Open a shop: a name under data/, or the path of a shop.toml.

    Raises `UsageError` for a shop that does not exist, `DataError` for a broken shop.toml. The
    tables are read when they are first used.
    """
    return Shop(settings.read(name))
