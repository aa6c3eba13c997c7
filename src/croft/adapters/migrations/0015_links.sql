-- Links to stored files. At the owner: those made here. At holders: what each leads to, as it was signed.
CREATE TABLE storage_link (
    id BLOB PRIMARY KEY NOT NULL,
    record BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE held_link (
    owner BLOB NOT NULL,
    id BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (owner, id)
) STRICT, WITHOUT ROWID;
