-- The oldest xid and multixact move on only when every database is frozen; then something stays prepared.
ALTER DATABASE template0 ALLOW_CONNECTIONS true;
VACUUM FREEZE;
\connect template0
VACUUM FREEZE;
\connect template1
VACUUM FREEZE;
\connect copied
VACUUM FREEZE;
\connect logged
VACUUM FREEZE;
\connect moved
VACUUM FREEZE;
\connect postgres
VACUUM FREEZE;
CHECKPOINT;
BEGIN;
CREATE TABLE pending (id serial PRIMARY KEY, v text);
SAVEPOINT one;
INSERT INTO pending (v) SELECT 'p' FROM generate_series(1, 100);
PREPARE TRANSACTION 'pending';
