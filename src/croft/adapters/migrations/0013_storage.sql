-- What is kept of stored files. At holders: the newest head of each device of each owner, as it was signed.
CREATE TABLE held_head (
    owner BLOB NOT NULL,
    device BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (owner, device)
) STRICT, WITHOUT ROWID;

-- At the owner: the newest head of each device, and nodes of the file list, by the key of their content.
CREATE TABLE storage_head (
    device BLOB PRIMARY KEY NOT NULL,
    sequence INTEGER NOT NULL,
    record BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE storage_node (
    content BLOB PRIMARY KEY NOT NULL,
    plain BLOB NOT NULL
) STRICT;
