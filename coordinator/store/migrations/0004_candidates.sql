-- The document in audit beside the policy. Every version is kept; the highest
-- epoch counts, and an empty text says that there is none.

CREATE TABLE candidates (
  epoch  INTEGER PRIMARY KEY CHECK (epoch > 0),
  text   TEXT NOT NULL,
  set_at INTEGER NOT NULL
) STRICT;
