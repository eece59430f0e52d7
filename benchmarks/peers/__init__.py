"""Holdfast beside DBOS, LangGraph and Restate: the same steps on the same machine, in interleaved rounds."""
