-- What the owner offers besides what the settings lend. `lent` and `places` are JSON objects by resource, `recipients` a
-- JSON list of words, community ids and twin ids; `hours` a part of the week as people write it, empty: always.
CREATE TABLE own_offer (
    number INTEGER PRIMARY KEY NOT NULL,
    lent TEXT NOT NULL,
    recipients TEXT NOT NULL,
    hours TEXT NOT NULL,
    places TEXT NOT NULL,
    created_at REAL NOT NULL
) STRICT;
