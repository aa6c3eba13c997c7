"""The real sides of the seams in `croft.ports`."""
