-- Communities that this peer's owner left or was removed from: another device may not know it yet.
CREATE TABLE left_community (
    community TEXT PRIMARY KEY NOT NULL,
    left_at REAL NOT NULL
) STRICT;
