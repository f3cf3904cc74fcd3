"""Runs: a notebook and its parameters become a page that a manager can trust."""

from crmlab.reports.config import Report, load
from crmlab.reports.runner import BusyError, RunError, RunResult, run

__all__ = ["BusyError", "Report", "RunError", "RunResult", "load", "run"]
