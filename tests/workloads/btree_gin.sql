-- Every record type of Btree and Gin, each at least once. Loads run without consistency images: what is under
-- test is index maintenance, and heap rows would be most of the WAL. Works on 15 to 18.

set wal_consistency_checking = 'btree,gin';
set synchronous_commit = off;

-- ---------------------------------------------------------------------------------------------- Btree

-- Random order: SPLIT_L and SPLIT_R, NEWROOT, INSERT_UPPER; few distinct keys: DEDUP.
create table bt_many (k int, filler text) with (autovacuum_enabled = off);
create index bt_many_k on bt_many (k);
insert into bt_many select (g * 7919) % 4001, 'x' from generate_series(1, 7000) g;
insert into bt_many select (g * 7919) % 37, 'x' from generate_series(1, 3000) g;

-- Holes in the heap give new rows old places: INSERT_POST, and splits of a posting list at a page split.
delete from bt_many where ctid < '(30,0)' and k % 3 = 0;
vacuum bt_many;
insert into bt_many select g % 37, 'y' from generate_series(1, 2000) g;
insert into bt_many select (g * 31) % 37, 'y' from generate_series(1, 1000) g;

-- Part of each posting list goes: VACUUM with posting updates; LP_DEAD: DELETE.
delete from bt_many where ctid::text like '%1)';
vacuum bt_many;

create table bt_unique (a int) with (autovacuum_enabled = off);
create unique index bt_unique_a on bt_unique (a) with (deduplicate_items = on);
do $$ begin
  for i in 1..900 loop
    insert into bt_unique values (1 + i % 3) on conflict do nothing;
    delete from bt_unique;
    commit;
  end loop;
end $$;

-- Rows whose other column changes: bottom-up deletion, DELETE with and without posting updates.
create table bt_churn (id int primary key, same int, changing int)
  with (autovacuum_enabled = off, fillfactor = 60);
create index bt_churn_same on bt_churn (same);
create index bt_churn_changing on bt_churn (changing);
insert into bt_churn select g, g % 5, g from generate_series(1, 600) g;
do $$ begin
  for i in 1..14 loop
    update bt_churn set changing = changing + 1;
    commit;
  end loop;
end $$;

-- Rows found dead by index scans: DELETE of marked tuples, posting lists included.
create table bt_marked (k int, n int) with (autovacuum_enabled = off);
create index bt_marked_k on bt_marked (k);
insert into bt_marked select g % 4, g from generate_series(1, 3000) g;
delete from bt_marked where n % 7 in (1, 2, 3);
set enable_seqscan = off;
set enable_bitmapscan = off;
do $$ begin
  for i in 1..4 loop
    perform count(*) from bt_marked where k = any ('{0,1,2,3}') and n >= 0;
    insert into bt_marked select g % 4, -g from generate_series(1, 800) g;
    commit;
    delete from bt_marked where n < 0 and n % 3 = 0;
    commit;
  end loop;
end $$;
reset enable_seqscan;
reset enable_bitmapscan;

-- A tall tree loses its middle: MARK_PAGE_HALFDEAD, UNLINK_PAGE of leaves and of inner pages.
create table bt_tall (id int, t text) with (autovacuum_enabled = off);
alter table bt_tall alter column t set storage plain;
create index bt_tall_t on bt_tall (t, id) with (fillfactor = 10);
insert into bt_tall select g, repeat('x', 250) from generate_series(1, 2000) g;
delete from bt_tall where id between 100 and 1800;
vacuum bt_tall;
-- Deleted pages are counted (META_CLEANUP), and used again once nobody can see them (REUSE_PAGE).
select txid_current();
select txid_current();
vacuum bt_tall;
insert into bt_tall select g, repeat('x', 250) from generate_series(100, 900) g;
vacuum bt_tall;

-- Nearly everything goes: a fast root below the root (UNLINK_PAGE_META), then a split of it (INSERT_META).
create table bt_shrinks (a bigint, b bigint, c bigint, d bigint) with (autovacuum_enabled = off);
set wal_consistency_checking = '';
insert into bt_shrinks select g, g, g, g from generate_series(1, 80000) g;
set wal_consistency_checking = 'btree,gin';
create index bt_shrinks_all on bt_shrinks (a, b, c, d);
delete from bt_shrinks where a < 79990;
vacuum bt_shrinks;
insert into bt_shrinks select g, g, g, g from generate_series(1, 1000) g;

-- A key wider than suffix truncation shortens, and rows that move about.
create table bt_wide (t text) with (autovacuum_enabled = off);
create index bt_wide_t on bt_wide (t);
insert into bt_wide select repeat(md5((g * 13)::text), 8) from generate_series(1, 1500) g;
delete from bt_wide where left(t, 1) < '8';
vacuum bt_wide;
insert into bt_wide select repeat(md5((g * 17)::text), 8) from generate_series(1, 500) g;

-- ------------------------------------------------------------------------------------------------ Gin

-- Pending list: UPDATE_META_PAGE, INSERT_LISTPAGE, DELETE_LISTPAGE; moving it: INSERT, SPLIT, CREATE_PTREE.
create table gin_pending (i int[]) with (autovacuum_enabled = off);
create index gin_pending_i on gin_pending using gin (i)
  with (fastupdate = on, gin_pending_list_limit = 64);
insert into gin_pending select array[1, 2, g] from generate_series(1, 2500) g;
insert into gin_pending select array[1, 3, g] from generate_series(1, 600) g;
-- Rows with many keys need several list pages at once.
insert into gin_pending
  select array_agg(g * 1000 + n) from generate_series(1, 6) g, generate_series(1, 900) n group by g;
select gin_clean_pending_list('gin_pending_i') > 0 as cleaned;
insert into gin_pending select array[3, 1, g] from generate_series(1, 500) g;
vacuum gin_pending;
delete from gin_pending where i @> array[2];
vacuum gin_pending;

-- Straight into the tree: posting list leaves are recompressed, split and vacuumed.
create table gin_direct (id int, i int[]) with (autovacuum_enabled = off);
create index gin_direct_i on gin_direct using gin (i) with (fastupdate = off);
insert into gin_direct select g, array[1, 2, g % 50] from generate_series(1, 3000) g;
delete from gin_direct where id % 3 = 0 or id between 1000 and 1300;
vacuum gin_direct;
-- Old places are filled again: items are added in the middle of segments.
insert into gin_direct select -g, array[1, 2, g % 70] from generate_series(1, 1200) g;
delete from gin_direct where id < 0 and id % 2 = 0;
vacuum gin_direct;

-- A posting tree with inner pages loses whole leaves: DELETE_PAGE, VACUUM_DATA_LEAF_PAGE.
create table gin_large (id int, i int[]) with (autovacuum_enabled = off);
set wal_consistency_checking = '';
insert into gin_large select g, array[1, g % 3] from generate_series(1, 90000) g;
create index gin_large_i on gin_large using gin (i) with (fastupdate = off);
set wal_consistency_checking = 'btree,gin';
delete from gin_large where id between 20000 and 70000;
delete from gin_large where id % 11 = 0;
vacuum gin_large;
insert into gin_large select g, array[1, g % 3] from generate_series(1, 1500) g;
select txid_current();
vacuum gin_large;

-- Growing from the outside in: downlinks in inner posting tree pages.
create table gin_grows (i int[]) with (autovacuum_enabled = off);
set wal_consistency_checking = '';
create index gin_grows_i on gin_grows using gin (i)
  with (fastupdate = on, gin_pending_list_limit = 1048576);
insert into gin_grows select array[1] from generate_series(1, 60000) g;
set wal_consistency_checking = 'btree,gin';
select gin_clean_pending_list('gin_grows_i') > 0 as cleaned;
set wal_consistency_checking = '';
insert into gin_grows select array[1] from generate_series(1, 30000) g;
set wal_consistency_checking = 'btree,gin';
select gin_clean_pending_list('gin_grows_i') > 0 as cleaned;

-- Long keys: entry tree pages split up to the root and above.
create table gin_keys (t text[]) with (autovacuum_enabled = off);
create index gin_keys_t on gin_keys using gin (t) with (fastupdate = off);
insert into gin_keys
  select array[repeat(md5(g::text), 20), repeat(md5((g * 7)::text), 12), 'every']
  from generate_series(1, 900) g;
delete from gin_keys where t[1] < '8';
vacuum gin_keys;
reset wal_consistency_checking;
