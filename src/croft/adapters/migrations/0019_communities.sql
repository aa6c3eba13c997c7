-- What people did in each community: signed operations, in an order that has parents before children.
CREATE TABLE community_operation (
    number INTEGER PRIMARY KEY NOT NULL,
    community TEXT NOT NULL,
    id BLOB NOT NULL,
    record BLOB NOT NULL,
    UNIQUE (community, id)
) STRICT;
