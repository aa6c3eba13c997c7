-- Shares of this owner that were moved since they were put: who holds them, if not who the list of files says.
CREATE TABLE moved_share (
    share BLOB PRIMARY KEY NOT NULL,
    peer BLOB NOT NULL
) STRICT, WITHOUT ROWID;
