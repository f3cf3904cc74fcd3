"""The commands. Each is thin: the work is in the modules, and a clear error is one sentence."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import click

# What schedulers read; see the README.
FAILED, USAGE, DATA, BUSY = 1, 2, 3, 75


def _plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Say an expected error in its own words, with the exit code that schedulers read."""

    @wraps(command)
    def wrapped(*args: Any, **options: Any) -> None:
        from crmlab.tables import DataError, UsageError

        try:
            command(*args, **options)
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        except UsageError as error:
            _stop(error, USAGE)
        except DataError as error:
            _stop(error, DATA)
        except (OSError, RuntimeError) as error:
            from crmlab.reports.ledger import BusyError

            _stop(error, BUSY if isinstance(error, BusyError) else FAILED)

    return wrapped


def _stop(error: Exception, code: int) -> None:
    click.echo(f"Error: {error}", err=True)
    raise SystemExit(code)


@click.group()
def main() -> None:
    """Turn receipts into pages that a manager trusts."""


@main.command()
@_plain_errors
def demo() -> None:
    """Prepare the demo shops, run the reports of the shop demo, print the front page's path."""
    from crmlab import demo as demo_shops
    from crmlab import reports, sources

    home = sources.home()
    written = demo_shops.prepare(home / "data", progress=lambda text: click.echo(text, err=True))
    known = [report for report in reports.load(home).values() if report.shop in written]
    first = [report for report in known if report.shop == "demo" and not report.sweep]
    others = ", ".join(report.id for report in known if report not in first)
    _finish(_told(reports.run_all([reports.prepare(home, report) for report in first])))
    click.echo(f"More pages by `crmlab report` and one of: {others}.", err=True)
    click.echo(home / "reports" / "site" / "index.html")


@main.command()
@_plain_errors
def shops() -> None:
    """List the shops and what each table holds."""
    from crmlab import sources
    from crmlab.tables import CONTRACT, DataError

    names = sources.shop_names()
    if not names:
        click.echo(f"No shops under {sources.home() / 'data'} yet. `crmlab demo` makes some.")
    for name in names:
        try:
            shop = sources.open_shop(name)
            held = [shop.check(table) for table in CONTRACT if shop.has(table)]
            told = "; ".join(
                f"{check.table} {check.used:,} rows"
                + (f", {check.first} to {check.last}" if check.first else "")
                for check in held
            )
            click.echo(f"{name:<20} {shop.settings.name}: {told or 'no data; see `crmlab check`'}")
        except DataError as error:
            click.echo(f"{name:<20} {str(error).splitlines()[0]}")


@main.command()
@click.argument("shop")
@_plain_errors
def check(shop: str) -> None:
    """Read every table of SHOP against the contract."""
    from crmlab import proposals, sources
    from crmlab.tables import CONTRACT, DataError

    opened = sources.open_shop(shop)
    folder = sources.home() / "reports" / "private" / opened.id / "set_aside"
    broken = []
    for table in CONTRACT:
        try:
            named = table == "transactions" or table in opened.settings.tables
            if not named and not opened.has(table):
                continue
            click.echo(opened.check(table, as_of=dt.date.today()))
            if path := opened.write_set_aside(folder, table):
                click.echo(f"  The rows set aside, each with the rule it broke: {path}")
        except DataError as error:
            broken.append(str(error))
    if broken:
        raise DataError("\n".join(broken))
    click.echo(f"\n{proposals.review(opened, as_of=dt.date.today()).possible}")


@main.command("new-shop")
@click.argument("name")
@click.argument("source")
@click.option("--currency", default="", help="Such as EUR.")
@click.option("--locale", default="", help="How readers write numbers and dates, such as de_DE.")
@click.option("--timezone", default="", help="Of the shop's clock, such as Europe/Kyiv.")
@_plain_errors
def new_shop(name: str, source: str, currency: str, locale: str, timezone: str) -> None:
    """Look at SOURCE (files or a database), write the shop.toml of a shop NAME, and check it."""
    from crmlab import proposals, sources
    from crmlab.tables import DataError

    click.echo("Looking at the source ...", err=True)
    proposal = proposals.propose(name, source, currency=currency, locale=locale, timezone=timezone)
    path = proposals.write(proposal)
    click.echo(f"{proposal.toml()}\nThis is now {path}\n")
    review = proposals.review(sources.open_shop(name), as_of=dt.date.today())
    click.echo(review)
    if review.broken:
        raise DataError(f"See above. Change {path}, then run `crmlab check {name}`.")


@main.command(add_help_option=False)
@click.argument("report_id", metavar="ID", required=False)
@click.option("--shop", help="Another shop than reports.toml names.")
@click.option("--as-of", help="The last day that counts, such as 2025-12-31.")
@click.option("--slot", help="The scheduled time that the run is for, such as 2026-01-05T06:00.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A parameter.")
@click.option("--list", "listed", is_flag=True, help="List the pages of a sweep and run nothing.")
@click.option("--help", "helped", is_flag=True, help="Show this, and the parameters of report ID.")
@_plain_errors
def report(
    report_id: str | None,
    shop: str | None,
    as_of: str | None,
    slot: str | None,
    settings: tuple[str, ...],
    listed: bool,
    helped: bool,
) -> None:
    """Run the report ID of reports.toml now."""
    from crmlab import reports, sources
    from crmlab.tables import UsageError

    if helped or not report_id:
        click.echo(click.get_current_context().get_help())
        for line in reports.parameters(sources.home(), _report(report_id)) if report_id else []:
            click.echo(line)
        if not helped:
            raise UsageError("Name the report to run.")
        return
    for setting in settings:
        if "=" not in setting:
            raise UsageError(f"--set {setting}: write it as NAME=VALUE, such as margin=0.3.")
    parameters = dict(setting.split("=", 1) for setting in settings)
    asked = {"shop": shop, "as_of": as_of, "slot": slot, "parameters": parameters}
    home, one = sources.home(), _report(report_id)
    if listed:
        for run in reports.pages(home, one, **asked):
            if run.manifest["state"] == "failed":
                click.echo(f"Error: {run.manifest['details']}", err=True)
            else:
                click.echo("".join(f"{name}={run.values[name]}" for name in one.sweep))
        return
    _finish(reports.run_all(reports.by_hand(home, one, **asked)), pages=True)


def _report(report_id: str) -> Any:
    from crmlab import reports, sources
    from crmlab.tables import UsageError, did_you_mean

    known, problems = reports.read(sources.home())
    if report_id not in known:
        raise (
            UsageError(" ".join(problems))
            if problems
            else UsageError(
                f"There is no report '{report_id}'; reports.toml has {', '.join(known) or 'none'}."
                + did_you_mean(report_id, known)
            )
        )
    return known[report_id]


def _finish(results: Iterable[Any], *, pages: bool = False) -> None:
    """Say how each run ended as it ends; the worst of them is the exit code."""
    codes = [0]
    for result in results:
        codes.append(result.code)
        if result.said:
            click.echo(f"{'Error: ' if result.code else ''}{result.said}", err=True)
        if pages and result.page:
            click.echo(result.page)
    if code := max(codes, key=(0, BUSY, DATA, USAGE, FAILED).index):
        raise SystemExit(code)


@main.command("run-due")
@_plain_errors
def run_due() -> None:
    """Run all that is due, each page once; for cron, every few minutes."""
    from crmlab import reports, sources

    _finish(_told(reports.run_due(sources.home())))


def _told(results: Iterable[Any]) -> Iterable[Any]:
    for result in results:
        if not result.code:
            said = f"{result.key}, slot {result.slot[:16]}: {result.state}, {result.seconds:.0f} s"
            click.echo(said, err=True)
        yield result


@main.command()
@click.argument("report_id", metavar="[ID]", required=False)
@click.option("--last", default=20, show_default=True, help="How many runs of each page to show.")
@_plain_errors
def history(report_id: str | None, last: int) -> None:
    """Show what was run for which time, and how it ended."""
    from crmlab import reports, sources

    known = [_report(report_id).id] if report_id else None
    shown = False
    for key, rows in reports.history(sources.home(), known).items():
        click.echo(key)
        for row in rows[-last:]:
            tries = f", try {row['attempt']}" if row.get("attempt", 1) > 1 else ""
            said = row.get("details") or row.get("failure") or row.get("summary", "")
            click.echo(f"  {row['slot'][:16]}  {row['state']:<9}{tries}  {said}")
            shown = True
    if not shown:
        click.echo("Nothing has run yet.")


@main.command("schedule")
@click.argument("kind", type=click.Choice(["cron", "systemd", "airflow"]))
@_plain_errors
def schedule(kind: str) -> None:
    """Print the crontab line, the systemd units, or the Airflow DAG file that runs the reports."""
    from crmlab import reports, sources

    click.echo(reports.scheduler_file(kind, sources.home()), nl=False)


if __name__ == "__main__":
    main()
