//! The values of annotations: from what people write to what it means, or what is wrong with it.

use json_patch::{Patch, PatchOperation};

use super::{quantity, resources::Wanted};

/// Why a value is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// It is not what the table of settings says that it must be.
    Value,
    /// It is, and cannot be all the same.
    Because(String),
}

pub(super) type Read<T> = Result<T, Wrong>;

/// The longest value that is read at all; but that of a patch.
const LONGEST: usize = 1024;
/// Of a patch: text, operations.
pub(super) const LONGEST_PATCH: usize = 16 * 1024;
pub(super) const MOST_OPERATIONS: usize = 64;
/// The longest that any freeze may be asked for.
const LONGEST_TTL: u32 = crate::validate::LONGEST_TTL_SECONDS;
/// The highest user id (apimachinery `pkg/util/validation`, IsValidUserID).
const HIGHEST_USER: i64 = 2_147_483_647;

/// `true` and `false`, as Kubernetes' own annotations have them.
pub(super) fn boolean(text: &str) -> Read<bool> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(Wrong::Value),
    }
}

pub(super) fn port(text: &str) -> Read<u16> {
    text.parse().ok().filter(|port| *port > 0).ok_or(Wrong::Value)
}

pub(super) fn user(text: &str) -> Read<i64> {
    text.parse().ok().filter(|user| (1..=HIGHEST_USER).contains(user)).ok_or(Wrong::Value)
}

/// Seconds: `90`, `90s`, `10m`, `1h`.
pub(super) fn seconds(text: &str) -> Read<u32> {
    let (digits, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(digits) => (digits, &text[digits.len()..]),
        None => (text, "s"),
    };
    let times = if unit == "h" {
        3600
    } else if unit == "m" {
        60
    } else {
        1
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = is_number.then(|| digits.parse::<u32>().ok()?.checked_mul(times)).flatten();
    seconds.filter(|seconds| (1..=LONGEST_TTL).contains(seconds)).ok_or(Wrong::Value)
}

/// The name of a container or of a volume; that there is one of the name is seen later.
pub(super) fn label_name(text: &str) -> Read<String> {
    named(text, 63, "-")
}

/// The name of an object.
pub(super) fn object_name(text: &str) -> Read<String> {
    named(text, 253, "-.")
}

/// A key of a Secret (apimachinery `pkg/util/validation`, IsConfigMapKey).
pub(super) fn secret_key(text: &str) -> Read<String> {
    let is_key = text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) && !text.starts_with("..");
    (is_key && text != "." && (1..=253).contains(&text.len())).then(|| text.to_owned()).ok_or(Wrong::Value)
}

fn named(text: &str, longest: usize, more: &str) -> Read<String> {
    let is_name = text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || more.contains(c));
    (is_name && (1..=longest).contains(&text.len())).then(|| text.to_owned()).ok_or(Wrong::Value)
}

/// An absolute path that may be a `mountPath` and a variable: without `..`, which is refused in one, a `:`, which ends one in some
/// runtimes, and `$`, which begins a reference in the other.
pub(super) fn path(text: &str) -> Read<String> {
    let path = text.trim_end_matches('/');
    let is_plain = path.len() <= LONGEST && !path.chars().any(|c| c.is_control() || ":$\\".contains(c));
    let parts = || path.split('/').skip(1);
    let is_absolute = path.starts_with('/') && parts().all(|part| !part.is_empty() && part != "." && part != "..");
    (is_plain && is_absolute).then(|| path.to_owned()).ok_or(Wrong::Value)
}

/// What a container runtime may be asked to pull; whether it can, it will say.
pub(super) fn image(text: &str) -> Read<String> {
    let is_plain = text.chars().all(|c| c.is_ascii_graphic());
    (is_plain && (1..=LONGEST).contains(&text.len())).then(|| text.to_owned()).ok_or(Wrong::Value)
}

/// `requests.cpu=10m,limits.memory=64Mi`.
pub(super) fn resources(text: &str) -> Read<Wanted> {
    let mut wanted = Wanted::default();
    for part in text.split(',') {
        let (name, amount) = part.split_once('=').ok_or(Wrong::Value)?;
        let (name, amount) = (name.trim(), amount.trim());
        let place = match name {
            "requests.cpu" => &mut wanted.cpu.request,
            "requests.memory" => &mut wanted.memory.request,
            "limits.cpu" => &mut wanted.cpu.limit,
            "limits.memory" => &mut wanted.memory.limit,
            _ => return Err(Wrong::Value),
        };
        if quantity::parse(amount).is_none_or(|amount| amount <= 0) {
            return Err(Wrong::Because(format!("{name} must be a quantity above 0, such as 10m or 64Mi")));
        }
        if place.replace(amount.to_owned()).is_some() {
            return Err(Wrong::Because(format!("{name} is there twice")));
        }
    }
    wanted.check().map_err(Wrong::Because)?;
    Ok(wanted)
}

/// A JSON Patch within its bounds. Nothing of an agent is worth copying, and a few copies of copies are more than there is memory.
/// What is wrong with it is told without a word of it: who reads the log need not be who may read the Pod.
pub(super) fn patch(text: &str) -> Read<Patch> {
    let too_long = || Wrong::Because("it has more than 64 operations, or 16 KiB".to_owned());
    if text.len() > LONGEST_PATCH {
        return Err(too_long());
    }
    let patch: Patch = serde_json::from_str(text).map_err(|error| {
        let at = format!("line {}, column {}", error.line(), error.column());
        let what = if error.is_data() { "no list of operations" } else { "no JSON" };
        Wrong::Because(format!("it is {what}: {at}"))
    })?;
    if patch.0.len() > MOST_OPERATIONS {
        return Err(too_long());
    }
    if patch.0.iter().any(|operation| matches!(operation, PatchOperation::Copy(_))) {
        return Err(Wrong::Because("copy is not served; write the value out".to_owned()));
    }
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_and_a_bound() {
        for (text, right) in [("90", 90), ("90s", 90), ("10m", 600), ("6h", 21_600), ("1s", 1)] {
            assert_eq!(seconds(text), Ok(right), "{text}");
        }
        for text in ["", "s", "0", "0s", "-1s", "+1s", "7h", "1.5h", "1h30m", "1d", "90 s", "99999999999h", "ℌ"] {
            assert_eq!(seconds(text), Err(Wrong::Value), "{text}");
        }
    }

    #[test]
    fn a_path_is_absolute_and_says_nothing_to_whoever_mounts_it() {
        assert_eq!(path("/run/postgresql/"), Ok("/run/postgresql".to_owned()));
        for text in ["", "/", "run", "/run/../etc", "/run//x", "/run/./x", "/a:b", "/$(HOME)", "/a\nb", "C:\\run"] {
            assert_eq!(path(text), Err(Wrong::Value), "{text:?}");
        }
    }

    #[test]
    fn names_keys_and_images_are_plain() {
        assert!(
            object_name("orders.db").is_ok() && label_name("orders-1").is_ok() && secret_key("db_PASSWORD.1").is_ok()
        );
        assert!(image("registry.example:5000/a/b@sha256:0").is_ok());
        for text in ["", "a b", "A", "a/b", &"a".repeat(254)] {
            assert!(object_name(text).is_err() && label_name(text).is_err(), "{text}");
        }
        assert!(label_name("a.b").is_err());
        for text in ["", ".", "..", "..a", "a/b", "a b"] {
            assert!(secret_key(text).is_err(), "{text}");
        }
        assert!(image("").is_err() && image("a b").is_err() && image("a\u{e9}").is_err());
    }

    #[test]
    fn resources_are_named_once_and_are_enough_to_start_with() {
        let wanted = resources("requests.cpu=20m, limits.memory=64Mi").unwrap();
        assert_eq!((wanted.cpu.request.as_deref(), wanted.memory.limit.as_deref()), (Some("20m"), Some("64Mi")));
        assert_eq!((wanted.cpu.limit, wanted.memory.request), (None, None));
        for text in ["", "cpu=1", "requests.cpu", "requests.cpu=1,,", "requests.storage=1Gi"] {
            assert_eq!(resources(text), Err(Wrong::Value), "{text}");
        }
        for text in [
            "requests.cpu=x",
            "requests.cpu=0",
            "requests.cpu=-1",
            "requests.cpu=1,requests.cpu=2",
            "limits.memory=64",
            "requests.cpu=2,limits.cpu=1",
        ] {
            assert!(matches!(resources(text), Err(Wrong::Because(_))), "{text}");
        }
    }

    #[test]
    fn a_patch_has_bounds() {
        let operations = |count| format!("[{}]", vec![r#"{"op":"test","path":"/name","value":"x"}"#; count].join(","));
        assert!(patch(&operations(MOST_OPERATIONS)).is_ok());
        for text in [
            operations(MOST_OPERATIONS + 1).as_str(),
            &" ".repeat(LONGEST_PATCH + 1),
            "",
            "{}",
            r#"[{"op":"secret"}]"#,
            r#"[{"op":"add","path":"/env","valu":"secret"}]"#,
            r#"["secret"]"#,
            r#"[{"op":"copy","from":"","path":"/secret"}]"#,
        ] {
            let Err(Wrong::Because(why)) = patch(text) else { panic!("{text}") };
            assert!(!why.contains("secret"), "{why}");
        }
    }
}
