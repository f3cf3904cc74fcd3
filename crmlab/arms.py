"""Arms drawn by lot: a hash ranks the customers of a stratum, and the ranking is cut at shares."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

# Strata with fewer customers are drawn together.
SMALLEST = 20
WHOLE = float(2**64)


def lots(ids: Sequence[str] | Array, *, salt: str) -> Array:
    """Return each id's lot: blake2b of salt and id, 64 bits; the same for ever, on any machine."""
    import numpy as np

    begun = hashlib.blake2b(salt.encode() + b"\0", digest_size=8)

    def lot(one: str) -> bytes:
        hashed = begun.copy()
        hashed.update(one.encode())
        return hashed.digest()

    return np.frombuffer(b"".join(map(lot, ids)), dtype=">u8").astype("uint64")


def below(ids: Sequence[str] | Array, *, share: float, salt: str) -> Array:
    """Return whether each id's lot lies below a share of all lots: whoever else is there or not."""
    return lots(ids, salt=salt) < share * WHOLE


def merged(strata: Sequence[str] | Array, *, smallest: int = SMALLEST) -> Array:
    """Return the strata with those of fewer than `smallest` together as "other".

    While "other" itself is too small the next smallest joins it.
    """
    import numpy as np
    import pandas as pd

    place, names = pd.factorize(np.asarray(strata, object), sort=True)
    counts = np.bincount(place, minlength=len(names))
    order = np.lexsort((np.arange(len(names)), counts))
    small = int((counts < smallest).sum())
    while 0 < small < len(names) and counts[order[:small]].sum() < smallest:
        small += 1
    if small > 1 or small == len(names):
        names = names.copy()
        names[order[:small]] = "other"
    merged_names: Array = names[place]
    return merged_names


def drawn(
    ids: Sequence[str] | Array, strata: Sequence[str] | Array, *, shares: Sequence[float],
    salt: str, wave: str,
) -> Array:  # fmt: skip
    """Draw the arm of each id: its place among `shares`, which add up to 1.

    In each stratum those ranked by their lots are cut at the shares: an arm has its share of the
    stratum but for less than one. Where a cut falls between two is drawn by lot for each stratum
    and wave, so that everybody's chance of an arm is exactly its share.
    """
    import numpy as np
    import pandas as pd

    if not len(ids):
        return np.zeros(0, int)
    of, names = pd.factorize(np.asarray(strata, object), sort=True)
    # Two of a million ids have the same lot once in forty million campaigns.
    order = np.lexsort((lots(ids, salt=salt), of))
    sizes = np.bincount(of, minlength=len(names))
    rank = np.empty(len(of), int)
    rank[order] = np.arange(len(of)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    starts = lots([f"{wave}\0{name}" for name in names], salt=salt).astype(float) / WHOLE
    # The k-th arm has the ranks from floor(n b + u) on, b being where its share begins.
    begins = np.append(0.0, np.cumsum(shares)[:-1])
    cuts = np.floor(sizes[:, None] * begins + starts[:, None] + 1e-9)
    cuts[:, 0] = 0
    place: Array = (rank[:, None] >= cuts[of]).sum(axis=1) - 1
    return place
