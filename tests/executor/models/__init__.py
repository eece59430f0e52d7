"""Tests of the model providers: against a foreign mock server, against recorded error answers, and of the script."""
