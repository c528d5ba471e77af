//! What an aggregated API server must do, as one table: each case through kube-apiserver, and directly at the server's own
//! port. `docs/conformance.md` is made from it.

mod controllers;
mod discovery;
mod document;
mod floods;
mod identity;
mod intruders;
mod kubectl;
mod names;
mod openapi;
mod outages;
mod reading;
mod robust;
mod rolling;
mod stage;
mod table;
mod verbs;

use self::{stage::Stage, table::Case};
use crate::doors::Way;

/// A part of the table.
struct Part {
    title: &'static str,
    cases: Vec<Case>,
}

fn parts() -> Vec<Part> {
    let part = |title, cases| Part { title, cases };
    vec![
        part("Registration, discovery, health", discovery::cases()),
        part("OpenAPI", openapi::cases()),
        part("Who asks, and what they may", identity::cases()),
        part("Objects and lists", reading::cases()),
        part("Verbs", verbs::cases()),
        part("Whatever becomes of it", robust::cases()),
        part("With kube-controller-manager", controllers::cases()),
        part("Beside others who have Databases", names::cases()),
        part("What must not get in", intruders::cases()),
        part("What must not bring it down", floods::cases()),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_case_of_the_table_is_answered_as_it_says_both_ways() {
    let stage = Stage::set().await.unwrap();
    let mut failed = Vec::new();
    // `STILLPOINT_CASES=64,95` runs these only.
    let only = std::env::var("STILLPOINT_CASES").unwrap_or_default();
    let only: Vec<u8> = only.split(',').filter_map(|number| number.parse().ok()).collect();
    for part in parts() {
        for case in part.cases.into_iter().filter(|case| only.is_empty() || only.contains(&case.number)) {
            for way in Way::BOTH {
                if let Err(error) = case.run(&stage, way).await {
                    failed.push(format!("{} {}, {way}: {error:#}", case.number, case.what));
                }
            }
        }
    }
    assert!(failed.is_empty(), "{} of the cases:\n{}", failed.len(), failed.join("\n"));
}
