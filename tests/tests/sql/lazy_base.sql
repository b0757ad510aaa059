-- What a branch finds when nothing of it is local: every kind of relation, and databases that it has never touched.
SET allow_in_place_tablespaces = on;
SELECT format('CREATE EXTENSION IF NOT EXISTS %I', name) FROM pg_available_extensions
    WHERE name IN ('amcheck', 'pg_prewarm', 'pg_freespacemap') \gexec
CREATE TABLE things (id serial PRIMARY KEY, k int, words tsvector, tags text[], place point, name text, note text);
CREATE INDEX things_hash ON things USING hash (k);
CREATE INDEX things_gin ON things USING gin (words);
CREATE INDEX things_gin_direct ON things USING gin (tags) WITH (fastupdate = off);
CREATE INDEX things_gist ON things USING gist (place);
CREATE INDEX things_spgist ON things USING spgist (name);
CREATE INDEX things_brin ON things USING brin (id) WITH (pages_per_range = 4);
INSERT INTO things (k, words, tags, place, name, note)
    SELECT n % 700, to_tsvector('simple', md5(n::text) || ' ' || md5((n % 100)::text)), ARRAY['t' || n % 50, 'u' || n % 7],
        point(n % 97, n % 89), md5(n::text), repeat(md5(n::text), n % 5) FROM generate_series(1, 6000) n;
CREATE TABLE wide (id int PRIMARY KEY, blob text);
ALTER TABLE wide ALTER COLUMN blob SET STORAGE EXTERNAL;
INSERT INTO wide SELECT n, repeat(md5(n::text), 300) FROM generate_series(1, 400) n;
CREATE TABLE part (k int PRIMARY KEY, v text) PARTITION BY RANGE (k);
CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (0) TO (1000);
CREATE TABLE part2 PARTITION OF part FOR VALUES FROM (1000) TO (2000);
CREATE TABLE part3 PARTITION OF part FOR VALUES FROM (2000) TO (9000);
INSERT INTO part SELECT n, 'v' || n FROM generate_series(0, 1999) n;
CREATE UNLOGGED TABLE scratch (n int PRIMARY KEY, filler text);
INSERT INTO scratch SELECT n, 'x' FROM generate_series(1, 2000) n;
CREATE MATERIALIZED VIEW by_k AS SELECT k, count(*) AS things FROM things GROUP BY k;
CREATE UNIQUE INDEX ON by_k (k);
CREATE SEQUENCE counter;
SELECT setval('counter', 1000);
SELECT count(lo_from_bytea(0, convert_to(repeat(md5(n::text), 200), 'UTF8'))) FROM generate_series(1, 60) n;
-- One table for each way of rewriting, moving or cutting.
CREATE TABLE to_rewrite AS SELECT n, md5(n::text) AS v, repeat('r', 300) AS filler FROM generate_series(1, 4000) n;
CREATE INDEX ON to_rewrite (v);
DELETE FROM to_rewrite WHERE n % 2 = 0;
CREATE TABLE to_cluster AS SELECT n, md5(n::text) AS v FROM generate_series(1, 4000) n;
CREATE INDEX to_cluster_v ON to_cluster (v);
CREATE TABLE to_truncate AS SELECT n, repeat('t', 400) AS filler FROM generate_series(1, 4000) n;
CREATE INDEX ON to_truncate (n);
CREATE TABLE to_cut AS SELECT n, repeat('c', 400) AS filler FROM generate_series(1, 6000) n;
CREATE INDEX ON to_cut (n);
CREATE TABLE to_move AS SELECT n, repeat('m', 200) AS filler FROM generate_series(1, 4000) n;
CREATE INDEX ON to_move (n);
CREATE TABLE to_drop AS SELECT n, repeat('d', 400) AS filler FROM generate_series(1, 4000) n;
CREATE INDEX ON to_drop (n);
CREATE TABLE to_index AS SELECT n, n % 500 AS k, md5(n::text) AS v, point(n % 97, n % 89) AS p,
    to_tsvector('simple', md5(n::text)) AS w FROM generate_series(1, 6000) n;
CREATE TABLE to_lock AS SELECT n, 0 AS locked FROM generate_series(1, 3000) n;
CREATE TABLE to_read AS SELECT n, md5(n::text) AS v, repeat('s', 500) AS filler FROM generate_series(1, 8000) n;
CREATE TABLE to_update AS SELECT n, 0 AS rounds, repeat('u', 100) AS filler FROM generate_series(1, 10000) n;
ALTER TABLE to_update ADD PRIMARY KEY (n);
CREATE TABLE kept_hints AS SELECT n, repeat('h', 400) AS filler FROM generate_series(1, 4000) n;
CREATE TABLE many (n int PRIMARY KEY, v text);
INSERT INTO many SELECT n, 'm' FROM generate_series(1, 3000) n;
-- Multixacts that the branch must look up.
BEGIN; SAVEPOINT s; SELECT count(*) FROM (SELECT * FROM to_lock WHERE n <= 1000 FOR KEY SHARE) x;
UPDATE to_lock SET locked = 1 WHERE n <= 500; COMMIT;
-- Subtransactions, more than a snapshot holds.
DO $$ BEGIN FOR i IN 1..200 LOOP BEGIN INSERT INTO many VALUES (10000 + i, 'sub'); EXCEPTION WHEN others THEN RAISE; END; END LOOP; END $$;
CREATE TABLESPACE place LOCATION '';
CREATE DATABASE untouched;
CREATE DATABASE mover;
CREATE DATABASE unwanted;
\c untouched
CREATE TABLE cargo AS SELECT n, md5(n::text) AS v, repeat('x', 200) AS filler FROM generate_series(1, 5000) n;
CREATE INDEX ON cargo (v);
CREATE INDEX ON cargo USING hash (n);
CREATE UNLOGGED TABLE light (n int);
CREATE SEQUENCE untouched_counter;
SELECT setval('untouched_counter', 77);
VACUUM ANALYZE cargo;
\c mover
CREATE TABLE cargo AS SELECT n, md5(n::text) AS v, repeat('x', 200) AS filler FROM generate_series(1, 5000) n;
CREATE INDEX ON cargo (v);
CREATE MATERIALIZED VIEW summed AS SELECT count(*) FROM cargo;
\c unwanted
CREATE TABLE cargo AS SELECT n, repeat('x', 200) AS filler FROM generate_series(1, 3000) n;
CHECKPOINT;
