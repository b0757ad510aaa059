-- Every record type of Heap, Heap2, Sequence and Generic that one session can write, each at least once, and what
-- surrounds them: subtransactions, prepared transactions, databases, truncation, rewrites. Works on 15 to 18.
-- What takes several sessions is in heap.pgbench.

-- The rows that heap.pgbench fights over.
create table locked (id int primary key, v int);
insert into locked select g, 0 from generate_series(1, 12) g;
create table contended (k int primary key);

-- ------------------------------------------------------------------------ insert, update, delete, prune
create table plain (id int primary key, a int, t text, n text) with (autovacuum_enabled = off);
create index plain_a on plain (a);
insert into plain
  select g, g % 50, repeat(chr(65 + g % 26), g % 300), case g % 3 when 0 then null else 'n' || g end
  from generate_series(1, 4000) g;
-- HOT, with a shared prefix, a shared suffix, both, neither; a null bitmap that comes and goes.
update plain set n = 'x' || id where id % 4 = 0;
update plain set t = t || 'tail' where id % 5 = 0;
update plain set t = 'head' || t where id % 6 = 0;
update plain set n = null where id % 7 = 0;
-- Not HOT: same page and other pages, the old tuple's page all-visible or not.
update plain set a = a + 1 where id % 8 = 0;
vacuum plain;
update plain set a = a + 1, t = repeat('y', 500) where id % 9 = 0;
update plain set n = n where id % 10 = 0;
delete from plain where id % 11 = 0;
-- Pruned by reading, then by vacuum; then line pointers are taken again.
select count(*) from plain where a > 10;
select count(*) from plain;
vacuum plain;
insert into plain select g, g, 'again', 'b' from generate_series(5000, 6000) g;
delete from plain where id > 5500;
vacuum plain;

-- Long HOT chains, pruned again and again while they grow.
create table chains (id int primary key, v int) with (autovacuum_enabled = off, fillfactor = 50);
insert into chains select g, 0 from generate_series(1, 400) g;
do $$ begin
  for i in 1..25 loop
    update chains set v = v + 1 where id % 3 = i % 3;
    perform count(*) from chains;
    commit;
  end loop;
end $$;
vacuum chains;

-- Inserted on conflict: CONFIRM; rolled back by a failing unique check of another index.
create table conflicts (k int primary key, other int unique) with (autovacuum_enabled = off);
insert into conflicts select g, g from generate_series(1, 200) g on conflict (k) do nothing;
insert into conflicts select g, g + 1000 from generate_series(100, 400) g
  on conflict (k) do update set other = excluded.other;
insert into conflicts select g % 300, g from generate_series(1, 900) g on conflict do nothing;

-- A row that moves to another partition.
create table parted (k int, v text) partition by range (k);
create table parted_low partition of parted for values from (0) to (100);
create table parted_high partition of parted for values from (100) to (1000);
insert into parted select g, 'v' || g from generate_series(0, 199) g;
update parted set k = k + 100 where k < 50;

-- TOAST: wide values come, change and go.
create table toasted (id int primary key, body text) with (autovacuum_enabled = off);
alter table toasted alter body set storage external;
insert into toasted select g, repeat(md5(g::text), 300) from generate_series(1, 60) g;
update toasted set body = repeat(md5((id * 2)::text), 200) where id % 2 = 0;
delete from toasted where id % 5 = 0;
vacuum toasted;

-- ------------------------------------------------------------------------ multi-insert, freeze, visibility
create table copied (a int, b text) with (autovacuum_enabled = off);
insert into copied select g, 'row ' || g from generate_series(1, 3000) g;
create temp table staging as select a, b from copied;
\copy staging to program 'cat > copied.out'
\copy copied from copied.out
begin;
create table frozen_copy (a int, b text) with (autovacuum_enabled = off);
\copy frozen_copy from copied.out with (freeze)
commit;
-- Into pages with gaps, and into pages that are all-visible.
delete from copied where a % 3 = 0;
vacuum copied;
\copy copied from copied.out
vacuum (freeze) copied;
insert into copied values (1, 'clears a bit');
insert into frozen_copy values (1, 'clears a bit');
delete from frozen_copy where a = 2;

create table ages (id int, v int, t text) with (autovacuum_enabled = off);
insert into ages select g, g, repeat('a', 80) from generate_series(1, 3000) g;
delete from ages where id % 13 = 0;
update ages set v = v + 1 where id % 17 = 0;
begin;
update ages set v = -1 where id % 19 = 0;
rollback;
select count(*) from ages where id in (select id from ages where id % 23 = 0 for update);
vacuum (freeze) ages;
-- Locks on frozen pages clear the all-frozen bit only.
begin;
select count(*) from (select 1 from ages where id between 100 and 120 for share) locked;
select count(*) from (select 1 from ages where id between 130 and 140 for no key update) locked;
select count(*) from (select 1 from ages where id between 150 and 160 for key share) locked;
commit;
update ages set v = 0 where id between 500 and 520;
vacuum (freeze, disable_page_skipping) ages;
-- The end of the table goes, and with it bits of its map; then it grows again.
delete from ages where id > 1000;
vacuum ages;
insert into ages select g, g, 'new' from generate_series(1, 300) g;
vacuum ages;

-- ------------------------------------------------------------------------ subtransactions
create table subs (id int, v text) with (autovacuum_enabled = off);
do $$ begin
  for i in 1..300 loop
    begin
      insert into subs values (i, 'kept or not');
      update subs set v = v || i where id = i - 1;
      if i % 3 = 0 then raise exception 'undone'; end if;
    exception when others then null;
    end;
  end loop;
end $$;
begin;
insert into subs values (1001, 'a');
savepoint one;
delete from subs where id < 100;
savepoint two;
update subs set v = 'lost' where id > 200;
rollback to one;
select count(*) from (select 1 from subs where id = 7 for update) locked;
release one;
commit;
begin;
update subs set v = v || 'prepared' where id < 150;
prepare transaction 'kept';
begin;
delete from subs where id >= 150;
prepare transaction 'undone';
commit prepared 'kept';
rollback prepared 'undone';
vacuum subs;

-- Rows that a prepared transaction updates are locked beside it: multixacts, LOCK_UPDATED.
create table shared (id int primary key, v int) with (autovacuum_enabled = off);
insert into shared select g, g from generate_series(1, 50) g;
begin;
update shared set v = v + 1 where id between 10 and 20;
update shared set v = v + 1 where id between 15 and 20;
prepare transaction 'updating';
begin;
select count(*) from (select 1 from shared for key share) locked;
savepoint more;
select count(*) from (select 1 from shared where id < 10 for update) locked;
rollback to more;
commit;
commit prepared 'updating';
vacuum (freeze) shared;

-- ------------------------------------------------------------------------ rewrites and lives of relations
create index ages_id on ages (id);
cluster ages using ages_id;
vacuum full copied;
alter table chains alter column v type bigint;
truncate frozen_copy;
insert into frozen_copy values (1, 'after');
create materialized view seen as select id, v from ages;
refresh materialized view seen;
create unlogged table unlogged (id serial primary key, t text);
insert into unlogged (t) select 'u' || g from generate_series(1, 100) g;
create table doomed as select g from generate_series(1, 2000) g;
drop table doomed;
begin;
create table never_was as select g from generate_series(1, 2000) g;
rollback;

create sequence counter cache 1;
create sequence cached cache 50;
select count(nextval('counter')), count(nextval('cached')) from generate_series(1, 500);
select setval('counter', 10000), setval('cached', 7, false);
alter sequence counter restart with 5;
select nextval('counter');

create extension bloom;
create table bloomed (a int, b int, c text) with (autovacuum_enabled = off);
insert into bloomed select g, g % 100, 'c' || g from generate_series(1, 2000) g;
create index bloomed_index on bloomed using bloom (a, b);
insert into bloomed select g, g % 100, 'c' || g from generate_series(2001, 5000) g;
delete from bloomed where a % 3 = 0;
vacuum bloomed;
insert into bloomed select g, g % 100, 'c' || g from generate_series(5001, 6500) g;

create database by_log strategy wal_log;
create database by_file strategy file_copy;
\c by_log
create table here (i int);
insert into here select generate_series(1, 500);
vacuum here;
vacuum pg_class;
\c by_file
create table here (i int);
insert into here select generate_series(1, 500);
update pg_description set description = description || '.' where objoid < 300;
vacuum pg_class;
\c heap
drop database by_log;
create database by_log strategy wal_log;
vacuum;
