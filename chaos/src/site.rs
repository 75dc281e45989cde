//! Where the nodes of a run live: in network namespaces, on disks whose power can be cut, with clocks that can be
//! moved, as far as the faults of the run need it and the machine allows it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use testkit::{Hosts, Loopback, Place};

use crate::{disk::Disk, net::Network};

/// What a run needs.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Needs {
    pub(crate) network: bool,
    pub(crate) disks: bool,
    pub(crate) clocks: bool,
    pub(crate) releases: bool,
}

/// A build that breaks a promise on purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mutant {
    /// The program.
    pub program: PathBuf,
    /// Which promise.
    pub name: String,
}

pub(crate) struct Site {
    pub(crate) network: Option<Network>,
    /// The disks of nodes; `None` where they live on the machine's.
    pub(crate) disks: Option<BTreeMap<usize, Disk>>,
    /// The files that say how wrong the clocks of nodes are; `None` where clocks are left alone.
    clocks: Option<BTreeMap<usize, PathBuf>>,
    mutant: Option<Mutant>,
    /// The release before, if the cluster begins with it.
    pub(crate) previous: Option<PathBuf>,
    seed: u64,
}

impl Site {
    pub(crate) fn prepare(needs: Needs, seed: u64, mutant: Option<Mutant>) -> anyhow::Result<Self> {
        let can_mount = || -> anyhow::Result<bool> {
            let probe = tempfile::tempdir()?;
            Ok(Disk::mount(probe.path(), seed).is_some())
        };
        Ok(Self {
            network: if needs.network { Network::start(seed)? } else { None },
            disks: (needs.disks && can_mount()?).then(BTreeMap::new),
            clocks: (needs.clocks && testkit::wrong_clock("+0").is_some()).then(BTreeMap::new),
            mutant,
            previous: needs.releases.then(testkit::previous_binary).flatten(),
            seed,
        })
    }

    /// Copies what is on the disks of nodes to where it stays.
    pub(crate) fn keep_disks(&self, directory: &Path) -> anyhow::Result<()> {
        for node in self.disks.iter().flat_map(BTreeMap::keys) {
            let at = directory.join(format!("node-{node}"));
            testkit::copy_directory(&at.join("data"), &at.join("data-kept"))?;
        }
        Ok(())
    }

    /// Whether clocks can be moved.
    pub(crate) fn has_clocks(&self) -> bool {
        self.clocks.is_some()
    }

    /// Moves the clock of a node, by so many seconds from what is right.
    pub(crate) fn set_clock(&self, node: usize, seconds: i64) -> anyhow::Result<()> {
        let file = self.clocks.as_ref().and_then(|clocks| clocks.get(&node));
        let file = file.ok_or_else(|| anyhow::anyhow!("the clock of node {node} can not be moved"))?;
        Ok(fs::write(file, format!("{seconds:+}"))?)
    }

    /// What nodes need in their configuration to live here.
    pub(crate) fn configure(&self, config: &str) -> String {
        match self.network {
            Some(_) => config.replacen("[node]\n", "[node]\ninsecure = true\n", 1) + crate::net::CONFIG,
            None => config.to_owned(),
        }
    }
}

/// A site that faults and the cluster share.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<Site>>);

impl Shared {
    pub(crate) fn new(site: Site) -> Self {
        Self(Arc::new(Mutex::new(site)))
    }

    /// Nothing is left half done in it by whoever panicked.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Site> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hosts for Shared {
    fn place(&mut self, number: usize, directory: &Path) -> anyhow::Result<Place> {
        let mut site = self.lock();
        let mut place = match &mut site.network {
            Some(network) => network.place(number)?,
            None => Loopback.place(number, directory)?,
        };
        place.program.clone_from(&site.previous);
        if let Some(mutant) = &site.mutant {
            place.program = Some(mutant.program.clone());
            place.env.push(("ORCHESTRA_MUTANT".into(), mutant.name.clone()));
        }
        let seed = site.seed ^ number as u64;
        if let Some(disks) = &mut site.disks {
            let at = directory.join("data");
            fs::create_dir_all(&at)?;
            let disk = Disk::mount(&at, seed);
            disks.insert(number, disk.ok_or_else(|| anyhow::anyhow!("{} can not be mounted", at.display()))?);
        }
        if let Some(clocks) = &mut site.clocks {
            fs::create_dir_all(directory)?;
            let file = directory.join("clock-offset");
            fs::write(&file, "+0")?;
            let env = testkit::wrong_clock("+0").into_iter().flatten();
            // Without it, the offset is read from the file again and again.
            place.env.extend(env.filter(|(name, _)| name != "FAKETIME"));
            place.env.push(("FAKETIME_TIMESTAMP_FILE".into(), file.display().to_string()));
            place.env.push(("FAKETIME_CACHE_DURATION".into(), "1".into()));
            clocks.insert(number, file);
        }
        Ok(place)
    }

    fn token(&self) -> Option<String> {
        self.lock().network.as_ref().map(|network| network.token().to_owned())
    }
}
