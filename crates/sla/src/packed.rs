//! Durations as they are kept and sent: the V2 encoding of `HdrHistogram`, read straight into the histogram that they
//! are added to. The library reads them into a histogram of their own, which is made for every one, 140 KB of counts
//! for durations up to a minute, and then added count by count: a report over a month adds up thousands of them.
//!
//! The encoding (`HdrHistogram`, `AbstractHistogram.encodeIntoByteBuffer`): a cookie, the length of the counts, a
//! normalizing offset and the significant digits, four bytes each; the lowest and the highest value and a ratio, eight
//! bytes each; then the counts in the order of their values, zigzag in LEB128 of at most nine bytes. A negative number
//! is so many counts of zero.

use bytes::{Buf as _, Bytes};
use hdrhistogram::{
    Histogram,
    serialization::{Serializer as _, V2Serializer},
};

/// Significant digits of durations: they are exact to 0.1 %.
pub(crate) const DIGITS: u8 = 3;
const COOKIE: u32 = 0x1c84_9313;
/// Two to this power are the counts of each power of two: the least that tell [`DIGITS`] digits apart.
const COUNTS: u32 = 10;
/// How many counts a histogram can have.
const COUNTS_MAX: u64 = ((u64::BITS - COUNTS + 1) as u64) << COUNTS;

/// A histogram as bytes.
pub(crate) fn pack(durations: &Histogram<u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writing into memory does not fail.
    let _ = V2Serializer::new().serialize(durations, &mut bytes);
    bytes
}

/// Durations in microseconds, and how many took each; `None` for an encoding that this version does not know.
pub(crate) fn unpack(mut bytes: Bytes) -> Option<Vec<(u64, u64)>> {
    let bytes = &mut bytes;
    if bytes.try_get_u32().ok()? != COOKIE {
        return None;
    }
    let length = usize::try_from(bytes.try_get_u32().ok()?).ok()?;
    let (offset, digits) = (bytes.try_get_u32().ok()?, bytes.try_get_u32().ok()?);
    let lowest = bytes.try_get_u64().ok()?;
    // A histogram grows with its values, so the highest says nothing.
    let (_, ratio) = (bytes.try_get_u64().ok()?, bytes.try_get_u64().ok()?);
    let is_known = (offset, digits, lowest, ratio) == (0, u32::from(DIGITS), 1, 1f64.to_bits());
    let mut counts = bytes.get(..length).filter(|_| is_known)?;
    let (mut found, mut index) = (Vec::with_capacity(length / 2), 0u64);
    while !counts.is_empty() {
        let number = number(&mut counts)?;
        if number < 0 {
            index = index.checked_add(number.unsigned_abs())?;
            continue;
        }
        if index >= COUNTS_MAX {
            return None;
        }
        if number > 0 {
            found.push((value(index), number.unsigned_abs()));
        }
        index += 1;
    }
    Some(found)
}

/// The next number.
fn number(bytes: &mut &[u8]) -> Option<i64> {
    let mut zigzag = 0;
    for place in 0..9 {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        if place == 8 {
            zigzag |= u64::from(*byte) << 56;
            break;
        }
        zigzag |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            break;
        }
    }
    Some((zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed())
}

/// The least value that is counted at a place.
fn value(index: u64) -> u64 {
    // The first two powers of the counts have a count for each value; after that each has half as many as values.
    match (index >> COUNTS).checked_sub(1) {
        None => index,
        Some(doubled) => ((index & ((1 << COUNTS) - 1)) | (1 << COUNTS)) << doubled,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

    use hdrhistogram::serialization::Deserializer;
    use proptest::prelude::*;

    use super::*;

    fn packed(values: &[(u64, u64)]) -> Vec<u8> {
        let mut histogram = Histogram::<u64>::new(DIGITS).unwrap();
        for (value, count) in values {
            histogram.record_n(*value, *count).unwrap();
        }
        pack(&histogram)
    }

    proptest! {
        #[test]
        fn what_is_unpacked_is_what_the_library_reads(
            values in prop::collection::vec((any::<u64>(), 0..63u32, 0..40u32), 0..300),
        ) {
            let scale = |of: u64, down: u32, most: u32| ((of >> 1 >> down).max(1), (of >> 32 >> most).max(1));
            let values: Vec<_> = values.into_iter().map(|(of, down, most)| scale(of, down, most)).collect();
            let bytes = packed(&values);
            let mut library: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
            library.auto(true);
            let mut ours = Histogram::<u64>::new(DIGITS).unwrap();
            for (value, count) in unpack(bytes.into()).unwrap() {
                ours.record_n(value, count).unwrap();
            }
            prop_assert_eq!((ours.len(), ours.min(), ours.max()), (library.len(), library.min(), library.max()));
            prop_assert!(ours == library);
        }

        #[test]
        fn bytes_that_are_not_ours_do_no_harm(
            place in any::<prop::sample::Index>(), byte in any::<u8>(), end in any::<prop::sample::Index>(),
        ) {
            let mut bytes = packed(&[(3, 5), (70_000, 1), (61_000_000, 1_000_000)]);
            let whole = bytes.len();
            let place = place.index(whole);
            bytes[place] = byte;
            bytes.truncate(end.index(whole) + 1);
            let is_cut = bytes.len() < whole;
            let came = unpack(bytes.into());
            prop_assert!(came.is_none() || !is_cut || (4..8).contains(&place), "{came:?}");
        }
    }
}
