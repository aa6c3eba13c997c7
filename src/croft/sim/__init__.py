"""Whole peers in one process on virtual time: simulated network and machine, seeded, repeatable."""
