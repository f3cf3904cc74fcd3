"""Runs: a notebook and its parameters become a page that a manager can trust."""

from crmlab.reports.config import Report, load, parameters, read
from crmlab.reports.ledger import BusyError, LedgerError, history
from crmlab.reports.runner import RunResult, prepare, run, run_all
from crmlab.reports.schedule import by_hand, due, pages, run_due, scheduler_file

__all__ = [
    "BusyError",
    "LedgerError",
    "Report",
    "RunResult",
    "by_hand",
    "due",
    "history",
    "load",
    "pages",
    "parameters",
    "prepare",
    "read",
    "run",
    "run_all",
    "run_due",
    "scheduler_file",
]
