"""Tests of the executor service."""
