-- Every record type again on pages that were written before the checkpoint, without images.
insert into words select n, digits(n * 77) || 'after' from generate_series(1, 1200) n;
insert into words select n, null from generate_series(1, 500) n;
insert into words select n, 'common/prefix/of/other/' || n || digits(n) from generate_series(1, 600) n;
insert into fans select 'b' || chr(65 + a) || chr(64 * b) from generate_series(1, 14) a, generate_series(32, 60) b;
insert into wide select repeat('x', 300) || chr(500 + n) || n || digits(n) from generate_series(1, 200) n;
insert into large select n, chr(100 + n) || repeat(chr(97 + n % 11), 9000 + n * 900) || n from generate_series(1, 12) n;
insert into small select digits(n) from generate_series(1, 20) n;
delete from chains where id % 3 = 0;
delete from words where id % 5 = 0;
delete from small where t < '7';
vacuum chains, words, small;
insert into chains select n, chr(65 + n % 60) || repeat('s', 1500) || n from generate_series(1, 120) n;
vacuum;
