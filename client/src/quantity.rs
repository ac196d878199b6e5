//! Quantities as people write them: sizes `4GiB`, durations `1h30m`, cpus `1.5`.

/// Says why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{value}' is not {what}: expected e.g. {examples}")]
pub struct QuantityError {
    pub value: String,
    pub what: &'static str,
    pub examples: &'static str,
}

/// Bytes: a number, alone or with `K M G T` or `KiB MiB GiB TiB`, all of them powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, QuantityError> {
    let wrong = || QuantityError { value: text.into(), what: "a size", examples: "4GiB, 512M or 1000000 (bytes)" };
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(wrong()),
    };
    decimal(number, 1 << shift).ok_or_else(wrong)
}

/// Milliseconds: `90s`, `1h30m`, `500ms`, `2d`, `HH:MM:SS` or `D-HH:MM:SS`.
pub fn parse_duration_ms(text: &str) -> Result<u64, QuantityError> {
    let milliseconds = if text.contains(':') { clock_ms(text) } else { units_ms(text) };
    let examples = "90s, 1h30m, 500ms, HH:MM:SS or D-HH:MM:SS";
    milliseconds.ok_or_else(|| QuantityError { value: text.into(), what: "a duration", examples })
}

/// Thousandths of a cpu, at least one.
pub fn parse_cpus_milli(text: &str) -> Result<u32, QuantityError> {
    let wrong = || QuantityError { value: text.into(), what: "a number of cpus", examples: "1, 0.5 or 64" };
    let milli = decimal(text, 1000).ok_or_else(wrong)?;
    u32::try_from(milli).ok().filter(|milli| *milli > 0).ok_or_else(wrong)
}

/// Cpus as people write them.
pub fn cpus_text(milli: u32) -> String {
    let text = format!("{}.{:03}", milli / 1000, milli % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Bytes with the unit that keeps them short.
pub fn size_text(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            let digits = if unit == "B" { 0 } else { 1 };
            return format!("{value:.digits$} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// A number with at most nine digits after the point, times `scale`, rounded down.
fn decimal(text: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) || fraction.len() > 9 {
        return None;
    }
    let below = u128::from(fraction.parse::<u64>().ok()?) * u128::from(scale) / 10u128.pow(fraction.len() as u32);
    whole.parse::<u64>().ok()?.checked_mul(scale)?.checked_add(u64::try_from(below).ok()?)
}

fn units_ms(text: &str) -> Option<u64> {
    let mut rest = text;
    let (mut sum, mut previous) = (0u64, u64::MAX);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, after) = tail.split_at(letters);
        let scale = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        // Largest first, each once: `5m1h` is more likely a slip than a wish.
        if scale >= previous {
            return None;
        }
        previous = scale;
        sum = sum.checked_add(decimal(number, scale)?)?;
        rest = after;
    }
    (previous != u64::MAX).then_some(sum)
}

fn clock_ms(text: &str) -> Option<u64> {
    let (days, clock) = match text.split_once('-') {
        Some((days, clock)) => (days.parse::<u64>().ok()?, clock),
        None => (0, text),
    };
    let parts: Vec<u64> = clock
        .split(':')
        .map(|part| part.parse().ok().filter(|_| part.bytes().all(|byte| byte.is_ascii_digit())))
        .collect::<Option<_>>()?;
    let [hours, minutes, seconds] = parts[..] else { return None };
    if minutes > 59 || seconds > 59 {
        return None;
    }
    let seconds =
        days.checked_mul(86_400)?.checked_add(hours.checked_mul(3_600)?)?.checked_add(minutes * 60 + seconds)?;
    seconds.checked_mul(1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        let read = |text| parse_size(text).ok();
        assert_eq!(read("4GiB"), Some(4 << 30));
        assert_eq!(read("512M"), Some(512 << 20));
        assert_eq!(read("1.5k"), Some(1536));
        assert_eq!(read("1000000"), Some(1_000_000));
        for text in ["", "G", "4GB", "-1", "1e3", "4 GiB", ".5G", "99999999999T"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn durations_are_units_or_a_clock() {
        let read = |text| parse_duration_ms(text).ok();
        assert_eq!(read("90s"), Some(90_000));
        assert_eq!(read("1h30m"), Some(5_400_000));
        assert_eq!(read("0.5s"), Some(500));
        assert_eq!(read("250ms"), Some(250));
        assert_eq!(read("01:00:05"), Some(3_605_000));
        assert_eq!(read("2-00:00:01"), Some(172_801_000));
        for text in ["", "90", "1m1h", "1s1s", "5:00", "1:60:00", "-1s", "1:+2:03", "s", "1y"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn cpus_are_thousandths() {
        assert_eq!(parse_cpus_milli("1.5"), Ok(1500));
        assert_eq!(parse_cpus_milli("64"), Ok(64_000));
        for text in ["0", "0.0001", "-1", "x", "5000000"] {
            assert!(parse_cpus_milli(text).is_err(), "{text}");
        }
        assert_eq!((cpus_text(1500), cpus_text(2000), cpus_text(10_000)), ("1.5".into(), "2".into(), "10".into()));
    }

    #[test]
    fn sizes_read_short() {
        assert_eq!(size_text(0), "0 B");
        assert_eq!(size_text(1536), "1.5 KiB");
        assert_eq!(size_text(5 << 40), "5.0 TiB");
    }

    #[test]
    fn an_error_names_the_value() {
        let error = parse_size("4GB").unwrap_err().to_string();
        assert!(error.contains("'4GB' is not a size") && error.contains("4GiB"), "{error}");
    }
}
