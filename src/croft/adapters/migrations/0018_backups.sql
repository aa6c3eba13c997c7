-- Where the chunks of backups lie, and what was seen of files at the last run. Made anew from what holders keep.
CREATE TABLE backup_store (
    number INTEGER PRIMARY KEY NOT NULL,
    prefix BLOB NOT NULL UNIQUE,
    seen_for INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE backup_pack (
    number INTEGER PRIMARY KEY NOT NULL,
    store INTEGER NOT NULL,
    name BLOB NOT NULL,
    in_table BLOB NOT NULL,
    size INTEGER NOT NULL,
    UNIQUE (store, name)
) STRICT;

CREATE TABLE backup_chunk (
    store INTEGER NOT NULL,
    chunk BLOB NOT NULL,
    pack INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    size INTEGER NOT NULL,
    mark INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (store, chunk)
) STRICT, WITHOUT ROWID;

CREATE INDEX backup_chunk_of_pack ON backup_chunk (pack);

CREATE TABLE backup_seen (
    store INTEGER NOT NULL,
    path BLOB NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (store, path)
) STRICT, WITHOUT ROWID;

-- How the last run of each backup of this device ended.
CREATE TABLE backup_run (
    name TEXT PRIMARY KEY NOT NULL,
    record BLOB NOT NULL
) STRICT, WITHOUT ROWID;
