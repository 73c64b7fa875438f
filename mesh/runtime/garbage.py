"""How often a serving process looks for cyclic garbage."""

import gc

YOUNG_OBJECTS_MAX = 20_000
"""New objects that may be there before it looks among them. Python's own bound is 700, which a
server under load passes all the time, and nine in ten of them are in use."""


def collect_seldom() -> None:
    """To be called once, when all is loaded that stays for as long as the process: that is
    looked through no more, and what comes later less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS_MAX)
