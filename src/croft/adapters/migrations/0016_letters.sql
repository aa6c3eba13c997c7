-- Letters that this peer keeps, for its owner and for others, as they were signed. An empty recipient: of a room.
CREATE TABLE letter (
    community TEXT NOT NULL,
    recipient TEXT NOT NULL,
    room TEXT NOT NULL,
    device TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    author TEXT NOT NULL,
    written_at REAL NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (community, recipient, room, device, sequence)
) STRICT;

-- How far each feed was read here, or written.
CREATE TABLE letter_feed (
    community TEXT NOT NULL,
    recipient TEXT NOT NULL,
    room TEXT NOT NULL,
    device TEXT NOT NULL,
    next INTEGER NOT NULL,
    last BLOB NOT NULL,
    PRIMARY KEY (community, recipient, room, device)
) STRICT, WITHOUT ROWID;

-- Keys that letters brought, for the letters after them.
CREATE TABLE letter_key (
    community TEXT NOT NULL,
    recipient TEXT NOT NULL,
    room TEXT NOT NULL,
    device TEXT NOT NULL,
    number INTEGER NOT NULL,
    secret BLOB NOT NULL,
    came_at REAL NOT NULL,
    PRIMARY KEY (community, recipient, room, device, number)
) STRICT, WITHOUT ROWID;

-- What the owner of this peer was written, and wrote.
CREATE TABLE message (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    community TEXT NOT NULL,
    recipient TEXT NOT NULL,
    room TEXT NOT NULL,
    device TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    author TEXT NOT NULL,
    written_at REAL NOT NULL,
    arrived_at REAL NOT NULL,
    kind TEXT NOT NULL,
    text TEXT NOT NULL,
    answers TEXT NOT NULL,
    missing INTEGER NOT NULL,
    is_read INTEGER NOT NULL,
    delivered_at REAL
) STRICT;
