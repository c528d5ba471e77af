//! Kubernetes' quantities (`500m`, `16Mi`, `1e3`), as far as comparing and adding them needs.

/// In billionths, the least that a quantity can be (apimachinery `pkg/api/resource`, Nano); rounded up, as there. `None` if it is
/// none, or longer than any that is meant.
pub(super) fn parse(text: &str) -> Option<i128> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || "+-.".contains(c))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (is_negative, digits) = match number.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let plain = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    if digits.len() > 24 || !plain(whole) || !plain(fraction) || whole.len() + fraction.len() == 0 {
        return None;
    }
    let all: i128 = format!("{whole}{fraction}").parse().ok()?;
    let divisor = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let (times, over) = scale(suffix)?;
    let (dividend, divisor) = (all.checked_mul(times)?, divisor.checked_mul(over)?);
    let amount = dividend.checked_add(divisor - 1)? / divisor;
    Some(if is_negative { -amount } else { amount })
}

/// As whole bytes, rounded up. `None`: it is none, or below zero.
pub fn bytes(text: &str) -> Option<u64> {
    const NANO: i128 = 1_000_000_000;
    u64::try_from(parse(text)?.checked_add(NANO - 1)?.div_euclid(NANO)).ok()
}

/// What a suffix multiplies billionths with, and divides them by.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    const NANO: i128 = 1_000_000_000;
    if let Some(exponent) = suffix.strip_prefix(['e', 'E'])
        && !exponent.is_empty()
    {
        let exponent: i32 = exponent.parse().ok()?;
        let power = 10_i128.checked_pow(exponent.unsigned_abs()).filter(|_| exponent.abs() <= 18)?;
        return Some(if exponent < 0 { (NANO, power) } else { (NANO * power, 1) });
    }
    let times = match suffix {
        "n" => return Some((1, 1)),
        "u" => return Some((1000, 1)),
        "m" => return Some((1_000_000, 1)),
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "E" => 1_000_000_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        "Ei" => 1 << 60,
        _ => return None,
    };
    Some((NANO * times, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_what_kubernetes_reads() {
        const ONE: i128 = 1_000_000_000;
        for (text, amount) in [
            ("1", ONE),
            ("0.5", ONE / 2),
            (".5", ONE / 2),
            ("500m", ONE / 2),
            ("1.", ONE),
            ("+2", 2 * ONE),
            ("-1", -ONE),
            ("1e3", 1000 * ONE),
            ("1E3", 1000 * ONE),
            ("1E", 1_000_000_000_000_000_000 * ONE),
            ("1e-3", ONE / 1000),
            ("16Mi", 16 * 1024 * 1024 * ONE),
            ("100M", 100_000_000 * ONE),
            ("1.5Gi", 1_610_612_736 * ONE),
            ("1n", 1),
            ("0.1n", 1),
            ("0", 0),
        ] {
            assert_eq!(parse(text), Some(amount), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_none_and_nothing_overflows() {
        for text in [
            "",
            "m",
            "1 Gi",
            "1mi",
            "1Kib",
            "1.2.3",
            "--1",
            "1e",
            "1ee3",
            "1e99999999999",
            "9".repeat(40).as_str(),
            "ø",
            "1-",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse("99999999999999999999E"), None);
    }
}
