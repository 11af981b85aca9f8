-- Times are milliseconds since 1970 in UTC; 0 stands for "never".

CREATE TABLE network (
  id      INTEGER PRIMARY KEY CHECK (id = 1),
  genesis BLOB NOT NULL
) STRICT;

-- What was handed out last; see registry.Counters.
CREATE TABLE counters (
  id     INTEGER PRIMARY KEY CHECK (id = 1),
  user   INTEGER NOT NULL,
  node   INTEGER NOT NULL,
  serial INTEGER NOT NULL,
  host   INTEGER NOT NULL
) STRICT;
INSERT INTO counters VALUES (1, 0, 0, 0, 0);

CREATE TABLE users (
  id      INTEGER PRIMARY KEY CHECK (id > 0),
  login   TEXT NOT NULL UNIQUE,
  created INTEGER NOT NULL
) STRICT;

-- hash is the SHA-256 of 256 random bits: it is of no use to who reads it.
CREATE TABLE auth_keys (
  id        TEXT PRIMARY KEY CHECK (id <> ''),
  hash      BLOB NOT NULL CHECK (length(hash) = 32),
  user      INTEGER REFERENCES users (id),
  tags      TEXT NOT NULL,
  reusable  INTEGER NOT NULL CHECK (reusable IN (0, 1)),
  ephemeral INTEGER NOT NULL CHECK (ephemeral IN (0, 1)),
  created   INTEGER NOT NULL,
  expires   INTEGER NOT NULL,
  revoked   INTEGER NOT NULL,
  uses      INTEGER NOT NULL,
  CHECK (reusable = 1 OR uses <= 1),
  CHECK ((user IS NULL) = (tags <> ''))
) STRICT;

CREATE TABLE devices (
  id              INTEGER PRIMARY KEY CHECK (id > 0),
  machine_key     BLOB NOT NULL UNIQUE CHECK (length(machine_key) = 32),
  node_key        BLOB NOT NULL UNIQUE CHECK (length(node_key) = 32),
  name            TEXT NOT NULL UNIQUE CHECK (name <> ''),
  owner           INTEGER REFERENCES users (id),
  tags            TEXT NOT NULL,
  ipv4            BLOB NOT NULL UNIQUE CHECK (length(ipv4) = 4),
  ipv6            BLOB NOT NULL UNIQUE CHECK (length(ipv6) = 16),
  ephemeral       INTEGER NOT NULL CHECK (ephemeral IN (0, 1)),
  auth_key        TEXT NOT NULL REFERENCES auth_keys (id),
  program_version TEXT NOT NULL,
  os              TEXT NOT NULL,
  os_version      TEXT NOT NULL,
  architecture    TEXT NOT NULL,
  created         INTEGER NOT NULL,
  CHECK ((owner IS NULL) = (tags <> ''))
) STRICT;

-- When a device was last connected: no change of the network, hence without an
-- audit entry.
CREATE TABLE last_seen (
  device INTEGER PRIMARY KEY REFERENCES devices (id) ON DELETE CASCADE,
  time   INTEGER NOT NULL
) STRICT;

CREATE TABLE certificates (
  device     INTEGER PRIMARY KEY REFERENCES devices (id) ON DELETE CASCADE,
  serial     INTEGER NOT NULL UNIQUE,
  not_before INTEGER NOT NULL,
  not_after  INTEGER NOT NULL,
  signed     BLOB NOT NULL
) STRICT;

-- Kept for ever: neither key is admitted again.
CREATE TABLE revocations (
  device      INTEGER PRIMARY KEY,
  machine_key BLOB NOT NULL UNIQUE CHECK (length(machine_key) = 32),
  node_key    BLOB NOT NULL UNIQUE CHECK (length(node_key) = 32),
  name        TEXT NOT NULL,
  owner       INTEGER REFERENCES users (id),
  revoked     INTEGER NOT NULL
) STRICT;

-- Every version is kept; the highest epoch is in force.
CREATE TABLE policies (
  epoch INTEGER PRIMARY KEY CHECK (epoch > 0),
  text  TEXT NOT NULL,
  set_at INTEGER NOT NULL
) STRICT;

CREATE TABLE audit (
  idx   INTEGER PRIMARY KEY CHECK (idx > 0),
  entry BLOB NOT NULL,
  hash  BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT;
