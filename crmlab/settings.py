"""What shop.toml says: where a shop's tables lie, how they are read, what the shop decided."""

from __future__ import annotations

import os
import re
import tomllib
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

from crmlab import results, tables
from crmlab.tables import DataError, UsageError


def home() -> Path:
    """Return the project's root: `$CRMLAB_HOME`, else the nearest parent with a reports.toml."""
    if named := os.environ.get("CRMLAB_HOME"):
        if not Path(named, "reports", "reports.toml").is_file():
            raise UsageError(f"CRMLAB_HOME is {named}, but no reports/reports.toml is there.")
        return Path(named).resolve()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "reports" / "reports.toml").is_file():
            return folder
    raise UsageError(
        f"No crmlab project here: neither {here} nor a folder above it holds reports/reports.toml. "
        "Go into the project's folder, or set CRMLAB_HOME to it."
    )


def make_folder(path: Path, mode: int) -> None:
    """Make a folder, and those above it that are missing, with that mode whatever the umask."""
    missing = [one for one in (path, *path.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
        one.chmod(mode)


@dataclass(frozen=True)
class Policy:
    """What the shop has decided about its data; the names are those of `[policy]` in shop.toml."""

    zero_value_purchases: str = "drop"
    duplicate_lines: str = "keep"
    naive_timestamps: str = "shop"
    not_goods: tuple[str, ...] = ()
    privacy_k: int = 10
    stale_after_days: int = 7
    declining_after_gaps: int = 2
    lost_after_gaps: int = 4
    mature_purchases: int = 5


CHOICES = {
    "zero_value_purchases": ("drop", "count"),
    "duplicate_lines": ("keep", "drop"),
    "naive_timestamps": ("shop", "UTC"),
}


POLICY_TYPES = {f.name: int for f in fields(Policy) if isinstance(f.default, int)} | {
    **dict.fromkeys(CHOICES, str),
    "not_goods": list,
}


@dataclass(frozen=True)
class TableSettings:
    """Where a table comes from and how it is read: `[tables.<name>]` of shop.toml."""

    url: str = field(default=".", repr=False)  # it may hold a password
    origin: str = ""  # `from` in the file
    unused: bool = False  # from = "": the shop has no such table, whatever lies there
    columns: dict[str, str] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)
    separator: str = ""
    encoding: str = ""
    decimal: str = ""
    date_format: str = ""


@dataclass(frozen=True)
class ShopSettings:
    """A shop.toml, read and checked."""

    id: str
    folder: Path
    name: str
    numbers: results.Numbers
    timezone: str
    url: str = field(repr=False)
    policy: Policy
    tables: Mapping[str, TableSettings]

    def table(self, name: str) -> TableSettings:
        """Return the settings of one table; a table that is not named has the shop's source."""
        return self.tables.get(name, TableSettings(url=self.url))


def shop_names() -> list[str]:
    """Return the names of the shops under data/."""
    return sorted(path.parent.name for path in (home() / "data").glob("*/shop.toml"))


def path_of(shop: str) -> Path:
    """Return where the shop.toml of that name is, or will be; `UsageError` for no shop's name."""
    if not re.fullmatch(r"\w[\w-]{0,99}", shop):
        raise UsageError(f"{shop!r} is no shop's name: letters, digits, - and _ only.")
    return home() / "data" / shop / "shop.toml"


def read(name: str | Path) -> ShopSettings:
    """Read the settings of a shop: a name under data/, or the path of a shop.toml.

    Raises `UsageError` for a shop that does not exist, `DataError` for a broken shop.toml.
    """
    text = str(name)
    path = Path(text) if text.endswith(".toml") else path_of(text)
    if not path.is_file():
        known = [] if text.endswith(".toml") else shop_names()
        there = f" There is: {', '.join(known)}." if known else ""
        raise UsageError(
            f"No shop '{text}': {path} does not exist.{there}{tables.did_you_mean(text, known)}"
        )
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid TOML: {error}.") from error
    return _settings(path.resolve(), settings)


def _settings(path: Path, settings: dict[str, Any]) -> ShopSettings:
    from babel import Locale, UnknownLocaleError

    texts = dict.fromkeys(("name", "currency", "locale", "timezone"), str)
    _section(path, "", settings, {**texts, "source": dict, "tables": dict, "policy": dict})
    source = _section(path, "source", settings.get("source", {}), {"url": str})
    policy = _section(path, "policy", settings.get("policy", {}), POLICY_TYPES)
    for key, allowed in CHOICES.items():
        if policy.get(key, allowed[0]) not in allowed:
            raise DataError(f"{path}: [policy] {key} is {policy[key]!r}; use one of {allowed}.")
    gaps = policy.get("declining_after_gaps", 2)
    for key, least in {
        "privacy_k": 1,
        "stale_after_days": 0,
        "declining_after_gaps": 1,
        "lost_after_gaps": gaps + 1,
        "mature_purchases": 3,
    }.items():
        if policy.get(key, least) < least:
            raise DataError(f"{path}: [policy] {key} is {policy[key]}; it must be {least} or more.")
    policy["not_goods"] = tuple(str(product) for product in policy.get("not_goods", ()))
    listed = _section(
        path, "tables", settings.get("tables", {}), dict.fromkeys(tables.CONTRACT, dict)
    )
    numbers = results.Numbers(settings.get("locale", "en_US"), settings.get("currency", "USD"))
    try:
        Locale.parse(numbers.locale)
        zoneinfo.ZoneInfo(settings.get("timezone", "UTC"))
    except (UnknownLocaleError, ValueError, OSError, zoneinfo.ZoneInfoNotFoundError) as error:
        raise DataError(f"{path}: locale or timezone is not known: {error}.") from error
    if numbers.currency not in Locale("en").currencies:
        raise DataError(f"{path}: currency {numbers.currency!r} is not known; use a code like EUR.")
    url = _from_environment(source.get("url", "."), path)
    return ShopSettings(
        id=path.parent.name,
        folder=path.parent,
        name=settings.get("name", path.parent.name),
        numbers=numbers,
        timezone=settings.get("timezone", "UTC"),
        url=url,
        policy=Policy(**policy),
        tables={name: _table_settings(path, name, given, url) for name, given in listed.items()},
    )


def _table_settings(path: Path, name: str, given: dict[str, Any], url: str) -> TableSettings:
    known = {"from" if f.name == "origin" else f.name: str for f in fields(TableSettings)}
    del known["unused"]
    given = _section(path, f"tables.{name}", given, {**known, "columns": dict, "flags": dict})
    flags = given.get("flags", {})
    if flags and name != "consents":
        raise DataError(f"{path}: [tables.{name}] has flags; only consents are made of flags.")
    _section(path, f"tables.{name}.flags", flags, dict.fromkeys(flags, str))
    contract = dict.fromkeys((column.name for column in tables.CONTRACT[name].columns), str)
    _section(path, f"tables.{name}.columns", given.get("columns", {}), contract)
    mark = given.get("separator", ";")
    if len(mark) != 1 or not mark.isascii() or mark in '"\r\n\0':
        raise DataError(
            f"{path}: [tables.{name}] separator is {mark!r}; it must be one letter of ASCII."
        )
    if given.get("decimal", ".") not in (".", ","):
        raise DataError(f"{path}: [tables.{name}] decimal is {given['decimal']!r}; use '.' or ','.")
    options = {key: value for key, value in given.items() if key not in ("from", "url")}
    return TableSettings(
        url=_from_environment(given.get("url", url), path),
        origin=given.get("from", ""),
        unused=given.get("from") == "",
        **options,
    )


def _section(path: Path, section: str, given: object, known: Mapping[str, type]) -> dict[str, Any]:
    """Return a table of the TOML file, each key one of `known` and each value of its type."""
    where = f"[{section}] " if section else ""
    if not isinstance(given, dict):
        raise DataError(f"{path}: [{section}] must be a table of settings, not a single value.")
    for key, value in given.items():
        if key not in known:
            raise DataError(
                f"{path}: {where}has no setting '{key}'; it has {', '.join(sorted(known))}."
                + tables.did_you_mean(key, known)
            )
        if type(value) is not known[key]:
            words = {str: "text", int: "a whole number", list: "a list", dict: "a table"}
            found = "" if key in ("url", "source") else f"is {value!r}; it "  # maybe a password
            raise DataError(f"{path}: {where}{key} {found}must be {words[known[key]]}.")
    return dict(given)


def _from_environment(url: str, path: Path) -> str:
    """Replace ${NAME} in a URL by the environment's value, so that no file holds a password."""

    def value(match: re.Match[str]) -> str:
        if (found := os.environ.get(match[1])) is None:
            raise DataError(f"{path}: the environment has no variable {match[1]}; set it first.")
        # A password may hold the very signs that divide a URL.
        return quote(found, safe="") if "://" in url[: match.start()] else found

    return re.sub(r"\$\{(\w+)\}", value, url)
