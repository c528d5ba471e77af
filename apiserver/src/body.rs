//! From a request's bytes to a JSON value: JSON with duplicate keys found, and the protobuf that `kubectl create secret`
//! and `kubectl create namespace` (1.32 and later) send. Pure, bounded by the body limit, and never panics.

use std::{cell::RefCell, fmt};

use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};

use crate::error::ApiError;

/// What a body said, and which of its fields came twice.
#[derive(Clone, Debug, Default)]
pub struct Body {
    pub value: Value,
    pub duplicates: Vec<String>,
}

const ACCEPTED: &str = "application/json, application/vnd.kubernetes.protobuf";
/// `runtime.Unknown` in protobuf begins so (apimachinery `runtime/serializer/protobuf`).
const MAGIC: &[u8] = b"k8s\0";

/// Decodes a body of an object. Empty is `null`: verbs take it as their defaults.
pub fn decode(content_type: Option<&str>, bytes: &[u8]) -> Result<Body, ApiError> {
    let media = content_type.unwrap_or("application/json").split(';').next().unwrap_or_default().trim();
    match media {
        _ if bytes.is_empty() => Ok(Body::default()),
        "application/json" | "" => json(bytes),
        "application/vnd.kubernetes.protobuf" => {
            let value = protobuf(bytes).ok_or_else(|| {
                ApiError::bad_request("the protobuf body is not a Secret or a Namespace; send JSON for anything else")
            })?;
            Ok(Body { value, duplicates: Vec::new() })
        }
        _ => Err(ApiError::unsupported_media_type(ACCEPTED)),
    }
}

/// Of keys that come twice; nobody reads more.
const MOST_DUPLICATES: usize = 64;
/// Of a path's bytes.
const MOST_PATH: usize = 512;

/// Decodes JSON; of a key that comes twice the last value counts, and its path is noted.
pub fn json(bytes: &[u8]) -> Result<Body, ApiError> {
    let duplicates = RefCell::new(Vec::new());
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let seed = Noting { at: Step::Root, duplicates: &duplicates };
    let value = seed
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|error| ApiError::bad_request(format!("the body is not JSON: {error}")))?;
    Ok(Body { value, duplicates: duplicates.into_inner() })
}

#[derive(Clone, Copy)]
struct Noting<'a> {
    at: Step<'a>,
    duplicates: &'a RefCell<Vec<String>>,
}

/// Where a value is. It becomes a text only when there is something to say of it: one long key above many values would
/// otherwise be copied for each.
#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Key(&'a Step<'a>, &'a str),
    Item(&'a Step<'a>, usize),
}

impl Step<'_> {
    /// `a.b[0].c`; cut when it is longer than anybody would read.
    fn path(&self) -> String {
        let mut path = match self {
            Self::Root => String::new(),
            Self::Item(parent, index) => format!("{}[{index}]", parent.path()),
            Self::Key(Self::Root, key) => (*key).to_owned(),
            Self::Key(parent, key) => format!("{}.{key}", parent.path()),
        };
        path.truncate(path.floor_char_boundary(MOST_PATH));
        path
    }
}

impl<'de> DeserializeSeed<'de> for Noting<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Noting<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        loop {
            match items.next_element_seed(Noting { at: Step::Item(&self.at, values.len()), ..self })? {
                Some(value) => values.push(value),
                None => return Ok(Value::Array(values)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let at = Step::Key(&self.at, &key);
            let value = entries.next_value_seed(Noting { at, ..self })?;
            let mut duplicates = self.duplicates.borrow_mut();
            if map.contains_key(&key) && duplicates.len() < MOST_DUPLICATES {
                duplicates.push(at.path());
            }
            drop(duplicates);
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

// --- protobuf ---

/// One field of a message: its number, and its bytes or its number.
enum Field<'a> {
    Bytes(u64, &'a [u8]),
    Number(u64, u64),
}

/// `runtime.Unknown` around a Secret or a Namespace (field numbers: `k8s.io/api/core/v1/generated.proto`,
/// `k8s.io/apimachinery/pkg/apis/meta/v1/generated.proto`).
fn protobuf(bytes: &[u8]) -> Option<Value> {
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in fields(bytes.strip_prefix(MAGIC)?)? {
        match field {
            Field::Bytes(1, type_meta) => {
                for field in fields(type_meta)? {
                    match field {
                        Field::Bytes(1, text) => api_version = string(text)?,
                        Field::Bytes(2, text) => kind = string(text)?,
                        _ => {}
                    }
                }
            }
            Field::Bytes(2, bytes) => raw = bytes,
            _ => {}
        }
    }
    let mut object = match (api_version.as_str(), kind.as_str()) {
        ("v1", "Namespace") => namespace(raw)?,
        ("v1", "Secret") => secret(raw)?,
        _ => return None,
    };
    object["apiVersion"] = api_version.into();
    object["kind"] = kind.into();
    Some(object)
}

fn namespace(raw: &[u8]) -> Option<Value> {
    let mut object = json!({"metadata": {}});
    for field in fields(raw)? {
        if let Field::Bytes(1, bytes) = field {
            object["metadata"] = metadata(bytes)?;
        }
    }
    Some(object)
}

fn secret(raw: &[u8]) -> Option<Value> {
    let mut object = json!({"metadata": {}});
    let (mut data, mut plain) = (Map::new(), Map::new());
    for field in fields(raw)? {
        match field {
            Field::Bytes(1, bytes) => object["metadata"] = metadata(bytes)?,
            Field::Bytes(2, entry) => {
                let (key, value) = pair(entry)?;
                data.insert(key, serde_json::to_value(k8s_openapi::ByteString(value.to_vec())).ok()?);
            }
            Field::Bytes(3, text) => object["type"] = string(text)?.into(),
            Field::Bytes(4, entry) => {
                let (key, value) = pair(entry)?;
                plain.insert(key, string(value)?.into());
            }
            Field::Number(5, value) => object["immutable"] = (value != 0).into(),
            _ => {}
        }
    }
    if !data.is_empty() {
        object["data"] = data.into();
    }
    if !plain.is_empty() {
        object["stringData"] = plain.into();
    }
    Some(object)
}

fn metadata(raw: &[u8]) -> Option<Value> {
    let mut object = Map::new();
    let (mut labels, mut annotations, mut finalizers) = (Map::new(), Map::new(), Vec::new());
    for field in fields(raw)? {
        let Field::Bytes(number, bytes) = field else { continue };
        let mut insert = |key: &str| Some(object.insert(key.to_owned(), string(bytes)?.into()));
        match number {
            1 => drop(insert("name")?),
            2 => drop(insert("generateName")?),
            3 => drop(insert("namespace")?),
            6 => drop(insert("resourceVersion")?),
            11 | 12 => {
                let (key, value) = pair(bytes)?;
                let map = if number == 11 { &mut labels } else { &mut annotations };
                map.insert(key, string(value)?.into());
            }
            14 => finalizers.push(Value::from(string(bytes)?)),
            _ => {}
        }
    }
    object.retain(|_, value| value != "");
    for (key, map) in [("labels", labels), ("annotations", annotations)] {
        if !map.is_empty() {
            object.insert(key.to_owned(), map.into());
        }
    }
    if !finalizers.is_empty() {
        object.insert("finalizers".to_owned(), finalizers.into());
    }
    Some(object.into())
}

/// An entry of a map: key and value.
fn pair(entry: &[u8]) -> Option<(String, &[u8])> {
    let (mut key, mut value) = (String::new(), &[][..]);
    for field in fields(entry)? {
        match field {
            Field::Bytes(1, bytes) => key = string(bytes)?,
            Field::Bytes(2, bytes) => value = bytes,
            _ => {}
        }
    }
    Some((key, value))
}

fn string(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}

/// The fields of a message, in order (protobuf encoding: wire types 0, 1, 2 and 5).
fn fields(mut bytes: &[u8]) -> Option<Vec<Field<'_>>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let number = tag >> 3;
        match tag & 7 {
            0 => fields.push(Field::Number(number, varint(&mut bytes)?)),
            1 => drop(take(&mut bytes, 8)?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                fields.push(Field::Bytes(number, take(&mut bytes, length)?));
            }
            5 => drop(take(&mut bytes, 4)?),
            _ => return None,
        }
    }
    Some(fields)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

/// Deserializes a verb's body; the path of a field that has the wrong type is in the message.
pub fn typed<T: for<'de> Deserialize<'de> + Default>(value: Value, kind: &str) -> Result<(T, Vec<String>), ApiError> {
    if value.is_null() {
        return Ok((T::default(), Vec::new()));
    }
    let mut unknown = Vec::new();
    serde_ignored::deserialize(value, |path| unknown.push(path.to_string()))
        .map(|typed| (typed, unknown))
        .map_err(|error| ApiError::bad_request(format!("the body cannot be read as a {kind}: {error}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        out.extend_from_slice(bytes);
        out
    }

    #[test]
    fn a_secret_in_protobuf_is_read() {
        let entry = [field(1, b"password"), field(2, b"sesame")].concat();
        let raw = [field(1, &field(1, b"orders")), field(2, &entry), field(3, b"Opaque")].concat();
        let type_meta = [field(1, b"v1"), field(2, b"Secret")].concat();
        let body = [MAGIC.to_vec(), field(1, &type_meta), field(2, &raw)].concat();
        let decoded = decode(Some("application/vnd.kubernetes.protobuf"), &body).unwrap().value;
        assert_eq!(decoded["metadata"]["name"], "orders");
        assert_eq!(decoded["data"]["password"], "c2VzYW1l");
    }

    #[test]
    fn keys_that_come_twice_are_named() {
        let body = json(br#"{"spec": {"a": 1, "b": [{"c": 1, "c": 2}], "a": 3}}"#).unwrap();
        assert_eq!(body.duplicates, ["spec.b[0].c", "spec.a"]);
        assert_eq!(body.value["spec"]["a"], 3);
    }

    /// Half a megabyte of key, copied for each of half a million values, would take minutes.
    #[test]
    fn a_long_key_above_many_values_costs_what_its_bytes_do() {
        let (key, items) = ("k".repeat(512 << 10), vec!["1"; 512 << 10].join(","));
        let began = std::time::Instant::now();
        let body = json(format!("{{\"{key}\": [{items}], \"{key}\": 1}}").as_bytes()).unwrap();
        assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
        assert_eq!(body.duplicates, [key[..MOST_PATH].to_owned()]);
        let many = format!("{{{}}}", vec!["\"a\": 1"; 1000].join(","));
        assert_eq!(json(many.as_bytes()).unwrap().duplicates.len(), MOST_DUPLICATES);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            drop(protobuf(&bytes));
            drop(protobuf(&[MAGIC, &bytes].concat()));
            drop(json(&bytes));
        }
    }
}
