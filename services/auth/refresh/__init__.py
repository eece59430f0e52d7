"""Renewing tokens: one call at a time, and what it answered is kept, whoever dies (docs/decisions/0005-refresh.md)."""
