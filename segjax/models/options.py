"""Types of model options: the values that an annotation allows, and their description."""

import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple


class Constraint(NamedTuple):
    """A constraint on the values of a type, as metadata of `Annotated`."""

    words: str  # such as "an integer of at least 1"
    holds: Callable[[Any], bool]


Positive = Annotated[int, Constraint("an integer of at least 1", lambda x: x >= 1)]
Positives = Annotated[
    tuple[Positive, ...], Constraint("a tuple of one or more integers of at least 1", bool)
]
NotNegative = Annotated[float, Constraint("a number of at least 0", lambda x: x >= 0)]
Probability = Annotated[float, Constraint("a number in [0, 1)", lambda x: 0 <= x < 1)]

WORDS = {bool: "True or False", int: "an integer", float: "a number", str: "a string"}


def allows(kind: Any, value: Any) -> bool:
    """Return whether a value is of an annotated type: integers are numbers, booleans are not."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        constraints = (x for x in arguments[1:] if isinstance(x, Constraint))
        return allows(arguments[0], value) and all(x.holds(value) for x in constraints)
    if origin is Literal:
        return any(type(value) is type(x) and value == x for x in arguments)
    if origin in (typing.Union, types.UnionType):
        return any(allows(x, value) for x in arguments)
    if origin is tuple and arguments[1:] == (...,):
        return isinstance(value, tuple) and all(allows(arguments[0], x) for x in value)
    if kind is float:
        return type(value) in (int, float)
    if kind in WORDS:
        return type(value) is kind
    return kind is Any or isinstance(value, origin or kind)


def describe(kind: Any) -> str:
    """Describe the values that an annotated type allows."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        words = [x.words for x in arguments[1:] if isinstance(x, Constraint)]
        return " and ".join(words) or describe(arguments[0])
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(describe, arguments))
    return WORDS.get(kind) or (str(kind) if origin else kind.__name__)
