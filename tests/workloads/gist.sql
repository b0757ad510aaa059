-- GiST: every record type that changes pages, with and without images, and the index builds.
-- Not here: ASSIGN_LSN (wal_level=minimal only; no page).

create extension btree_gist;
set client_min_messages = warning;
set default_toast_compression = 'pglz';
set enable_seqscan = off;
set enable_indexscan = off; -- which would mark dead tuples: see DELETE

-- Text that neither pglz nor an inner page makes shorter.
create function noise(seed text, size int) returns text language sql as $$
  select substr(string_agg(md5(seed || i), ''), 1, size) from generate_series(0, size / 32) i
$$;

-- XLOG FPI: builds. Sorted from points, one tuple after another from boxes, buffered, empty, unlogged (init fork).
create table built as
  select point(i * 7919 % 1009, i % 97) p, box(point(i, i), point(i + 3, i + 5)) b, i
  from generate_series(1, 3000) i;
create index built_sorted on built using gist (p);
create index built_plain on built using gist (b) with (buffering = off, fillfactor = 60);
create index built_buffered on built using gist (p, b) include (i) with (buffering = on);
create unlogged table unlogged_built (p point);
create index on unlogged_built using gist (p);

-- PAGE_UPDATE of a leaf that is the root, without a split: tuples are added; the first PAGE_SPLIT of a root.
create table points (id int, p point);
create index points_p on points using gist (p);
insert into points select i, point(i * 31 % 401, i * 17 % 307) from generate_series(1, 100) i;
checkpoint;
insert into points values (-1, point(1, 1)), (-2, point(2, 2));
insert into points select i, point(i * 31 % 401, i * 17 % 307) from generate_series(101, 900) i;

-- PAGE_UPDATE one for one: the downlink grows for a tuple far out, and is overwritten.
insert into points values (-3, point(5000, 5000));
checkpoint;
insert into points values (-4, point(-5000, -5000)), (-5, point(-6000, 6000)), (-6, point(9000, -9000));

-- PAGE_SPLIT of inner pages, which finishes the split below it (block 0 is the left child), in a deep tree;
-- PAGE_UPDATE with block 1; splits into more than two pages, since the sizes differ.
create table deep (id int, k text collate "C");
create index deep_k on deep using gist (k);
insert into deep select i, noise(i::text, 300 + i * 37 % 900) from generate_series(1, 700) i;
checkpoint;
insert into deep select i, noise(i::text, 100 + i * 53 % 1800) from generate_series(701, 900) i;

-- The same with several columns, null keys and an exclusion constraint.
create table bookings (room int, span tsrange, exclude using gist (room with =, span with &&));
insert into bookings
  select i % 7, tsrange(timestamp '2020-01-01' + i * interval '1 hour',
                        timestamp '2020-01-01' + i * interval '1 hour' + interval '50 minutes')
  from generate_series(1, 400) i;
insert into bookings select null, null from generate_series(1, 100);

-- PAGE_UPDATE by VACUUM: one, two and more tuples go from a leaf, without and with an image.
delete from points where id % 100 = 7;
vacuum points;
delete from points where id % 9 = 4;
checkpoint;
vacuum points;
delete from points where id % 5 = 3;
vacuum points;

-- DELETE: index scans mark dead tuples, and an insertion into a full leaf takes them off. Before that VACUUM has to
-- take something off every leaf: redo up to 18.4 sets a flag then that only VACUUM sets on the primary, and stock
-- Postgres itself calls other pages inconsistent.
create table dying (id int, p point);
create index dying_p on dying using gist (p);
create procedure mark_dead() language sql set enable_bitmapscan = off set enable_indexscan = on as $$
  select count(*) from dying where p <@ box(point(-1, -1), point(999, 999))
$$;
-- With an image, which needs a checkpoint just when the last of two leaves is full, at some 185 tuples.
insert into dying select i, point(i, i) from generate_series(1, 270) i;
delete from dying where id % 50 = 9;
vacuum dying;
delete from dying where id % 8 = 1;
call mark_dead();
select 'checkpoint', format('insert into dying values (%s, point(%s, %s))', i, i, i)
  from generate_series(271, 295) i \gexec
-- One or two tuples of each of several leaves.
insert into dying select i, point(i, i) from generate_series(296, 800) i;
delete from dying where id % 20 = 7;
vacuum dying;
delete from dying where id % 60 = 2;
call mark_dead();
insert into dying select i, point(i % 800, i % 800) from generate_series(801, 2000) i;
-- Many tuples.
delete from dying where id % 20 = 4;
vacuum dying;
delete from dying where id % 3 = 0;
call mark_dead();
insert into dying select i, point(i % 800, i % 800) from generate_series(2001, 2900) i;

-- PAGE_DELETE: leaves that VACUUM finds empty go; with images, without, and from a deep tree.
delete from dying where p <@ box(point(-1, -1), point(300, 300));
checkpoint;
vacuum dying;
delete from dying where p <@ box(point(-1, -1), point(600, 600));
vacuum dying;
delete from deep where id % 11 <> 0;
vacuum deep;

-- PAGE_REUSE: deleted pages are used again once nobody can see them: PAGE_SPLIT with reused blocks.
create table tick (i int);
insert into tick values (1);
insert into tick values (2);
vacuum dying;
vacuum deep;
insert into dying select i, point(i % 600, i % 600) from generate_series(3001, 4500) i;
insert into deep select i, noise(i::text, 400) from generate_series(2001, 2200) i;

-- PAGE_UPDATE block 1 with an image that redo goes on from. The split of a leaf must be left unfinished for that: the
-- downlink of its left half, made of a lower key that stops compression and a long upper key, is larger than a page
-- can hold, so the insertion fails after the split was logged. Once VACUUM has taken the long keys away, the next
-- insertion finishes the split.
create function incompressible(size int) returns text language sql as $$
  select left(string_agg(chr(33 + n / 90) || chr(33 + n % 90), '' order by n), size)
  from generate_series(0, size / 2) n
$$;
create function leave_split_unfinished(target regclass) returns text language plpgsql as $$
begin
  for i in 1..300 loop
    execute format('insert into %s values ($1)', target)
      using 'b' || repeat('x', 7040) || lpad(i::text, 7, '0');
  end loop;
  raise 'all splits finished';
exception when program_limit_exceeded then
  return sqlerrm;
end $$;
create table unfinished (k text collate "C");
create index unfinished_k on unfinished using gist (k);
insert into unfinished values ('a' || incompressible(1091)), ('c');
insert into unfinished
  select 'm' || lpad(i::text, 3, '0') || noise(i::text, 500) from generate_series(1, 20) i;
select leave_split_unfinished('unfinished') \g /dev/null
vacuum unfinished;
checkpoint;
insert into unfinished values ('z'), ('b');

-- PAGE_SPLIT block 0 with such an image: the root is so full that the missing downlinks, of which one is of the key
-- of 3000 bytes, split it.
create table unfinished_below (k text collate "C");
create index unfinished_below_k on unfinished_below using gist (k);
insert into unfinished_below
  values ('a' || incompressible(1091)), ('ab' || repeat('y', 3000)), ('c');
insert into unfinished_below
  select 'm' || lpad(i::text, 3, '0') || noise(i::text, 500) from generate_series(1, 53) i;
select leave_split_unfinished('unfinished_below') \g /dev/null
vacuum unfinished_below;
checkpoint;
insert into unfinished_below values ('z'), ('b');
