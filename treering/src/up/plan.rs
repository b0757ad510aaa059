//! Which services run, where they listen, and what each must know of the others.

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
};

use anyhow::Context;

use super::UpArgs;
use crate::{
    cli::loopback,
    data_dir::{DataDir, Running},
};

/// A service and the command line that starts it.
pub struct Service {
    pub name: &'static str,
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
    pub fn new(data_dir: &DataDir, arguments: &UpArgs, pg_version: u32) -> anyhow::Result<Plan> {
        let mut ports = Ports::default();
        let clients = ports.hold(arguments.listen, "for clients")?;
        let control = ports.hold(arguments.listen_http, "for the REST API")?;
        let mut hold = || ports.hold(loopback(), "between services");
        let [wal, safekeeper_pg, safekeeper_http] = [hold()?, hold()?, hold()?];
        let [pageserver_pg, pageserver_http, agent_http] = [hold()?, hold()?, hold()?];
        let http = |at: SocketAddr| format!("http://{at}");
        let running = Running {
            pid: std::process::id(),
            ready: false,
            control_http: http(control),
            pageserver_http: http(pageserver_http),
            safekeeper_http: http(safekeeper_http),
            agent_http: http(agent_http),
            pageserver_pg: pageserver_pg.to_string(),
            safekeeper_pg: safekeeper_pg.to_string(),
            client_address: clients.to_string(),
        };
        let mut plan = Plan { services: Vec::new(), running };
        let r = plan.running.clone();
        let bin = arguments.pg_bin_dir.as_ref().map(|dir| dir.display().to_string());
        let bin = bin.map(|dir| vec![("--pg-bin-dir", dir)]).unwrap_or_default();
        let text = |at: SocketAddr| at.to_string();
        let mut safekeeper = vec![
            ("--listen-wal", text(wal)),
            ("--listen-pg", text(safekeeper_pg)),
            ("--listen-http", text(safekeeper_http)),
        ];
        let store = arguments.store.arguments(&data_dir.0)?;
        safekeeper.extend(store.into_iter().filter(|(option, _)| *option == "--object-store"));
        safekeeper.extend(arguments.wal.arguments());
        plan.add(data_dir, "safekeeper", safekeeper);
        let mut pageserver = vec![
            ("--listen-pg", text(pageserver_pg)),
            ("--listen-http", text(pageserver_http)),
            ("--safekeeper-http", r.safekeeper_http.clone()),
            ("--safekeeper-pg", r.safekeeper_pg.clone()),
        ];
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
            ("--safekeeper-http", r.safekeeper_http.clone()),
            ("--safekeeper-wal", text(wal)),
        ];
        agent.extend(bin);
        agent.extend(arguments.pages.arguments());
        plan.add(data_dir, "agent", agent);
        plan.add(
            data_dir,
            "control",
            vec![
                ("--listen-http", text(control)),
                ("--pageserver-http", r.pageserver_http),
                ("--safekeeper-http", r.safekeeper_http),
                ("--agent-http", r.agent_http),
                ("--client-address", r.client_address),
                ("--pg-version", pg_version.to_string()),
            ],
        );
        Ok(plan)
    }

    fn add(&mut self, data_dir: &DataDir, name: &'static str, options: Vec<(&str, String)>) {
        let own = data_dir.service_dir(name).display().to_string();
        let mut arguments: Vec<_> = ["service", name, "--data-dir", &own].map(str::to_owned).into();
        for (option, value) in options {
            arguments.extend([option.to_owned(), value]);
        }
        self.services.push(Service { name, arguments, log: data_dir.service_log(name) });
    }
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
