-- Settings that the program itself keeps, and what a peer must remember over a restart.
CREATE TABLE setting (
    name TEXT PRIMARY KEY NOT NULL,
    value BLOB
) STRICT;

CREATE TABLE membership (
    community TEXT PRIMARY KEY NOT NULL,
    name TEXT NOT NULL,
    grant_chain BLOB NOT NULL,
    joined_at REAL NOT NULL
) STRICT;

CREATE TABLE invitation (
    id TEXT PRIMARY KEY NOT NULL,
    community TEXT NOT NULL,
    created_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('open', 'used', 'withdrawn', 'locked')),
    guesses_left INTEGER NOT NULL,
    used_by TEXT
) STRICT;

CREATE TABLE known_member (
    community TEXT NOT NULL,
    peer TEXT NOT NULL,
    record BLOB NOT NULL,
    seen_at REAL NOT NULL,
    PRIMARY KEY (community, peer)
) STRICT;

CREATE TABLE job (
    id TEXT PRIMARY KEY NOT NULL,
    kind TEXT NOT NULL,
    label TEXT NOT NULL,
    created_at REAL NOT NULL,
    ended_at REAL,
    state TEXT NOT NULL,
    tasks INTEGER NOT NULL DEFAULT 0,
    done INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX job_by_creation ON job (created_at);
