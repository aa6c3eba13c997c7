"""Splits work over peers, runs the work of others in boxes."""
