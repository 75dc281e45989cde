//! Network namespaces and addresses, by the `ip` command.

use std::{net::Ipv4Addr, path::Path, process::Command};

use anyhow::{Context as _, bail};

const PREFIX: &str = "orchestra-";

/// A network namespace. It is removed when this is dropped.
pub(super) struct Namespace(String);

fn ip(arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("ip").args(arguments).output().context("run `ip` (of iproute2)")?;
    if !output.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Namespace {
    pub(super) fn new(name: &str) -> anyhow::Result<Self> {
        ip(&["netns", "add", name])?;
        let namespace = Self(name.to_owned());
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Moves a device into it.
    pub(super) fn take(&self, device: &str) -> anyhow::Result<()> {
        ip(&["link", "set", device, "netns", &self.0]).map(drop)
    }

    /// What runs a program inside.
    pub(super) fn command(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.0].map(str::to_owned).to_vec()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Gone already, it is gone.
        let _ = ip(&["netns", "del", &self.0]);
    }
}

/// Gives a device its address, and lets it work.
pub(super) fn address(
    namespace: Option<&Namespace>,
    device: &str,
    address: Ipv4Addr,
    mtu: u16,
) -> anyhow::Result<()> {
    let inside: Vec<&str> = namespace.map(|of| vec!["-n", of.0.as_str()]).unwrap_or_default();
    let run = |arguments: &[&str]| ip(&[&inside, arguments].concat());
    run(&["addr", "add", &format!("{address}/24"), "dev", device])?;
    run(&["link", "set", device, "mtu", &mtu.to_string(), "txqueuelen", "10000", "up"])?;
    Ok(())
}

/// A third byte of `10.77.x.0/24` that nobody uses.
pub(super) fn free_subnet(run: u32) -> anyhow::Result<u8> {
    let used = ip(&["-4", "-o", "addr"])?;
    let first = u8::try_from(run % 250).unwrap_or_default();
    (0..250u8)
        .map(|step| first.wrapping_add(step) % 250)
        .find(|subnet| !used.contains(&format!(" 10.77.{subnet}.")))
        .context("all of 10.77.0.0/16 is in use")
}

/// Removes the namespaces of runs that are over: their names carry the process id.
pub(super) fn remove_stale() -> anyhow::Result<()> {
    for line in ip(&["netns", "list"])?.lines() {
        let Some(name) = line.split_whitespace().next() else { continue };
        let Some(run) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()) else { continue };
        if run.parse::<u32>().is_ok() && !Path::new("/proc").join(run).exists() {
            ip(&["netns", "del", name])?;
        }
    }
    Ok(())
}
