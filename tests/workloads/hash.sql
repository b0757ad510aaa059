-- Hash: every record type of resource manager 12 that plain SQL reaches.
--
-- A page holds 407 tuples. Rows of one key fill the pages of their bucket's chain in the order they come, so
-- row n of a key lies on page n / 407 of the chain: that is how the sections below aim at a page.
-- Not reached: a second bitmap page (ADD_OVFL_PAGE block 3), which takes 32768 overflow pages, and
-- SQUEEZE_PAGE block 4, because only the last page of a chain is ever freed.

-- Scans mark index tuples dead only after the deletion's commit is on disk.
set synchronous_commit = on;
set enable_seqscan = off;
set enable_bitmapscan = off;

-- INIT_META_PAGE, INIT_BITMAP_PAGE: an index on an empty table, and in the init fork of an unlogged one.
create table small (k int, n int);
create index small_k on small using hash (k);
create unlogged table unlogged (k int);
create index unlogged_k on unlogged using hash (k);
insert into unlogged select generate_series(1, 100);

-- INIT_META_PAGE: more buckets, up to the phases that allocate a quarter of a doubling. The number of buckets
-- follows from the estimated number of rows, so the estimate is made up.
create table estimate (k int);
insert into estimate values (1), (2);
update pg_class set relpages = 1, reltuples = 1200 where oid = 'estimate'::regclass;
create index estimate_4 on estimate using hash (k);
update pg_class set relpages = 1, reltuples = 20513 where oid = 'estimate'::regclass;
create index estimate_640 on estimate using hash (k) with (fillfactor = 10);
update pg_class set relpages = 1, reltuples = 31000 where oid = 'estimate'::regclass;
create index estimate_896 on estimate using hash (k) with (fillfactor = 10);
update pg_class set relpages = 1, reltuples = 42000 where oid = 'estimate'::regclass;
create index estimate_1280 on estimate using hash (k) with (fillfactor = 10);
insert into estimate select generate_series(3, 50);
reindex index estimate_4;

-- INSERT: while an index is built over existing rows, and a null, which is not indexed.
insert into small select i, i from generate_series(1, 60) i;
create index small_n on small using hash (n);
insert into small values (null, null), (70, 70);

-- SPLIT_ALLOCATE_PAGE with its changes of masks and phases, SPLIT_PAGE, SPLIT_COMPLETE, DELETE and SPLIT_CLEANUP
-- of what a split leaves behind: from 2 buckets on, 40 tuples for each.
create table split (k int);
analyze split;
create index split_k on split using hash (k) with (fillfactor = 10);
insert into split select generate_series(1, 700);

-- ADD_OVFL_PAGE, also while a split fills the new bucket; DELETE and MOVE_PAGE_CONTENTS in a chain that a split
-- has thinned out: few keys with many rows each.
insert into split select -1 - i % 3 from generate_series(1, 1800) i;

-- SPLIT_ALLOCATE_PAGE: block 0 changes after its image. Buckets that nothing has touched since the checkpoint are
-- split because one other bucket grows.
checkpoint;
insert into split select -9 from generate_series(1, 500) i;
checkpoint;
insert into split select generate_series(1001, 1500);

-- INSERT: right after a checkpoint, with images of both pages, then of the bucket only.
checkpoint;
insert into split select generate_series(1501, 1520);

-- SPLIT_ALLOCATE_PAGE: a new phase without a new doubling, from 640 buckets on. Filling up goes unchecked.
create table phase (k int);
insert into phase values (1);
update pg_class set relpages = 1, reltuples = 20513 where oid = 'phase'::regclass;
create index phase_k on phase using hash (k) with (fillfactor = 10);
set wal_consistency_checking = '';
insert into phase select generate_series(2, 25595);
set wal_consistency_checking = 'all';
insert into phase select generate_series(25596, 25700);

-- SQUEEZE_PAGE, MOVE_PAGE_CONTENTS, DELETE, UPDATE_META_PAGE: one chain for each way to squeeze, in an index with
-- so many buckets that none is split. Filling up goes unchecked.
create table chain (k int, n int);
insert into chain values (0, 0);
update pg_class set relpages = 1, reltuples = 20000 where oid = 'chain'::regclass;
create index chain_k on chain using hash (k);
create table pages (k int, pages int);
insert into pages values (1, 5), (2, 8), (3, 3), (4, 2), (5, 4), (6, 2), (7, 3), (8, 4), (10, 3);
set wal_consistency_checking = '';
insert into chain select k, n from pages, generate_series(0, pages * 407 - 1) n order by n % 407, k, n;
delete from chain;
vacuum (index_cleanup on) chain;
insert into chain select k, n from pages, generate_series(0, pages * 407 - 1) n order by k, n;

-- What stays of each page of a chain, from its first on.
create table kept (k int, page int, first int, last int);
insert into kept values
    -- Nothing: empty pages are freed, while the page written to is the primary one.
    -- (key 1)
    -- The second page takes the tuples of the eighth and the sixth, empty pages go in between, and what then
    -- fits of the fourth is moved.
    (2, 0, 0, 406), (2, 1, 0, 199), (2, 2, 0, 406), (2, 3, 0, 406), (2, 5, 0, 99), (2, 7, 300, 349),
    -- The primary page takes some of a full page.
    (3, 0, 0, 406), (3, 1, 100, 406), (3, 2, 0, 406),
    -- The page before the freed one is the primary page and takes its tuples.
    (4, 0, 0, 99), (4, 1, 200, 299),
    -- The page before the freed one is an overflow page, and there are no tuples for it.
    (5, 0, 0, 406), (5, 1, 0, 99), (5, 3, 0, 9),
    -- Nothing goes on a page whose neighbour is empty.
    (6, 0, 0, 406),
    -- The page before the freed one is an overflow page and takes its tuples.
    (7, 0, 0, 406), (7, 1, 5, 104), (7, 2, 5, 104),
    -- The primary page has room for some; the page after it takes the rest.
    (8, 0, 0, 399), (8, 1, 0, 99), (8, 2, 0, 99), (8, 3, 0, 99),
    -- An empty page is freed and nothing else changes: 17 and later do not touch the primary page.
    (10, 0, 0, 406), (10, 1, 0, 406);
delete from chain c where not exists (
    select from kept where kept.k = c.k and c.n between page * 407 + first and page * 407 + last);
set wal_consistency_checking = 'all';
vacuum (index_cleanup on) chain;

-- ADD_OVFL_PAGE block 2: freed pages are taken again.
insert into chain select 1, n from generate_series(0, 900) n;
insert into chain select 9, n from generate_series(0, 500) n;

-- DELETE, MOVE_PAGE_CONTENTS, SQUEEZE_PAGE, UPDATE_META_PAGE: right after a checkpoint, with images.
set wal_consistency_checking = '';
delete from chain;
vacuum (index_cleanup on) chain;
insert into chain select k, n from pages, generate_series(0, pages * 407 - 1) n order by k, n;
delete from chain c where not exists (
    select from kept where kept.k = c.k and c.n between page * 407 + first and page * 407 + last);
set wal_consistency_checking = 'all';
checkpoint;
vacuum (index_cleanup on) chain;
checkpoint;
insert into chain select 1, n from generate_series(0, 900) n;

-- VACUUM_ONE_PAGE: an index scan marks tuples dead, and an insertion into the full page removes them. First many
-- tuples, then two, then one, on the primary page; then on an overflow page; then after a checkpoint.
create table dead (k int, n int);
insert into dead values (0, 0);
update pg_class set relpages = 1, reltuples = 20000 where oid = 'dead'::regclass;
create index dead_k on dead using hash (k);
insert into dead select 1, n from generate_series(0, 406) n;
delete from dead where n % 4 = 1;
select count(*) from dead where k = 1;
insert into dead select 1, n from generate_series(407, 507) n;
delete from dead where n in (100, 200);
select count(*) from dead where k = 1;
insert into dead values (1, 1000), (1, 1001);
delete from dead where n = 300;
select count(*) from dead where k = 1;
insert into dead values (1, 1002);
insert into dead select 1, n from generate_series(2000, 2406) n;
delete from dead where n between 2100 and 2150;
select count(*) from dead where k = 1;
insert into dead values (1, 3000);
delete from dead where n between 2000 and 2020;
select count(*) from dead where k = 1;
checkpoint;
insert into dead select 1, n from generate_series(4000, 4100) n;

-- DELETE: vacuum removes tuples that a scan has marked dead, and the hint with them.
delete from dead where n % 3 = 0;
select count(*) from dead where k = 1;
vacuum (index_cleanup on) dead;

-- Relations that go and come.
truncate estimate;
insert into estimate select generate_series(1, 10);
drop table small;

-- For the concurrent part.
create table busy (k int, n int);
analyze busy;
create index busy_k on busy using hash (k) with (fillfactor = 10);
insert into busy select i % 5, i from generate_series(1, 1000) i;
checkpoint;
