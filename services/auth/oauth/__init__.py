"""The OAuth protocol as a client speaks it: requests from a provider's data, answers read without trust."""
