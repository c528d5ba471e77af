//! Velero's hooks, for those who ask for them: what it is to run in the agent before and after its backup of the Pod (velero
//! `internal/hook/item_hook_handler.go`).

use super::{AGENT_BINARY, CONTAINER, plan::Plan, pod::Pod};
use crate::{Copy, agent::LONGEST_WITHIN};

/// The phases, and how the keys of both begin; what begins with no phase is the first (getPodExecHookFromAnnotations).
const PRE: &str = "pre.hook.backup.velero.io";
const POST: &str = "post.hook.backup.velero.io";
const OLD: &str = "hook.backup.velero.io";
/// For a freeze that names no time: Velero's own snapshots are cut some seconds after the hook, one after the other.
const SECONDS: u64 = 120;
/// Of the hook, within which the database has to stand still; Velero's own default is 30 s.
const TIMEOUT: u64 = 60;
/// Velero does not end a command that takes longer than its hook may: it has to give up by itself, so many sixths of that before.
const SIXTHS: u64 = 5;

/// What Velero takes a timeout for that it cannot read, or that is none (`pkg/podexec/pod_command_executor.go`, defaultTimeout), in seconds.
const UNREADABLE: u64 = 30;

/// Whole seconds of what Go calls a duration (`time.ParseDuration`), rounded down; none of what is none, or nothing at all.
fn go_seconds(text: &str) -> Option<u64> {
    const UNITS: [(&str, f64); 5] = [("ms", 0.001), ("us", 0.000_001), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let (unit, factor) = UNITS.iter().find(|(unit, _)| after.starts_with(unit))?;
        seconds += number.parse::<f64>().ok()? * factor;
        rest = &after[unit.len()..];
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within an hour, and rounded down")]
    let whole = seconds.min(3600.0) as u64;
    (seconds > 0.0).then_some(whole)
}

/// Why there are none. Both hooks belong together: where one is somebody's own, neither is ours.
///
/// Velero up to 1.18 finds ordinary containers alone (`pkg/podexec/pod_command_executor.go`, ensureContainerExists; its issue 9393), so
/// the agent has to be one of these, and that would keep a Pod from ending that is to end.
pub(super) fn refusal(pod: Pod<'_>) -> Option<&'static str> {
    let is_others = |prefix: &str| {
        let command = pod.annotation(&format!("{prefix}/command")).filter(|command| !command.is_empty());
        command.is_some_and(|command| !command.contains(AGENT_BINARY))
    };
    if [PRE, POST, OLD].into_iter().any(is_others) {
        return Some("the Pod has hooks of Velero's of its own, which stay as they are");
    }
    let ends = pod.text("/spec/restartPolicy").is_some_and(|policy| policy != "Always");
    ends.then_some(
        "Velero runs hooks in ordinary containers alone, and an agent in one would keep this Pod from ending",
    )
}

/// The annotations to add.
pub(super) fn hooks(pod: Pod<'_>, plan: &Plan<'_>) -> Result<Vec<(String, String)>, &'static str> {
    refusal(pod).map_or(Ok(()), Err)?;
    let longest = Copy::Atomic.longest(plan.level.unwrap_or_default()).as_secs();
    let seconds = plan.ttl_seconds.map_or(SECONDS, u64::from).min(longest);
    let said = pod.annotation(&format!("{PRE}/timeout"));
    let allowed = said.map_or(TIMEOUT, |said| go_seconds(said).unwrap_or(UNREADABLE));
    let within = (allowed * SIXTHS / 6).clamp(1, LONGEST_WITHIN.into());
    let freeze = format!(r#"["{AGENT_BINARY}","freeze","--for","{seconds}s","--within","{within}s"]"#);
    let thaw = format!(r#"["{AGENT_BINARY}","thaw"]"#);
    let wanted = [
        (PRE, "container", CONTAINER.to_owned()),
        (PRE, "command", freeze),
        (PRE, "timeout", format!("{TIMEOUT}s")),
        (PRE, "on-error", "Fail".to_owned()),
        (POST, "container", CONTAINER.to_owned()),
        (POST, "command", thaw),
        // What was not held all the time is no backup.
        (POST, "on-error", "Fail".to_owned()),
    ];
    let wanted = wanted.into_iter().map(|(phase, key, value)| (format!("{phase}/{key}"), value));
    Ok(wanted.filter(|(key, _)| pod.annotation(key).is_none()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_read_as_velero_reads_it_or_not_at_all() {
        for (text, seconds) in
            [("30s", 30), ("1m30s", 90), ("2h", 3600), ("1500ms", 1), ("1.5m", 90), ("99999999999999999999s", 3600)]
        {
            assert_eq!(go_seconds(text), Some(seconds), "{text}");
        }
        for text in ["", "30", "s", "-1s", "1d", "0s", "1m 2s", "1..5s"] {
            assert_eq!(go_seconds(text), None, "{text}");
        }
    }
}
