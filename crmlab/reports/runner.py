"""One run of a report: validate, run the notebook, check the page, publish it, show it."""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import re
import secrets
import time
import zoneinfo
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from crmlab import sources, tables
from crmlab.reports import config, index, page
from crmlab.reports.config import Report
from crmlab.results import Numbers, PageEnds, html_table
from crmlab.settings import make_folder

STEPS = {
    "open": "opening the shop's data",
    "notebook": "running the notebook",
    "page": "making the page",
    "publish": "publishing the page",
}
SHOWN_PACKAGES = ("crmlab", "lifetimes", "ibis-framework", "duckdb", "papermill")


class RunError(Exception):
    """A run failed for a reason other than its data; the message says at which step and why."""


class BusyError(Exception):
    """The same report is being run by another process."""


@dataclass(frozen=True)
class RunResult:
    """One finished run: the page that managers see, and the private folder of the run.

    `page` is the lasting path, unless the run is of an earlier date than the page that is there.
    """

    report: str
    page: Path
    folder: Path
    seconds: float


def run(
    home: Path,
    report: Report,
    *,
    shop: str | None = None,
    as_of: str | None = None,
    slot: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> RunResult:
    """Run a report and publish its page; whatever fails, the page that was there stays.

    Parameters
    ----------
    home : folder with notebooks/, data/ and reports/
    shop, as_of : in place of the report's own; `as_of` falls back to its parameter, else to the
        earlier of the slot's previous day and the log's last complete day
    slot : the time that the run is for, ISO; now by default
    parameters : in place of the report's own values

    Raises
    ------
    UsageError before anything runs; DataError, RunError once the failure is recorded; BusyError
    """
    home = home.resolve()
    notebook = home / "notebooks" / f"{report.notebook}.ipynb"
    values = _values(notebook, report, as_of, parameters or {})
    running = _begin(home, report, shop or report.shop, slot, values)
    running.manifest["by_hand"] = bool(shop or as_of or parameters)
    clock = time.monotonic()
    with _only_one(home, running.manifest["key"]):
        make_folder(running.folder, 0o700)
        running.record()
        try:
            shown = _make(running, notebook, values, progress)
        except BaseException as error:
            _fail(running, error)
            expected = isinstance(error, tables.DataError | tables.UsageError)
            if expected or not isinstance(error, Exception):
                raise
            said = running.manifest["details"]
            raise RunError(f"Report '{report.id}': {said}") from error
        finally:
            running.manifest["seconds"] = round(time.monotonic() - clock, 1)
            running.record()
            index.write(home)
    return RunResult(report.id, shown, running.folder, running.manifest["seconds"])


@dataclass
class _Running:
    """A run under way: where it writes, for which time, how far it is, what it will have said."""

    home: Path
    report: Report
    at: dt.datetime
    folder: Path
    manifest: dict[str, Any]
    step: str = "open"

    def record(self) -> None:
        """Write the manifest as it stands, so that a run that is killed leaves a trace."""
        text = json.dumps({**self.manifest, "step": self.step}, indent=1, default=str)
        page.write(self.folder / "manifest.json", text, 0o600)


def _values(
    notebook: Path, report: Report, as_of: str | None, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the notebook's parameters as this run sets them, checked against its schema."""
    if "shop_name" in parameters:
        raise tables.UsageError("The shop is no parameter; name it with --shop.")
    values = config.validate(notebook, {**report.parameters, **parameters})
    if day := as_of or values.get("as_of"):
        values["as_of"] = tables.day(day).isoformat()
    return values


def _begin(
    home: Path, report: Report, shop: str, slot: str | None, values: dict[str, Any]
) -> _Running:
    """Name the run's folder and begin its manifest; nothing is written yet."""
    if shop.endswith(".toml"):
        raise tables.UsageError("A report runs on a shop under data/: name it, not its shop.toml.")
    try:
        settings = sources.open_shop(shop).settings
        shop_name, timezone = settings.name, settings.timezone
    except tables.DataError:  # a broken shop.toml: said again, and recorded, by the run
        shop_name, timezone = shop, "UTC"
    at = _slot(slot, timezone)
    folder = home / "reports" / "private" / shop / report.id
    manifest = {
        "state": "running",
        "pid": os.getpid(),
        "report": report.id,
        "notebook": report.notebook,
        "shop": shop,
        "shop_name": shop_name,
        "key": f"{shop}/{report.id}/{config.slug(values)}",
        "slot": at.isoformat(),
        "as_of": values.get("as_of", ""),
        "set": {name: v for name, v in values.items() if name not in config.SET_BY_THE_RUN},
        "started": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in SHOWN_PACKAGES},
    }
    run_id = f"{at:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    return _Running(home, report, at, folder / run_id, manifest)


def _fail(running: _Running, error: BaseException) -> None:
    """Record a failure: plain words for the front page, the details for analysts.

    The details may hold values from the data and paths, so managers never see them.
    """
    manifest, step = running.manifest, STEPS[running.step]
    manifest["state"] = "refused" if isinstance(error, tables.UsageError) else "failed"
    if isinstance(error, tables.DataError):
        reason, said = "the data break the contract", str(error)
    elif isinstance(error, page.PageError):
        reason, said = "the page would not stand alone or would name a customer", str(error)
    elif isinstance(error, Exception):
        lines = str(error).strip().splitlines() or [""]
        reason, said = type(error).__name__, lines[0]
        if isinstance(error, RunError):
            reason = lines[0].partition(":")[0]
    else:
        reason, said = "it was stopped", type(error).__name__
    manifest["failure"] = f"{step.capitalize()} failed: {reason}."
    manifest["details"] = _without_secrets(f"{step} failed: {said}")


def _without_secrets(text: str) -> str:
    """Blank the values of the environment's secrets, and the password of any URL."""
    for name, value in os.environ.items():
        if len(value) > 5 and re.search("PASS|SECRET|TOKEN|KEY|CREDENTIAL", name, re.IGNORECASE):
            text = text.replace(value, "***")
    return re.sub(r"(://[^:/@\s]+:)[^@\s]+@", r"\1***@", text)


def _make(running: _Running, notebook: Path, values: dict[str, Any], progress: bool) -> Path:
    """Go the steps from the data to the published page, and return its path."""
    home, manifest = running.home, running.manifest
    shop = sources.open_shop(manifest["shop"])
    # A receipt dated after the slot is no news of the shop's.
    last = shop.last_complete_day(before=running.at.date())
    values = {**values, "as_of": values.get("as_of") or last.isoformat(), "shop_name": shop.id}
    defaults = {name: p.default for name, p in config.schema(notebook).items()}
    fixed = bool(running.report.parameters.get("as_of"))
    manifest |= {
        "parameters": {**defaults, **values},
        "as_of": values["as_of"],
        "last_day": last.isoformat(),
        "notices": [] if fixed else _notices(shop, values["as_of"], running.at),
        "fingerprint": shop.fingerprint(),
    }
    shop.write_set_aside(home / "reports" / "private" / shop.id / "set_aside")
    running.step = "notebook"
    executed = _execute(running, notebook, values, progress)
    running.step = "page"
    title, _, published = page.sections(executed)
    before = index.previous(home, manifest["key"], values["as_of"])
    manifest |= {"title": title, **{key: published[key] for key in ("summary", "kpis", "left_out")}}
    html = page.export(executed, _context(shop, manifest, before))
    page.check(html)
    if named := _customers_named(shop, html):
        raise page.PageError(f"The page was not published: it names {named} customers by their id.")
    running.step = "publish"
    return _publish(running, html)


def _publish(running: _Running, html: str) -> Path:
    """Put the page in its place under its date, and as the newest one unless it is of the past."""
    site, manifest = running.home / "reports" / "site", running.manifest
    target = site / str(manifest["key"])
    make_folder(target, 0o755)
    dated, lasting = target / f"{running.at:%Y%m%dT%H%M%S}.html", target / "index.html"
    newest = index.is_newest(running.home, manifest)
    for path in (dated, lasting) if newest else (dated,):
        page.write(path, html, 0o644)
    manifest |= {"state": "published", "page": dated.relative_to(site).as_posix()}
    return lasting if newest else dated


def _notices(shop: sources.Shop, as_of: str, at: dt.datetime) -> list[str]:
    """Warn of a page whose date lies further before its slot than the shop's policy allows."""
    day, numbers = tables.day(as_of), shop.numbers
    age = (at.date() - day).days
    if age <= shop.policy.stale_after_days:
        return []
    return [
        f"Old data: this page shows the state of {numbers.day(day)}, {numbers.number(age)} days "
        "before its run."
    ]


def _customers_named(shop: sources.Shop, html: str) -> int:
    """Count the customers whose id stands in the page's text as a word of its own.

    Ids of fewer than five characters cannot be told from the page's own numbers.
    """
    rows = shop.table("transactions")
    words = sorted(page.words(html, longer_than=4))
    found = rows.filter(rows.customer_id.isin(words)).customer_id.nunique()
    return int(found.to_pyarrow().as_py())


def _execute(running: _Running, notebook: Path, values: dict[str, Any], progress: bool) -> Any:
    """Run the notebook in a kernel of its own, in the run's private folder."""
    import nbclient
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    logging.getLogger("papermill").setLevel(logging.ERROR)
    folder, report = running.folder, running.report
    output = folder / "notebook.ipynb"
    surroundings = {
        "CRMLAB_HOME": str(running.home),
        "CRMLAB_RUN_DIR": str(folder),
        "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this environment, not the user's own
    }
    bar = {"desc": report.id, "bar_format": "{desc} {bar:30} {n_fmt}/{total_fmt} cells"}
    with _environment(surroundings):
        try:
            papermill.execute_notebook(
                notebook,
                output,
                parameters=values,
                kernel_name="python3",
                cwd=folder,
                progress_bar=bar if progress else False,
                execution_timeout=max(1, round(report.timeout_minutes * 60)),
                # Sockets in the file system: nobody else on the machine can listen in.
                config=Config({"KernelManager": {"transport": "ipc"}}),
            )
        except PapermillExecutionError as error:
            if error.ename == PageEnds.__name__:
                return nbformat.read(output, as_version=4)
            (folder / "traceback.log").write_text("\n".join(error.traceback), encoding="utf-8")
            if error.ename == "DataError":
                raise tables.DataError(error.evalue) from None
            if error.ename == "UsageError":
                raise tables.UsageError(error.evalue) from None
            raise RunError(f"{error.ename}: {error.evalue}") from None
        except nbclient.exceptions.CellTimeoutError:
            raise RunError(f"Timeout: a cell ran for {report.timeout_minutes:g} minutes") from None
        except nbclient.exceptions.DeadKernelError:
            raise RunError("DeadKernel: the notebook's process died") from None
    return nbformat.read(output, as_version=4)


def _context(
    shop: sources.Shop, manifest: dict[str, Any], before: dict[str, Any] | None
) -> dict[str, Any]:
    """Return what the page shows beside the notebook."""
    import pandas as pd

    numbers, policy = shop.numbers, shop.policy
    as_of = tables.day(manifest["as_of"])
    started = dt.datetime.fromisoformat(manifest["started"])
    log = shop.check("transactions", as_of=as_of)
    left_out = pd.DataFrame(manifest["left_out"], columns=["what", "rows", "money"])
    # The amount of a few rows would be somebody's purchase.
    left_out["money"] = left_out["money"].astype(float).where(left_out["rows"] >= policy.privacy_k)
    own = {k: v for k, v in manifest["parameters"].items() if k not in config.SET_BY_THE_RUN}
    return {
        "css": (page.TEMPLATES / "house.css").read_text(encoding="utf-8"),
        "shop": manifest["shop_name"],
        "as_of": numbers.day(as_of),
        "index": "../../../index.html",
        "summary": manifest["summary"],
        "notices": manifest["notices"],
        "tiles": [_tile(kpi, before, numbers) for kpi in manifest["kpis"]],
        "facts": [
            (
                "Purchases from",
                f"{numbers.day(log.first or as_of)} to {numbers.day(log.last or as_of)}",
            ),
            ("Last complete day", numbers.day(tables.day(manifest["last_day"]))),
            ("Seen as of the end of", numbers.day(as_of)),
            *((f"Parameter {name}", str(value) or "not set") for name, value in own.items()),
            ("Fewest customers behind a figure", str(policy.privacy_k)),
            ("Run", f"{started:%Y-%m-%d %H:%M} UTC"),
            ("Data fingerprint", manifest["fingerprint"]),
            ("Versions", ", ".join(f"{name} {v}" for name, v in manifest["versions"].items())),
        ],
        "left_out": html_table(
            left_out,
            title="What was read, used and left out",
            formats={"rows": numbers.number, "money": numbers.money},
            headings={"what": "transactions", "money": f"amount, {numbers.currency}"},
        ),
    }


def _tile(kpi: dict[str, Any], before: dict[str, Any] | None, numbers: Numbers) -> dict[str, str]:
    """Add to a KPI its change against the previous page of another date."""
    earlier = {k["label"]: k["value"] for k in (before or {}).get("kpis", [])}.get(kpi["label"])
    if before is None or earlier is None or kpi["value"] is None:
        return {**kpi, "change": "", "direction": ""}
    day = numbers.day(tables.day(before["as_of"]))
    points = kpi["kind"] in ("share", "signed_share")
    change = kpi["value"] - earlier if points else kpi["value"] / earlier - 1 if earlier else 0
    if points:
        said = ("+" if change > 0 else "−") + f"{numbers.number(abs(100 * change), 1)} points"
    else:
        said = numbers.percent(change, signed=True)
    direction = "" if not kpi["better"] or change == 0 else "up" if change > 0 else "down"
    if kpi["better"] == "down" and direction:
        direction = "down" if direction == "up" else "up"
    arrow = "▲ " if change > 0 else "▼ " if change < 0 else ""
    return {**kpi, "change": f"{arrow}{said} since {day}", "direction": direction}


def _slot(text: str | None, timezone: str) -> dt.datetime:
    """Read the time that a run is for, as the shop's wall clock."""
    zone = zoneinfo.ZoneInfo(timezone)
    try:
        at = dt.datetime.fromisoformat(text) if text else dt.datetime.now(zone)
        return at.astimezone(zone).replace(tzinfo=None) if at.tzinfo else at
    except ValueError:
        raise tables.UsageError(f"--slot is {text!r}; it must be like 2026-11-21T06:00.") from None


@contextmanager
def _only_one(home: Path, key: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    path = home / "reports" / "private" / f"{key}.lock"
    make_folder(path.parent, 0o700)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout:
        raise BusyError(f"'{key}' is being run by another process; it was left alone.") from None


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
