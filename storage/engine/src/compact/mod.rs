//! Compaction, and gc, which is compaction with a list of what must stay readable.
//!
//! [`plan`] says which adjacent runs to merge (pure); [`merge`] streams their entries; [`sieve`] lets through what [`points`] need,
//! asking [`past`] about relations and pages; [`copies`] adds pages of copied databases; [`output`] writes the run; [`parts`] says what may be done side by side,
//! [`moves`] what need not be done at all, [`pace`] how fast; [`run`] ties them together and publishes; [`thread`] does so behind everyone's back.
//!
//! # What may be dropped
//!
//! *Retained* LSNs of a timeline T: every one from its cut-off K on; below K the forks of its direct branches, its leases, and the
//! LSNs of database copies that relation metadata in its files names and that have no pages of their own yet. Nothing below K joins them later (`timeline::retention`),
//! so a merge that keeps what they see keeps what anyone may ask for. Who may ask T's files for a value at an LSN?
//!
//! - *A read of T* at L: checked against K, leases and branches. L is retained.
//! - *A read through a branch B* forked at P, of B itself or of any branch below it: a view clips T at the least fork on the way, which is a
//!   fork of a direct branch of T. B cannot be deleted while it has branches. P is retained.
//! - *A read of a copied relation* (`RelMeta::copy_of`), at any L that shows the copy, goes on in its source at the copy's LSN c. T holds c
//!   if the copying record is in T's log; then the metadata that shows the copy was first written by T, and as long as a retained LSN of T
//!   shows it, a value of it lies in T's files. (A branch that sees the copy sees it at its fork, which T retains; copies that a branch makes
//!   have LSNs of its own.) So c is retained. A copy of a copy is found the same way: its own LSN is retained, so the metadata that
//!   shows the first copy there stays. A copy made above K is no concern yet. Once K has passed c, the merge of the run that holds c gives the
//!   copy pages of its own, at c ([`copies`]), and c is not retained on its account any more.
//! - *A flush or a merge of T or of a branch* that makes an image reads at LSNs at or above K, or at the fork.
//! - *Ingest* reads at T's last record. Lookups of record ends and times are below.
//!
//! What does a retained LSN p see of a key? The newest base at or below p and the changes after it up to p. A merge sees some adjacent
//! runs: newer ones may hold a newer base (then too much is kept), older runs and ancestors older values (then there is
//! no base here, and all changes up to p are kept: they go on below). So per key, an entry stays if some p ≥ its LSN has no base in
//! between: [`sieve`] holds entries back until a retained LSN has passed them, and drops them when a base comes first.
//!
//! - *Cuts*: a read at p takes nothing of a block at or below its relation's floor at p; without the relation, nothing at all. Floors
//!   rise with the LSN, and whoever reuses the number of a dropped relation begins above it. So entries that the first p past them
//!   does not see, none sees. Where a branch cuts a relation, its floor lies above its fork, or is the one at the fork.
//! - *Images*: the page at LSN x is the same for all who see x. In place of a chain stands an image *at the LSN x of its last change*, made of
//!   the changes up to x alone, with the floor and the copy source that p knows. Whoever sees x may start from it.
//! - *Tombstones* hide older values: they go where nothing can be older, in the last run of a timeline without ancestor.
//! - *One LSN*: entries of one key and LSN are decided about together and keep their order, older runs first; a base removes those before it.
//! - *Record ends*: a lookup takes the newest value of a WAL page whatever its LSN (values only grow), and the last three pages at or
//!   below p. Older values of a page go, and pages that are not among the last three of any p.
//! - *Times*: stamps and LSNs rise together, so the class is one history: p needs its newest entry. For a time before what is kept
//!   the next entry left ends below K: that answer is refused, as its LSN is.
//! - *Layers that lie alone* ([`moves`]): with no entry of another run between its keys and none below K, a layer is kept whole. Each entry is
//!   seen by its own LSN.
//!
//! What cannot be known now (an ancestor is catching up after a crash, a damaged value) is kept.

mod copies;
mod merge;
mod moves;
mod output;
mod pace;
mod parts;
mod past;
mod plan;
mod points;
mod run;
mod sieve;
pub(crate) mod thread;
mod weigh;

pub(crate) use pace::Haste;
pub(crate) use points::Points;
pub use run::Compacted;

#[cfg(test)]
mod tests;
