//! Where a thread runs, and how urgently: wishes, all of them. What the kernel refuses is not done. And how it waits for a
//! neighbour.

#![forbid(unsafe_code)]

use std::{
    fs::File,
    io,
    marker::PhantomData,
    os::{fd::AsFd, unix::fs::FileExt},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{getpid, getpriority_process, nice},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// What an unhurried thread has more than its process: it gets about a tenth of a core where others want all of it. At 19 merges
/// fell so far behind that writers had to wait for them.
const UNHURRIED: i32 = 10;
/// And an urgent one: woken, it goes before what runs.
const URGENT: i32 = -10;

/// The calling thread gives way to others from now on: nobody waits for the next piece of its work, but it must go on.
pub fn unhurried() {
    be_nice(UNHURRIED);
}

/// The calling thread, and threads that it starts, go before others from now on, where the system allows it (to root, and up to
/// `RLIMIT_NICE`): many wait for each piece of its work, which is short.
pub fn urgent() {
    be_nice(URGENT);
}

/// It is as urgent as before if that cannot be had.
fn be_nice(more: i32) {
    // On Linux all of this is a thread's (nice(2), "C library/kernel differences"); a process's is that of its first thread. Not of
    // the calling one: what started it may have been urgent.
    let of_process = getpriority_process(Some(getpid()));
    if let (Ok(of_process), Ok(now)) = (of_process, getpriority_process(None)) {
        let _ = nice(of_process + more - now);
    }
}

/// How the calling thread fares: how long it runs, and how long it would have run had nobody else been on the core.
pub struct CoreClock {
    file: File,
    /// Of one thread, and its alone.
    _thread: PhantomData<*const ()>,
}

/// Since the thread began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreTime {
    /// On a core.
    pub ran: Duration,
    /// Ready to run, and kept waiting for a core.
    pub waited: Duration,
}

impl CoreClock {
    /// The calling thread's; `None` where the kernel does not tell.
    pub fn of_this_thread() -> Option<CoreClock> {
        let file = File::open("/proc/thread-self/schedstat").ok()?;
        let clock = CoreClock { file, _thread: PhantomData };
        clock.now().map(|_| clock)
    }

    /// Two numbers of nanoseconds and one of turns (Linux: Documentation/scheduler/sched-stats.rst).
    pub fn now(&self) -> Option<CoreTime> {
        let mut bytes = [0; 64];
        let len = self.file.read_at(&mut bytes, 0).ok()?;
        let text = std::str::from_utf8(bytes.get(..len)?).ok()?;
        let mut numbers = text.split_whitespace().map_while(|number| number.parse().ok());
        let (ran, waited) = (numbers.next()?, numbers.next()?);
        Some(CoreTime { ran: Duration::from_nanos(ran), waited: Duration::from_nanos(waited) })
    }
}

/// Where the thread that made it may run. Threads that it starts begin where it is: let it go anywhere first.
///
/// Who asks for one page sleeps until it has it. An answering thread on another core is woken by an interrupt to a core
/// that sleeps too, and so is the asker afterwards: in a virtual machine tens of microseconds each, several times what
/// the answer itself takes. On the asker's own core, which has nothing else to do, each is a switch of threads.
pub struct Place {
    /// Where it might run when this was made.
    all: CpuSet,
    /// The core that it is held to.
    core: Option<u32>,
    /// Of one thread, and its alone.
    _thread: PhantomData<*const ()>,
}

impl Place {
    /// The calling thread's, which runs wherever it did.
    pub fn of_this_thread() -> Place {
        let all = sched_getaffinity(None).unwrap_or_default();
        Place { all, core: None, _thread: PhantomData }
    }

    /// To `core`, from now on. Nothing changes if the thread may not run there.
    pub fn beside(&mut self, core: u32) {
        let number = core as usize;
        if self.core == Some(core) || number >= CpuSet::MAX_CPU || !self.all.is_set(number) {
            return;
        }
        let mut only = CpuSet::new();
        only.set(number);
        if sched_setaffinity(None, &only).is_ok() {
            self.core = Some(core);
        }
    }

    /// Wherever it might run at first: for work that is more than a hand-over.
    pub fn anywhere(&mut self) {
        if self.core.is_some() && sched_setaffinity(None, &self.all).is_ok() {
            self.core = None;
        }
    }
}

/// Waits until there is something to read from a Unix socket, or an end; `false`: not within the limit.
///
/// Who waits in the read itself is woken whenever the other side reads, too, because there is room to write then. Between
/// two that ask and answer that is two wakes for nothing each time.
///
/// # Errors
/// As poll(2); signals are none.
pub fn wait_to_read(socket: impl AsFd, limit: Option<Duration>) -> io::Result<bool> {
    let limit = limit.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
    loop {
        match poll(&mut [PollFd::new(&socket, PollFlags::IN)], limit.as_ref()) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::net::UnixStream, time::Instant};

    use super::*;

    #[test]
    fn what_comes_or_ends_is_waited_for() {
        let (mut here, there) = UnixStream::pair().unwrap();
        let brief = Some(Duration::from_millis(10));
        assert!(!wait_to_read(&there, brief).unwrap());
        here.write_all(b"x").unwrap();
        assert!(wait_to_read(&there, None).unwrap());
        let (here, there) = UnixStream::pair().unwrap();
        drop(here);
        assert!(wait_to_read(&there, None).unwrap(), "the end");
    }

    #[test]
    fn the_clock_tells_running_from_sleeping() {
        // Kernels without scheduler statistics do not tell.
        let Some(clock) = CoreClock::of_this_thread() else { return };
        let before = clock.now().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let slept = clock.now().unwrap();
        assert!(slept.ran - before.ran < Duration::from_millis(40), "{before:?} {slept:?}");
        let begin = Instant::now();
        while clock.now().unwrap().ran - slept.ran < Duration::from_millis(20) {
            assert!(begin.elapsed() < Duration::from_secs(60), "it never runs");
        }
    }

    #[test]
    fn an_urgent_threads_children_can_be_unhurried() {
        let niceness = || getpriority_process(None).unwrap();
        let begun = niceness();
        let parent = move || {
            urgent();
            let urgent = niceness();
            let child = move || {
                let inherited = niceness();
                unhurried();
                (inherited, niceness())
            };
            (urgent, std::thread::spawn(child).join().unwrap())
        };
        let (urgent, (inherited, at_last)) = std::thread::spawn(parent).join().unwrap();
        let wanted = (begun + URGENT).max(-20);
        assert!(urgent == wanted || urgent == begun, "refused, nothing changes: {urgent}");
        assert_eq!((inherited, at_last), (urgent, (begun + UNHURRIED).min(19)));
        assert_eq!(niceness(), begun, "others are as they were");
    }

    #[test]
    fn a_thread_goes_beside_another_and_back() {
        let before = sched_getaffinity(None).unwrap();
        let last = (0..CpuSet::MAX_CPU).rfind(|core| before.is_set(*core)).unwrap();
        let mut place = Place::of_this_thread();
        place.beside(last as u32);
        let now = sched_getaffinity(None).unwrap();
        assert!(now.is_set(last) && now.count() == 1, "{now:?}");
        // No such core: it stays.
        place.beside(u32::MAX);
        assert_eq!(sched_getaffinity(None).unwrap(), now);
        place.anywhere();
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }
}
