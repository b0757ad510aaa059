//! Our readings and writings of Postgres's files against stock Postgres 15: its own tools must agree with what we
//! read, and the server must start from what we write. Postgres missing is a failure.

mod files;
mod start;
mod wal;
