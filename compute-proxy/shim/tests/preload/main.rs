//! The library under a real program: this test binary, executed again with `LD_PRELOAD`, beside an agent in the
//! parent. Every test is one function with two halves, see [`stage::play`].

// Calls as a C program makes them.
#![allow(unsafe_code)]

mod agent;
mod crowd;
mod cuts;
mod failures;
mod files;
mod flush;
mod harmless;
mod pages;
mod postgres;
mod reads;
mod stage;
mod writes;
