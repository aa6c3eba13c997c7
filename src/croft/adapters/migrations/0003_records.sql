-- Signed records of every kind, as gossip spreads them; and when each peer was last heard of.
CREATE TABLE record (
    kind TEXT NOT NULL,
    community TEXT NOT NULL,
    key TEXT NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (kind, community, key)
) STRICT;

CREATE TABLE heard_of (
    peer TEXT PRIMARY KEY NOT NULL,
    seen_at REAL NOT NULL
) STRICT;

INSERT INTO record SELECT 'member', community, peer, record FROM known_member;
INSERT INTO heard_of SELECT peer, max(seen_at) FROM known_member GROUP BY peer;
DROP TABLE known_member;
