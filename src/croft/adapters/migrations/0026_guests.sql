-- Invitations by which somebody comes in as a guest.
ALTER TABLE invitation ADD COLUMN is_for_guest INTEGER NOT NULL DEFAULT 0;
