//! What the judge of page images cannot see, one test each: the exceptions E1 to E18 to "a record and its own page",
//! and everything beside pages. Every test proves that its case occurred, then that redo agrees with the files that
//! stock recovery leaves.

mod commit_times;
mod crash;
mod handmade;
mod indexes;
mod maps;
mod ordinary;
mod prepared;
mod refused;
mod relations;
mod scene;
mod slrus;
