//! Which services run, where they listen, and what each must know of the others.

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
};

use anyhow::Context;

use super::UpArgs;
use crate::{
    cli::loopback,
    data_dir::{DataDir, Running, RunningSafekeeper, safekeeper_name},
};

/// A service and the command line that starts it.
pub struct Service {
    pub name: String,
    pub arguments: Vec<String>,
    pub log: PathBuf,
}

/// Addresses chosen once, so that a restarted service is found where it was.
pub struct Plan {
    pub services: Vec<Service>,
    pub running: Running,
}

impl Plan {
    /// Chooses every address. Writes nothing.
    ///
    /// # Errors
    /// An address that is in use, or that is none of this machine.
    pub fn new(
        data_dir: &DataDir,
        arguments: &UpArgs,
        safekeepers: u64,
        pg_version: u32,
    ) -> anyhow::Result<Plan> {
        let mut ports = Ports::default();
        let clients = ports.hold(arguments.listen, "for clients")?;
        let control = ports.hold(arguments.listen_http, "for the REST API")?;
        let mut hold = || ports.hold(loopback(), "between services");
        let http = |at: SocketAddr| format!("http://{at}");
        let text = |at: SocketAddr| at.to_string();
        let mut members = Vec::new();
        for id in 1..=safekeepers {
            let [wal, pg, at] = [hold()?, hold()?, hold()?];
            members.push(RunningSafekeeper { id, wal: text(wal), pg: text(pg), http: http(at) });
        }
        let first = members[0].clone();
        let [pageserver_pg, pageserver_http, agent_http] = [hold()?, hold()?, hold()?];
        let running = Running {
            pid: std::process::id(),
            ready: false,
            control_http: http(control),
            pageserver_http: http(pageserver_http),
            safekeeper_http: first.http,
            agent_http: http(agent_http),
            pageserver_pg: pageserver_pg.to_string(),
            safekeeper_pg: first.pg,
            client_address: clients.to_string(),
            safekeepers: members,
        };
        let mut plan = Plan { services: Vec::new(), running };
        let r = plan.running.clone();
        let bin = arguments.pg_bin_dir.as_ref().map(|dir| dir.display().to_string());
        let bin = bin.map(|dir| vec![("--pg-bin-dir", dir)]).unwrap_or_default();
        let store = arguments.store.arguments(&data_dir.0)?;
        let archive = store.into_iter().filter(|(option, _)| *option == "--object-store");
        let archive: Vec<_> = archive.chain(arguments.wal.arguments()).collect();
        for RunningSafekeeper { id, wal, pg, http } in &r.safekeepers {
            let listen_http = http.trim_start_matches("http://").to_owned();
            let mut options = vec![
                ("--id", id.to_string()),
                ("--listen-wal", wal.clone()),
                ("--listen-pg", pg.clone()),
                ("--listen-http", listen_http),
            ];
            options.extend(archive.clone());
            plan.add_as(data_dir, safekeeper_name(*id, safekeepers), "safekeeper", options);
        }
        let mut pageserver =
            vec![("--listen-pg", text(pageserver_pg)), ("--listen-http", text(pageserver_http))];
        pageserver.extend(members_at(&r, "--safekeeper-http", |member| &member.http));
        pageserver.extend(members_at(&r, "--safekeeper-pg", |member| &member.pg));
        pageserver.extend(bin.clone());
        pageserver.extend(arguments.leases.arguments());
        pageserver.extend(arguments.history.arguments());
        pageserver.extend(arguments.store.arguments(&data_dir.0)?);
        plan.add(data_dir, "pageserver", pageserver);
        let mut agent = vec![
            ("--listen-clients", r.client_address.clone()),
            ("--listen-http", text(agent_http)),
            ("--control-http", r.control_http.clone()),
            ("--pageserver-http", r.pageserver_http.clone()),
            ("--pageserver-pg", r.pageserver_pg.clone()),
        ];
        agent.extend(members_at(&r, "--safekeeper-http", |member| &member.http));
        agent.extend(members_at(&r, "--safekeeper-wal", |member| &member.wal));
        agent.extend(bin);
        agent.extend(arguments.pages.arguments());
        plan.add(data_dir, "agent", agent);
        let mut control_options = vec![
            ("--listen-http", text(control)),
            ("--pageserver-http", r.pageserver_http.clone()),
            ("--agent-http", r.agent_http.clone()),
            ("--client-address", r.client_address.clone()),
            ("--pg-version", pg_version.to_string()),
        ];
        control_options.extend(members_at(&r, "--safekeeper-http", |member| &member.http));
        plan.add(data_dir, "control", control_options);
        Ok(plan)
    }

    fn add(&mut self, data_dir: &DataDir, service: &str, options: Vec<(&str, String)>) {
        self.add_as(data_dir, service.to_owned(), service, options);
    }

    /// One of several of a kind.
    fn add_as(
        &mut self,
        data_dir: &DataDir,
        name: String,
        service: &str,
        options: Vec<(&str, String)>,
    ) {
        let own = data_dir.service_dir(&name).display().to_string();
        let words = ["service", service, "--data-dir", &own];
        let mut arguments: Vec<_> = words.map(str::to_owned).into();
        for (option, value) in options {
            arguments.extend([option.to_owned(), value]);
        }
        let log = data_dir.service_log(&name);
        self.services.push(Service { name, arguments, log });
    }
}

/// An address of each safekeeper, as services take them.
fn members_at<'a>(
    running: &Running,
    option: &'a str,
    address: impl Fn(&RunningSafekeeper) -> &str,
) -> Vec<(&'a str, String)> {
    let value = |member: &RunningSafekeeper| (option, format!("{}={}", member.id, address(member)));
    running.safekeepers.iter().map(value).collect()
}

/// Ports found free. All are held until the last is found, so that they differ.
#[derive(Default)]
struct Ports(Vec<TcpListener>);

impl Ports {
    /// `at` itself, or with the system's choice in place of port 0.
    fn hold(&mut self, at: SocketAddr, what: &str) -> anyhow::Result<SocketAddr> {
        let listener =
            TcpListener::bind(at).with_context(|| format!("{at} {what} cannot be used"))?;
        let found = listener.local_addr()?;
        self.0.push(listener);
        Ok(found)
    }
}
