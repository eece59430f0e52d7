"""Tests of the trace service."""
