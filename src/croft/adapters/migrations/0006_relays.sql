CREATE TABLE offer (
    what TEXT PRIMARY KEY,
    amount REAL NOT NULL,
    per_client REAL,
    communities BLOB NOT NULL,
    created_at REAL NOT NULL
) STRICT;

CREATE TABLE relay_usage (
    peer TEXT PRIMARY KEY,
    received_bytes INTEGER NOT NULL,
    sent_bytes INTEGER NOT NULL,
    dropped_frames INTEGER NOT NULL,
    since REAL NOT NULL
) STRICT;
