//! Documents that many clients ask for again and again, and keep: discovery and OpenAPI. Each has an `ETag`, and whoever has
//! it already is told so instead.

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use jiff::{Timestamp, ToSpan, fmt::rfc2822::DateTimePrinter};

use crate::{
    answer::{Answer, Parts, json_answer},
    discovery,
    error::ApiError,
    negotiate::{self, Form},
    openapi,
    resources::Served,
    target::Document,
};

const JSON: &str = "application/json";

pub(crate) fn discover(served: Served, document: &Document, parts: &Parts<'_>) -> Result<Answer, ApiError> {
    let aggregated = match (document, parts.form) {
        (Document::Groups, Form::AggregatedDiscovery) => discovery::aggregated(served, false),
        (Document::CoreVersions, Form::AggregatedDiscovery) => discovery::aggregated(served, true),
        _ => return json_answer(&discovery::document(served, document)?),
    };
    let bytes = Bytes::from(aggregated.to_string());
    let etag = discovery::etag(&bytes);
    let headers = vec![(header::CACHE_CONTROL, "public".to_owned())];
    Ok(tagged(parts.headers, discovery::AGGREGATED, &etag, bytes, headers))
}

/// JSON only: whoever asks for protobuf falls back (kubectl does).
pub(crate) fn openapi_v2(served: Served, accept: Option<&str>, headers: &HeaderMap) -> Result<Answer, ApiError> {
    negotiate::form(accept)?;
    let (bytes, etag) = openapi::v2(served);
    Ok(tagged(headers, JSON, etag, bytes.clone(), Vec::new()))
}

/// The list, or one document. A URL with the document's hash may be kept for ever. One with another hash is that of another
/// build; kube-openapi redirects it (`handler3/handler.go`), but kube-apiserver forwards no redirect and answers 502, so that
/// `kubectl explain` would fail for a minute after each update. It gets what there is now, to be kept by nobody.
pub(crate) fn openapi_v3(
    served: Served,
    wanted: Option<&(String, String)>,
    parts: &Parts<'_>,
    now: Timestamp,
) -> Result<Answer, ApiError> {
    let Some((group, version)) = wanted else {
        return json_answer(&openapi::index(served));
    };
    let document = openapi::v3(served).iter().find(|document| document.group == group && document.version == version);
    let document = document.ok_or_else(ApiError::no_such_path)?;
    let current = parts.query.get("hash") == Some(document.hash.as_str());
    let headers = if current { kept_for_ever(now) } else { Vec::new() };
    let etag = format!("\"{}\"", document.hash);
    Ok(tagged(parts.headers, JSON, &etag, document.bytes.clone(), headers))
}

fn kept_for_ever(now: Timestamp) -> Vec<(header::HeaderName, String)> {
    let mut headers = vec![(header::CACHE_CONTROL, "public, immutable".to_owned())];
    let next_year = now.checked_add((365 * 24).hours());
    let expires =
        next_year.ok().and_then(|next_year| DateTimePrinter::new().timestamp_to_rfc9110_string(&next_year).ok());
    headers.extend(expires.map(|expires| (header::EXPIRES, expires)));
    headers
}

/// 304 when the client has it already.
fn tagged(
    asked: &HeaderMap,
    content_type: &'static str,
    etag: &str,
    bytes: Bytes,
    mut headers: Vec<(header::HeaderName, String)>,
) -> Answer {
    headers.extend([(header::ETAG, etag.to_owned()), (header::VARY, "Accept".to_owned())]);
    let (code, bytes) =
        if has(asked, etag) { (StatusCode::NOT_MODIFIED, Bytes::new()) } else { (StatusCode::OK, bytes) };
    Answer::Other { code, content_type, bytes, headers }
}

/// Whether `If-None-Match` names it (RFC 9110, 13.1.2: a list, compared weakly).
fn has(asked: &HeaderMap, etag: &str) -> bool {
    let lists = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|list| list.to_str().ok());
    let mut tags = lists.flat_map(|list| list.split(',')).map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::query::Query;

    fn asked(if_none_match: &str) -> HeaderMap {
        [(header::IF_NONE_MATCH, if_none_match.parse().unwrap())].into_iter().collect()
    }

    #[test]
    fn who_has_a_document_already_is_told_so() {
        for (header, known) in
            [("\"A\"", true), ("W/\"A\"", true), ("\"B\", \"A\"", true), ("*", true), ("\"B\"", false)]
        {
            assert_eq!(has(&asked(header), "\"A\""), known, "{header}");
        }
        assert!(!has(&HeaderMap::new(), "\"A\""));
    }

    #[test]
    fn a_document_may_be_kept_under_its_own_hash_and_under_no_other() {
        let now = "2026-01-15T12:00:00Z".parse().unwrap();
        let wanted = Some((api::LIVE_GROUP.to_owned(), api::VERSION.to_owned()));
        let with = |query: &str| {
            let parts = Parts { headers: &HeaderMap::new(), query: Query::parse(Some(query)), form: Form::Object };
            match openapi_v3(Served::Aggregated, wanted.as_ref(), &parts, now).unwrap() {
                Answer::Other { code, headers, .. } => (code.as_u16(), HashMap::from_iter(headers)),
                _ => panic!("no document"),
            }
        };
        let (code, other): (u16, HashMap<_, String>) = with("hash=OTHER");
        assert_eq!((code, other.get(&header::CACHE_CONTROL)), (200, None));
        let (code, own) = with(&format!("hash={}", other[&header::ETAG].trim_matches('"')));
        assert_eq!((code, own[&header::EXPIRES].as_str()), (200, "Fri, 15 Jan 2027 12:00:00 GMT"));
    }
}
