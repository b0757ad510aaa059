//! Whether the page library can be put under a `postgres`: only if every call by which that program reaches files
//! through libc is one that the library intercepts, or one that is known to do no harm.
//!
//! Read from the program's dynamic symbols before each start. What is not known is refused: a hole that is read past
//! the library is a page of zeros, and Postgres takes it for one.
//!
//! Other libraries' functions that `postgres` imports (TLS, XML, ICU, compression) are theirs to answer for: they read
//! no relation. `liburing` would (18, `io_method = io_uring`), which the settings of a lazy start forbid.

mod names;

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
};

use object::{
    Endianness, SymbolIndex,
    elf::{self, FileHeader64},
    read::elf::{FileHeader, ProgramHeader, SectionTable, Sym, VersionTable},
};

/// Every `postgres` calls these; one that does not import them calls something else in their place.
#[rustfmt::skip]
const CORE: [&str; 13] = [
    "accept", "close", "epoll_ctl", "fdatasync", "ftruncate", "lseek", "open", "pread", "pwrite", "read", "recv", "unlink",
    "write",
];
/// What packs full-page images where `wal_compression` can be `lz4`.
const LZ4: &str = "LZ4_compress_default";
const SET_ID: u32 = 0o6000;
/// How glibc's versions of its symbols begin.
const GLIBC: &[u8] = b"GLIBC_";

/// Why the library cannot be put under a program.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("{path} cannot be read: {error}")]
    Unreadable { path: String, error: io::Error },
    #[error("{path} is not a program that can be checked: {error}")]
    Unknown { path: String, error: object::Error },
    #[error("this postgres is of another kind than the agent")]
    Foreign,
    #[error("this postgres is linked statically")]
    Static,
    #[error("this postgres changes its user when it is started (set-id bits)")]
    SetId,
    #[error("this postgres does not import `{name}` of glibc")]
    Missing { name: &'static str },
    #[error("this postgres imports `{name}`, which is not known to the page library")]
    Import { name: String },
}

/// A `postgres`, as it lies on the disk now.
pub struct Program {
    path: String,
    bytes: Vec<u8>,
    changes_user: bool,
}

impl Program {
    /// # Errors
    /// [`ImportError::Unreadable`].
    pub fn read(path: &Path) -> Result<Program, ImportError> {
        let name = path.display().to_string();
        let unreadable = |error| ImportError::Unreadable { path: name.clone(), error };
        let metadata = fs::metadata(path).map_err(unreadable)?;
        let bytes = fs::read(path).map_err(unreadable)?;
        Ok(Program { path: name, bytes, changes_user: changes_user(&metadata) })
    }

    /// Whether the library can be put under it.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), ImportError> {
        if self.changes_user {
            return Err(ImportError::SetId);
        }
        judge(&imports(&self.bytes).map_err(|error| match error {
            Trouble::Elf(error) => ImportError::Unknown { path: self.path.clone(), error },
            Trouble::Refused(refused) => refused,
        })?)
    }

    /// Whether it was built with LZ4, as far as can be told: it refuses to start with settings that need what it lacks.
    pub fn has_lz4(&self) -> bool {
        let imports = imports(&self.bytes).unwrap_or_default();
        imports.iter().any(|import| import.name == LZ4.as_bytes())
    }
}

/// The loader ignores `LD_PRELOAD` for such a program.
fn changes_user(metadata: &Metadata) -> bool {
    metadata.permissions().mode() & SET_ID != 0
}

enum Trouble {
    Elf(object::Error),
    Refused(ImportError),
}

impl From<object::Error> for Trouble {
    fn from(error: object::Error) -> Self {
        Trouble::Elf(error)
    }
}

/// A name that the program takes from a library.
struct Import<'d> {
    name: &'d [u8],
    is_glibc: bool,
}

type Header = FileHeader64<Endianness>;

fn imports(bytes: &[u8]) -> Result<Vec<Import<'_>>, Trouble> {
    let header = Header::parse(bytes)?;
    let endian = header.endian()?;
    if header.e_machine(endian) != MACHINE {
        return Err(Trouble::Refused(ImportError::Foreign));
    }
    let programs = header.program_headers(endian, bytes)?;
    if !programs.iter().any(|program| program.p_type(endian) == elf::PT_INTERP) {
        return Err(Trouble::Refused(ImportError::Static));
    }
    let sections: SectionTable<'_, Header> = header.sections(endian, bytes)?;
    let versions = sections.versions(endian, bytes)?;
    let symbols = sections.symbols(endian, bytes, elf::SHT_DYNSYM)?;
    let mut imports = Vec::new();
    for (index, symbol) in symbols.enumerate() {
        if symbol.st_shndx(endian) == elf::SHN_UNDEF && index.0 != 0 {
            let name = symbol.name(endian, symbols.strings())?;
            let is_glibc = is_glibc(versions.as_ref(), endian, index)?;
            imports.push(Import { name, is_glibc });
        }
    }
    Ok(imports)
}

/// What this agent runs on, and its library with it.
const MACHINE: u16 = if cfg!(target_arch = "aarch64") { elf::EM_AARCH64 } else { elf::EM_X86_64 };

fn is_glibc(
    versions: Option<&VersionTable<'_, Header>>,
    endian: Endianness,
    symbol: SymbolIndex,
) -> object::Result<bool> {
    let Some(versions) = versions else { return Ok(false) };
    let version = versions.version(versions.version_index(endian, symbol))?;
    Ok(version.is_some_and(|version| version.name().starts_with(GLIBC)))
}

/// A name of libc that has no version, as under musl, counts as one that is missing.
fn judge(imports: &[Import<'_>]) -> Result<(), ImportError> {
    let of_glibc = || imports.iter().filter(|import| import.is_glibc);
    for name in CORE {
        if !of_glibc().any(|import| import.name == name.as_bytes()) {
            return Err(ImportError::Missing { name });
        }
    }
    let unversioned =
        imports.iter().filter(|import| !import.is_glibc && is_intercepted(import.name));
    let unknown = of_glibc().filter(|import| !is_known(import.name));
    match unversioned.chain(unknown).next() {
        None => Ok(()),
        Some(import) => {
            Err(ImportError::Import { name: String::from_utf8_lossy(import.name).into_owned() })
        }
    }
}

fn is_intercepted(name: &[u8]) -> bool {
    holds(names::INTERCEPTED, name)
}

fn is_known(name: &[u8]) -> bool {
    let lists = [
        names::INTERCEPTED,
        names::NAMES_AND_STATUS,
        names::STREAMS,
        names::OTHER_FILES,
        names::NO_FILES,
    ];
    lists.iter().any(|list| holds(list, name))
}

fn holds(list: &[&str], name: &[u8]) -> bool {
    list.binary_search_by(|known| known.as_bytes().cmp(name)).is_ok()
}

#[cfg(test)]
mod tests;
