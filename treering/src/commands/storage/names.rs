//! What timelines are called: asked of control while it runs, read from its file while it does not.

use std::collections::HashMap;

use treering_control::{model::BranchView, store::Store};
use treering_types::{TenantId, TimelineId};

use crate::cli::Place;

/// A branch, as far as sizes and findings are about it.
pub struct Known {
    pub name: String,
    pub is_default: bool,
}

/// Names by timeline.
#[derive(Default)]
pub struct Names {
    branches: HashMap<TimelineId, Known>,
    projects: HashMap<TenantId, String>,
}

impl Names {
    /// Names are a service, not a condition: without them ids are shown, and stderr says why.
    pub fn find(place: &Place, is_in_use: bool) -> Names {
        let found = if is_in_use { Names::ask(place) } else { Names::read(place) };
        found.unwrap_or_else(|error| {
            eprintln!("treering: branches are shown by their ids: {error:#}");
            Names::default()
        })
    }

    fn ask(place: &Place) -> anyhow::Result<Names> {
        let mut names = Names::default();
        for view in place.client()?.get::<Vec<BranchView>>("/branches")? {
            names.projects.insert(view.tenant_id, view.project);
            let known = Known { name: view.name, is_default: view.is_default };
            names.branches.insert(view.timeline_id, known);
        }
        Ok(names)
    }

    fn read(place: &Place) -> anyhow::Result<Names> {
        let path = place.data_dir().service_dir("control").join("control.redb");
        let store = Store::read_only(&path)?;
        let mut names = Names::default();
        for project in store.projects()? {
            for branch in store.branches(&project.id)? {
                let is_default = branch.name == project.default_branch;
                let known = Known { name: branch.name, is_default };
                names.branches.insert(branch.timeline_id, known);
            }
            names.projects.insert(project.tenant_id, project.id);
        }
        Ok(names)
    }

    pub fn known(&self, timeline: TimelineId) -> Option<&Known> {
        self.branches.get(&timeline)
    }

    /// The name, or the id of a timeline that has none.
    pub fn branch(&self, timeline: TimelineId) -> String {
        self.known(timeline).map_or_else(|| timeline.to_string(), |known| known.name.clone())
    }

    pub fn project(&self, tenant: TenantId) -> String {
        self.projects.get(&tenant).cloned().unwrap_or_else(|| tenant.to_string())
    }

    /// The tenant of a project; a project nobody knows the name of is known by its id.
    pub fn tenant(&self, project: &str) -> Option<TenantId> {
        let named = self.projects.iter().find(|(_, name)| *name == project).map(|(id, _)| *id);
        named.or_else(|| project.parse().ok())
    }
}
