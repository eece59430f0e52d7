"""How an account is connected: a link, the person's consent at the provider, and the initiator's confirmation."""
