"""Rules about the repository, held by tests: imports, generated code, the wheel, the documents."""
