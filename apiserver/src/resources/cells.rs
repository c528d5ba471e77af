//! Cells of `kubectl get`, from an object's JSON.

use jiff::Timestamp;
use serde_json::Value;

use super::Column;

pub(super) const NAME: Column = Column {
    name: "Name",
    kind: "string",
    description: "Name must be unique within a namespace.",
    priority: 0,
    cell: |object, _| object["metadata"]["name"].clone(),
};

pub(super) const AGE: Column = Column {
    name: "Age",
    kind: "string",
    description: "How long ago it was created.",
    priority: 0,
    cell: |object, now| match time(&object["metadata"]["creationTimestamp"]) {
        Some(created) => age(created, now).into(),
        None => "<unknown>".into(),
    },
};

/// The text at a path, or a dash.
pub(super) fn text(object: &Value, path: &[&str]) -> Value {
    let found = path.iter().fold(object, |value, key| &value[*key]);
    match found {
        Value::Null => "".into(),
        Value::String(text) => text.as_str().into(),
        other => other.to_string().into(),
    }
}

/// The status of a condition, or `Unknown`.
pub(super) fn condition(object: &Value, type_: &str) -> Value {
    find_condition(object, type_).map_or_else(|| "Unknown".into(), |condition| condition["status"].clone())
}

/// The reason of a condition that is not true.
pub(super) fn reason(object: &Value, type_: &str) -> Value {
    match find_condition(object, type_) {
        Some(condition) if condition["status"] != "True" => condition["reason"].clone(),
        _ => "".into(),
    }
}

pub(super) fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

/// As kubectl's own: `5s`, `3m20s`, `4h5m`, `3d`.
pub(super) fn age(from: Timestamp, to: Timestamp) -> String {
    let seconds = to.duration_since(from).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 if seconds % 60 != 0 => format!("{}m{}s", seconds / 60, seconds % 60),
        120..10_800 => format!("{}m", seconds / 60),
        10_800..28_800 if seconds / 60 % 60 != 0 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        10_800..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A number of bytes, as people read it.
pub(super) fn bytes(value: &Value) -> Value {
    let Some(bytes) = value.as_u64() else { return "".into() };
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = units.iter().find(|(_, shift)| bytes >> shift > 0);
    let Some((name, shift)) = unit else { return format!("{bytes} B").into() };
    let tenths = (u128::from(bytes) * 10) >> shift;
    format!("{}.{} {name}", tenths / 10, tenths % 10).into()
}

fn find_condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == type_)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_told_in_the_unit_that_fits() {
        let of = |number: u64| bytes(&number.into());
        assert_eq!([of(5), of(1536), of(3 << 20), of(u64::MAX)], ["5 B", "1.5 KiB", "3.0 MiB", "17179869183.9 GiB"]);
    }

    #[test]
    fn ages_read_as_in_kubectl() {
        let from = Timestamp::UNIX_EPOCH;
        let at = |seconds| age(from, Timestamp::from_second(seconds).unwrap());
        assert_eq!(
            [at(5), at(119), at(200), at(660), at(14_700), at(259_200)],
            ["5s", "119s", "3m20s", "11m", "4h5m", "3d"]
        );
    }
}
