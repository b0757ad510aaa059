//! A folder with lazy files, the shared file, an agent, and this test once more as the program under the library.

use std::any;
use std::env;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, OnceLock};

use treering_presence::{Agent, Directory, FileIdentity, Layout, Terms};

use crate::agent::{Lazy, Listening, Memory, Pages, Reply};
use crate::pages::PAGE;

/// Where cargo lets tests and benches write.
const TARGET: &str = env!("CARGO_TARGET_TMPDIR");
/// Tells the program under the library where its files are.
pub const FOLDER: &str = "PAGES_TEST_FOLDER";

/// What a test has.
pub struct Setting {
    /// Lazy files: name, blocks.
    pub files: &'static [(&'static str, u32)],
    pub wait_limit_ms: u32,
    /// What the agent does about the n-th fetch.
    pub rule: fn(u32) -> Reply,
    pub welcome: Reply,
}

pub const USUAL: Setting = Setting {
    files: &[("a", 300)],
    wait_limit_ms: 20_000,
    rule: |_| Reply::Serve,
    welcome: Reply::Serve,
};

/// The parent's half.
pub struct Stage {
    pub memory: Arc<Memory>,
    pub words: &'static [AtomicU32],
    pub listening: Mutex<Option<Listening>>,
    shared: OwnedFd,
    test: String,
    // The last to go: the socket is in it.
    pub folder: tempfile::TempDir,
}

/// Runs a test: `child` in a process of its own under the library, in a folder with the files. `None` in that
/// process, when it is done. In the parent, the stage with everything that happened, after the child succeeded.
pub fn play<F: FnOnce(&Path)>(setting: &Setting, child: F) -> Option<Stage> {
    let stage = set(setting, child)?;
    let output = stage.run();
    let said = String::from_utf8_lossy(&output.stderr);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}\n{told}\n{said}", output.status);
    assert_eq!(said.lines().find(|line| line.contains("treering pages")), None);
    Some(stage)
}

/// The same up to the run.
pub fn set<F: FnOnce(&Path)>(setting: &Setting, child: F) -> Option<Stage> {
    if let Some(folder) = env::var_os(FOLDER) {
        child(Path::new(&folder));
        return None;
    }
    // The name of the closure, which must be one, is that of the test that it is in.
    let name = any::type_name::<F>().trim_start_matches("preload::");
    Some(Stage::new(setting, name.trim_end_matches("::{{closure}}")))
}

impl Stage {
    /// With new files in a new folder.
    pub fn new(setting: &Setting, test: &str) -> Stage {
        let folder = tempfile::tempdir_in(TARGET).unwrap();
        let files = setting.files.iter().map(|(name, blocks)| {
            let path = folder.path().join(name);
            let file = File::create_new(&path).unwrap();
            file.set_len(u64::from(*blocks) * PAGE as u64).unwrap();
            (path, *blocks)
        });
        let files: Vec<_> = files.collect();
        Stage::over(folder, &files, Pages::new(), setting, test)
    }

    /// Over files that are there, and sparse.
    pub fn over(
        folder: tempfile::TempDir,
        files: &[(PathBuf, u32)],
        pages: Pages,
        setting: &Setting,
        test: &str,
    ) -> Stage {
        let socket = folder.path().join("s");
        let mut layout = Layout::new(files.len()).unwrap();
        let places: Vec<_> = files.iter().map(|file| layout.place(file.1).unwrap()).collect();
        let (shared, words) = shared_memory(layout.bytes());
        let terms = Terms {
            start: 4711,
            wait_limit_ms: setting.wait_limit_ms,
            socket: socket.to_str().unwrap(),
        };
        let directory = Directory::create(words, &layout, &terms).unwrap();
        let files = (0..).zip(files).zip(places).map(|((number, (path, _)), place)| {
            let file = File::options().read(true).write(true).open(path).unwrap();
            let map = directory.add(number, identity(&file), place).unwrap();
            Lazy { file, agent: Agent::take_over(map).0 }
        });
        let memory = Arc::new(Memory {
            files: files.collect(),
            rule: setting.rule,
            welcome: setting.welcome,
            requests: Mutex::default(),
            taken: Mutex::new(pages),
        });
        directory.publish();
        let listening = Mutex::new(Some(Listening::start(&socket, memory.clone())));
        Stage { folder, memory, words, listening, shared, test: test.to_owned() }
    }

    /// Runs the child's half.
    pub fn run(&self) -> Output {
        self.command(&[self.test.as_str(), "--exact", "--nocapture", "--test-threads=1"])
            .output()
            .unwrap()
    }

    /// This binary under the library.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(arguments).env(FOLDER, self.folder.path());
        self.preload(&mut command, library());
        command
    }

    /// Puts the library under a program.
    pub fn preload(&self, command: &mut Command, library: &Path) {
        let fd = self.shared.as_raw_fd();
        command.env("LD_PRELOAD", library).env("TREERING_PAGES", fd.to_string());
        // SAFETY: one system call. This descriptor is for this child; others close it on execution.
        unsafe {
            command.pre_exec(move || match libc::fcntl(fd, libc::F_SETFD, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
    }

    /// Ends the agent, and starts another.
    pub fn restart_agent(&self, meanwhile: impl FnOnce()) {
        let mut listening = self.listening.lock().unwrap();
        *listening = None;
        meanwhile();
        *listening = Some(Listening::start(&self.folder.path().join("s"), self.memory.clone()));
    }

    pub fn directory(&self) -> Directory<'static, AtomicU32> {
        Directory::open(self.words).unwrap()
    }
}

fn identity(file: &File) -> FileIdentity {
    let metadata = file.metadata().unwrap();
    let born = metadata.created().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
    FileIdentity { device: metadata.dev(), inode: metadata.ino(), birth_ns: born.as_nanos() as u64 }
}

fn shared_memory(bytes: u64) -> (OwnedFd, &'static [AtomicU32]) {
    // SAFETY: a new file in memory, mapped for as long as the process lives, as atomics.
    unsafe {
        let fd = libc::memfd_create(c"pages".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        let fd = OwnedFd::from_raw_fd(fd);
        assert_eq!(libc::ftruncate(fd.as_raw_fd(), bytes as i64), 0);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let null = std::ptr::null_mut();
        let place = libc::mmap(null, bytes as usize, access, libc::MAP_SHARED, fd.as_raw_fd(), 0);
        assert_ne!(place, libc::MAP_FAILED);
        (fd, std::slice::from_raw_parts(place.cast(), bytes as usize / 4))
    }
}

/// The library, built with its doors: what cargo builds for this test has none, or it would be under the test too.
pub fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let target = Path::new(TARGET).join("preload");
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--offline", "--release", "--features", "preload"])
            .arg("--manifest-path")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&target)
            .status();
        assert!(built.unwrap().success());
        fs::canonicalize(target.join("release/libtreering_pages.so")).unwrap()
    })
}
