-- SP-GiST: every record type that changes a page, with its variants.
-- Trees: text (radix: inner tuples grow and split), points (quad and k-d), ranges, addresses, boxes, and nulls.

create function digits(n int) returns text language sql immutable as $$ select md5(n::text) $$;

-- Images at the end of a build, and the init fork of an unlogged relation.
create table built (t text, p point);
insert into built select digits(n), point(n % 97, n % 89) from generate_series(1, 3000) n;
create index built_text on built using spgist (t);
create index built_kd on built using spgist (p kd_point_ops) with (fillfactor = 100);
create unlogged table forgotten (t text);
create index forgotten_text on forgotten using spgist (t);

-- VACUUM_ROOT: a root that is still a leaf loses one tuple, two, many.
create table small (t text);
create index small_text on small using spgist (t);
insert into small select digits(n) from generate_series(1, 20) n;
delete from small where t = digits(1);
vacuum small;
delete from small where t in (digits(3), digits(5));
vacuum small;
delete from small where t <> digits(20);
vacuum small;
insert into small select digits(n) from generate_series(21, 40) n;

-- ADD_LEAF to roots, of values and of nulls; PICKSPLIT of both roots, first into new pages.
create table words (id int, t text);
create index words_text on words using spgist (t);
insert into words select n, digits(n) from generate_series(1, 1500) n;
insert into words select n, null from generate_series(1, 6000) n;

-- ADD_LEAF with a new downlink, MOVE_LEAFS to old and new pages, SPLIT_TUPLE on the same page and on others,
-- ADD_NODE in place: prefixes that grow longer and part again.
insert into words
  select n, repeat(chr(97 + n % 7), 1 + n % 40) || digits(n) from generate_series(1, 2500) n;
insert into words
  select n, 'common/prefix/of/many/' || substr('abcdefghijklmnopqrstuvwxyz', 1, n % 26) || '/' || n
  from generate_series(1, 1500) n;

-- SPLIT_TUPLE to another page: inner tuples so large that a page has no room for the two halves.
create table wide (t text);
create index wide_text on wide using spgist (t);
insert into wide
  select repeat('x', 300) || chr(256 + n) || repeat(chr(97 + m), 40) || m
  from generate_series(1, 90) n, generate_series(1, 6) m;
insert into wide select repeat('x', n) || chr(8000 + n) || n from generate_series(1, 299) n;
insert into wide select repeat('x', 300) || chr(500 + n) || n from generate_series(1, 400) n;

-- ADD_NODE to another page, the parent on the old page or on a third one: inner tuples of one parent that grow by turns,
-- so that pages fill and are left. (Never is the parent on the new page: its buffer is locked, so it is not chosen.)
-- Nodes are labelled with bytes, of which these are many.
create function label(n int) returns text language sql immutable as $$
  select case when n < 128 then chr(n) else chr((n - 126) * 64) end
$$;
create table fans (t text);
create index fans_text on fans using spgist (t);
insert into fans
  select chr(97 + g) || chr(65 + a) || label(b) || m
  from generate_series(1, 2) g, generate_series(1, 14) a, generate_series(1, 20) b, generate_series(1, 6) m;
insert into fans
  select chr(97 + g) || chr(65 + a) || label(b)
  from generate_series(1, 2) g, generate_series(1, 14) a, generate_series(21, 157) b
  order by b / 40, digits(g * 10000 + a * 1000 + b);

-- PICKSPLIT of a page that is new itself: values longer than a page below an inner tuple.
create table large (id int, t text);
create index large_text on large using spgist (t);
insert into large select n, chr(97 + n % 3) || repeat(chr(97 + n % 11), 2500) || n from generate_series(1, 40) n;
insert into large select n, chr(97 + n) || repeat(chr(97 + n % 11), 9000 + n * 900) || n from generate_series(1, 20) n;
delete from large where id % 2 = 0;
vacuum large;
insert into large select n, chr(97 + n % 3) || repeat(chr(97 + n % 11), 1800) || n from generate_series(41, 90) n;

-- Trees without labels: all-the-same tuples, included columns with nulls, other operator classes.
create table shapes (id int, p point, r int4range, a inet, b box, note text);
create index shapes_quad on shapes using spgist (p) include (note);
create index shapes_range on shapes using spgist (r);
create index shapes_inet on shapes using spgist (a);
create index shapes_box on shapes using spgist (b);
insert into shapes
  select n, point(n * 7919 % 1009, n * 104729 % 997), int4range(n % 300, n % 300 + n % 17),
         '10.0.0.0'::inet + n * 7919 % 65536,
         box(point(n % 61, n % 53), point(n % 67 + 70, n % 59 + 70)),
         case when n % 3 = 0 then null else repeat('n', n % 50) end
  from generate_series(1, 700) n;
insert into shapes select n, point(1, 1), 'empty', '10.1.2.3', box(point(1, 1), point(2, 2)), null
  from generate_series(1, 400) n;

-- VACUUM_LEAF: dead heads of chains, placeholders, tuples moved to the head, chains closed and relinked.
delete from words where id % 3 = 0;
vacuum words;
-- ADD_LEAF and MOVE_LEAFS that replace dead tuples and placeholders.
insert into words select n, digits(n) from generate_series(1, 1500) n where n % 3 = 0;
insert into words select n, null from generate_series(1, 300) n;
delete from words where id % 5 < 3 and t like 'common%' or t is null and id > 100;
vacuum words;
insert into words select n, 'common/prefix/of/many/' || substr('abcdefghijklmnopqrstuvwxyz', 1, n % 26) || '/' || n || digits(n)
  from generate_series(1, 900) n;

-- VACUUM_REDIRECT: redirects become placeholders, placeholders at the end of a page go, with and without the other.
vacuum words;
vacuum fans;
vacuum wide;
delete from shapes where id % 4 <> 0;
vacuum shapes;
delete from shapes where id % 8 <> 0;
vacuum shapes;
vacuum shapes;
insert into shapes select n, point(n % 31, n % 37), int4range(n, n + 5), '10.9.0.0'::inet + n, box(point(n, n), point(n + 1, n + 2)), 'x'
  from generate_series(1, 300) n;
delete from fans where ascii(t) % 2 = 0;
vacuum fans;
insert into fans
  select chr(99 + g) || chr(65 + a) || label(b) || m
  from generate_series(1, 2) g, generate_series(1, 14) a, generate_series(1, 20) b, generate_series(1, 6) m;
insert into fans
  select chr(99 + g) || chr(65 + a) || label(b)
  from generate_series(1, 2) g, generate_series(1, 14) a, generate_series(21, 157) b
  order by digits(g * 10000 + a * 1000 + b);

-- Whole chains go: dead tuples at their heads. New values of the same nodes take their place (ADD_LEAF), or, where
-- other chains have filled the page meanwhile, only their number (MOVE_LEAFS).
create table chains (id int, t text);
create index chains_text on chains using spgist (t);
insert into chains select n, chr(65 + n % 60) || digits(n % 200) from generate_series(1, 2000) n;
delete from chains where id % 60 < 30;
vacuum chains;
insert into chains select n, chr(65 + n % 60) || digits(n % 200) from generate_series(1, 1500) n where n % 60 > 20;
insert into chains select n, chr(65 + n % 60) || repeat('w', 3000) || n from generate_series(0, 20) n;
delete from chains where id % 60 <> 30;
vacuum chains;
insert into chains select n, chr(65 + n % 60) || repeat('v', 100) || digits(n) from generate_series(1, 800) n;

-- The same again with images: after a checkpoint the first change of a page carries one, and the next does not.
checkpoint;
insert into words select n, digits(n * 31) from generate_series(1, 300) n;
insert into words select n, null from generate_series(1, 20) n;
checkpoint;
insert into fans select 'b' || chr(65 + a) || chr(4096 + a) from generate_series(1, 14) a;
insert into wide select repeat('x', n) || chr(9000 + n) || n from generate_series(1, 299, 7) n;
checkpoint;
insert into chains select n, chr(65 + n) || repeat('u', 2000) || n from generate_series(0, 59) n;
insert into fans select 'd' || chr(65 + a) || chr(8192 + a) from generate_series(1, 14) a;
insert into built select digits(n + 5000), point(n % 97, n % 89) from generate_series(1, 600) n;
checkpoint;
insert into built select digits(n + 9000), point(n % 3, n % 5) from generate_series(1, 300) n;
delete from words where id % 7 = 1;
delete from small;
vacuum words;
vacuum small;
checkpoint;
insert into words select n, 'common/' || digits(n) from generate_series(1, 400) n;
insert into shapes select n, point(n, n), int4range(n, n + 1), '10.9.9.0'::inet + n, box(point(n, n), point(n + 1, n + 1)), null
  from generate_series(1, 200) n;
vacuum;

-- A chain rolled back, a prepared transaction, and an index that goes and comes back.
begin;
insert into words select n, 'rolled back' || n from generate_series(1, 200) n;
rollback;
begin;
insert into words select n, 'prepared' || n from generate_series(1, 200) n;
prepare transaction 'spgist';
vacuum words;
commit prepared 'spgist';
reindex index concurrently words_text;
insert into words select n, digits(-n) from generate_series(1, 300) n;
truncate small;
insert into small values ('last'), (null);
