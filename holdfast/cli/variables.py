"""Values of a provider's variables on the command line, the same for integrations and connections."""

from __future__ import annotations

from typing import Annotated

import typer

VariableOption = Annotated[
    list[str] | None,
    typer.Option(
        "--variable",
        "--set",
        metavar="NAME=VALUE",
        help="A value that the provider needs, such as tenant=… or shop=…. Several times.",
    ),
]


def read_variables(given: list[str] | None) -> dict[str, str]:
    """Returns the values by name.

    Raises:
        BadParameter: One is not NAME=VALUE.
    """
    variables = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter("expected NAME=VALUE", param_hint="--variable")
        variables[name] = value
    return variables
