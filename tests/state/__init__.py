"""Tests of the state service."""
