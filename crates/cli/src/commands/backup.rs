//! `backup`.

use std::{path::PathBuf, process::ExitCode};

use ::backup::{Manifest, Pace, Source, Store};
use anyhow::Context as _;
use bytes::Bytes;
use clap::{Args, Subcommand};
use futures_util::{Stream, StreamExt as _};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    Remote,
    client::{Client, checked},
    output::{Format, json, line, table},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Copies the state of a running cluster, all that was acknowledged before, without holding up writes.
    ///
    /// Table files that an earlier backup has brought into the same store are not copied again.
    Create {
        /// A directory, or s3://bucket/prefix with credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
        #[arg(long)]
        to: String,
        /// Keep so many backups, the newest, and delete the others.
        #[arg(long)]
        keep: Option<usize>,
        /// Copy at most so many mebibytes a second: the rest of the disk and the network is for what clients wait for.
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=100_000))]
        mib_per_second: u64,
        #[command(flatten)]
        remote: Remote,
    },
    /// Shows the backups in a store.
    List {
        /// A directory, or s3://bucket/prefix.
        #[arg(long)]
        from: String,
        /// Table or JSON.
        #[arg(long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Restores a backup beside everything, reads every row, and compares. Exit code 4 if something is wrong.
    Verify {
        #[command(flatten)]
        which: Which,
        /// Table or JSON.
        #[arg(long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Prints the configuration of the node that a backup is of, without secrets.
    Config {
        #[command(flatten)]
        which: Which,
    },
    /// Makes the data directory of a node that founds a new cluster with what a backup holds.
    ///
    /// Start it with `orchestra node --data-dir DIR`; further nodes join it, as many as the new cluster is to have.
    Restore {
        #[command(flatten)]
        which: Which,
        /// The data directory: new, or empty.
        #[arg(long)]
        data_dir: PathBuf,
        /// What the node is called.
        #[arg(long, default_value = "node-0")]
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Which {
    /// A directory, or s3://bucket/prefix.
    #[arg(long)]
    from: String,
    /// The backup; by default the newest.
    #[arg(long)]
    id: Option<String>,
}

pub(crate) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Create { to, keep, mib_per_second, remote } => {
            create(&to, keep, &Pace::new(mib_per_second << 20), &remote).await
        }
        Command::List { from, output } => list(&from, output).await,
        Command::Verify { which, output } => verify(&which, output).await,
        Command::Config { which } => {
            let manifest = Store::open(&which.from)?.choose(which.id.as_deref()).await?;
            line(server::Config::of_backup(&manifest.config).context("print the configuration")?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Restore { which, data_dir, name } => {
            let store = Store::open(&which.from)?;
            let manifest = store.choose(which.id.as_deref()).await?;
            let identity = ::backup::found(&store, &manifest, &data_dir, &name).await?;
            line(format!(
                "{} holds backup {} as node {} of the new cluster {:032x}. Next:\n  orchestra node --data-dir {} --name {name}",
                data_dir.display(),
                manifest.id,
                identity.node,
                identity.cluster,
                data_dir.display()
            ));
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// A checkpoint on a node.
struct OnNode<'a> {
    client: &'a Client,
    id: &'a str,
}

impl Source for OnNode<'_> {
    async fn open(
        &self,
        name: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, String>> + Send + Unpin, String> {
        let path = format!("/v1/backups/{}/files/{name}", self.id);
        let request = self.client.request(Method::GET, &path).map_err(|error| error.to_string())?;
        let response = request.send().await.map_err(|error| error.to_string())?;
        let response = checked(response).await.map_err(|error| format!("{error:#}"))?;
        Ok(response.bytes_stream().map(|part| part.map_err(|error| error.to_string())))
    }
}

async fn create(to: &str, keep: Option<usize>, pace: &Pace, remote: &Remote) -> anyhow::Result<ExitCode> {
    let store = Store::open(to)?;
    let client = remote.client()?;
    let begun = client.post("/v1/backups", &json!({})).await?;
    let manifest: Manifest = serde_json::from_value(begun).context("read the node's checkpoint")?;
    let id = manifest.id.clone();
    let created = ::backup::create(&store, &OnNode { client: &client, id: &id }, manifest, pace).await;
    // Whatever came of it, the node need not hold on to its files any more.
    let ended = client.request(Method::DELETE, &format!("/v1/backups/{id}"))?.send().await;
    let (manifest, written) = created?;
    ended.context("end the node's checkpoint")?;
    let deleted = match keep {
        Some(keep) => ::backup::keep_newest(&store, keep).await?,
        None => Vec::new(),
    };
    match remote.output {
        Format::Json => {
            json(&json!({"id": manifest.id, "created_at": manifest.created_at, "bytes": manifest.bytes(),
            "new_files": written.new_files, "new_bytes": written.new_bytes, "shared_files": written.shared_files,
            "deleted": deleted}))
        }
        Format::Table | Format::Markdown => {
            line(format!(
                "backup {} of {} bytes: {} files written ({} bytes), {} were there already",
                manifest.id,
                manifest.bytes(),
                written.new_files,
                written.new_bytes,
                written.shared_files
            ));
            for id in deleted {
                line(format!("deleted backup {id}"));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(from: &str, output: Format) -> anyhow::Result<ExitCode> {
    let manifests = Store::open(from)?.manifests().await?;
    let shown = |of: &Manifest| {
        json!({"id": of.id, "created_at": of.created_at, "cluster": of.cluster, "bytes": of.bytes(),
            "version": of.version})
    };
    let all: Vec<Value> = manifests.iter().map(shown).collect();
    match output {
        Format::Json => json(&json!({"backups": all})),
        Format::Table | Format::Markdown => table(
            &[("BACKUP", "/id"), ("CREATED", "/created_at"), ("BYTES", "/bytes"), ("CLUSTER", "/cluster")],
            &all,
        ),
    }
    Ok(ExitCode::SUCCESS)
}

async fn verify(which: &Which, output: Format) -> anyhow::Result<ExitCode> {
    let store = Store::open(&which.from)?;
    let manifest = store.choose(which.id.as_deref()).await?;
    let scratch = tempfile::tempdir().context("make a scratch directory")?;
    let verified = ::backup::verify(&store, &manifest, scratch.path()).await?;
    let good = verified.problems.is_empty();
    match output {
        Format::Json => json(&json!({"id": manifest.id, "good": good, "rows": verified.rows,
            "problems": verified.problems})),
        Format::Table | Format::Markdown => {
            let verdict = if good { "good" } else { "NOT GOOD" };
            line(format!("backup {}: {verdict}, {} rows read", manifest.id, verified.rows));
            for problem in verified.problems {
                line(format!("  {problem}"));
            }
        }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(4) })
}
