-- What the administrator turned off for all nodes, and since when; 0 for on again.

CREATE TABLE switches (
  feature TEXT PRIMARY KEY CHECK (feature <> ''),
  off     INTEGER NOT NULL
) STRICT;
