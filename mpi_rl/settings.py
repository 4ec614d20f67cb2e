"""How a setting is declared, and how it is checked; ``config`` has them all."""

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import field
from typing import Any

from mpi_rl.errors import UserError


def setting(
    default: Any,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
    algorithm: str = "",
    growth: str = "",
) -> Any:
    """Return the field of a setting: its default, and what its help and its limits are.

    A number must be at least ``minimum``, at most ``maximum`` and more than ``above``, a text one
    of ``choices``; a list's limits are those of each number. A setting that belongs to one
    ``algorithm`` or one policy of ``growth`` must have its default with all others.
    """
    only = algorithm or growth  # where that is set it matters, elsewhere it must be the default
    help = f"{only}: {help}" if only else help
    limits = dict(minimum=minimum, maximum=maximum, above=above, choices=choices)
    metadata = dict(help=help, algorithm=algorithm, growth=growth, **limits)
    return field(default=default, metadata=types.MappingProxyType(metadata))


def check_names(
    kind: type, settings: dict[str, Any], source: str, others: tuple[str, ...] = ()
) -> None:
    """Raise UserError unless all ``settings`` are a ``kind``'s; it says what is near to another.

    Errors say that they came from ``source``, where ``others`` are valid, too.
    """
    names = [item.name for item in dataclasses.fields(kind)]
    for name in settings:
        if name not in names:
            near = difflib.get_close_matches(name, [*names, *others], n=3, cutoff=0.5)
            raise UserError(
                f"{source}: unknown key {name!r}; "
                + (f"nearest valid: {', '.join(near)}" if near else f"valid: {', '.join(names)}")
            )


def check_values(config: Any) -> None:
    """Give every setting of ``config`` its type; UserError for one that is out of its limits."""
    for item in dataclasses.fields(config):
        object.__setattr__(config, item.name, _checked(item, getattr(config, item.name)))


def check_only_with(config: Any, choice: str) -> None:
    """Raise UserError if a setting that belongs to another value of ``choice`` is not its default.

    ``choice`` is algorithm or growth.
    """
    chosen = getattr(config, choice)
    for item in dataclasses.fields(config):
        only, value = item.metadata[choice], getattr(config, item.name)
        if only not in ("", chosen) and value != item.default:
            raise UserError(
                f"{item.name} = {value!r} with {choice} = {chosen!r}: must be {item.default!r}, or"
                f" {choice} = {only!r}"
            )


def _checked(item: dataclasses.Field, value: Any) -> Any:
    """Return ``value`` in its field's type; UserError names field, value and what is right."""
    if item.type == tuple[int, ...]:
        if not isinstance(value, (list, tuple)) or not (value or not item.default):
            raise UserError(
                f"{item.name} = {value!r}: must be a list of whole numbers, like [128, 128]"
            )
        return tuple(_checked_scalar(item, number, int) for number in value)
    return _checked_scalar(item, value, typing.cast(type, item.type))


def _checked_scalar(item: dataclasses.Field, value: Any, kind: type) -> Any:
    """Return one number or text as a ``kind``, if it is within its field's limits."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(typing.cast(float, value))):
        raise UserError(f"{item.name} = {value!r}: must be {words}")
    limits = item.metadata
    if limits["choices"] and value not in limits["choices"]:
        raise UserError(f"{item.name} = {value!r}: must be one of {', '.join(limits['choices'])}")
    if limits["minimum"] is not None and value < limits["minimum"]:
        raise UserError(f"{item.name} = {value!r}: must be at least {limits['minimum']}")
    if limits["above"] is not None and value <= limits["above"]:
        raise UserError(f"{item.name} = {value!r}: must be above {limits['above']}")
    if limits["maximum"] is not None and value > limits["maximum"]:
        raise UserError(f"{item.name} = {value!r}: must be at most {limits['maximum']}")
    return value
