//! The owner of the state machine: events and appends in, actions out.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use treering_consensus::{
    AcceptorMessage, Action, Configuration, Election, Proposer, ProposerMessage,
};
use treering_types::{ErrorKind, Lsn, NodeId};

use super::{
    link::{Book, Link},
    old_wal::OldWal,
    patience::patient_members,
};
use crate::error::AgentError;

/// WAL is taken from the compute only while less than this waits in the sockets' queues of a quorum.
const QUEUED_BYTES_MAX: usize = 8 * 1024 * 1024;
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Patient members hear of log and commits so much later, at most.
const PATIENCE: Duration = Duration::from_millis(10);
/// A member that owes an answer for so long is taken for hanging or cut off: its connection, and what waits in it, is
/// given up, and another one tried. Nothing is lost by an error here: it goes on where the member's log ends.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// What the connections and the readers of old log tell the driver.
pub(super) enum Event {
    Connected(NodeId),
    Disconnected(NodeId),
    Message(NodeId, AcceptorMessage),
    /// Log from a position on that was read for a member; `None`: it could not be.
    OldWal {
        to_member: NodeId,
        from: Lsn,
        bytes: Option<Bytes>,
    },
}

type Outlets =
    (watch::Sender<Lsn>, watch::Sender<Option<AgentError>>, watch::Sender<Option<Election>>);

/// See the module's head. Its thread has the connections as well.
pub(super) struct Driver {
    proposer: Proposer,
    book: Book,
    links: Vec<Link>,
    old_wal: OldWal,
    commit: watch::Sender<Lsn>,
    failure: watch::Sender<Option<AgentError>>,
    elected: watch::Sender<Option<Election>>,
    last_refusal: Option<String>,
}

impl Driver {
    pub(super) fn new(
        proposer: Proposer,
        (book, links): (Book, Vec<Link>),
        old_wal: OldWal,
        (commit, failure, elected): Outlets,
    ) -> Driver {
        let mut driver =
            Driver { proposer, book, links, old_wal, commit, failure, elected, last_refusal: None };
        driver.find_patient();
        driver
    }

    fn find_patient(&mut self) {
        let configuration = self.proposer.configuration();
        self.proposer.set_patient(patient_members(&self.book.safekeepers, configuration));
    }

    pub(super) async fn run(
        mut self,
        events: mpsc::Receiver<Event>,
        appends: mpsc::Receiver<(Lsn, Bytes)>,
        close: CancellationToken,
    ) {
        self.drive(events, appends, close).await;
        // However it ended: nothing more will come that could carry them.
        self.links.iter_mut().for_each(Link::tell_news);
    }

    async fn drive(
        &mut self,
        mut events: mpsc::Receiver<Event>,
        mut appends: mpsc::Receiver<(Lsn, Bytes)>,
        close: CancellationToken,
    ) {
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        let patience = sleep(Duration::ZERO);
        tokio::pin!(patience);
        let mut is_patient = false;
        let news = sleep(Duration::ZERO);
        tokio::pin!(news);
        let mut has_news = false;
        loop {
            if let Some(due) = self.news_due().filter(|_| !has_news) {
                has_news = true;
                news.as_mut().reset(due);
            }
            let room = self.has_room();
            if self.proposer.holds_back() && !is_patient {
                is_patient = true;
                patience.as_mut().reset(Instant::now() + PATIENCE);
            }
            let actions = tokio::select! {
                () = close.cancelled() => {
                    let mut last_words = self.proposer.let_go();
                    // Nothing is held back any more, nor what follows from it.
                    self.proposer.set_patient(Vec::new());
                    last_words.extend(self.proposer.let_go());
                    return self.carry_out(last_words);
                }
                () = &mut news, if has_news => {
                    has_news = false;
                    let now = Instant::now();
                    let is_due = |link: &&mut Link| link.news_due().is_some_and(|due| due <= now);
                    self.links.iter_mut().filter(is_due).for_each(Link::tell_news);
                    continue;
                }
                () = &mut patience, if is_patient => {
                    is_patient = false;
                    self.proposer.let_go()
                }
                Some(event) = events.recv() => self.on_event(event),
                Some((lsn, bytes)) = appends.recv(), if room => match self.proposer.append(lsn, bytes) {
                    Ok(actions) => actions,
                    Err(error) => return self.fail(AgentError::new(error.kind(), error.to_string())),
                },
                _ = heartbeat.tick() => {
                    self.give_up_the_silent();
                    self.proposer.heartbeat()
                }
            };
            // Whoever waits for a commit first.
            self.publish();
            self.carry_out(actions);
            if let Some(term) = self.proposer.fenced_by() {
                let text = format!("a newer compute has taken this branch over (term {term})");
                return self.fail(AgentError::new(ErrorKind::Fenced, text));
            }
        }
    }

    fn news_due(&self) -> Option<Instant> {
        self.links.iter().filter_map(Link::news_due).min()
    }

    /// A quorum takes what it is sent. Who hangs does not count.
    fn has_room(&self) -> bool {
        let has_room = |link: &Link| link.queued_bytes() < QUEUED_BYTES_MAX;
        let of = |node| self.links.iter().find(|link| link.node == node);
        self.proposer.configuration().is_quorum(|node| of(node).is_none_or(has_room))
    }

    fn give_up_the_silent(&mut self) {
        for link in &mut self.links {
            if link.is_silent_for(SILENCE_MAX) {
                tracing::info!(member = %link.node, "a safekeeper does not answer; trying another connection");
                link.note_answer();
                link.disconnect();
            }
        }
    }

    fn fail(&mut self, error: AgentError) {
        self.failure.send_replace(Some(error));
    }

    fn on_event(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Connected(node) => {
                self.link(node).into_iter().for_each(Link::note_connection);
                self.proposer.on_connected(node)
            }
            Event::Disconnected(node) => {
                self.link(node).into_iter().for_each(Link::note_connection);
                self.proposer.on_disconnected(node);
                // The others may have been waiting for it.
                if self.proposer.holds_back() { self.proposer.let_go() } else { Vec::new() }
            }
            Event::Message(node, message) => {
                self.link(node).into_iter().for_each(Link::note_answer);
                self.proposer.on_message(node, message)
            }
            Event::OldWal { to_member, from, bytes: Some(bytes) } => {
                self.proposer.on_wal(to_member, from, bytes)
            }
            Event::OldWal { to_member, bytes: None, .. } => {
                self.proposer.on_wal_failed(to_member);
                Vec::new()
            }
        }
    }

    fn link(&mut self, node: NodeId) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.node == node)
    }

    fn publish(&mut self) {
        let commit_lsn = self.proposer.commit_lsn();
        self.commit.send_if_modified(|commit| {
            let moved = commit_lsn > *commit;
            *commit = commit_lsn.max(*commit);
            moved
        });
        if self.elected.borrow().is_none() && self.proposer.term_is_committed() {
            self.elected.send_replace(self.proposer.elected().cloned());
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        let mut actions: VecDeque<_> = actions.into();
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Send { to, message } => self.send(to, &message),
                Action::ReadWal { to_member, from, to, source } => {
                    // At once from the compute's disk; else it comes as an event.
                    if let Some(bytes) = self.old_wal.read(to_member, from, to, source) {
                        actions.extend(self.proposer.on_wal(to_member, from, bytes));
                    }
                }
                Action::Reconfigured(configuration) => self.reconfigure(&configuration),
                Action::Disconnect { member, reason, text } => {
                    if self.last_refusal.as_deref() != Some(&text) {
                        tracing::warn!(%member, ?reason, "safekeeper refuses: {text}");
                        self.last_refusal = Some(text.clone());
                    }
                    if let Some(link) = self.links.iter().find(|link| link.node == member) {
                        link.disconnect();
                    }
                    if matches!(reason.kind(), ErrorKind::Conflict | ErrorKind::Gone) {
                        self.fail(AgentError::new(reason.kind(), text));
                    }
                }
            }
        }
    }

    /// Lets go of members that have left, and finds the new ones. Where those are only the agent's own settings tell:
    /// without them the quorum may be out of reach, and commits wait.
    fn reconfigure(&mut self, configuration: &Configuration) {
        let generation = configuration.generation();
        tracing::info!(%generation, "the quorum's members have changed");
        for link in self.links.extract_if(.., |link| !configuration.contains(link.node)) {
            link.close();
        }
        for member in configuration.all_members() {
            if self.links.iter().any(|link| link.node == member) {
                continue;
            }
            match self.book.open(member) {
                Some(link) => self.links.push(link),
                None => tracing::warn!(%member, "no address is known of a new safekeeper"),
            }
        }
        self.find_patient();
    }

    fn send(&mut self, to: NodeId, message: &ProposerMessage) {
        let Some(link) = self.link(to) else { return };
        match message {
            // The one message that is not answered.
            ProposerMessage::Commit(commit) => link.tell(commit),
            message => link.ask(message),
        }
    }
}
