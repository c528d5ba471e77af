//! How long an answer may take. kube-apiserver says in the query how long it waits (`?timeout=10s`, client-go `rest/request.go`),
//! and what we answer after that is heard by nobody.

use std::time::Duration;

/// kube-apiserver's own default (`admissionregistration/v1` timeoutSeconds), and the most that it allows.
const DEFAULT: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(30);
/// For the way back, through a kube-apiserver that has much to do.
const WAY_BACK: Duration = Duration::from_secs(2);

/// How long an answer to a request with this query may take.
pub fn of(query: Option<&str>) -> Duration {
    let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    let timeout = pairs.filter(|(key, _)| *key == "timeout").find_map(|(_, value)| go_duration(value));
    let timeout = timeout.unwrap_or(DEFAULT).min(LONGEST);
    // Of a timeout of a second or two, half is for us.
    timeout.saturating_sub(WAY_BACK).max(timeout / 2)
}

/// Go's `time.Duration` in text: `10s`, `1m30s`, `1.5s`, `300ms`. None for anything else, and for what is not above zero.
fn go_duration(mut text: &str) -> Option<Duration> {
    let mut seconds = 0.0;
    while !text.is_empty() {
        let (number, rest) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let (unit, rest) = rest.split_at(rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len()));
        let number: f64 = number.parse().ok()?;
        seconds += number
            * match unit {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        text = rest;
    }
    Duration::try_from_secs_f64(seconds).ok().filter(|duration| !duration.is_zero())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn two_seconds_are_left_for_the_way_back() {
        for (query, milliseconds) in [
            (None, 8000),
            (Some(""), 8000),
            (Some("timeout=30s"), 28_000),
            (Some("a=b&timeout=10s"), 8000),
            (Some("timeout=1h0m0s"), 28_000),
            (Some("timeout=3.5s"), 1750),
            (Some("timeout=1s"), 500),
            (Some("timeout=500ms"), 250),
            (Some("timeout=0s"), 8000),
            (Some("timeout=soon"), 8000),
            (Some("timeout=-5s"), 8000),
        ] {
            assert_eq!(of(query), Duration::from_millis(milliseconds), "{query:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_query_there_is_a_deadline_within_what_kubernetes_waits(query in "(timeout=)?\\PC{0,40}") {
            let within = of(Some(&query));
            prop_assert!(within + WAY_BACK <= LONGEST && !within.is_zero());
        }
    }
}
