"""Tests of the public servicers."""
