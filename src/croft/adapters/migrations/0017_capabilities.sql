-- What the owner of this peer lets others call. `source` is JSON: where it is found on this machine; `terms` as it is
-- signed for others; `recipients` a JSON list of words, community ids and twin ids; `consent` what holds unless a rule
-- says otherwise.
CREATE TABLE own_capability (
    name TEXT PRIMARY KEY NOT NULL,
    source TEXT NOT NULL,
    terms BLOB NOT NULL,
    recipients TEXT NOT NULL,
    consent TEXT NOT NULL,
    slots INTEGER NOT NULL,
    created_at REAL NOT NULL
) STRICT, WITHOUT ROWID;
