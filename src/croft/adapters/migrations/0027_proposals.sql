-- At holders: what others wrote by links, and the links' owners have not taken in yet, as it was signed.
CREATE TABLE held_proposal (
    owner BLOB NOT NULL,
    id BLOB NOT NULL,
    device BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (owner, id, device)
) STRICT, WITHOUT ROWID;
