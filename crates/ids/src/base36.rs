//! Fixed-width base 36, digits before letters, so that text order is number order.

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// So many digits fit into 64 bits, in which dividing is cheap.
const CHUNK_WIDTH: usize = 12;
const CHUNK: u128 = 36u128.pow(12);

const _: () = assert!(CHUNK <= 1 << 64, "a chunk fits into 64 bits");

/// Writes `value` in exactly as many digits as there is room for. The caller keeps it below 36 to that power.
pub(crate) fn encode(mut value: u128, out: &mut [u8]) {
    for chunk in out.rchunks_mut(CHUNK_WIDTH) {
        #[allow(clippy::cast_possible_truncation, reason = "below 36^12")]
        let mut low = (value % CHUNK) as u64;
        value /= CHUNK;
        for slot in chunk.iter_mut().rev() {
            *slot = DIGITS[(low % 36) as usize];
            low /= 36;
        }
    }
    debug_assert_eq!(value, 0, "value wider than {} digits", out.len());
}

/// Reads lower-case base 36, or `None` for anything else.
pub(crate) fn decode(text: &str) -> Option<u128> {
    text.as_bytes().chunks(CHUNK_WIDTH).try_fold(0u128, |value, chunk| {
        let (mut low, mut scale) = (0u64, 1u128);
        for byte in chunk {
            let digit = match byte {
                b'0'..=b'9' => byte - b'0',
                b'a'..=b'z' => byte - b'a' + 10,
                _ => return None,
            };
            low = low * 36 + u64::from(digit);
            scale *= 36;
        }
        value.checked_mul(scale)?.checked_add(u128::from(low))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_width_round_trip() {
        for width in 1..=24 {
            let limit = 36u128.pow(width);
            for value in [0, 1, 35, 36, limit / 7, limit - 1].into_iter().filter(|value| *value < limit) {
                let mut text = vec![b'?'; width as usize];
                encode(value, &mut text);
                assert_eq!(decode(core::str::from_utf8(&text).unwrap()), Some(value), "{width} digits");
            }
        }
        let mut text = [0; 14];
        encode(36u128.pow(12) * 37 + 5, &mut text);
        assert_eq!(&text, b"11000000000005");
        assert_eq!(decode("zzzzzzzzzzzzzzzzzzzzzzzzzz"), None, "more than 128 bits");
        assert_eq!((decode("A"), decode("-")), (None, None));
    }
}
