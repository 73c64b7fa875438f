"""How often a serving process looks for cyclic garbage."""

import asyncio
import gc

YOUNG_OBJECTS_MAX = 20_000
"""New objects that may be there before it looks among them. Python's own bound is 700, which a
server under load passes all the time, and nine in ten of them are in use."""

YOUNG = 1
"""Those that outlived one look, or none."""
LOOK_SECONDS = 1.0


def collect_seldom() -> None:
    """To be called once, when all is loaded that stays for as long as the process: that is
    looked through no more, and what comes later less often. The young are looked through every
    second as well: where little happens, garbage may hold what others wait for."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS_MAX)
    loop = asyncio.get_running_loop()

    def look() -> None:
        gc.collect(YOUNG)
        loop.call_later(LOOK_SECONDS, look)

    loop.call_later(LOOK_SECONDS, look)
