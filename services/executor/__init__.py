"""The executor service: drives runs through models and tools, and serves the public API."""
