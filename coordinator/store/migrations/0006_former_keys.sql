-- Node keys that no device has any more though none was revoked with them, and since
-- when: relays are told of them for a while, also after a restart.

CREATE TABLE former_keys (
  node_key BLOB PRIMARY KEY CHECK (length(node_key) = 32),
  ended    INTEGER NOT NULL
) STRICT;
