"""Proposals: what the tables and columns of an unknown source are, as a shop.toml to be checked."""

from __future__ import annotations

import contextlib
import datetime as dt
import html
import json
import os
import re
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote

from crmlab import engines, settings, tables
from crmlab.guesses import Guess, Line, Look, comment, guess
from crmlab.sources import Shop, TableCheck
from crmlab.tables import DataError, UsageError

SAMPLE, ENOUGH = 20_000, 0.7  # rows looked at; the rank from which on a table is proposed
ENDINGS = (".csv", ".tsv", ".txt", ".gz", ".parquet", ".geojson", ".json", ".xlsx", ".xls")
REGIONAL = {"currency": "USD", "locale": "en_US", "timezone": "UTC"}


# What a new shop is best asked first.
FIRST = ("customers",)


@dataclass(frozen=True)
class Proposal:
    """A shop.toml for a new shop; `notes` say what of the source is not used, and why."""

    shop: str
    head: list[Line]
    url: Line
    tables: list[Guess] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> dict[str, dict[str, str]]:
        """The source's column by table and column of the contract."""
        return {one.table: {c.key: c.value for c in one.columns if c.value} for one in self.tables}

    @property
    def unsure(self) -> list[str]:
        """What to check, or still to write, a line each."""
        parts = [
            ("", self.head),
            *((f"{one.table}: ", one.options + one.columns) for one in self.tables),
        ]
        return [f"{where}{line}" for where, lines in parts for line in lines if line.note]

    def toml(self) -> str:
        """Return the text of shop.toml."""
        lines = [
            "# Proposed by `crmlab new-shop`, by what columns are called and by what they hold.",
            "# Change what is wrong, and `crmlab check` it. A * B is the product of two columns.",
        ]
        lines += [*map(str, self.head), f"\n[source]\n{self.url}"]
        for one in self.tables:
            lines += [f"\n[tables.{one.table}]", *map(str, one.options)]
            lines += [f"\n[tables.{one.table}.columns]", *map(str, one.columns)]
            lines += [comment(f"no place for: {', '.join(one.unused)}")] * bool(one.unused)
            if one.unused and one.table == "customers":
                flags = '[tables.consents] flags = { email = "the column" }'
                lines.append(comment(f"where one says yes or no to being contacted: {flags}"))
        lines += ["", *(comment(f"not used: {note}") for note in self.notes)]
        return "\n".join(lines).rstrip() + "\n"

    __str__ = toml

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.toml())}</pre>"


@dataclass(frozen=True)
class Review:
    """What a shop can be used for: the checks of its tables, and the reports with what they lack.

    `broken` says which tables cannot be used, and what to do.
    """

    shop: str
    checks: tuple[TableCheck, ...]
    broken: tuple[str, ...]
    reports: dict[str, list[str]]
    better_with: dict[str, list[str]]

    def __str__(self) -> str:
        """Print it, with what to do for a first page."""
        return "\n".join([*map(str, self.checks), *self.broken, "", self.possible])

    @property
    def possible(self) -> str:
        """Which reports can run, which lack what, and what to do for a first page."""
        lines = []
        if "transactions" not in {check.table for check in self.checks}:
            lines += ["No table of receipts (transactions) can be used, so no report can run."]
        for name, lacks in self.reports.items():
            more = ", ".join(self.better_with[name])
            can = f"can run{f', better with {more}' * bool(more)}"
            lines.append(f"report {name:<12}{'lacks ' + ', '.join(lacks) if lacks else can}")
        if name := next((name for name, lacks in self.reports.items() if not lacks), ""):
            report = f"{self.shop}-{name}"
            lines += [
                f"\nFor a page add to reports/reports.toml, and run `crmlab report {report}`:\n",
                f'[[report]]\nid = "{report}"\nnotebook = "{name}"\nshop = "{self.shop}"',
            ]
        return "\n".join(lines)


def review(shop: Shop, *, as_of: str | dt.date | None = None) -> Review:
    """Check every table that a shop has, and say which notebooks it can drive."""
    checks, broken = [], []
    for name in tables.CONTRACT:
        try:
            if name in shop.settings.tables or shop.has(name):
                checks.append(shop.check(name, as_of=as_of))
        except DataError as error:
            broken.append(str(error))
    if not checks and not broken:
        broken.append(f"Shop '{shop.id}' has no table yet: name one under [tables.transactions].")
    there, lacks, better = {check.table for check in checks}, {}, {}
    paths = (settings.home() / "notebooks").glob("*.ipynb")
    for path in sorted(paths, key=lambda path: (path.stem not in FIRST, path.stem)):
        asked = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("crmlab", {})
        if needs := asked.get("needs"):
            lacks[path.stem] = [name for name in needs if name not in there]
            better[path.stem] = [n for n in asked.get("better_with", []) if n not in there]
    return Review(shop.id, tuple(checks), tuple(broken), lacks, better)


def propose(
    name: str, source: str, *, currency: str = "", locale: str = "", timezone: str = ""
) -> Proposal:
    """Look at a source, and propose a shop.toml for a new shop of it.

    Parameters
    ----------
    name : str, the new shop: the folder of data/ that `write` puts shop.toml into
    source : a folder, a file, a .duckdb file, postgresql://user:password@host/database, or spark;
        a password goes into the variable PGPASSWORD of this process, and so into the proposal
    currency, locale, timezone : the shop's; no data say them, so they are marked where not given

    Raises
    ------
    UsageError for a name that is none or is taken, a source that does not exist, an unknown
    currency; DataError where no table of the source can be read
    """
    folder = _new(name).parent
    given = {"currency": currency, "locale": locale, "timezone": timezone}
    assumed = {key: "" if given[key] else "please check: the data do not say it" for key in given}
    head = [Line(key, given[key] or REGIONAL[key], assumed[key]) for key in given]
    try:
        url, only = _place(source, folder)
        secret = "the password is not in this file: set PGPASSWORD" * ("${PGPASSWORD}" in url)
        proposal = Proposal(name, [Line("name", name), *head], Line("url", url, secret))
        with tempfile.TemporaryDirectory() as scratch:  # what is asked for must make a shop.toml
            path = Path(scratch, "shop.toml")
            path.write_text(proposal.toml(), encoding="utf-8")
            url = settings.read(path).url
    except DataError as error:
        raise UsageError(_without_path(error)) from None
    with contextlib.closing(engines.Engines()) as connections:
        chosen, notes = _found(url, only, folder, connections)
    return replace(proposal, tables=chosen, notes=notes)


def write(proposal: Proposal) -> Path:
    """Write the proposal's shop.toml; raise `UsageError` where there is one already."""
    path = _new(proposal.shop)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(proposal.toml(), encoding="utf-8")
    scratch.replace(path)
    return path


def _new(name: str) -> Path:
    path = settings.path_of(name)
    if path.exists():
        raise UsageError(
            f"{path} is there already, and nothing is overwritten: choose another name, or change "
            f"that file and run `crmlab check {name}`."
        )
    return path


def _place(source: str, folder: Path) -> tuple[str, str]:
    """Return the URL as shop.toml may say it, and the file in it where only one is asked for."""
    if kind := engines.scheme(source):
        return (source if kind == "spark" else _without_password(source)), ""
    try:
        place, home = Path(source).expanduser().resolve(), folder.resolve()
    except RuntimeError:
        raise UsageError(f"{source}: there is no such user's home.") from None
    if re.search("[\ud800-\udfff]", str(place)):
        raise UsageError(f"The name {ascii(str(place))} is no UTF-8: rename it.")
    if not place.exists():
        what = "source" if "@" in source or "=" in source else f"file or folder {place}"
        like = "postgresql://user:${PGPASSWORD}@host:5432/database"
        raise UsageError(f"There is no such {what}. A database is written like {like}.")
    only = place.name if place.is_file() and place.suffix != ".duckdb" else ""
    base = place.parent if only else place
    return base.relative_to(home).as_posix() if base.is_relative_to(home) else str(base), only


def _without_password(url: str) -> str:
    """Put a URL's password into the environment, where shop.toml finds it."""
    # A sign of the password that divides the URL would leave its rest in the open.
    parts = re.fullmatch(r"(\w+://)(?:([^:@/?#]*)(?::([^@/?#]*))?@)?([^@]*)", url)
    if not parts or "password=" in url:
        raise UsageError(
            "The PostgreSQL URL cannot be read. It looks like postgresql://user:${PGPASSWORD}@host"
            ":5432/database; a password that holds @ : / ? # or % writes them as %40 and so on."
        )
    scheme, user, password, rest = parts.groups()
    if not password or re.fullmatch(r"\$\{\w+\}", password):
        return url
    os.environ["PGPASSWORD"] = unquote(password)
    return f"{scheme}{user}:${{PGPASSWORD}}@{rest}"


def _without_path(error: DataError) -> str:
    return re.sub(r"^\S*shop\.toml: ", "", str(error))


def _found(
    url: str, only: str, folder: Path, connections: engines.Engines
) -> tuple[list[Guess], list[str]]:
    """Look at each file or table, give it to a table of the contract, and say what is not used."""
    try:
        origins = [only] if only else _origins(url, folder, connections)
    except DataError as error:  # the source as a whole is not there
        raise UsageError(_without_path(error)) from None
    looks, notes = [], []
    for origin in origins:
        try:
            looks.append(_look(origin, url, folder, connections))
        except (DataError, OSError) as error:
            notes.append(f"{origin}: {error}")
    if not looks:
        raise DataError("\n  ".join([f"{engines.label(url)}: no table can be read.", *notes]))
    chosen, left = _chosen(looks)
    return chosen, notes + left


def _origins(url: str, folder: Path, connections: engines.Engines) -> list[str]:
    """Return the names of a database's tables, or of a folder's files."""
    if engines.scheme(url):
        return connections.names(url)
    place = folder / url
    if place.is_file():
        return sorted(engines.duckdb_names(connections.local, place))
    names = sorted(path.name for path in place.iterdir() if path.name[0] not in "._")
    # Parts of one table differ in their numbers only.
    if len(names) > 1 and len({re.sub(r"\d+", "", name) for name in names}) == 1:
        names = ["."] if names[0].endswith(".parquet") else names
    if not (names := [name for name in names if name != "shop.toml"]):
        raise UsageError(f"The folder {place} is empty.")
    return names


def _look(origin: str, url: str, folder: Path, connections: engines.Engines) -> Look:
    path = folder / url / origin
    if path.is_dir() and not any(path.glob("*.parquet")):
        raise DataError("a folder without Parquet files; name it as the source to look into it.")
    if re.search("[\ud800-\udfff]", origin):
        raise DataError("its name is no UTF-8: rename it.")
    if path.is_file() and path.suffix.lower() not in ENDINGS:
        raise DataError("its name does not end as a table's does, in .csv, .parquet and so on.")
    setting = settings.TableSettings(url=url, origin=origin)
    source = engines.open_table(Path(origin).name[:80], setting, connections, folder)
    plain = []
    for name, kind in source.rows.schema().items():
        if kind.is_decimal() or kind.is_uuid():
            as_kind = "float64" if kind.is_decimal() else "string"
            plain.append(source.rows[name].cast(as_kind).name(name))
        elif kind.is_primitive() or kind.is_string() or kind.is_temporal():
            plain.append(source.rows[name])
    sample = connections.landed(source.rows.select(plain).limit(SAMPLE), "sample")
    return Look(origin, source, sample)


def _chosen(looks: list[Look]) -> tuple[list[Guess], list[str]]:
    """Give each table of the contract to what fits it best; say why the rest is not used."""
    chosen: dict[str, Guess] = {}
    likely = [guess(look, table) for look in looks for table in tables.CONTRACT.values()]
    likely.sort(key=lambda one: -one.fits)
    best = {one.origin: one for one in reversed(likely)}
    for one in likely:
        used = one.origin in {other.origin for other in chosen.values()}
        # A second log of receipts is no table of customers because each has a customer's number.
        if one.fits > max(ENOUGH, best[one.origin].fits / 2) and not used:
            chosen.setdefault(one.table, one)
    notes = []
    for origin in (look.origin for look in looks):
        near = max((one for one in likely if one.origin == origin), key=lambda one: one.found)
        rival = chosen.get(near.table)
        why = f"it lacks {', '.join(near.missing)}"
        if rival and not near.missing:
            why = f"that is {rival.origin}; a table is one file or one folder of Parquet files"
        told = f"nearest to {near.table}, but {why}" if near.found else "no table that crmlab knows"
        if origin not in {one.origin for one in chosen.values()}:
            notes.append(f"{origin}: {told}.")
    return [chosen[name] for name in tables.CONTRACT if name in chosen], notes
