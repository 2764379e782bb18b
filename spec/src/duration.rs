//! Durations as people write them: a whole number with a unit.

use std::time::Duration;

/// The longest duration that a spec may name.
pub const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);

const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];

/// Parses `"500ms"`, `"2s"`, `"10m"` or `"1h"`; at least 1 ms and at most [`DURATION_MAX`].
#[must_use]
pub fn parse(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let (_, unit_ms) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
    let duration = Duration::from_millis(number.parse::<u64>().ok()?.checked_mul(unit_ms)?);
    (Duration::from_millis(1)..=DURATION_MAX).contains(&duration).then_some(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_is_read() {
        for (text, ms) in [("500ms", 500), ("2s", 2000), ("10m", 600_000), ("24h", 86_400_000)] {
            assert_eq!(parse(text), Some(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn nonsense_zero_and_more_than_a_day_are_refused() {
        for text in ["", "s", "2", "2 s", "-2s", "1.5s", "0s", "25h", "2S", "2sec", "é"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse("99999999999999999999s"), None);
    }
}
