-- Keys of what this peer has for others, told again after a restart.
CREATE TABLE provided (
    key TEXT PRIMARY KEY NOT NULL
) STRICT;
