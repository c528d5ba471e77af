//! Times and durations as people write them, and names that are made of them. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp, Zoned, civil::DateTime, tz::TimeZone};

/// The longest name that Kubernetes takes.
const LONGEST_NAME: usize = 253;

/// `90s`, `30m`, `1h30m`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok());
    parsed
        .filter(|duration| *duration >= Duration::from_secs(1))
        .ok_or_else(|| "want a duration of at least a second, with its unit: 90s, 30m, 1h30m".to_owned())
}

/// One instant, wherever it is read. `here`: the zone that is suggested to whoever named none.
pub fn instant(text: &str, here: &TimeZone) -> Result<Timestamp, String> {
    let text = text.trim();
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    if let Ok(at) = text.parse::<Zoned>() {
        return Ok(at.timestamp());
    }
    let Ok(civil) = text.parse::<DateTime>() else {
        return Err("want a time with its zone: 2026-11-29T03:00:00Z, or 2026-11-29T03:00:00+01:00".to_owned());
    };
    let mut message = format!("which zone is that of? write {civil}Z for UTC");
    if let Ok(at) = civil.to_zoned(here.clone()) {
        message += &format!(", or {civil}{} for the time of this machine", at.strftime("%:z"));
    }
    Err(message)
}

/// `DATABASE-YYYYMMDD-HHMMSS-mmm`, in UTC: to the millisecond, for two commands in one second must not meet.
pub fn stamped(database: &str, now: Timestamp) -> String {
    let stamp = now.strftime("-%Y%m%d-%H%M%S-%3f").to_string();
    let mut name = database.to_owned();
    name.truncate(LONGEST_NAME - stamp.len());
    name + &stamp
}

/// As kubectl's own: `5s`, `3m20s`, `4h5m`, `3d`.
pub fn age(from: Timestamp, to: Timestamp) -> String {
    seconds(u64::try_from(to.duration_since(from).as_secs()).unwrap_or(0))
}

/// The same, of a length.
pub fn seconds(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 if !seconds.is_multiple_of(60) => format!("{minutes}m{}s", seconds % 60),
        120..10_800 => format!("{minutes}m"),
        10_800..28_800 if !minutes.is_multiple_of(60) => format!("{hours}h{}m", minutes % 60),
        10_800..172_800 => format!("{hours}h"),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_unit() {
        let of = |text| duration(text).map(|duration| duration.as_secs()).ok();
        assert_eq!([of("90s"), of("1h"), of("1h30m"), of("2m")], [Some(90), Some(3600), Some(5400), Some(120)]);
        for wrong in ["", "90", "-5m", "0s", "soon"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_time_without_a_zone_is_refused_and_what_to_write_is_said() {
        let here = TimeZone::fixed(jiff::tz::offset(2));
        let at: Timestamp = "2026-11-29T01:00:00Z".parse().unwrap();
        for text in ["2026-11-29T01:00:00Z", "2026-11-29T03:00:00+02:00", "2026-11-29T02:00:00+01:00[Europe/Berlin]"] {
            assert_eq!(instant(text, &here), Ok(at), "{text}");
        }
        let why = instant("2026-11-29T03:00:00", &here).unwrap_err();
        assert!(why.contains("2026-11-29T03:00:00Z") && why.contains("2026-11-29T03:00:00+02:00"), "{why}");
        assert!(instant("2026-11-29 03:00", &here).unwrap_err().contains("which zone"));
        assert!(instant("yesterday", &here).unwrap_err().contains("want a time"));
    }

    #[test]
    fn a_name_is_its_databases_and_when() {
        let now: Timestamp = "2026-11-29T03:04:05.078+01:00".parse().unwrap();
        assert_eq!(stamped("orders", now), "orders-20261129-020405-078");
        let long = stamped(&"a".repeat(300), now);
        assert!(long.len() == LONGEST_NAME && long.ends_with("-020405-078"));
    }

    #[test]
    fn ages_read_as_in_kubectl() {
        let of = |length| age(Timestamp::UNIX_EPOCH, Timestamp::from_second(length).unwrap());
        assert_eq!([of(5), of(200), of(660), of(14_700), of(259_200)], ["5s", "3m20s", "11m", "4h5m", "3d"]);
        assert_eq!(of(-5), "0s", "clocks differ");
    }
}
