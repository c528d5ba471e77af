//! What people read: tables, checks, proofs. And JSON, for programs.

use api::{Check, CheckResult, Proof, TargetStatus, UnquiesceStatus};
use serde::Serialize;

use crate::failure::Failure;

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    #[default]
    Text,
    Json,
}

/// Pretty JSON on stdout.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::new(error.to_string()))?;
    println!("{text}");
    Ok(())
}

/// Columns padded to their widest cell; the last is not padded.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).chain([head[at].len()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let cells = cells.iter().enumerate().map(|(at, cell)| {
            if at + 1 == cells.len() { cell.clone() } else { format!("{cell:<width$}   ", width = widths[at]) }
        });
        cells.collect::<String>().trim_end().to_owned()
    };
    let head: Vec<String> = head.iter().map(|name| (*name).to_owned()).collect();
    std::iter::once(line(&head)).chain(rows.iter().map(|row| line(row))).map(|line| line + "\n").collect()
}

/// A number of bytes, as people read it.
pub fn bytes(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let Some((name, shift)) = units.iter().find(|(_, shift)| bytes >> shift > 0) else { return format!("{bytes} B") };
    let tenths = (u128::from(bytes) * 10) >> shift;
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

/// A line each.
pub fn warnings(warnings: &[String]) -> String {
    warnings.iter().flat_map(|warning| ["warning: ", warning, "\n"]).collect()
}

pub fn checks(checks: &[Check]) -> String {
    let rows: Vec<Vec<String>> = checks
        .iter()
        .map(|check| {
            let fix = check.fix.as_ref().filter(|_| check.result != CheckResult::Pass);
            let message = fix.map_or_else(|| check.message.clone(), |fix| format!("{}\n    → {fix}", check.message));
            vec![check.database.clone(), check.name.clone(), format!("{:?}", check.result), message]
        })
        .collect();
    table(&["DATABASE", "CHECK", "RESULT", "MESSAGE"], &rows)
}

/// One line per member: was it held, and how is that known.
pub fn proofs(targets: &[TargetStatus]) -> String {
    targets
        .iter()
        .map(|target| match &target.proof {
            Some(proof) => format!("{}: {}\n", target.database, proof_line(proof)),
            None => format!("{}: not proved\n", target.database),
        })
        .collect()
}

/// Whether every member is proved to have been held.
pub fn proved(status: &UnquiesceStatus) -> bool {
    !status.targets.is_empty()
        && status.targets.iter().all(|target| target.proof.as_ref().is_some_and(|proof| proof.held))
}

fn proof_line(proof: &Proof) -> String {
    let held = if proof.held { "held" } else { "NOT PROVED" };
    let position = proof.before.as_ref().map(|position| format!(" at {}", position.summary())).unwrap_or_default();
    let reason = proof.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("{held} ({:?}){position}{reason}", proof.kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_told_in_the_unit_that_fits() {
        assert_eq!([bytes(5), bytes(1536), bytes(3 << 20)], ["5 B", "1.5 KiB", "3.0 MiB"]);
    }

    #[test]
    fn tables_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".to_owned(), "bb".to_owned()], vec!["cccc".to_owned(), "d".to_owned()]];
        assert_eq!(table(&["X", "YYY"], &rows), "X      YYY\na      bb\ncccc   d\n");
    }
}
