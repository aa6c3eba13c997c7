-- What is granted of this peer's resources now, and what was used under leases that have ended.
-- `amounts` is a JSON object of a whole number for each resource, `offer` one of the offer from which each of them is
-- drawn; times are Unix seconds.
CREATE TABLE lease (
    number INTEGER PRIMARY KEY NOT NULL,
    key TEXT NOT NULL,
    peer TEXT NOT NULL,
    twin TEXT NOT NULL,
    purpose TEXT NOT NULL,
    job TEXT NOT NULL,
    offer TEXT NOT NULL,
    amounts TEXT NOT NULL,
    granted_at REAL NOT NULL
) STRICT;

CREATE TABLE lease_usage (
    number INTEGER PRIMARY KEY NOT NULL,
    peer TEXT NOT NULL,
    twin TEXT NOT NULL,
    purpose TEXT NOT NULL,
    job TEXT NOT NULL,
    offer TEXT NOT NULL,
    amounts TEXT NOT NULL,
    granted_at REAL NOT NULL,
    ended_at REAL NOT NULL,
    cpu_s REAL NOT NULL,
    memory_peak_bytes INTEGER NOT NULL,
    received_bytes INTEGER NOT NULL,
    sent_bytes INTEGER NOT NULL,
    tasks INTEGER NOT NULL,
    death TEXT NOT NULL
) STRICT;
