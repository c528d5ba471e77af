//! `docs/conformance.md`, made from the table. `make conformance` writes it; a test says when it is not what the table says.

use std::{collections::BTreeMap, fmt::Write, fs, path::PathBuf};

use super::{Part, parts, table::Case};
use crate::doors::Way;

/// Cases of the list that a group which stores nothing does not have, and who has them.
const NOT_OURS: &[(&[(u8, u8)], &str)] = &[
    (
        &[(29, 31), (36, 41), (44, 62)],
        "The group stores nothing: `databases` can be read, and its verbs are created. What is \
        stored (`stillpoint.dev`) are custom resources, whose creation, change, server-side apply and deletion are \
        kube-apiserver's own; that our CRDs refuse what our validation refuses is tested by `tests/aggregated/crds.rs`. \
        `PUT`, `PATCH` and `DELETE` of what is ours answer 405 (case 8).",
    ),
    (&[(63, 63)], "Nothing of ours is deleted."),
    (
        &[(72, 80), (82, 82)],
        "The group advertises no `watch`, so that no informer, neither the garbage collector's nor the quota \
        controller's, waits for us; `watch=true` answers 405 (case 8). Changes are watched on the stored kinds.",
    ),
    (&[(97, 97)], "There is no storage of ours whose resource versions could go back: they are etcd's."),
    (
        &[(98, 99)],
        "Argo CD and Helm apply the stored kinds, which are kube-apiserver's; nothing of ours can be applied.",
    ),
];

const HEAD: &str = "\
<!-- Generated from tests/aggregated/conformance by `make conformance`; do not edit. -->
# What an aggregated API server must do, and whether this one does

A bad aggregated API server hurts the whole cluster. These are the cases that we hold ours to, by their numbers in the list that
we began with. Each is run against a real kube-apiserver with its controllers, and two replicas of `stillpoint-apiserver` behind
it: **through kube-apiserver**, as users ask, and **directly**, at the server's own port, as kube-apiserver does (with its front
proxy's certificate), and as whoever else can reach the port. `make test-cluster` runs them all; a case that fails, fails the
build, so each cell below that is not marked as not run says what is so.
";

/// Which cases there are, as text.
fn document() -> String {
    let parts = parts();
    let cases = || parts.iter().flat_map(|part| &part.cases);
    let mut text = HEAD.to_owned();
    let run = |way| cases().filter(|case| case.is_run(way)).count();
    writeln!(
        text,
        "\n{} lines; {} run through kube-apiserver, {} directly.",
        cases().count(),
        run(Way::Through),
        run(Way::Direct)
    )
    .ok();
    for part in &parts {
        write_part(&mut text, part);
    }
    text.push_str("\n## While our server is not there\n\n");
    text.push_str(super::controllers::SAID);
    text.push_str("\n## Cases that are not ours\n\n| cases | why |\n|---|---|\n");
    for (ranges, why) in NOT_OURS {
        let ranges: Vec<String> = ranges
            .iter()
            .map(|(from, to)| if from == to { from.to_string() } else { format!("{from}–{to}") })
            .collect();
        writeln!(text, "| {} | {why} |", ranges.join(", ")).ok();
    }
    text
}

fn write_part(text: &mut String, part: &Part) {
    writeln!(text, "\n## {}\n\n| | case | through kube-apiserver | directly |\n|--:|---|---|---|", part.title).ok();
    for case in &part.cases {
        let [through, direct] = Way::BOTH.map(|way| cell(case, way));
        let number = if case.number == 0 { "–".to_owned() } else { case.number.to_string() };
        writeln!(text, "| {number} | {} | {through} | {direct} |", escaped(case.what)).ok();
    }
}

fn cell(case: &Case, way: Way) -> String {
    let passes = if case.is_run(way) { "passes: " } else { "" };
    if way == Way::Direct
        && case.is_run(way)
        && case.is_run(Way::Through)
        && case.words(way) == case.words(Way::Through)
    {
        return "passes: the same".to_owned();
    }
    format!("{passes}{}", escaped(&case.words(way)))
}

fn escaped(text: &str) -> String {
    text.replace('|', "\\|")
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/conformance.md")
}

fn is_stale(written: &str) -> bool {
    written != document()
}

#[test]
fn the_document_says_what_the_table_says() {
    if std::env::var_os("STILLPOINT_WRITE").is_some() {
        fs::create_dir_all(path().parent().unwrap()).unwrap();
        fs::write(path(), document()).unwrap();
    }
    let written = fs::read_to_string(path()).unwrap_or_default();
    assert!(!is_stale(&written), "run `make conformance`, and look at the difference");
}

/// The control.
#[test]
fn a_document_that_somebody_edited_is_noticed() {
    let document = document();
    assert!(!is_stale(&document));
    assert!(is_stale(&document.replacen("passes", "fails", 1)));
    assert!(is_stale(""));
}

#[test]
fn of_every_case_of_the_list_it_is_said_what_becomes_of_it() {
    let mut said: BTreeMap<u8, Vec<bool>> = BTreeMap::new();
    for case in parts().iter().flat_map(|part| &part.cases) {
        assert!(case.is_whole(), "{} {}: nothing is said of one way", case.number, case.what);
        said.entry(case.number).or_default().push(true);
    }
    for (from, to) in NOT_OURS.iter().flat_map(|(ranges, _)| *ranges) {
        (*from..=*to).for_each(|number| said.entry(number).or_default().push(false));
    }
    for number in 1..=100 {
        let said = said.get(&number).map(Vec::as_slice).unwrap_or_default();
        assert!(!said.is_empty(), "nothing is said of case {number}");
        assert!(said.iter().all(|ours| *ours == said[0]), "case {number} is ours and is not");
    }
}
