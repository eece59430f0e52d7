"""The shop's own system: customers, orders, invoices and refunds in SQLite, a mailbox and an outbox of .eml files.

It knows nothing of Holdfast. `executions` is its own evidence: each call that wants to change something adds one row,
also a call that should never have come, so that counting rows tells how often a tool was really executed.
"""

from __future__ import annotations

import csv
import email
import email.policy
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent / "data"
MAILBOX = SOURCE / "mailbox"
SHOP_ADDRESS = "hello@lantern-and-loom.example"

_SCHEMA = """
CREATE TABLE customers (customer_id TEXT PRIMARY KEY, name TEXT, email TEXT UNIQUE, city TEXT, customer_since TEXT,
  tier TEXT);
CREATE TABLE orders (order_id TEXT PRIMARY KEY, customer_id TEXT REFERENCES customers, order_date TEXT, sku TEXT,
  product TEXT, quantity INTEGER, status TEXT, carrier TEXT, delivered_on TEXT, expected_on TEXT, note TEXT);
CREATE TABLE invoices (invoice_id TEXT PRIMARY KEY, order_id TEXT REFERENCES orders, customer_id TEXT,
  invoice_date TEXT, total_cents INTEGER, currency TEXT, status TEXT, payment_method TEXT);
CREATE TABLE refunds (refund_id TEXT PRIMARY KEY, invoice_id TEXT REFERENCES invoices, amount_cents INTEGER,
  reason TEXT, refunded_at TEXT, idempotency_key TEXT);
CREATE TABLE executions (id INTEGER PRIMARY KEY, tool TEXT, subject TEXT, idempotency_key TEXT, process_id INTEGER,
  executed_at TEXT);
"""


class ShopError(Exception):
    """The shop says no; the text says why and may be shown to the model."""


class Shop:
    """The shop's system in one folder, made from the files in `data` when the folder is new."""

    def __init__(self, folder: Path, *, bank_seconds: float = 0.0) -> None:
        self.folder = folder
        self.outbox = folder / "outbox"
        self._database = folder / "shop.db"
        self._bank_seconds = bank_seconds
        self.outbox.mkdir(parents=True, exist_ok=True)
        if not self._database.exists():
            self._import()

    # ------------------------------------------------------------------------------------------------------- reading

    def list_mail(self) -> list[dict[str, str]]:
        """Returns the mailbox, oldest first."""
        mails = [self._mail(path) for path in sorted(MAILBOX.glob("*.eml"))]
        return [{name: mail[name] for name in ("message_id", "from", "subject", "date")} for mail in mails]

    def mail(self, message_id: str) -> dict[str, str]:
        """Returns one message with its text."""
        path = MAILBOX / f"{message_id}.eml"
        # The id comes from a model: it names a file of the mailbox and nothing else.
        if path.parent != MAILBOX or path not in set(MAILBOX.glob("*.eml")):
            raise ShopError(f"there is no message {message_id!r}; list_mail names those that exist")
        return self._mail(path)

    def customer(self, email_address: str) -> dict[str, Any]:
        """Returns the customer with this address, with the ids of their orders."""
        with self._read() as connection:
            row = connection.execute(
                "SELECT * FROM customers WHERE email = ?", (email_address.strip().lower(),)
            ).fetchone()
            if row is None:
                raise ShopError(f"no customer has the address {email_address!r}")
            orders = connection.execute(
                "SELECT order_id FROM orders WHERE customer_id = ? ORDER BY order_id", (row["customer_id"],)
            ).fetchall()
        return {**dict(row), "orders": [order["order_id"] for order in orders]}

    def order(self, order_id: str) -> dict[str, Any]:
        """Returns one order with its invoice and what was refunded."""
        with self._read() as connection:
            row = connection.execute("SELECT * FROM orders WHERE order_id = ?", (order_id,)).fetchone()
            if row is None:
                raise ShopError(f"there is no order {order_id!r}")
            invoice = connection.execute("SELECT * FROM invoices WHERE order_id = ?", (order_id,)).fetchone()
            refunded = self._refunded_cents(connection, invoice["invoice_id"])
        return {**dict(row), "invoice": {**dict(invoice), "refunded_cents": refunded}}

    def executions(self) -> list[dict[str, Any]]:
        """Returns what was executed, in order."""
        with self._read() as connection:
            return [dict(row) for row in connection.execute("SELECT * FROM executions ORDER BY id")]

    def refunded_cents(self, invoice_id: str) -> int:
        """Returns the sum of an invoice's refunds."""
        with self._read() as connection:
            return self._refunded_cents(connection, invoice_id)

    # ------------------------------------------------------------------------------------------------------ changing

    def refund(self, invoice_id: str, amount_cents: int, reason: str, idempotency_key: str) -> dict[str, Any]:
        """Sends money back. This bank does not look at the key: who asks twice may pay twice."""
        self._note_execution("refund_invoice", invoice_id, idempotency_key)
        with self._write() as connection:
            invoice = connection.execute("SELECT * FROM invoices WHERE invoice_id = ?", (invoice_id,)).fetchone()
            if invoice is None:
                raise ShopError(f"there is no invoice {invoice_id!r}")
            left = invoice["total_cents"] - self._refunded_cents(connection, invoice_id)
            if not 0 < amount_cents <= left:
                raise ShopError(f"{amount_cents} cents cannot be refunded: {left} cents of {invoice_id} are left")
            count = connection.execute("SELECT count(*) FROM refunds").fetchone()[0]
            refund_id = f"R-{501 + count}"
            connection.execute(
                "INSERT INTO refunds VALUES (?, ?, ?, ?, ?, ?)",
                (refund_id, invoice_id, amount_cents, reason, _now(), idempotency_key),
            )
            status = "refunded" if amount_cents == left else "partly_refunded"
            connection.execute("UPDATE invoices SET status = ? WHERE invoice_id = ?", (status, invoice_id))
        # The money has moved; the bank's confirmation takes a moment. Who dies now leaves an effect without a result.
        time.sleep(self._bank_seconds)
        return {"refund_id": refund_id, "invoice_id": invoice_id, "amount_cents": amount_cents, "status": status}

    def update_order(self, order_id: str, status: str, note: str, idempotency_key: str) -> dict[str, Any]:
        """Sets an order's status and note: doing it again leaves the same order behind."""
        self._note_execution("update_order", order_id, idempotency_key)
        with self._write() as connection:
            if connection.execute("SELECT 1 FROM orders WHERE order_id = ?", (order_id,)).fetchone() is None:
                raise ShopError(f"there is no order {order_id!r}")
            connection.execute("UPDATE orders SET status = ?, note = ? WHERE order_id = ?", (status, note, order_id))
        return {"order_id": order_id, "status": status}

    def send_reply(self, message_id: str, text: str, idempotency_key: str) -> dict[str, Any]:
        """Answers a message: writes the reply to the outbox."""
        original = self.mail(message_id)
        number = self._note_execution("send_reply", message_id, idempotency_key)
        reply = EmailMessage(policy=email.policy.SMTP)
        reply["From"] = SHOP_ADDRESS
        reply["To"] = original["from"]
        reply["Subject"] = f"Re: {original['subject']}"
        reply["In-Reply-To"] = original["header_id"]
        reply.set_content(text)
        path = self.outbox / f"{number:03d}-{message_id}.eml"
        path.write_bytes(reply.as_bytes())
        return {"sent_to": original["from"], "file": path.name}

    # ------------------------------------------------------------------------------------------------------- private

    def _import(self) -> None:
        # Built beside its place and then moved: whoever finds the file finds all of it.
        unfinished = self._database.with_suffix(f".{os.getpid()}.new")
        with closing(sqlite3.connect(unfinished)) as connection, connection:
            connection.executescript(_SCHEMA)
            for table in ("customers", "orders", "invoices", "refunds"):
                with (SOURCE / f"{table}.csv").open(encoding="utf-8", newline="") as file:
                    rows = csv.DictReader(file)
                    names = list(rows.fieldnames or ())
                    marks = ", ".join("?" for _ in names)
                    connection.executemany(
                        f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})",
                        ([row[name] for name in names] for row in rows),
                    )
        os.replace(unfinished, self._database)

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._database, timeout=10)) as connection:
            connection.row_factory = sqlite3.Row
            yield connection

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._database, timeout=10, isolation_level=None)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @staticmethod
    def _refunded_cents(connection: sqlite3.Connection, invoice_id: str) -> int:
        query = "SELECT coalesce(sum(amount_cents), 0) FROM refunds WHERE invoice_id = ?"
        return int(connection.execute(query, (invoice_id,)).fetchone()[0])

    def _note_execution(self, tool: str, subject: str, idempotency_key: str) -> int:
        # A transaction of its own: the row stays even if the shop then refuses the call.
        with self._write() as connection:
            cursor = connection.execute(
                "INSERT INTO executions (tool, subject, idempotency_key, process_id, executed_at)"
                " VALUES (?, ?, ?, ?, ?)",
                (tool, subject, idempotency_key, os.getpid(), _now()),
            )
            return int(cursor.lastrowid or 0)

    @staticmethod
    def _mail(path: Path) -> dict[str, str]:
        message = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
        body = message.get_body(preferencelist=("plain",))
        return {
            "message_id": path.stem,
            "header_id": str(message["Message-ID"]),
            "from": str(message["From"]),
            "subject": str(message["Subject"]),
            "date": str(message["Date"]),
            "text": body.get_content() if body is not None else "",
        }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
