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
from crmlab.results import Numbers, html_table

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
    if "shop_name" in (parameters or {}):
        raise tables.UsageError("The shop is no parameter; name it with --shop.")
    values = config.validate(notebook, {**report.parameters, **(parameters or {})})
    if as_of:
        values["as_of"] = as_of
    if values.get("as_of"):
        values["as_of"] = tables.day(values["as_of"]).isoformat()
    if shop and shop.endswith(".toml"):
        raise tables.UsageError("A report runs on a shop under data/: name it, not its shop.toml.")
    shop_id = shop or report.shop
    try:
        settings = sources.open_shop(shop_id).settings
        shop_name, timezone = settings.name, settings.timezone
    except tables.DataError:  # a broken shop.toml: said again, and recorded, below
        shop_name, timezone = shop_id, "UTC"
    at = _slot(slot, timezone)
    started, clock = dt.datetime.now(dt.UTC), time.monotonic()
    key = f"{shop_id}/{report.id}/{config.slug(values)}"
    folder = home / "reports" / "private" / shop_id / report.id
    folder /= f"{at:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    manifest: dict[str, Any] = {
        "state": "running",
        "pid": os.getpid(),
        "report": report.id,
        "notebook": report.notebook,
        "shop": shop_id,
        "shop_name": shop_name,
        "key": key,
        "slot": at.isoformat(),
        "as_of": values.get("as_of", ""),
        "started": started.isoformat(timespec="seconds"),
        "by_hand": bool(shop or as_of or parameters),
        "versions": {name: version(name) for name in SHOWN_PACKAGES},
    }
    with _only_one(home, key):
        page.folder(folder, 0o700)
        _record(folder, manifest)
        step = ["open"]
        try:
            shown = _make(home, report, notebook, values, at, folder, manifest, step, progress)
            manifest |= {"state": "published", "page": shown.relative_to(_site(home)).as_posix()}
        except BaseException as error:
            _fail(manifest, step[0], error)
            if isinstance(error, tables.DataError | tables.UsageError) or not isinstance(
                error, Exception
            ):
                raise
            raise RunError(f"Report '{report.id}': {manifest['details']}") from error
        finally:
            manifest |= {"seconds": round(time.monotonic() - clock, 1), "step": step[0]}
            _record(folder, manifest)
            index.write(home)
    lasting = shown.with_name("index.html") if index.is_newest(home, manifest) else shown
    return RunResult(report.id, lasting, folder, manifest["seconds"])


def _fail(manifest: dict[str, Any], step: str, error: BaseException) -> None:
    """Record a failure: plain words for the front page, the details for analysts.

    The details may hold values from the data and paths, so managers never see them.
    """
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
    manifest["failure"] = f"{STEPS[step].capitalize()} failed: {reason}."
    manifest["details"] = _without_secrets(f"{STEPS[step]} failed: {said}")


def _without_secrets(text: str) -> str:
    """Blank the values of the environment's secrets, and the password of any URL."""
    for name, value in os.environ.items():
        if len(value) > 5 and re.search("PASS|SECRET|TOKEN|KEY|CREDENTIAL", name, re.IGNORECASE):
            text = text.replace(value, "***")
    return re.sub(r"(://[^:/@\s]+:)[^@\s]+@", r"\1***@", text)


def _record(folder: Path, manifest: dict[str, Any]) -> None:
    page.write(folder / "manifest.json", json.dumps(manifest, indent=1, default=str), 0o600)


def _make(
    home: Path,
    report: Report,
    notebook: Path,
    values: dict[str, Any],
    at: dt.datetime,
    folder: Path,
    manifest: dict[str, Any],
    step: list[str],
    progress: bool,
) -> Path:
    """Go the steps from the data to the published page; `step` says where it stands."""
    shop = sources.open_shop(manifest["shop"])
    # A receipt dated after the slot is no news of the shop's.
    last = shop.last_complete_day(before=at.date())
    values["as_of"] = values.get("as_of") or last.isoformat()
    defaults = {name: p.default for name, p in config.schema(notebook).items()}
    manifest |= {
        "parameters": {**defaults, **values, "shop_name": shop.id},
        "as_of": values["as_of"],
        "set": {k: v for k, v in values.items() if k not in config.SET_BY_THE_RUN},
        "last_day": last.isoformat(),
        "notices": [] if report.parameters.get("as_of") else _notices(shop, values["as_of"], at),
        "fingerprint": shop.fingerprint(),
    }
    aside = home / "reports" / "private" / shop.id / "set_aside"
    page.folder(aside, 0o700)
    shop.write_set_aside(aside)
    step[0] = "notebook"
    executed = _execute(notebook, {**values, "shop_name": shop.id}, folder, report, home, progress)
    step[0] = "page"
    title, _, published = page.sections(executed)
    before = index.previous(home, manifest["key"], values["as_of"])
    manifest |= {"title": title, **{key: published[key] for key in ("summary", "kpis", "left_out")}}
    html = page.export(executed, _context(shop, manifest, before))
    page.check(html)
    if named := _customers_named(shop, html):
        raise page.PageError(f"The page was not published: it names {named} customers by their id.")
    step[0] = "publish"
    target = _site(home) / str(manifest["key"])
    page.folder(target, 0o755)
    dated = target / f"{at:%Y%m%dT%H%M%S}.html"
    page.write(dated, html, 0o644)
    # A run of an older date, a backfill say, does not take the newest page's place.
    if index.is_newest(home, manifest):
        page.write(target / "index.html", html, 0o644)
    return dated


def _notices(shop: sources.Shop, as_of: str, at: dt.datetime) -> list[str]:
    """Warn of a page whose date lies further before its slot than the shop's policy allows."""
    day, numbers = tables.day(as_of), shop.numbers
    age = (at.date() - day).days
    if age <= shop.policy.stale_after_days:
        return []
    return [
        f"Old data: this page shows the state of {numbers.day(day)}, {age} days before its run."
    ]


def _customers_named(shop: sources.Shop, html: str) -> int:
    """Count the customers whose id stands in the page's text as a word of its own.

    Ids of fewer than five characters cannot be told from the page's own numbers.
    """
    import ibis

    rows = shop.table("transactions")
    words = ibis.memtable({"customer_id": sorted(page.words(html, longer_than=4))})
    found = rows.semi_join(words, "customer_id").customer_id.nunique()
    return int(found.to_pyarrow().as_py())


def _execute(
    notebook: Path,
    values: dict[str, Any],
    folder: Path,
    report: Report,
    home: Path,
    progress: bool,
) -> Any:
    """Run the notebook in a kernel of its own, in the run's private folder."""
    import nbclient
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    logging.getLogger("papermill").setLevel(logging.ERROR)
    output = folder / "notebook.ipynb"
    surroundings = {
        "CRMLAB_HOME": str(home),
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
            ("last complete day", numbers.day(tables.day(manifest["last_day"]))),
            ("Seen as of the end of", numbers.day(as_of)),
            *((name.replace("_", " "), str(value) or "not set") for name, value in own.items()),
            ("fewest customers behind a figure", str(policy.privacy_k)),
            ("run", f"{started:%Y-%m-%d %H:%M} UTC"),
            ("data fingerprint", manifest["fingerprint"]),
            ("versions", ", ".join(f"{name} {v}" for name, v in manifest["versions"].items())),
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


def _site(home: Path) -> Path:
    return home / "reports" / "site"


@contextmanager
def _only_one(home: Path, key: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    path = home / "reports" / "private" / f"{key}.lock"
    page.folder(path.parent, 0o700)
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
