"""Twins and communities: who belongs together by what rules, and what they do for each other by name."""
