"""A discrete-event simulation of leases, fairness and wake-ups: the real store functions on a virtual clock."""
