//! Builds the page library (`shim/`) and hands its path to `src/pages/library.rs`, which carries it in the agent.
//!
//! A library of its own kind: with the feature that exports libc's names, which nothing that is linked into the agent
//! may have, and always optimised. So cargo is called once more, in a target folder of its own, without what the
//! outer call (clippy, coverage, sanitizers) puts around the compiler.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// What the outer cargo says about its own way of compiling.
const OUTER: [&str; 7] = [
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_BUILD_TARGET",
];
const SOURCES: [&str; 6] = [
    "shim/src",
    "shim/Cargo.toml",
    "presence/src",
    "presence/Cargo.toml",
    "../Cargo.toml",
    "../Cargo.lock",
];

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let target_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("pages");
    let target = env::var("TARGET").expect("cargo sets it");
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    build(&here, &target_dir, &target);
    let library = target_dir.join(&target).join("release/libtreering_pages.so");
    assert!(library.is_file(), "no library at {}", library.display());
    println!("cargo::rustc-env=TREERING_PAGES_LIBRARY={}", library.display());
}

/// Offline: whatever the library needs, the agent needs too, so it is here.
fn build(here: &Path, target_dir: &Path, target: &str) {
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets it"));
    cargo.args(["build", "--release", "--quiet", "--locked", "--offline", "--lib"]);
    cargo.args(["--package", "treering-pages", "--features", "treering-pages/preload"]);
    cargo.args(["--target", target, "--config", "profile.release.strip=true"]);
    cargo.arg("--manifest-path").arg(here.join("shim/Cargo.toml"));
    cargo.arg("--target-dir").arg(target_dir);
    for variable in OUTER {
        cargo.env_remove(variable);
    }
    let status = cargo.status().expect("call cargo");
    assert!(status.success(), "the page library does not build: {status}");
}
