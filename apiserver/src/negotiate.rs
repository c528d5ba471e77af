//! What form of an answer the client takes (apiserver `handlers/negotiation`). Pure.

use crate::error::ApiError;

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Object,
    Table,
    PartialObjectMetadata,
    /// `APIGroupDiscoveryList`, version 2 of aggregated discovery.
    AggregatedDiscovery,
}

const ACCEPTED: &str = "application/json, application/json;as=Table;v=v1;g=meta.k8s.io, \
    application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";

/// The first form in `accept` that we have. Absent or `*/*`: the object. What we do not have is passed over.
pub fn form(accept: Option<&str>) -> Result<Form, ApiError> {
    let accept = accept.map(str::trim).filter(|accept| !accept.is_empty()).unwrap_or("*/*");
    accept.split(',').find_map(one).ok_or_else(|| ApiError::not_acceptable(ACCEPTED))
}

fn one(media: &str) -> Option<Form> {
    let mut parts = media.split(';').map(str::trim);
    let main = parts.next()?;
    if !matches!(main, "application/json" | "*/*" | "application/*" | "text/plain" | "text/*") {
        return None;
    }
    let (mut kind, mut version, mut group) = (None, None, None);
    for (name, value) in parts.filter_map(|part| part.split_once('=')) {
        match name.trim() {
            "as" => kind = Some(value),
            "v" => version = Some(value),
            "g" => group = Some(value),
            _ => {}
        }
    }
    match (kind, version, group) {
        (None, ..) => Some(Form::Object),
        (Some("Table"), Some("v1"), Some("meta.k8s.io")) => Some(Form::Table),
        (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), Some("v1"), Some("meta.k8s.io")) => {
            Some(Form::PartialObjectMetadata)
        }
        (Some("APIGroupDiscoveryList"), Some("v2"), Some("apidiscovery.k8s.io")) => Some(Form::AggregatedDiscovery),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_form_that_we_have_is_taken() {
        let of = |accept| form(Some(accept)).unwrap();
        assert_eq!(of("application/vnd.kubernetes.protobuf,application/json"), Form::Object);
        assert_eq!(of("application/json;g=meta.k8s.io;v=v1;as=Table,application/json"), Form::Table);
        assert_eq!(
            of("application/json;as=APIGroupDiscoveryList;v=v2;g=apidiscovery.k8s.io;profile=nopeer"),
            Form::AggregatedDiscovery
        );
        assert_eq!(of("application/json;as=APIGroupDiscoveryList;v=v2beta1;g=apidiscovery.k8s.io,*/*"), Form::Object);
        assert_eq!(form(Some("application/xml")).unwrap_err().code, 406);
        assert_eq!(form(None).unwrap(), Form::Object);
    }

    proptest! {
        #[test]
        fn no_header_panics(accept in ".*") {
            drop(form(Some(&accept)));
        }
    }
}
