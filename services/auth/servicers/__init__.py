"""Auth's RPCs: a message becomes a call of the domain, and its result a message again."""
