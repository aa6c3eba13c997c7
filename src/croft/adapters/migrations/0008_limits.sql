-- The owner's rate limits. `rate` in bytes a second; a column that is NULL limits whatever there is.
CREATE TABLE traffic_limit (
    number INTEGER PRIMARY KEY NOT NULL,
    rate REAL NOT NULL,
    peer TEXT,
    purpose TEXT,
    direction TEXT CHECK (direction IN ('up', 'down')),
    hours TEXT
) STRICT;
