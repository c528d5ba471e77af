//! The numbers of a release build, on one core, over kept HTTP/2 connections as kube-apiserver has them:
//! `cargo test --release -p webhooks --test integration -- --ignored --nocapture numbers`.

use std::{
    net::SocketAddr,
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    task::JoinSet,
};
use webhooks::{
    answer::Answer,
    credentials::Files,
    decide::{Door, decide},
    decision::Decision,
    ours::Ours,
    review::{decode, encode},
};

use crate::{
    injection::{CA, agent},
    reviews::{BEING_CREATED, cut, plain_pod, pod_create, preflight, with},
    upstream::{NAME, authority, files},
    wire::Wire,
};

const WARM: u32 = 2_000;
const ALONE: usize = 10_000;
const REVIEWS: u32 = WARM + 10_000;
const CONNECTIONS: usize = 4;
const AT_ONCE: usize = 16;
const LOAD: Duration = Duration::from_secs(5);

/// The snapshotter takes its mark off: the most usual review, and nothing to wait for.
fn usual() -> Value {
    with(cut(), "/request/oldObject/metadata/annotations", serde_json::json!({BEING_CREATED: "yes"}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "a measurement, of a release build"]
async fn numbers() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority("ours");
    let files = files(directory.path(), &authority, "secret");
    let (server, address) = start(&files, ([127, 0, 0, 1], 9).into()).await;
    let pid = server.id().unwrap();

    let mut pure = Vec::with_capacity(ALONE);
    let (bytes, ours) = (usual().to_string().into_bytes(), Ours::in_namespace("stillpoint"));
    for _ in 0..ALONE {
        let began = Instant::now();
        let review = decode(&bytes).unwrap();
        let decision = decide(Door::of("/gates/content").unwrap(), &review.request, &ours, None);
        assert!(matches!(decision, Decision::Allow(_)));
        encode(&review.to, &Answer::allowed());
        pure.push(began.elapsed());
    }
    println!("review of {} bytes, decided in the process: {}", bytes.len(), quantiles(&mut pure));

    let mut injected = Vec::with_capacity(ALONE);
    let (pod, ours) = (pod_create(plain_pod()).to_string().into_bytes(), ours.with_agent(agent()));
    for _ in 0..ALONE {
        let began = Instant::now();
        let review = decode(&pod).unwrap();
        let decision = decide(Door::of("/inject").unwrap(), &review.request, &ours, Some(CA));
        let Decision::Injected(answer) = decision else { panic!("{decision:?}") };
        encode(&review.to, &answer);
        injected.push(began.elapsed());
    }
    println!("Pod of {} bytes, injected in the process: {}", pod.len(), quantiles(&mut injected));

    let wire = Wire::connect(address, authority.certificate(), None).await.unwrap();
    let mut alone = Vec::with_capacity(ALONE);
    let waited = waited_for_a_core(pid);
    for at in 0..REVIEWS {
        let began = Instant::now();
        assert_eq!(wire.review("/gates/content?timeout=30s", &usual()).await["allowed"], true);
        if at >= WARM {
            alone.push(began.elapsed());
        }
    }
    println!("one after the other, there and back: {}", quantiles(&mut alone));
    let waited = waited_for_a_core(pid).saturating_sub(waited) / REVIEWS;
    println!("of each the program waited {} µs for a core that others had", waited.as_micros());

    let (cpu, began) = (cpu_seconds(pid), Instant::now());
    let mut load = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let wire = Wire::connect(address, authority.certificate(), None).await.unwrap();
        for _ in 0..AT_ONCE {
            let (wire, body) = (wire.clone(), bytes::Bytes::from(bytes.clone()));
            load.spawn(async move {
                let mut answered = 0_u32;
                while began.elapsed() < LOAD {
                    let sent = wire.send(http::Method::POST, "/gates/content?timeout=30s", body.clone()).await;
                    assert_eq!(sent.unwrap().0, 200);
                    answered += 1;
                }
                answered
            });
        }
    }
    let answered: u32 = load.join_all().await.into_iter().sum();
    let (wall, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds(pid) - cpu);
    let per_core = f64::from(answered) / cpu;
    println!(
        "{CONNECTIONS} connections, {AT_ONCE} at once on each: {:.0} reviews/s, {per_core:.0} for each second of a core",
        f64::from(answered) / wall
    );
    let (resident, peak) = (kib(pid, "VmRSS:"), kib(pid, "VmHWM:"));
    println!("resident: {:.1} MiB, at its highest {:.1} MiB", resident / 1024.0, peak / 1024.0);

    assert!(quantile(&pure, 99) < Duration::from_millis(1), "a decision");
    assert!(quantile(&injected, 99) < Duration::from_millis(1), "an injection");
    assert!(quantile(&alone, 99) < Duration::from_millis(1), "there and back");
    assert!(per_core >= 10_000.0, "{per_core:.0} reviews for each second of a core");
    assert!(peak < 15.0 * 1024.0, "{peak} KiB");
    // What is asked in vain costs no more memory: nobody is there to ask.
    assert_eq!(wire.review("/gates/snapshot", &preflight()).await["allowed"], true);
}

/// The program, on one core, and where it asks.
pub(crate) async fn start(files: &Files, apiserver: SocketAddr) -> (Child, SocketAddr) {
    let binary = env!("CARGO_BIN_EXE_stillpoint-webhooks");
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", "0", binary]);
    command
        .args(["--listen", "127.0.0.1:0", "--log", "error", "--apiserver-name", NAME])
        .arg(format!("--apiserver=https://{apiserver}"))
        .arg("--tls-cert-file")
        .arg(&files.certificate)
        .arg("--tls-private-key-file")
        .arg(&files.key)
        .arg("--apiserver-ca-file")
        .arg(&files.authority)
        .arg("--token-file")
        .arg(&files.token)
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    let address = line.strip_prefix("listening: https://").unwrap().parse().unwrap();
    (child, address)
}

fn quantile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

fn quantiles(all: &mut [Duration]) -> String {
    all.sort();
    let [p50, p99] = [50, 99].map(|percent| quantile(all, percent).as_micros());
    format!("p50 {p50} µs, p99 {p99} µs")
}

/// Of user and system, in ticks of 10 ms (proc(5), `USER_HZ`).
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// What makes the tail on a machine that has other work, and is none of ours (Documentation/scheduler/sched-stats.rst).
fn waited_for_a_core(pid: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let waited = tasks.map(|task| {
        let stat = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
        stat.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    });
    Duration::from_nanos(waited.sum())
}

pub(crate) fn kib(pid: u32, key: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
