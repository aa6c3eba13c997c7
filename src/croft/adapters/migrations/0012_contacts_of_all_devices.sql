-- Contacts are the same on all devices of a person: of two notes of one person the later counts, a removal too.
ALTER TABLE contact ADD COLUMN changed_at REAL NOT NULL DEFAULT 0;
ALTER TABLE contact ADD COLUMN is_forgotten INTEGER NOT NULL DEFAULT 0;
