-- Definitions and snapshots of backups as they are in the list of files, to be read while no holder is up.
CREATE TABLE backup_record (
    name BLOB PRIMARY KEY NOT NULL,
    content BLOB NOT NULL,
    data BLOB NOT NULL
) STRICT, WITHOUT ROWID;
