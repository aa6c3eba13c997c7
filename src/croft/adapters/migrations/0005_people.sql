-- What the owner notes of people: a name of his own for them, how far he trusts them, whom he blocks.
CREATE TABLE contact (
    twin TEXT PRIMARY KEY NOT NULL,
    petname TEXT NOT NULL,
    trust TEXT NOT NULL CHECK (trust IN ('none', 'low', 'normal', 'high')),
    is_blocked INTEGER NOT NULL CHECK (is_blocked IN (0, 1)),
    added_at REAL NOT NULL
) STRICT;
