"""Which task goes next: one pure function of what tasks want and what tenants had.

Between tenants: start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queueing",
SIGCOMM 1996). A task given to a worker costs its tenant `estimated cost / weight` of
virtual time, and the tenant with the least goes next; a tenant that comes back from being
idle begins at the virtual time of the others, so that it saves nothing up. So over any
stretch in which two tenants both have tasks that could run, the costs that they were given
differ from the ratio of their weights by no more than one task of each.

Within a tenant: earliest deadline first (Liu, Layland: "Scheduling Algorithms for
Multiprogramming in a Hard-Real-Time Environment", JACM 1973), with a deadline for every
task, as in Stoica's and Abdel-Wahab's virtual deadlines (1995): a task of priority p is due
`(9 - p) * LEVEL_SECONDS` after it became ready, or by when it must begin to be done by its
own deadline, whichever is earlier. Waiting counts by itself, since a due time doesn't move
while newer tasks are due later and later: a task is passed by newer ones of a higher
priority for no longer than `9 * LEVEL_SECONDS`, and by no newer one of its own priority
that has no deadline. Equals go in the order in which they came.
"""

from dataclasses import dataclass

PRIORITY_MAX = 9
PRIORITY_DEFAULT = 5
LEVEL_SECONDS = 60.0
"""One level of priority is worth so much waiting."""
COST_SECONDS_DEFAULT = 1.0
COST_SECONDS_MIN = 0.001
"""Nothing is for free: of what costs nothing there could be no end."""
WEIGHT_DEFAULT = 100


@dataclass(frozen=True, slots=True)
class Wants:
    """What a task says of itself. Times are Unix seconds: `ready` is when it could first be
    run, `deadline` by when it must be done, None where it has none; `order` counts tasks
    as they came."""

    priority: int
    ready: float
    order: int
    cost_seconds: float = COST_SECONDS_DEFAULT
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """What a tenant had so far, in virtual seconds."""

    virtual: float
    weight: int = WEIGHT_DEFAULT


Rank = tuple[float, float, int]
"""The smallest goes first."""


def rank(wants: Wants, share: Share) -> Rank:
    """Where the task stands among all tasks that could run: its tenant's virtual time, then
    when it is due, then the order in which tasks came."""
    return (share.virtual, due(wants), wants.order)


def due(wants: Wants) -> float:
    """When the task is due, in Unix seconds; it doesn't change while the task waits."""
    by_priority = wants.ready + (PRIORITY_MAX - wants.priority) * LEVEL_SECONDS
    if wants.deadline is None:
        return by_priority
    return min(by_priority, wants.deadline - wants.cost_seconds)


def charged(share: Share, cost_seconds: float) -> Share:
    """The tenant's share after it was given a task."""
    cost = max(cost_seconds, COST_SECONDS_MIN) / share.weight * WEIGHT_DEFAULT
    return Share(share.virtual + cost, share.weight)


def returned(share: Share, virtual_now: float) -> Share:
    """The share of a tenant that has tasks again after it had none."""
    return Share(max(share.virtual, virtual_now), share.weight)
