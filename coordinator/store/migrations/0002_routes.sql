-- What a device offers to route, and what an administrator approved of it:
-- prefixes as text, joined by commas.

ALTER TABLE devices ADD COLUMN advertised TEXT NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN approved TEXT NOT NULL DEFAULT '';
