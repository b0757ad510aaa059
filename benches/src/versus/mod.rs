//! A branch's compute, with everything of ours that a user would have running, against vanilla Postgres 15: both over
//! TCP, on the same cores, with the same data.

mod pairs;
mod server;
mod stage;

pub use pairs::{Better, Half, Judged, compare};
pub use server::{Server, Session, Vanilla};
pub use stage::Stage;
