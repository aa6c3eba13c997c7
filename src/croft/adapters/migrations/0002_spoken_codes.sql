-- What a spoken code needs to be good after a restart, and when an invitation was used.
ALTER TABLE invitation ADD COLUMN nameplate INTEGER;
ALTER TABLE invitation ADD COLUMN secret TEXT;
ALTER TABLE invitation ADD COLUMN used_at REAL;
