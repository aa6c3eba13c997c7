"""The daemon: settings, the one composition root, supervision, health."""
