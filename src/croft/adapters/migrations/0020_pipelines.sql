-- Values that this peer keeps for pipelines: each goes when it is released, or when nobody has wanted it for long.
CREATE TABLE kept_value (
    token BLOB PRIMARY KEY NOT NULL,
    keeper TEXT NOT NULL,
    size INTEGER NOT NULL,
    used_at REAL NOT NULL
) STRICT, WITHOUT ROWID;

-- Pipelines of this peer's owner.
CREATE TABLE pipeline (
    id TEXT PRIMARY KEY NOT NULL,
    spec BLOB NOT NULL,
    created_at REAL NOT NULL,
    ended_at REAL,
    state TEXT NOT NULL
) STRICT;

CREATE TABLE pipeline_item (
    pipeline TEXT NOT NULL REFERENCES pipeline (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    stage INTEGER NOT NULL,
    held BLOB NOT NULL,
    error TEXT NOT NULL,
    is_over INTEGER NOT NULL,
    PRIMARY KEY (pipeline, number)
) STRICT, WITHOUT ROWID;
