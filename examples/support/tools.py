"""The agent's tools: the shop's own code, in the shop's own process (`holdfast worker examples.support.tools`).

The schema that the model sees comes from each signature and docstring; the effect class says what a lost call may have
done. `ToolContext` is filled by the worker and is not shown to the model.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any, Literal

from examples.support.shop import Shop, ShopError
from holdfast import ToolContext, ToolError, tool


@cache
def shop() -> Shop:
    """The shop in the folder SUPPORT_SHOP; opened by the first call, so that importing this module does nothing."""
    folder = Path(os.environ.get("SUPPORT_SHOP", ".holdfast/support-shop"))
    return Shop(folder, bank_seconds=float(os.environ.get("SUPPORT_BANK_SECONDS", "0.2")))


@tool(effect="read_only")
def list_mail() -> list[dict[str, str]]:
    """Returns all messages of the mailbox, without their texts."""
    return shop().list_mail()


@tool(effect="read_only")
def read_mail(message_id: str) -> dict[str, str]:
    """Returns one message of the mailbox with its text.

    Args:
        message_id: Id of the message, such as m-2031.
    """
    try:
        return shop().mail(message_id)
    except ShopError as error:
        raise ToolError(str(error)) from error


@tool(effect="read_only")
def find_customer(email: str) -> dict[str, Any]:
    """Returns the customer with this mail address, and the ids of their orders."""
    try:
        return shop().customer(email)
    except ShopError as error:
        raise ToolError(str(error)) from error


@tool(effect="read_only")
def lookup_order(order_id: str) -> dict[str, Any]:
    """Returns one order with its invoice and what was refunded of it."""
    try:
        return shop().order(order_id)
    except ShopError as error:
        raise ToolError(str(error)) from error


@tool(effect="at_most_once")
def refund_invoice(context: ToolContext, invoice_id: str, amount_cents: int, reason: str) -> dict[str, Any]:
    """Sends money of a paid invoice back to the customer. It cannot be undone."""
    try:
        return shop().refund(invoice_id, amount_cents, reason, context.idempotency_key)
    except ShopError as error:
        raise ToolError(str(error)) from error


@tool(effect="idempotent")
def update_order(
    context: ToolContext,
    order_id: str,
    status: Literal["processing", "shipped", "delivered", "refunded", "cancelled"],
    note: str,
) -> dict[str, Any]:
    """Sets an order's status and the shop's note on it."""
    try:
        return shop().update_order(order_id, status, note, context.idempotency_key)
    except ShopError as error:
        raise ToolError(str(error)) from error


@tool(effect="at_most_once")
def send_reply(context: ToolContext, message_id: str, text: str) -> dict[str, Any]:
    """Answers a message of the mailbox."""
    try:
        return shop().send_reply(message_id, text, context.idempotency_key)
    except ShopError as error:
        raise ToolError(str(error)) from error
