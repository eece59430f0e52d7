"""Values that whoever connects an account gives for it, such as the name of a shop; the provider's data says which.

They decide where a credential is sent. So they are sealed beside it, and the row shows them only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from holdfast.errors import InvalidArgument
from services.auth.providers import Provider
from services.auth.providers.schema import Variable, VariableOwner

MAX_VARIABLE_CHARACTERS: Final = 2048


def variables_of(provider: Provider) -> tuple[Variable, ...]:
    """Returns the variables that belong to connections."""
    return tuple(item for item in provider.variables.values() if item.owner is VariableOwner.CONNECTION)


def missing_variables(provider: Provider, values: Mapping[str, str]) -> tuple[Variable, ...]:
    """Returns those without which the provider cannot be reached."""
    return tuple(item for item in variables_of(provider) if not values.get(item.name) and item.default is None)


def checked_variables(
    provider: Provider, given: Mapping[str, str], known: Mapping[str, str] | None = None, *, is_partial: bool = False
) -> dict[str, str]:
    """Returns the values of a connection's variables: as given, as known before, or the provider's own.

    Args:
        provider: Whose data says what fits.
        given: By name.
        known: Of the same connection, from before.
        is_partial: Whether the rest is asked for later.

    Raises:
        InvalidArgument: One does not exist, does not fit or is missing; `variables.<name>` is the field.
    """
    mine = {item.name: item for item in variables_of(provider)}
    for name in given:
        if name not in mine:
            raise InvalidArgument(
                f"connections to {provider.display_name} have no such variable",
                field=f"variables.{name[:64]}",
                description=f"expected {', '.join(sorted(mine))}" if mine else "expected none",
            )
    values = {}
    for name, variable in mine.items():
        value = given.get(name) or (known or {}).get(name) or variable.default
        if value is None:
            if is_partial:
                continue
            raise InvalidArgument(
                f"{name} is required", field=f"variables.{name}", description=f"expected {variable.words}"
            )
        try:
            if len(value) > MAX_VARIABLE_CHARACTERS:
                raise ValueError(f"expected at most {MAX_VARIABLE_CHARACTERS} characters")
            values[name] = variable.check(value)
        except ValueError as error:
            raise InvalidArgument(f"{name} is not valid", field=f"variables.{name}", description=str(error)) from error
    return values
