//! `cluster` and `doctor`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::bail;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};
use server::Config;
use tokio::time::Instant;

use crate::{
    Remote,
    client::Problem,
    output::{Format, json as print_json, line, table, text},
};

/// How long all nodes may read their rows.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(3_600);
/// Between two looks at a node that catches up.
const POLL: Duration = Duration::from_millis(200);

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Founds a cluster: the node that is asked, and waits, becomes its first member.
    Init {
        #[command(flatten)]
        remote: Remote,
    },
    /// Who belongs to the cluster, and who leads.
    Status {
        #[command(flatten)]
        remote: Remote,
    },
    /// Prints the command that starts a node which joins the cluster. A node joins by itself: it becomes a learner of
    /// every shard, and a voter once it has caught up.
    Add {
        #[command(flatten)]
        remote: Remote,
    },
    /// Takes a node out of every shard. It may be down. Its id never comes back: to use the machine again, start the
    /// node with an empty directory.
    Remove {
        /// The node's name or id.
        node: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Takes a node out once another one, which has joined in its place, is a voter of every shard.
    Replace {
        /// The name or id of the node to take out.
        node: String,
        /// The name or id of the node in its place.
        #[arg(long)]
        with: String,
        /// Seconds to wait until the new node has caught up.
        #[arg(long, default_value_t = 600)]
        timeout: u64,
        #[command(flatten)]
        remote: Remote,
    },
    /// Hands over the lead of a shard. It moves back after a few quiet seconds where it belongs to another node.
    TransferLeader {
        /// The shard's number.
        shard: u16,
        /// The name or id of the node to lead; without it, whoever is best.
        #[arg(long)]
        to: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Compares the replicas of every shard at one position. Exit code 4 if they are not all equal, or if some could
    /// not be asked within 15 s, as that of a node that is down.
    Verify {
        /// Has every node read all its stored rows as well; the first damaged one is named. Takes a while.
        #[arg(long)]
        scrub: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// Hands over every lead of the node at --url, which takes none until it is started again or told to with --undo.
    /// SIGTERM does the same before a node stops.
    Drain {
        /// Lets the node lead again.
        #[arg(long)]
        undo: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// Ends an upgrade: brings the newest feature level into force, once every node knows it. From then on no node can
    /// go back to the release before. Refused while a node is down or of an older release.
    Finalize {
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// The configuration file to check.
    #[arg(long, env = "ORCHESTRA_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    remote: Remote,
}

pub(crate) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let (remote, path, body) = match command {
        Command::Status { remote } => return status(&remote).await,
        Command::Add { remote } => return add(&remote).await,
        Command::Verify { scrub, remote } => return verify(scrub, &remote).await,
        Command::Replace { node, with, timeout, remote } => {
            until_voter(&remote, &with, Duration::from_secs(timeout)).await?;
            (remote, "remove", json!({"node": node}))
        }
        Command::Init { remote } => (remote, "init", json!({})),
        Command::Remove { node, remote } => (remote, "remove", json!({"node": node})),
        Command::TransferLeader { shard, to, remote } => {
            (remote, "transfer-leader", json!({"shard": shard, "to": to}))
        }
        Command::Drain { undo, remote } => (remote, "drain", json!({"undo": undo})),
        Command::Finalize { remote } => (remote, "finalize", json!({})),
    };
    let client = remote.client()?;
    let request = client.request(Method::POST, &format!("/v1/cluster/{path}"))?.json(&body);
    let answer = client.send(request).await?;
    match remote.output {
        Format::Json => print_json(&answer),
        Format::Table | Format::Markdown => {
            for (name, value) in answer.as_object().into_iter().flatten() {
                line(format!("{name} {}", text(value)));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn status(remote: &Remote) -> anyhow::Result<ExitCode> {
    let client = remote.client()?;
    let mut status = client.get("/v1/cluster").await?;
    let replicas = match client.get("/v1/cluster/replicas").await {
        // A node of release 0.1 does not know of all replicas.
        Err(error) if error.downcast_ref().is_some_and(|problem: &Problem| problem.code == "not_found") => {
            Value::Null
        }
        answer => answer?,
    };
    if remote.output == Format::Json {
        status["replicas"] = replicas;
        print_json(&status);
        return Ok(ExitCode::SUCCESS);
    }
    line(format!(
        "cluster {}, version {}, feature level {}, {} pieces of work under way at this node{}",
        text(&status["cluster"]),
        text(&status["version"]),
        text(&status["feature_level"]),
        text(&status["work_running"]),
        if status["draining"] == true { ", which is draining" } else { "" }
    ));
    let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
    let columns = [
        ("node", "/name"),
        ("id", "/id"),
        ("version", "/version"),
        ("level", "/feature_level"),
        ("HTTP", "/http"),
        ("gRPC", "/grpc"),
        ("peer", "/peer"),
    ];
    table(&columns, &nodes);
    let name = |id: &Value| {
        let node = nodes.iter().find(|node| node["id"] == *id);
        node.map_or_else(|| text(id), |node| text(&node["name"]))
    };
    let names = |ids: &Value| ids.as_array().into_iter().flatten().map(&name).collect::<Vec<_>>().join(", ");
    let shards = status["shards"].as_object().into_iter().flatten().map(|(shard, of)| {
        json!({"shard": shard, "leader": name(&of["leader"]), "voters": names(&of["voters"]),
            "learners": names(&of["learners"]), "position": of["position"]})
    });
    let columns = [
        ("shard", "/shard"),
        ("leader", "/leader"),
        ("voters", "/voters"),
        ("learners", "/learners"),
        ("position", "/position"),
    ];
    table(&columns, &shards.collect::<Vec<_>>());
    for (field, what) in [
        ("nodes_missing", "nodes that do not answer"),
        ("nodes_older", "nodes of an older release, which do not tell of their replicas"),
    ] {
        if replicas[field].as_array().is_some_and(|nodes| !nodes.is_empty()) {
            line(format!("{what}: {}", names(&replicas[field])));
        }
    }
    let replicas = replicas["shards"].as_array().into_iter().flatten().flat_map(|of| {
        let list = of["replicas"].as_array().cloned().unwrap_or_default();
        let of_shard = list.into_iter().map(|replica| {
            let compared = match replica["state"].as_str() {
                None => "not compared".to_owned(),
                Some(state) => format!("{state}, {}", text(&of["compared"]["at"])),
            };
            json!({"shard": of["shard"], "node": name(&replica["node"]), "behind": replica["behind"],
                "digest": replica["digest"], "compared": compared})
        });
        of_shard.collect::<Vec<_>>()
    });
    let columns = [
        ("shard", "/shard"),
        ("replica", "/node"),
        ("entries behind", "/behind"),
        ("digest", "/digest"),
        ("compared", "/compared"),
    ];
    table(&columns, &replicas.collect::<Vec<_>>());
    for provider in status["providers"].as_array().into_iter().flatten() {
        line(format!("provider {}: circuit {}", text(&provider["name"]), text(&provider["circuit"])));
    }
    if let Some(reason) = status["writes_stopped"].as_str() {
        line(format!("writes are stopped: {reason}"));
    }
    Ok(ExitCode::SUCCESS)
}

async fn verify(scrub: bool, remote: &Remote) -> anyhow::Result<ExitCode> {
    let client = remote.client()?;
    let request = client.request(Method::POST, "/v1/cluster/verify")?.json(&json!({"scrub": scrub}));
    let answer = client.send(request.timeout(VERIFY_TIMEOUT)).await?;
    let equal = answer["equal"] == true;
    if remote.output == Format::Json {
        print_json(&answer);
    } else {
        let rows = |of: &Value| of.as_array().cloned().unwrap_or_default();
        let columns =
            [("shard", "/shard"), ("replicas", "/state"), ("position", "/position"), ("digests", "/digests")];
        table(&columns, &rows(&answer["shards"]));
        if scrub {
            let columns =
                [("node", "/node"), ("shard", "/shard"), ("rows", "/rows"), ("problem", "/problem")];
            table(&columns, &rows(&answer["scrubbed"]));
        }
        line(if equal { "all replicas are equal" } else { "NOT all replicas are equal, or can be compared" });
    }
    Ok(if equal { ExitCode::SUCCESS } else { ExitCode::from(4) })
}

async fn add(remote: &Remote) -> anyhow::Result<ExitCode> {
    let status = remote.client()?.get("/v1/cluster").await?;
    let peers: Vec<String> =
        status["nodes"].as_array().into_iter().flatten().map(|node| text(&node["peer"])).collect();
    let command = format!(
        "orchestra node --data-dir <an empty directory> --name <its name> --join {}",
        peers.join(",")
    );
    match remote.output {
        Format::Json => print_json(&json!({"join": peers, "command": command})),
        Format::Table | Format::Markdown => line(format!("On the new machine:\n  {command}")),
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until a node is a voter of every shard.
async fn until_voter(remote: &Remote, node: &str, timeout: Duration) -> anyhow::Result<()> {
    let client = remote.client()?;
    let until = Instant::now() + timeout;
    loop {
        let status = client.get("/v1/cluster").await?;
        let named = |of: &&Value| of["name"] == node || text(&of["id"]) == node;
        let id = status["nodes"].as_array().into_iter().flatten().find(named).map(|of| of["id"].clone());
        let votes = |shard: &Value| {
            let mut voters = shard["voters"].as_array().into_iter().flatten();
            voters.any(|voter| Some(voter) == id.as_ref())
        };
        let shards = status["shards"].as_object().cloned().unwrap_or_default();
        let missing = shards.values().filter(|shard| !votes(shard)).count();
        if missing == 0 {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("{node} is not a voter of {missing} shards after {timeout:?}; nothing was taken out");
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Prints each check; exit code 4 if one failed.
pub(crate) async fn doctor(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let mut failed = 0;
    let mut check = |name: &str, result: Result<String, String>| match result {
        Ok(detail) => line(format!("ok      {name}: {detail}")),
        Err(detail) => {
            failed += 1;
            line(format!("FAILED  {name}: {detail}"));
        }
    };
    let config = Config::load(args.config.as_deref());
    check("configuration", config.as_ref().map(|_| "valid".to_owned()).map_err(ToString::to_string));
    let unknown = Config::unknown_variables();
    check(
        "environment",
        if unknown.is_empty() {
            Ok("no unknown variable".into())
        } else {
            Err(format!("nothing reads {}", unknown.join(", ")))
        },
    );
    if let Ok(config) = &config {
        let providers = match config.providers.len() {
            0 => "none is configured: the simulated vendor runs".to_owned(),
            count => format!("{count} configured"),
        };
        check("providers", Ok(providers));
        for (name, provider) in &config.providers {
            if let Some(variable) = &provider.api_key_env {
                let set = std::env::var_os(variable).is_some()
                    || std::env::var_os(format!("{variable}_FILE")).is_some();
                let result = if set {
                    Ok(format!("{variable} is set"))
                } else {
                    Err(format!("neither {variable} nor {variable}_FILE is set"))
                };
                check(&format!("key of provider {name}"), result);
            }
        }
    }
    let client = args.remote.client()?;
    let ready = client.get("/health/ready").await;
    check("node", ready.map(|answer| text(&answer["status"])).map_err(|error| format!("{error:#}")));
    if let Ok(status) = client.get("/v1/cluster").await {
        for provider in status["providers"].as_array().into_iter().flatten() {
            let (name, circuit) = (text(&provider["name"]), text(&provider["circuit"]));
            check(
                &format!("provider {name}"),
                if circuit == "closed" {
                    Ok("circuit closed".into())
                } else {
                    Err(format!("circuit {circuit}"))
                },
            );
        }
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(4) })
}
