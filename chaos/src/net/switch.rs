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

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Its link is cut.
    Cut,
    Lost,
    AtOnce,
    /// It arrives so many times.
    Later {
        due: Instant,
        times: u8,
    },
}

/// What the switch remembers of a link.
struct State {
    link: Link,
    random: StdRng,
    /// When the last packet that keeps its place is due, and when the wire is free again.
    last_due: Instant,
    free_at: Instant,
}

impl State {
    fn new(seed: u64, from: Host, to: Host, now: Instant) -> Self {
        let random = StdRng::seed_from_u64(seed ^ (u64::from(from) << 8) ^ u64::from(to));
        Self { link: Link::default(), random, last_due: now, free_at: now }
    }

    /// What becomes of the packet of this length, the `number`-th of its sender.
    fn fate(&mut self, length: usize, number: u64, now: Instant) -> Fate {
        let Self { link, random, last_due, free_at } = self;
        if link.cut {
            return Fate::Cut;
        }
        if link.loss > 0.0 && random.random_bool(link.loss) {
            return Fate::Lost;
        }
        if *link == Link::default() {
            return Fate::AtOnce;
        }
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
        let twice = link.duplicate > 0.0 && random.random_bool(link.duplicate);
        Fate::Later { due, times: 1 + u8::from(twice) }
    }
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
    links.entry((from, to)).or_insert_with(|| State::new(seed, from, to, Instant::now()))
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
            match self.fate(packet[19], length, number) {
                None | Some((_, Fate::Cut | Fate::Lost)) => {}
                // A full device drops the packet, as a network card does.
                Some((port, Fate::AtOnce)) => drop(port.device.try_send(packet)),
                Some((port, Fate::Later { due, times })) => {
                    for _ in 0..times {
                        let waiting = Waiting { due, number, packet: packet.to_vec() };
                        // A full queue drops it, too.
                        let _ = port.later.try_send(waiting);
                    }
                }
            }
        }
    }

    /// Where a packet goes, and what becomes of it on the way.
    fn fate(&self, to: Host, length: usize, number: u64) -> Option<(Port, Fate)> {
        let mut table = lock(&self.table);
        let port = table.ports.get(&to).cloned()?;
        let state = state(&mut table.links, self.seed, self.from, to);
        let fate = state.fate(length, number, Instant::now());
        let counts = &self.counts;
        let counted: &[&AtomicU64] = match fate {
            Fate::Cut => &[&counts.cut],
            Fate::Lost => &[&counts.lost],
            Fate::AtOnce => &[&counts.carried],
            Fate::Later { .. } => &[&counts.carried, &counts.delayed],
        };
        for count in counted {
            count.fetch_add(1, Ordering::Relaxed);
        }
        Some((port, fate))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of so many packets of 1,000 bytes, one every millisecond: fate, and how long each took.
    fn fates(link: Link, seed: u64, packets: u64) -> Vec<(Fate, Option<Duration>)> {
        let begun = Instant::now();
        let mut state = State { link, ..State::new(seed, 10, 11, begun) };
        let one = |number| {
            let now = begun + Duration::from_millis(number);
            let fate = state.fate(1_000, number, now);
            let took = if let Fate::Later { due, .. } = fate { Some(due - now) } else { None };
            (fate, took)
        };
        (0..packets).map(one).collect()
    }

    fn took(of: &[(Fate, Option<Duration>)]) -> Vec<Duration> {
        of.iter().filter_map(|(_, took)| *took).collect()
    }

    #[test]
    fn a_wire_without_faults_holds_nothing_up_and_a_cut_one_carries_nothing() {
        assert!(fates(Link::default(), 1, 100).iter().all(|(fate, _)| *fate == Fate::AtOnce));
        let cut = Link { cut: true, delay: Duration::from_millis(1), ..Link::default() };
        assert!(fates(cut, 1, 100).iter().all(|(fate, _)| *fate == Fate::Cut));
    }

    #[test]
    fn the_same_seed_gives_the_same_packets_the_same_fate() {
        let lossy = Link {
            delay: Duration::from_millis(1),
            jitter: Duration::from_millis(2),
            loss: 0.05,
            duplicate: 0.02,
            reorder: 0.05,
            ..Link::default()
        };
        let of = |seed| -> Vec<(bool, Option<Duration>)> {
            fates(lossy, seed, 2_000).into_iter().map(|(fate, took)| (fate == Fate::Lost, took)).collect()
        };
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
    }

    #[test]
    fn as_many_are_lost_and_doubled_as_was_asked_for() {
        let link = Link { loss: 0.1, duplicate: 0.2, ..Link::default() };
        let fates = fates(link, 3, 10_000);
        let lost = fates.iter().filter(|(fate, _)| *fate == Fate::Lost).count();
        assert!((900..1_100).contains(&lost), "{lost} of 10,000 are lost");
        let twice = fates.iter().filter(|(fate, _)| matches!(fate, Fate::Later { times: 2, .. })).count();
        assert!((1_600..2_000).contains(&twice), "{twice} of 10,000 came twice");
    }

    #[test]
    fn delays_are_within_their_bounds_and_only_reordered_packets_are_overtaken() {
        let ms = Duration::from_millis;
        let link = Link { delay: ms(20), jitter: ms(10), ..Link::default() };
        let took = took(&fates(link, 5, 5_000));
        assert!(took.iter().all(|took| (ms(20)..ms(30)).contains(took)), "{took:?}");
        let overtaken = |link| {
            let fates = fates(link, 5, 5_000);
            let due: Vec<Instant> = fates
                .iter()
                .filter_map(|(fate, _)| if let Fate::Later { due, .. } = fate { Some(*due) } else { None })
                .collect();
            due.windows(2).filter(|pair| pair[1] < pair[0]).count()
        };
        assert_eq!(overtaken(link), 0);
        assert!(overtaken(Link { reorder: 0.1, ..link }) > 100);
    }

    #[test]
    fn a_narrow_wire_makes_packets_wait_for_one_another() {
        // 1,000 packets of 1,000 bytes within a second, over a wire that carries 500,000 bytes in it.
        let took = took(&fates(Link { rate: 500_000, ..Link::default() }, 1, 1_000));
        assert!(took.first().is_some_and(|first| *first == Duration::from_millis(2)), "{took:?}");
        assert!(took.last().is_some_and(|last| *last >= Duration::from_secs(1)), "{took:?}");
    }
}
