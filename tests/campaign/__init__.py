"""The crash campaign: a suite under load, faults from a seed, and what must be true afterwards. `make campaign`."""
