"""Fakes that keep state, for the protocols that several tests need."""
