//! Amounts as people write them: tokens with decimals, sizes, prices by the hour. Nothing is ever
//! rounded on the way in.

use hypha_chain::U256;

/// The smallest unit of a token: 10⁻¹⁸.
pub const UNIT: u128 = 1_000_000_000_000_000_000;
/// Decimals of a token.
const DECIMALS: usize = 18;
const HOUR: u64 = 3600;

/// Tokens with as many decimals as they have.
#[must_use]
pub fn tokens(units: U256) -> String {
    let (whole, rest) = units.div_rem(U256::from(UNIT));
    if rest.is_zero() {
        return whole.to_string();
    }
    let rest = format!("{rest:0>DECIMALS$}");
    format!("{whole}.{}", rest.trim_end_matches('0'))
}

/// Reads tokens: digits, and at most 18 more after a point.
///
/// # Errors
/// What is wrong with it.
pub fn parse_tokens(text: &str) -> Result<U256, String> {
    let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_number(whole) || !is_number(rest) || text.ends_with('.') {
        return Err("an amount of tokens is written as 12 or 12.5".to_owned());
    }
    if rest.len() > DECIMALS {
        return Err(format!("a token has {DECIMALS} decimals, not {}", rest.len()));
    }
    let units: u128 = format!("{whole}{rest:0<DECIMALS$}")
        .parse()
        .map_err(|_| "that is more than all tokens".to_owned())?;
    Ok(U256::from(units))
}

/// Reads a price of tokens by the hour as units by the second, which is what contracts count in: the
/// nearest one that is not above it.
///
/// # Errors
/// What is wrong with it.
pub fn parse_hourly(text: &str) -> Result<u128, String> {
    let units = parse_tokens(text)?.checked_div(U256::from(HOUR)).unwrap_or_default();
    u128::try_from(units).map_err(|_| "that is more than all tokens".to_owned())
}

/// A rate of units by the second as tokens by the hour.
#[must_use]
pub fn hourly(rate: u128) -> String {
    let exact = U256::from(rate).saturating_mul(U256::from(HOUR));
    // What was asked for, if it was a price with few decimals that whole seconds can't have.
    for decimals in 0..=9_u32 {
        let step = U256::from(UNIT / 10_u128.pow(decimals));
        let up = exact.div_ceil(step).saturating_mul(step);
        if up.saturating_sub(exact) < U256::from(HOUR) {
            return tokens(up);
        }
    }
    tokens(exact)
}

/// Reads a size with a unit (`MiB`, `GiB`, `TiB`, or none for MiB) as MiB.
///
/// # Errors
/// What is wrong with it.
pub fn parse_mib(text: &str) -> Result<u64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let factor = match unit {
        "" | "M" | "MiB" => 1,
        "G" | "GiB" => 1024,
        "T" | "TiB" => 1024 * 1024,
        _ => return Err("a size is written as 512MiB, 16GiB or 4TiB".to_owned()),
    };
    let count: u64 =
        digits.parse().map_err(|_| "a size is written as 512MiB, 16GiB or 4TiB".to_owned())?;
    count.checked_mul(factor).ok_or_else(|| "that is more than all disks".to_owned())
}

/// MiB in the largest unit that has no rest.
#[must_use]
pub fn mib(count: u64) -> String {
    const TIB: u64 = 1024 * 1024;
    match count {
        0 => "0".to_owned(),
        count if count.is_multiple_of(TIB) => format!("{} TiB", count / TIB),
        count if count.is_multiple_of(1024) => format!("{} GiB", count / 1024),
        count => format!("{count} MiB"),
    }
}

/// A span of seconds as people say it: at most two units.
#[must_use]
pub fn span(secs: u64) -> String {
    let units = [(86_400, "d"), (HOUR, "h"), (60, "min"), (1, "s")];
    let mut left = secs;
    let mut parts = Vec::new();
    for (length, name) in units {
        let count = left / length;
        left %= length;
        if count > 0 && parts.len() < 2 {
            parts.push(format!("{count} {name}"));
        }
    }
    if parts.is_empty() { "0 s".to_owned() } else { parts.join(" ") }
}

/// An instant in seconds since 1970 as UTC.
#[must_use]
pub fn instant(secs: u64) -> String {
    // Days to a date, as Howard Hinnant's `civil_from_days` counts: years begin in March.
    let days = i64::try_from(secs / 86_400).unwrap_or(i64::MAX / 2) + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (secs / HOUR % 24, secs / 60 % 60, secs % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_written_with_the_decimals_that_they_have_and_read_back() {
        for (units, text) in [
            (0, "0"),
            (UNIT, "1"),
            (UNIT + UNIT / 4, "1.25"),
            (1, "0.000000000000000001"),
            (u128::MAX, "340282366920938463463.374607431768211455"),
        ] {
            assert_eq!(tokens(U256::from(units)), text);
            assert_eq!(parse_tokens(text).unwrap(), U256::from(units));
        }
        assert_eq!(parse_tokens("1.250").unwrap(), U256::from(UNIT + UNIT / 4));
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        let long = "0.0000000000000000001";
        for bad in
            ["", ".", "1.", ".5", "-1", "+1", "1e3", "1,5", " 1", long, "340282366920938463464"]
        {
            assert!(parse_tokens(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_price_by_the_hour_is_shown_as_it_was_asked_for() {
        for text in ["0.01", "1", "3.6", "0.000000001", "123.456"] {
            let rate = parse_hourly(text).unwrap();
            assert_eq!(hourly(rate), text);
            assert!(U256::from(rate) * U256::from(HOUR) <= parse_tokens(text).unwrap());
        }
        assert_eq!(parse_hourly("3.6").unwrap(), UNIT / 1000);
        assert_eq!(hourly(1), "0.0000000000000036");
    }

    #[test]
    fn sizes_have_units() {
        for (text, count) in [("512", 512), ("512MiB", 512), ("16GiB", 16384), ("4T", 4 << 20)] {
            assert_eq!(parse_mib(text), Ok(count));
        }
        for bad in ["", "GiB", "1.5GiB", "1 GiB", "1GB", "99999999999999999TiB"] {
            assert!(parse_mib(bad).is_err(), "{bad:?}");
        }
        assert_eq!(
            (mib(1), mib(2048), mib(1 << 20)),
            ("1 MiB".into(), "2 GiB".into(), "1 TiB".into())
        );
    }

    #[test]
    fn instants_and_spans_are_for_people() {
        assert_eq!(instant(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(instant(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(instant(1_800_000_000), "2027-01-15 08:00:00 UTC");
        assert_eq!(span(0), "0 s");
        assert_eq!(span(90_061), "1 d 1 h");
        assert_eq!(span(3_605), "1 h 5 s");
    }
}
