//! How sizes, durations and switches are written.

use std::num::{IntErrorKind, ParseIntError};
use std::time::Duration;

use levy_protocol::link::check_name;

/// A size: bytes, or with K, M, G or T (powers of 1024).
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let wrong =
        || "not a size; write bytes, or a number with K, M, G or T (powers of 1024), as in 512M".to_owned();
    let (number, unit) = match text.char_indices().next_back() {
        Some((at, last)) if last.is_ascii_alphabetic() => (&text[..at], last.to_ascii_uppercase()),
        _ => (text, 'B'),
    };
    let shift = match unit {
        'B' => 0,
        'K' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        _ => return Err(wrong()),
    };
    let large = || format!("too large; the largest size is {}", u64::MAX);
    let number: u64 = number
        .parse()
        .map_err(|error| if is_large(&error) { large() } else { wrong() })?;
    number.checked_mul(1 << shift).ok_or_else(large)
}

fn is_large(error: &ParseIntError) -> bool {
    *error.kind() == IntErrorKind::PosOverflow
}

/// The name of a guest.
///
/// # Errors
/// What a name is made of, for people.
pub fn guest_name(text: &str) -> Result<String, String> {
    check_name("guest", text)
}

/// A size as an option of its own.
///
/// # Errors
/// What is wrong with the text, for people.
pub fn size(text: &str) -> Result<u64, String> {
    bytes(text)
}

/// A duration: a number with ms, s, m or h; without unit it is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "not a duration; write a number with ms, s, m or h, as in 5ms".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let large = || format!("too long; the longest duration is {}s", u64::MAX);
    let number: u64 = number
        .parse()
        .map_err(|error| if is_large(&error) { large() } else { wrong() })?;
    let seconds = match unit {
        "ms" => return Ok(Duration::from_millis(number)),
        "us" => return Ok(Duration::from_micros(number)),
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(large)
}

/// A switch: on or off.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("write on or off".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_count_in_powers_of_1024() {
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("512M"), Ok(512 << 20));
        assert_eq!(bytes("2g"), Ok(2 << 30));
        for wrong in ["", "M", "1.5G", "-1", "12Q", "99999999999T", "5ü", "0x10"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
        for large in ["99999999999T", "99999999999999999999999", "18446744073709551616"] {
            assert!(bytes(large).unwrap_err().contains("too large"), "{large}");
        }
        assert_eq!(bytes("18446744073709551615"), Ok(u64::MAX));
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("5ms"), Ok(Duration::from_millis(5)));
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "ms", "5 s", "-1s", "5d", "99999999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        for long in ["18446744073709551615m", "18446744073709551616"] {
            assert!(duration(long).unwrap_err().contains("too long"), "{long}");
        }
    }
}
