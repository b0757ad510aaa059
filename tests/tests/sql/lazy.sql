-- What a branch does with files that are not there yet. Each step can be run again from its beginning, wherever it
-- was broken off, and asserts what it can know.
-- step: databases by both strategies, of one that nobody has touched
DROP DATABASE IF EXISTS by_wal WITH (FORCE);
DROP DATABASE IF EXISTS by_copy WITH (FORCE);
CREATE DATABASE by_copy TEMPLATE untouched STRATEGY file_copy;
CREATE DATABASE by_wal TEMPLATE untouched STRATEGY wal_log;
\c by_wal
SET enable_seqscan = off;
DO $$ BEGIN ASSERT (SELECT count(*) || ' ' || sum(n) FROM cargo WHERE v = md5(n::text) AND filler = repeat('x', 200)) = '5000 12502500'; END $$;
DO $$ BEGIN ASSERT (SELECT count(*) FROM cargo WHERE n = 77) = 1; ASSERT nextval('untouched_counter') > 77; END $$;
INSERT INTO light VALUES (1);
\c by_copy
DO $$ BEGIN ASSERT (SELECT count(*) || ' ' || sum(n) FROM cargo WHERE v = md5(n::text) AND filler = repeat('x', 200)) = '5000 12502500'; END $$;
DO $$ BEGIN ASSERT (SELECT n FROM cargo WHERE v = md5('4711')) = 4711; ASSERT nextval('untouched_counter') > 77; END $$;
UPDATE cargo SET filler = 'changed' WHERE n % 10 = 0;
INSERT INTO light VALUES (1);
-- step: a database moves to another tablespace
ALTER DATABASE mover SET TABLESPACE place;
\c mover
DO $$ BEGIN ASSERT (SELECT count(*) || ' ' || sum(n) FROM cargo WHERE v = md5(n::text) AND filler = repeat('x', 200)) = '5000 12502500'; END $$;
REFRESH MATERIALIZED VIEW summed;
-- step: a database goes unread
DROP DATABASE IF EXISTS unwanted WITH (FORCE);
DROP TABLE IF EXISTS to_drop;
-- step: a table moves to another tablespace
ALTER TABLE to_move SET TABLESPACE place;
ALTER INDEX to_move_n_idx SET TABLESPACE place;
DO $$ BEGIN ASSERT (SELECT count(*) || ' ' || sum(n) FROM to_move WHERE filler = repeat('m', 200)) = '4000 8002000'; END $$;
-- step: an index of every access method
DROP INDEX IF EXISTS to_index_btree, to_index_hash, to_index_gin, to_index_gist, to_index_spgist, to_index_brin, to_index_expression;
SET max_parallel_maintenance_workers = 2;
SET min_parallel_table_scan_size = 0;
CREATE INDEX to_index_btree ON to_index (v) INCLUDE (k);
CREATE INDEX to_index_hash ON to_index USING hash (k);
CREATE INDEX to_index_gin ON to_index USING gin (w);
CREATE INDEX to_index_gist ON to_index USING gist (p);
CREATE INDEX to_index_spgist ON to_index USING spgist (v);
CREATE INDEX to_index_brin ON to_index USING brin (n) WITH (pages_per_range = 2);
CREATE INDEX CONCURRENTLY to_index_expression ON to_index (lower(v)) WHERE n % 2 = 0;
SET enable_seqscan = off;
DO $$ BEGIN ASSERT (SELECT count(*) FROM to_index WHERE k = 7) = 12; ASSERT (SELECT n FROM to_index WHERE v = md5('99')) = 99; END $$;
-- step: the old indexes, read and written
SET enable_seqscan = off;
DELETE FROM things WHERE id > 6000;
DO $$ BEGIN
    ASSERT (SELECT count(*) FROM things WHERE k = 7) = 9;
    ASSERT (SELECT count(*) FROM things WHERE words @@ to_tsquery('simple', md5('5'))) >= 60;
    ASSERT (SELECT count(*) FROM things WHERE tags @> ARRAY['t3', 'u3']) = 18;
    ASSERT (SELECT count(*) FROM things WHERE place <@ box '(0,0),(5,5)') > 0;
    ASSERT (SELECT id FROM things WHERE name = md5('1234')) = 1234;
    ASSERT (SELECT count(*) FROM things WHERE id BETWEEN 100 AND 199) = 100;
END $$;
INSERT INTO things (id, k, words, tags, place, name, note)
    SELECT 100000 + n, n % 700, to_tsvector('simple', md5(n::text)), ARRAY['t' || n % 50], point(n % 97, n % 89), md5(n::text) || 'x', 'new'
    FROM generate_series(1, 2000) n;
DELETE FROM things WHERE id > 101000;
VACUUM things;
REINDEX INDEX things_gist;
REINDEX INDEX CONCURRENTLY things_gin;
REFRESH MATERIALIZED VIEW CONCURRENTLY by_k;
-- step: rewritten whole
VACUUM FULL to_rewrite;
DO $$ BEGIN ASSERT (SELECT count(*) || ' ' || sum(n) FROM to_rewrite WHERE v = md5(n::text)) = '2000 4000000'; END $$;
CLUSTER to_cluster USING to_cluster_v;
DO $$ BEGIN ASSERT (SELECT count(*) || ' ' || sum(n) FROM to_cluster WHERE v = md5(n::text)) = '4000 8002000'; END $$;
VACUUM FULL pg_class;
VACUUM FULL pg_depend;
REINDEX TABLE pg_attribute;
ALTER TABLE to_cluster ALTER COLUMN n TYPE bigint;
-- step: truncated, and grown again
BEGIN;
TRUNCATE to_truncate;
INSERT INTO to_truncate SELECT n, 'undone' FROM generate_series(1, 500) n;
ROLLBACK;
DO $$ BEGIN ASSERT (SELECT count(*) FROM to_truncate) >= 2000; END $$;
TRUNCATE to_truncate;
INSERT INTO to_truncate SELECT n, repeat('T', 400) FROM generate_series(1, 2000) n;
DO $$ BEGIN ASSERT (SELECT count(*) FROM to_truncate WHERE filler = repeat('T', 400)) = 2000; END $$;
-- step: cut by VACUUM, and grown again
DELETE FROM to_cut WHERE n > 1000;
VACUUM (TRUNCATE) to_cut;
DO $$ BEGIN ASSERT (SELECT count(*) FROM to_cut WHERE filler = repeat('c', 400)) = 1000; END $$;
INSERT INTO to_cut SELECT n, repeat('C', 400) FROM generate_series(1001, 5000) n;
CHECKPOINT;
DO $$ BEGIN ASSERT (SELECT count(*) || ' ' || sum(n) FROM to_cut) = '5000 12502500'; END $$;
-- step: large sorts and temporary tables
SET work_mem = '64kB';
SET temp_buffers = '800kB';
CREATE TEMP TABLE heap AS SELECT * FROM to_read ORDER BY v;
CREATE INDEX ON heap (v);
-- Stock 18.4 runs out of local buffers here.
SELECT current_setting('server_version_num')::int < 180000 AS can_update \gset
\if :can_update
UPDATE heap SET filler = 'changed' WHERE n % 3 = 0;
\endif
DO $$ BEGIN ASSERT (SELECT count(*) FROM (SELECT v, row_number() OVER (ORDER BY filler, v DESC) FROM heap) x) = 8000; END $$;
DO $$ BEGIN ASSERT (SELECT count(*) FROM to_read a JOIN to_read b USING (v)) = 8000; END $$;
DROP TABLE heap;
-- step: unlogged tables
TRUNCATE scratch;
INSERT INTO scratch SELECT n, repeat('s', 300) FROM generate_series(1, 3000) n;
CHECKPOINT;
DO $$ BEGIN ASSERT (SELECT count(*) FROM scratch WHERE filler = repeat('s', 300)) = 3000; END $$;
DROP TABLE IF EXISTS scratch_made;
CREATE UNLOGGED TABLE scratch_made AS SELECT * FROM to_read;
ALTER TABLE scratch_made SET LOGGED;
DO $$ BEGIN ASSERT (SELECT count(*) FROM scratch_made WHERE v = md5(n::text)) = 8000; END $$;
-- step: files read past the buffers
DO $$ DECLARE path text; part bytea; whole bytea; step int := 5000; BEGIN
    SELECT pg_relation_filepath('wide_pkey') INTO path;
    whole := pg_read_binary_file(path);
    ASSERT length(whole) = pg_relation_size('wide_pkey') AND length(whole) = (pg_stat_file(path)).size;
    part := '';
    WHILE length(part) < length(whole) LOOP
        part := part || pg_read_binary_file(path, length(part), step);
        step := step + 777;
    END LOOP;
    ASSERT part = whole;
    -- A page of a btree that is there has a header; the first has its magic number.
    ASSERT substr(whole, 25, 4) = '\x62310500'::bytea;
    SELECT pg_relation_filepath('wide') INTO path;
    whole := pg_read_binary_file(path);
    FOR block IN 0 .. length(whole) / 8192 - 1 LOOP
        ASSERT substr(whole, block * 8192 + 13, 2) <> '\x0000'::bytea, 'a page without a header';
    END LOOP;
END $$;
-- step: the environment of what Postgres starts
CREATE TEMP TABLE environment (line text);
COPY environment FROM PROGRAM 'env; ls -l /proc/self/fd';
DO $$ BEGIN ASSERT NOT EXISTS (SELECT FROM environment WHERE line ~ 'LD_PRELOAD|TREERING|/dev/shm|treering-pages'); END $$;
-- step: savepoints and subtransactions
DELETE FROM many WHERE n > 20000;
BEGIN;
SAVEPOINT a;
INSERT INTO many SELECT 20000 + n, 'kept' FROM generate_series(1, 100) n;
SAVEPOINT b;
INSERT INTO many SELECT 30000 + n, 'rolled back' FROM generate_series(1, 100) n;
ROLLBACK TO b;
COMMIT;
DO $$ BEGIN FOR i IN 1..300 LOOP BEGIN INSERT INTO many VALUES (40000 + i, 'sub'); IF i % 3 = 0 THEN RAISE division_by_zero; END IF;
    EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$;
DO $$ BEGIN ASSERT (SELECT count(*) FROM many WHERE n > 20000) = 300; ASSERT (SELECT count(*) FROM many WHERE v = 'sub' AND n < 20000) = 200; END $$;
-- step: rows locked by many
BEGIN;
SAVEPOINT s;
SELECT count(*) FROM (SELECT * FROM to_lock FOR SHARE) x;
UPDATE to_lock SET locked = locked + 1 WHERE n % 2 = 0;
SAVEPOINT t;
SELECT count(*) FROM (SELECT * FROM to_lock FOR UPDATE) x;
ROLLBACK TO t;
COMMIT;
DO $$ BEGIN ASSERT (SELECT count(*) FROM to_lock) = 3000; END $$;
-- step: large objects, TOAST, sequences
DO $$ DECLARE object oid; BEGIN
    FOR object IN SELECT oid FROM pg_largeobject_metadata LOOP
        ASSERT length(lo_get(object)) >= 6400;
        PERFORM lo_put(object, 6400, 'more');
    END LOOP;
    ASSERT (SELECT count(*) FROM wide WHERE blob = repeat(md5(id::text), 300) OR blob = 'short') = 400;
    ASSERT nextval('counter') > 1000;
END $$;
UPDATE wide SET blob = repeat(md5(id::text), 300) WHERE id % 4 = 0;
UPDATE wide SET blob = 'short' WHERE id % 40 = 1;
VACUUM wide;
-- step: rows updated round after round, with vacuum between
UPDATE to_update SET rounds = rounds + 1;
CHECKPOINT;
UPDATE to_update SET rounds = rounds + 1 WHERE n % 3 = 0;
VACUUM (FREEZE) to_update;
UPDATE to_update SET filler = repeat('v', 100) WHERE n % 5 = 0;
CHECKPOINT;
DO $$ BEGIN ASSERT (SELECT count(*) || ' ' || sum(n) FROM to_update WHERE rounds >= 1) = '10000 50005000'; END $$;
-- step: rows move between partitions
UPDATE part SET k = k + 2000 WHERE k < 500;
DO $$ BEGIN ASSERT (SELECT count(*) FROM part) = 2000; ASSERT (SELECT count(*) FROM part3) = 500; END $$;
TRUNCATE part2;
INSERT INTO part SELECT n, 'v' || n FROM generate_series(1000, 1999) n;
-- step: prewarmed in each way
SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_prewarm') AS has_prewarm \gset
\if :has_prewarm
SELECT pg_prewarm('to_read', 'prefetch'), pg_prewarm('to_read', 'read'), pg_prewarm('to_read', 'buffer');
SELECT pg_prewarm('pgbench_accounts_pkey', 'buffer'), pg_prewarm('pgbench_accounts', 'prefetch');
\endif
-- step: everything once, in parallel
SET min_parallel_table_scan_size = 0;
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
DO $$ BEGIN
    ASSERT (SELECT count(*) || ' ' || sum(n) FROM to_read WHERE v = md5(n::text) AND filler = repeat('s', 500)) = '8000 32004000';
    ASSERT (SELECT count(*) FROM pgbench_accounts WHERE aid > 0) = 200000;
END $$;
-- step: prepared for a start in between
SELECT format('ROLLBACK PREPARED %L', gid) FROM pg_prepared_xacts WHERE database = current_database() \gexec
DELETE FROM many WHERE n > 50000;
BEGIN; INSERT INTO many VALUES (50001, 'one'); SELECT count(*) FROM (SELECT * FROM to_lock WHERE n < 50 FOR SHARE) x; PREPARE TRANSACTION 'one';
BEGIN; INSERT INTO many VALUES (50002, 'two'); UPDATE to_lock SET locked = -1 WHERE n = 2999; PREPARE TRANSACTION 'two';
