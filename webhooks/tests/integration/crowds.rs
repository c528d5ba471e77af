//! Many at once, long ones, slow ones, and those that are worse than they look: each is turned away at once, or costs little, and
//! whoever sends what is usual is answered as ever.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::client::TlsStream;
use webhooks::review::LONGEST;

use crate::{
    numbers::{kib, start},
    reviews::{cut, group_cut, plain_pod, pod_create, with},
    serving::World,
    upstream::{Apiserver, Behaviour, authority, files},
    wire::{Wire, dial},
};

const PATH: &str = "/gates/content?timeout=30s";
const SOON: Duration = Duration::from_secs(20);
/// Of a program that deploy/ gives 128 MiB.
const MOST_KIB: f64 = 100.0 * 1024.0;

/// As long as a review may be.
fn longest() -> Vec<u8> {
    let mut body = cut().to_string().into_bytes();
    body.resize(LONGEST, b' ');
    body
}

/// Sends so much of the longest review, and no more.
async fn begin(world: &World, sent: usize) -> TlsStream<TcpStream> {
    let mut stream = dial(world.address, world.authority.certificate(), None, "http/1.1").await.unwrap();
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {LONGEST}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&longest()[..sent]).await.unwrap();
    stream.flush().await.unwrap();
    stream
}

async fn code(stream: &mut TlsStream<TcpStream>) -> String {
    let mut line = [0; 12];
    timeout(SOON, stream.read_exact(&mut line)).await.unwrap().unwrap();
    String::from_utf8_lossy(&line[9..]).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_slowly_keeps_nobody_waiting_and_is_turned_away() {
    let world = World::alone().await;
    let wire = world.wire().await;
    // Announced only, by far more than there is room for.
    let began = Instant::now();
    let mut announced = Vec::new();
    for _ in 0..8 {
        announced.push(begin(&world, 10).await);
    }
    assert_eq!(wire.send(Method::POST, PATH, longest().into()).await.unwrap().0, 200, "there is room for another");
    for stream in &mut announced {
        assert_eq!(code(stream).await, "408", "whatever its timeout says");
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");

    // All but the last byte: two fit, and a half.
    let mut sent = Vec::new();
    for _ in 0..2 {
        sent.push(begin(&world, LONGEST - 1).await);
    }
    let answered = wire.send(Method::POST, PATH, cut().to_string().into()).await.unwrap();
    assert_eq!(answered.0, 200, "what is usual has room of its own");
    let refused = wire.send(Method::POST, PATH, longest().into()).await.unwrap();
    assert_eq!(refused.0, 503, "{:?}", refused.1);
    for stream in &mut sent {
        assert_eq!(code(stream).await, "408");
    }
    assert_eq!(wire.send(Method::POST, PATH, longest().into()).await.unwrap().0, 200, "they have left their room");
}

/// Maps of one key take some hundred times of what they are as text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_short_as_text_and_large_in_memory_is_not_read() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority("ours");
    let (server, address) = start(&files(directory.path(), &authority, "secret"), ([127, 0, 0, 1], 9).into()).await;
    let wire = Wire::connect(address, authority.certificate(), None).await.unwrap();
    let maps = format!("[{}0]", r#"{"":0},"#.repeat(400_000));
    let body = cut().to_string().replacen('{', &format!(r#"{{"maps":{maps},"#), 1);
    assert!(body.len() < LONGEST);
    let (code, said) = wire.send(Method::POST, PATH, body.into()).await.unwrap();
    assert_eq!(code, 503, "{said:?}");
    // Braces in a text are a text.
    let text = with(cut(), "/request/object/metadata/annotations/a", "{[,".repeat(400_000).into());
    assert_eq!(wire.review(PATH, &text).await["allowed"], true);
    // A Pod is in memory twice while it is decided on: what just fits does, and what does not is not read.
    for (maps, answered) in [(17_000, 200), (20_000, 503)] {
        let maps = format!("[{}0]", r#"{"":0},"#.repeat(maps));
        let pod =
            pod_create(plain_pod()).to_string().replacen(r#""spec":{"#, &format!(r#""spec":{{"future":{maps},"#), 1);
        let (code, said) = wire.send(Method::POST, "/inject", pod.into()).await.unwrap();
        assert_eq!(code, answered, "{said:?}");
    }
    let peak = kib(server.id().unwrap(), "VmHWM:");
    assert!(peak < MOST_KIB, "{peak} KiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_its_answer_has_a_bound_in_bytes_and_the_rest_is_told_so() {
    const ASKED: usize = 150;
    let directory = tempfile::tempdir().unwrap();
    let authority = authority("ours");
    let apiserver = Apiserver::start(&authority, "secret").await;
    apiserver.will(vec![Behaviour::Hang; ASKED]);
    let (server, address) = start(&files(directory.path(), &authority, "secret"), apiserver.address).await;
    let wire = Wire::connect(address, authority.certificate(), None).await.unwrap();
    let handles = vec!["h".repeat(1000); api::gate::MOST_VOLUMES];
    let large = with(group_cut(), "/request/object/spec/source/volumeHandles", json!(handles)).to_string();
    let large = Bytes::from(large);
    let mut waiting = Vec::new();
    let mut turned_away = 0;
    for _ in 0..ASKED {
        let (of, body) = (wire.clone(), large.clone());
        let mut review = tokio::spawn(async move { of.send(Method::POST, PATH, body).await.unwrap() });
        let until = Instant::now() + SOON;
        // It is asked about, or answered.
        while apiserver.asked().len() == waiting.len() {
            assert!(Instant::now() < until, "neither asked nor answered");
            let Ok(answered) = timeout(Duration::from_millis(5), &mut review).await else { continue };
            let (code, said) = answered.unwrap();
            assert!(code == 200 && String::from_utf8_lossy(&said).contains("too much waits"), "{code} {said:?}");
            turned_away += 1;
            break;
        }
        if !review.is_finished() {
            waiting.push(review);
        }
    }
    assert!(waiting.len() > 20 && turned_away > 20, "{} wait, {turned_away} do not", waiting.len());
    assert_eq!(wire.review("/gates/content?timeout=1s", &cut()).await["allowed"], true, "a usual one has room");
    let peak = kib(server.id().unwrap(), "VmHWM:");
    assert!(peak < MOST_KIB, "{peak} KiB");
}
