//! The engine and its object store, both simulated: crashes at every call, time-outs that happened and that did not, lost disks, two
//! pageservers at once. Whatever was acknowledged is found by a pageserver with an empty disk, and nothing that was deleted comes back.

mod archive;
mod crash;
mod evict;
mod faults;
mod node;
mod race;
#[path = "../../../storage/engine/tests/support/mod.rs"]
mod support;
