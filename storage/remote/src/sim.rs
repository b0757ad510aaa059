//! A store in memory for tests: it can lose power at any call, refuse, answer late, and tell half.
//!
//! What a call changed is durable when it returns, as with a bucket. A call that seems to fail may have happened, may not have, or may happen
//! later, after other calls of the same caller: all three are what a time-out means.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use treering_fs::{FileSystem, OpenMode, read_file};

use crate::{
    error::{RemoteError, Result},
    store::Store,
};

/// A call, for rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Put,
    Upload,
    Get,
    Download,
    Exists,
    Delete,
    List,
}

impl Call {
    /// True for calls that change the store.
    pub fn is_change(self) -> bool {
        matches!(self, Call::Put | Call::Upload | Call::Delete)
    }
}

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// "Slow down": nothing happened.
    Refused,
    /// It happened, and the answer was lost.
    AnswerLost,
    /// Time-out; a change happens at the next [`SimStore::deliver_late`].
    Late,
    /// A download that breaks off in the middle. Other calls: as `Refused`.
    Torn,
    /// A download that seems to succeed with one bit turned over. Other calls: none.
    BitFlip,
}

type Rule = Box<dyn FnMut(Call, &str) -> Option<Fault> + Send>;
type OnCrash = Box<dyn Fn() + Send>;

#[derive(Clone)]
enum Change {
    Create(String, Bytes),
    Delete(String),
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Bytes>,
    late: Vec<Change>,
    /// Calls that change the store, so far.
    changes: u64,
    /// Change number so-and-so is the last, and whether it happens.
    crash_at: Option<(u64, bool)>,
    is_down: bool,
    rule: Option<Rule>,
    on_crash: Option<OnCrash>,
}

/// See the module. Clones share it.
#[derive(Clone, Default)]
pub struct SimStore(Arc<Mutex<State>>);

impl SimStore {
    pub fn new() -> SimStore {
        SimStore::default()
    }

    /// From now on calls for which the rule names a fault have it.
    pub fn set_rule(&self, rule: impl FnMut(Call, &str) -> Option<Fault> + Send + 'static) {
        self.0.lock().rule = Some(Box::new(rule));
    }

    pub fn clear_rule(&self) {
        self.0.lock().rule = None;
    }

    /// Carries out what timed out, newest first.
    pub fn deliver_late(&self) {
        let mut state = self.0.lock();
        while let Some(change) = state.late.pop() {
            state.apply(change);
        }
    }

    /// The caller loses power in change number `n` of this store (the first is 1), which happens or not; `on_crash` takes its disk down.
    pub fn crash_at(&self, n: u64, happens: bool, on_crash: impl Fn() + Send + 'static) {
        let mut state = self.0.lock();
        state.crash_at = Some((n, happens));
        state.on_crash = Some(Box::new(on_crash));
    }

    /// The caller lost power elsewhere: none of its calls arrives any more.
    pub fn go_down(&self) {
        self.0.lock().is_down = true;
    }

    /// Changes so far.
    pub fn changes(&self) -> u64 {
        self.0.lock().changes
    }

    /// What the store holds, for another caller. Late changes of the old one are carried out or dropped.
    pub fn survivor(&self, late_ones_arrive: bool) -> SimStore {
        if late_ones_arrive {
            self.deliver_late();
        }
        let objects = self.0.lock().objects.clone();
        SimStore(Arc::new(Mutex::new(State { objects, ..State::default() })))
    }

    /// Names of all objects.
    pub fn names(&self) -> Vec<String> {
        self.0.lock().objects.keys().cloned().collect()
    }

    /// Runs a call: whether it fails, and how, is decided here.
    fn call<T>(
        &self,
        call: Call,
        name: &str,
        act: impl FnOnce(&mut State, Option<Fault>) -> Result<T>,
        later: impl FnOnce() -> Option<Change>,
    ) -> Result<T> {
        let mut state = self.0.lock();
        let failed = |cause: &str| {
            let (action, cause) = ("asking for", cause.to_owned());
            Err(RemoteError::Unavailable { action, name: name.to_owned(), cause })
        };
        if state.is_down {
            return failed("no power");
        }
        if call.is_change() {
            state.changes += 1;
            if let Some((_, happens)) = state.crash_at.filter(|(n, _)| state.changes >= *n) {
                state.is_down = true;
                if let Some(on_crash) = state.on_crash.take() {
                    on_crash();
                }
                if happens {
                    let _ = act(&mut state, None);
                }
                return failed("no power");
            }
        }
        let mut rule = state.rule.take();
        let fault = rule.as_mut().and_then(|rule| rule(call, name));
        state.rule = rule;
        match fault {
            Some(Fault::AnswerLost) => {
                let _ = act(&mut state, None);
                failed("time-out")
            }
            Some(Fault::Late) => {
                state.late.extend(later());
                failed("time-out")
            }
            Some(Fault::Refused) => failed("503 Slow Down"),
            Some(Fault::Torn) if call != Call::Download => failed("503 Slow Down"),
            None | Some(Fault::Torn | Fault::BitFlip) => act(&mut state, fault),
        }
    }
}

impl State {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Create(name, bytes) => {
                self.objects.entry(name).or_insert(bytes);
            }
            Change::Delete(name) => {
                self.objects.remove(&name);
            }
        }
    }

    fn create(&mut self, name: &str, bytes: Bytes) -> Result<()> {
        if self.objects.contains_key(name) {
            return Err(RemoteError::Exists { name: name.to_owned() });
        }
        self.objects.insert(name.to_owned(), bytes);
        Ok(())
    }

    fn get(&self, name: &str) -> Result<Bytes> {
        self.objects.get(name).cloned().ok_or_else(|| RemoteError::missing(name))
    }
}

impl Store for SimStore {
    fn describe(&self) -> String {
        "memory".to_owned()
    }

    fn put_new(&self, name: &str, bytes: Bytes) -> Result<()> {
        let late = Change::Create(name.to_owned(), bytes.clone());
        self.call(Call::Put, name, |state, _| state.create(name, bytes), || Some(late))
    }

    fn upload(&self, name: &str, fs: &dyn FileSystem, from: &Path) -> Result<()> {
        let bytes =
            read_file(fs, from).map_err(|error| RemoteError::local("reading", from, error))?;
        let bytes = Bytes::from(bytes);
        let late = Change::Create(name.to_owned(), bytes.clone());
        let act = |state: &mut State, _| {
            let before = state.objects.insert(name.to_owned(), bytes.clone());
            assert!(before.is_none_or(|before| before == bytes), "{name} has two contents");
            Ok(())
        };
        self.call(Call::Upload, name, act, || Some(late))
    }

    fn get(&self, name: &str) -> Result<Bytes> {
        self.call(Call::Get, name, |state, _| state.get(name), || None)
    }

    fn download(&self, name: &str, fs: &dyn FileSystem, to: &Path) -> Result<()> {
        let act = |state: &mut State, fault| Ok((state.get(name)?.to_vec(), fault));
        let (mut bytes, fault) = self.call(Call::Download, name, act, || None)?;
        let half = bytes.len() / 2;
        match fault {
            Some(Fault::Torn) => bytes.truncate(half),
            Some(Fault::BitFlip) => bytes[half] ^= 1,
            Some(_) | None => {}
        }
        let write = || fs.open(to, OpenMode::CreateNew)?.write_all_at(&bytes, 0);
        write().map_err(|error| RemoteError::local("writing", to, error))?;
        let cause = "the connection broke off".to_owned();
        let (action, name) = ("reading", name.to_owned());
        match fault {
            Some(Fault::Torn) => Err(RemoteError::Unavailable { action, name, cause }),
            Some(_) | None => Ok(()),
        }
    }

    fn exists(&self, name: &str) -> Result<bool> {
        self.call(Call::Exists, name, |state, _| Ok(state.objects.contains_key(name)), || None)
    }

    fn delete(&self, name: &str) -> Result<()> {
        let late = Change::Delete(name.to_owned());
        let act = |state: &mut State, _| {
            state.objects.remove(name);
            Ok(())
        };
        self.call(Call::Delete, name, act, || Some(late))
    }

    fn list(&self, folder: &str) -> Result<Vec<String>> {
        let act = |state: &mut State, _| {
            let below = state.objects.keys().filter_map(|name| name.strip_prefix(folder));
            let child = |rest: &str| match rest.split_once('/') {
                Some((child, _)) => format!("{child}/"),
                None => rest.to_owned(),
            };
            let mut children: Vec<String> = below.map(child).collect();
            children.dedup();
            Ok(children)
        };
        self.call(Call::List, folder, act, || None)
    }
}
