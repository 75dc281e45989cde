//! A network of one's own: every node in a network namespace, joined by a [`switch`] in this process. All names carry
//! the process id of the run, and only those of runs that are over are removed.

mod namespace;
mod switch;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::Context as _;
use testkit::Place;

pub(crate) use switch::{Host, Link, Switch};

use namespace::Namespace;

/// The host that is this process itself: clients, workers and vendors.
const HERE: Host = 1;
/// The host of node 0.
const FIRST_NODE: Host = 10;
/// Large enough that a message costs few packets.
const MTU: u16 = 9_000;
const HTTP: u16 = 7100;
const TOKEN: &str = "CHAOS_TOKEN";
/// What a node needs in its configuration to live here: it listens to more than its own machine.
pub(crate) const CONFIG: &str =
    "[[tokens]]\ntenant = \"default\"\ntoken_env = \"CHAOS_TOKEN\"\nadmin = true\n";

/// The network of a run.
pub(crate) struct Network {
    run: u32,
    /// Which network of this process it is: the devices of one before it may still be there.
    number: u32,
    /// The third byte of all addresses.
    subnet: u8,
    switch: Switch,
    namespaces: Vec<Namespace>,
    token: String,
}

impl Network {
    /// Makes a network without nodes. `Ok(None)` where the machine does not allow it.
    pub(crate) fn start(seed: u64) -> anyhow::Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/net/tun").exists() {
            return Ok(None);
        }
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let (run, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed) % 36);
        namespace::remove_stale()?;
        let subnet = namespace::free_subnet(run + number)?;
        let token = format!("chaos-{:032x}", rand::random::<u128>());
        let mut network =
            Self { run, number, subnet, switch: Switch::new(seed), namespaces: Vec::new(), token };
        let name = network.device_name('h');
        let device = network.device(&name)?;
        namespace::address(None, &name, network.address(HERE), MTU)?;
        network.switch.plug(HERE, device);
        Ok(Some(network))
    }

    /// The beginning of the names of its devices: 15 characters are all there is.
    fn device_name(&self, kind: char) -> String {
        format!("o{:x}{}{kind}", self.run, char::from_digit(self.number, 36).unwrap_or('z'))
    }

    fn device(&self, name: &str) -> anyhow::Result<tun_rs::AsyncDevice> {
        tun_rs::DeviceBuilder::new()
            .name(name)
            .layer(tun_rs::Layer::L3)
            .build_async()
            .with_context(|| format!("make the device {name}"))
    }

    fn address(&self, host: Host) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.subnet, host)
    }

    /// The address of this process in it.
    pub(crate) fn here(&self) -> Ipv4Addr {
        self.address(HERE)
    }

    /// Where its packets are.
    pub(crate) fn switch(&self) -> &Switch {
        &self.switch
    }

    /// The host of a node.
    pub(crate) fn host(node: usize) -> Host {
        FIRST_NODE + Host::try_from(node).unwrap_or(Host::MAX - FIRST_NODE)
    }

    /// The token that its nodes ask of clients.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// A place for a node.
    pub(crate) fn place(&mut self, number: usize) -> anyhow::Result<Place> {
        let host = Self::host(number);
        let name = format!("{}{number}", self.device_name('n'));
        let namespace = Namespace::new(&format!("orchestra-{}-{}-{number}", self.run, self.number))?;
        let device = self.device(&name)?;
        namespace.take(&name)?;
        let address = self.address(host);
        namespace::address(Some(&namespace), &name, address, MTU)?;
        self.switch.plug(host, device);
        let command = namespace.command();
        self.namespaces.push(namespace);
        let at = |port| SocketAddr::from((address, port));
        Ok(Place {
            http: at(HTTP),
            grpc: at(HTTP + 1),
            peer: at(HTTP + 2),
            command,
            env: vec![(TOKEN.into(), self.token.clone())],
            program: None,
        })
    }
}

/// What a switch without faults carries from this process to one host, in packets of 1,200 bytes. `None` where the
/// machine does not allow it.
///
/// # Errors
///
/// The devices can not be made.
pub async fn packets_a_second(measured: Duration) -> anyhow::Result<Option<f64>> {
    let Some(mut network) = Network::start(1)? else { return Ok(None) };
    let place = network.place(0)?;
    let socket = tokio::net::UdpSocket::bind((network.here(), 0)).await?;
    socket.connect(SocketAddr::new(place.http.ip(), HTTP)).await?;
    let packet = [7u8; 1_200];
    let until = tokio::time::Instant::now() + measured;
    let carried = || network.switch.counts.carried.load(Ordering::Relaxed);
    let (before, began) = (carried(), tokio::time::Instant::now());
    let mut sent = 0u64;
    while tokio::time::Instant::now() < until {
        // Nobody listens there, which some sends are told.
        let _ = socket.send(&packet).await;
        sent += 1;
        if sent.is_multiple_of(64) {
            tokio::task::yield_now().await;
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    Ok(Some((carried() - before) as f64 / began.elapsed().as_secs_f64()))
}
