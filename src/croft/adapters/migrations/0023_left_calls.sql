-- Calls that the owner of this peer left for somebody who was away. The outcome is null while there is none.
CREATE TABLE left_call (
    id TEXT PRIMARY KEY NOT NULL,
    name TEXT NOT NULL,
    device TEXT NOT NULL,
    twin TEXT NOT NULL,
    left_at REAL NOT NULL,
    outcome BLOB
) STRICT, WITHOUT ROWID;
