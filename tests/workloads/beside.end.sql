-- Left prepared when the server stops.
BEGIN;
CREATE TABLE pending (id serial PRIMARY KEY, v text);
SAVEPOINT one;
INSERT INTO pending (v) SELECT 'p' FROM generate_series(1, 100);
PREPARE TRANSACTION 'pending';
