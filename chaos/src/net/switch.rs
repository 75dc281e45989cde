//! A switch between TUN devices, in this process: every packet from one host to another passes here, where its link may
//! be slow, lossy or cut. It needs no kernel module, and what becomes of a packet is drawn from a seed.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tun_rs::AsyncDevice;

/// Packets that may wait for one host. More are dropped, as a router drops them.
const QUEUE_LEN: usize = 4_096;

/// A host: the last byte of its address.
pub(crate) type Host = u8;

/// What happens to packets from one host to another. The default is a wire without faults.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Link {
    /// Nothing passes.
    pub(crate) cut: bool,
    /// How long every packet takes.
    pub(crate) delay: Duration,
    /// How much longer, at most. Packets overtake one another only by `reorder`.
    pub(crate) jitter: Duration,
    /// The share that is lost.
    pub(crate) loss: f64,
    /// The share that comes twice.
    pub(crate) duplicate: f64,
    /// The share that others overtake.
    pub(crate) reorder: f64,
    /// Bytes a second; 0 for no limit.
    pub(crate) rate: u64,
}

/// Counts since the switch began.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) carried: AtomicU64,
    pub(crate) cut: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) delayed: AtomicU64,
}

/// A packet that waits until it is due.
struct Waiting {
    due: Instant,
    number: u64,
    packet: Vec<u8>,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        (self.due, self.number) == (other.due, other.number)
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

/// What the switch remembers of a link.
struct State {
    link: Link,
    random: StdRng,
    /// When the last packet that keeps its place is due, and when the wire is free again.
    last_due: Instant,
    free_at: Instant,
}

#[derive(Default)]
struct Table {
    ports: HashMap<Host, Port>,
    links: HashMap<(Host, Host), State>,
}

#[derive(Clone)]
struct Port {
    device: Arc<AsyncDevice>,
    later: mpsc::Sender<Waiting>,
}

/// The switch. It runs as long as this lives.
pub(crate) struct Switch {
    seed: u64,
    table: Arc<Mutex<Table>>,
    pub(crate) counts: Arc<Counts>,
    tasks: JoinSet<()>,
}

/// The table is plain data: whoever panicked while holding it has left it as it was.
fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Switch {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, table: Arc::default(), counts: Arc::default(), tasks: JoinSet::new() }
    }

    /// Plugs in a host.
    pub(crate) fn plug(&mut self, host: Host, device: AsyncDevice) {
        let device = Arc::new(device);
        let (later, waiting) = mpsc::channel(QUEUE_LEN);
        self.tasks.spawn(deliver(Arc::clone(&device), waiting));
        let port = Port { device: Arc::clone(&device), later };
        lock(&self.table).ports.insert(host, port);
        let forward = Forward {
            from: host,
            seed: self.seed,
            table: Arc::clone(&self.table),
            counts: Arc::clone(&self.counts),
        };
        self.tasks.spawn(forward.run(device));
    }

    /// Sets what happens to packets from one host to another from now on.
    pub(crate) fn set(&self, from: Host, to: Host, link: Link) {
        let mut table = lock(&self.table);
        state(&mut table.links, self.seed, from, to).link = link;
    }

    /// Heals every link.
    pub(crate) fn heal(&self) {
        for state in lock(&self.table).links.values_mut() {
            state.link = Link::default();
        }
    }
}

fn state(links: &mut HashMap<(Host, Host), State>, seed: u64, from: Host, to: Host) -> &mut State {
    links.entry((from, to)).or_insert_with(|| State {
        link: Link::default(),
        random: StdRng::seed_from_u64(seed ^ (u64::from(from) << 8) ^ u64::from(to)),
        last_due: Instant::now(),
        free_at: Instant::now(),
    })
}

/// Reads what one host sends, and passes it on.
struct Forward {
    from: Host,
    seed: u64,
    table: Arc<Mutex<Table>>,
    counts: Arc<Counts>,
}

impl Forward {
    async fn run(self, device: Arc<AsyncDevice>) {
        let mut buffer = vec![0u8; 1 << 16];
        let mut number = 0;
        while let Ok(length) = device.recv(&mut buffer).await {
            let packet = &buffer[..length];
            // IPv4, and the destination's last byte. Everything else is not ours.
            if length < 20 || packet[0] >> 4 != 4 {
                continue;
            }
            number += 1;
            let (port, times) = self.fate(packet[19], length, number);
            let Some(port) = port else { continue };
            for due in times.into_iter().flatten() {
                match due {
                    // A full device drops the packet, as a network card does.
                    None => drop(port.device.try_send(packet)),
                    Some(due) => {
                        let waiting = Waiting { due, number, packet: packet.to_vec() };
                        // A full queue drops it, too.
                        let _ = port.later.try_send(waiting);
                    }
                }
            }
        }
    }

    /// Where a packet goes, and when: at once, at a time, twice, or never.
    fn fate(&self, to: Host, length: usize, number: u64) -> (Option<Port>, [Option<Option<Instant>>; 2]) {
        let mut table = lock(&self.table);
        let Some(port) = table.ports.get(&to).cloned() else { return (None, [None, None]) };
        let State { link, random, last_due, free_at } = state(&mut table.links, self.seed, self.from, to);
        let add = |count: &AtomicU64| count.fetch_add(1, Ordering::Relaxed);
        if link.cut {
            add(&self.counts.cut);
            return (None, [None, None]);
        }
        if link.loss > 0.0 && random.random_bool(link.loss) {
            add(&self.counts.lost);
            return (None, [None, None]);
        }
        add(&self.counts.carried);
        if *link == Link::default() {
            return (Some(port), [Some(None), None]);
        }
        let now = Instant::now();
        let mut due = now + link.delay;
        if !link.jitter.is_zero() {
            due += link.jitter.mul_f64(random.random_range(0.0..1.0));
        }
        if let Some(nanos) = (u64::try_from(length).unwrap_or(0) * 1_000_000_000).checked_div(link.rate) {
            *free_at = (*free_at).max(now) + Duration::from_nanos(nanos);
            due = due.max(*free_at + link.delay);
        }
        if link.reorder > 0.0 && random.random_bool(link.reorder) {
            // Others overtake it: it does not hold them up.
            due += link.delay / 2 + Duration::from_millis(1 + number % 4);
        } else {
            due = due.max(*last_due);
            *last_due = due;
        }
        let again = link.duplicate > 0.0 && random.random_bool(link.duplicate);
        add(&self.counts.delayed);
        (Some(port), [Some(Some(due)), again.then_some(Some(due))])
    }
}

/// Hands over what waits, when it is due.
async fn deliver(device: Arc<AsyncDevice>, mut incoming: mpsc::Receiver<Waiting>) {
    let mut heap: BinaryHeap<Reverse<Waiting>> = BinaryHeap::new();
    loop {
        let due = heap.peek().map(|Reverse(next)| next.due);
        tokio::select! {
            biased;
            waiting = incoming.recv() => match waiting {
                Some(waiting) => heap.push(Reverse(waiting)),
                None => return,
            },
            () = async { sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {
                if let Some(Reverse(next)) = heap.pop() {
                    // A full device drops the packet.
                    drop(device.try_send(&next.packet));
                }
            }
        }
    }
}
