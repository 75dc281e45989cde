//! Fixed-width base 36, digits before letters, so that text order is number order.

use alloc::string::String;

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Appends `value` in exactly `width` digits. The caller keeps `value` below `36^width`.
pub(crate) fn encode(mut value: u128, width: usize, out: &mut String) {
    let mut digits = [b'0'; 25];
    for slot in digits[..width].iter_mut().rev() {
        *slot = DIGITS[(value % 36) as usize];
        value /= 36;
    }
    debug_assert_eq!(value, 0, "value wider than {width} digits");
    out.extend(digits[..width].iter().map(|&digit| char::from(digit)));
}

/// Reads lower-case base 36, or `None` for anything else.
pub(crate) fn decode(text: &str) -> Option<u128> {
    text.bytes().try_fold(0u128, |value, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'z' => byte - b'a' + 10,
            _ => return None,
        };
        value.checked_mul(36)?.checked_add(u128::from(digit))
    })
}
