-- Jobs that outlive the program that submitted them: their tasks, and what came of each, once.
CREATE TABLE journal_job (
    number INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    id TEXT UNIQUE NOT NULL,
    spec BLOB NOT NULL,
    twin TEXT NOT NULL,
    submitter TEXT NOT NULL,
    delegates BLOB NOT NULL,
    carrier TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    created_at REAL NOT NULL,
    ended_at REAL,
    state TEXT NOT NULL CHECK (state IN ('filling', 'running', 'ended', 'cancelled')),
    tasks INTEGER NOT NULL DEFAULT 0,
    done INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE journal_function (
    job INTEGER NOT NULL REFERENCES journal_job ON DELETE CASCADE,
    digest BLOB NOT NULL,
    pickled BLOB NOT NULL,
    PRIMARY KEY (job, digest)
) STRICT;

-- Large arguments, once per job whatever the number of tasks that share them.
CREATE TABLE journal_value (
    job INTEGER NOT NULL REFERENCES journal_job ON DELETE CASCADE,
    digest BLOB NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (job, digest)
) STRICT;

CREATE TABLE journal_task (
    job INTEGER NOT NULL REFERENCES journal_job ON DELETE CASCADE,
    task INTEGER NOT NULL,
    function BLOB NOT NULL,
    arguments BLOB,
    value BLOB,
    PRIMARY KEY (job, task)
) STRICT, WITHOUT ROWID;

-- `place` counts in the order in which outcomes were recorded.
CREATE TABLE journal_outcome (
    place INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    job INTEGER NOT NULL REFERENCES journal_job ON DELETE CASCADE,
    task INTEGER NOT NULL,
    status INTEGER NOT NULL,
    payload BLOB NOT NULL,
    peer TEXT NOT NULL,
    UNIQUE (job, task)
) STRICT;
