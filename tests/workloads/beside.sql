-- Everything the log says beside heap and index pages: transaction status, commit times, multixacts,
-- two-phase state, databases, tablespaces, relation maps, truncation, origins, sequences.

CREATE TABLE t (id int PRIMARY KEY, n int, v text);
INSERT INTO t SELECT i, 0, repeat('x', 50) FROM generate_series(1, 8000) i;
CREATE TABLE other (id int, v text);
CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY, v text);
INSERT INTO unlogged SELECT i, 'u' FROM generate_series(1, 500) i;
CREATE TEMP TABLE temporary AS SELECT * FROM t LIMIT 100;
VACUUM t;

-- Multixacts past a page of offsets and several of members: a key share and an update by a subtransaction.
DO $$ BEGIN
  FOR i IN 1..2600 LOOP
    PERFORM 1 FROM t WHERE id = i FOR KEY SHARE;
    BEGIN
      UPDATE t SET n = n + 1 WHERE id = i;
    EXCEPTION WHEN division_by_zero THEN NULL;
    END;
  END LOOP;
END $$;

-- More subtransactions than a pg_xact page holds, every tenth of them aborted.
DO $$ BEGIN
  FOR i IN 1..33000 LOOP
    BEGIN
      INSERT INTO other VALUES (i, 's');
      IF i % 10 = 0 THEN RAISE EXCEPTION 'tenth'; END IF;
    EXCEPTION WHEN raise_exception THEN NULL;
    END;
  END LOOP;
END $$;

BEGIN;
INSERT INTO other VALUES (1, 'a');
SAVEPOINT one;
INSERT INTO other VALUES (2, 'b');
SAVEPOINT two;
DELETE FROM other WHERE id = 3;
ROLLBACK TO one;
INSERT INTO other VALUES (3, 'c');
COMMIT;
BEGIN;
CREATE TABLE never (id int PRIMARY KEY);
ROLLBACK;

-- Two-phase, with subtransactions, new files and dropped files.
BEGIN;
INSERT INTO other VALUES (4, 'd');
SAVEPOINT one;
INSERT INTO other VALUES (5, 'e');
CREATE TABLE by_prepared (id int);
DROP TABLE temporary;
ROLLBACK;
CREATE TABLE dropped_by_prepared AS SELECT 1 AS one;
BEGIN;
SAVEPOINT one;
CREATE TABLE by_prepared (id serial PRIMARY KEY, v text);
INSERT INTO by_prepared (v) SELECT 'p' FROM generate_series(1, 100);
DROP TABLE dropped_by_prepared;
PREPARE TRANSACTION 'committed';
SELECT count(*) FROM other;
COMMIT PREPARED 'committed';
BEGIN;
SAVEPOINT one;
CREATE TABLE by_aborted (id int PRIMARY KEY);
INSERT INTO by_aborted VALUES (1);
PREPARE TRANSACTION 'aborted';
ROLLBACK PREPARED 'aborted';

-- Truncation: a new file, a cut file with its maps, a dropped one.
CREATE TABLE cut (id int, v text);
INSERT INTO cut SELECT i, repeat('y', 500) FROM generate_series(1, 6000) i;
VACUUM (FREEZE) cut;
DELETE FROM cut WHERE id > 700;
VACUUM cut;
INSERT INTO cut SELECT i, repeat('z', 500) FROM generate_series(1, 300) i;
TRUNCATE other;
INSERT INTO other SELECT i, 'again' FROM generate_series(1, 100) i;
CREATE TABLE gone AS SELECT * FROM t;
CREATE INDEX ON gone (n);
DROP TABLE gone;
BEGIN;
TRUNCATE t;
ROLLBACK;

-- Visibility map: set, and cleared by each kind of change.
CREATE TABLE seen (id int PRIMARY KEY, v text);
INSERT INTO seen SELECT i, repeat('w', 90) FROM generate_series(1, 6000) i;
VACUUM (FREEZE) seen;
UPDATE seen SET v = 'hot' WHERE id = 10;
UPDATE seen SET id = -id WHERE id = 1000;
DELETE FROM seen WHERE id = 2000;
SELECT id FROM seen WHERE id = 3000 FOR UPDATE;
COPY seen FROM PROGRAM 'for i in $(seq 10001 10200); do echo "$i,c"; done' (FORMAT csv);
INSERT INTO seen VALUES (20000, 'one');

CREATE SEQUENCE numbers;
SELECT nextval('numbers') FROM generate_series(1, 100);
SELECT setval('numbers', 5000);
ALTER SEQUENCE numbers INCREMENT 7;

-- Origins: progress by a commit, set by hand, dropped.
SELECT pg_replication_origin_create('progress'), pg_replication_origin_create('by_hand'),
       pg_replication_origin_create('dropped');
SELECT pg_replication_origin_session_setup('progress');
BEGIN;
SELECT pg_replication_origin_xact_setup('7/123456', '2020-02-02 02:02:02+00');
INSERT INTO other VALUES (6, 'f');
COMMIT;
SELECT pg_replication_origin_session_reset();
SELECT pg_replication_origin_advance('by_hand', '8/77');
SELECT pg_replication_origin_advance('dropped', '9/99');
SELECT pg_replication_origin_drop('dropped');

-- Databases and tablespaces.
CREATE TABLESPACE place LOCATION '';
CREATE TABLE placed TABLESPACE place AS SELECT i FROM generate_series(1, 3000) i;
CREATE TABLESPACE brief LOCATION '';
CREATE TABLE briefly TABLESPACE brief AS SELECT 1 AS one;
DROP TABLE briefly;
DROP TABLESPACE brief;
CREATE DATABASE copied STRATEGY file_copy TEMPLATE template1;
CREATE DATABASE logged STRATEGY wal_log TEMPLATE template1;
CREATE DATABASE brief_copied STRATEGY file_copy;
CREATE DATABASE brief_logged STRATEGY wal_log;
DROP DATABASE brief_copied;
DROP DATABASE brief_logged;
CREATE DATABASE moved STRATEGY file_copy;
ALTER DATABASE moved SET TABLESPACE place;
VACUUM FULL pg_authid;

\connect copied
CREATE TABLE here AS SELECT i, 'copied' AS v FROM generate_series(1, 2000) i;
VACUUM here;
VACUUM FULL pg_class;
DELETE FROM here WHERE i = 5;
\connect logged
CREATE TABLE here AS SELECT i, 'logged' AS v FROM generate_series(1, 2000) i;
VACUUM FULL pg_proc;
