"""The local API: JSON over HTTP on one Unix socket for asking, frames on another for work that streams."""
