//! What can be done with projects and branches.

use std::{
    collections::HashMap,
    convert::Infallible,
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::{Mutex, RwLock};
use treering_types::{Lsn, NodeId, TenantId, TimelineId};

use crate::{
    at::{self, At},
    error::ApiError,
    model::{
        Branch, BranchView, ChangedLog, Connection, Created, DEFAULT_PROJECT, LeftLog, Phase,
        Project, ROOT_BRANCH, Resolved, SafekeeperView, check_branch_name,
    },
    peers::{ComputeStatus, Peers},
    store::Store,
};

/// Locks that names share.
const NAME_LOCKS: usize = 64;
/// Between two attempts to reconcile while peers come up.
const RECONCILE_PAUSE: Duration = Duration::from_millis(100);
/// Between two looks for logs that a safekeeper has still to delete.
const LEFT_LOGS_PAUSE: Duration = Duration::from_secs(5);

/// Projects, branches and the peers that carry them.
pub struct Branches {
    store: Store,
    peers: Peers,
    /// Of a project that is made here.
    pg_version: u32,
    /// Records are read, judged and written under it: one change at a time, but branches are created side by side. Creations touch no record that is
    /// there, and need of their source only that it is not deleted or archived meanwhile.
    changing: RwLock<()>,
    /// Held while a branch of a name is created, by the name's hash: of two that want one name, the second finds the branch of the first.
    naming: [Mutex<()>; NAME_LOCKS],
}

/// A request to create a branch.
#[derive(Debug, Clone, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct CreateBranch {
    pub name: String,
    /// The branch to fork; the default branch when absent.
    #[serde(default)]
    pub source_branch: Option<String>,
    /// A time or an LSN; now when absent.
    #[serde(default)]
    pub at: Option<String>,
    /// An existing branch of that name is a success.
    #[serde(default)]
    pub if_not_exists: bool,
}

impl Branches {
    pub fn new(store: Store, peers: Peers, pg_version: u32) -> Branches {
        let naming = std::array::from_fn(|_| Mutex::new(()));
        Branches { store, peers, pg_version, changing: RwLock::new(()), naming }
    }

    /// Finishes what a crash cut short: the default project exists with its root branch, deletions are carried out,
    /// timelines nobody recorded are removed. Peers may come up after us: it tries until they answer.
    pub async fn reconcile(&self) -> anyhow::Result<()> {
        let mut is_told = false;
        loop {
            match self.reconcile_once().await {
                Err(error) if error.downcast_ref().is_some_and(ApiError::is_passing) => {
                    if !is_told {
                        tracing::info!(%error, "waiting for a peer");
                        is_told = true;
                    }
                }
                other => return other,
            }
            tokio::time::sleep(RECONCILE_PAUSE).await;
        }
    }

    /// May be cut short at any call and run again.
    async fn reconcile_once(&self) -> anyhow::Result<()> {
        if self.store.project(DEFAULT_PROJECT)?.is_none() {
            self.store.put_project(&Project {
                id: DEFAULT_PROJECT.to_owned(),
                tenant_id: TenantId(rand::random()),
                pg_version: self.pg_version,
                default_branch: ROOT_BRANCH.to_owned(),
                created_at: Timestamp::now(),
                role: "postgres".to_owned(),
                password: new_password(),
            })?;
        }
        for project in self.store.projects()? {
            self.reconcile_project(&project).await?;
        }
        Ok(())
    }

    async fn reconcile_project(&self, project: &Project) -> anyhow::Result<()> {
        self.peers.create_tenant(project.tenant_id, project.pg_version).await?;
        for branch in self.store.branches(&project.id)? {
            if branch.deleting {
                tracing::info!(branch = branch.name, "finishing a deletion");
                self.carry_out_delete(project, &branch).await?;
            }
        }
        let recorded = self.store.branches(&project.id)?;
        // Children before parents: a parent with children is not deletable.
        let mut orphans: Vec<_> = self.peers.timeline_list(project.tenant_id).await?;
        orphans.retain(|t| recorded.iter().all(|b| b.timeline_id != t.timeline_id));
        while !orphans.is_empty() {
            let before = orphans.len();
            let mut left = Vec::new();
            for orphan in orphans {
                tracing::info!(timeline = %orphan.timeline_id, "removing a timeline no branch was recorded for");
                match self.delete_timeline(project.tenant_id, orphan.timeline_id).await {
                    Err(error) if error.code == "conflict" => left.push(orphan),
                    other => other?,
                }
            }
            anyhow::ensure!(left.len() < before, "timelines without a branch hold each other");
            orphans = left;
        }
        if recorded.is_empty() {
            self.create_root(project).await?;
        }
        Ok(())
    }

    async fn create_root(&self, project: &Project) -> anyhow::Result<()> {
        let timeline = TimelineId(rand::random());
        let detail = self.peers.create_root(project.tenant_id, timeline).await?;
        self.record(project, &project.default_branch, None, timeline, detail.start_lsn)?;
        Ok(())
    }

    fn record(
        &self,
        project: &Project,
        name: &str,
        parent: Option<String>,
        timeline_id: TimelineId,
        branch_lsn: Lsn,
    ) -> anyhow::Result<Branch> {
        let now = Timestamp::now();
        let branch = Branch {
            name: name.to_owned(),
            timeline_id,
            parent,
            branch_lsn,
            created_at: now,
            updated_at: now,
            stopped: false,
            archived: false,
            deleting: false,
        };
        self.store.put_branch(&project.id, &branch)?;
        Ok(branch)
    }

    pub fn project(&self, id: &str) -> Result<Project, ApiError> {
        let found = self.store.project(id).map_err(ApiError::internal)?;
        found.ok_or_else(|| ApiError::not_found(format!("there is no project \"{id}\"")))
    }

    /// A branch by name; empty means the default branch.
    fn branch(&self, project: &Project, name: &str) -> Result<Branch, ApiError> {
        let name = if name.is_empty() { &project.default_branch } else { name };
        match self.recorded(project, name)? {
            branch if branch.deleting => Err(no_branch(name)),
            branch => Ok(branch),
        }
    }

    /// A branch by name, also one whose deletion is under way.
    fn recorded(&self, project: &Project, name: &str) -> Result<Branch, ApiError> {
        let found = self.store.branch(&project.id, name).map_err(ApiError::internal)?;
        found.ok_or_else(|| no_branch(name))
    }

    /// Creates a branch. See the module head of the crate for what a crash leaves.
    pub async fn create(
        &self,
        project_id: &str,
        request: CreateBranch,
    ) -> Result<Created, ApiError> {
        check_branch_name(&request.name)?;
        let project = self.project(project_id)?;
        let at = request.at.as_deref().map(|text| at::parse(text, Timestamp::now())).transpose()?;
        let _changing = self.changing.read().await;
        let _named = self.name_lock(&request.name).lock().await;
        let source = self.branch(&project, request.source_branch.as_deref().unwrap_or(""))?;
        if source.archived {
            let why = format!("branch \"{}\" is archived", source.name);
            return Err(ApiError::refused(why).hint("unarchive it first"));
        }
        let exists = self.store.branch(&project.id, &request.name).map_err(ApiError::internal)?;
        if let Some(existing) = exists {
            if request.if_not_exists && !existing.deleting {
                let requested_lsn = existing.branch_lsn;
                let branch = self.view(&project, &existing, &HashMap::new());
                let (phases, unreadable_relations) = (Vec::new(), Vec::new());
                return Ok(Created {
                    branch,
                    requested_lsn,
                    requested_time: None,
                    phases,
                    unreadable_relations,
                });
            }
            return Err(ApiError::conflict(format!(
                "there is a branch \"{}\" already",
                request.name
            )));
        }
        self.create_at(&project, &source, &request.name, at).await
    }

    fn name_lock(&self, name: &str) -> &Mutex<()> {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        &self.naming[(hasher.finish() % NAME_LOCKS as u64) as usize]
    }

    async fn create_at(
        &self,
        project: &Project,
        source: &Branch,
        name: &str,
        at: Option<At>,
    ) -> Result<Created, ApiError> {
        let (tenant, ancestor) = (project.tenant_id, source.timeline_id);
        let mut clock = Phases::begin();
        let barrier = self.peers.barrier(tenant, ancestor).await?;
        clock.done("barrier");
        let requested_lsn = match at {
            None => barrier,
            Some(At::Time(time)) => {
                let found = self.peers.lsn_by_time(tenant, ancestor, time, barrier).await;
                clock.done("find the LSN");
                found.map_err(|error| self.outside_history(project, source, time, error))?
            }
            Some(At::Lsn(lsn)) if lsn > barrier => {
                return Err(ApiError::invalid(
                    "at",
                    format!(
                        "{lsn} is ahead of branch \"{}\", whose log ends at {barrier}",
                        source.name
                    ),
                ));
            }
            Some(At::Lsn(lsn)) => lsn,
        };
        let timeline = TimelineId(rand::random());
        let detail = self.peers.fork(tenant, timeline, ancestor, requested_lsn).await;
        let detail =
            detail.map_err(|error| self.outside_history(project, source, requested_lsn, error))?;
        clock.done("ingest and fork");
        let parent = Some(source.name.clone());
        let branch = self
            .record(project, name, parent, timeline, detail.start_lsn)
            .map_err(ApiError::internal)?;
        clock.done("record");
        let requested_time = match at {
            Some(At::Time(time)) => Some(time),
            _ => None,
        };
        Ok(Created {
            branch: self.view(project, &branch, &HashMap::new()),
            requested_lsn,
            requested_time,
            phases: clock.phases,
            unreadable_relations: detail.unreadable_relations,
        })
    }

    /// What the pageserver does not keep (any more) makes `at` a wrong answer of the user's: says where history begins.
    fn outside_history(
        &self,
        project: &Project,
        source: &Branch,
        at: impl std::fmt::Display,
        error: ApiError,
    ) -> ApiError {
        if error.code != "gone" {
            return error;
        }
        let mut root = source.clone();
        while let Some(parent) = &root.parent {
            match self.recorded(project, parent) {
                Ok(branch) => root = branch,
                Err(error) => return error,
            }
        }
        let Branch { branch_lsn, created_at, .. } = root;
        let why = format!(
            "{at} lies before the history of branch \"{}\", which begins at {branch_lsn} ({created_at})",
            source.name
        );
        ApiError::invalid("at", why)
    }

    /// Branches with their states, the default one first, then by age.
    pub async fn list(&self, project_id: &str) -> Result<Vec<BranchView>, ApiError> {
        let project = self.project(project_id)?;
        let computes = self.compute_states().await;
        let mut branches = self.store.branches(&project.id).map_err(ApiError::internal)?;
        branches.sort_by_key(|b| (b.name != project.default_branch, b.created_at));
        Ok(branches.iter().map(|branch| self.view(&project, branch, &computes)).collect())
    }

    pub async fn get(&self, project_id: &str, name: &str) -> Result<BranchView, ApiError> {
        let project = self.project(project_id)?;
        let branch = self.branch(&project, name)?;
        Ok(self.view(&project, &branch, &self.compute_states().await))
    }

    async fn compute_states(&self) -> HashMap<TimelineId, ComputeStatus> {
        match self.peers.computes().await {
            Ok(computes) => computes.into_iter().map(|c| (c.timeline_id, c)).collect(),
            Err(error) => {
                tracing::warn!(%error, "the agent does not answer; states are as recorded");
                HashMap::new()
            }
        }
    }

    fn view(
        &self,
        project: &Project,
        branch: &Branch,
        computes: &HashMap<TimelineId, ComputeStatus>,
    ) -> BranchView {
        let compute = computes.get(&branch.timeline_id);
        let resting = if branch.stopped { "stopped" } else { "suspended" };
        let state = match compute {
            _ if branch.deleting => "deleting",
            _ if branch.archived => "archived",
            Some(compute) if compute.state != "stopped" => &compute.state,
            _ => resting,
        };
        BranchView {
            name: branch.name.clone(),
            project: project.id.clone(),
            parent: branch.parent.clone(),
            state: state.to_owned(),
            is_default: branch.name == project.default_branch,
            tenant_id: project.tenant_id,
            timeline_id: branch.timeline_id,
            branch_lsn: branch.branch_lsn,
            created_at: branch.created_at,
            updated_at: branch.updated_at,
            reason: compute.and_then(|c| c.reason.clone()),
            pid: compute.and_then(|c| c.pid),
        }
    }

    /// Deletes a branch for good: its compute, its timeline, its log, its name. Carries on where an earlier attempt
    /// was cut short.
    pub async fn delete(&self, project_id: &str, name: &str) -> Result<(), ApiError> {
        let project = self.project(project_id)?;
        let _changing = self.changing.write().await;
        let mut branch = self.recorded(&project, name)?;
        if !branch.deleting {
            self.check_deletable(&project, name)?;
            branch.deleting = true;
            self.store.put_branch(&project.id, &branch).map_err(ApiError::internal)?;
        }
        self.carry_out_delete(&project, &branch).await
    }

    fn check_deletable(&self, project: &Project, name: &str) -> Result<(), ApiError> {
        if name == project.default_branch {
            return Err(ApiError::refused(format!("branch \"{name}\" is the default branch")));
        }
        let all = self.store.branches(&project.id).map_err(ApiError::internal)?;
        let children: Vec<_> = all
            .iter()
            .filter(|b| b.parent.as_deref() == Some(name))
            .map(|b| format!("\"{}\"", b.name))
            .collect();
        if !children.is_empty() {
            let why = format!("branch \"{name}\" has branches of its own: {}", children.join(", "));
            return Err(ApiError::refused(why).hint("delete those first"));
        }
        Ok(())
    }

    async fn carry_out_delete(&self, project: &Project, branch: &Branch) -> Result<(), ApiError> {
        // An agent that is down removes computes without a branch when it starts; one that is up and refuses keeps
        // the branch.
        match self.peers.remove_compute(project.tenant_id, branch.timeline_id).await {
            Err(error) if error.code != "unreachable" && error.code != "not_found" => {
                return Err(error);
            }
            _ => {}
        }
        self.delete_timeline(project.tenant_id, branch.timeline_id).await?;
        self.store.remove_branch(&project.id, &branch.name).map_err(ApiError::internal)
    }

    /// Deletes pages and log. What a safekeeper that does not answer has still to delete is recorded first.
    async fn delete_timeline(&self, tenant: TenantId, id: TimelineId) -> Result<(), ApiError> {
        self.peers.delete_pages(tenant, id).await?;
        for node_id in self.peers.delete_log(tenant, id).await? {
            tracing::info!(safekeeper = %node_id, timeline = %id, "a log is deleted when its safekeeper is back");
            let left = LeftLog { node_id, tenant_id: tenant, timeline_id: id };
            self.store.put_left_log(&left).map_err(ApiError::internal)?;
        }
        Ok(())
    }

    /// Has safekeepers that were away delete what was deleted meanwhile. Goes on for ever.
    pub async fn remove_left_logs(&self) -> Infallible {
        loop {
            if let Err(error) = self.remove_left_logs_once().await {
                tracing::warn!(%error, "logs that safekeepers have still to delete");
            }
            tokio::time::sleep(LEFT_LOGS_PAUSE).await;
        }
    }

    async fn remove_left_logs_once(&self) -> anyhow::Result<()> {
        for left in self.store.left_logs()? {
            if self.peers.delete_left_log(&left).await.is_ok() {
                self.store.remove_left_log(&left)?;
            }
        }
        Ok(())
    }

    /// Has the safekeepers `wanted` keep all logs, one after the other. What fails for one of them is in its row.
    ///
    /// # Errors
    /// The records cannot be read.
    pub async fn change_members(&self, wanted: &[NodeId]) -> Result<Vec<ChangedLog>, ApiError> {
        let mut changed = Vec::new();
        for project in self.store.projects().map_err(ApiError::internal)? {
            for branch in self.store.branches(&project.id).map_err(ApiError::internal)? {
                let tenant = project.tenant_id;
                let done = self.peers.change_members(tenant, branch.timeline_id, wanted).await;
                let (members, error) = match done {
                    Ok(members) => (members, None),
                    Err(error) => (None, Some(error)),
                };
                changed.push(ChangedLog {
                    project: project.id.clone(),
                    branch: branch.name,
                    members,
                    error,
                });
            }
        }
        Ok(changed)
    }

    /// Where each safekeeper stands. None waits for one that hangs.
    pub async fn safekeepers(&self) -> Vec<SafekeeperView> {
        self.peers.safekeeper_views().await
    }

    /// Starts the compute of a branch and waits until it takes connections. A stopped branch wakes again after.
    pub async fn start(&self, project_id: &str, name: &str) -> Result<BranchView, ApiError> {
        let project = self.project(project_id)?;
        if self.branch(&project, name)?.archived {
            let why = format!("branch \"{name}\" is archived");
            let hint = format!("`treering branch unarchive {name}` first");
            return Err(ApiError::refused(why).hint(hint));
        }
        let branch = self.set_stopped(&project, name, false).await?;
        self.peers.start_compute(project.tenant_id, branch.timeline_id).await?;
        self.get(project_id, name).await
    }

    /// Stops the compute of a branch. It stays down, connections included, until it is started.
    pub async fn stop(&self, project_id: &str, name: &str) -> Result<BranchView, ApiError> {
        let project = self.project(project_id)?;
        let branch = self.set_stopped(&project, name, true).await?;
        self.peers.stop_compute(project.tenant_id, branch.timeline_id).await?;
        self.get(project_id, name).await
    }

    /// Archives a branch: its compute stops, its pages are in the object store alone. Cut short, it is archived by the same call again.
    pub async fn archive(&self, project_id: &str, name: &str) -> Result<BranchView, ApiError> {
        let project = self.project(project_id)?;
        if name == project.default_branch {
            return Err(ApiError::refused(format!("branch \"{name}\" is the default branch")));
        }
        let branch = self.set_stopped(&project, name, true).await?;
        self.peers.stop_compute(project.tenant_id, branch.timeline_id).await?;
        let _changing = self.changing.write().await;
        self.check_no_branches_in_use(&project, name)?;
        // What was committed last is to be in the store too.
        let end = self.peers.barrier(project.tenant_id, branch.timeline_id).await?;
        self.peers.archive(project.tenant_id, branch.timeline_id, end).await?;
        self.record_archived(&project, name, true)
    }

    /// Makes an archived branch usable again. It stays stopped until it is started.
    pub async fn unarchive(&self, project_id: &str, name: &str) -> Result<BranchView, ApiError> {
        let project = self.project(project_id)?;
        let _changing = self.changing.write().await;
        let branch = self.branch(&project, name)?;
        if let Some(parent) = &branch.parent
            && self.recorded(&project, parent)?.archived
        {
            let why = format!("branch \"{name}\" reads from \"{parent}\", which is archived");
            return Err(ApiError::refused(why).hint(format!("unarchive \"{parent}\" first")));
        }
        self.peers.unarchive(project.tenant_id, branch.timeline_id).await?;
        self.record_archived(&project, name, false)
    }

    fn record_archived(
        &self,
        project: &Project,
        name: &str,
        archived: bool,
    ) -> Result<BranchView, ApiError> {
        let mut branch = self.branch(project, name)?;
        if branch.archived != archived {
            branch.archived = archived;
            branch.updated_at = Timestamp::now();
            self.store.put_branch(&project.id, &branch).map_err(ApiError::internal)?;
        }
        Ok(self.view(project, &branch, &HashMap::new()))
    }

    fn check_no_branches_in_use(&self, project: &Project, name: &str) -> Result<(), ApiError> {
        let all = self.store.branches(&project.id).map_err(ApiError::internal)?;
        let used = all.iter().filter(|b| b.parent.as_deref() == Some(name) && !b.archived);
        let used: Vec<_> = used.map(|b| format!("\"{}\"", b.name)).collect();
        if used.is_empty() {
            return Ok(());
        }
        let why = format!("branch \"{name}\" has branches that read from it: {}", used.join(", "));
        Err(ApiError::refused(why).hint("archive those first"))
    }

    /// Records the intention. The agent is asked afterwards: it may take long, and asks us for the branch.
    async fn set_stopped(
        &self,
        project: &Project,
        name: &str,
        stopped: bool,
    ) -> Result<Branch, ApiError> {
        let _changing = self.changing.write().await;
        let mut branch = self.branch(project, name)?;
        if branch.stopped != stopped {
            branch.stopped = stopped;
            branch.updated_at = Timestamp::now();
            self.store.put_branch(&project.id, &branch).map_err(ApiError::internal)?;
        }
        Ok(branch)
    }

    /// What the client port needs to route a connection.
    pub fn resolve(&self, project_id: &str, name: &str) -> Result<Resolved, ApiError> {
        let project = self.project(project_id)?;
        let branch = self.branch(&project, name)?;
        Ok(resolved(project, branch))
    }

    /// The same by timeline: what the agent knows a branch by.
    pub fn resolve_timeline(&self, project_id: &str, id: TimelineId) -> Result<Resolved, ApiError> {
        let project = self.project(project_id)?;
        let branches = self.store.branches(&project.id).map_err(ApiError::internal)?;
        let found = branches.into_iter().find(|branch| branch.timeline_id == id);
        found
            .map(|branch| resolved(project, branch))
            .ok_or_else(|| ApiError::not_found(format!("no branch has timeline {id}")))
    }

    /// How to connect to a branch.
    pub fn connection(&self, project_id: &str, name: &str) -> Result<Connection, ApiError> {
        let resolved = self.resolve(project_id, name)?;
        let (host, port) = self
            .peers
            .client_address
            .rsplit_once(':')
            .and_then(|(host, port)| Some((host.to_owned(), port.parse::<u16>().ok()?)))
            .ok_or_else(|| ApiError::internal("the client address is not host:port"))?;
        let options = format!("branch={}", resolved.branch);
        let Resolved { role, password, .. } = resolved;
        let database = "postgres".to_owned();
        let uri = format!(
            "postgresql://{role}:{password}@{host}:{port}/{database}?options=branch%3D{}",
            resolved.branch
        );
        Ok(Connection { uri, host, port, role, password, database, options })
    }
}

fn resolved(project: Project, branch: Branch) -> Resolved {
    Resolved {
        project: project.id,
        branch: branch.name,
        tenant_id: project.tenant_id,
        timeline_id: branch.timeline_id,
        pg_version: project.pg_version,
        stopped: branch.stopped,
        role: project.role,
        password: project.password,
    }
}

fn no_branch(name: &str) -> ApiError {
    ApiError::not_found(format!("there is no branch \"{name}\""))
        .hint("`treering branch list` shows the branches there are")
}

/// A password no one has to escape: 24 letters and digits.
fn new_password() -> String {
    use rand::{Rng, distr::Alphanumeric};
    rand::rng().sample_iter(Alphanumeric).take(24).map(char::from).collect()
}

/// Measures the phases of an operation.
struct Phases {
    since: Instant,
    phases: Vec<Phase>,
}

impl Phases {
    fn begin() -> Phases {
        Phases { since: Instant::now(), phases: Vec::new() }
    }

    fn done(&mut self, name: &str) {
        let ms = self.since.elapsed().as_secs_f64() * 1000.0;
        self.phases.push(Phase { name: name.to_owned(), ms });
        self.since = Instant::now();
    }
}

#[cfg(test)]
mod tests;
