-- Changes to pages that were last written before a checkpoint, with full_page_writes off: nothing but redo.
update plain set t = t || 'z' where id % 3 = 0;
delete from plain where id % 4 = 1;
select count(*) from plain;
vacuum plain;
insert into plain select g, g, 'later', null from generate_series(7000, 7600) g;
vacuum (freeze) plain;
update chains set v = v + 1;
update ages set v = v + 1 where id % 2 = 0;
vacuum (freeze) ages;
insert into bloomed select g, g % 100, 'c' || g from generate_series(7001, 7500) g;
delete from bloomed where a % 5 = 0;
vacuum bloomed;
select count(nextval('counter')) from generate_series(1, 100);
create table after_all as select * from plain;
create index after_all_id on after_all (id);
update after_all set n = 'w' where id % 2 = 0;
truncate subs;
drop table conflicts;
vacuum (freeze);

-- Changes to all-visible pages that no vacuum follows: flags and map bits must be gone in the files too.
create table settled (id int, t text) with (autovacuum_enabled = off, fillfactor = 70);
insert into settled select g, repeat('s', 100) from generate_series(1, 4000) g;
delete from settled where id between 3000 and 3400;
vacuum (freeze) settled;
delete from settled where id between 100 and 102;
update settled set t = repeat('h', 100) where id = 400;
update settled set t = repeat('m', 2500) where id in (700, 1000, 1300);
insert into settled select 5000 + g, 'into free space' from generate_series(1, 3) g;
begin;
select id from settled where id = 2000 for update;
commit;
