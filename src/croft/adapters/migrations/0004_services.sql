-- Services of this machine that others may reach. `grantees` is JSON: whom they are for.
CREATE TABLE exposure (
    name TEXT PRIMARY KEY NOT NULL,
    port INTEGER NOT NULL,
    protocol TEXT NOT NULL CHECK (protocol IN ('tcp', 'udp')),
    grantees TEXT NOT NULL,
    created_at REAL NOT NULL,
    expires_at REAL
) STRICT;
