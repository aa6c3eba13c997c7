"""The inside of the Python API: connections to the local daemon, futures, executors."""
