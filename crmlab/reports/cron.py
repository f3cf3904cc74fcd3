"""Cron arithmetic: when a schedule names a time, also where the clock changes."""

from __future__ import annotations

import datetime as dt
import itertools


def newest_slot(schedule: str, now: dt.datetime) -> dt.datetime:
    """Return the last time up to `now` that a cron line names, in the zone of `now`.

    As Debian's cron: what the clock skips in spring runs right after, what it repeats in autumn
    runs once, unless the line says every hour or every minute.
    """
    import cronsim

    earlier = next(cronsim.CronSim(schedule, now + dt.timedelta(seconds=1), reverse=True))
    # Backwards it takes the hour that comes twice for its first time only; forwards it is right.
    slots = cronsim.CronSim(schedule, earlier)
    # Two times of one zone compare by the hands of the clock, and 03:30 may come twice.
    passed = itertools.takewhile(lambda slot: slot.timestamp() <= now.timestamp(), slots)
    return max([earlier, *passed], key=dt.datetime.timestamp)


def next_slot(schedule: str, after: dt.datetime) -> dt.datetime:
    """Return the first time after `after` that a cron line names, in the zone of `after`."""
    import cronsim

    return next(cronsim.CronSim(schedule, after))
