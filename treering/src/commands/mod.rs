//! The user's commands, one noun a file.

pub mod branch;
pub mod connect;
pub mod demo;
pub mod doctor;
pub mod logs;
pub mod status;
pub mod storage;
