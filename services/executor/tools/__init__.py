"""Where and how tools run: schemas, outputs, HTTP endpoints, built-ins."""
