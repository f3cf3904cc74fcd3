"""The file for Airflow, loaded and run by a real Airflow 3: `make test-airflow`.

Airflow has an environment of its own, `.venv-airflow`; its scheduler, processor of files and server
run for two slots of a report with four pages, of which one fails.
"""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from crmlab import reports
from crmlab.reports import ledger

from . import projects

pytestmark = pytest.mark.airflow

AIRFLOW = Path(__file__).parent.parent / ".venv-airflow" / "bin" / "airflow"
TOML = """[[report]]
id = "quick"
notebook = "quick"
shop = "small"
schedule = "* * * * *"
retries = 1
[report.sweep]
word = ["a", "b c", "bad", "$(touch hacked) <i>"]
"""


@pytest.fixture
def airflow(tmp_path):
    """Return the command of an Airflow that has its home in the test's folder."""
    assert AIRFLOW.exists(), "Run `make test-airflow`."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {name: value for name, value in os.environ.items() if name != "CRMLAB_HOME"} | {
        "PATH": f"{AIRFLOW.parent}:{os.environ['PATH']}",
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
    }

    def start(*words, **options):
        return subprocess.Popen([AIRFLOW, *words], env=env, text=True, **options)

    return start


def test_airflow_runs_every_page_of_every_slot_once_and_tries_again_what_fails(
    airflow, tmp_path, project
):
    projects.write_notebook(project, code='if word == "bad":\n    raise ValueError("no")')
    (project / "reports" / "reports.toml").write_text(TOML)
    dags = tmp_path / "airflow" / "dags"
    dags.mkdir(parents=True)
    text = reports.scheduler_file("airflow", project)
    sooner = text.replace("retry_delay=timedelta(minutes=5)", "retry_delay=timedelta(seconds=1)")
    assert sooner != text
    (dags / "crmlab_reports.py").write_text(sooner)

    with (tmp_path / "airflow.log").open("w") as log:
        server = airflow("standalone", stdout=log, stderr=log, start_new_session=True)
        try:
            runs = wait_for_two_runs(airflow)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=60)
    # No run began before the one before it had ended, and one bad page is a failed run.
    assert [run["state"] for run in runs] == ["failed", "failed"]
    assert runs[0]["end_date"] <= runs[1]["start_date"]
    for run in runs:
        slot = run["logical_date"]
        rows = [row for row in ledger.entries(project) if row["moment"] == slot]
        states = {row["set"]["word"]: row["state"] for row in rows}
        assert states == {
            "a": "published",
            "b c": "published",
            "bad": "failed",
            "$(touch hacked) <i>": "published",
        }
        tries = {row["set"]["word"]: row["attempt"] for row in rows}
        assert tries == {"a": 1, "b c": 1, "bad": 2, "$(touch hacked) <i>": 1}
    assert not list(tmp_path.rglob("hacked"))


def wait_for_two_runs(airflow, minutes=8):
    """Return the first two runs that are over, the earlier first."""
    until = time.monotonic() + 60 * minutes
    while time.monotonic() < until:
        listing = airflow(
            "dags", "list-runs", "crmlab-quick", "-o", "json",
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        listed, _ = listing.communicate()
        runs = json.loads(listed[listed.index("[{") :]) if "[{" in listed else []
        over = sorted((run for run in runs if run["end_date"]), key=lambda run: run["run_after"])
        if len(over) >= 2:
            return over[:2]
        time.sleep(5)
    raise AssertionError("Airflow ended no two runs in time; see airflow.log.")
