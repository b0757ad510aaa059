//! One server's life with a bit of everything in it, which most tests share.

use std::{collections::HashMap, sync::OnceLock};

use super::scene::{self, Hints, Scene, cluster, filenode, filenode_in, script, template};

/// The scene, and the files of the relations that tests ask about.
pub struct Ordinary {
    pub scene: Scene,
    pub hints: Hints,
    files: HashMap<String, u32>,
}

impl Ordinary {
    pub fn file(&self, name: &str) -> u32 {
        self.files[name]
    }
}

/// The lives: with hints logged and images, and without both.
pub fn lives() -> [&'static Ordinary; 3] {
    static LIVES: [OnceLock<Ordinary>; 3] = [const { OnceLock::new() }; 3];
    let [first, second, third] = &LIVES;
    [
        first.get_or_init(|| live(15, Hints::Logged)),
        second.get_or_init(|| live(15, Hints::Unlogged)),
        third.get_or_init(|| live(17, Hints::Unlogged)),
    ]
}

fn live(major: u32, hints: Hints) -> Ordinary {
    let base = template(major, hints);
    let settings = match hints {
        Hints::Logged => "track_commit_timestamp = on",
        Hints::Unlogged => "full_page_writes = off\nwal_compression = pglz",
    };
    let mut server = cluster(major, &base, settings);
    server.start().unwrap();
    for part in [MAPS, RELATIONS, DATABASES, INDEXES] {
        script(&server, part);
    }
    for setting in ["on", "off"] {
        server.stop("fast").unwrap();
        script_setting(&server, &format!("wal_log_hints = {setting}"));
        server.start().unwrap();
        script(&server, "create table again as select 1 as one; vacuum again; drop table again;");
    }
    // Last, because prepared transactions keep vacuum from its work.
    script(&server, TRANSACTIONS);
    let mut files = HashMap::new();
    for name in
        ["seen", "cut", "mapped", "grown", "unlogged", "unlogged_k", "unlogged_s", "chain_k"]
    {
        files.insert(name.to_owned(), filenode(&server, name));
    }
    for name in ["kept", "changed"] {
        files.insert(format!("origin.{name}"), filenode_in(&server, "origin", name));
    }
    server.stop("fast").unwrap();
    Ordinary { scene: Scene::of(&base, &server), hints, files }
}

fn script_setting(server: &treering_stock::Cluster, line: &str) {
    let path = server.data().join("postgresql.auto.conf");
    let text = std::fs::read_to_string(path).unwrap() + line + "\n";
    server.write("postgresql.auto.conf", text.as_bytes()).unwrap();
}

/// Frozen pages and each kind of change that clears their bits; truncation in the middle of a byte of the map.
const MAPS: &str = "
create table seen (id int, v text) with (fillfactor = 90);
insert into seen select g, repeat('v', 100) from generate_series(1, 3000) g;
create table into_gaps as select * from seen;
create table copied_to as select * from seen;
create table moved_to as select * from seen;
delete from into_gaps where id between 1000 and 1400;
delete from copied_to where id between 1000 and 1400;
delete from moved_to where id between 1000 and 1400;
vacuum (freeze) seen, into_gaps, copied_to, moved_to;
insert into into_gaps values (5001, 'i');
delete from seen where id = 100;
update seen set v = repeat('h', 100) where id = 200;
begin;
select id from seen where id = 400 for update;
commit;
update moved_to set v = repeat('m', 1500) where id = 300;
copy copied_to from stdin;
6001	c
6002	c
\\.

create table cut (id int, v text);
insert into cut select g, repeat('c', 500) from generate_series(1, 3000) g;
vacuum (freeze) cut;
delete from cut where id > 700;
vacuum cut;
create table grown as select g, repeat('g', 500) v from generate_series(1, 3000) g;
truncate grown;
insert into grown select g, 'g' from generate_series(1, 700) g;
vacuum grown;
";

/// Files that come and go.
const RELATIONS: &str = "
create table gone as select g from generate_series(1, 2000) g;
create index gone_g on gone (g);
vacuum gone;
drop table gone;
begin;
create table never as select g from generate_series(1, 2000) g;
rollback;
begin;
truncate seen;
rollback;
create unlogged table unlogged (k int, s serial);
create index unlogged_k on unlogged using hash (k);
create unlogged sequence unlogged_s;
insert into unlogged select generate_series(1, 500);
select nextval('unlogged_s') from generate_series(1, 40);
create table mapped as select g from generate_series(1, 100) g;
vacuum full pg_class;
vacuum full pg_authid;
create tablespace place location '';
create tablespace emptied location '';
create table placed tablespace place as select g from generate_series(1, 1000) g;
create table carried as select g from generate_series(1, 1000) g;
alter table carried set tablespace place;
drop tablespace emptied;
";

/// Databases copied file by file and by the log, moved and dropped; the source changes afterwards.
const DATABASES: &str = "
create database origin strategy file_copy;
\\connect origin
create table kept as select g, 'kept' v from generate_series(1, 3000) g;
create table changed as select g, 'before' v from generate_series(1, 3000) g;
create table doomed as select g from generate_series(1, 1000) g;
create unlogged table unlogged (g int primary key);
insert into unlogged select generate_series(1, 1000);
vacuum (freeze) kept, changed, doomed;
vacuum full pg_class;
\\connect postgres
create database duplicate template origin strategy file_copy;
create database logged template origin strategy wal_log;
\\connect origin
update changed set v = 'after' where g % 2 = 0;
delete from kept where g = 1;
drop table doomed;
truncate unlogged;
vacuum full pg_class;
create table later as select g from generate_series(1, 1000) g;
\\connect duplicate
delete from changed where g = 7;
\\connect postgres
create database brief strategy file_copy;
drop database brief;
create database moved template origin strategy file_copy;
alter database moved set tablespace place;
\\connect moved
delete from kept where g = 9;
";

/// Two-phase states across a checkpoint, multixacts, subtransactions.
const TRANSACTIONS: &str = "
create table t (id int primary key, n int);
insert into t select g, 0 from generate_series(1, 3000) g;
create table dropped_by_prepared as select 1 as one;
begin;
insert into t values (10001, 1);
savepoint one;
insert into t values (10002, 1);
prepare transaction 'kept';
begin;
create table made_by_prepared (id int primary key);
insert into made_by_prepared select generate_series(1, 100);
savepoint one;
drop table dropped_by_prepared;
prepare transaction 'done';
begin;
create table unmade_by_prepared (id int primary key);
prepare transaction 'undone';
checkpoint;
select count(*) from t;
commit prepared 'done';
rollback prepared 'undone';
begin;
insert into t values (10003, 1);
prepare transaction 'brief';
commit prepared 'brief';
do $$ begin
  for i in 1..2200 loop
    perform 1 from t where id = i for key share;
    begin
      update t set n = n + 1 where id = i;
    exception when division_by_zero then null;
    end;
  end loop;
end $$;
select pg_replication_origin_create('late'), pg_replication_origin_create('by hand');
select pg_replication_origin_session_setup('late');
begin;
select pg_replication_origin_xact_setup('7/70', '2020-02-02 02:02:02+00');
insert into t values (10004, 1);
commit;
begin;
select pg_replication_origin_xact_setup('6/60', '2020-02-02 02:02:02+00');
insert into t values (10005, 1);
commit;
select pg_replication_origin_session_reset();
select pg_replication_origin_advance('by hand', '9/90');
select pg_replication_origin_advance('by hand', '8/80');
select pg_switch_wal();
";

/// Hash chains that vacuum squeezes.
const INDEXES: &str = "
create table chain (k int, n int);
insert into chain values (0, 0);
update pg_class set relpages = 1, reltuples = 20000 where oid = 'chain'::regclass;
create index chain_k on chain using hash (k);
insert into chain select 1 + g % 3, g from generate_series(1, 9000) g;
delete from chain where n % 2 = 0;
vacuum chain;
insert into chain select 1 + g % 3, g from generate_series(9000, 10000) g;
";

#[track_caller]
pub fn assert_all_clean() {
    lives().iter().for_each(|life| life.scene.assert_clean());
}

pub use scene::has_image;
