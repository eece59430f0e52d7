"""Contract suites: one for each seam, run on everything that stands behind it."""
