"""Spend: what calls to external providers cost, kept on disk and shared by all processes of a user."""

from __future__ import annotations

from taskrouter.spend.books import Spent
from taskrouter.spend.file import SpendUnreadable, default_path, read_spent
from taskrouter.spend.ledger import SpendLedger

__all__ = ["SpendLedger", "SpendUnreadable", "Spent", "default_path", "read_spent"]
