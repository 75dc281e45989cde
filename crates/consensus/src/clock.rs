//! Time: the door to the system's clocks, and the clock of a shard.

use std::{sync::Arc, time::Duration};

use ids::Timestamp;
use tokio::sync::watch;

/// The system's clocks.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock. It may jump.
    fn wall(&self) -> Timestamp;
    /// Time since some moment before the process, counting time asleep. It never jumps.
    fn boot(&self) -> Duration;
    /// Tells one boot of the machine from another.
    fn boot_id(&self) -> String;
}

/// The clocks of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn wall(&self) -> Timestamp {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Timestamp(micros(&now))
    }

    fn boot(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::from_micros(micros(&now))
    }

    fn boot_id(&self) -> String {
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
    }
}

fn micros(time: &rustix::time::Timespec) -> u64 {
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000
}

/// A wall clock that is this far from those of most nodes is not believed, in microseconds.
const OFFSET_MAX: u64 = 500_000;

/// The clocks of this machine, with the wall clock set right where most nodes of the cluster say that it is wrong: a
/// node whose clock is an hour ahead must not fire an hour's timers when it comes to lead.
///
/// From one comparison to the next its time goes on with the steady clock. A jump of the wall clock is so taken for
/// what the next comparison says that it is, and for nothing until then: with the old correction on top, a clock that
/// was just put right would be as wrong as before, the other way.
pub struct ClusterClock {
    machine: Arc<dyn Clock>,
    compared: watch::Sender<Compared>,
}

/// What comparing clocks has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compared {
    /// Too few nodes have answered.
    NotYet,
    /// Most nodes do not agree, or there is no other.
    Disagree,
    /// What most nodes agree on.
    Agree {
        /// The agreed time less this machine's steady clock, in microseconds.
        ahead_of_boot: i64,
        /// The agreed time less this machine's wall clock when they were compared, in microseconds.
        offset: i64,
    },
}

impl ClusterClock {
    /// The clocks of a machine, not compared yet.
    #[must_use]
    pub fn new(machine: Arc<dyn Clock>) -> Self {
        Self { machine, compared: watch::Sender::new(Compared::NotYet) }
    }

    /// The wall clock of this machine, right or wrong.
    pub(crate) fn machine_wall(&self) -> Timestamp {
        self.machine.wall()
    }

    /// Takes note of how far the wall clocks of other nodes are ahead of the steady clock of this one, in
    /// microseconds, in a cluster of so many nodes. Compared with the steady clock, what another said a while ago
    /// stays true if the wall clock of this machine has jumped since.
    pub(crate) fn compare(&self, others: &[i64], nodes: usize) {
        let mine = ahead_of_boot(self.machine.wall(), self.machine.boot());
        let mut all: Vec<i64> = others.iter().copied().chain([mine]).collect();
        all.sort_unstable();
        let most = |near: i64| all.iter().filter(|of| of.abs_diff(near) <= OFFSET_MAX).count() > nodes / 2;
        let agree = |ahead_of_boot: i64| Compared::Agree { ahead_of_boot, offset: ahead_of_boot - mine };
        let median = all[all.len() / 2];
        let found = if nodes < 2 {
            Compared::Disagree
        } else if most(mine) {
            agree(mine)
        } else if most(median) {
            agree(median)
        } else if all.len() > nodes / 2 {
            Compared::Disagree
        } else {
            Compared::NotYet
        };
        self.compared.send_if_modified(|before| {
            let is_new = match (*before, found) {
                // Once set right, it stays so until most nodes say otherwise.
                (_, Compared::NotYet) | (Compared::Agree { .. }, Compared::Disagree) => false,
                (
                    Compared::Agree { ahead_of_boot: before, offset: old },
                    Compared::Agree { ahead_of_boot: found, offset: new },
                ) => {
                    // Of another's clock, what is left is how long messages take; where this machine's own is right,
                    // it is followed.
                    new == 0 || before.abs_diff(found) > OFFSET_MAX / 5 || old.abs_diff(new) > OFFSET_MAX / 5
                }
                (before, found) => before != found,
            };
            if is_new {
                match found {
                    Compared::Agree { offset, .. } if offset != 0 => tracing::error!(
                        offset_ms = offset / 1000,
                        "the clock of this machine is wrong: most nodes have another time, which is used instead"
                    ),
                    Compared::Agree { .. } | Compared::NotYet => {}
                    Compared::Disagree => tracing::debug!("the clocks of the nodes do not agree"),
                }
                *before = found;
            }
            is_new
        });
    }

    /// How far the clocks of most nodes are ahead of this one, in milliseconds, where they agree.
    #[must_use]
    pub fn offset_ms(&self) -> Option<i64> {
        match *self.compared.borrow() {
            Compared::Agree { offset, .. } => Some(offset / 1000),
            _ => None,
        }
    }

    /// The time that most nodes agree on, if they do.
    pub(crate) fn agreed(&self) -> Option<Timestamp> {
        match *self.compared.borrow() {
            Compared::Agree { ahead_of_boot, .. } => Some(at(ahead_of_boot, self.machine.boot())),
            _ => None,
        }
    }

    /// Waits until the clocks of most nodes were compared once.
    pub(crate) async fn compared(&self) {
        // It ends with this clock.
        let _ = self.compared.subscribe().wait_for(|compared| *compared != Compared::NotYet).await;
    }
}

/// How far a wall clock is ahead of a steady one, in microseconds.
pub(crate) fn ahead_of_boot(wall: Timestamp, boot: Duration) -> i64 {
    let ahead = i128::from(wall.0) - i128::try_from(boot.as_micros()).unwrap_or_default();
    i64::try_from(ahead).unwrap_or_default()
}

fn at(ahead_of_boot: i64, boot: Duration) -> Timestamp {
    let boot = u64::try_from(boot.as_micros()).unwrap_or_default();
    Timestamp(boot.saturating_add_signed(ahead_of_boot))
}

impl Clock for ClusterClock {
    fn wall(&self) -> Timestamp {
        self.agreed().unwrap_or_else(|| self.machine.wall())
    }

    fn boot(&self) -> Duration {
        self.machine.boot()
    }

    fn boot_id(&self) -> String {
        self.machine.boot_id()
    }
}

impl std::fmt::Debug for ClusterClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterClock").field("compared", &*self.compared.borrow()).finish_non_exhaustive()
    }
}

/// How fast the clock of a shard may run while it is away from the wall clock, in 1/1000 of real time: from 0.9 to
/// 1.1 seconds a second.
const SLEW_PERMILLE: i128 = 100;

/// The clock of a shard on its leader. It never goes back, and follows a jump of the wall clock at a bounded rate, so
/// that a jump by hours does not fire every deadline at once.
///
/// Timers are due by this clock and no other: it may be hours from the wall clock, and yet run at nine tenths of its
/// speed at least.
#[derive(Debug)]
pub struct ShardClock {
    now: Timestamp,
    boot: Duration,
}

impl ShardClock {
    /// The clock at the beginning of a leader's term: not before the shard's last entry, nor before `trusted`, the
    /// wall clock as far as it can be believed.
    #[must_use]
    pub fn start(last: Timestamp, trusted: Timestamp, clock: &dyn Clock) -> Self {
        Self { now: last.max(trusted), boot: clock.boot() }
    }

    /// The shard's time.
    pub fn now(&mut self, clock: &dyn Clock) -> Timestamp {
        let (boot, wall) = (clock.boot(), clock.wall());
        let elapsed = i128::try_from(boot.saturating_sub(self.boot).as_micros()).unwrap_or(0);
        let steady = i128::from(self.now.0) + elapsed;
        let slack = elapsed * SLEW_PERMILLE / 1000;
        let target = i128::from(wall.0).clamp(steady - slack, steady + slack);
        self.boot = boot;
        self.now = Timestamp(u64::try_from(target).unwrap_or(0)).max(self.now);
        self.now
    }
}

/// A pair of clock readings, kept in the node's directory: it tells a jump of the wall clock while the node was down
/// from time that really passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// The boot in which it was taken.
    pub boot_id: String,
    /// The steady clock.
    pub boot: Duration,
    /// The wall clock.
    pub wall: Timestamp,
}

impl Anchor {
    /// Both clocks now.
    #[must_use]
    pub fn take(clock: &dyn Clock) -> Self {
        Self { boot_id: clock.boot_id(), boot: clock.boot(), wall: clock.wall() }
    }

    /// The wall clock as far as it can be believed: in the same boot, the old reading and the time that has passed
    /// since; in another, the wall clock.
    #[must_use]
    pub fn trusted(&self, clock: &dyn Clock) -> Timestamp {
        if self.boot_id != clock.boot_id() || self.boot_id.is_empty() {
            return clock.wall();
        }
        let elapsed = u64::try_from(clock.boot().saturating_sub(self.boot).as_micros()).unwrap_or(u64::MAX);
        Timestamp(self.wall.0.saturating_add(elapsed))
    }

    /// One line of text.
    #[must_use]
    pub fn to_line(&self) -> String {
        format!("{} {} {}\n", self.boot_id, self.boot.as_micros(), self.wall.0)
    }

    /// Reads [`Anchor::to_line`]; `None` for anything else.
    #[must_use]
    pub fn from_line(line: &str) -> Option<Self> {
        let mut fields = line.split_whitespace();
        let (boot_id, boot, wall) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Self {
            boot_id: boot_id.to_owned(),
            boot: Duration::from_micros(boot.parse().ok()?),
            wall: Timestamp(wall.parse().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::FutureExt as _;

    use super::*;

    struct Fake(Mutex<(u64, u64, &'static str)>);

    impl Fake {
        fn pass(&self, seconds: u64) {
            let mut fake = self.0.lock().unwrap();
            fake.0 += seconds * 1_000_000;
            fake.1 += seconds * 1_000_000;
        }

        fn jump(&self, to_seconds: u64) {
            self.0.lock().unwrap().0 = to_seconds * 1_000_000;
        }
    }

    impl Clock for Fake {
        fn wall(&self) -> Timestamp {
            Timestamp(self.0.lock().unwrap().0)
        }

        fn boot(&self) -> Duration {
            Duration::from_micros(self.0.lock().unwrap().1)
        }

        fn boot_id(&self) -> String {
            self.0.lock().unwrap().2.to_owned()
        }
    }

    fn fake() -> Fake {
        Fake(Mutex::new((1_000_000_000_000, 5_000_000, "boot")))
    }

    fn seconds(time: Timestamp) -> u64 {
        time.0 / 1_000_000
    }

    #[test]
    fn a_clock_that_most_nodes_call_wrong_is_set_right() {
        let machine = Arc::new(fake());
        let clock = ClusterClock::new(Arc::clone(&machine) as Arc<dyn Clock>);
        let (mine, hour) = (clock.machine_wall(), 3_600_000_000);
        let boot = ahead_of_boot(mine, machine.boot());
        let compare = |others: &[i64], nodes| {
            clock.compare(&others.iter().map(|ahead| boot + ahead).collect::<Vec<_>>(), nodes);
        };
        assert_eq!((clock.offset_ms(), clock.wall()), (None, mine));
        // Most of three have not answered.
        compare(&[], 3);
        assert_eq!((clock.offset_ms(), clock.compared().now_or_never()), (None, None));
        // Both others are an hour behind, a little apart.
        compare(&[-hour - 3_000, -hour + 4_000], 3);
        assert_eq!(clock.wall().0.abs_diff(mine.0 - hour.unsigned_abs()), 4_000);
        // Small changes, and where no majority agrees, it stays.
        for others in [&[-hour + 9_000, -hour + 4_000][..], &[-hour], &[], &[-2 * hour, 9 * hour]] {
            compare(others, 3);
            assert_eq!(clock.wall().0.abs_diff(mine.0 - hour.unsigned_abs()), 4_000, "{others:?}");
        }
        // One other node and this one are most of three.
        compare(&[5], 3);
        assert_eq!(clock.wall(), mine);
        compare(&[-hour, 0, 100, 9 * hour], 5);
        assert_eq!(clock.wall(), mine);
        // Alone, a node knows of no other time.
        let alone = ClusterClock::new(Arc::new(fake()));
        alone.compare(&[], 1);
        assert_eq!((alone.agreed(), alone.wall()), (None, mine));
    }

    #[test]
    fn a_clock_that_is_put_right_does_not_drag_the_agreed_time_along() {
        let machine = Arc::new(fake());
        let clock = ClusterClock::new(Arc::clone(&machine) as Arc<dyn Clock>);
        let right = machine.wall();
        let said = ahead_of_boot(right, machine.boot());
        clock.compare(&[said, said], 3);
        // It jumps away and back; before, between and after comparisons the agreed time goes on, second by second.
        for (hours, passed) in [(-2, 1), (0, 3), (5, 5), (0, 7)] {
            let true_time = right.0 + passed * 1_000_000;
            machine.pass(1);
            machine.jump(true_time.saturating_add_signed(hours * 3_600_000_000) / 1_000_000);
            assert_eq!(clock.wall(), Timestamp(true_time));
            // What the others said before the jump is as true after it.
            clock.compare(&[said, said], 3);
            assert_eq!(clock.wall(), Timestamp(true_time));
            assert_eq!(clock.offset_ms(), Some(-hours * 3_600_000));
            machine.pass(1);
            assert_eq!(clock.wall(), Timestamp(true_time + 1_000_000));
        }
    }

    #[test]
    fn it_follows_a_steady_wall_clock() {
        let clock = fake();
        let mut shard = ShardClock::start(Timestamp(0), clock.wall(), &clock);
        clock.pass(10);
        assert_eq!(shard.now(&clock), clock.wall());
    }

    #[test]
    fn a_jump_is_followed_slowly_in_both_directions() {
        let clock = fake();
        let mut shard = ShardClock::start(Timestamp(0), clock.wall(), &clock);
        clock.jump(1_000_000 + 7200);
        clock.pass(10);
        assert_eq!(seconds(shard.now(&clock)), 1_000_011);
        clock.jump(1_000_000 - 7200);
        clock.pass(10);
        assert_eq!(seconds(shard.now(&clock)), 1_000_020);
        let mut last = shard.now(&clock);
        for _ in 0..1000 {
            clock.pass(10);
            let now = shard.now(&clock);
            assert!(now > last);
            last = now;
        }
    }

    #[test]
    fn an_anchor_tells_a_jump_from_time_that_passed() {
        let clock = fake();
        let anchor = Anchor::from_line(&Anchor::take(&clock).to_line()).unwrap();
        clock.pass(3600);
        assert_eq!(anchor.trusted(&clock), clock.wall());
        clock.jump(1_000_000 + 36_000);
        assert_eq!(seconds(anchor.trusted(&clock)), 1_003_600);
        clock.0.lock().unwrap().2 = "another boot";
        assert_eq!(anchor.trusted(&clock), clock.wall());
        assert_eq!(Anchor::from_line("nonsense"), None);
    }
}
