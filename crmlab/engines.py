"""The engines: DuckDB on files, PostgreSQL, Spark; each is only read."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
import sys
import tempfile
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crmlab import files, reading, tables
from crmlab.tables import DataError

if TYPE_CHECKING:
    import ibis.expr.types as ir
    from ibis.backends.duckdb import Backend

    from crmlab.settings import TableSettings


class NotFoundError(DataError):
    """There is no such table, or no file of it."""


@dataclass(frozen=True, eq=False)
class Source:
    """A table as its source holds it, before any column has its contract's name.

    `label` may be shown: it holds no password. `text` says how a text file was written.
    """

    engine: str
    label: str
    origin: str
    rows: ir.Table
    paths: tuple[Path, ...] = ()
    text: files.TextFile | None = None

    @property
    def is_file(self) -> bool:
        """Whether the table lies in files of its own, which are parsed where they hold text."""
        return bool(self.paths) and self.paths[0].suffix != ".duckdb"

    def stamp(self) -> list[tuple[int, int]]:
        """Return the size of each file and when it was last written; nothing of a database."""
        states = [path.stat() for path in self.paths]
        return [(state.st_size, state.st_mtime_ns) for state in states]


class Engines:
    """The connections of one shop, made when they are first needed, and its scratch folder."""

    @cached_property
    def local(self) -> Backend:
        """A DuckDB in memory, for files and for all that has the size of the customers."""
        import ibis

        folder = tempfile.mkdtemp(prefix="crmlab-")
        local = ibis.duckdb.connect(
            temp_directory=str(Path(folder, "spill")), autoinstall_known_extensions=False
        )
        # Its progress bar would be an output of the notebook.
        local.con.execute("set enable_progress_bar = false")
        # Every table that was read through it keeps the folder, and nothing keeps it longer.
        weakref.finalize(local, shutil.rmtree, folder, ignore_errors=True)
        local.crmlab_folder = Path(folder)
        return local

    @cached_property
    def _remote(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        """Let go of files that only one connection may hold; no table can be read any more."""
        if "local" in self.__dict__:
            self.local.disconnect()

    def scratch(self, name: str) -> Path:
        """Return a new path in a private folder that goes when the shop goes."""
        return Path(self.local.crmlab_folder, f"{name}-{uuid.uuid4().hex[:8]}.parquet")

    def at(self, url: str) -> Any:
        """Return the connection to a database or cluster, read-only where the engine knows it."""
        if url not in self._remote:
            self._remote[url] = _spark() if url == "spark" else _postgres(url)
        return self._remote[url]

    def landed(self, rows: ir.Table, name: str) -> ir.Table:
        """Return a result of the size of the customers as a local table, computed once.

        It streams into Parquet, so that nothing needs to fit in memory.
        """
        import pyarrow.parquet as pq

        path = self.scratch(name)
        engine = rows.get_backend()
        with readable(name, f"the engine {engine.name}"):
            if engine.name == "postgres":
                batches = engine.to_pyarrow_batches(rows, chunk_size=100_000)
                with pq.ParquetWriter(path, batches.schema) as writer:
                    for batch in batches:
                        writer.write_batch(batch)
            else:
                rows.to_parquet(str(path))
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        return self.local.read_parquet([str(file) for file in files])

    def names(self, url: str) -> list[str]:
        """Return the names of a database's tables and views that may be read."""
        if url not in self._names:
            with readable("", label(url)):
                if url == "spark":
                    found = self.at(url).list_tables()
                else:
                    with self.at(url).con.cursor() as cursor:
                        rows = cursor.execute(TABLE_NAMES).fetchall()
                    found = [f"{schema}.{name}".removeprefix("public.") for schema, name in rows]
            self._names[url] = sorted(found)
        return self._names[url]

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        return {}


TABLE_NAMES = """select table_schema, table_name from information_schema.tables
    where table_schema not in ('pg_catalog', 'information_schema')"""


def label(url: str) -> str:
    """Name a source without what may be secret in its URL.

    >>> label("postgresql://ann:secret@db.example:5433/shop?sslmode=require")
    'postgresql://db.example:5433/shop'
    """
    kind, divided, rest = url.partition("://")
    if not divided:
        return url
    # A password may hold any sign, so what stands behind the last @ only is surely none of it.
    place, _, options = rest.rpartition("@")[2].partition("?")
    plain = re.fullmatch(r"[\w.:\[\]-]*(/[\w.-]*)?", place) and "@" not in rest.partition("?")[2]
    return f"{kind}://{place if plain and 'password' not in options else '...'}"


def scheme(url: str) -> str:
    """Return 'postgres', 'spark', or '' for files; raise `DataError` for any other engine."""
    found = re.match(r"([A-Za-z][\w+.-]+)://|(spark)$", url)
    if not found and re.search(r"://|^\s*[\w+.-]{2,}:/|\b(password|dbname|host)\s*=", url):
        raise DataError(  # without the URL, which may hold a password
            "The URL of the source cannot be read. It is a folder or a file, spark, or looks like "
            "postgresql://user:${PGPASSWORD}@host:5432/database."
        )
    if not found:
        return ""
    if found[2]:
        return "spark"
    if found[1] in ("postgresql", "postgres"):
        return "postgres"
    raise DataError(
        f"crmlab reads files, DuckDB, PostgreSQL (postgresql://...) and Spark (spark), "
        f"not '{found[1]}'. Export the table to Parquet."
    )


def _postgres(url: str) -> Any:
    try:
        import psycopg
        from psycopg.conninfo import conninfo_to_dict
    except ImportError:
        raise DataError(
            "Reading PostgreSQL needs one more package: pip install 'crmlab[postgres]'."
        ) from None
    import ibis

    with readable("", label(url)):
        try:
            if url.partition("?")[0].count("@") > 1:
                raise psycopg.ProgrammingError  # a part of the password would be taken for a host
            given = {"connect_timeout": "10"} | dict(conninfo_to_dict(url))
        except psycopg.ProgrammingError:
            raise DataError(  # its own words may hold the password
                "The PostgreSQL URL cannot be read. It looks like "
                "postgresql://user:${PGPASSWORD}@host:5432/database."
            ) from None
        options = given.pop("options", "")
        connection = ibis.postgres.connect(
            host=given.pop("host", None),
            port=given.pop("port", 5432),
            user=given.pop("user", None),
            password=given.pop("password", None),
            database=given.pop("dbname", None),
            options=f"{options} -c default_transaction_read_only=on".strip(),
            **given,
        )
    weakref.finalize(connection, connection.con.close)
    return connection


def _spark() -> Any:
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        raise DataError(
            "Reading Spark needs one more package, and Java 17 or newer: "
            "pip install 'crmlab[spark]'."
        ) from None
    import ibis

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    with readable("", "Spark"):
        builder = SparkSession.builder.appName("crmlab")
        session = builder.config("spark.ui.showConsoleProgress", "false").getOrCreate()
        session.sparkContext.setLogLevel("ERROR")
        session.conf.set("spark.sql.session.timeZone", "UTC")
        return ibis.pyspark.connect(session)


@contextmanager
def readable(table: str, source: object) -> Iterator[None]:
    """Turn what an engine says about a source it cannot read into a `DataError`."""
    try:
        yield
    except Exception as error:
        home = type(error).__module__.split(".")[0].lstrip("_")
        ours = home not in ("duckdb", "psycopg", "pyspark", "py4j", "pyarrow")
        if ours and type(error).__name__ not in ("TableNotFound", "FileNotFoundError"):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = " ".join(line for line in lines[:3] if not line.startswith("Original Line"))
        what = (
            f"Table '{table}' cannot be read from {source}" if table else f"{source} cannot be read"
        )
        raise DataError(f"{what}: {said[:500]}") from error


def open_table(table: str, setting: TableSettings, engines: Engines, folder: Path) -> Source:
    """Find a table and open it as its source holds it.

    `folder` is the shop's, to which the paths in shop.toml are relative. Raises `DataError`
    where it is not, naming what was looked for or what there is.
    """
    if setting.unused:
        raise NotFoundError(f"shop.toml says that the shop has no table '{table}': from = \"\".")
    kind = scheme(setting.url)
    if kind == "postgres":
        return _database_table(table, setting, engines)
    if kind == "spark":
        return _spark_table(table, setting, engines, folder)
    home = Path.home() if setting.url.startswith("~/") else folder
    place = home / setting.url.removeprefix("~/")
    if place.suffix == ".duckdb":
        return _duckdb_table(table, setting, engines.local, place)
    paths = _paths(table, setting, place, folder)
    origin = setting.origin or paths[0].name
    with readable(table, paths[0]):
        if paths[0].suffix == ".parquet":
            rows = _parquet(engines.local, paths)
            return Source("duckdb", str(paths[0]), origin, rows, tuple(paths))
        scratch = engines.scratch(table)
        if paths[0].suffix in (".geojson", ".json"):
            text = files.read_geojson(paths[0], scratch)
        else:
            text = files.read_csv(paths[0], setting, scratch)
        rows = engines.local.read_parquet(str(scratch))
    return Source("duckdb", str(paths[0]), origin, rows, tuple(paths), text)


def _parquet(local: Backend, paths: list[Path]) -> ir.Table:
    """Return the rows of all files, by the names of their columns."""
    import ibis
    import pyarrow.parquet as pq

    alike: dict[Any, list[str]] = {}
    for path in paths:
        types = tuple((one.name, str(one.type)) for one in pq.read_schema(path))
        alike.setdefault(tuple(sorted(types)), []).append(glob.escape(str(path)))
    # Not a number: the least and largest value that a file states say nothing of it, but DuckDB
    # believes them to, and then finds none.
    parts = [
        local.read_parquet(some, union_by_name=True, can_have_nan=True) for some in alike.values()
    ]
    if len(parts) == 1:
        return parts[0]
    kinds: dict[str, set[Any]] = {}
    for part in parts:
        for name, kind in part.schema().items():
            kinds.setdefault(name, set()).add(kind)
    common = {name: _common_kind(some) for name, some in kinds.items()}
    selected = [
        part.select(
            **{
                name: _as_kind(part[name], kind) if name in part.columns else ibis.null(kind)
                for name, kind in common.items()
            }
        )
        for part in parts
    ]
    return ibis.union(*selected)


def _common_kind(kinds: set[Any]) -> Any:
    """Return the type that holds what several files hold: fractions for numbers, else text."""
    if len(kinds) == 1:
        return next(iter(kinds))
    return "float64" if all(kind.is_numeric() for kind in kinds) else "string"


def _as_kind(value: ir.Value, kind: Any) -> ir.Value:
    """Cast a column; a whole number becomes the same text whichever type it had."""
    return reading.as_text(value) if kind == "string" else value.cast(kind)


def _paths(table: str, setting: TableSettings, place: Path, folder: Path) -> list[Path]:
    """Return the files that a table lies in."""
    names = [setting.origin] if setting.origin else file_names(table)
    if setting.origin.endswith(".duckdb"):
        raise DataError(
            f"Table '{table}': {setting.origin} is a DuckDB file. Say url = "
            f'"{setting.origin}" and name the table in it: from = "...".'
        )
    if "://" in setting.origin or scheme(setting.origin) == "postgres":
        raise DataError(f"Table '{table}': a URL is named by url = ..., not by from = ....")
    with suppress(OSError):  # a name that is too long, a link to itself
        for path in (place / name for name in names):
            if path.is_dir():
                if found := sorted(one for one in path.iterdir() if one.name[0] not in "._"):
                    if others := [o for o in found if o.suffix.lower() != ".parquet"]:
                        raise DataError(
                            f"Table '{table}': the folder {path} is to hold Parquet files only, "
                            f"but also has {', '.join(o.name for o in others[:5])}. Move it away, "
                            "or name one file: from = ...."
                        )
                    return found
            elif path.is_file():
                return [path]
    hint = "" if setting.origin else f", or name your file in {folder / 'shop.toml'}"
    raise NotFoundError(
        f"Table '{table}' of shop '{folder.name}' has no file: looked for {', '.join(names)[:200]} "
        f"in {place}. Put it there{hint}. For a demo shop run `crmlab demo`."
    )


def file_names(table: str) -> list[str]:
    """Return the names under which a table's file is looked for, in that order."""
    endings = (".parquet", ".csv", ".csv.gz", "", *([".geojson"] * (table == "districts")))
    return [f"{table}{ending}" for ending in endings]


def _duckdb_table(table: str, setting: TableSettings, local: Backend, path: Path) -> Source:
    # ibis 12 cannot list catalogs or tables on DuckDB 2.0; these ask DuckDB itself.
    with readable(table, path):
        there = duckdb_names(local, path)
        name = setting.origin or table
        if name not in there:
            raise _no_such_table(table, str(path), name, there)
        catalog, schema, plain = there[name]
        rows = local.table(plain, database=(catalog, schema))
    return Source("duckdb", str(path), name, rows, (path,))


def duckdb_names(local: Backend, path: Path) -> dict[str, tuple[str, str, str]]:
    """Return the tables and views of a DuckDB file: catalog, schema and name by what to call it."""
    if not path.is_file():
        raise NotFoundError(f"There is no DuckDB file {path}.")
    alias = f"source_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    attached = "select 1 from duckdb_databases() where database_name = ?"
    if not local.con.execute(attached, [alias]).fetchall():
        quoted = str(path).replace("'", "''")
        local.con.execute(f"attach '{quoted}' as {alias} (read_only)")
    query = """select case table_schema when 'main' then '' else table_schema || '.' end
        || table_name, table_catalog, table_schema, table_name
        from information_schema.tables where table_catalog = ?"""
    return {row[0]: row[1:] for row in local.con.execute(query, [alias]).fetchall()}


def _database_table(table: str, setting: TableSettings, engines: Engines) -> Source:
    name = setting.origin or table
    there = engines.names(setting.url)
    if name not in there:
        raise _no_such_table(table, label(setting.url), name, there)
    schema, _, plain = name.rpartition(".")
    with readable(table, label(setting.url)):
        rows = engines.at(setting.url).table(plain, database=schema or "public")
    return Source("postgres", label(setting.url), name, rows)


def _spark_table(table: str, setting: TableSettings, engines: Engines, folder: Path) -> Source:
    connection = engines.at(setting.url)
    name = setting.origin
    with readable(table, "spark"):
        local = next((p for p in (f"{table}.parquet", table) if (folder / p).exists()), "")
        there = engines.names("spark")
        name = name or (local if local and table not in there else table)
        if name.endswith(".parquet") or "/" in name:
            where = name if "://" in name else str(folder / name)
            rows = connection.read_parquet(where)
        else:
            catalog, _, plain = name.rpartition(".")
            if not catalog and name not in there:
                raise _no_such_table(table, "spark", name, there)
            rows = connection.table(plain, database=catalog or None)
    return Source("pyspark", "spark", name, rows)


def _no_such_table(table: str, source: str, name: str, there: Any) -> NotFoundError:
    names = sorted(there)
    return NotFoundError(
        f"Table '{table}': {source} has no table '{name}'. It has: "
        f"{', '.join(names[:30]) or 'none'}.{tables.did_you_mean(name, names)} Name yours in "
        f'shop.toml: [tables.{table}] from = "...".'
    )
