-- BRIN: every record type, with and without images, INIT_PAGE where there is one.

set client_min_messages = warning;
set enable_seqscan = off;

-- Text that stays as long as it is in an index.
create function noise(seed text, size int) returns text language sql as $$
  select substr(string_agg(md5(seed || i), ''), 1, size) from generate_series(0, size / 32) i
$$;

-- CREATE_INDEX, then REVMAP_EXTEND and INSERT of a build: one heap tuple a page, one page a range. 1500 ranges are
-- more than the 1360 of one revmap page, so the second one takes the place of the first page of summaries.
create table built (id int, k text collate "C", pad text) with (fillfactor = 10);
alter table built alter pad set storage plain;
insert into built select i, md5(i::text), repeat('p', 900) from generate_series(1, 1500) i;
create index built_id on built using brin (id) with (pages_per_range = 1);
create index built_pair on built using brin (k, id int4_minmax_multi_ops) with (pages_per_range = 2);
create index built_bloom on built using brin (id int4_bloom_ops) with (pages_per_range = 64);
create unlogged table unlogged_built (id int);
create index on unlogged_built using brin (id);

-- An index on an empty table: its first range is summarized as rows come.
create table grown (id int, k text collate "C", pad text) with (fillfactor = 10);
alter table grown alter pad set storage plain;
create index grown_id on grown using brin (id) with (pages_per_range = 1);
create index grown_k on grown using brin (k) with (pages_per_range = 1, autosummarize = on);

-- INSERT (of placeholders), SAMEPAGE_UPDATE (of placeholders by summaries): summarizing, range by range.
insert into grown select i, i::text, repeat('p', 900) from generate_series(1, 40) i;
select brin_summarize_range('grown_id', 5), brin_summarize_range('grown_k', 7) \g /dev/null
select brin_summarize_new_values('grown_id'), brin_summarize_new_values('grown_k') \g /dev/null
-- The same right after a checkpoint: images of both pages.
insert into grown select i, i::text, repeat('p', 900) from generate_series(41, 80) i;
checkpoint;
select brin_summarize_new_values('grown_id'), brin_summarize_new_values('grown_k') \g /dev/null

-- SAMEPAGE_UPDATE: a summary that stays as long as it is, one that grows, one that shrinks.
update grown set id = -id where id % 3 = 0;
update grown set k = k || noise(k, 20) where id % 5 = 1;
checkpoint;
update grown set k = k || noise(k, 40) where id % 5 = 2;

-- UPDATE with INIT_PAGE: a summary outgrows its page and begins a new one; UPDATE without: others follow it there.
update grown set k = k || noise(k, 700) where id between 10 and 30;
update grown set k = k || noise(k, 1900) where id between 31 and 40;
checkpoint;
update grown set k = k || noise(k, 1500) where id between 41 and 60;

-- DESUMMARIZE: of the last summary of a page (its line pointer goes) and of others (it stays, free); then again.
select brin_desummarize_range('grown_id', block), brin_desummarize_range('grown_k', block)
  from unnest(array[79, 78, 3, 9, 10, 11, 41, 50]) block \g /dev/null
checkpoint;
select brin_desummarize_range('grown_id', block), brin_desummarize_range('grown_k', block)
  from unnest(array[77, 4, 12, 51, 4]) block \g /dev/null
select brin_summarize_new_values('grown_id'), brin_summarize_new_values('grown_k') \g /dev/null

-- REVMAP_EXTEND into a page of summaries: they are moved by UPDATE before the revmap takes the page. Once without
-- images, once with.
insert into grown select i, i::text, repeat('p', 900) from generate_series(81, 1340) i;
vacuum grown;
insert into grown select i, i::text, repeat('p', 900) from generate_series(1341, 1420) i;
select brin_summarize_new_values('grown_id') \g /dev/null
checkpoint;
select brin_summarize_new_values('grown_k') \g /dev/null
vacuum grown;

-- The same records with other summaries: inclusion (also empty and unmergeable values), nulls, blooms.
create table mixed (r int4range, n inet, i int, t timestamptz);
create index mixed_all on mixed using brin (r, n inet_inclusion_ops, i int4_minmax_multi_ops, t)
  with (pages_per_range = 2);
create index mixed_bloom on mixed using brin (i int4_bloom_ops) with (pages_per_range = 4);
insert into mixed select null, null, null, null from generate_series(1, 500);
insert into mixed
  select case when i % 7 = 0 then 'empty' else int4range(i, i + i % 50) end,
         case when i % 500 = 0 then inet '::1' else inet '10.0.0.0' + i end,
         i * 7919 % 100003, timestamptz '2020-01-01 00:00:00+00' + i * interval '1 minute'
  from generate_series(1, 9000) i;
vacuum mixed;
update mixed set i = i + 1000000, r = null where i % 97 = 0;
delete from mixed where i % 2 = 0;
vacuum mixed;
vacuum full mixed;
reindex table grown;
