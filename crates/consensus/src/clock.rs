//! Time: the door to the system's clocks, and the clock of a shard.

use std::time::Duration;

use ids::Timestamp;

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

/// How fast the clock of a shard may run while it is away from the wall clock, in 1/1000 of real time: from 0.9 to
/// 1.1 seconds a second.
const SLEW_PERMILLE: i128 = 100;

/// The clock of a shard on its leader. It never goes back, and follows a jump of the wall clock at a bounded rate, so
/// that a jump by hours does not fire every deadline at once.
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
