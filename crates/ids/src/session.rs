//! The session id: it carries the region and shard that own the session.

use core::{fmt, str};

use crate::{ParseError, RegionId, ShardId, Timestamp, base36};

const PREFIX: &str = "ses_";
const REGION_WIDTH: usize = 2;
const SHARD_WIDTH: usize = 3;
const UNIQUE_WIDTH: usize = 20;
const REGION_COUNT: u128 = 36 * 36;
const SHARD_COUNT: u128 = 36 * 36 * 36;
const UNIQUE_COUNT: u128 = 36u128.pow(20);

/// Random bits of a minted id, below those of its time.
const RANDOM_BITS: u32 = 61;
/// Milliseconds since 1970 that fit above them: until the year 2109.
const TIME_BITS: u32 = 42;

const _: () = assert!(1 << (TIME_BITS + RANDOM_BITS) <= UNIQUE_COUNT, "a minted id is used whole");
const _: () = assert!(UNIQUE_WIDTH == 20, "UNIQUE_COUNT is 36^UNIQUE_WIDTH");

/// `ses_<region:2><shard:3>_<unique:20>` in base 36; 103 bits are free for uniqueness.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId {
    region: RegionId,
    shard: ShardId,
    unique: u128,
}

impl SessionId {
    /// An id in the given region and shard. Of `unique`, the lowest 103 bits (base 36, 20 digits) are used.
    #[must_use]
    pub fn new(region: RegionId, shard: ShardId, unique: u128) -> Self {
        debug_assert!(u128::from(region.0) < REGION_COUNT && u128::from(shard.0) < SHARD_COUNT);
        Self { region, shard, unique: unique % UNIQUE_COUNT }
    }

    /// A new id of this time, with a random number. Ids of one time stand together in every table, so that the rows
    /// of sessions at work share pages and caches; apart from that, nothing depends on the time.
    #[must_use]
    pub fn mint(region: RegionId, shard: ShardId, now: Timestamp, random: u64) -> Self {
        let time = u128::from(now.as_millis() & ((1 << TIME_BITS) - 1));
        Self::new(region, shard, time << RANDOM_BITS | u128::from(random >> (u64::BITS - RANDOM_BITS)))
    }

    /// The id of these parts, as stored bytes give them; `None` for parts that no id has.
    #[must_use]
    pub fn from_parts(region: u16, shard: u16, unique: u128) -> Option<Self> {
        let fits =
            u128::from(region) < REGION_COUNT && u128::from(shard) < SHARD_COUNT && unique < UNIQUE_COUNT;
        fits.then_some(Self { region: RegionId(region), shard: ShardId(shard), unique })
    }

    /// The id after this one in its shard, or itself if there is none: the end of a range over one session's rows.
    #[must_use]
    pub fn successor(&self) -> Self {
        Self { unique: (self.unique + 1).min(UNIQUE_COUNT - 1), ..*self }
    }

    /// The region that the session was created for.
    #[must_use]
    pub fn region(&self) -> RegionId {
        self.region
    }

    /// The shard that owns the session.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// The part that tells sessions of one shard apart.
    #[must_use]
    pub fn unique(&self) -> u128 {
        self.unique
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = *b"ses_00000_00000000000000000000";
        let (place, unique) = text[PREFIX.len()..].split_at_mut(REGION_WIDTH + SHARD_WIDTH + 1);
        base36::encode(u128::from(self.region.0), &mut place[..REGION_WIDTH]);
        base36::encode(u128::from(self.shard.0), &mut place[REGION_WIDTH..REGION_WIDTH + SHARD_WIDTH]);
        base36::encode(self.unique, unique);
        f.write_str(str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl str::FromStr for SessionId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let parse = || {
            let rest = text.strip_prefix(PREFIX)?;
            let (place, unique) = rest.split_once('_')?;
            if place.len() != REGION_WIDTH + SHARD_WIDTH || unique.len() != UNIQUE_WIDTH || !place.is_ascii()
            {
                return None;
            }
            let (region, shard) = place.split_at(REGION_WIDTH);
            Some(Self {
                region: RegionId(u16::try_from(base36::decode(region)?).ok()?),
                shard: ShardId(u16::try_from(base36::decode(shard)?).ok()?),
                unique: base36::decode(unique)?,
            })
        };
        parse().ok_or_else(|| {
            ParseError::new("a session id", "ses_ followed by 5 and 20 base-36 digits, joined by _", text)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_of_fixed_width_and_round_trips() {
        for (region, shard, unique) in [(0, 0, 0), (1, 3, 12345), (1295, 46655, u128::MAX)] {
            let id = SessionId::new(RegionId(region), ShardId(shard), unique);
            let text = id.to_string();
            assert_eq!(text.len(), 30);
            assert_eq!(text.parse(), Ok(id));
        }
    }

    #[test]
    fn minted_ids_are_in_the_order_of_time() {
        let mint = |ms, random| SessionId::mint(RegionId(0), ShardId(1), Timestamp::from_millis(ms), random);
        assert!(mint(1, u64::MAX) < mint(2, 0) && mint(1, 0) < mint(1, u64::MAX));
        assert_eq!(mint(5, 7 << 3).unique(), 5 << 61 | 7);
        // However late it is, an id is one.
        assert_eq!(mint(u64::MAX, u64::MAX).to_string().parse(), Ok(mint(u64::MAX, u64::MAX)));
    }

    #[test]
    fn text_order_is_id_order() {
        let mut ids: Vec<_> = (0..200u128)
            .map(|i| {
                SessionId::new(RegionId(1), ShardId((i % 7) as u16), i.wrapping_mul(0x9e37_79b9_7f4a_7c15))
            })
            .collect();
        ids.sort();
        let mut texts: Vec<_> = ids.iter().map(ToString::to_string).collect();
        texts.sort();
        assert_eq!(texts, ids.iter().map(ToString::to_string).collect::<Vec<_>>());
    }

    #[test]
    fn other_text_is_refused() {
        for text in
            ["", "ses_", "ses_00000_0", "ses_00000_0000000000000000000Z", "sex_00000_00000000000000000000"]
        {
            assert!(text.parse::<SessionId>().is_err(), "{text}");
        }
    }
}
