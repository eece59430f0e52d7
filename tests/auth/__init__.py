"""The auth service, from the form of a key to a killed process."""
