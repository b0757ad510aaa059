//! The command line's grammar.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::{
    client::Client,
    commands,
    data_dir::{DataDir, Running},
    output::Format,
    service, up,
};

/// Instant branches and time travel for stock Postgres.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "\
Start with `treering up` in one terminal; then, in another:\n  \
treering psql main\n  \
treering branch create dev\n  \
treering branch create before --at '5m ago'\n\n\
Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 conflict, 5 refused, 6 timeout."
)]
pub struct Cli {
    #[command(flatten)]
    pub place: Place,
    #[command(subcommand)]
    pub command: Command,
}

/// Which Treering is meant.
#[derive(Debug, Args)]
pub struct Place {
    /// Directory that holds everything [default: /var/lib/treering for root, else
    /// ~/.local/share/treering].
    #[arg(long, global = true, env = "TREERING_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

impl Place {
    pub fn data_dir(&self) -> DataDir {
        DataDir(self.data_dir.clone().unwrap_or_else(DataDir::default_path))
    }

    pub fn running(&self) -> anyhow::Result<Running> {
        self.data_dir().running()
    }

    pub fn client(&self) -> anyhow::Result<Client> {
        Client::new(&self.running()?.control_http)
    }
}

/// `-o`.
#[derive(Debug, Args)]
pub struct Show {
    /// How to print the result.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything in the foreground until Ctrl-C.
    Up(up::UpArgs),
    /// Run one safekeeper, where each is to have a machine of its own.
    Safekeeper(service::SafekeeperArgs),
    /// Show what is running, in one screen.
    Status {
        #[command(flatten)]
        show: Show,
    },
    /// Create, list, show and delete branches.
    #[command(subcommand, alias = "branches")]
    Branch(BranchCommand),
    /// Start a branch's Postgres and wait until it takes connections.
    Start { branch: String },
    /// Stop a branch's Postgres. Connecting does not wake it; `start` does.
    Stop { branch: String },
    /// Print the connection string of a branch.
    ConnectionString {
        /// The branch [default: the default branch].
        branch: Option<String>,
    },
    /// Open psql on a branch; what follows `--` goes to psql.
    Psql {
        branch: Option<String>,
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Print the Postgres log of a branch.
    Logs {
        branch: Option<String>,
        /// Go on printing as the log grows.
        #[arg(short, long)]
        follow: bool,
    },
    /// Show the main job on a throw-away data directory: load, branch, diverge, travel back, survive a kill.
    Demo(commands::demo::DemoArgs),
    /// Check prerequisites, services, and relations that cannot be read.
    Doctor {
        /// Directory of the Postgres programs [default: /usr/lib/postgresql/15/bin, then PATH].
        #[arg(long, env = "TREERING_PG_BIN_DIR")]
        pg_bin_dir: Option<PathBuf>,
    },
    /// Check, look into and measure the page store's files.
    #[command(subcommand)]
    Storage(commands::storage::StorageCommand),
    /// One service alone (what `up` runs).
    #[command(subcommand, hide = true)]
    Service(service::ServiceCommand),
}

#[derive(Debug, Subcommand)]
pub enum BranchCommand {
    /// Create a branch. Takes milliseconds, whatever the size of its parent.
    Create {
        name: String,
        /// The branch to fork [default: the default branch].
        #[arg(long, alias = "source")]
        from: Option<String>,
        /// The moment to fork at: a time (2026-11-21T15:04:05Z, '30m ago') or an LSN (0/16B3748)
        /// [default: now, with everything committed].
        #[arg(long)]
        at: Option<String>,
        /// Succeed if there is a branch of that name already.
        #[arg(long)]
        if_not_exists: bool,
        #[command(flatten)]
        show: Show,
    },
    /// List all branches.
    #[command(alias = "ls")]
    List {
        #[command(flatten)]
        show: Show,
    },
    /// Show one branch.
    #[command(alias = "show")]
    Get {
        name: String,
        #[command(flatten)]
        show: Show,
    },
    /// Stop a branch and keep it in the object store alone, until it is unarchived.
    Archive { name: String },
    /// Make an archived branch usable again.
    Unarchive { name: String },
    /// Delete a branch and everything only it holds.
    #[command(alias = "rm")]
    Delete {
        name: String,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
        /// Succeed if there is no such branch.
        #[arg(long)]
        if_exists: bool,
    },
}

/// Address options that several services share.
pub fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Runs one command.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    let place = cli.place;
    match cli.command {
        Command::Up(arguments) => up::run(&place.data_dir(), arguments),
        Command::Safekeeper(arguments) => {
            service::run(service::ServiceCommand::Safekeeper(arguments))
        }
        Command::Status { show } => commands::status::run(&place, show.output),
        Command::Branch(command) => commands::branch::run(&place, command),
        Command::Start { branch } => commands::branch::start(&place, &branch),
        Command::Stop { branch } => commands::branch::stop(&place, &branch),
        Command::ConnectionString { branch } => {
            commands::connect::connection_string(&place, branch)
        }
        Command::Psql { branch, arguments } => commands::connect::psql(&place, branch, arguments),
        Command::Logs { branch, follow } => commands::logs::run(&place, branch, follow),
        Command::Demo(arguments) => commands::demo::run(arguments),
        Command::Doctor { pg_bin_dir } => commands::doctor::run(&place, pg_bin_dir.as_deref()),
        Command::Storage(command) => commands::storage::run(&place, command),
        Command::Service(command) => service::run(command),
    }
}
