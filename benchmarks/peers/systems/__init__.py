"""One program for each system; a peer's runs in an environment of its own and imports nothing of Holdfast."""
