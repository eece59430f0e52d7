"""The state service: the journal, and everything that is read from it."""
