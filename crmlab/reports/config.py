"""What runs: reports.toml, and the parameters that a notebook declares."""

from __future__ import annotations

import ast
import contextlib
import datetime as dt
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crmlab.tables import UsageError, day, did_you_mean

# What the runner sets itself; a report's own parameters are all others.
SET_BY_THE_RUN = ("shop_name", "as_of")
LONGEST_TEXT = 1_000


@dataclass(frozen=True)
class Report:
    """One `[[report]]` of reports.toml; `schedule` is empty for a report run by hand."""

    id: str
    notebook: str
    shop: str
    schedule: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    sweep: dict[str, Any] = field(default_factory=dict)
    timeout_minutes: float = 20
    retries: int = 0
    keep: int = 12
    notify: list[str] = field(default_factory=list)


_TYPES: dict[str, Any] = {
    "parameters": (dict, "a table, such as { margin = 0.3 }"),
    "sweep": (dict, 'a table, such as { segment = ["region", "city"] }'),
    "timeout_minutes": ((int, float), "a number"),
    "retries": (int, "a whole number"),
    "keep": (int, "a whole number"),
    "notify": (list, 'a list, such as ["${CRMLAB_NOTIFY}"]'),
}
_BOUNDS = {"timeout_minutes": (0.01, 1440), "retries": (0, 10), "keep": (1, 1000)}


def load(home: Path) -> dict[str, Report]:
    """Read reports/reports.toml; the reports by id. Raises `UsageError` for what is wrong in it."""
    reports, problems = read(home)
    if problems:
        raise UsageError(" ".join(problems))
    return reports


def read(home: Path) -> tuple[dict[str, Report], list[str]]:
    """Return the reports of reports.toml that are right, by id, and what is wrong with the rest."""
    path = home / "reports" / "reports.toml"
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return {}, [f"{path} cannot be read: {error.strerror}."]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return {}, [f"{path} is not valid TOML: {error}."]
    entries = given.get("report", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return {}, [f"{path}: write each report under [[report]], with double brackets."]
    reports: dict[str, Report] = {}
    problems = []
    for number, entry in enumerate(entries, start=1):
        name = f"report '{entry['id']}'" if entry.get("id") else f"[[report]] number {number}"
        if problem := _wrong(entry):
            problems.append(f"{path}, {name}: {problem}")
        elif entry["id"] in reports:
            problems.append(f"{path}: two reports have the id '{entry['id']}'.")
        else:
            reports[entry["id"]] = Report(**entry)
    return reports, problems


def _wrong(entry: Mapping[str, Any]) -> str:
    """Say what is wrong with an entry."""
    known = Report.__dataclass_fields__
    for key, value in entry.items():
        if key not in known:
            return f"there is no setting '{key}', but {', '.join(known)}.{did_you_mean(key, known)}"
        wanted, words = _TYPES.get(key, (str, "text"))
        if not isinstance(value, wanted) or isinstance(value, bool):
            return f"{key} = {value!r} must be {words}."
        if key in _BOUNDS and not _BOUNDS[key][0] <= value <= _BOUNDS[key][1]:
            return f"{key} = {value} must lie between {_BOUNDS[key][0]} and {_BOUNDS[key][1]}."
    if missing := [key for key in ("id", "notebook", "shop") if not entry.get(key)]:
        return f"it needs {', '.join(missing)}."
    for key in ("id", "notebook", "shop"):
        if not re.fullmatch(r"\w[\w-]*", entry[key]):
            return f"{key} = {entry[key]!r} is no plain name: letters, digits, - and _."
    return _problem(Report(**entry))


def _problem(report: Report) -> str:
    """Say what is wrong with the schedule, the sweep or the addresses of a report."""
    import cronsim

    if report.schedule:
        try:
            cronsim.CronSim(report.schedule, dt.datetime(2026, 1, 1))
        except cronsim.CronSimError as error:
            return f'schedule = "{report.schedule}" is no cron line like "0 6 * * mon": {error}.'
        if len(report.schedule.split()) != 5:
            return (
                f'schedule = "{report.schedule}" needs five fields: minute hour day month weekday.'
            )
    for name, wanted in report.sweep.items():
        if len(report.sweep) > 1:
            return "a sweep goes over one parameter."
        if name in report.parameters or name in SET_BY_THE_RUN:
            return f"the sweep sets '{name}', which is set elsewhere too."
        if not (wanted and isinstance(wanted, str | list)):
            return f'sweep = {{ {name} = {wanted!r} }} must be "all", "table.column" or a list.'
    for address in report.notify:
        if not re.fullmatch(r"\$\{\w+\}", str(address)):
            return (
                'notify holds addresses with secrets: write them as "${NAME}", and set NAME in '
                "the environment."
            )
    return ""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a notebook: its type and default, and the comment beside it as help.

    A text whose comment begins with `date` is a date or empty; one with `one of a | b | c` is one
    of these words.
    """

    name: str
    type: type
    default: str | int | float | bool
    help: str

    @property
    def choices(self) -> list[str]:
        """Return the words that may be chosen; none where any text will do."""
        found = re.match(r"one of ([^;,:]+)", self.help) if self.type is str else None
        return [word.strip() for word in found[1].split("|")] if found else []

    @property
    def is_date(self) -> bool:
        """Whether it is a date, or empty."""
        return self.type is str and re.match(r"date\b", self.help) is not None


def schema(notebook: Path) -> dict[str, Parameter]:
    """Read the parameters that a notebook's cell tagged `parameters` declares.

    Every line of it is `name: type = default  # help` with type str, int, float or bool.
    """
    if not notebook.is_file():
        names = [path.stem for path in sorted(notebook.parent.glob("*.ipynb"))]
        raise UsageError(
            f"There is no notebook '{notebook.stem}'; {notebook.parent} has "
            f"{', '.join(names) or 'none'}.{did_you_mean(notebook.stem, names)}"
        )
    try:
        # Plain JSON: the library that reads notebooks takes a second to import.
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
        sources = ["".join(cell["source"]) for cell in tagged]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{notebook} is no notebook: {type(error).__name__}.") from error
    if len(tagged) != 1:
        raise UsageError(f"{notebook} needs one cell tagged `parameters`; it has {len(tagged)}.")
    source = sources[0]
    lines = source.splitlines()
    found: dict[str, Parameter] = {}
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise UsageError(f"{notebook}: the parameters cell is no Python: {error.msg}.") from error
    for statement in statements:
        parameter = _parameter(statement, lines[statement.lineno - 1])
        if not parameter:
            raise UsageError(
                f"{notebook}, line {statement.lineno} of the parameters cell: "
                f"{lines[statement.lineno - 1]!r} is not `name: type = default`."
            )
        found[parameter.name] = parameter
    return found


def _parameter(statement: ast.stmt, line: str) -> Parameter | None:
    match statement:
        case ast.AnnAssign(
            ast.Name(name), ast.Name("str" | "int" | "float" | "bool" as kind), value
        ):
            try:
                default: Any = ast.literal_eval(ast.unparse(value)) if value else None
            except ValueError:
                return None
            if type(default).__name__ == kind:
                return Parameter(name, type(default), default, line.partition("  #")[2].strip())
    return None


def validate(notebook: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return `given`, each value checked against the notebook's schema.

    A text is read as the parameter's type, so that `--set horizon_days=90` is a number and 007
    stays text where the parameter is one. Raises `UsageError` otherwise.
    """
    known = schema(notebook)
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise UsageError(
                f"Notebook '{notebook.stem}' has no parameter '{name}'; it has "
                f"{', '.join(known)}.{did_you_mean(name, known)}"
            )
        values[name] = _as_type(known[name], value)
    return values


def parameters(home: Path, report: Report) -> list[str]:
    """Return a line for each parameter of a report: what it is set to, and what it means."""
    known = schema(home / "notebooks" / f"{report.notebook}.ipynb")
    lines = [f"\nParameters of '{report.id}', for --set NAME=VALUE:"]
    for one in known.values():
        if one.name not in SET_BY_THE_RUN:
            value = report.parameters.get(one.name, one.default)
            lines.append(f"  {f'{one.name}={value}':<30}  {one.help}")
    return lines


def _as_type(parameter: Parameter, value: Any) -> Any:
    wanted = parameter.type
    readings: dict[type, Any] = {
        bool: {"true": True, "false": False}.get,
        int: lambda text: int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else None,
        float: lambda text: (
            float(text) if re.fullmatch(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?", text) else None
        ),
        str: str,
    }
    if isinstance(value, dt.date) and wanted is str:  # as TOML reads it without quotes
        value = value.isoformat()
    if isinstance(value, str):
        try:
            read = readings[wanted](value)
        except ValueError:
            read = None
    elif wanted is float and isinstance(value, int) and not isinstance(value, bool):
        read = float(value)
    else:
        read = value if type(value) is wanted else None
    if read is None:
        raise UsageError(
            f"Parameter '{parameter.name}' is {value!r}; it must be {_IN_WORDS[wanted]}, such as "
            f"{parameter.default!r} ({parameter.help})."
        )
    if isinstance(read, float) and not math.isfinite(read):
        raise UsageError(f"Parameter '{parameter.name}' is {read}; it must be a finite number.")
    # A no-break space is no Python's idea of printable.
    if isinstance(read, str) and (
        len(read) > LONGEST_TEXT or not read.replace("\u00a0", " ").isprintable()
    ):
        raise UsageError(
            f"Parameter '{parameter.name}' must be at most {LONGEST_TEXT} printable characters on "
            "one line."
        )
    if parameter.is_date and read:
        return day(read, name=f"Parameter '{parameter.name}'").isoformat()
    if parameter.choices and read not in parameter.choices:
        raise UsageError(
            f"Parameter '{parameter.name}' is {read!r}; it must be one of "
            f"{', '.join(parameter.choices)}.{did_you_mean(read, parameter.choices)}"
        )
    return read


_IN_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def slug(parameters: Mapping[str, Any]) -> str:
    """Name the folder of a page: the sanitised parameters and 8 hex digits of their hash.

    >>> slug({"horizon_days": 90})
    'horizon_days-90-8785e499'
    """
    own = {name: parameters[name] for name in sorted(parameters) if name not in SET_BY_THE_RUN}
    digest = hashlib.sha256(json.dumps(own).encode()).hexdigest()[:8]
    words = "-".join(f"{name}-{value}" for name, value in own.items()) or "standard"
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', words)[:60].strip('.')}-{digest}"


def mark(home: Path, report: Report) -> str:
    """Return what changes when a report's entry, its notebook or its shop.toml is changed."""
    digest = hashlib.sha256(repr(report).encode())
    for path in (
        home / "notebooks" / f"{report.notebook}.ipynb",
        home / "data" / report.shop / "shop.toml",
    ):
        with contextlib.suppress(OSError):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
