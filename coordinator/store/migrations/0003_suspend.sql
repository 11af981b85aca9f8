-- Since when a user is suspended.

ALTER TABLE users ADD COLUMN suspended INTEGER NOT NULL DEFAULT 0;
