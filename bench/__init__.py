"""Measures Croft beside what people would take instead, on the same work in the same run."""
