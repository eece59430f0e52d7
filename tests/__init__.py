"""Tests; they mirror the source, plus suites about contracts, faults, journals and the repository itself."""
