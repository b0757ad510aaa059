use std::{collections::HashSet, fs::Permissions, path::PathBuf};

use treering_stock::Postgres;

use super::*;
use crate::pages::library;

fn postgres(major: u32) -> PathBuf {
    Postgres::find(major).unwrap().program("postgres").unwrap()
}

fn check(path: &Path) -> Result<(), ImportError> {
    Program::read(path)?.check()
}

/// A copy of the program of 15, with one name replaced by another of the same length, wherever it stands as a whole.
fn patched(dir: &Path, name: &str, other: &str) -> PathBuf {
    assert_eq!(name.len(), other.len());
    let mut bytes = fs::read(postgres(15)).unwrap();
    let whole = |name: &str| [b"\0", name.as_bytes(), b"\0"].concat();
    let (name, other) = (whole(name), whole(other));
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    bytes[at..at + name.len()].copy_from_slice(&other);
    let path = dir.join("postgres");
    fs::write(&path, bytes).unwrap();
    path
}

fn may_be_lazy(majors: &[u32]) {
    for &major in majors {
        check(&postgres(major)).unwrap_or_else(|error| panic!("{major}: {error}"));
    }
}

#[test]
fn majors_may_be_lazy() {
    may_be_lazy(&[15, 17]);
}

#[test]
#[ignore = "make test-all fetches 16 and 18 and runs this"]
fn the_other_majors_may_be_lazy() {
    may_be_lazy(&[16, 18]);
}

#[test]
fn an_unknown_import_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = patched(dir.path(), "sync_file_range", "lazy_file_range");
    let sentence =
        "this postgres imports `lazy_file_range`, which is not known to the page library";
    assert_eq!(check(&path).unwrap_err().to_string(), sentence);
}

/// Each is asked whether it would start with `wal_compression = lz4`.
#[test]
fn who_has_lz4() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("postgresql.conf"), "").unwrap();
    let takes_lz4 = |path: &Path| {
        let mut command = std::process::Command::new(path);
        command.args(["-C", "wal_compression", "-c", "wal_compression=lz4", "-D"]).arg(dir.path());
        command.output().unwrap().stdout == b"lz4\n"
    };
    let has_lz4 = |path: &Path| Program::read(path).unwrap().has_lz4();
    for major in [15, 17] {
        let path = postgres(major);
        assert_eq!(has_lz4(&path), takes_lz4(&path), "{major}");
    }
    assert!(has_lz4(&postgres(15)) && !has_lz4(&postgres(17)), "both kinds were looked at");
    assert!(!has_lz4(&patched(dir.path(), LZ4, "LZ5_compress_default")));
    let path = dir.path().join("postgres");
    fs::write(&path, "#!/bin/sh").unwrap();
    assert!(!has_lz4(&path));
}

#[test]
fn a_core_function_that_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    // A known name in its place, so that only the absence shows.
    let path = patched(dir.path(), "pwrite", "getpid");
    let sentence = "this postgres does not import `pwrite` of glibc";
    assert_eq!(check(&path).unwrap_err().to_string(), sentence);
}

#[test]
fn names_of_no_version_are_another_libc() {
    let dir = tempfile::tempdir().unwrap();
    let path = patched(dir.path(), "GLIBC_2.2.5", "OTHER_2.2.5");
    assert!(matches!(check(&path), Err(ImportError::Missing { .. })));
}

#[test]
fn programs_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("postgres");
    assert!(matches!(check(&path), Err(ImportError::Unreadable { .. })));
    let whole = fs::read(postgres(15)).unwrap();
    for bytes in [&b"#!/bin/sh\nexec postgres"[..], b"", &whole[..5000], &whole[..64]] {
        fs::write(&path, bytes).unwrap();
        assert!(matches!(check(&path), Err(ImportError::Unknown { .. })), "{}", bytes.len());
    }
    let mut foreign = whole.clone();
    foreign[18] ^= 1;
    fs::write(&path, foreign).unwrap();
    assert!(matches!(check(&path), Err(ImportError::Foreign)));
    fs::write(&path, whole).unwrap();
    check(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o4755)).unwrap();
    assert!(matches!(check(&path), Err(ImportError::SetId)));
}

#[test]
fn a_static_program() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("postgres");
    let mut bytes = fs::read(postgres(15)).unwrap();
    // The header that names the loader becomes one that says nothing.
    let header = Header::parse(&*bytes).unwrap();
    let endian = header.endian().unwrap();
    let programs = header.program_headers(endian, &*bytes).unwrap();
    let interp = programs.iter().position(|program| program.p_type(endian) == elf::PT_INTERP);
    let at = header.e_phoff(endian) as usize + interp.unwrap() * size_of_val(&programs[0]);
    bytes[at..at + 4].fill(0);
    fs::write(&path, bytes).unwrap();
    assert!(matches!(check(&path), Err(ImportError::Static)));
}

#[test]
fn the_lists_are_sorted_and_apart() {
    let mut seen = HashSet::new();
    for list in [
        names::INTERCEPTED,
        names::NAMES_AND_STATUS,
        names::STREAMS,
        names::OTHER_FILES,
        names::NO_FILES,
    ] {
        assert!(list.is_sorted());
        assert!(list.iter().all(|name| seen.insert(*name)));
    }
    assert!(CORE.iter().all(|name| is_intercepted(name.as_bytes())));
}

/// What is called intercepted is what the library that is carried exports.
#[test]
fn what_is_called_intercepted_is() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = fs::read(library::install(dir.path()).unwrap()).unwrap();
    let header = Header::parse(&*bytes).unwrap();
    let endian = header.endian().unwrap();
    let sections = header.sections(endian, &*bytes).unwrap();
    let symbols = sections.symbols(endian, &*bytes, elf::SHT_DYNSYM).unwrap();
    let exported: HashSet<&str> = symbols
        .iter()
        .filter(|symbol| symbol.st_shndx(endian) != elf::SHN_UNDEF)
        .map(|symbol| std::str::from_utf8(symbol.name(endian, symbols.strings()).unwrap()).unwrap())
        .collect();
    assert_eq!(exported, names::INTERCEPTED.iter().copied().collect());
}
