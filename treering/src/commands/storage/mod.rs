//! `storage scrub|inspect|size`: the page store's files.
//!
//! Nothing here writes below the data directory, so all of it may be done beside a running `treering up`.

mod inspect;
mod names;
mod scrub;
mod size;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use treering_control::model::DEFAULT_PROJECT;

use crate::{cli::Place, output::Format};

#[derive(Debug, Subcommand)]
pub enum StorageCommand {
    /// Read every layer file and manifest, and name what is wrong and which branches need it.
    #[command(after_help = "\
Nothing is written: it works on a stopped data directory and beside a running `treering up`.\n\n\
Read are all manifests, and every layer that one names: that it is there, its size, header,\n\
footer, index, bloom filter, digest, and that each value can be read and lies where it should.\n\
On a stopped directory, files that no manifest names are listed: they harm nobody, and go at\n\
the next start.\n\n\
Exit codes: 0 nothing is damaged (left over or not), 1 something is, or cannot be read.")]
    Scrub {
        #[command(flatten)]
        show: ShowJson,
    },
    /// Print what a layer file or manifest says, as far as it can be read.
    #[command(after_help = "\
Layers:     <data-dir>/pageserver/tenants/<project id>/<timeline>/<number>.layer\n\
Manifests:  `manifest` beside them, and in the directory above.\n\n\
The file is judged by itself; whether it is what its manifest means is for `storage scrub`.\n\
Blocks of a layer whose index is damaged are searched for.\n\n\
Exit codes: 0 nothing is wrong with it, 1 something is; what can be read is printed all the same.")]
    Inspect {
        file: PathBuf,
        /// Print every value of a layer: key, LSN, length.
        #[arg(long)]
        keys: bool,
        /// Print every block of a layer.
        #[arg(long)]
        blocks: bool,
        #[command(flatten)]
        show: ShowJson,
    },
    /// Show where the disk went: by branch, what only it needs, what it shares, and who pins history.
    #[command(after_help = "\
unique   on disk because of this branch alone: its pages, its log, the files of its compute,\n         \
and versions in its parent that nobody else can ask for any more\n\
shared   pages of its ancestors that it can read\n\
history  older versions of its own pages, for the window and for branches\n\
freed    what deleting it gives back: its own files at once, versions in its parent once\n         \
the parent's layers are merged. A branch with branches cannot be deleted\n\n\
Nothing is estimated: merges are tried without being written, so this reads all layers.\n\
Changes that are not in files yet (up to a minute's) do not count.")]
    Size {
        /// The project.
        #[arg(default_value = DEFAULT_PROJECT)]
        project: String,
        #[command(flatten)]
        show: ShowJson,
    },
}

/// `-o`, and a short way to say `-o json`.
#[derive(Debug, Args)]
pub struct ShowJson {
    /// How to print the result.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// The same as `--output json`.
    #[arg(long, conflicts_with = "output")]
    json: bool,
}

impl ShowJson {
    fn format(&self) -> Format {
        if self.json { Format::Json } else { self.output }
    }
}

pub fn run(place: &Place, command: StorageCommand) -> anyhow::Result<()> {
    match command {
        StorageCommand::Scrub { show } => scrub::run(place, show.format()),
        StorageCommand::Inspect { file, keys, blocks, show } => {
            inspect::run(&file, inspect::Detail { keys, blocks }, show.format())
        }
        StorageCommand::Size { project, show } => size::run(place, &project, show.format()),
    }
}

/// Where the engine's files are.
fn engine_root(place: &Place) -> PathBuf {
    place.data_dir().service_dir("pageserver").join("tenants")
}

/// Whether the files are a cache of an object store: the pageserver then leaves its identity there.
fn is_cache(place: &Place) -> bool {
    place.data_dir().service_dir("pageserver").join("identity").exists()
}

/// Bytes for people.
fn people(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}
