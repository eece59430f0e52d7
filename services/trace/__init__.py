"""The trace service: what happened and why, derived from the journal."""
