"""A support agent of a small shop: its data, its tools and its definitions."""
