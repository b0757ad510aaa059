//! The life of one compute: stock Postgres, from base backup to exit.

pub mod beneath;
pub mod log;
pub mod owner;
pub mod prepare;
pub mod reap;
pub mod record;
pub mod settings;
pub mod supervise;
