-- What the owner decided beforehand about calls of capabilities. `capability` empty: all of them; `who`: a word, a role,
-- or the id of a person or, if `is_community`, of a community.
CREATE TABLE consent_rule (
    number INTEGER PRIMARY KEY NOT NULL,
    capability TEXT NOT NULL,
    who TEXT NOT NULL,
    verdict TEXT NOT NULL,
    per_day INTEGER NOT NULL,
    is_community INTEGER NOT NULL
) STRICT;

-- How many calls of a person a rule with an amount has let in; `day` counts from 1970, UTC.
CREATE TABLE consent_use (
    rule INTEGER NOT NULL,
    twin TEXT NOT NULL,
    day INTEGER NOT NULL,
    calls INTEGER NOT NULL,
    PRIMARY KEY (rule, twin)
) STRICT, WITHOUT ROWID;

-- What others did here; see `croft.twins.audit`. Each line's link covers the one before; the head is signed.
CREATE TABLE audit_line (
    number INTEGER PRIMARY KEY NOT NULL,
    text BLOB NOT NULL,
    link BLOB NOT NULL
) STRICT;

CREATE TABLE audit_head (
    id INTEGER PRIMARY KEY NOT NULL CHECK (id = 1),
    record BLOB NOT NULL
) STRICT;
