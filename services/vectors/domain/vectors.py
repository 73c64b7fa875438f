"""Vectors and how near they are."""

import math
import operator
from array import array
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

from mesh.errors import InvalidArgument

LENGTH_MAX = 1e9
"""Squares are added as 32-bit floats, which end at 3e38; beyond it sums lose too much, too."""
LENGTH_MIN = 1e-12


class Metric(StrEnum):
    """How near two vectors are."""

    COSINE = "cosine"
    DOT = "dot"
    L2 = "l2"


# Of 32-bit floats, as the back ends store them.
if TYPE_CHECKING:
    Vector: TypeAlias = array[float]
else:
    Vector = array


def read_vector(values: Sequence[float], dimension: int, metric: Metric, field: str) -> Vector:
    """The vector of a request. Raises InvalidArgument, of `field`, where it isn't one of a
    collection of that dimension and metric."""
    if len(values) != dimension:
        raise InvalidArgument.of(
            field, f"has {len(values)} numbers; the collection's dimension is {dimension}"
        )
    vector = array("f", values)
    # False for what isn't a number, too.
    if not square_of(vector) <= LENGTH_MAX**2:
        raise InvalidArgument.of(field, f"must be finite and not longer than {LENGTH_MAX:.0e}")
    if metric is Metric.COSINE and square_of(vector) < LENGTH_MIN**2:
        raise InvalidArgument.of(field, "is too short to have a direction")
    return vector


def unit(vector: Vector) -> Vector:
    """The vector of the same direction with the length 1."""
    length = math.sqrt(square_of(vector))
    return array("f", (number / length for number in vector))


def square_of(vector: Vector) -> float:
    """The square of the vector's length."""
    return float(sum(map(operator.mul, vector, vector)))
