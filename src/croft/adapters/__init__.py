"""The real implementations of `croft.ports`: iroh, SQLite, threads, the system's clock and entropy."""
