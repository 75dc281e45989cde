//! `certs`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::Subcommand;

use crate::output::line;

const DAY: Duration = Duration::from_secs(86_400);

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes an authority, and one certificate of it that every node may use. The authority's key is not kept, so
    /// nothing else is ever signed by it: for development, and for clusters whose nodes trust one another as one.
    Dev {
        /// Where ca.pem, node.pem and node.key are written.
        #[arg(long, default_value = "orchestra-certs")]
        out: PathBuf,
        /// A host that nodes are reached at, a name or an address; may be repeated. `localhost`, `127.0.0.1` and `::1`
        /// are always in.
        #[arg(long = "host")]
        hosts: Vec<String>,
        /// Days until they expire.
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
    },
}

pub(crate) fn run(command: Command) -> anyhow::Result<ExitCode> {
    let Command::Dev { out, hosts, days } = command;
    let local = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let hosts: Vec<String> = local.into_iter().chain(hosts).collect();
    let made = tls::dev_certificates(&out, &hosts, DAY * days).with_context(|| out.display().to_string())?;
    line(format!(
        "certificates for {}, for {days} days\n\nIn the configuration of each node:\n  [tls]\n  cert = {:?}\n  key = {:?}\n  \
         ca = {:?}\n\nFor clients: --ca {}",
        hosts.join(", "),
        made.cert,
        made.key,
        made.ca,
        made.ca.display()
    ));
    Ok(ExitCode::SUCCESS)
}
