//! Objects as files have them: YAML and JSON, read and printed.

use std::{
    fs,
    io::{self, Read},
    path::Path,
};

use serde_json::{Value, json};

use crate::{
    failure::Failure,
    print::{self, Output},
};

/// `-` is the standard input.
pub fn read(path: &Path) -> Result<String, Failure> {
    let text = if path.as_os_str() == "-" {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(path)
    };
    text.map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

/// As kubectl reads them: YAML 1.1, in which `0440` is an octal number. Empty documents are none.
pub fn objects(text: &str) -> Result<Vec<Value>, String> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true, with_snippet: false };
    let objects: Vec<Value> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| error.to_string())?;
    Ok(objects.into_iter().filter(|object| !object.is_null()).collect())
}

/// Text is YAML.
pub fn print(objects: Vec<Value>, output: Output) -> Result<(), Failure> {
    match output {
        Output::Json => print::json(&whole(objects)),
        Output::Text => {
            print!("{}", yaml(&objects)?);
            Ok(())
        }
    }
}

/// One object as it is, several as kubectl has them.
fn whole(mut objects: Vec<Value>) -> Value {
    match objects.len() {
        1 => objects.remove(0),
        _ => json!({"apiVersion": "v1", "kind": "List", "items": objects}),
    }
}

pub fn yaml(objects: &[Value]) -> Result<String, Failure> {
    let documents = objects.iter().map(serde_saphyr::to_string);
    let documents: Result<Vec<String>, _> = documents.collect();
    documents.map(|documents| documents.join("---\n")).map_err(|error| Failure::new(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_objects_are_a_list_in_json() {
        assert_eq!(whole(vec![json!({"kind": "Pod"})])["kind"], "Pod");
        assert_eq!(whole(vec![json!({"kind": "Pod"}), json!({"kind": "Pod"})])["items"][1]["kind"], "Pod");
    }
}
