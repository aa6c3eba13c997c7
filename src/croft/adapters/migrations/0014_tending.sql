-- Whose data this peer looks after while they are away, as each device of theirs asked: `croft.storage.messages.Watch`.
CREATE TABLE watched (
    owner BLOB NOT NULL,
    device BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (owner, device)
) STRICT, WITHOUT ROWID;

-- How peers did when they were asked to prove that they hold what they say: as the owner of shares, or for one.
CREATE TABLE storage_standing (
    peer BLOB PRIMARY KEY NOT NULL,
    passed INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    failed_at REAL NOT NULL
) STRICT, WITHOUT ROWID;
