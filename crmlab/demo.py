"""The demo shops: adapters for the real public logs that a dependency ships."""

from __future__ import annotations

import io
import os
from importlib.resources import files
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

SHOPS = ("cdnow", "cdnow-sample")


def prepare(data: Path) -> list[Path]:
    """Write the CDNOW logs that lifetimes ships as Parquet under `data`/cdnow.

    Returns the two files, transactions.parquet (69,659 lines of 23,570 customers) and
    sample.parquet (6,919 lines of 2,357 customers). Source: Fader and Hardie, brucehardie.com.
    """
    # Found but not run: `lifetimes.datasets` needs a package that is gone, and importing
    # lifetimes changes global options.
    spec = find_spec("lifetimes")
    assert spec is not None, "lifetimes is a dependency"
    folder = files(module_from_spec(spec)).joinpath("datasets")
    header = ["customer_id", "purchased_at", "quantity", "amount"]
    logs = {
        "transactions": _read(folder.joinpath("CDNOW_master.txt").read_text(), header, skip=1),
        "sample": _read(
            folder.joinpath("CDNOW_sample.txt").read_text(), ["master_id", *header], skip=0
        ).drop(columns="master_id"),
    }
    (data / "cdnow").mkdir(parents=True, exist_ok=True)
    written = []
    for name, log in logs.items():
        path = data / "cdnow" / f"{name}.parquet"
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        log.to_parquet(scratch, index=False)
        scratch.replace(path)
        written.append(path)
    return written


def _read(text: str, header: list[str], *, skip: int) -> pd.DataFrame:
    import pandas as pd

    log = pd.read_csv(io.StringIO(text), sep=r"\s+", names=header, skiprows=skip, dtype="str")
    log["purchased_at"] = pd.to_datetime(log["purchased_at"], format="%Y%m%d").astype(
        "datetime64[us]"
    )
    log["quantity"] = log["quantity"].astype("int64")
    log["amount"] = log["amount"].astype("float64")
    return log
