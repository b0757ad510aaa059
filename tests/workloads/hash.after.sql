-- Hash, with full-page writes off.

-- Scans mark index tuples dead only after the deletion's commit is on disk.
set synchronous_commit = on;
set enable_seqscan = off;
set enable_bitmapscan = off;

-- SQUEEZE_PAGE block 2: the freed page has no image, so that it is made from nothing. Also MOVE_PAGE_CONTENTS,
-- DELETE, UPDATE_META_PAGE, and ADD_OVFL_PAGE of the freed pages.
set wal_consistency_checking = '';
delete from chain;
vacuum (index_cleanup on) chain;
insert into chain select k, n from pages, generate_series(0, pages * 407 - 1) n order by k, n;
delete from chain c where not exists (
    select from kept where kept.k = c.k and c.n between page * 407 + first and page * 407 + last);
set wal_consistency_checking = 'all';
vacuum (index_cleanup on) chain;
insert into chain select 1, n from generate_series(0, 900) n;

-- SPLIT_ALLOCATE_PAGE, SPLIT_COMPLETE, SPLIT_CLEANUP.
insert into split select generate_series(2001, 2300);

-- VACUUM_ONE_PAGE.
delete from dead where n % 5 = 0;
select count(*) from dead where k = 1;
insert into dead select 1, n from generate_series(5000, 5300) n;
