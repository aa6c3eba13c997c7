"""Data sealed here, spread over peers of the owner's choice, and read back verified: docs/specs/storage.md."""
