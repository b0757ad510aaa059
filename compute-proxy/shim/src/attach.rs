//! Joining the agent: the environment, the shared file, the first hello. Once, before the program's `main`.

use core::ffi::{CStr, c_int};
use core::fmt;
use core::sync::atomic::AtomicU32;
use std::sync::OnceLock;

use treering_presence::{Directory, DirectoryError, FileIdentity, HeaderError, Map, MapPlace};

use crate::agent::{self, Broken};
use crate::calls;
use crate::complain::complain;
use crate::ready::Patience;

/// The variable with the number of the shared file's descriptor.
const VARIABLE: &CStr = c"TREERING_PAGES";
const PRELOAD: &CStr = c"LD_PRELOAD";

/// The shared file, for as long as the process and its children live.
pub type Shared = Directory<'static, AtomicU32>;

static SHARED: OnceLock<Shared> = OnceLock::new();

/// The shared file; `None` in a program that no agent started.
#[inline]
pub fn shared() -> Option<&'static Shared> {
    SHARED.get()
}

/// The map at a place that [`find`] gave.
#[inline]
pub fn known_map(place: MapPlace) -> Option<Map<'static>> {
    shared()?.known_map(place)
}

/// The map of a file, if it has one. An error: its map is damaged, or might be.
pub fn find(shared: &Shared, status: &calls::Status) -> Result<Option<MapPlace>, HeaderError> {
    if !status.is_regular {
        return Ok(None);
    }
    let calls::Status { device, inode, birth_ns, .. } = *status;
    shared.find(FileIdentity { device, inode, birth_ns })
}

/// Why a program cannot have its pages.
enum Refusal {
    Number,
    Descriptor(c_int),
    Mapping(c_int),
    Length(u64),
    Directory(DirectoryError),
    Hello(Broken),
    Bypassed,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Number => write!(f, "TREERING_PAGES is not the number of a descriptor"),
            Refusal::Descriptor(code) => write!(f, "TREERING_PAGES is not open (errno {code})"),
            Refusal::Mapping(code) => write!(f, "cannot map the presence maps (errno {code})"),
            Refusal::Length(bytes) => write!(f, "{bytes} bytes are no directory of presence maps"),
            Refusal::Directory(error) => error.fmt(f),
            Refusal::Hello(broken) => write!(f, "the agent {broken}"),
            Refusal::Bypassed => write!(f, "another library stands before this one"),
        }
    }
}

/// Joins the agent that the environment names, or ends the program.
pub fn start() {
    // SAFETY: before `main`, nobody else changes the environment.
    let value = unsafe { libc::getenv(VARIABLE.as_ptr()) };
    if value.is_null() {
        return;
    }
    // SAFETY: a variable's value ends with a zero; it is read before it is taken out.
    let number = unsafe { CStr::from_ptr(value) }.to_str().ok().and_then(|text| text.parse().ok());
    // SAFETY: as above. What this program executes is not Postgres and gets neither.
    unsafe {
        libc::unsetenv(VARIABLE.as_ptr());
        libc::unsetenv(PRELOAD.as_ptr());
    }
    let number = number.ok_or(Refusal::Number);
    let number =
        number.and_then(|number| if is_first() { Ok(number) } else { Err(Refusal::Bypassed) });
    let joined = number.and_then(map_file).and_then(greet);
    if let Err(refusal) = joined {
        complain(format_args!("{refusal}; this program does not run without its pages"));
        // SAFETY: ends the process.
        unsafe { libc::_exit(1) }
    }
}

/// Whether the program finds this library's functions under libc's names: if not, nothing would be durable.
fn is_first() -> bool {
    let ours = crate::doors::fdatasync as *const () as *mut core::ffi::c_void;
    // SAFETY: a name that ends.
    cfg!(not(feature = "preload"))
        || unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"fdatasync".as_ptr()) } == ours
}

fn map_file(fd: c_int) -> Result<Shared, Refusal> {
    let status = calls::status(fd).map_err(Refusal::Descriptor)?;
    let bytes = usize::try_from(status.size_bytes).ok().filter(|bytes| bytes.is_multiple_of(4));
    let bytes = bytes.filter(|bytes| *bytes > 0).ok_or(Refusal::Length(status.size_bytes))?;
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping at a place of the kernel's choice.
    let place = unsafe { calls::mmap(core::ptr::null_mut(), bytes, access, kind, fd, 0) };
    if place == libc::MAP_FAILED {
        return Err(Refusal::Mapping(calls::errno()));
    }
    calls::close(fd);
    // SAFETY: the mapping is `bytes` long, aligned to a page, never unmapped, and only ever used as atomics.
    let words = unsafe { core::slice::from_raw_parts(place.cast::<AtomicU32>(), bytes / 4) };
    Directory::open(words).map_err(Refusal::Directory)
}

/// Shows the agent that its library is here, and this process that its agent is. The connection is not kept: the
/// program is a postmaster, which hardly misses a page, and its children would inherit it.
fn greet(shared: Shared) -> Result<(), Refusal> {
    let shared = SHARED.get_or_init(|| shared);
    let mut patience = Patience::new(shared.wait_limit_ms());
    loop {
        match agent::connect(shared, &mut patience) {
            Ok(_connection) => return Ok(()),
            Err(broken) if broken.is_final() || !patience.before_next_try() => {
                return Err(Refusal::Hello(broken));
            }
            Err(_) => {}
        }
    }
}
